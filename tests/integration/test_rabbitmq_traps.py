"""The traps of RabbitMQ and aio-pika that a node which keeps running can set, one test each.

Responsible for: that each one, really sprung, is survived as `docs/rabbitmq.md` says. All tests share one
node, on which each has names of its own. What needs a broken node is in `test_rabbitmq_crashes.py`.
"""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import aio_pika
import pytest
from prometheus_client import CollectorRegistry

from shared.errors import BrokerError, NotRoutableError, Reason, RetryableError, StartError
from shared.messaging.port import Broker
from shared.messaging.rabbitmq import apply_topology, find_missing
from shared.messaging.topology import Topology
from shared.metrics import MessagingMetrics
from simulator.rabbitmq_node import RabbitNode, private_node
from simulator.rabbitmq_server import GIVEN_URL
from tests.contract.brokers import (
    RabbitDriver,
    Recorder,
    consuming,
    listed,
    started,
    subscription,
    until,
)

pytestmark = pytest.mark.rabbitmq


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitNode]:
    """A node for this file, that may be frozen and alarmed; it looks at acknowledgement time-outs twice a second."""
    if GIVEN_URL in os.environ:
        pytest.skip(f"the broker of {GIVEN_URL} is somebody else's and must not be broken")
    with private_node(settings={"channel_tick_interval": 500}) as node:
        yield node


@pytest.fixture
async def driver(node: RabbitNode) -> AsyncIterator[RabbitDriver]:
    """Names of the test's own on the node."""
    driver = RabbitDriver(node.amqp_url)
    yield driver
    await driver.clear()


async def ctl(node: RabbitNode, *words: str) -> str:
    """Run `rabbitmqctl` while the event loop goes on."""
    return await asyncio.to_thread(node.ctl, *words)


async def publish(broker: Broker, driver: RabbitDriver, body: bytes, key: str = "report.failed") -> None:
    """Publish a report, always under the same event id, as a vendor's repetitions are."""
    await broker.publish(driver.name("intake"), key, body, event_id="same")


async def test_an_attempt_to_connect_that_fails_is_closed() -> None:
    """Nothing is left to the garbage collector, which would close it in whatever thread it runs in."""
    with pytest.raises(BrokerError) as caught:
        await find_missing("amqp://127.0.0.1:1/,amqp://127.0.0.1:2/", Topology((), (), ()))
    assert caught.value.reason == Reason.BROKER_UNAVAILABLE
    left = [each for each in gc.get_objects() if isinstance(each, aio_pika.Connection) and not each.is_closed]
    assert left == []


async def test_copies_published_at_once_are_each_confirmed_or_returned_rightly(driver: RabbitDriver) -> None:
    """Trap 1: of concurrent copies under one event id, none that the broker returned counts as confirmed."""
    handler = Recorder()
    async with started(driver.broker()) as broker:
        await unbind(driver, "intake", "report.failed", "downloader")
        copies = [publish(broker, driver, b"x", key) for key in ("report.failed", "report.succeeded") * 20]
        outcomes = await asyncio.gather(*copies, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes[0::2]} == {NotRoutableError}
        assert set(outcomes[1::2]) == {None}
        async with consuming(broker, subscription(driver.name("downloader"), handler, concurrency=8)):
            await until(lambda: len(handler.seen) == 20)


async def test_what_the_broker_returns_is_not_confirmed(driver: RabbitDriver) -> None:
    """Trap 2: an unroutable message is acknowledged by the broker, and still raises here."""
    async with started(driver.broker()) as broker:
        await unbind(driver, "intake", "report.failed", "downloader")
        with pytest.raises(NotRoutableError, match="returned"):
            await publish(broker, driver, b"x")


