"""The two brokers behind one face, for a suite that does not know which it is given.

Responsible for: building brokers over one place (a file, a node) with names of the test's own, doing behind their back
what an outsider would, and clearing up. It must not assert anything.
"""

import asyncio
import contextlib
import json
import sqlite3
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import aio_pika
from prometheus_client import CollectorRegistry

from shared.errors import Reason
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.port import Broker, Message, Subscription
from shared.messaging.rabbitmq import RabbitBroker
from shared.messaging.topology import Binding, Queue, Topology, topology
from shared.metrics import MessagingMetrics
from shared.retry import Step

LADDER = (Step("300ms", 0.3), Step("1s", 1.0))
"""Short enough to wait for."""

CHECK_EVERY_S = 0.2

_WORKER = "tests.contract.worker"


class Driver(Protocol):
    """A place where brokers keep messages, and what can be done to it from outside.

    Attributes:
        topology: with names of this test's own.
        crash_limit: deliveries after which a message is parked.
        recipe: what another process needs to build a broker over the same place.
    """

    topology: Topology
    crash_limit: int
    recipe: dict[str, str]

    def name(self, words: str) -> str:
        """Return the name that stands for `wavekeep.{words}` here."""

    def broker(self, **options: Any) -> Broker:
        """Build one more broker over the place, not yet started."""

    async def delete_queue(self, name: str) -> None:
        """Delete a queue behind the brokers' back."""

    async def clear(self) -> None:
        """Leave nothing behind."""


class _Named:
    topology: Topology

    def name(self, words: str) -> str:
        """See the protocol."""
        return f"{prefix_of(self.topology)}.{words}"


class EmbeddedDriver(_Named):
    """A SQLite file."""

    crash_limit = 20

    def __init__(self, path: Path) -> None:
        self._path = path
        self.topology = renamed(topology(ladder=LADDER), unique_prefix())
        self.recipe = {"kind": "embedded", "place": str(path), "prefix": prefix_of(self.topology)}

    def broker(self, **options: Any) -> EmbeddedBroker:
        """See the protocol."""
        given: dict[str, Any] = {"ladder": LADDER, "metrics": metrics()} | options
        return EmbeddedBroker(self._path, self.topology, **given)

    async def delete_queue(self, name: str) -> None:
        """See the protocol."""
        with contextlib.closing(sqlite3.connect(self._path)) as db, db:
            db.execute("DELETE FROM queue WHERE name = ?", (name,))

    async def clear(self) -> None:
        """The folder goes with the test."""


class RabbitDriver(_Named):
    """A RabbitMQ node, shared or of the test's own."""

    crash_limit = 3

    def __init__(self, url: str, *, ladder: Sequence[Step] = LADDER) -> None:
        self.url = url
        self.topology = crash_limited(renamed(topology(ladder=ladder), unique_prefix()), self.crash_limit)
        self.recipe = {"kind": "rabbitmq", "place": url, "prefix": prefix_of(self.topology)}

    def broker(self, **options: Any) -> RabbitBroker:
        """See the protocol."""
        given: dict[str, Any] = {
            "settle_s": 0.0,
            "check_every_s": CHECK_EVERY_S,
            "start_timeout_s": 60.0,
            "ladder": LADDER,
            "metrics": metrics(),
        } | options
        return RabbitBroker(self.url, self.topology, name="test", **given)

    async def delete_queue(self, name: str) -> None:
        """See the protocol."""
        async with await aio_pika.connect(self.url) as connection, connection.channel() as channel:
            await channel.queue_delete(name)

    async def clear(self) -> None:
        """Delete every queue and exchange of this test."""
        async with await aio_pika.connect(self.url) as connection, connection.channel() as channel:
            for queue in self.topology.queues:
                await channel.queue_delete(queue.name)
            for exchange in self.topology.exchanges:
                await channel.exchange_delete(exchange)


