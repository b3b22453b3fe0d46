"""The lock files name every dependency, with hashes, and no place to get it from."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("run.txt", "quality.txt", "dev.txt")

PIN = re.compile(r"([a-z0-9][a-z0-9-]*)==([^\s;]+)( ; [^\\]+)? \\")
HASH = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_place(name: str) -> None:
    """Whoever installs chooses the index: a lock neither tells an address nor redirects to one."""
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text
    assert not re.search(
        r"^\s*(-i|-f|-e|--index-url|--extra-index-url|--find-links|--trusted-host)\b", text, re.MULTILINE
    )
    assert " @ " not in text


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_a_pin_or_its_hash(name: str) -> None:
    """No dependency is taken without its hash, so a replaced file on an index is refused."""
    pinned = None
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line.lstrip().startswith("#"):
            continue
        if PIN.fullmatch(line):
            assert pinned is None, f"{pinned} has no hash"
            pinned = line
        else:
            assert HASH.fullmatch(line), f"neither a pin nor a hash: {line}"
            pinned = None
    assert pinned is None


def test_the_locks_agree() -> None:
    """What is tested is what runs: each lock is in the next one, in the same versions with the same hashes."""
    run, quality, dev = (pins(name) for name in LOCKS)
    assert run
    assert {name: quality.get(name) for name in run} == run
    assert {name: dev.get(name) for name in quality} == quality


def test_everything_that_is_asked_for_is_locked() -> None:
    """A dependency added to pyproject.toml without a new lock is noticed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    run, quality, dev = (set(pins(name)) for name in LOCKS)
    assert names(project["project"]["dependencies"] + groups["build"]) <= run
    assert names(project["project"]["optional-dependencies"]["quality"]) <= quality
    assert names(groups["dev"]) <= dev


def pins(lock: str) -> dict[str, str]:
    """Return each package's version, marker and hashes, by name."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "requirements" / lock).read_text(), flags=re.MULTILINE)
    found = {}
    for entry in re.split(r"\n(?! )", text.strip()):
        name, _, rest = entry.partition("==")
        found[name] = rest
    return found


def names(requirements: list[str]) -> set[str]:
    """Return the normalised names of requirements."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", each)[0]).lower() for each in requirements}
