"""Asks pip-audit whether a version that is locked has a known weakness, and judges its answer.

Responsible for: what `make audit` says, and its exit status: 0 nothing found, or not to be looked up now; 1 something
found; 2 with `--strict`, whatever could not be looked up. It must not install or change anything.
"""  # noqa: INP001 - a script beside others, no package

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements/run.txt", "requirements/quality.txt")
TIMEOUT_S = 300.0


def main() -> int:
    """Audit; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strict", action="store_true", help="fail with 2 when something could not be looked up")
    unknown = 2 if parser.parse_args().strict else 0

    checked = _ask()
    if isinstance(checked, str):
        return _tell(f"audit: nothing was looked up: {checked}", unknown)
    found = [(each, weakness) for each in checked for weakness in each.get("vulns", ())]
    skipped = sorted({each["name"] for each in checked if "skip_reason" in each})
    audited = len({each["name"] for each in checked} - set(skipped))
    for each, weakness in found:
        mended = ", ".join(weakness.get("fix_versions") or ()) or "no version yet"
        _tell(f"{each['name']} {each['version']}: {weakness['id']}, mended in {mended}", 1)
    if found:
        return _tell(f"audit: {len(found)} known weaknesses; raise the versions (make lock) and test.", 1)
    if not audited:
        return _tell("audit: nothing was looked up: the vulnerability service knows none of the packages.", unknown)
    if skipped:
        return _tell(f"audit: no known weakness in {audited} packages; not looked up: {', '.join(skipped)}.", unknown)
    return _tell(f"audit: no known weakness in {audited} packages.", 0)


def _ask() -> list[dict[str, Any]] | str:
    """Return what pip-audit says of each package, or in a few words why it says nothing."""
    program = shutil.which("pip-audit")
    if program is None:
        return "there is no pip-audit on PATH."
    locks = [word for lock in LOCKS for word in ("--requirement", str(ROOT / lock))]
    # the locks name every package with its hash, so nothing has to be resolved
    options = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(  # noqa: S603 - no shell, our own words
            [program, *options, *locks],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the vulnerability service did not answer within {TIMEOUT_S:.0f} s."
    try:
        dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        # most often: no line to the service
        return f"pip-audit could not ask the vulnerability service: {said[-1][:160] if said else 'it gave no reason'}"
    return dependencies


def _tell(sentence: str, status: int) -> int:
    (sys.stderr if status else sys.stdout).write(sentence + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
