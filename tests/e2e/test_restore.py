"""Backup and restore as docs/operations.md tells it, done once for real: everything lost, everything put back."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import House, new_task, wait_for

ROOT = Path(__file__).parents[2]
PARKED = "wavekeep.downloader.parked"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """All services in one process."""
    house = House(tmp_path / "house")
    with house.deployment:
        yield house


def wavekeep(house: House, *arguments: str, status: int = 0) -> Any:
    """Run the command line with the settings of the deployment; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WAVEKEEP_")}
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments, "--json"],
        cwd=ROOT,
        env=kept
        | {
            "WAVEKEEP_STORAGE_URL": house.files.as_uri(),
            "WAVEKEEP_DATA_DIR": str(house.folder / "standalone"),
            "WAVEKEEP_NOTIFY_CONFIG": str(house.folder / "destinations.toml"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def copy(source: Path, target: Path, *, meant: Callable[[Path], bool]) -> None:
    """Copy the files that are meant and not there yet, with their times, as `rsync -a --ignore-existing` does."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_file() and ".tmp" not in path.parts and meant(path) and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)


def is_marker(path: Path) -> bool:
    """Tell whether it says that something was told."""
    return path.suffix == ".announced"


def is_record(path: Path) -> bool:
    """Tell whether it is a manifest, or a record beside it."""
    return path.suffix in {".json", ".expired"}


def retried(queue: Path) -> int:
    """Return how many reports wait for another attempt, in a queue file."""
    with closing(sqlite3.connect(queue)) as db:
        query = "SELECT count(*) FROM message WHERE queue LIKE 'wavekeep.downloader%' AND attempts > 0"
        count: int = db.execute(f"{query} AND queue != ?", (PARKED,)).fetchone()[0]
        return count


@pytest.mark.slow
def test_nothing_acknowledged_before_the_backup_is_lost(house: House, tmp_path: Path) -> None:
    """A backup while callbacks come, then a new machine: stored stays stored, parked stays parked, waiting goes on.

    Nothing is told under a second id, and what is kept is whole.
    """
    stored = [new_task() for _ in range(5)]
    for task_id in stored:
        house.convert(task_id=task_id)
    for task_id in stored:
        house.told(task_id, "conversion.stored")
    parked = new_task()
    house.convert(task_id=parked, files=[{"flavour": "adpcm"}])
    house.told(parked, "conversion.rejected")
    wait_for(lambda: house.depth(PARKED) == 1, "it is parked")
    waiting = new_task()
    house.convert(task_id=waiting, files=[{"misbehaviour": [{"status": 503, "times": 2}]}])
    wait_for(lambda: retried(house.folder / "standalone" / "queue.sqlite3") == 1, "it waits for another attempt")

    # as the page says: what was written last is copied first
    backup = tmp_path / "backup"
    copy(house.files, backup / "files", meant=is_marker)
    during = [new_task() for _ in range(5)]
    for task_id in during[:2]:
        house.convert(task_id=task_id)
    copied = wavekeep(house, "backup", str(backup / "data"))
    assert [Path(each["path"]).name for each in copied] == ["queue.sqlite3"]
    assert retried(backup / "data" / "queue.sqlite3") == 1
    for task_id in during[2:]:
        house.convert(task_id=task_id)
    for task_id in during:
        house.told(task_id, "conversion.stored")
    copy(house.files, backup / "files", meant=is_record)
    copy(house.files, backup / "files", meant=lambda path: not is_marker(path) and path.suffix != ".json")

    service = house.deployment.services["standalone"]
    service.kill()
    shutil.rmtree(house.folder / "standalone")
    shutil.rmtree(house.files)
    assert not house.files.exists()

    shutil.copytree(backup / "files", house.files)
    shutil.copytree(backup / "data", house.folder / "standalone")
    service.start()
    wait_for(service.ready, "it is ready again")
    for task_id in [*stored, *during]:
        house.told(task_id, "conversion.stored")  # under one id, before and after
    house.told(waiting, "conversion.stored", within_s=60)
    wait_for(house.files.joinpath(house.manifest(waiting)["audio"]).exists, "its file is there")
    house.told(parked, "conversion.rejected")
    assert house.depth(PARKED) == 1
    for task_id in [*stored, *during, waiting]:
        (path,) = house.kept(task_id)
        assert path.stat().st_size == house.manifest(task_id)["size_bytes"]
    report = wavekeep(house, "audit")
    assert (report["whole"], report["files"]) == (True, len(stored) + len(during) + 1)
    assert house.leaks() == []
