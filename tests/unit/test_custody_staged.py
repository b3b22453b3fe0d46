"""What is proven is not fetched again: the staged copy outlives whatever happens until the file is in custody."""

import asyncio
import dataclasses
import errno
import shutil
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry

from downloader.janitor import Found, Janitor
from downloader.keeping_metrics import KeepingMetrics
from downloader.partial import Partials
from downloader.record import Answer, Outcome
from downloader.shelves import find
from downloader.staging import Staging
from shared.errors import PermanentError, Reason, RetryableError
from tests.log_capture import captured_logs
from tests.unit.custody_fakes import (
    CONTENT,
    DEADLINE,
    NAMES,
    NOW,
    OTHER_CONTENT,
    OTHER_LINK,
    QUERY,
    CrashError,
    FakeSource,
    House,
    failed,
    succeeded,
)

DEAD = RetryableError(Reason.LINK_EXPIRED, "gone")
STORE_DOWN = RetryableError(Reason.STORAGE_FAILED, "503")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads for what blocks."""
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def house(tmp_path: Path, executor: ThreadPoolExecutor) -> House:
    """Custody among fakes."""
    return House(tmp_path / "staging", executor)


async def damage_once(house: House) -> None:
    """Fail an attempt because the store gives back something else."""
    house.storage.damages = True
    with pytest.raises(RetryableError) as caught:
        await house.custody().handle(succeeded())
    assert caught.value.reason is Reason.STORED_FILE_DIFFERS
    house.storage.damages = False


async def fail_at(house: House, *errors: Exception | None) -> None:
    """Fail an attempt because the store fails, at the call whose turn it is."""
    house.storage.errors = list(errors)
    with pytest.raises(type(errors[-1]) if errors[-1] else RetryableError):
        await house.custody().handle(succeeded())


async def cancel(house: House) -> None:
    """End an attempt by the end of the process, while the store is at it."""
    reached = asyncio.Event()
    create = house.storage.create

    async def hang(key: str, content: bytes) -> bool:
        if not reached.is_set():
            reached.set()
            await asyncio.Event().wait()
        return await create(key, content)

    house.storage.create = hang  # type: ignore[method-assign]
    task = asyncio.create_task(house.custody().handle(succeeded()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


WAYS: dict[str, Callable[[House], Awaitable[None]]] = {
    "damaged at read-back": damage_once,
    "upload refused": lambda house: fail_at(house, STORE_DOWN),
    "manifest refused": lambda house: fail_at(house, None, STORE_DOWN),
    "a fault of ours": lambda house: fail_at(house, None, CrashError()),
    "told to end": cancel,
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_proven_file_is_stored_though_its_link_is_dead_by_then(house: House, way: str) -> None:
    """However storing fails, the next attempt, of another process, needs no byte of the vendor's; nothing is left."""
    await WAYS[way](house)
    assert NAMES.manifest not in house.storage.objects
    assert house.publisher.told == []
    house.source.errors = [DEAD, DEAD]
    await house.custody().handle(succeeded())
    assert house.manifest is not None
    assert house.storage.objects[house.manifest.audio] == CONTENT
    assert house.publisher.types == ["conversion.stored"]
    assert len(house.source.followed) == 1
    assert house.count("recoveries_total", outcome="whole") == 1
    assert house.staged == []


async def test_what_is_told_is_what_was_proven(house: House) -> None:
    """A manifest of a recovered file says of its proof what it would have said at once; its note holds no key."""
    house.source.transport = "close_delimited"
    await damage_once(house)
    assert QUERY not in "".join(path.read_text() for path in house.staged if path.suffix == ".note")
    message = succeeded()
    await house.custody().handle(message)
    assert house.count("recoveries_total", outcome="whole") == 1
    recovered = house.manifest
    fresh = House(house.staged_folder.parent / "fresh", house.executor)
    fresh.source.transport = "close_delimited"
    await fresh.custody().handle(message)
    assert recovered is not None
    assert recovered == fresh.manifest
    assert recovered.evidence.transport == "close_delimited"


async def test_a_crash_anywhere_after_the_proof_fetches_nothing_again(tmp_path: Path) -> None:
    """Whichever effect is the last before an attempt breaks, the file is fetched once, and stored once."""
    crashed_at = 0
    with ThreadPoolExecutor(4) as executor:
        while True:
            house = House(tmp_path / "staging", executor)
            house.steps.crash_after = crashed_at
            crashed = False
            try:
                await house.custody().handle(succeeded())
            except CrashError:
                crashed = True
                await house.custody().handle(succeeded())
            fetches = 2 if crashed and crashed_at == 0 else 1  # the first effect is the fetch: nothing was proven yet
            assert len(house.steps.starting("fetch")) == fetches
            assert house.manifest is not None
            assert house.storage.objects[house.manifest.audio] == CONTENT
            assert house.staged == []
            if not crashed:
                break
            crashed_at += 1
    assert crashed_at >= 3


