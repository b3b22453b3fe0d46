"""What `make audit` makes of pip-audit's answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/audit.py"

CLEAN = {"name": "yarl", "version": "1.25.1", "vulns": []}
WEAK = {"name": "aiohttp", "version": "3.14.0", "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["3.14.9"]}]}
UNMENDED = {"name": "rich", "version": "15.0.0", "vulns": [{"id": "GHSA-x", "fix_versions": []}]}
SKIPPED = {"name": "uvloop", "skip_reason": "Dependency not found on PyPI and could not be audited: uvloop (0.23.0)"}
TRACEBACK = "Traceback (most recent call last):\n  File x\nrequests.exceptions.ConnectionError: no line\n"


def audit(folder: Path, answer: str | None, *options: str, error: str = "", status: int = 0) -> tuple[int, str]:
    """Run the script with a pip-audit that answers so, or with none; return its status and all it said."""
    if answer is not None:
        (folder / "answer").write_text(answer)
        (folder / "error").write_text(error)
        fake = folder / "pip-audit"
        fake.write_text(
            f'#!/bin/sh\necho "$@" > {folder}/asked\ncat {folder}/answer\ncat {folder}/error >&2\nexit {status}\n'
        )
        fake.chmod(0o755)
    path = f"{folder}:/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, SCRIPT, *options], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def answered(*dependencies: object) -> str:
    """Write an answer of pip-audit's."""
    return json.dumps({"dependencies": dependencies, "fixes": []})


@pytest.mark.parametrize(
    ("answer", "error", "status", "strict_status", "said"),
    [
        (answered(CLEAN), "", 0, 0, "no known weakness in 1 packages."),
        (answered(CLEAN, SKIPPED), "", 0, 2, "not looked up: uvloop."),
        (answered(CLEAN, WEAK), "found 1", 1, 1, "aiohttp 3.14.0: PYSEC-2026-1, mended in 3.14.9"),
        (answered(SKIPPED, UNMENDED), "", 1, 1, "rich 15.0.0: GHSA-x, mended in no version yet"),
        (answered(SKIPPED), "", 0, 2, "knows none of the packages"),
        ("", TRACEBACK, 0, 2, "ConnectionError: no line"),
        ("not JSON", "", 0, 2, "gave no reason"),
        ("[]", "", 0, 2, "gave no reason"),
        (None, "", 0, 2, "no pip-audit on PATH"),
    ],
)
def test_findings_fail_and_silence_does_not(
    tmp_path: Path, answer: str | None, error: str, status: int, strict_status: int, said: str
) -> None:
    """A weakness always fails; what could not be looked up is told in a sentence, and fails where that is asked for."""
    found, told = audit(tmp_path, answer, error=error, status=1)
    assert found == status
    assert said in told
    assert "Traceback" not in told
    assert audit(tmp_path, answer, "--strict", error=error, status=1) == (strict_status, told)
    assert status or len(told.splitlines()) == 1


def test_both_locks_are_looked_up_as_they_are(tmp_path: Path) -> None:
    """What runs is what is audited: every lock but that of the tests, by its hashes, with nothing resolved anew."""
    audit(tmp_path, answered(CLEAN))
    asked = (tmp_path / "asked").read_text()
    assert "requirements/run.txt" in asked
    assert "requirements/quality.txt" in asked
    assert {"--require-hashes", "--disable-pip"} <= set(asked.split())