class Recorder:
    """A handler that notes what it is given, and answers in turn as told: an error to raise, or None.

    Attributes:
        seen: the messages, in order, with the moment of each (monotonic).
        gate: what every message waits for before it is answered; open unless cleared.
        most: how many were in hand at once at most.
    """

    def __init__(self, *answers: Exception | None) -> None:
        self._answers = list(answers)
        self.seen: list[tuple[Message, float]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.in_hand = 0
        self.most = 0

    @property
    def bodies(self) -> list[bytes]:
        """The bodies seen, in order."""
        return [message.body for message, _ in self.seen]

    async def __call__(self, message: Message) -> None:
        """Note it, wait for the gate, answer."""
        self.seen.append((message, time.monotonic()))
        self.in_hand += 1
        self.most = max(self.most, self.in_hand)
        try:
            await self.gate.wait()
        finally:
            self.in_hand -= 1
        answer = self._answers.pop(0) if self._answers else None
        if answer is not None:
            raise answer


def subscription(
    queue: str,
    handler: Callable[[Message], Awaitable[None]],
    *,
    concurrency: int = 1,
    next_step: Callable[[Message, Reason], Step | None] = lambda *_: LADDER[0],
    **options: Any,
) -> Subscription:
    """Build a subscription that tries again for ever, unless told otherwise."""
    return Subscription(queue=queue, handler=handler, concurrency=concurrency, next_step=next_step, **options)


@contextlib.asynccontextmanager
async def started(broker: Broker) -> AsyncIterator[Broker]:
    """Start a broker and close it in the end."""
    try:
        await broker.start()
        yield broker
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def consuming(broker: Broker, subscription: Subscription) -> AsyncIterator[asyncio.Task[None]]:
    """Consume meanwhile; in the end ask for the end, and wait for it."""
    stop = asyncio.Event()
    task = asyncio.create_task(broker.consume(subscription, stop=stop))
    try:
        await until(lambda: broker.consuming(subscription.queue) or task.done())
        yield task
    finally:
        stop.set()
        await task


async def crash(driver: Driver, queue: str, parked: str) -> int:
    """Have one message end its process, again and again until the delivery limit parks it; return how often it did."""
    crashes = 0
    while True:
        assert crashes <= driver.crash_limit + 1
        async with started(driver.broker()) as broker:
            handler = Recorder()
            handler.gate.clear()
            task = asyncio.create_task(broker.consume(subscription(queue, handler), stop=asyncio.Event()))
            try:
                found: list[Any] = []
                while not handler.in_hand and not found:
                    found = await listed(broker, parked)
            finally:
                task.cancel()  # the way out after a crash: nothing is settled
                await asyncio.wait({task})
        if found:
            return crashes
        crashes += 1


@contextlib.asynccontextmanager
async def worker(driver: Driver, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run another process over the same place, as `tests.contract.worker` describes; kill it in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _WORKER, json.dumps(driver.recipe), *words, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        await kill(process)


async def said(process: asyncio.subprocess.Process) -> str:
    """Return the next line that a worker printed; empty where it ended."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode().strip()


async def kill(process: asyncio.subprocess.Process) -> None:
    """End a process as a power cut would."""
    if process.returncode is None:
        process.kill()
        await process.wait()


async def until(condition: Callable[[], object], *, within_s: float = 15) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


async def listed(broker: Broker, queue: str) -> list[Any]:
    """Return what is kept in a queue."""
    return [kept async for kept in broker.kept(queue)]


async def until_kept(broker: Broker, queue: str, count: int = 1, *, within_s: float = 15) -> list[Any]:
    """Return what is kept in a queue once it is so many; fail when it is not in time."""
    deadline = time.monotonic() + within_s
    while len(found := await listed(broker, queue)) != count:
        assert time.monotonic() < deadline, f"{len(found)} kept, not {count}"
        await asyncio.sleep(0.05)
    return found


def metrics() -> MessagingMetrics:
    """Build metrics that nobody reads."""
    return MessagingMetrics(CollectorRegistry(), "test")


def unique_prefix() -> str:
    """Return a first word for names, that no other test uses. No dot: a service is named by two words."""
    return f"wk{uuid.uuid4().hex}"


def prefix_of(topology: Topology) -> str:
    """Return the first word of a topology's names."""
    return topology.exchanges[0].split(".")[0]


def renamed(topology: Topology, prefix: str, *, old: str = "wavekeep") -> Topology:
    """Return the topology under other names: the first word becomes the prefix, wherever a name stands."""

    def new(text: Any) -> Any:
        return text.replace(f"{old}.", f"{prefix}.") if isinstance(text, str) else text

    return Topology(
        exchanges=tuple(map(new, topology.exchanges)),
        queues=tuple(
            Queue(new(q.name), q.kind, MappingProxyType({key: new(v) for key, v in q.arguments.items()}), q.step)
            for q in topology.queues
        ),
        bindings=tuple(Binding(new(b.exchange), new(b.pattern), new(b.queue)) for b in topology.bindings),
    )


def crash_limited(topology: Topology, limit: int) -> Topology:
    """Return the topology with another delivery limit on its work queues."""
    return replace(
        topology,
        queues=tuple(
            replace(q, arguments=MappingProxyType({**q.arguments, "x-delivery-limit": limit}))
            if q.kind == "work"
            else q
            for q in topology.queues
        ),
    )