async def test_a_report_of_another_link_leaves_a_proven_file_alone(house: House) -> None:
    """It fetches what it asks for, and what it was denied does not cost the file that is here."""
    await damage_once(house)
    house.source.errors = [DEAD]
    with pytest.raises(RetryableError):
        await house.custody().handle(succeeded(OTHER_LINK))
    other = FakeSource(house.steps, content=OTHER_CONTENT, errors=[RetryableError(Reason.BODY_CUT, "cut")])
    with pytest.raises(RetryableError):
        await house.custody(other).handle(succeeded(OTHER_LINK))
    await house.custody(FakeSource(house.steps, errors=[DEAD])).handle(succeeded())
    assert house.manifest is not None
    assert house.storage.objects[house.manifest.audio] == CONTENT
    assert house.staged == []


async def test_a_staged_copy_that_rotted_is_fetched_anew(house: House) -> None:
    """What is not what was proven is never stored under its name, and says nothing against the vendor's file."""
    await damage_once(house)
    (copy,) = (path for path in house.staged if path.suffix == ".part")
    copy.write_bytes(b"<html>" + CONTENT[6:])
    await house.custody().handle(succeeded())
    assert house.manifest is not None
    assert house.storage.objects[house.manifest.audio] == CONTENT
    assert len(house.source.followed) == 2
    assert house.count("recoveries_total", outcome="damaged") == 1
    assert house.staged == []


async def test_what_cannot_get_better_leaves_no_copy(house: House) -> None:
    """A file whose report is parked waits for nobody on this disk."""
    house.storage.errors = [PermanentError(Reason.MESSAGE_UNKNOWN, "a manifest that only a person can read")]
    with pytest.raises(PermanentError):
        await house.custody().handle(succeeded())
    assert house.staged == []


async def test_giving_up_leaves_the_copy(house: House) -> None:
    """What was proven may be the last copy there is: a replay after a rejection stores it, though its link is dead."""
    await damage_once(house)
    await house.custody().give_up(succeeded(), Reason.STORED_FILE_DIFFERS, "again and again")
    assert house.publisher.types == ["conversion.rejected"]
    house.source.errors = [DEAD, DEAD]
    await house.custody().handle(succeeded())
    assert house.publisher.types == ["conversion.rejected", "conversion.stored"]
    assert house.staged == []


async def test_giving_up_while_the_store_is_down_leaves_everything(house: House) -> None:
    """A rejection that cannot be recorded is none yet: nothing of the task goes before it is told."""
    await damage_once(house)
    staged = sorted(house.staged)
    house.storage.errors = [STORE_DOWN]
    with pytest.raises(RetryableError):
        await house.custody().give_up(succeeded(), Reason.STORAGE_FAILED, "503")
    assert sorted(house.staged) == staged


async def test_a_failed_report_leaves_the_copy_of_an_earlier_success(house: House) -> None:
    """It rejects the task, and the success that comes again heals it from what is here."""
    await damage_once(house)
    await house.custody().handle(failed())
    house.source.errors = [DEAD, DEAD]
    await house.custody().handle(succeeded())
    assert house.publisher.types == ["conversion.rejected", "conversion.stored"]


OURS = [Reason.STORAGE_FAILED, Reason.STORAGE_FULL, Reason.STORED_FILE_DIFFERS]


@pytest.mark.parametrize("reason", OURS)
async def test_a_store_that_is_down_at_the_deadline_is_waited_out(house: House, reason: Reason) -> None:
    """The deadline is the vendor's, for the file: with a whole copy here storing goes on, without one it ends."""
    custody = house.custody()
    house.storage.errors = [STORE_DOWN]
    with pytest.raises(RetryableError):
        await custody.handle(succeeded())
    house.now = DEADLINE + timedelta(days=1)
    assert custody.next_step(succeeded(), reason) is not None
    assert custody.next_step(succeeded(), Reason.LINK_EXPIRED) is None
    assert house.custody().next_step(succeeded(), reason) is None
    await custody.handle(succeeded())
    assert custody.next_step(succeeded(), reason) is None


async def test_a_new_process_knows_what_waits(house: House, executor: ThreadPoolExecutor) -> None:
    """After a restart, too, the ladder of a file that is here whole does not end at the deadline."""
    await damage_once(house)
    staging = Staging(house.staged_folder, executor=executor)
    assert not staging.holds_whole(NAMES.stem)
    await staging.start()
    assert staging.holds_whole(NAMES.stem)


