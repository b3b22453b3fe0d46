"""The brake, on a real embedded queue: a fault of ours parks so many messages and no more."""

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry

from shared.errors import PermanentError, Reason
from shared.events import INTAKE_EXCHANGE
from shared.messaging import consumer
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.port import Message, Subscription
from shared.messaging.topology import DOWNLOADER, parked_queue, topology
from shared.metrics import MessagingMetrics
from shared.retry import LADDER
from tests.integration.embedded_house import eventually, until

MESSAGES = 60


async def test_a_fault_of_ours_does_not_drain_the_queue_into_the_bin(tmp_path: Path) -> None:
    """Beyond the number the rest stays in the queue, untouched; a success lets all of it go on."""
    broken, handled = asyncio.Event(), 0
    broken.set()

    async def handle(_: Message) -> None:
        nonlocal handled
        if broken.is_set():
            raise PermanentError(Reason.HOST_FORBIDDEN, "the setting is wrong")
        handled += 1

    registry = CollectorRegistry()
    broker = EmbeddedBroker(tmp_path / "queue", topology(), metrics=MessagingMetrics(registry, "test"))
    await broker.start()
    stop = asyncio.Event()
    subscription = Subscription(queue=DOWNLOADER, handler=handle, concurrency=4, next_step=lambda *_: LADDER[0])
    for number in range(MESSAGES):
        await broker.publish(INTAKE_EXCHANGE, "report.failed", b"{}", event_id=str(number))
    consuming = asyncio.create_task(broker.consume(subscription, stop=stop))

    def braked() -> float | None:
        return registry.get_sample_value("wavekeep_test_consumer_braked", {"queue": DOWNLOADER})

    async def at_rest() -> bool:
        counts = await broker.depths()
        return counts[DOWNLOADER] + counts[parked_queue(DOWNLOADER)] == MESSAGES and braked() == 1.0

    try:
        await eventually(at_rest)
        parked = (await broker.depths())[parked_queue(DOWNLOADER)]
        assert consumer.BRAKE_AFTER < parked <= consumer.BRAKE_AFTER + subscription.concurrency
        broken.clear()
        kept = [kept.id async for kept in broker.kept(parked_queue(DOWNLOADER))]
        assert len(kept) == parked
    finally:
        stop.set()
        await consuming
        await broker.close()

    again = EmbeddedBroker(tmp_path / "queue", topology(), metrics=MessagingMetrics(CollectorRegistry(), "test"))
    await again.start()
    stop = asyncio.Event()
    consuming = asyncio.create_task(again.consume(subscription, stop=stop))
    try:
        await until(lambda: handled == MESSAGES - parked)
    finally:
        stop.set()
        await consuming
        await again.close()
