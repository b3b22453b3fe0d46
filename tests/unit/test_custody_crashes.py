"""Custody when things go wrong in the middle: crashes at every step, races, and a storage that lies."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from downloader.custody import Custody
from downloader.keeping_metrics import KeepingMetrics
from downloader.space import Space
from shared.errors import BrokerError, Reason, RetryableError
from shared.messaging.port import Message
from tests.unit.custody_fakes import (
    CONTENT,
    NAMES,
    OTHER_CONTENT,
    OTHER_LINK,
    CrashError,
    FakeInspector,
    FakeSource,
    House,
    failed,
    ids,
    succeeded,
)

STORIES: dict[str, tuple[Sequence[Message], list[str]]] = {
    "stored": ([succeeded()], ["conversion.stored"]),
    "rejected": ([failed()], ["conversion.rejected"]),
    "stored, then another link": (
        [succeeded(), succeeded(OTHER_LINK)],
        ["conversion.stored", "conversion.conflicting"],
    ),
    "stored, then failed": ([succeeded(), failed()], ["conversion.stored", "conversion.conflicting"]),
    "failed, then healed": ([failed(), succeeded()], ["conversion.rejected", "conversion.stored"]),
}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Custody among fakes."""
    with ThreadPoolExecutor(4) as executor:
        yield House(tmp_path / "staging", executor)


@pytest.mark.parametrize("story", STORIES)
async def test_a_crash_at_any_step_changes_nothing_in_the_end(tmp_path: Path, story: str) -> None:
    """Whichever effect is the last before the process dies, redelivery ends in the same events under the same ids.

    Once a manifest exists the file is never fetched again.
    """
    messages, expected = STORIES[story]
    crashed_at = 0
    with ThreadPoolExecutor(4) as executor:
        while True:
            house = House(tmp_path / "staging", executor)
            house.steps.crash_after = crashed_at
            crashes = 0
            for message in messages:
                crashes += await handle_until_done(house, message)
            assert list(dict.fromkeys(house.publisher.types)) == expected
            assert len(ids(house.publisher.told)) == len(expected)
            markers = [key for key in house.storage.objects if key.endswith(".announced")]
            assert len(markers) == len(expected)
            if "create .json" in house.steps.done:
                after = house.steps.done[house.steps.done.index("create .json") :]
                assert "fetch" not in after
                assert house.manifest is not None
                assert house.storage.objects[house.manifest.audio] == CONTENT
            if crashes == 0:
                break
            crashed_at += 1
    assert crashed_at == len(house.steps.done) >= 3


async def handle_until_done(house: House, message: Message) -> int:
    """Hand over a message until it is handled, each time to a new process; return how many processes died."""
    crashes = 0
    while True:
        try:
            await house.custody().handle(message)
        except CrashError:
            crashes += 1
        else:
            return crashes


@pytest.mark.parametrize("message", [succeeded(), failed()], ids=["stored", "rejected"])
async def test_an_unconfirmed_event_leaves_no_marker(house: House, message: Message) -> None:
    """Unless the broker confirmed, the message comes again, and is told under the id that it would have had."""
    house.publisher.refuses = {1, 2}
    for _ in range(2):
        with pytest.raises(BrokerError):
            await house.custody().handle(message)
    assert not [key for key in house.storage.objects if key.endswith(".announced")]
    await house.custody().handle(message)
    assert len(house.publisher.told) == 1
    assert len(house.steps.starting("fetch")) <= 1


async def test_a_redelivery_tells_what_the_manifest_says(house: House) -> None:
    """A repetition after a crash is the same event to the last field, not one with another time."""
    await house.custody().handle(succeeded())
    del house.storage.objects[NAMES.announced]
    house.now += timedelta(days=1)
    await house.custody().handle(succeeded())
    first, second = house.publisher.told
    assert (first.id, first.time, first.data) == (second.id, second.time, second.data)


