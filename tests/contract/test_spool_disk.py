"""The spool's disk: full, failing, or not a spool at all. What was taken is moved on, and nothing is lost on the way.

Responsible for: what `shared.messaging.spool` promises of its file, with a real one, on a real full disk where one can
be mounted. The broker is the fake of `tests.contract.test_spooled`.
"""

import asyncio
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from shared.errors import BrokerError, InUseError, Reason, StartError
from shared.events import INTAKE_EXCHANGE
from shared.messaging import spool as module
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.journal import Journal
from shared.messaging.spool import SPOOL
from shared.messaging.spooled import SpooledBroker
from tests.contract.test_spooled import (
    KEY,
    UNRECOGNISED,
    FakeBroker,
    PickyBroker,
    body,
    publish,
    publish_unrecognised,
    spooled,
)
from tests.faults.surroundings import filled, small_disk
from tests.integration.embedded_house import until


async def refusal(spool: SpooledBroker, number: int, content: bytes | None = None) -> BrokerError | None:
    """Publish one report; return why it was not taken."""
    try:
        await spool.publish(INTAKE_EXCHANGE, KEY, content or body(number), event_id=str(number))
    except BrokerError as error:
        return error
    return None


@pytest.mark.parametrize(("size_bytes", "forgotten"), [(200, False), (60_000, True)])
async def test_a_full_disk_is_emptied_without_making_room(tmp_path: Path, size_bytes: int, forgotten: bool) -> None:
    """With not a byte free all that was taken is moved on, once, in order; with room it takes again.

    Small messages cannot be deleted without any room; large ones can, in the room that the file's log has already.
    """
    broker, registry = FakeBroker(), CollectorRegistry()
    broker.there = False
    content = body(0)[:-2] + b'"x": "' + b"y" * size_bytes + b'"}}'
    limits = {"max_messages": 10**6, "max_bytes": 10**9, "reserve_bytes": 0}
    with small_disk(tmp_path / "disk", "8m") as disk:
        async with spooled(disk / "spool", broker, registry=registry, **limits) as spool:
            taken = ["0", "1", "2"]
            for number in range(3):
                assert await refusal(spool, number, content) is None
            with filled(disk, leave_bytes=1_000_000):
                while (error := await refusal(spool, len(taken), content)) is None:
                    taken.append(str(len(taken)))
                assert error.reason == Reason.STORAGE_FULL
                with filled(disk, name="rest"):
                    while (error := await refusal(spool, len(taken), content)) is None:
                        taken.append(str(len(taken)))
                    assert error.reason == Reason.STORAGE_FULL
                    await until(lambda: registry.get_sample_value("wavekeep_test_spool_oldest_timestamp_seconds"))
                    assert registry.get_sample_value("wavekeep_test_spool_messages") == len(taken)
                    broker.there = True
                    await until(lambda: spool.waiting == 0)
                    assert broker.confirmed == taken
                    await until(lambda: not forgotten or stored(disk / "spool") == 0)
            await until(lambda: stored(disk / "spool") == 0)
            broker.there = False
            await until(spool.publishing)
            await publish(spool, 10**6)
            broker.there = True
            await until(lambda: broker.confirmed == [*taken, str(10**6)])


