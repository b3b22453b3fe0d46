"""Letting files go: told first, under one id, and seen as what it is after a crash at any step."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from downloader import manifest as records
from downloader.expiry import Expiring, came_back
from downloader.keeping_metrics import KeepingMetrics
from downloader.retention import RECORD, Mode, Retention, Rules
from downloader.shelves import Task, find, tasks
from downloader.tombstone import read_expiry
from shared.errors import PermanentError, RetryableError
from shared.events import ConversionStored, FileExpired
from tests.unit.custody_fakes import LINK, NAMES, NOW, OTHER_LINK, CrashError, House, ids, succeeded

DAY = timedelta(days=1)
LATER = NOW + 40 * DAY


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Custody among fakes."""
    executor: Executor
    with ThreadPoolExecutor(2) as executor:
        yield House(tmp_path / "staging", executor)


def expiring(house: House) -> Expiring:
    """Return what lets files go, as after a start."""
    return Expiring(
        storage=house.storage,
        publisher=house.publisher,
        metrics=KeepingMetrics(CollectorRegistry()),
        clock=lambda: house.now,
    )


async def stored(house: House) -> None:
    """Have a task stored and announced, and let 40 days pass."""
    await house.custody().handle(succeeded())
    house.now = LATER


async def expire(house: House) -> int:
    """Let its file go."""
    return await expiring(house).expire(await find(house.storage, NAMES), "age")


async def a_round(house: House, mode: Mode = "delete", *, max_age_days: int = 30) -> int:
    """Do a round of retention; return how many bytes went."""
    metrics = KeepingMetrics(CollectorRegistry())
    retention = Retention(
        mode=mode,
        rules=Rules(max_age_days=max_age_days, max_bytes=None),
        storage=house.storage,
        expiring=expiring(house),
        metrics=metrics,
        clock=lambda: house.now,
    )
    await retention.begin()
    gone_bytes = sum([await retention.look(task) async for task in tasks(house.storage)])
    await retention.end()
    return gone_bytes


def audio(house: House) -> list[str]:
    """Return the keys of all audio."""
    return [key for key in house.storage.objects if key.endswith(".wav")]


async def test_it_is_told_before_it_goes(house: House) -> None:
    """The tombstone, its copy, the event, its marker, and only then the file, and that it is gone; the records stay."""
    await stored(house)
    manifest, steps = house.manifest, len(house.steps.done)
    assert manifest is not None
    assert await expire(house) == manifest.size_bytes
    assert house.steps.done[steps:] == [
        "create .v2.json",
        "create .expired",
        "publish file.expired",
        "replace .expired.announced",
        "delete audio",
        "create .v1.gone",
    ]
    data = house.publisher.told[-1].data
    assert isinstance(data, FileExpired)
    assert (data.sha256, data.size_bytes, data.rule, data.expired_at) == (
        manifest.sha256,
        manifest.size_bytes,
        "age",
        LATER,
    )
    assert read_expiry(house.storage.objects[NAMES.expired]).event_id == house.publisher.told[-1].id
    assert house.storage.objects[NAMES.revision(2)] == house.storage.objects[NAMES.expired]
    assert house.manifest == manifest
    assert await expire(house) == 0
    assert house.publisher.types.count("file.expired") == 1


@pytest.mark.parametrize("step", range(6))
async def test_a_crash_is_finished_by_the_next_round(house: House, step: int) -> None:
    """Wherever it broke off, the audio is missing only under a tombstone, and is told under one id in the same words.

    It is finished also where the rules name it no more.
    """
    await stored(house)
    house.steps.crash_after = len(house.steps.done) + step
    with pytest.raises(CrashError):
        await expire(house)
    assert audio(house) or NAMES.expired in house.storage.objects
    if step == 5:
        return  # nothing is left to do
    house.now += DAY
    await a_round(house, max_age_days=3_000)
    assert audio(house) == []
    told = [event for event in house.publisher.told if isinstance(event.data, FileExpired)]
    assert len(ids(told)) == 1
    assert {event.data for event in told} == {told[0].data}
    before = len(house.steps.done)
    await a_round(house, max_age_days=3_000)
    assert house.steps.done[before:] == [f"replace {RECORD}"]


async def test_nothing_goes_that_could_not_be_told(house: House) -> None:
    """While the broker does not confirm, the file stays; the next round tells and lets it go."""
    await stored(house)
    house.publisher.refuses = {house.publisher.asked + 1}
    with pytest.raises(RetryableError):
        await expire(house)
    assert len(audio(house)) == 1
    assert await expire(house) > 0
    assert house.publisher.types.count("file.expired") == 1


