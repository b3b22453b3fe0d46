"""What every broker promises about a service's several work queues: a message moves between them and is never lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from downloader.fairness import Bounds, Places
from downloader.metrics import DownloaderMetrics
from shared.errors import BusyError, PermanentError, Reason, RetryableError
from shared.messaging.port import Broker, Message
from shared.vendors import Vendor
from tests.contract.brokers import (
    LADDER,
    Driver,
    Recorder,
    consuming,
    kill,
    said,
    started,
    subscription,
    until,
    until_kept,
    worker,
)

BUSY = BusyError(Reason.HOST_BUSY, "full")
LATE = RetryableError(Reason.TIMED_OUT, "too late")


async def publish(broker: Broker, driver: Driver, *bodies: bytes) -> None:
    """Publish reports, which go to the downloader's normal queue."""
    for body in bodies:
        await broker.publish(driver.name("intake"), "report.succeeded", body, event_id=f"id of {body.decode()}")


@asynccontextmanager
async def both(driver: Driver, normal: Recorder, urgent: Recorder, *, at_once: bool = True) -> AsyncIterator[Broker]:
    """Consume both queues; the urgent lane is that of what is looked at at once, or of what comes back later."""
    queues = driver.name("downloader"), driver.name("downloader.urgent")

    def lane(_: Message, after_s: float) -> str:
        return queues[1] if at_once or after_s else queues[0]

    async with started(driver.broker()) as broker, AsyncExitStack() as stack:
        for queue, handler in zip(queues, (normal, urgent), strict=True):
            await stack.enter_async_context(consuming(broker, subscription(queue, handler, lane=lane)))
        yield broker


async def test_who_finds_no_place_is_forwarded_with_its_history(driver: Driver) -> None:
    """Forwarding is no attempt: what is known of a message goes with it, and its old queue forgets it."""
    normal, urgent = Recorder(LATE, BUSY), Recorder()
    queue, other = driver.name("downloader"), driver.name("downloader.urgent")

    def lane(_: Message, after_s: float) -> str:
        return queue if after_s else other

    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(queue, normal, lane=lane)),
        consuming(broker, subscription(other, urgent)),
    ):
        await publish(broker, driver, b"one")
        await until(lambda: urgent.seen)
        await publish(broker, driver, b"two")
        await until(lambda: b"two" in normal.bodies)
    (message, _), (first, _) = urgent.seen[0], normal.seen[0]
    assert (message.body, message.event_id, message.queue) == (b"one", "id of one", other)
    assert (message.attempts, message.last_reason) == (1, Reason.TIMED_OUT)
    assert message.first_seen == first.first_seen
    assert not message.redelivered
    assert (normal.bodies, urgent.bodies) == ([b"one", b"one", b"two"], [b"one"])


async def test_a_retry_returns_to_the_queue_of_that_moment(driver: Driver) -> None:
    """What has waited comes back where it belongs by then, counted, and nowhere else."""
    normal, urgent = Recorder(LATE), Recorder(LATE)
    async with both(driver, normal, urgent, at_once=False) as broker:
        await publish(broker, driver, b"one")
        await until(lambda: len(urgent.seen) == 2)
    assert normal.bodies == [b"one"]
    assert [message.attempts for message, _ in urgent.seen] == [1, 2]


async def test_who_is_put_off_comes_back_uncounted(driver: Driver) -> None:
    """A message that found no place waits for the step, and nothing is held against it."""
    handler = Recorder(BUSY, BUSY)
    async with (
        started(driver.broker(rng=lambda: 0.0)) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler)),
    ):
        await publish(broker, driver, b"one")
        await until(lambda: len(handler.seen) == 3)
    assert {(message.attempts, message.last_reason) for message, _ in handler.seen} == {(0, None)}
    assert len({message.first_seen for message, _ in handler.seen}) == 1
    assert handler.seen[1][1] - handler.seen[0][1] >= 0.8 * LADDER[0].seconds


async def test_a_crash_while_forwarding_leaves_a_copy_and_never_a_loss(driver: Driver) -> None:
    """Kill -9 between publish and answer: the message is in the other queue, and at most once more in its own."""
    queue, other = driver.name("downloader"), driver.name("downloader.urgent")
    async with started(driver.broker()) as broker:
        await publish(broker, driver, b"one")
    async with worker(driver, "forward", queue, other) as process:
        assert await said(process) == "forwarded"
        await kill(process)
    normal, urgent = Recorder(), Recorder()
    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(queue, normal)),
        consuming(broker, subscription(other, urgent)),
    ):
        await publish(broker, driver, b"two")
        await until(lambda: urgent.seen and b"two" in normal.bodies)
    assert urgent.bodies == [b"one"]
    assert normal.bodies == ([b"two"] if driver.recipe["kind"] == "embedded" else [b"one", b"two"])


async def test_what_cannot_be_forwarded_stays(driver: Driver) -> None:
    """Where the other queue is missing, the message is handed out again from its own."""
    queue, refused, after = driver.name("downloader"), Recorder(BUSY), Recorder()
    nowhere = driver.name("downloader.nowhere")
    async with started(driver.broker(grace_time_s=0.1)) as broker:
        async with consuming(broker, subscription(queue, refused, lane=lambda *_: nowhere)):
            await publish(broker, driver, b"one")
            await until(lambda: refused.seen and not refused.in_hand)
        async with consuming(broker, subscription(queue, after)):
            await until(lambda: after.bodies == [b"one"])


async def test_what_was_parked_returns_to_the_queue_it_came_from(driver: Driver) -> None:
    """A message parked in the urgent lane is replayed into it."""
    normal, urgent = Recorder(BUSY), Recorder(PermanentError(Reason.NOT_WAV, "text"))
    async with both(driver, normal, urgent) as broker:
        await publish(broker, driver, b"one")
        (kept,) = await until_kept(broker, driver.name("downloader.parked"))
        assert kept.queue == driver.name("downloader.urgent")
        assert await broker.replay(driver.name("downloader.parked"), [kept.id]) == 1
        await until(lambda: len(urgent.seen) == 2)
    assert normal.bodies == [b"one"]


@pytest.mark.parametrize("vendors", [[Vendor.APIBOX], [Vendor.APIBOX, Vendor.KIE]])
async def test_first_tries_of_healthy_hosts_keep_their_order(driver: Driver, vendors: list[Vendor]) -> None:
    """Bounded places put nobody off who would get one in a moment: a long queue is gone through as it came in."""
    metrics = DownloaderMetrics(CollectorRegistry())
    places = Places({"normal": Bounds(4, 3)}, large=2, large_bytes=1_000, metrics=metrics)
    begun: list[int] = []

    async def handle(message: Message) -> None:
        number = int(message.body)
        vendor, host = vendors[number % len(vendors)], "a.example" if number % 10 else "b.example"
        async with places.of_vendor(vendor, "normal"), places.take(vendor, host, str(number), "normal"):
            begun.append(number)
            await asyncio.sleep(0.01)

    async with started(driver.broker()) as broker:
        await publish(broker, driver, *(b"%d" % number for number in range(60)))
        async with consuming(broker, subscription(driver.name("downloader"), handle, concurrency=5)):
            await until(lambda: len(begun) == 60)
    assert sorted(begun) == list(range(60))
    assert all(abs(number - place) <= 5 for place, number in enumerate(begun)), begun
