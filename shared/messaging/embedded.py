"""The messaging port on one SQLite file: the broker of a single machine.

Responsible for: the port's promises without a server. A publish returns after its transaction was committed and
synced; what was in hand when the process died is handed out again at the next start. One service process owns the
file (an exclusive lock beside it); the command line may work beside it. It must not decide what becomes of a message:
that is `shared.messaging.consumer`. Why a lease lasts as long as its process: `docs/adr/0005-leases.md`.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import structlog

from shared import tasks
from shared.clock import Clock, system_clock
from shared.errors import BrokerError, InUseError, Reason, StartError
from shared.messaging import bulk, table
from shared.messaging.consumer import Consumer
from shared.messaging.journal import Journal, connect
from shared.messaging.port import Kept, Message, Progress, StopSignal, Subscription, unseen
from shared.messaging.topology import Topology, parked_queue, service_of
from shared.metrics import MessagingMetrics
from shared.retry import LADDER, Step, jittered

log = structlog.get_logger()

T = TypeVar("T")

_PAGE = 200
_LONGEST_NAP_S = 1.0
_MEASURE_EVERY_S = 5.0


class EmbeddedBroker:
    """A broker in a file.

    Args:
        path: the SQLite file; its folder is created.
        topology: what is declared in it at start.
        metrics: of the process.
        owner: hold the exclusive lock and release what a crash left in hand. False for the command line beside it.
        publish_timeout_s: how long the disk may take; the outcome is unknown afterwards.
        grace_time_s: how long messages in hand may take once the end was asked for.
        brake_after: see `shared.messaging.consumer`.
        ladder: its first step is where a message is handed back to.
    """

    def __init__(
        self,
        path: Path,
        topology: Topology,
        *,
        metrics: MessagingMetrics,
        owner: bool = True,
        publish_timeout_s: float = 5.0,
        grace_time_s: float = 25.0,
        brake_after: int = 20,
        ladder: tuple[Step, ...] = LADDER,
        clock: Clock = system_clock,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._path = path
        self._topology = topology
        self._metrics = metrics
        self._owner = owner
        self._publish_timeout_s = publish_timeout_s
        self._grace_time_s = grace_time_s
        self._brake_after = brake_after
        self._ladder = ladder
        self._clock = clock
        self._rng = rng
        self._lock_fd: int | None = None
        self._journal: Journal | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._wake: dict[str, asyncio.Event] = {}
        self._consuming: dict[str, Consumer] = {}

    async def start(self) -> None:
        """Open the file, take the lock, declare the queues, release what a crash left in hand.

        Raises:
            InUseError: another service process holds the lock.
            StartError: the file cannot be opened or written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._owner:
                self._lock()
            self._journal = Journal(self._path, on_foreign_write=self._wake_all)
            await self._journal.start(table.SCHEMA)
            await self._journal.run(lambda db: table.declare(db, [queue.name for queue in self._topology.queues]))
            if self._owner and (released := await self._journal.run(table.release)):
                log.warning("messages.released", count=released, detail="in hand when the last process ended")
            await self._report_orphans()
        except (OSError, BrokerError) as error:
            await self.close()
            raise StartError(
                f"The queue file {self._path} cannot be used ({error}). Check the folder's rights and free space."
            ) from error
        except StartError:
            await self.close()
            raise
        self._metrics.connected.set_function(lambda: float(self.publishing()))
        self._measuring = asyncio.create_task(self._measure(), name="queue depths")

    async def close(self) -> None:
        """Commit what waits, then let go of the file and the lock. Idempotent."""
        if self._measuring is not None:
            await tasks.end(self._measuring)
            self._measuring = None
        if self._journal is not None:
            await self._journal.close()
            self._journal = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def watch(self) -> None:
        """See the port. The thread that writes fails with those who wait for it, never in silence."""
        await asyncio.Event().wait()

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """See the port. Durable means committed and synced."""
        started = time.monotonic()
        queues = self._topology.required(exchange, routing_key)
        now = self._now()
        try:
            async with asyncio.timeout(self._publish_timeout_s):
                await self._run(lambda db: table.insert(db, queues, event_id, body, now))
        except TimeoutError as error:
            self._metrics.published("failed", time.monotonic() - started)
            raise BrokerError(
                Reason.PUBLISH_TIMED_OUT, f"the disk did not take it within {self._publish_timeout_s:g} s"
            ) from error
        except BrokerError:
            self._metrics.published("failed", time.monotonic() - started)
            raise
        self._metrics.published("confirmed", time.monotonic() - started)
        self._wake_up(queues)

    async def consume(self, subscription: Subscription, *, stop: StopSignal) -> None:
        """See the port."""
        queue = subscription.queue
        wake = self._wake.setdefault(queue, asyncio.Event())
        consumer = Consumer(
            subscription,
            metrics=self._metrics,
            grace_time_s=self._grace_time_s,
            brake_after=self._brake_after,
            ladder=self._ladder,
        )
        stopped = asyncio.ensure_future(stop.wait())
        self._consuming[queue] = consumer
        try:
            while not stop.is_set():
                consumer.check()
                wake.clear()
                consumer.slot_freed.clear()
                try:
                    nap_s = await self._hand_out(queue, consumer) if consumer.free else _LONGEST_NAP_S
                except BrokerError as error:  # a full disk must not end a process that may yet settle what it has
                    if self._journal is None:
                        raise
                    log.warning("queue.refused", queue=queue, reason=error.reason, detail=error.detail)
                    nap_s = _LONGEST_NAP_S
                if consumer.free:
                    await _first_of(stopped, wake, timeout=nap_s)
                else:
                    await _first_of(stopped, consumer.slot_freed, timeout=_LONGEST_NAP_S)
            await consumer.finish()
        finally:
            self._consuming.pop(queue, None)
            stopped.cancel()
            await consumer.abandon()

    def consuming(self, queue: str) -> bool:
        """See the port."""
        consumer = self._consuming.get(queue)
        return consumer is not None and not consumer.brake.engaged and self.publishing()

    def publishing(self) -> bool:
        """See the port."""
        return self._journal is not None and self._journal.healthy

    async def depths(self) -> dict[str, int]:
        """Return the number of messages in every queue, those in hand included."""
        return await self._read(table.depths)

    async def kept(self, queue: str, *, limit: int = 1_000) -> AsyncIterator[Kept]:
        """See the port. Reads page by page; no cursor stays open."""
        after = table.FIRST
        while limit > 0:
            messages, after = await self.page(queue, after, min(_PAGE, limit))
            if not messages:
                return
            for message in messages:
                yield message
            limit -= len(messages)

    async def page(self, queue: str, after: table.Position, most: int) -> tuple[list[Kept], table.Position]:
        """Return up to `most` kept messages that follow, oldest first, and where the next page starts."""
        return await self._read(partial(table.page, queue=queue, after=after, most=most))

    async def take(self, queue: str, ids: Iterable[str], action: Callable[[Kept], Awaitable[None]]) -> int:
        """See the port."""
        taken = 0
        for names in _groups(ids):
            found = await self._read(partial(table.named, queue=queue, message_ids=names))
            done, error = await bulk.each(found, action)
            taken += await self.forget(queue, [message.id for message in done])
            if error is not None:
                raise error
        return taken

    async def forget(self, queue: str, ids: Sequence[str]) -> int:
        """Remove kept messages, all in one transaction; return how many there were."""
        return await self._run(
            lambda db: sum(table.delete_kept(db, queue=queue, message_id=message_id) for message_id in ids)
        )

    async def weight(self, queue: str) -> tuple[int, int]:
        """Return how many messages a queue holds, and the bytes of their bodies. Reads them all."""
        return await self._read(partial(table.weigh, queue=queue))

    async def oldest(self, queue: str) -> float | None:
        """Return when the oldest message of a queue came, in Unix seconds; None where none waits."""
        return await self._read(partial(table.oldest, queue=queue))

    async def unused_bytes(self) -> int:
        """Return how much can be put into the file before it grows."""
        return await self._read(table.unused_bytes)

    async def fold(self) -> None:
        """Fold the file's log into it, as far as there is room: the log is then written anew, without growing.

        For a full disk, which refuses to lengthen the log. That there is no room for this either changes nothing.
        """
        with contextlib.suppress(BrokerError):
            await self._read(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone())

    @property
    def disk_errors(self) -> int:
        """How often the disk failed since the file was opened, whoever's commit that was."""
        return 0 if self._journal is None else self._journal.disk_errors

    async def replay(
        self, queue: str, ids: Iterable[str], *, progress: Progress = unseen, second_chance: bool = False
    ) -> int:
        """See the port. Transactions of several messages each: none is ever in both queues, or in none."""
        moved = 0
        for names in _groups(ids):
            more = await self._run(
                partial(table.replay, queue=queue, message_ids=names, now=self._now(), second_chance=second_chance)
            )
            moved += more
            progress(more)
        self._wake_all()
        return moved

    async def ack(self, message_id: int) -> None:
        """Forget a message in hand."""
        await self._run(lambda db: table.delete(db, message_id))

    async def retry(self, message_id: int, message: Message, step: Step, reason: Reason | None, queue: str) -> None:
        """Let a message in hand wait for a step, in the queue it returns to."""
        when = self._now() + jittered(step, self._rng())
        await self._run(lambda db: table.put_back(db, message_id, message, reason, when, queue))
        self._wake_up((queue,))

    async def forward(self, message_id: int, message: Message, queue: str) -> None:
        """Move a message in hand to the end of another queue."""
        now = self._now()
        await self._run(lambda db: table.put_back(db, message_id, message, None, now, queue))
        self._wake_up((queue,))

    async def park(self, message_id: int, message: Message, reason: Reason) -> None:
        """Move a message in hand to its service's parked queue."""
        target, now = parked_queue(service_of(message.queue)), self._now()
        first_seen = message.first_seen.timestamp()
        await self._run(lambda db: table.park(db, message_id, target, reason, now, first_seen))

    async def _measure(self) -> None:
        """Keep the gauge of waiting messages up to date."""
        while True:
            with contextlib.suppress(BrokerError):  # a file that cannot be read shows in readiness
                for queue, count in (await self.depths()).items():
                    self._metrics.depth.labels(queue).set(count)
            await asyncio.sleep(_MEASURE_EVERY_S)

    async def _report_orphans(self) -> None:
        """Say which queues the topology no longer has, though messages wait there. They are never deleted."""
        known = {queue.name for queue in self._topology.queues}
        for name, count in (await self.depths()).items():
            if count and name not in known:
                log.warning("queue.orphaned", queue=name, messages=count, remedy="configure its destination again")

    async def _hand_out(self, queue: str, consumer: Consumer) -> float:
        """Hand out as much as the consumer takes; return how long to wait before looking again, in seconds."""
        most, now = consumer.free, self._now()
        taken, following = await self._run(lambda db: table.lease(db, queue, most, now))
        for message_id, message in taken:
            consumer.accept(_EmbeddedDelivery(self, message_id, message))
        return _LONGEST_NAP_S if following is None else min(max(following - now, 0.0), _LONGEST_NAP_S)

    def _now(self) -> float:
        return self._clock().timestamp()

    def _lock(self) -> None:
        lock = self._path.with_name(self._path.name + ".lock")
        self._lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_fd, 20, 0).decode(errors="replace").strip() or "unknown"
            raise InUseError(
                f"Another Wavekeep process (id {holder}) uses the queue {self._path}. The embedded queue serves one"
                " service process: stop that one, use another WAVEKEEP_DATA_DIR, or set WAVEKEEP_BROKER_URL to a"
                " RabbitMQ (amqp://…) to run several."
            ) from None
        written = os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)
        os.ftruncate(self._lock_fd, written)  # only now: on a full disk there may be no room for what was given up

    def _wake_up(self, queues: Iterable[str]) -> None:
        for queue in queues:
            if (wake := self._wake.get(queue)) is not None:
                wake.set()

    def _wake_all(self) -> None:
        self._wake_up(self._wake)

    async def _run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        if self._journal is None:
            raise BrokerError(Reason.BROKER_UNAVAILABLE, "the queue file is not open")
        return await self._journal.run(operation)

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        def read() -> T:
            with contextlib.closing(connect(self._path)) as db:
                return query(db)

        try:
            return await asyncio.to_thread(read)
        except sqlite3.Error as error:
            raise BrokerError(Reason.BROKER_UNAVAILABLE, f"the queue file cannot be read: {error}") from error


class _EmbeddedDelivery:
    """A leased row."""

    def __init__(self, broker: EmbeddedBroker, message_id: int, message: Message) -> None:
        self.message = message
        self._broker = broker
        self._id = message_id

    async def ack(self) -> None:
        await self._broker.ack(self._id)

    async def retry(self, step: Step, reason: Reason | None, *, queue: str | None = None) -> None:
        await self._broker.retry(self._id, self.message, step, reason, queue or self.message.queue)

    async def forward(self, queue: str) -> None:
        await self._broker.forward(self._id, self.message, queue)

    async def park(self, reason: Reason) -> None:
        await self._broker.park(self._id, self.message, reason)


async def _first_of(stopped: asyncio.Future[object], signal: asyncio.Event, *, timeout: float) -> None:
    """Return when the end was asked for, the signal came, or the time is up."""
    waiting = asyncio.ensure_future(signal.wait())
    try:
        await asyncio.wait((stopped, waiting), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _groups(ids: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Cut ids into groups that are worked on at once."""
    left = iter(ids)
    while group := tuple(islice(left, bulk.AT_ONCE)):
        yield group