@pytest.mark.parametrize("url", [LINK, OTHER_LINK])
async def test_a_late_callback_fetches_nothing_anew(house: House, url: str) -> None:
    """Stored stays final: after expiry a repetition ends silently, and another link is told as a conflict as ever."""
    await stored(house)
    await expire(house)
    followed = len(house.source.followed)
    await house.custody().handle(succeeded(url))
    assert len(house.source.followed) == followed
    assert audio(house) == []
    assert sum(isinstance(event.data, ConversionStored) for event in house.publisher.told) == 1
    assert house.publisher.types.count("conversion.conflicting") == (url == OTHER_LINK)


async def test_what_its_vendor_still_keeps_stays(house: House) -> None:
    """Before the deadline no file goes, whatever named it."""
    await house.custody().handle(succeeded())
    house.now = NOW + 14 * DAY
    assert await expire(house) == 0
    assert len(audio(house)) == 1
    assert NAMES.expired not in house.storage.objects


async def test_a_replacement_lives_on_and_may_expire_itself(house: House) -> None:
    """A tombstone speaks of one revision: the file a person put there since stays, until it is named itself."""
    await stored(house)
    await expire(house)
    assert house.manifest is not None
    replacement = records.Replacement(
        previous_sha256=house.manifest.sha256, link=None, link_identity=None, explanation=None
    )
    second = msgspec.structs.replace(
        house.manifest, revision=3, audio=NAMES.audio("f" * 64, revision=3), sha256="f" * 64, replacement=replacement
    )
    house.storage.objects |= {
        NAMES.revision(1): house.storage.objects[NAMES.manifest],
        NAMES.revision(3): records.write(second),
        NAMES.manifest: records.write(second),
        second.audio: b"new",
    }
    assert await expire(house) == 0, "it is not told yet"
    house.storage.objects[NAMES.replacement_announced(3)] = b""
    assert await expiring(house).expire(await find(house.storage, NAMES), None) == 0
    assert await expire(house) == 3
    told = [event.data for event in house.publisher.told if isinstance(event.data, FileExpired)]
    assert [data.revision for data in told] == [1, 3]
    assert read_expiry(house.storage.objects[NAMES.expired]).revision == 3


async def test_every_revision_goes(house: House) -> None:
    """The files of earlier revisions go with that of the latest."""
    await stored(house)
    assert house.manifest is not None
    old = house.storage.objects[NAMES.manifest]
    new = msgspec.structs.replace(house.manifest, revision=2, audio=NAMES.audio("f" * 64))
    house.storage.objects |= {
        NAMES.revision(1): old,
        NAMES.revision(2): records.write(new),
        NAMES.manifest: records.write(new),
        NAMES.replacement_announced(2): b"",
        new.audio: b"new",
    }
    assert await expire(house) == house.manifest.size_bytes + 3
    assert audio(house) == []


async def test_what_a_person_must_read_stays(house: House) -> None:
    """A record that is damaged lets nothing go, and stops no other task."""
    await stored(house)
    house.storage.objects[NAMES.manifest] = b"{"
    with pytest.raises(PermanentError):
        await expire(house)
    await a_round(house)
    house.now += DAY
    assert await a_round(house) == 0
    assert len(audio(house)) == 1


@pytest.mark.parametrize("mode", ["off", "report", "delete"])
async def test_a_day_passes_between_naming_and_deleting(house: House, mode: Mode) -> None:
    """Switched on, retention names for a day before it lets anything go; a report never does, nor without."""
    await stored(house)
    assert await a_round(house, mode) == 0
    house.now += DAY - timedelta(seconds=1)
    assert await a_round(house, mode) == 0
    house.now += timedelta(seconds=1)
    assert (await a_round(house, mode) > 0) == (mode == "delete")
    assert (RECORD in house.storage.objects) == (mode != "off")


async def test_a_report_counts_as_notice(house: House) -> None:
    """Whoever reported for a day has told enough; but not by other rules."""
    await stored(house)
    await a_round(house, "report")
    house.now += DAY
    assert await a_round(house, "delete", max_age_days=20) == 0
    house.now += DAY
    assert await a_round(house, "delete", max_age_days=20) > 0


@pytest.mark.parametrize("record", [b"", b"{}", b'{"version": 2}', b"\xff"])
async def test_a_lost_record_only_delays(house: House, record: bytes) -> None:
    """Without a record that can be read, the day begins anew."""
    await stored(house)
    await a_round(house)
    house.storage.objects[RECORD] = record
    house.now += DAY
    assert await a_round(house) == 0
    house.now += DAY
    assert await a_round(house) > 0