async def test_the_loser_of_a_race_announces_the_winner(house: House) -> None:
    """Where another writer's manifest was first, its file stays, ours goes, and there is one fact."""
    winner = house.custody(FakeSource(house.steps, content=OTHER_CONTENT))

    async def win() -> None:
        house.source.meanwhile = None
        await winner.handle(succeeded())

    house.source.meanwhile = win
    await house.custody().handle(succeeded())
    assert house.manifest is not None
    assert house.storage.objects[house.manifest.audio] == OTHER_CONTENT
    assert [key for key in house.storage.objects if key.endswith(".wav")] == [house.manifest.audio]
    assert len(ids(house.publisher.told)) == 1
    assert house.count("attempts_total", outcome="lost_race") == 1
    assert house.staged == []


async def test_the_loser_of_a_race_keeps_the_same_file(house: House) -> None:
    """Where both writers have the same bytes there is one audio, and the loser does not delete the winner's."""
    winner = house.custody(FakeSource(house.steps))

    async def win() -> None:
        house.source.meanwhile = None
        await winner.handle(succeeded())

    house.source.meanwhile = win
    await house.custody().handle(succeeded())
    assert house.manifest is not None
    assert house.storage.objects[house.manifest.audio] == CONTENT
    assert house.steps.starting("delete") == []


@pytest.mark.parametrize("content", [CONTENT, OTHER_CONTENT], ids=["the same file", "another file"])
@pytest.mark.parametrize("draws", [True, False], ids=["pictures", "no pictures"])
async def test_the_loser_of_a_race_leaves_only_what_the_winner_names(
    house: House, tmp_path: Path, content: bytes, draws: bool
) -> None:
    """Its picture and peaks go with its file, unless the winner has the same ones; and they no longer count."""
    registry = CollectorRegistry()
    house.space = Space(
        staging=tmp_path, storage=None, reserve_bytes=0, quota_bytes=None, metrics=KeepingMetrics(registry)
    )
    house.inspector = FakeInspector(tmp_path, draws=draws)
    winner = house.custody(FakeSource(house.steps, content=content))
    house.inspector = FakeInspector(tmp_path)

    async def win() -> None:
        house.source.meanwhile = None
        await winner.handle(succeeded())

    house.source.meanwhile = win
    await house.custody().handle(succeeded())
    assert house.manifest is not None
    named = {house.manifest.audio} | ({house.manifest.waveform, house.manifest.peaks} if draws else set())
    bodies = {key: body for key, body in house.storage.objects.items() if key.endswith((".wav", ".png", ".peaks.json"))}
    assert set(bodies) == named
    kept_bytes = registry.get_sample_value("wavekeep_downloader_kept_bytes")
    assert kept_bytes == sum(map(len, bodies.values()))


async def test_the_loser_of_a_race_tells_its_other_link(house: House) -> None:
    """A race between two links ends in one file and one conflict."""
    winner = house.custody(FakeSource(house.steps, content=OTHER_CONTENT))

    async def win() -> None:
        house.source.meanwhile = None
        await winner.handle(succeeded(OTHER_LINK))

    house.source.meanwhile = win
    await house.custody().handle(succeeded())
    assert house.publisher.types == ["conversion.stored", "conversion.conflicting"]


async def test_a_storage_that_changes_bytes_stores_nothing(house: House) -> None:
    """What is read back must be what was proven; else nothing is told, no manifest made, and it is tried again."""
    house.storage.damages = True
    with pytest.raises(RetryableError) as caught:
        await house.custody().handle(succeeded())
    assert caught.value.reason is Reason.STORED_FILE_DIFFERS
    assert NAMES.manifest not in house.storage.objects
    assert house.publisher.told == []
    house.storage.damages = False
    await house.custody().handle(succeeded())
    assert house.publisher.types == ["conversion.stored"]
    assert house.manifest is not None
    assert house.storage.objects[house.manifest.audio] == CONTENT


async def test_a_misread_file_of_another_writer_is_not_deleted(house: House) -> None:
    """A storage that lies to one process cannot make it delete what another one's manifest describes."""
    winner = house.custody(FakeSource(house.steps))

    async def win() -> None:
        house.source.meanwhile = None
        await winner.handle(succeeded())
        house.storage.lies = True

    house.source.meanwhile = win
    with pytest.raises(RetryableError) as caught:
        await house.custody().handle(succeeded())
    assert caught.value.reason is Reason.STORED_FILE_DIFFERS
    assert house.manifest is not None
    assert house.manifest.audio in house.storage.objects