def full(*_: Any, **__: Any) -> Any:
    """Fail as the library does on a full disk."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


async def test_what_cannot_be_written_closes_it_for_taking_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be written or deleted all is moved on, each once; count and age are told; then it is gone."""
    broker, registry = PickyBroker(UNRECOGNISED), CollectorRegistry()
    broker.there = False
    async with spooled(tmp_path / "spool", broker, registry=registry) as spool:
        for number in range(249):
            await publish(spool, number)
        await publish_unrecognised(spool, 249)
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "_transaction", full)
            error = await refusal(spool, 250)
            assert error is not None
            assert error.reason == Reason.STORAGE_FULL
            assert not spool.publishing()
            await until(lambda: registry.get_sample_value("wavekeep_test_spool_oldest_timestamp_seconds"))
            assert registry.get_sample_value("wavekeep_test_spool_open") == 0
            assert registry.get_sample_value("wavekeep_test_spool_messages") == 250
            broker.there = True
            await until(lambda: len(broker.confirmed) >= 249)
            await until(lambda: broker.refusals >= 4)
            broker.refused = None
            await until(lambda: len(broker.confirmed) >= 250)
            tried = registry.get_sample_value("wavekeep_test_spool_failures_total", {"reason": "storage_full"}) or 0
            await until(lambda: failures(registry) >= tried + 5)
            assert broker.confirmed == [str(number) for number in range(250)], "each once, though none can be deleted"
            assert stored(tmp_path / "spool") == 250
        await until(lambda: stored(tmp_path / "spool") == 0)
        broker.there = False
        await until(spool.publishing)
        await publish(spool, 251)
        broker.there = True
        await until(lambda: broker.confirmed[250:] == ["251"])


def failures(registry: CollectorRegistry) -> float:
    """Return how often the disk was full so far."""
    return registry.get_sample_value("wavekeep_test_spool_failures_total", {"reason": "storage_full"}) or 0.0


def stored(path: Path) -> int:
    """Return how many messages are in the file."""
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM message WHERE queue = ?", (SPOOL,)).fetchone()[0])


async def test_the_reserve_refuses_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less free than the reserve nothing is taken, the spool stays open, and what it holds is moved on."""
    broker, registry = FakeBroker(), CollectorRegistry()
    broker.there = False
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.05)
    async with spooled(tmp_path / "spool", broker, registry=registry, reserve_bytes=free // 2) as spool:
        await publish(spool, 0)
        spool._spool._reserve_bytes = 2 * free
        await until(lambda: not spool.publishing())
        error = await refusal(spool, 1)
        assert error is not None
        assert error.reason == Reason.STORAGE_FULL
        assert "WAVEKEEP_SPOOL_RESERVE_BYTES" in error.detail
        assert registry.get_sample_value("wavekeep_test_spool_open") == 1
        broker.there = True
        await until(lambda: broker.confirmed == ["0"])
        await until(lambda: spool.waiting == 0)


async def test_a_small_disk_is_of_use(tmp_path: Path) -> None:
    """The default reserve is a share of a small disk; what the spool freed within its file it may use again."""
    broker = FakeBroker()
    content = body(0)[:-2] + b'"x": "' + b"y" * 60_000 + b'"}}'
    with small_disk(tmp_path / "disk", "8m") as disk:
        async with spooled(disk / "spool", broker, max_bytes=10**9) as spool:
            for _ in range(2):
                broker.there, before = False, len(broker.confirmed)
                await until(spool.publishing)
                number = before
                while (error := await refusal(spool, number, content)) is None:
                    number += 1
                assert "WAVEKEEP_SPOOL_RESERVE_BYTES" in error.detail
                assert number - before > 20
                broker.there = True
                await until(lambda: spool.waiting == 0)
            assert broker.confirmed == [str(each) for each in range(number)]


@pytest.mark.parametrize("content", [b"not a database" * 1_000, None], ids=["no database", "a folder"])
async def test_a_file_that_cannot_be_opened_keeps_nobody_from_the_broker(tmp_path: Path, content: bytes | None) -> None:
    """The spool starts closed and says so; the file is left as it is, and opened once it can be."""
    path = tmp_path / "spool"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    broker, registry = FakeBroker(), CollectorRegistry()
    with capture_logs() as lines:
        async with spooled(path, broker, registry=registry) as spool:
            await publish(spool, 0)
            assert broker.confirmed == ["0"]
            broker.there = False
            error = await refusal(spool, 1)
            assert error is not None
            assert error.reason == Reason.STORAGE_FAILED
            failed = "wavekeep_test_spool_failures_total", {"reason": "storage_failed"}
            await until(lambda: (registry.get_sample_value(*failed) or 0) >= 3)
            (told,) = [line for line in lines if line["event"] == "spool.closed"]
            assert told["log_level"] == "error"
            assert content is None or path.read_bytes() == content
            path.rename(tmp_path / "aside")
            await until(spool.publishing)
            await publish(spool, 2)
            broker.there = True
            await until(lambda: broker.confirmed == ["0", "2"])


async def test_a_folder_that_can_never_be_made_fails_the_start(tmp_path: Path) -> None:
    """A setting that no waiting mends is told at once."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartError, match="WAVEKEEP_DATA_DIR"):
        async with spooled(tmp_path / "file" / "data" / "spool", FakeBroker()):
            pass


