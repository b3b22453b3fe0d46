"""Coverage-guided fuzzing of one target: libFuzzer in a process of its own, bounded in time and memory.

Responsible for: seeds and corpus in, progress on the screen, and what came of it. What crashed the target is written to
`crashes/TARGET`; `tests/fuzz/test_corpus.py` replays it from then on. The corpus grows only when it is asked to.
"""

import re
import subprocess
import sys
import time
from collections import deque
from hashlib import sha1
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import NamedTuple

import click
from rich import box
from rich.console import Console
from rich.table import Table

TARGETS = ("callback", "wav", "record", "events")
FOLDER = Path(__file__).parent
MEMORY_MB = 512
INPUT_TIMEOUT_S = 5

_ROOT = FOLDER.parents[1]
_EVERY_S = 5.0
_STATUS = re.compile(
    r"#(?P<runs>\d+)\s+\w+\s+cov: (?P<edges>\d+) ft: (?P<features>\d+) corp: (?P<corpus>\d+)/"
    r".*rss: (?P<memory_mb>\d+)Mb"
)
_SLOWEST = re.compile(r"stat::slowest_unit_time_sec:\s+(\d+)")


class Outcome(NamedTuple):
    """What came of fuzzing one target."""

    target: str
    runs: int
    corpus: int
    coverage: str
    crashes: int
    worst: str


def atheris_missing() -> str | None:
    """Say in one sentence why nothing can be fuzzed here; None where it can."""
    try:
        import_module("atheris")
    except ImportError as error:
        return (
            f"atheris, which guides the fuzzing, does not run on this platform ({error}); use Linux and Python < 3.14."
        )
    return None


def fuzz(target: str, *, seconds: int, keep: bool) -> Outcome:
    """Fuzz one target, telling how it goes.

    Args:
        seconds: to spend.
        keep: add what reached new code to the kept corpus, and reduce that to what is needed.
    """
    harness = import_module(f"tests.fuzz.{target}")
    kept, crashes = FOLDER / "corpus" / target, FOLDER / "crashes" / target
    kept.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    known = set(crashes.iterdir())
    with TemporaryDirectory(prefix="wavekeep-fuzz-") as name:
        found, dictionary = Path(name) / "found", Path(name) / "words"
        found.mkdir()
        for seed in harness.seeds():
            (found / sha1(seed).hexdigest()).write_bytes(seed)
        dictionary.write_text("".join(map(_quoted, harness.WORDS)))
        last, slowest_s = _run(target, harness, seconds, dictionary, crashes, found, kept)
        if keep:
            _reduce(target, harness, kept, found)
    new = len(set(crashes.iterdir()) - known)
    if not any(crashes.iterdir()):
        crashes.rmdir()
    return Outcome(
        target,
        last["runs"],
        last["corpus"],
        f"{last['edges']} edges, {last['features']} features",
        new,
        f"slowest under {slowest_s + 1} s, {last['memory_mb']} MB",
    )


def show(outcomes: list[Outcome]) -> None:
    """Print what came of it as a table."""
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("target", "executions", "corpus", "coverage", "crashes", "worst"):
        table.add_column(title, justify="right" if title in {"executions", "corpus", "crashes"} else "left")
    for one in outcomes:
        table.add_row(one.target, f"{one.runs:,}", str(one.corpus), one.coverage, str(one.crashes), one.worst)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main(target: str) -> int:
    """Fuzz one target from the command line; return the exit status."""

    @click.command()
    @click.option("--seconds", default=60, show_default=True, help="Time to spend.")
    @click.option("--keep", is_flag=True, help="Add what reached new code to the corpus.")
    def run(seconds: int, *, keep: bool) -> int:
        if (missing := atheris_missing()) is not None:
            click.echo(missing, err=True)
            return 2
        outcome = fuzz(target, seconds=seconds, keep=keep)
        show([outcome])
        return 1 if outcome.crashes else 0

    status: int = run(standalone_mode=False)
    return status


def _run(
    target: str, harness: ModuleType, seconds: int, dictionary: Path, crashes: Path, *corpora: Path
) -> tuple[dict[str, int], int]:
    """Run libFuzzer; return its last status, and how many whole seconds the slowest input took."""
    options = [
        f"-max_total_time={max(seconds, 1)}",
        f"-dict={dictionary}",
        f"-artifact_prefix={crashes}/",
        "-print_final_stats=1",
        "-keep_seed=1",
    ]
    last = dict.fromkeys(("runs", "edges", "features", "corpus", "memory_mb"), 0)
    slowest_s, told, lines = 0, time.monotonic(), deque[str](maxlen=40)
    with _worker(target, harness, options, corpora) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            lines.append(line)
            if status := _STATUS.search(line):
                last = {name: int(value) for name, value in status.groupdict().items()}
            elif slowest := _SLOWEST.search(line):
                slowest_s = int(slowest[1])
            if time.monotonic() - told > _EVERY_S:
                told = time.monotonic()
                click.echo(
                    f"{target:9} {last['runs']:>10,} executions  corpus {last['corpus']:>4}  {last['edges']} edges"
                )
    if worker.returncode:
        click.echo("".join(lines), err=True)
    if not last["runs"]:
        raise click.ClickException(f"libFuzzer did not fuzz {target}; its words are above")
    return last, slowest_s


def _reduce(target: str, harness: ModuleType, kept: Path, found: Path) -> None:
    """Replace the kept corpus by the fewest inputs, old and new, that reach everything."""
    with (
        TemporaryDirectory(prefix="wavekeep-fuzz-") as name,
        _worker(target, harness, ["-set_cover_merge=1"], (Path(name), kept, found)) as worker,
    ):
        assert worker.stdout is not None
        lines = worker.stdout.read()
        if worker.wait():
            raise click.ClickException(f"the corpus of {target} could not be reduced:\n{lines}")
        for path in kept.iterdir():
            path.unlink()
        for path in Path(name).iterdir():
            path.rename(kept / path.name)


def _worker(target: str, harness: ModuleType, options: list[str], corpora: tuple[Path, ...]) -> "subprocess.Popen[str]":
    bounds = [f"-max_len={harness.LONGEST_BYTES}", f"-timeout={INPUT_TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}"]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.worker", target, *bounds, *options, *map(str, corpora)],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _quoted(word: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'
