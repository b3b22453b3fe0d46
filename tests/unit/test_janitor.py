"""The janitor: orphans are told, and deleted only where that is wanted and they still are orphans."""

import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from downloader import manifest as records
from downloader.expiry import Expiring
from downloader.janitor import SWEEP_AFTER_S, Found, Janitor
from downloader.keeping_metrics import KeepingMetrics
from downloader.shelves import find
from downloader.staging import Staging
from downloader.storage import Uploads
from downloader.storage_failure import StoreError
from tests.unit.custody_fakes import NAMES, NOW, House, succeeded

LATER = NOW + timedelta(days=1)
ORPHANS = (NAMES.audio("e" * 64), NAMES.waveform("e" * 64), NAMES.peaks("e" * 64))


@pytest.fixture
def executor() -> Iterator[Executor]:
    """Threads for what blocks."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def house(tmp_path: Path, executor: Executor) -> House:
    """Custody among fakes."""
    return House(tmp_path / "staging", executor)


def janitor(house: House, tmp_path: Path, executor: Executor) -> Janitor:
    """Return a janitor over a house's storage."""
    return Janitor(
        staging=Staging(tmp_path / "staging", executor=executor),
        storage=house.storage,
        temporary=(tmp_path / "tmp",),
        metrics=KeepingMetrics(CollectorRegistry()),
    )


@pytest.mark.parametrize("stored", [False, True])
async def test_orphans(house: House, tmp_path: Path, executor: Executor, *, stored: bool) -> None:
    """Without a manifest or beside one: what no manifest names is told, and stays."""
    if stored:
        await house.custody().handle(succeeded())
    kept = set(house.storage.objects)
    house.storage.objects |= dict.fromkeys(ORPHANS, b"1234")
    found = Found()
    await janitor(house, tmp_path, executor).look(await find(house.storage, NAMES), found, now=LATER)
    assert set(house.storage.objects) == kept | set(ORPHANS)
    assert (found.count, found.size_bytes, set(found.orphans)) == (len(ORPHANS), 4 * len(ORPHANS), set(ORPHANS))


async def test_a_tombstone_names_nothing(house: House, tmp_path: Path, executor: Executor) -> None:
    """Where one stands among the revisions, an orphan is still told, and what the revisions name is none."""
    await house.custody().handle(succeeded())
    house.storage.objects |= dict.fromkeys(ORPHANS, b"1234")
    house.now = LATER + timedelta(days=40)
    expiring = Expiring(
        storage=house.storage,
        publisher=house.publisher,
        metrics=KeepingMetrics(CollectorRegistry()),
        clock=lambda: house.now,
    )
    assert await expiring.expire(await find(house.storage, NAMES), "age") > 0
    assert NAMES.revision(2) in house.storage.objects
    assert house.manifest is not None
    house.storage.objects[house.manifest.audio] = b"it came back"
    found = Found()
    await janitor(house, tmp_path, executor).look(await find(house.storage, NAMES), found, now=LATER)
    assert set(found.orphans) == set(ORPHANS)


async def test_what_is_young_or_named_or_doubtful_is_no_orphan(
    house: House, tmp_path: Path, executor: Executor
) -> None:
    """Nothing under a day old is told, nor what an earlier revision names, nor anything beside a damaged record."""
    await house.custody().handle(succeeded())
    assert house.manifest is not None
    working = janitor(house, tmp_path, executor)
    second = msgspec.structs.replace(house.manifest, revision=2, audio=NAMES.audio("f" * 64))
    house.storage.objects |= {
        NAMES.revision(1): house.storage.objects[NAMES.manifest],
        NAMES.revision(2): records.write(second),
        NAMES.manifest: records.write(second),
        second.audio: b"new",
    }
    before = set(house.storage.objects)
    found = Found()
    await working.look(await find(house.storage, NAMES), found, now=LATER)
    house.storage.objects |= dict.fromkeys(ORPHANS, b"1234")
    await working.look(await find(house.storage, NAMES), found, now=LATER - timedelta(seconds=1))
    house.storage.objects[NAMES.revision(1)] = b"{"
    await working.look(await find(house.storage, NAMES), found, now=LATER)
    assert set(house.storage.objects) == before | set(ORPHANS)
    assert found.count == 0


def test_files_of_dead_writers_are_swept(house: House, tmp_path: Path, executor: Executor) -> None:
    """While the service runs, only what is over an hour old and unlocked goes: a living attempt is never touched."""
    (tmp_path / "tmp").mkdir()
    paths = [folder / name for folder in (tmp_path / "tmp", tmp_path / "staging") for name in ("old.part", "new.part")]
    for path in paths:
        path.write_bytes(b"part")
        if path.name == "old.part":
            before = path.stat().st_mtime - SWEEP_AFTER_S - 1
            os.utime(path, (before, before))
    assert janitor(house, tmp_path, executor).sweep() == 2
    assert [path for path in paths if path.exists()] == [path for path in paths if path.name == "new.part"]


class FakeUploads:
    """Ends one upload, then fails if it is told to."""

    def __init__(self) -> None:
        self.error: StoreError | None = None

    async def sweep(self) -> AsyncIterator[str]:
        """Pretend."""
        yield "kie/ab/task.0123456789ab.wav"
        if self.error is not None:
            raise self.error


async def test_uploads_are_ended_and_a_denial_is_told_once(house: House, tmp_path: Path, executor: Executor) -> None:
    """Whatever the store says, no round fails for it; it is counted each time, a missing right is told one time."""
    registry, uploads = CollectorRegistry(), FakeUploads()
    checked: Uploads = uploads
    working = Janitor(
        staging=Staging(tmp_path / "staging", executor=executor),
        storage=house.storage,
        temporary=(),
        metrics=KeepingMetrics(registry),
        uploads=checked,
    )

    def count(outcome: str) -> float | None:
        return registry.get_sample_value("wavekeep_downloader_upload_sweeps_total", {"outcome": outcome})

    denied, failed = (StoreError("the object store answered", status=status) for status in (403, 503))
    with capture_logs() as logs:
        for uploads.error in (denied, denied, failed, failed, None, denied):
            await working.sweep_uploads()
    assert (count("denied"), count("failed"), count("done")) == (3, 2, 1)
    assert registry.get_sample_value("wavekeep_downloader_uploads_ended_total") == 6
    told = [line["denied"] for line in logs if line["event"] == "uploads.not_swept"]
    assert told == [True, False, False, True]
    assert len([line for line in logs if line["event"] == "uploads.ended"]) == 6
