"""The traps of RabbitMQ that only a broken node sets: restarted, killed, wiped, or refusing a queue.

Responsible for: that nothing confirmed is lost and that publisher and consumer come back, as `docs/rabbitmq.md` says.
Each test has a node of its own. What a running node can do is in `test_rabbitmq_traps.py`.
"""

import asyncio
from collections.abc import Callable

import pytest

from shared.errors import BrokerError, Reason
from shared.messaging.port import Broker
from simulator.rabbitmq_node import RabbitNode
from tests.contract.brokers import RabbitDriver, Recorder, consuming, started, subscription, until, until_kept

StartNode = Callable[..., RabbitNode]


async def publish(broker: Broker, driver: RabbitDriver, body: bytes) -> None:
    """Publish a report to the downloader's queue."""
    await broker.publish(driver.name("intake"), "report.failed", body, event_id=body.decode())


@pytest.mark.slow
async def test_a_restart_and_a_kill_of_the_broker_lose_nothing_confirmed(rabbitmq_node: StartNode) -> None:
    """Traps 6 and 16: under load, both lines are back within 30 s, and every confirmed message is handed out."""
    node = await asyncio.to_thread(rabbitmq_node)
    driver, handler = RabbitDriver(node.amqp_url), Recorder()
    queue, confirmed, doubts = driver.name("downloader"), list[bytes](), set[Reason]()

    def kill_and_start() -> None:
        node.kill()
        node.start()

    async def publish_on(broker: Broker) -> None:
        number = 0
        while True:
            number += 1
            body = b"%d" % number
            try:
                await publish(broker, driver, body)
            except BrokerError as error:
                doubts.add(error.reason)
                await asyncio.sleep(0.05)
            else:
                confirmed.append(body)

    async with (
        started(driver.broker(settle_s=10.0, publish_timeout_s=2.0)) as broker,
        consuming(broker, subscription(queue, handler, concurrency=4)),
    ):
        await broker.publish(driver.name("intake"), "report.unrecognised", b"in the queue declared last", event_id="x")
        load = asyncio.create_task(publish_on(broker))
        for fault in (node.restart, kill_and_start):
            before = len(confirmed)
            await until(lambda: len(confirmed) > before + 100)  # noqa: B023 - awaited within the turn
            await asyncio.to_thread(fault)
            await until(lambda: broker.publishing() and broker.consuming(queue), within_s=30)
        before = len(confirmed)
        await until(lambda: len(confirmed) > before + 100, within_s=30)
        load.cancel()
        await asyncio.wait({load})
        await until(lambda: set(confirmed) <= set(handler.bodies), within_s=30)
        assert [kept.body for kept in await until_kept(broker, driver.name("unrecognised"))] == [
            b"in the queue declared last"
        ]
    assert doubts <= {Reason.BROKER_UNAVAILABLE, Reason.PUBLISH_TIMED_OUT, Reason.PUBLISH_REFUSED}


@pytest.mark.slow
async def test_a_wiped_broker_gets_its_topology_back(rabbitmq_node: StartNode) -> None:
    """A broker that lost its disks while its queues were empty is declared anew; publishing and consuming go on."""
    node = await asyncio.to_thread(rabbitmq_node)
    driver, handler = RabbitDriver(node.amqp_url), Recorder()
    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler)),
    ):
        await publish(broker, driver, b"before")
        await until(lambda: handler.bodies == [b"before"])
        await asyncio.to_thread(node.wipe)
        await until(lambda: broker.publishing() and broker.consuming(driver.name("downloader")), within_s=30)
        await publish(broker, driver, b"after")
        await until(lambda: handler.bodies == [b"before", b"after"])


@pytest.mark.slow
async def test_a_refused_consume_is_tried_again_and_ends_where_it_stays_refused(rabbitmq_node: StartNode) -> None:
    """Traps 6 and 16: a queue that answers 541 for a moment costs nothing; one that goes on so ends the process."""
    node = await asyncio.to_thread(rabbitmq_node)
    driver, handler = RabbitDriver(node.amqp_url), Recorder()
    queue = driver.name("downloader")
    member = f"quorum_queues, {{'%2F_{queue}', node()}}"
    async with started(driver.broker(refused_for_s=20.0)) as broker:
        async with consuming(broker, subscription(queue, handler)):
            await asyncio.to_thread(node.ctl, "eval", f"ra:stop_server({member}).")
            await until(lambda: not broker.consuming(queue))
            await asyncio.to_thread(node.ctl, "eval", f"ra:restart_server({member}).")
            await until(lambda: broker.consuming(queue), within_s=30)
            await publish(broker, driver, b"after")
            await until(lambda: handler.bodies == [b"after"])
        await asyncio.to_thread(node.ctl, "eval", f"ra:stop_server({member}).")
    async with started(driver.broker(refused_for_s=2.0)) as broker:
        with pytest.raises(BrokerError, match="refused for 2 s"):
            await broker.consume(subscription(queue, handler), stop=asyncio.Event())
