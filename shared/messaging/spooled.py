"""A broker with a spool before it: durable either way, RabbitMQ or not.

Responsible for: publishing to the broker and, while that does not confirm, into a spool on local disk; and for the
relay that moves what waits there on once the broker confirms again. What waits keeps its order among what has the same
routing key; new messages may overtake it. Never a return for what is in neither. It must not read what it carries, but
for the type that gives the routing key; nor know when the disk is to be trusted: that is `shared.messaging.spool`.

After one publish that was not confirmed everything goes straight to the spool; the relay tries once a second. A refusal
is different: it is a fact about one routing key, whose queue is full or missing. That key's messages are spooled and
tried again after a while, the oldest first; all others go on.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from shared import tasks
from shared.errors import BrokerError, PermanentError, Reason, WavekeepError
from shared.events import INTAKE_EXCHANGE, routing_key, type_of
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.port import Broker, Kept, Progress, StopSignal, Subscription, unseen
from shared.messaging.spool import Spool
from shared.messaging.table import FIRST
from shared.metrics import SpoolMetrics

log = structlog.get_logger()

_REFUSALS = frozenset({Reason.PUBLISH_REFUSED, Reason.NOT_ROUTABLE})
_REFUSED_AT_MOST_S = 30.0
"""How long a refused key is left alone at most. Each try may leave a copy in another queue of the same key."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A routing key whose messages are not taken, and when to try again."""

    delay_s: float
    until: float