async def test_two_replicas_at_once_tell_one_fact(house: House) -> None:
    """Whoever makes the tombstone decides the words; the other one says the same."""
    await stored(house)
    seen = await find(house.storage, NAMES)
    await expiring(house).expire(seen, "age")
    house.now += timedelta(seconds=5)
    del house.storage.objects[NAMES.expiry_announced], house.storage.objects[NAMES.gone(1)]
    await expiring(house).expire(seen, "size")
    told = [event.data for event in house.publisher.told if isinstance(event.data, FileExpired)]
    assert len(told) == 2
    assert told[0] == told[1]


async def test_a_person_who_goes_back_meanwhile_keeps_the_file(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement between the event and the deletion may name the very file: nothing of it goes then."""
    await stored(house)
    assert house.manifest is not None
    first, publish = house.manifest, house.publisher.publish

    async def replaced_meanwhile(*args: object, **options: object) -> None:
        await publish(*args, **options)  # type: ignore[arg-type]
        third = msgspec.structs.replace(first, revision=3)
        house.storage.objects |= {NAMES.revision(3): records.write(third), NAMES.manifest: records.write(third)}

    monkeypatch.setattr(house.publisher, "publish", replaced_meanwhile)
    assert await expire(house) == 0
    assert audio(house) == [first.audio]


async def test_what_came_back_stays(house: House) -> None:
    """A file that a person puts back from a backup after it had gone is kept, round after round, and told."""
    await stored(house)
    manifest = house.manifest
    assert manifest is not None
    content = house.storage.objects[manifest.audio]
    await expire(house)
    assert await came_back(house.storage, await find(house.storage, NAMES)) == []
    house.storage.objects[manifest.audio] = content
    for _ in range(3):
        house.now += DAY
        assert await a_round(house) == 0
    assert audio(house) == [manifest.audio]
    (entry,) = await came_back(house.storage, await find(house.storage, NAMES))
    assert entry.key == manifest.audio
    assert house.publisher.types.count("file.expired") == 1


async def test_what_came_back_of_an_older_tombstone_stays(house: House) -> None:
    """Where a version before recorded nothing of it, the next round records that the file is gone, once."""
    await stored(house)
    manifest = house.manifest
    assert manifest is not None
    content = house.storage.objects[manifest.audio]
    await expire(house)
    del house.storage.objects[NAMES.revision(2)], house.storage.objects[NAMES.gone(1)]
    before = len(house.steps.done)
    for _ in range(2):
        await a_round(house)
    assert house.steps.starting("create")[-2:] == ["create .v2.json", "create .v1.gone"]
    assert len(house.steps.done) == before + 2 + 2, "and the record of each round's plan"
    house.storage.objects[manifest.audio] = content
    house.now += DAY
    assert await a_round(house) == 0
    assert audio(house) == [manifest.audio]


async def test_what_came_after_its_tombstone_came_back(house: House) -> None:
    """Put there after an expiry broke off, and so before anything is recorded as gone, it stays too."""
    await stored(house)
    house.steps.crash_after = len(house.steps.done)
    with pytest.raises(CrashError):
        await expire(house)
    assert house.manifest is not None
    house.storage.modified_at[house.manifest.audio] = LATER + timedelta(hours=1)
    house.now += DAY
    assert await a_round(house) == 0
    assert audio(house) == [house.manifest.audio]
    assert len(await came_back(house.storage, await find(house.storage, NAMES))) == 1


async def test_what_came_meanwhile_is_not_recorded_as_gone(house: House) -> None:
    """A round whose listing did not tell a file does not say that it deleted it; the next one does it."""
    await stored(house)
    assert house.manifest is not None
    seen = await find(house.storage, NAMES)
    without = Task(seen.names, {end: entry for end, entry in seen.entries.items() if not end.endswith(".wav")})
    assert await expiring(house).expire(without, "age") == 0
    assert NAMES.gone(1) not in house.storage.objects
    assert await expire(house) == house.manifest.size_bytes
    assert NAMES.gone(1) in house.storage.objects


async def test_of_a_person_and_retention_the_person_may_be_first(house: House) -> None:
    """A replacement that is committed, though not in its place yet, leaves no room for a tombstone."""
    await stored(house)
    assert house.manifest is not None
    seen = await find(house.storage, NAMES)
    second = msgspec.structs.replace(house.manifest, revision=2, audio=NAMES.audio("f" * 64), sha256="f" * 64)
    house.storage.objects[NAMES.revision(2)] = records.write(second)
    steps = len(house.steps.done)
    assert await expiring(house).expire(seen, "age") == 0
    assert house.steps.done[steps:] == []