async def test_under_an_alarm_publishes_time_out_and_consumers_go_on(node: RabbitNode, driver: RabbitDriver) -> None:
    """Traps 3 and 4: unknown is said as unknown, readiness tells, consuming is not concerned, and it ends by itself."""
    handler = Recorder()
    handler.gate.clear()
    async with (
        started(driver.broker(publish_timeout_s=1.0)) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler)),
    ):
        for body in (b"one", b"two"):
            await publish(broker, driver, body)
        await until(lambda: handler.in_hand)
        await ctl(node, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            with pytest.raises(BrokerError) as caught:
                await publish(broker, driver, b"unknown")
            assert caught.value.reason is Reason.PUBLISH_TIMED_OUT
            handler.gate.set()
            await until(lambda: handler.bodies == [b"one", b"two"])
            await until(lambda: not broker.publishing())
            assert broker.consuming(driver.name("downloader"))
        finally:
            await ctl(node, "set_vm_memory_high_watermark", "0.4")
        await until(broker.publishing)
        await publish(broker, driver, b"after")
        await until(lambda: len(handler.seen) == 4)
    assert set(handler.bodies[2:]) == {b"unknown", b"after"}, "a time-out is not 'not published'"


async def test_with_a_frozen_broker_publishes_time_out_and_close_returns(
    node: RabbitNode, driver: RabbitDriver
) -> None:
    """Traps 3 and 17: a freeze is a time-out, and an end asked for meanwhile comes."""
    handler, stop = Recorder(), asyncio.Event()
    async with started(driver.broker(publish_timeout_s=0.5)) as broker:
        task = asyncio.create_task(broker.consume(subscription(driver.name("downloader"), Recorder()), stop=stop))
        await until(lambda: broker.consuming(driver.name("downloader")))
        node.freeze()
        try:
            with pytest.raises(BrokerError) as caught:
                await publish(broker, driver, b"ghost")
            assert caught.value.reason is Reason.PUBLISH_TIMED_OUT
            stop.set()
            async with asyncio.timeout(10):
                await task
                await broker.close()
        finally:
            node.thaw()
    async with started(driver.broker()) as broker, consuming(broker, subscription(driver.name("downloader"), handler)):
        await publish(broker, driver, b"after")
        await until(lambda: b"after" in handler.bodies)
    assert set(handler.bodies) <= {b"ghost", b"after"}


async def test_a_consumer_whose_queue_was_deleted_comes_back(driver: RabbitDriver) -> None:
    """Trap 16: a queue deleted under its consumer is declared anew, and consumed, within 30 s."""
    queue, handler = driver.name("downloader"), Recorder()
    async with started(driver.broker()) as broker, consuming(broker, subscription(queue, handler)):
        await driver.delete_queue(queue)
        await until(lambda: not broker.consuming(queue), within_s=5)
        await until(lambda: broker.consuming(queue) and broker.publishing(), within_s=30)
        await publish(broker, driver, b"after")
        await until(lambda: handler.bodies == [b"after"])


@pytest.mark.parametrize("outcome", ["done", "failed"])
async def test_an_answer_to_a_dead_channel_is_no_crash_and_makes_no_copy(
    node: RabbitNode, driver: RabbitDriver, outcome: str
) -> None:
    """Trap 15: what was in hand when the connection broke comes again, exactly once, whatever its handler said."""
    handler = Recorder(None if outcome == "done" else RetryableError(Reason.TIMED_OUT, "too late"))
    handler.gate.clear()
    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler)),
    ):
        await publish(broker, driver, b"one")
        await until(lambda: handler.in_hand)
        await ctl(node, "close_all_connections", "as a test")
        await until(lambda: not broker.consuming(driver.name("downloader")))
        await until(lambda: broker.consuming(driver.name("downloader")) and broker.publishing())
        assert handler.most == 1, "what a broken line left in hand still counts"
        handler.gate.set()
        await until(lambda: len(handler.seen) == 2)
        await until(lambda: not handler.in_hand)
        await publish(broker, driver, b"two")
        await until(lambda: len(handler.seen) == 3)
    assert handler.bodies == [b"one", b"one", b"two"]
    assert (handler.seen[1][0].redelivered, handler.seen[1][0].attempts) == (True, 0)


async def test_the_acknowledgement_time_out_never_puts_two_copies_in_hand(
    node: RabbitNode, driver: RabbitDriver
) -> None:
    """Trap 12: a handler slower than the broker's patience is not cancelled, and its copy waits for its end."""
    queue, handler = driver.name("downloader"), Recorder()
    handler.gate.clear()
    await ctl(node, "eval", "application:set_env(rabbit, consumer_timeout, 1000).")
    try:
        async with started(driver.broker()) as broker, consuming(broker, subscription(queue, handler)):
            await publish(broker, driver, b"slow")
            await until(lambda: handler.in_hand)
            await until(lambda: not broker.consuming(queue))
            await until(lambda: broker.consuming(queue))
            assert handler.in_hand == 1
            handler.gate.set()
            await until(lambda: len(handler.seen) == 2)
        assert handler.most == 1
    finally:
        await ctl(node, "eval", "application:set_env(rabbit, consumer_timeout, 1800000).")


