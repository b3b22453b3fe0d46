"""The notifier, put together.

Responsible for: the one place where its parts meet. Every default can be replaced by keyword. Building touches
neither network nor disk, but for the file of destinations.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import structlog
from prometheus_client import CollectorRegistry

from notifier.channels import Channel, LogChannel, WebhookChannel
from notifier.delivery import Delivery
from notifier.metrics import NotifierMetrics
from notifier.settings import Destination, LogDestination, NotifierSettings, load_destinations
from notifier.split import Splitter
from shared import lifecycle
from shared.clock import Clock, system_clock
from shared.messaging.factory import build_broker
from shared.messaging.port import Broker, Subscription
from shared.messaging.second_chance import SecondChances
from shared.messaging.topology import NOTIFIER, destination_queue
from shared.metrics import MessagingMetrics
from shared.settings import load

log = structlog.get_logger()

SPLIT_CONCURRENCY = 8


class Notifier:
    """Hears the public events and delivers them, until told to stop."""

    def __init__(
        self,
        settings: NotifierSettings,
        destinations: Sequence[Destination],
        broker: Broker,
        registry: CollectorRegistry,
        *,
        clock: Clock = system_clock,
    ) -> None:
        self._broker = broker
        self._channels: list[Channel] = []
        metrics = NotifierMetrics(registry, [destination.name for destination in destinations])
        self._second_chances = SecondChances(broker, NOTIFIER, crash_loops=metrics.crash_loops, clock=clock)
        splitter = Splitter(destinations, broker, clock=clock)
        self._subscriptions = [
            Subscription(
                queue=NOTIFIER,
                handler=splitter.handle,
                concurrency=SPLIT_CONCURRENCY,
                next_step=splitter.next_step,
            )
        ]
        for destination in destinations:
            channel = build_channel(destination, clock)
            delivery = Delivery(
                destination.name, channel, metrics=metrics, give_up_after=settings.notify_give_up_after, clock=clock
            )
            self._channels.append(channel)
            self._subscriptions.append(
                Subscription(
                    queue=destination_queue(destination.name),
                    handler=delivery.handle,
                    concurrency=destination.concurrency,
                    next_step=delivery.next_step,
                    on_give_up=delivery.give_up,
                )
            )

    async def run(self, stop: asyncio.Event) -> None:
        """Split and deliver until told to stop.

        Raises:
            StartError: a destination's secret cannot be used.
        """
        if not self._channels:
            log.warning("notifier.silent", detail="the file of destinations names none: nobody is told anything")
        async with AsyncExitStack() as stack:
            for channel in self._channels:
                stack.push_async_callback(channel.close)
                await channel.start()
            await stack.enter_async_context(self._second_chances.running())
            async with asyncio.TaskGroup() as group:
                for subscription in self._subscriptions:
                    group.create_task(self._broker.consume(subscription, stop=stop))

    def checks(self) -> Mapping[str, bool]:
        """Ready while events, and the messages of every destination, reach it."""
        return {"notifier": all(self._broker.consuming(subscription.queue) for subscription in self._subscriptions)}


def build_channel(destination: Destination, clock: Clock) -> Channel:
    """Return the way to a destination."""
    if isinstance(destination, LogDestination):
        return LogChannel(destination.name)
    return WebhookChannel(destination, clock=clock)


async def main(stop: asyncio.Event) -> None:
    """Run the notifier as a process of its own, settings from the environment."""
    settings = load(NotifierSettings)
    destinations = load_destinations(settings.notify_config)
    names = [destination.name for destination in destinations]
    registry = CollectorRegistry()
    metrics = MessagingMetrics(registry, "notifier", [NOTIFIER, *map(destination_queue, names)])
    broker = build_broker(settings, name="notifier", metrics=metrics, destinations=names)
    service = Notifier(settings, destinations, broker, registry)
    await lifecycle.serve("notifier", settings, broker, [service], registry, stop)
