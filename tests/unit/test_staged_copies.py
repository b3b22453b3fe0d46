"""A whole file in staging outlives what an attempt meets: want of room, the end of the process, a late thread."""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from downloader import attempt as attempts
from downloader.fetch import Head
from downloader.keeping_metrics import KeepingMetrics
from downloader.partial import LONGEST_KEPT_S, Partials
from downloader.space import STAGING, Disk, Space
from downloader.staging import Staging
from downloader.storage_folder import FolderStorage
from shared.errors import Reason, RetryableError
from tests.log_capture import captured_logs
from tests.unit.custody_fakes import CONTENT, House, succeeded
from tests.unit.test_partial import KNOWN, left, whole

DEAD = RetryableError(Reason.LINK_EXPIRED, "gone")
STORE_DOWN = RetryableError(Reason.STORAGE_FAILED, "503")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads for what blocks."""
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
async def house(tmp_path: Path, executor: ThreadPoolExecutor) -> House:
    """Custody among fakes, with a whole copy in staging of a file that the store did not take."""
    house = House(tmp_path / "staging", executor)
    house.storage.errors = [STORE_DOWN]
    with pytest.raises(RetryableError):
        await house.custody().handle(succeeded())
    assert {path.suffix for path in house.staged} == {".part", ".note"}
    return house


class Gate:
    """Holds a thread at a call until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, held."""

        def held(*arguments: Any, **named: Any) -> Any:
            self.reached.set()
            assert self.opened.wait(20)
            return call(*arguments, **named)

        return held


async def cancelled_at(house: House, gate: Gate) -> asyncio.Task[None]:
    """Begin an attempt and cancel it while its thread is held; all that could follow has followed."""
    task = asyncio.create_task(house.custody().handle(succeeded()))
    assert await asyncio.to_thread(gate.reached.wait, 20)
    task.cancel()
    for _ in range(20):
        await asyncio.get_running_loop().run_in_executor(house.executor, lambda: None)
    return task


async def stored_without_a_fetch(house: House) -> bool:
    """Tell whether the next attempt stores the file though its link is dead."""
    house.source.errors = [DEAD, DEAD]
    await house.custody().handle(succeeded())
    return house.manifest is not None and house.storage.objects[house.manifest.audio] == CONTENT


async def test_told_to_end_while_it_is_claimed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that was taken for an attempt which nobody was lent stays, with its proof."""
    gate, claim = Gate(), Partials.claim

    def slow(self: Partials, *arguments: Any) -> Any:
        return gate.before(lambda: claimed)() if (claimed := claim(self, *arguments)) else None

    monkeypatch.setattr(Partials, "claim", slow)
    task = await cancelled_at(house, gate)
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert await stored_without_a_fetch(house)


async def test_told_to_end_while_it_is_read_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is waited for before its descriptor is closed, which would else be another file's; the copy stays."""
    gate = Gate()
    monkeypatch.setattr(hashlib, "file_digest", gate.before(hashlib.file_digest))
    task = await cancelled_at(house, gate)
    assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert await stored_without_a_fetch(house)