class SpooledBroker:
    """A broker whose publishes survive its absence.

    Args:
        broker: the one that should confirm. Its start must not end while it is away: consumers wait for it meanwhile.
        folder: that the spool's file is in.
        open_spool: builds an embedded broker over `spool_topology`; called again after an error of its disk.
        metrics: of the spool.
        max_messages: that the spool takes.
        max_bytes: of bodies that the spool takes.
        reserve_bytes: stays free on the spool's disk; None for the default.
        max_outstanding: publishes that may wait for the broker at once; the next one goes to the spool.
        probe_every_s: between two tries of the relay.
    """

    def __init__(
        self,
        broker: Broker,
        folder: Path,
        open_spool: Callable[[], EmbeddedBroker],
        *,
        metrics: SpoolMetrics,
        max_messages: int,
        max_bytes: int,
        reserve_bytes: int | None = None,
        max_outstanding: int = 1_000,
        probe_every_s: float = 1.0,
    ) -> None:
        self._broker = broker
        self._spool = Spool(
            folder,
            open_spool,
            metrics=metrics,
            max_messages=max_messages,
            max_bytes=max_bytes,
            reserve_bytes=reserve_bytes,
        )
        self._metrics = metrics
        self._max_outstanding = max_outstanding
        self._probe_every_s = probe_every_s
        self._direct = True
        self._in_use = False
        self._outstanding = 0
        self._refused: dict[str, _Refusal] = {}
        self._passed = FIRST
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the spool; connect to the broker meanwhile, however long that takes.

        Raises:
            StartError: the spool can never be opened.
        """
        await self._spool.start()
        self._in_use = self._spool.messages > 0
        self._tasks = [
            asyncio.create_task(self._connect(), name="spool connects"),
            asyncio.create_task(self._relay(), name="spool relays"),
            asyncio.create_task(self._spool.keep_looking(), name="spool looks at its disk"),
        ]

    async def close(self) -> None:
        """Stop relaying; what waits stays on disk. Idempotent."""
        ending, self._tasks = self._tasks, []
        await tasks.end(*ending)
        await self._broker.close()
        await self._spool.close()

    async def watch(self) -> None:
        """See the port. The broker is watched by the task that connects to it."""
        async with asyncio.TaskGroup() as group:
            for task in self._tasks:
                group.create_task(_outcome(task))

    @property
    def waiting(self) -> int:
        """How many messages wait in the spool."""
        return self._spool.messages

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """See the port. Durable means confirmed by the broker or, for a report, committed to the spool.

        Only reports are spooled: whoever publishes anything else has a message of its own to try again with.
        """
        if exchange != INTAKE_EXCHANGE:
            await self._broker.publish(exchange, routing_key, body, event_id=event_id)
            return
        cause = self._why_not_direct(routing_key)
        if cause is None:
            self._outstanding += 1
            try:
                await self._broker.publish(exchange, routing_key, body, event_id=event_id)
            except BrokerError as error:
                cause = error
                if error.reason in _REFUSALS:
                    self._refuse(routing_key, error)
                else:
                    self._direct = False
            else:
                return
            finally:
                self._outstanding -= 1
        try:
            await self._spool.keep(exchange, routing_key, body, event_id)
        except BrokerError as error:
            self._metrics.refused.labels(str(error.reason)).inc()
            raise
        if not self._in_use:
            self._in_use = True
            log.warning("spool.entered", reason=cause.reason, detail=cause.detail)

    async def consume(self, subscription: Subscription, *, stop: StopSignal) -> None:
        """See the port."""
        await self._broker.consume(subscription, stop=stop)

    def consuming(self, queue: str) -> bool:
        """See the port."""
        return self._broker.consuming(queue)

    def publishing(self) -> bool:
        """See the port: the broker confirms, or the spool takes."""
        return self._spool.takes or (self._direct and self._broker.publishing())

    def kept(self, queue: str, *, limit: int = 1_000) -> AsyncIterator[Kept]:
        """See the port."""
        return self._broker.kept(queue, limit=limit)

    async def take(self, queue: str, ids: Iterable[str], action: Callable[[Kept], Awaitable[None]]) -> int:
        """See the port."""
        return await self._broker.take(queue, ids, action)

    async def replay(
        self, queue: str, ids: Iterable[str], *, progress: Progress = unseen, second_chance: bool = False
    ) -> int:
        """See the port."""
        return await self._broker.replay(queue, ids, progress=progress, second_chance=second_chance)

    def _why_not_direct(self, key: str) -> BrokerError | None:
        """Return what speaks against asking the broker first."""
        if not self._broker.publishing():
            return BrokerError(Reason.BROKER_UNAVAILABLE, "the broker is away, in an alarm, or lacks a queue")
        if not self._direct:
            return BrokerError(Reason.BROKER_UNAVAILABLE, "the broker did not confirm, and is tried by the relay")
        if self._outstanding >= self._max_outstanding:
            return BrokerError(Reason.BROKER_UNAVAILABLE, f"{self._outstanding} publishes wait for the broker already")
        if key in self._refused and self._spool.takes:
            return BrokerError(Reason.PUBLISH_REFUSED, f"the broker refuses {key!r}")
        return None

    async def _connect(self) -> None:
        await self._broker.start()
        await self._broker.watch()

    async def _relay(self) -> None:
        """Move on what waits, for ever; take the spool back into use when its disk works again."""
        while True:
            try:
                await self._spool.tend()
                if self._broker.publishing():
                    was_direct = self._direct
                    await self._move()
                    if not was_direct:
                        self._direct = True  # nothing speaks against it any more: the next publish will show
                    if self._in_use and self._direct and self._spool.messages == 0:
                        self._in_use = False
                        log.warning("spool.left", detail="it is empty, and the broker confirms again")
                await self._spool.show()
            except WavekeepError as error:
                log.warning("spool.relay_failed", detail=str(error))
            self._metrics.direct.set(self._direct and self._broker.publishing())
            await asyncio.sleep(self._probe_every_s)

    async def _move(self) -> None:
        """Go once through what waits, oldest first, and publish all but what is refused for now.

        What was gone through and stays is not read again until a refused key is due, or nothing stays any more.
        """
        now = time.monotonic()
        due = {key for key, refusal in self._refused.items() if refusal.until <= now}
        if due or not (self._refused or not self._spool.forgets):
            self._passed = FIRST
        tried: set[str] = set()
        while True:
            found, following = await self._spool.page(self._passed)
            if following is None:
                break
            await self._move_page(found, due, tried)
            self._passed = following
        for key in due - tried:  # nothing of it waits: the next publish will show
            self._refused.pop(key, None)

    async def _move_page(self, page: list[Kept], due: set[str], tried: set[str]) -> None:
        """Publish some messages in their order, then forget them.

        A crash between publishing and forgetting moves them again: copies with the same event id.
        """
        moved: list[Kept] = []
        try:
            for kept in page:
                key = _key_of(kept)
                if key in self._refused and (key not in due or key in tried):
                    continue
                tried.add(key)
                try:
                    await self._broker.publish(INTAKE_EXCHANGE, key, kept.body, event_id=kept.event_id)
                except BrokerError as error:
                    if error.reason not in _REFUSALS:
                        self._direct = False
                        raise
                    self._refuse(key, error)
                else:
                    self._refused.pop(key, None)
                    self._direct = True
                    moved.append(kept)
        finally:
            if moved:
                await self._spool.forget(moved)

    def _refuse(self, key: str, error: BrokerError) -> None:
        """Leave a routing key alone for a while, each time for longer."""
        before = self._refused.get(key)
        now = time.monotonic()
        if before is None:
            log.warning("spool.key_refused", routing_key=key, reason=error.reason, detail=error.detail)
        elif before.until > now:
            return  # one of several that were under way at once
        delay_s = self._probe_every_s if before is None else min(2 * before.delay_s, _REFUSED_AT_MOST_S)
        self._refused[key] = _Refusal(delay_s, now + delay_s)


def _key_of(kept: Kept) -> str:
    """Return the routing key of a message; what has none is refused under an empty one, and holds up nothing."""
    try:
        return routing_key(type_of(kept.body))
    except PermanentError:
        return ""


async def _outcome(task: asyncio.Task[None]) -> None:
    """Raise what a task raised; its cancellation is an orderly end."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
