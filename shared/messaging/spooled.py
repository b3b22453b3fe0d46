"""A broker with a spool before it: durable either way, RabbitMQ or not.

Responsible for: publishing to the broker and, while that does not confirm, into an embedded queue on local disk; and
for the relay that moves what waits there on once the broker confirms again. What waits keeps its order among itself;
new messages may overtake it. Never a return for what is in neither. It must not read what it carries, but for the type
that gives the routing key.

After one publish that was not confirmed everything goes straight to the spool; the relay tries once a second. After an
error of the spool's disk the spool is closed until a row was committed and read again, through a newly opened file: a
sync that succeeds after one that failed proves nothing about what was written between.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import structlog

from shared.errors import BrokerError, Reason, StartError, WavekeepError
from shared.events import INTAKE_EXCHANGE, routing_key, type_of
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.port import Broker, Kept, Progress, StopSignal, Subscription, unseen
from shared.messaging.topology import Binding, Topology, kept_queue
from shared.metrics import SpoolMetrics

log = structlog.get_logger()

SPOOL = "wavekeep.spool"
PROBE = "wavekeep.spool.probe"

SPOOL_TIMEOUT_S = 3.0
"""What the spool's disk may take for a commit, after the broker has taken its own time."""

_PAGE = 100


def spool_topology() -> Topology:
    """Return the spool's own: one queue for whatever comes in, one for probing the disk."""
    return Topology(
        exchanges=(INTAKE_EXCHANGE, PROBE),
        queues=(kept_queue(SPOOL), kept_queue(PROBE)),
        bindings=(Binding(INTAKE_EXCHANGE, "#", SPOOL), Binding(PROBE, "#", PROBE)),
    )


