"""The brake, and the second chance of crash loops, on every broker."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from shared.errors import PermanentError, Reason
from shared.messaging.brake import Brake
from shared.messaging.port import Broker, Kept, Message
from shared.messaging.second_chance import SecondChances
from shared.metrics import MessagingMetrics, crash_loops
from tests.contract.brokers import Driver, Recorder, consuming, crash, listed, started, subscription, until, until_kept

BRAKE_AFTER = 4
MESSAGES = 24
CONCURRENCY = 3


class Breakable:
    """A handler that refuses bodies of one kind for as long as it is broken."""

    def __init__(self, reason: Reason, *, refused: bytes) -> None:
        self._error = PermanentError(reason, "it is broken")
        self._refused = refused
        self.broken = True
        self.handled: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        """Refuse, or note it."""
        if self.broken and message.body.startswith(self._refused):
            raise self._error
        self.handled.append(message.body)


async def test_a_fault_of_ours_does_not_drain_the_queue_into_the_bin(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the number nothing more is parked and nothing is consumed; one success lets all the rest go on."""
    monkeypatch.setattr("shared.messaging.consumer.Brake", partial(Brake, try_every_s=3.0))
    work, parked = driver.name("downloader"), driver.name("downloader.parked")
    handler = Breakable(Reason.MESSAGE_UNKNOWN, refused=b"")
    registry = CollectorRegistry()

    def braked() -> bool:
        return registry.get_sample_value("wavekeep_test_consumer_braked", {"queue": work}) == 1

    metrics = MessagingMetrics(registry, "test")
    async with (
        started(driver.broker(brake_after=BRAKE_AFTER, metrics=metrics)) as broker,
        consuming(broker, subscription(work, handler, concurrency=CONCURRENCY)),
    ):
        for number in range(MESSAGES):
            await broker.publish(driver.name("intake"), "report.failed", b"%d" % number, event_id=str(number))
        await until(braked)
        assert BRAKE_AFTER < len(await until_at_rest(broker, parked)) <= BRAKE_AFTER + CONCURRENCY
        assert not broker.consuming(work)
        handler.broken = False
        await until(lambda: not braked() and broker.consuming(work))
        left = await listed(broker, parked)
        await until(lambda: len(handler.handled) == MESSAGES - len(left))
    assert sorted(handler.handled + [message.body for message in left]) == sorted(b"%d" % n for n in range(MESSAGES))


async def until_at_rest(broker: Broker, queue: str) -> list[Kept]:
    """Return what is kept once two looks in a row find the same."""
    earlier: list[Kept] | None = None
    async with asyncio.timeout(15):
        while (found := await listed(broker, queue)) != earlier:
            earlier = found
            await asyncio.sleep(0.2)
    return found


async def test_what_one_host_does_wrong_slows_its_own_messages_alone(driver: Driver) -> None:
    """Beyond the number they wait instead of being parked; everybody else's go on, and so do theirs once mended."""
    work, parked = driver.name("downloader"), driver.name("downloader.parked")
    handler = Breakable(Reason.ADDRESS_FORBIDDEN, refused=b"bad")
    bodies = [*(b"bad %d" % number for number in range(MESSAGES)), *(b"good %d" % number for number in range(8))]
    async with started(driver.broker(brake_after=BRAKE_AFTER)) as broker:
        for body in bodies:
            await broker.publish(driver.name("intake"), "report.failed", body, event_id=body.decode())
        by_host = subscription(
            work, handler, concurrency=CONCURRENCY, group=lambda message: message.body.partition(b" ")[0].decode()
        )
        async with consuming(broker, by_host):
            await until(lambda: len(handler.handled) == 8)
            assert len(await until_kept(broker, parked, BRAKE_AFTER)) == BRAKE_AFTER
            assert broker.consuming(work)
            handler.broken = False
            await until(lambda: len(handler.handled) == len(bodies) - BRAKE_AFTER, within_s=30)
        left = await listed(broker, parked)
    assert sorted(handler.handled + [message.body for message in left]) == sorted(bodies)


@pytest.mark.parametrize("queue", ["downloader", "downloader.urgent"])
async def test_what_the_delivery_limit_parked_is_sent_back_once(driver: Driver, queue: str) -> None:
    """A crash loop gets a second chance after an hour, by itself, in whichever lane it was; the next time it stays."""
    work, parked = driver.name(queue), driver.name("downloader.parked")
    now = datetime.now(UTC)
    async with started(driver.broker()) as broker:
        await broker.publish(driver.name("downloader.private"), work, b"poison", event_id="x")
    await crash(driver, work, parked)
    async with started(driver.broker()) as broker:
        registry = CollectorRegistry()
        chances = SecondChances(
            broker,
            driver.name("downloader"),
            crash_loops=crash_loops(registry, "test"),
            clock=lambda: now,
            look_every_s=0.05,
        )
        async with chances.running():
            await until(lambda: registry.get_sample_value("wavekeep_test_crash_loops") == 1)
            (kept,) = await until_kept(broker, parked)
            assert (kept.queue, kept.second_chance) == (work, False)
            now += timedelta(minutes=61)
            await until_kept(broker, parked, 0)
    await crash(driver, work, parked)
    async with started(driver.broker()) as broker:
        registry = CollectorRegistry()
        chances = SecondChances(
            broker,
            driver.name("downloader"),
            crash_loops=crash_loops(registry, "test"),
            clock=lambda: now + timedelta(days=3),
        )
        await chances.look()
        (kept,) = await until_kept(broker, parked)
        assert (kept.reason, kept.second_chance) == (Reason.DELIVERY_LIMIT, True)
        assert registry.get_sample_value("wavekeep_test_crash_loops") == 1
        async with consuming(broker, subscription(work, Recorder())) as task:
            assert await broker.replay(parked, [kept.id]) == 1
            await until_kept(broker, parked, 0)
            assert not task.done()