async def test_a_staging_disk_that_fails_keeps_no_stored_file_untold(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored is told though its copy cannot be removed: that is told, and left to housekeeping."""
    unlink = Path.unlink

    def read_only(self: Path, missing_ok: bool = False) -> None:
        if self.suffix in {".part", ".note"}:
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(self, missing_ok=missing_ok)

    await leave_behind(house)
    house.publisher.told.clear()
    del house.storage.objects[NAMES.announced]
    monkeypatch.setattr(Path, "unlink", read_only)
    with captured_logs() as lines:
        await house.custody().handle(succeeded())
    assert house.publisher.types == ["conversion.stored"]
    assert "staging.not_forgotten" in {line["event"] for line in lines}
    metrics = KeepingMetrics(CollectorRegistry())
    staging = Staging(house.staged_folder, executor=house.executor)
    janitor = Janitor(staging=staging, storage=house.storage, temporary=(), metrics=metrics)
    janitor.sweep()
    await janitor.look(await find(house.storage, NAMES), Found(), now=NOW)
    monkeypatch.undo()
    await janitor.look(await find(house.storage, NAMES), Found(), now=NOW)
    assert house.staged == []


async def leave_behind(house: House) -> None:
    """Store a task, and leave the copy that a process leaves which dies right after it made the manifest."""
    await damage_once(house)
    copies = {path: house.staged_folder.parent / path.name for path in house.staged}
    for path, copy in copies.items():
        shutil.copy(path, copy)
    await house.custody().handle(succeeded())
    assert house.staged == []
    name = f"{next(iter(copies)).name.partition('.')[0]}.{uuid4().hex}"
    for path, copy in copies.items():
        shutil.move(copy, house.staged_folder / f"{name}{path.suffix}")


async def test_a_copy_that_a_dead_process_left_beside_a_manifest_goes(house: House) -> None:
    """The redelivery of a task that is stored removes it, and fetches and tells nothing again."""
    await leave_behind(house)
    assert len(house.staged) == 2
    await house.custody().handle(succeeded())
    assert house.staged == []
    assert house.publisher.types == ["conversion.stored"]


async def test_a_copy_of_what_another_replica_stored_goes(house: House, executor: ThreadPoolExecutor) -> None:
    """Housekeeping removes what is left here of a task whose report went to somebody else; others' copies stay."""
    await leave_behind(house)
    metrics = KeepingMetrics(CollectorRegistry())
    janitor = Janitor(
        staging=Staging(house.staged_folder, executor=executor), storage=house.storage, temporary=(), metrics=metrics
    )
    task = await find(house.storage, NAMES)
    janitor.sweep()
    await janitor.look(type(task)(task.names, {}), Found(), now=NOW)
    assert len(house.staged) == 2
    await janitor.look(task, Found(), now=NOW)
    assert house.staged == []


async def test_a_vendor_that_names_another_link_each_time_is_asked_for_no_file_twice(house: House) -> None:
    """What its own word vouches for stands for the same reported link, wherever the file is said to be now."""
    house.confirm = "always"
    for number in range(3):
        house.vendors.answer = Answer(Outcome.READY, url=f"https://cdn.example.com/{number}/a.wav")
        await fail_at(house, STORE_DOWN)
    assert len([path for path in house.staged if path.suffix == ".part"]) == 1
    assert len(house.source.followed) == 1
    house.vendors.answer = Answer(Outcome.READY, url="https://cdn.example.com/last/a.wav")
    await house.custody().handle(succeeded())
    assert len(house.source.followed) == 1
    assert house.staged == []


async def test_without_the_vendors_word_another_link_is_another_file(house: House) -> None:
    """What only a callback vouched for does not stand for what the vendor names when asked, and makes way for it."""
    await fail_at(house, STORE_DOWN)
    house.vendors.answer = Answer(Outcome.READY, url=OTHER_LINK)
    await fail_at(house, STORE_DOWN)
    assert house.source.followed[1:] == [OTHER_LINK]
    assert len([path for path in house.staged if path.suffix == ".part"]) == 1
    await house.custody().handle(succeeded())
    assert len(house.source.followed) == 2


async def raced(house: House, *, damages: int) -> list[str]:
    """Have another process store the task while ours is about to put the file; return what ours ended with."""
    keep, puts = house.storage.keep, 0

    async def late(staged: Path, key: str) -> None:
        nonlocal puts
        puts += 1
        number = puts
        if number == 1:
            await house.custody(FakeSource(house.steps)).handle(succeeded())
        house.storage.damages = number in {0: set(), 1: {1}, 2: {1, 3}}[damages]  # the second is the winner's
        await keep(staged, key)
        house.storage.damages = False

    house.storage.keep = late  # type: ignore[method-assign]
    ended: list[str] = []
    try:
        await house.custody().handle(succeeded())
    except RetryableError as error:
        ended.append(str(error.reason))
    return ended


@pytest.mark.parametrize("damages", [0, 1, 2])
async def test_a_loser_never_damages_the_winners_file(house: House, damages: int) -> None:
    """What is put over it and comes back otherwise is put once more, and else by the next attempt, from the copy."""
    ended = await raced(house, damages=damages)
    assert ended == (["stored_file_differs"] if damages == 2 else [])
    if ended:
        again = dataclasses.replace(succeeded(), last_reason=Reason.STORED_FILE_DIFFERS)
        await house.custody().handle(again)
        assert house.count("repairs_total", outcome="done") == 1
    assert house.manifest is not None
    assert house.storage.objects[house.manifest.audio] == CONTENT
    assert house.publisher.types == ["conversion.stored"]
    assert house.staged == []


@pytest.mark.parametrize("damage", ["rotten", "gone", "unreadable"])
async def test_a_stored_file_is_looked_at_before_a_waiting_copy_goes(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Who stored it meanwhile may have been damaged by an attempt of ours that died: it is mended from the copy."""
    custody = house.custody()
    house.storage.errors = [STORE_DOWN]
    with pytest.raises(RetryableError):
        await custody.handle(succeeded())
    replica = House(tmp_path / "another", house.executor)
    replica.storage = house.storage
    await replica.custody().handle(succeeded())
    assert house.manifest is not None
    if damage == "gone":
        del house.storage.objects[house.manifest.audio]
    else:
        house.storage.objects[house.manifest.audio] = b"rotten"
    if damage == "unreadable":
        unreadable(house, monkeypatch)
    await custody.handle(succeeded())
    assert house.storage.objects[house.manifest.audio] == CONTENT
    assert len(house.source.followed) == 1
    assert house.staged == []


async def test_what_cannot_be_read_under_the_key_is_put_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that the storage does not give back has the place of a file: the file takes it."""
    await fail_at(house, None, STORE_DOWN)
    (audio,) = [key for key in house.storage.objects if key.endswith(".wav")]
    house.storage.objects[audio] = b"rotten"
    unreadable(house, monkeypatch)
    await house.custody().handle(succeeded())
    assert house.storage.objects[audio] == CONTENT
    assert house.publisher.types == ["conversion.stored"]


async def test_an_older_copy_that_cannot_be_dropped_costs_the_new_one_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails for a moment, just after the proof, leaves the proven file where it is."""

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "x")

    monkeypatch.setattr(Partials, "supersede", fail)
    house.storage.errors = [STORE_DOWN]
    with pytest.raises(RetryableError):
        await house.custody().handle(succeeded())
    assert house.staged != []
    await house.custody().handle(succeeded())
    assert len(house.source.followed) == 1


def unreadable(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the storage fail whenever something rotten is read again."""
    digest = house.storage.digest

    async def fail_on_rot(key: str) -> tuple[int, str]:
        if house.storage.objects[key] == b"rotten":
            raise RetryableError(Reason.STORAGE_FAILED, "EIO")
        return await digest(key)

    monkeypatch.setattr(house.storage, "digest", fail_on_rot)


async def test_a_file_that_is_right_there_already_is_not_put_again(house: House) -> None:
    """An orphan of the same bytes, or the winner's file, is read and left alone; a damaged one is put again."""
    await fail_at(house, None, STORE_DOWN)
    puts = len(house.steps.starting("keep audio"))
    await house.custody().handle(succeeded())
    assert len(house.steps.starting("keep audio")) == puts == 1
    assert house.publisher.types == ["conversion.stored"]


async def test_a_damaged_file_without_a_copy_is_told_and_hides_nothing(house: House) -> None:
    """Nothing can be mended then: people hear of it, and so do subscribers of what the manifest says."""
    await house.custody().handle(succeeded())
    assert house.manifest is not None
    house.storage.objects[house.manifest.audio] = b"rotten"
    again = dataclasses.replace(succeeded(), last_reason=Reason.STORED_FILE_DIFFERS)
    with captured_logs() as lines:
        await house.custody().handle(again)
    assert "file.not_mended" in {line["event"] for line in lines}
    assert house.count("repairs_total", outcome="impossible") == 1
