"""What only the embedded broker promises: one owner, a command line beside it, and an honest disk.

Responsible for: the promises that need a look into the file, or a second process on it.
"""

import asyncio
import contextlib
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import BrokerError, PermanentError, Reason, StartError
from shared.messaging import table
from shared.messaging.port import Broker
from tests.contract.brokers import (
    EmbeddedDriver,
    Recorder,
    consuming,
    said,
    started,
    subscription,
    until,
    until_kept,
    worker,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the queue file is."""
    return tmp_path / "queue.sqlite3"


@pytest.fixture
def driver(path: Path) -> EmbeddedDriver:
    """A place of the test's own."""
    return EmbeddedDriver(path)


async def test_a_second_service_process_refuses_to_start(driver: EmbeddedDriver) -> None:
    """Two owners of one file would hand out messages twice; the second one says what to do instead, then can go on."""
    async with worker(driver, "hold") as process:
        assert await said(process) == "holding"
        second = driver.broker()
        with pytest.raises(
            StartError, match=rf"Another Wavekeep process \(id {process.pid}\) uses the queue"
        ) as caught:
            await second.start()
        assert "WAVEKEEP_DATA_DIR" in str(caught.value)
    async with started(second):
        assert second.publishing()


async def test_the_command_line_works_beside_a_service_and_wakes_it(driver: EmbeddedDriver) -> None:
    """A replay by another process is noticed at once, and what the service has in hand is not touched."""
    work, parked = driver.name("downloader"), driver.name("downloader.parked")
    handler = Recorder(PermanentError(Reason.NOT_WAV, "text"))
    async with started(driver.broker()) as service, consuming(service, subscription(work, handler, concurrency=2)):
        await service.publish(driver.name("intake"), "report.failed", b"one", event_id="1")
        (kept,) = await until_kept(service, parked)
        handler.gate.clear()
        await service.publish(driver.name("intake"), "report.failed", b"two", event_id="2")
        await until(lambda: handler.in_hand == 1)
        async with started(driver.broker(owner=False)) as command:
            assert await command.replay(parked, [kept.id]) == 1
            await until(lambda: handler.in_hand == 2, within_s=0.9)  # sooner than the longest nap
        handler.gate.set()
        await until(lambda: not handler.in_hand)
    assert handler.bodies == [b"one", b"two", b"one"]


@pytest.fixture
def full_disk(path: Path) -> Iterator[contextlib.AbstractContextManager[None]]:
    """While entered, the kernel refuses to let the queue's files grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        grown = max(file.stat().st_size for file in path.parent.glob(path.name + "*"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (grown, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    yield full()
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_what_cannot_be_written_is_refused_and_the_consumer_outlives_it(
    driver: EmbeddedDriver, full_disk: contextlib.AbstractContextManager[None]
) -> None:
    """No publish of a group that could not be committed returns, none is handed out, and all goes on afterwards."""
    handler = Recorder()
    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler)),
    ):

        async def publish(body: bytes) -> None:
            await broker.publish(driver.name("intake"), "report.failed", body, event_id="x")

        await publish(b"before")
        await until(lambda: handler.bodies == [b"before"] and not handler.in_hand)
        with full_disk:
            refused = await asyncio.gather(*(publish(b"x" * 10_000) for _ in range(20)), return_exceptions=True)
            assert {type(error) for error in refused} == {BrokerError}
            assert not broker.publishing()
        await publish(b"after")
        await until(lambda: len(handler.seen) == 2)
        assert broker.publishing()
    assert handler.bodies == [b"before", b"after"]


async def test_a_file_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    """A start on something that is no queue file says which file, and what to check."""
    (tmp_path / "queue.sqlite3").write_bytes(b"no database" * 1_000)
    broker = EmbeddedDriver(tmp_path / "queue.sqlite3").broker()
    with pytest.raises(StartError, match="cannot be used"):
        await broker.start()
    await broker.close()


async def test_taking_does_not_delete_what_another_operator_sent_back_meanwhile(driver: EmbeddedDriver) -> None:
    """A message that left the parked queue during the action is no longer its to remove."""
    work, parked = driver.name("downloader"), driver.name("downloader.parked")
    async with started(driver.broker()) as service:
        handler = Recorder(PermanentError(Reason.NOT_WAV, "text"))
        async with consuming(service, subscription(work, handler)):
            await service.publish(driver.name("intake"), "report.failed", b"one", event_id="1")
            (kept,) = await until_kept(service, parked)
        async with started(driver.broker(owner=False)) as command:
            taken = await command.take(parked, [kept.id], lambda _: replayed(service, parked, kept.id))
        assert taken == 0
        async with consuming(service, subscription(work, handler)):
            await until(lambda: len(handler.seen) == 2)


async def replayed(broker: Broker, queue: str, message_id: str) -> None:
    """Send one message back."""
    assert await broker.replay(queue, [message_id]) == 1


async def test_a_long_queue_costs_no_more_to_take_from(driver: EmbeddedDriver, path: Path) -> None:
    """With 100,000 messages waiting, taking one and finding the next one's turn read the index, and sort nothing."""
    queue = driver.name("downloader")
    async with started(driver.broker()):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        rows = ((queue, float(n), "x", b"x") for n in range(100_000))
        db.executemany("INSERT INTO message (queue, available_at, event_id, body) VALUES (?, ?, ?, ?)", rows)
        for statement, values in (
            (table._READY, (queue, 1e9, 3)),
            (table._NEXT_TURN, (queue,)),
            (table._PAGE, (queue, 5.0, 5, 200)),
        ):
            plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values))
            assert "INDEX message_by_turn (queue=? AND leased=?" in plan
            assert "SCAN" not in plan
            assert "TEMP B-TREE" not in plan
    handler = Recorder()
    async with started(driver.broker()) as broker, consuming(broker, subscription(queue, handler)):
        await until(lambda: len(handler.seen) >= 10)
    assert len(handler.seen) < 100_000