async def test_an_end_asked_for_during_a_look_is_not_overheard(driver: RabbitDriver) -> None:
    """`wait_for` of Python 3.11 may swallow a cancellation: consume and close return all the same."""
    queue = driver.name("downloader")
    for _ in range(20):
        async with (
            asyncio.timeout(10),
            started(driver.broker(check_every_s=0.001)) as broker,
            consuming(broker, subscription(queue, Recorder())),
        ):
            pass


async def test_who_creates_a_queue_waits_until_it_is_safe(driver: RabbitDriver) -> None:
    """Trap 6: a start that created queues takes the settling time; one that found them does not."""
    durations = []
    for _ in range(2):
        begun = time.monotonic()
        async with started(driver.broker(settle_s=2.0)):
            durations.append(time.monotonic() - begun)
    assert durations[1] < 2.0 <= durations[0]


async def test_other_arguments_are_refused_in_words(driver: RabbitDriver) -> None:
    """Trap 10: a queue that is there with other arguments is an error, and stays as it is."""
    assert await apply_topology(driver.url, driver.topology) == {queue.name for queue in driver.topology.queues}
    first = driver.topology.queues[0]
    other = replace(first, arguments=MappingProxyType({**first.arguments, "x-delivery-limit": 7}))
    with pytest.raises(BrokerError, match="inequivalent arg"):
        await apply_topology(driver.url, replace(driver.topology, queues=(other, *driver.topology.queues[1:])))
    assert await apply_topology(driver.url, driver.topology) == frozenset()
    assert await find_missing(driver.url, driver.topology) == frozenset()


async def test_missing_queues_are_counted_until_they_are_there(driver: RabbitDriver) -> None:
    """The alarm's gauge follows an administrator who deletes required queues, and one who applies the topology."""
    await apply_topology(driver.url, driver.topology)
    registry = CollectorRegistry()

    def told(missing: int) -> bool:
        return registry.get_sample_value("wavekeep_test_queues_missing") == missing

    async with started(driver.broker(declare=False, metrics=MessagingMetrics(registry, "test"))):
        for change, missing in (
            (driver.delete_queue(driver.name("downloader")), 1),
            (driver.delete_queue(driver.name("notifier")), 2),
            (apply_topology(driver.url, driver.topology), 0),
        ):
            await change
            await until(partial(told, missing))


async def test_without_the_right_to_configure_it_waits_for_the_topology(node: RabbitNode, driver: RabbitDriver) -> None:
    """Least rights: with DECLARE_TOPOLOGY off a start waits until an administrator applied it, then all works."""
    await ctl(node, "add_user", "least", "secret")
    await ctl(node, "set_permissions", "-p", "/", "least", "", ".*", ".*")
    administrator, driver.url = driver.url, driver.url.replace("guest:guest", "least:secret")
    handler = Recorder()
    try:
        broker = driver.broker(declare=False, start_timeout_s=0.5)
        starting = asyncio.create_task(broker.start())
        assert await asyncio.wait({starting}, timeout=1.5) == (set(), {starting}), "longer than the start time-out"
        await apply_topology(administrator, driver.topology)
        await asyncio.wait_for(starting, 10)
        async with started(broker), consuming(broker, subscription(driver.name("downloader"), handler)):
            await publish(broker, driver, b"one")
            await until(lambda: handler.bodies == [b"one"])
            assert await listed(broker, driver.name("downloader.parked")) == []
    finally:
        driver.url = administrator
        await ctl(node, "delete_user", "least")


@pytest.mark.parametrize("declare", [True, False])
async def test_a_broker_that_will_not_have_us_fails_the_start_in_time(driver: RabbitDriver, declare: bool) -> None:
    """Trap 5: the first connection is retried within bounds, and then said what to check."""
    right, driver.url = driver.url, driver.url.replace("guest:guest", "guest:wrong")
    broker = driver.broker(declare=declare, start_timeout_s=1.0)
    driver.url = right
    with pytest.raises(StartError, match="WAVEKEEP_BROKER_URL"):
        await broker.start()


async def unbind(driver: RabbitDriver, exchange: str, key: str, queue: str) -> None:
    """Remove a binding behind the broker's back, which no passive declare can see."""
    async with await aio_pika.connect(driver.url) as connection, connection.channel() as channel:
        found = await channel.get_queue(driver.name(queue), ensure=False)
        await found.unbind(driver.name(exchange), key)