async def test_a_file_of_another_process_fails_the_start(tmp_path: Path) -> None:
    """Two ingresses over one data folder are a mistake, told to whoever starts the second one."""
    async with spooled(tmp_path / "spool", FakeBroker()):
        with pytest.raises(InUseError, match="another WAVEKEEP_DATA_DIR"):
            async with spooled(tmp_path / "spool", FakeBroker()):
                pass


async def test_a_disk_that_hangs_does_not_keep_a_broker_that_confirms_again_from_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing can be deleted from it, callbacks go to the broker again as soon as that is well."""
    broker, freed = FakeBroker(), asyncio.Event()
    forget = EmbeddedBroker.forget

    async def hang(self: EmbeddedBroker, queue: str, ids: Any) -> int:
        await freed.wait()
        return await forget(self, queue, ids)

    monkeypatch.setattr(module, "SPOOL_TIMEOUT_S", 0.2)
    async with spooled(tmp_path / "spool", broker) as spool:
        with monkeypatch.context() as patched:
            patched.setattr(EmbeddedBroker, "forget", hang)
            broker.error = BrokerError(Reason.PUBLISH_TIMED_OUT, "no confirmation")
            await publish(spool, 0)
            broker.error = None
            await until(lambda: broker.confirmed == ["0"])
            await until(lambda: spool._spool._file is None)
            await publish(spool, 1)
            assert broker.confirmed[-1] == "1"
        freed.set()
        await until(lambda: spool._spool.is_open and spool.waiting == 0)


async def test_an_error_of_the_disk_within_a_group_closes_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each of the group was taken when tried again alone, the disk is not trusted until it was probed."""
    broker = FakeBroker()
    broker.there = False
    async with spooled(tmp_path / "spool", broker, probe_every_s=0.2) as spool:
        await publish(spool, 0)
        whole, failed = Journal._transaction, threading.Event()

        def fail_once(self: Journal, operations: list[Any]) -> list[Any]:
            if failed.is_set():
                return whole(self, operations)
            failed.set()
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error

        with capture_logs() as lines, monkeypatch.context() as patched:
            patched.setattr(Journal, "_next_group", gathering(3))
            patched.setattr(Journal, "_transaction", fail_once)
            await asyncio.gather(*(publish(spool, number) for number in (1, 2, 3)))
            assert failed.is_set()
            assert [line["event"] for line in lines if line["event"] == "spool.closed"] == ["spool.closed"]
            assert not spool.publishing()
        await until(spool.publishing)
        broker.there = True
        await until(lambda: spool.waiting == 0)
        assert broker.confirmed == ["0", "1", "2", "3"]


def gathering(count: int) -> Any:
    """Return a way to take operations from the queue that waits until there are so many at first."""
    taken = Journal._next_group
    held: list[Any] = []

    def next_group(self: Journal) -> Any:
        group, ended = taken(self)
        held.extend(group)
        if len(held) < count and not ended and not hasattr(self, "gathered"):
            return [], False
        self.gathered = True  # type: ignore[attr-defined]
        whole = list(held)
        held.clear()
        return whole, ended

    return next_group