@pytest.mark.parametrize("reason", [Reason.BODY_CUT, Reason.STORAGE_FULL])
async def test_a_failed_attempt_leaves_nothing(house: House, reason: Reason) -> None:
    """A failure in the middle is passed on as it is, without a record, an event or a staged file."""
    error = RetryableError(reason, "in the middle")

    async def fail() -> None:
        raise error

    house.source.meanwhile = fail
    with pytest.raises(RetryableError) as caught:
        await house.custody().handle(succeeded())
    assert caught.value is error
    assert house.storage.objects == {}
    assert house.staged == []
    assert house.publisher.told == []
    assert house.count("attempts_total", outcome="failed") == 1


async def test_a_manifest_that_is_found_is_made_durable_before_it_is_told(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer may have failed between linking and syncing: the folder is synced again before anybody hears of it."""
    house.publisher.refuses = {1}
    with pytest.raises(BrokerError):
        await house.custody().handle(succeeded())
    told_before: list[bool] = []
    create = house.storage.create

    async def watched(key: str, content: bytes) -> bool:
        if key == NAMES.manifest:
            told_before.append(bool(house.publisher.told))
        return await create(key, content)

    monkeypatch.setattr(house.storage, "create", watched)
    await house.custody().handle(succeeded())
    assert told_before == [False]
    assert house.publisher.types == ["conversion.stored"]


@pytest.mark.parametrize("report", [succeeded(), failed()], ids=["success", "failure"])
async def test_every_report_that_finds_a_manifest_makes_it_durable(
    house: House, monkeypatch: pytest.MonkeyPatch, report: Message
) -> None:
    """Also a failure that finds a stored file tells it, and not before it is durable."""
    house.publisher.refuses = {1}
    with pytest.raises(BrokerError):
        await house.custody().handle(succeeded())
    asked: list[str] = []
    create = house.storage.create

    async def watched(key: str, content: bytes) -> bool:
        asked.append(key)
        return await create(key, content)

    monkeypatch.setattr(house.storage, "create", watched)
    await house.custody().handle(report)
    assert asked[0] == NAMES.manifest


async def slow_download(house: House, custody: Custody) -> tuple[asyncio.Task[None], asyncio.Event]:
    """Begin a download that ends only once the event is set; return when it is under way."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        arrived.set()
        await go_on.wait()

    house.source.meanwhile = wait
    first = asyncio.create_task(custody.handle(succeeded()))
    await arrived.wait()
    return first, go_on


async def test_a_copy_of_a_slow_download_does_not_wait_for_it(house: House) -> None:
    """It goes round instead, so that its place is free for other tasks and no broker loses patience."""
    custody = house.custody()
    first, go_on = await slow_download(house, custody)
    with pytest.raises(RetryableError) as caught:
        await custody.handle(succeeded())
    assert caught.value.reason is Reason.TASK_IN_HAND
    go_on.set()
    await first
    await custody.handle(succeeded())
    assert house.publisher.types == ["conversion.stored"]


async def test_a_copy_that_is_given_up_does_not_reject_what_another_one_is_storing(house: House) -> None:
    """Stored is final: giving up waits its turn, and then finds the manifest."""
    custody = house.custody()
    first, go_on = await slow_download(house, custody)
    giving_up = asyncio.create_task(custody.give_up(succeeded(), Reason.NOT_WAV, "no"))
    go_on.set()
    await asyncio.gather(first, giving_up)
    assert house.publisher.types == ["conversion.stored"]


@pytest.mark.parametrize("reason", [Reason.PUBLISH_TIMED_OUT, Reason.BROKER_UNAVAILABLE, Reason.TASK_IN_HAND])
async def test_telling_a_stored_file_does_not_end_at_the_deadline(house: House, reason: Reason) -> None:
    """The deadline is the vendor's, for the file; what only remains to be told is tried on."""
    house.now += timedelta(days=400)
    assert house.custody().next_step(succeeded(), Reason.LINK_EXPIRED) is None
    assert house.custody().next_step(succeeded(), reason) is not None