@pytest.mark.parametrize("step", ["prove", "note"])
async def test_told_to_end_while_it_is_proven(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """No step of an attempt outlives it: its descriptor is closed only once the thread is back."""
    house, gate = House(tmp_path / "staging", executor), Gate()
    monkeypatch.setattr(attempts.NotedAttempt, step, gate.before(getattr(attempts.NotedAttempt, step)))
    task = await cancelled_at(house, gate)
    assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    if step == "note":
        assert await stored_without_a_fetch(house)


async def test_a_copy_that_cannot_be_read_now_stays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails for a moment proves nothing against the bytes."""

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(RetryableError):
        await house.custody().handle(succeeded())
    monkeypatch.undo()
    assert await stored_without_a_fetch(house)


async def test_what_is_linked_elsewhere_is_never_written_to(house: House, tmp_path: Path) -> None:
    """A copy that rotted makes way for another file: whatever else has its bytes keeps them, as they are."""
    (copy,) = (path for path in house.staged if path.suffix == ".part")
    copy.write_bytes(b"<html>" + CONTENT[6:])
    linked = tmp_path / "linked.wav"
    linked.hardlink_to(copy)
    before = (linked.read_bytes(), linked.stat().st_mtime_ns)
    await house.custody().handle(succeeded())
    assert len(house.source.followed) == 2
    assert (linked.read_bytes(), linked.stat().st_mtime_ns) == before
    assert house.staged == []


async def test_beginning_anew_leaves_a_claimed_copy_unwritten(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    """Whoever fetches over a whole copy writes to another file, and is offered nothing of it to go on from."""
    staging = Staging(tmp_path, executor=executor)
    copy = whole(Partials(tmp_path, max_bytes=10_000), b"whole")
    linked = tmp_path.parent / f"{tmp_path.name}-linked"
    linked.hardlink_to(copy)
    async with staging.attempt("kie/1", stands=lambda _: True) as attempt:
        assert attempt.has_proven
        assert attempt.held("https://cdn.example.com/a.wav") is None
        attempt.begin(Head("https://cdn.example.com/a.wav", 0, KNOWN, (), None))
        attempt.write(CONTENT)
    assert linked.read_bytes() == b"whole"


async def test_a_folder_that_takes_the_file_and_no_manifest(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one disk, too, the copy outlives everything before the manifest, and goes with it."""
    house, storage = House(tmp_path / "staging", executor), FolderStorage(tmp_path / "files", executor=executor)
    await storage.start()
    house.storage = storage  # type: ignore[assignment]

    def full(key: str, content: bytes) -> bool:
        raise OSError(errno.ENOSPC, f"No room for {key} of {len(content)}")

    monkeypatch.setattr(storage, "_create", full)
    with pytest.raises(RetryableError):
        await house.custody().handle(succeeded())
    monkeypatch.undo()
    assert [path.suffix for path in house.staged if path.suffix == ".part"] == [".part"]
    house.source.errors = [DEAD, DEAD]
    await house.custody().handle(succeeded())
    assert [path.read_bytes() for path in (tmp_path / "files").rglob("*.wav")] == [CONTENT]
    assert house.publisher.types == ["conversion.stored"]
    assert house.staged == []


@pytest.fixture
def partials(tmp_path: Path) -> Partials:
    """Partial files of three tasks, the first of which is whole."""
    (tmp_path / "staging").mkdir()
    partials = Partials(tmp_path / "staging", max_bytes=10_000)
    whole(partials, b"whole", task="kie/whole")
    left(partials, b"cut", task="kie/1")
    left(partials, b"cut", task="kie/2")
    return partials


def staging_on(tmp_path: Path, executor: Executor, full: str) -> Staging:
    """Return staging with one disk that has nothing left but its reserve."""
    metrics = KeepingMetrics(CollectorRegistry())
    space = Space(
        staging=tmp_path / "staging", storage=tmp_path / "files", reserve_bytes=1, quota_bytes=None, metrics=metrics
    )
    disks = (
        Disk(STAGING, tmp_path / "staging", passing=True),
        Disk("storage", tmp_path / "files", passing=False),
    )
    space._disks = lambda: disks  # type: ignore[method-assign]
    space._usage = lambda disk: (0 if disk.name == full else 1_000_000, 1)  # type: ignore[method-assign]
    return Staging(tmp_path / "staging", executor=executor, space=space, metrics=metrics)


def waiting(tmp_path: Path) -> list[bytes]:
    """Return what waits in staging."""
    return sorted(path.read_bytes() for path in (tmp_path / "staging").glob("*.part"))


@pytest.mark.parametrize(("full", "stay"), [("storage", [b"cut", b"cut", b"whole"]), (STAGING, [b"whole"])])
async def test_only_cut_downloads_make_room_and_only_on_their_disk(
    tmp_path: Path, executor: ThreadPoolExecutor, partials: Partials, full: str, stay: list[bytes]
) -> None:
    """A full storage is not helped by staging's files; a whole one never goes for an attempt that may fail anyway."""
    staging = staging_on(tmp_path, executor, full)
    with pytest.raises(RetryableError) as caught:
        async with staging.attempt("kie/new"):
            raise AssertionError("there is no room")
    assert caught.value.reason is Reason.STORAGE_FULL
    assert waiting(tmp_path) == stay


async def test_a_storage_that_is_not_there_costs_nothing_in_staging(
    tmp_path: Path, executor: ThreadPoolExecutor, partials: Partials
) -> None:
    """A disk that was not mounted is a fault to be mended, and no want of room."""
    space = Space(
        staging=tmp_path / "staging",
        storage=tmp_path / "gone",
        reserve_bytes=0,
        quota_bytes=None,
        metrics=KeepingMetrics(CollectorRegistry()),
    )
    staging = Staging(tmp_path / "staging", executor=executor, space=space)
    with pytest.raises(RetryableError) as caught:
        async with staging.attempt("kie/new"):
            raise AssertionError("it cannot be asked")
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert len(waiting(tmp_path)) == 3


async def test_a_whole_copy_needs_no_room_where_it_is(house: House, tmp_path: Path) -> None:
    """A full staging disk does not keep what is on it already from being stored, which makes room there."""
    house.space = staging_on(tmp_path, house.executor, STAGING)._space
    assert await stored_without_a_fetch(house)


def test_a_copy_that_is_asked_for_stays_however_old_it_is(tmp_path: Path) -> None:
    """What is tried again and again, because the storage is down, is not let go for the age of its bytes."""
    partials = Partials(tmp_path, max_bytes=10_000)
    path = whole(partials, b"whole", task="kie/1")
    for each in (path, path.with_suffix(".note")):
        os.utime(each, (path.stat().st_mtime - LONGEST_KEPT_S - 60,) * 2)
    claim = partials.claim("kie/1", lambda _: True)
    assert claim is not None
    os.close(claim.file)
    assert partials.sweep(older_than_s=3_600) == 0
    assert claim.path.read_bytes() == b"whole"


def test_whole_copies_that_must_go_are_told_and_counted(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    """Past the bound, or for their age, perhaps the last copy goes: people hear of it."""
    registry = CollectorRegistry()
    staging = Staging(tmp_path, executor=executor, partial_bytes=7, metrics=KeepingMetrics(registry))
    partials = Partials(tmp_path, max_bytes=10_000)
    whole(partials, b"whole", task="kie/1")
    whole(partials, b"whole", task="kie/2")
    with captured_logs() as lines:
        staging.sweep(older_than_s=0)
        (last,) = tmp_path.glob("*.part")
        for each in (last, last.with_suffix(".note")):
            os.utime(each, (last.stat().st_mtime - LONGEST_KEPT_S - 60,) * 2)
        staging.sweep(older_than_s=0)
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("staging.whole_let_go", "bound"),
        ("staging.whole_let_go", "age"),
    ]
    name = "wavekeep_downloader_whole_copies_let_go_total"
    assert [registry.get_sample_value(name, {"reason": reason}) for reason in ("bound", "age")] == [1, 1]


def test_trying_again_does_not_make_a_copy_young(tmp_path: Path) -> None:
    """Its age is that of its bytes, however often it is taken: after 16 days it goes, if nobody could store it."""
    partials = Partials(tmp_path, max_bytes=10_000)
    path = whole(partials, b"whole")
    os.utime(path, (1_000, 1_000))
    claim = partials.claim("kie/1", lambda _: True)
    assert claim is not None
    os.close(claim.file)
    assert claim.path.stat().st_mtime == 1_000