class SpooledBroker:
    """A broker whose publishes survive its absence.

    Args:
        broker: the one that should confirm.
        open_spool: builds an embedded broker over `spool_topology`; called again after an error of its disk.
        metrics: of the spool.
        max_messages: that the spool takes.
        max_bytes: of bodies that the spool takes.
        max_outstanding: publishes that may wait for the broker at once; the next one goes to the spool.
        probe_every_s: between two tries of the relay.
    """

    def __init__(
        self,
        broker: Broker,
        open_spool: Callable[[], EmbeddedBroker],
        *,
        metrics: SpoolMetrics,
        max_messages: int,
        max_bytes: int,
        max_outstanding: int = 1_000,
        probe_every_s: float = 1.0,
    ) -> None:
        self._broker = broker
        self._open_spool = open_spool
        self._metrics = metrics
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_outstanding = max_outstanding
        self._probe_every_s = probe_every_s
        self._spool: EmbeddedBroker | None = None
        self._direct = True
        self._outstanding = 0
        self._messages = 0
        self._bytes = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._dropping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the spool; connect to the broker meanwhile, however long that takes.

        Raises:
            StartError: the spool cannot be opened.
        """
        self._spool = self._open_spool()
        await self._spool.start()
        await self._weigh(self._spool)
        self._tasks = [
            asyncio.create_task(self._connect(), name="spool connects"),
            asyncio.create_task(self._relay(), name="spool relays"),
        ]

    async def close(self) -> None:
        """Stop relaying; what waits stays on disk. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._broker.close()
        self._drop_spool()
        if self._dropping is not None:
            await asyncio.wait({self._dropping}, timeout=SPOOL_TIMEOUT_S)

    async def watch(self) -> None:
        """See the port. The broker is watched by the task that connects to it, each time anew."""
        async with asyncio.TaskGroup() as group:
            for task in self._tasks:
                group.create_task(_outcome(task))

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """See the port. Durable means confirmed by the broker or, for a report, committed to the spool.

        Only reports are spooled: whoever publishes anything else has a message of its own to try again with.
        """
        if exchange != INTAKE_EXCHANGE:
            await self._broker.publish(exchange, routing_key, body, event_id=event_id)
            return
        if self._direct and self._broker.publishing() and self._outstanding < self._max_outstanding:
            self._outstanding += 1
            try:
                await self._broker.publish(exchange, routing_key, body, event_id=event_id)
            except BrokerError as error:
                if self._direct:
                    log.warning("spool.entered", reason=error.reason, detail=error.detail)
                self._direct = False
            else:
                return
            finally:
                self._outstanding -= 1
        try:
            await self._keep(exchange, routing_key, body, event_id)
        except BrokerError as error:
            self._metrics.refused.labels(str(error.reason)).inc()
            raise

    async def consume(self, subscription: Subscription, *, stop: StopSignal) -> None:
        """See the port."""
        await self._broker.consume(subscription, stop=stop)

    def consuming(self, queue: str) -> bool:
        """See the port."""
        return self._broker.consuming(queue)

    def publishing(self) -> bool:
        """See the port: the broker confirms, or the spool takes."""
        takes = self._spool is not None and not self._is_full(0)
        return takes or (self._direct and self._broker.publishing())

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

    async def _keep(self, exchange: str, routing_key: str, body: bytes, event_id: str) -> None:
        spool = self._spool
        if spool is None:
            raise BrokerError(Reason.STORAGE_FAILED, "the broker does not confirm, and the spool's disk failed")
        if self._is_full(len(body)):
            raise BrokerError(Reason.STORAGE_FULL, "the broker does not confirm, and the spool is full")
        self._messages, self._bytes = self._messages + 1, self._bytes + len(body)
        try:
            await spool.publish(exchange, routing_key, body, event_id=event_id)
        except BrokerError as error:
            log.warning("spool.closed", reason=error.reason, detail=error.detail)
            if self._spool is spool:
                self._drop_spool()
            raise BrokerError(Reason.STORAGE_FAILED, f"the spool did not take it: {error.detail}") from error
        self._metrics.spooled.inc()
        self._metrics.messages.set(self._messages)

    def _is_full(self, size: int) -> bool:
        return self._messages >= self._max_messages or self._bytes + size > self._max_bytes

    async def _connect(self) -> None:
        while True:
            try:
                await self._broker.start()
            except StartError as error:
                log.warning("broker.unreachable", detail=str(error))
            else:
                await self._broker.watch()
                return

    async def _relay(self) -> None:
        """Move on what waits, for ever; reopen the spool when its disk works again."""
        while True:
            try:
                if self._spool is None and (self._dropping is None or self._dropping.done()):
                    await self._reopen()
                if self._broker.publishing():
                    was_direct = self._direct
                    while await self._move_page():
                        pass
                    if not was_direct and self._messages == 0:
                        self._confirmed()  # nothing waits that could show it: the next publish will
                await self._show()
            except (WavekeepError, StartError) as error:
                log.warning("spool.relay_failed", detail=str(error))
            await asyncio.sleep(self._probe_every_s)

    async def _move_page(self) -> bool:
        """Publish the oldest messages in their order, then forget them; False where none is left.

        A crash between publishing and forgetting moves them again: copies with the same event id.
        """
        spool = self._spool
        moved: list[str] = []
        size = 0
        if spool is None:
            return False
        try:
            async for kept in spool.kept(SPOOL, limit=_PAGE):
                key = routing_key(type_of(kept.body))
                await self._broker.publish(INTAKE_EXCHANGE, key, kept.body, event_id=kept.event_id)
                self._confirmed()
                moved.append(kept.id)
                size += len(kept.body)
        finally:
            if moved:
                await spool.forget(SPOOL, moved)
                self._metrics.relayed.inc(len(moved))
                self._messages, self._bytes = self._messages - len(moved), self._bytes - size
        return bool(moved)

    def _confirmed(self) -> None:
        if not self._direct:
            log.warning("spool.left", waiting=self._messages, detail="the broker confirms again")
        self._direct = True

    async def _reopen(self) -> None:
        """Open the file anew, and take it back into use once a row was committed and read again."""
        spool = self._open_spool()
        try:
            await spool.start()
            await spool.publish(PROBE, PROBE, b"probe", event_id="probe")
            found = [kept.id async for kept in spool.kept(PROBE)]
            if not found:
                raise BrokerError(Reason.STORAGE_FAILED, "a committed row was not there to be read")
            await spool.forget(PROBE, found)
        except BaseException:
            await spool.close()
            raise
        await self._weigh(spool)
        self._spool = spool
        log.warning("spool.reopened", waiting=self._messages)

    def _drop_spool(self) -> None:
        """Take the spool out of use at once, and close it meanwhile: a disk that hangs must not hold up an answer."""
        spool, self._spool = self._spool, None
        self._metrics.open.set(0)
        if spool is not None:
            self._dropping = asyncio.create_task(spool.close(), name="spool closes")

    async def _weigh(self, spool: EmbeddedBroker) -> None:
        """Count what a newly opened spool holds; from then on it is counted as it comes and goes."""
        self._messages, self._bytes = await spool.weight(SPOOL)

    async def _show(self) -> None:
        oldest = None if self._spool is None else await self._spool.oldest(SPOOL)
        self._metrics.oldest.set(oldest or 0)
        self._metrics.messages.set(self._messages)
        self._metrics.bytes.set(self._bytes)
        self._metrics.open.set(self._spool is not None)
        self._metrics.direct.set(self._direct and self._broker.publishing())


async def _outcome(task: asyncio.Task[None]) -> None:
    """Raise what a task raised; its cancellation is an orderly end."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
