"""Keeping the house: counting, retention and orphans, on every kind of storage."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from downloader import manifest as records
from downloader.expiry import Expiring
from downloader.housekeeping import Housekeeping
from downloader.janitor import Janitor
from downloader.manifest import Manifest
from downloader.metrics import DownloaderMetrics
from downloader.names import names_of
from downloader.retention import RECORD, Retention, Rules
from downloader.space import Space
from downloader.staging import Staging
from downloader.storage import Storage
from shared.errors import Reason, RetryableError
from shared.events import Evidence, Format
from shared.vendors import Vendor
from tests.contract.storages import FolderKit, Kit, ObjectKit, staged
from tests.unit.custody_fakes import FakePublisher, Steps

NOW = datetime.now(UTC)
AUDIO = b"audio" * 20


class Place:
    """One storage and its housekeeping; the clock is set by hand."""

    def __init__(self, kit: Kit, folder: Path, *, retention: bool) -> None:
        self.kit = kit
        self.storage: Storage = kit.storage()
        self.now = NOW
        self.registry = CollectorRegistry()
        self.publisher = FakePublisher(Steps())
        self.folder = folder
        folder.mkdir()
        metrics = DownloaderMetrics(self.registry)
        assert isinstance(kit, FolderKit | ObjectKit)
        staging = Staging(folder, executor=kit.executor)
        self.housekeeping = Housekeeping(
            space=Space(staging=folder, storage=None, reserve_bytes=0, quota_bytes=None, metrics=metrics.keeping),
            janitor=Janitor(staging=staging, storage=self.storage, temporary=(), metrics=metrics.keeping),
            retention=Retention(
                mode="delete" if retention else "off",
                rules=Rules(max_age_days=30, max_bytes=None),
                storage=self.storage,
                expiring=Expiring(
                    storage=self.storage,
                    publisher=self.publisher,
                    metrics=metrics.keeping,
                    clock=lambda: self.now,
                ),
                metrics=metrics.keeping,
                clock=lambda: self.now,
            ),
            storage=self.storage,
            executor=kit.executor,
            metrics=metrics,
            clock=lambda: self.now,
        )

    async def store(self, task_id: str, *, announced: bool = True) -> Manifest:
        """Keep a task as custody does."""
        names, sha256 = names_of("kie", task_id), f"{len(task_id):064x}"
        audio = names.audio(sha256)
        manifest = Manifest(
            vendor=Vendor.KIE,
            task_id=task_id,
            audio=audio,
            uri=self.storage.uri(audio),
            size_bytes=len(AUDIO),
            sha256=sha256,
            format=Format(
                container="RIFF",
                codec="pcm",
                sample_rate_hz=8_000,
                channels=1,
                bits_per_sample=16,
                frames=1,
                duration_s=1 / 8_000,
            ),
            evidence=Evidence(trust=("token",), transport="content_length"),
            warnings=(),
            link="https://cdn.example.com/a.wav",
            link_identity="0" * 32,
            received_at=NOW,
            deadline=NOW + timedelta(days=14),
            stored_at=NOW,
            event_id="",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        await self.storage.keep(staged(self.folder, AUDIO), audio)
        await self.storage.create(names.manifest, records.write(manifest))
        if announced:
            await self.storage.create(names.announced, b"")
        return manifest

    def value(self, name: str, **labels: str) -> float | None:
        """Return a metric."""
        return self.registry.get_sample_value(f"wavekeep_downloader_{name}", labels)


async def test_a_round_counts_and_changes_nothing(kit: Kit, tmp_path: Path) -> None:
    """What is kept is counted, records left out; without a rule nothing is written or deleted."""
    place = Place(kit, tmp_path / "staging", retention=False)
    await place.storage.start()
    await place.store("one")
    await place.store("three", announced=False)
    before = kit.listing()
    await place.housekeeping.round()
    assert kit.listing() == before
    assert place.value("kept_bytes") == 2 * len(AUDIO)
    assert place.value("orphans") == 0
    assert place.value("housekeeping_last_done_timestamp_seconds") == pytest.approx(NOW.timestamp())


async def test_retention_names_then_deletes(kit: Kit, tmp_path: Path) -> None:
    """What is old and announced goes a day after it was named, is told once, and leaves its records and tombstone."""
    place = Place(kit, tmp_path / "staging", retention=True)
    await place.storage.start()
    old, unannounced = await place.store("one"), await place.store("three", announced=False)
    before = kit.listing()
    for days in (31, 31.9, 32.1, 32.2):
        place.now = NOW + timedelta(days=days)
        if days < 32:
            await place.housekeeping.round()
            assert kit.listing() == before | {RECORD}
            assert place.value("retention_named_files", rule="age") == 1
        else:
            await place.housekeeping.round()
    names = names_of("kie", "one")
    assert kit.listing() == (
        before | {RECORD, names.revision(2), names.expired, names.expiry_announced, names.gone(1)}
    ) - {old.audio}
    assert unannounced.audio in kit.listing()
    assert place.publisher.types == ["file.expired"]
    assert place.value("files_expired_total", rule="age") == 1
    assert place.value("expired_bytes_total") == len(AUDIO) == place.value("kept_bytes")
    assert place.value("retention_named_files", rule="age") == 0
    record = json.loads(await place.storage.read(RECORD) or b"")
    assert len(record["plans"]) < 5


async def test_orphans_of_a_day_are_told_and_stay(kit: Kit, tmp_path: Path) -> None:
    """Audio that no manifest names may be all that is left of a file: it is counted, told, and never deleted."""
    place = Place(kit, tmp_path / "staging", retention=False)
    await place.storage.start()
    manifest = await place.store("one")
    names = names_of("kie", "seven")
    orphan = names.audio("7" * 64)
    await place.storage.keep(staged(place.folder, AUDIO), orphan)
    await place.housekeeping.round()
    assert place.value("orphans") == 0
    place.now = NOW + timedelta(days=1, hours=1)
    await place.housekeeping.round()
    assert {orphan, manifest.audio} <= kit.listing()
    assert place.value("orphans") == 1
    assert place.value("kept_bytes") == 2 * len(AUDIO)


async def test_a_broker_that_fails_ends_the_round_and_loses_nothing(kit: Kit, tmp_path: Path) -> None:
    """What could not be told stays, and the next round does it all."""
    place = Place(kit, tmp_path / "staging", retention=True)
    await place.storage.start()
    old = await place.store("one")
    for days in (31, 32):
        place.now = NOW + timedelta(days=days)
        place.publisher.refuses = {1}
        if days == 31:
            await place.housekeeping.round()
        else:
            with pytest.raises(RetryableError):
                await place.housekeeping.round()
    assert old.audio in kit.listing()
    await place.housekeeping.round()
    assert old.audio not in kit.listing()
    told = [msgspec.json.decode(msgspec.json.encode(event.data)) for event in place.publisher.told]
    assert [event["expired_at"] for event in told] == [place.now.isoformat().replace("+00:00", "Z")]


async def test_a_file_that_is_put_back_stays_and_is_told(kit: Kit, tmp_path: Path) -> None:
    """What a person copies back under its name after it had gone is no expiry that broke off."""
    place = Place(kit, tmp_path / "staging", retention=True)
    await place.storage.start()
    old = await place.store("one")
    for days in (31, 32.1):
        place.now = NOW + timedelta(days=days)
        await place.housekeeping.round()
    assert old.audio not in kit.listing()
    await place.storage.keep(staged(place.folder, AUDIO), old.audio)
    for days in (33, 34):
        place.now = NOW + timedelta(days=days)
        await place.housekeeping.round()
        assert old.audio in kit.listing()
        assert place.value("files_came_back") == 1
        assert place.value("orphans") == 0
        assert place.value("retention_named_files", rule="age") == 0
    assert place.publisher.types == ["file.expired"]


async def test_whether_the_storage_answers_is_known(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness tells a storage that fails, and that it is back."""
    place = Place(kit, tmp_path / "staging", retention=False)
    seen: list[bool] = []

    async def look() -> None:
        await place.housekeeping.look()
        seen.append(place.housekeeping.storage_answers)

    async def fail() -> NoReturn:
        raise RetryableError(Reason.STORAGE_FAILED, "503")

    await place.storage.start()

    async def fault() -> NoReturn:
        raise ZeroDivisionError

    await look()
    with monkeypatch.context() as broken:
        broken.setattr(place.storage, "ask", fail)
        await look()
    await look()
    with monkeypatch.context() as broken:
        broken.setattr(place.storage, "ask", fault)
        with pytest.raises(ZeroDivisionError):
            await place.housekeeping.look()
        seen.append(place.housekeeping.storage_answers)
    assert seen == [True, False, True, False]


async def test_a_storage_that_hangs_is_asked_once_and_does_not_count_as_answering(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness tells it, and not one thread more waits for it at each look."""
    place = Place(kit, tmp_path / "staging", retention=False)
    place.housekeeping._look_every_s = 0.05
    answers, asked, seen = asyncio.Event(), 0, []

    async def hang() -> None:
        nonlocal asked
        asked += 1
        await answers.wait()

    monkeypatch.setattr(place.storage, "ask", hang)
    for _ in range(3):
        await place.housekeeping.look()
        seen.append(place.housekeeping.storage_answers)
    answers.set()
    place.housekeeping._look_every_s = 30.0
    await place.housekeeping.look()
    assert (seen, asked, place.housekeeping.storage_answers) == ([False] * 3, 1, True)
