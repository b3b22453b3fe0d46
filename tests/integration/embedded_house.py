"""An embedded broker and a clock for services under test, and waiting with a deadline.

Responsible for: starting and ending a service on a broker of its own. It must not assert anything about them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from shared import events
from shared.events import Data, Event
from shared.lifecycle import Service
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.port import Kept, Message, Subscription
from shared.messaging.topology import topology
from shared.metrics import MessagingMetrics
from shared.retry import LADDER

DEADLINE_S = 20.0


class Clock:
    """The present, plus whatever a test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        """Return the present."""
        return datetime.now(UTC) + self.ahead


class EmbeddedHouse:
    """A queue file, its broker, and one registry."""

    def __init__(self, folder: Path, destinations: Sequence[str] = ("log",)) -> None:
        self.folder = folder
        self.clock = Clock()
        self.registry = CollectorRegistry()
        self.broker = EmbeddedBroker(
            folder / "queue.sqlite3",
            topology(destinations),
            metrics=MessagingMetrics(self.registry, "test"),
            grace_time_s=1.0,
            clock=self.clock,
        )

    @asynccontextmanager
    async def running(self, service: Service) -> AsyncIterator[None]:
        """Run a service while the context lasts; a failure of it is raised at the end."""
        stop = asyncio.Event()
        task = asyncio.create_task(service.run(stop))
        try:
            await until(lambda: task.done() or all(service.checks().values()))
            yield
        finally:
            stop.set()
            await task

    @asynccontextmanager
    async def dying(self, service: Service) -> AsyncIterator[None]:
        """Run a service and let it die at the end of the context, with whatever it has in hand."""
        task = asyncio.create_task(service.run(asyncio.Event()))
        try:
            await until(lambda: task.done() or all(service.checks().values()))
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @asynccontextmanager
    async def hearing(self, queue: str) -> AsyncIterator[list[Event]]:
        """Collect the events that come into a queue."""
        heard: list[Event] = []
        stop = asyncio.Event()

        async def hear(message: Message) -> None:
            heard.append(events.decode(message.body))

        subscription = Subscription(queue=queue, handler=hear, concurrency=10, next_step=lambda *_: LADDER[0])
        task = asyncio.create_task(self.broker.consume(subscription, stop=stop))
        try:
            yield heard
        finally:
            stop.set()
            await task

    async def publish(self, data: Data) -> Event:
        """Publish an event as its service would."""
        event = events.make(data, time=self.clock())
        await self.broker.publish(data.EXCHANGE, event.routing_key, events.encode(event), event_id=event.id)
        return event

    async def parked(self, queue: str) -> list[Kept]:
        """Return what is parked."""
        return [kept async for kept in self.broker.kept(queue)]

    def count(self, name: str, **labels: str) -> float:
        """Return the value of a metric; 0 where it has none yet."""
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def embedded_house(folder: Path, destinations: Sequence[str] = ("log",)) -> AsyncIterator[EmbeddedHouse]:
    """Start a broker in a folder; another one can be started there afterwards, as after a crash."""
    house = EmbeddedHouse(folder, destinations)
    await house.broker.start()
    try:
        yield house
    finally:
        await house.broker.close()


async def until(condition: Callable[[], object], *, deadline_s: float = DEADLINE_S) -> None:
    """Return when the condition holds; fail when it does not in time."""

    async def holds() -> bool:
        return bool(condition())

    await eventually(holds, deadline_s=deadline_s)


async def eventually(condition: Callable[[], Awaitable[bool]], *, deadline_s: float = DEADLINE_S) -> None:
    """Return when the condition, which may have to look somewhere, holds; fail when it does not in time."""
    async with asyncio.timeout(deadline_s):
        while not await condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.02)
