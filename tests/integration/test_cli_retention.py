"""`wavekeep retention`: a person sees what would go, and looking deletes nothing."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from cli.__main__ import main
from downloader.names import names_of
from downloader.retention import RECORD, Plan, Record, Rules
from tests.contract.storages import files

NOW = datetime.now(UTC)


def kept(folder: Path, task_id: str, *, age: timedelta, size_bytes: int = 1_000) -> None:
    """Put an announced task into a folder, as it was left so long ago."""
    names, moment = names_of("kie", task_id), (NOW - age).timestamp()
    for key, size in ((names.audio("0" * 64), size_bytes), (names.manifest, 2), (names.announced, 0)):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (moment, moment))


def invoke(folder: Path, *words: str, status: int = 0, **settings: str) -> str:
    """Run the command on a data folder; return what it printed."""
    environment = {f"WAVEKEEP_{name.upper()}": value for name, value in settings.items()}
    runner = CliRunner(env={"WAVEKEEP_DATA_DIR": str(folder), **environment})
    result = runner.invoke(main, ["retention", *words])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with three files of different ages."""
    for days in (10, 40, 50):
        kept(tmp_path / "files", f"task-{days}", age=timedelta(days=days))
    return tmp_path


def test_the_oldest_are_shown_first_and_nothing_changes(folder: Path) -> None:
    """The table names what each rule lets go, oldest first, and the sum says how much in all."""
    before = files(folder)
    output = invoke(folder, "--limit", "1", retention_max_age_days="30")
    assert "task-50" in output
    assert "task-40" not in output
    assert "2 tasks, 2000 bytes" in output
    assert "nothing goes" in output
    by_size: Any = msgspec.json.decode(invoke(folder, "--json", retention_max_bytes="2500"))
    assert [(each["manifest"].rpartition("/")[2], each["rule"]) for each in by_size["oldest"]] == [
        ("task-50.json", "size")
    ]
    assert files(folder) == before


def test_it_says_when(folder: Path) -> None:
    """A person sees whether the day of notice has begun."""
    rules: dict[str, Any] = {"retention_mode": "delete", "retention_max_age_days": "30"}
    assert "a day after" in invoke(folder, **rules)
    plan = Plan(made_at=NOW - timedelta(hours=3), age=NOW - timedelta(days=30), size=None)
    record = Record(rules=Rules(max_age_days=30, max_bytes=None), plans=(plan,))
    (folder / "files" / RECORD).write_bytes(msgspec.json.encode(record))
    assert f"{plan.made_at:%Y-%m-%d %H:%M}" in invoke(folder, **rules)


def test_nothing_named_and_no_rule(folder: Path) -> None:
    """Where nothing would go it says so; where no rule is set it says how to set one."""
    assert "Nothing is named." in invoke(folder, retention_max_age_days="60")
    assert "WAVEKEEP_RETENTION_MAX_AGE_DAYS" in invoke(folder, status=1)
