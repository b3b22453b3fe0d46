"""The messaging port on RabbitMQ, through aio-pika: the broker of production.

Responsible for: the port's promises over AMQP 0-9-1, on RabbitMQ 3.10 to 4.x. The one file that imports aio-pika. It
must not decide what becomes of a message: that is `shared.messaging.consumer`.

Each connection is a plain one that we keep up ourselves, instead of aio-pika's robust one (`docs/adr/0006-lines.md`).
Publishing and consuming never share a connection: under an alarm the broker stops reading the publishing ones. The
traps behind many a line here are in `docs/rabbitmq.md`.
"""

import asyncio
import contextlib
import itertools
import math
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256

import aio_pika
import stamina
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import (
    AMQPError,
    ChannelNotFoundEntity,
    DeliveryError,
    MessageProcessError,
    PublishError,
)
from pamqp.commands import Basic
from yarl import URL

from shared import tasks
from shared.clock import Clock, system_clock
from shared.errors import BrokerError, DeliveryLostError, NotRoutableError, Reason, StartError
from shared.events import CONTENT_TYPE
from shared.messaging import bulk
from shared.messaging import headers as wire
from shared.messaging.consumer import Consumer
from shared.messaging.port import Kept, Message, Progress, StopSignal, Subscription, unseen
from shared.messaging.topology import Topology, delay_key, parked_queue, private_exchange, service_of
from shared.metrics import MessagingMetrics
from shared.retry import LADDER, Step, jittered
from shared.settings import broker_urls

log = structlog.get_logger()

_LINE_ERRORS = (AMQPError, OSError, TimeoutError, RuntimeError)
"""What a lost or refused connection or channel raises; aiormq reports a closed channel as a RuntimeError."""

_ANSWER_TIMEOUT_S = 10.0
_LOOK_TAKES_S = 5.0
_WORKED_AFTER_S = 30.0
"""A session that lasted this long was not refused: a broker that hangs takes several time-outs to show it."""
_AGAIN_AFTER_S = 1.0
_DELIVERY_TAKES_S = 5.0
_MOST_UNSETTLED = 65_535
"""The largest prefetch there is (source: AMQP 0-9-1, `basic.qos`)."""

START_TIMEOUT_S = 120.0
"""How long the first connection may take, where nothing bridges the time."""

Session = Callable[[AbstractConnection], Awaitable[None]]


class RabbitBroker:
    """A RabbitMQ node or cluster.

    Args:
        url: `amqp://` or `amqps://`, with user, password and virtual host. Several, separated by commas, are nodes of
            one cluster: each connection goes to the next of them when it is lost or cannot be had.
        topology: what is declared, or waited for.
        metrics: of the process.
        name: what the connections are called in the broker's own lists.
        declare: create what is missing; False waits until an administrator did (least rights).
        publish_timeout_s: how long a confirmation may take; the outcome is unknown afterwards.
        start_timeout_s: how long the first connection may take; None without an end.
        brake_after: see `shared.messaging.consumer`.
        settle_s: how long after *creating* a quorum queue its messages are not yet safe from a crash of the broker.
        check_every_s: between two looks at the required queues and at our consumers.
    """

    def __init__(
        self,
        url: str,
        topology: Topology,
        *,
        metrics: MessagingMetrics,
        name: str,
        declare: bool = True,
        publish_timeout_s: float = 5.0,
        start_timeout_s: float | None = START_TIMEOUT_S,
        grace_time_s: float = 25.0,
        brake_after: int = 20,
        settle_s: float = 10.0,
        check_every_s: float = 5.0,
        refused_for_s: float = 120.0,
        ladder: tuple[Step, ...] = LADDER,
        clock: Clock = system_clock,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._urls = [
            node.update_query({"heartbeat": "10"} if "heartbeat" not in node.query else {})
            for node in map(URL, broker_urls(url))
        ]
        self._topology = topology
        self._metrics = metrics
        self._name = name
        self._declares = declare
        self._publish_timeout_s = publish_timeout_s
        self._start_timeout_s = start_timeout_s
        self._grace_time_s = grace_time_s
        self._brake_after = brake_after
        self._settle_s = settle_s
        self._check_every_s = check_every_s
        self._refused_for_s = refused_for_s
        self._ladder = ladder
        self._clock = clock
        self._rng = rng
        self._line: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None
        self._exchanges: Mapping[str, AbstractExchange] = {}
        self._missing: frozenset[str] = frozenset()
        self._looked_at = 0.0
        self._reached = asyncio.Event()
        self._up = asyncio.Event()
        self._consuming: set[str] = set()

    async def start(self) -> None:
        """Connect, and have the topology declared or wait until an administrator declared it.

        Raises:
            StartError: the broker could not be reached or would not have us within `start_timeout_s`.
        """
        self._metrics.connected.set_function(lambda: float(self.publishing()))
        self._line = line = asyncio.create_task(self._keep_line("publish", self._publish_session), name="broker line")
        in_time = self._up if self._declares else self._reached
        if not await _happened(in_time, within_s=self._start_timeout_s, unless=line) or not await _happened(
            self._up, within_s=None, unless=line
        ):
            where = ", ".join(map(_address, self._urls))
            await self.close()
            in_time_s = "" if self._start_timeout_s is None else f" within {self._start_timeout_s:.0f} s"
            raise StartError(
                f"RabbitMQ at {where} could not be used{in_time_s}. Check that it runs,"
                " WAVEKEEP_BROKER_URL (host, user, password, virtual host), and the user's rights; the warnings above"
                " say what was tried."
            )

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        line, self._line = self._line, None
        if line is not None:
            await tasks.end(line)

    async def watch(self) -> None:
        """See the port."""
        if self._line is not None:
            await asyncio.wait({self._line})
            if not self._line.cancelled():
                self._line.result()

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """See the port. Durable means confirmed by every quorum queue that takes it."""
        started = time.monotonic()
        try:
            await self._publish(exchange, routing_key, body, wire.fresh(event_id))
        except BrokerError:
            self._metrics.published("failed", time.monotonic() - started)
            raise
        self._metrics.published("confirmed", time.monotonic() - started)

    async def consume(self, subscription: Subscription, *, stop: StopSignal) -> None:
        """See the port. Raises `BrokerError` after being refused for `refused_for_s` on a connection that works."""
        consumer = Consumer(
            subscription,
            metrics=self._metrics,
            grace_time_s=self._grace_time_s,
            brake_after=self._brake_after,
            ladder=self._ladder,
        )
        intake = _Intake()
        line = asyncio.create_task(
            self._keep_line(
                f"consume {subscription.queue}",
                partial(self._consume_session, consumer, subscription, intake),
                refused_for_s=self._refused_for_s,
            )
        )
        stopped, failed = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(consumer.failed.wait())
        try:
            lines = {line, self._line} if self._line else {line}
            await asyncio.wait({stopped, failed, *lines}, return_when=asyncio.FIRST_COMPLETED)
            consumer.check()
            for ended in lines:
                if ended.cancelled():
                    raise BrokerError(Reason.BROKER_UNAVAILABLE, "the broker was closed under its consumer")
                if ended.done():
                    ended.result()
            await intake.end()
            await consumer.finish()
        finally:
            stopped.cancel()
            failed.cancel()
            await consumer.abandon()
            await tasks.end(line)
            self._consuming.discard(subscription.queue)

    def consuming(self, queue: str) -> bool:
        """See the port."""
        return queue in self._consuming

    def publishing(self) -> bool:
        """See the port."""
        answers = time.monotonic() - self._looked_at < self._check_every_s + _LOOK_TAKES_S  # not so under an alarm
        return self._up.is_set() and not self._missing and answers

    async def kept(self, queue: str, *, limit: int = 1_000) -> AsyncIterator[Kept]:
        """See the port. Looking is a delivery too: the queues looked at have no limit that it could reach."""
        async with self._side_channel(queue) as channel:
            messages = [_kept(message) async for message in _deliveries(channel, queue, limit)]
        for message in messages:
            yield message

    async def take(self, queue: str, ids: Iterable[str], action: Callable[[Kept], Awaitable[None]]) -> int:
        """See the port. What is not taken returns to its place when the channel closes."""
        return await self._remove(queue, set(ids), action)

    async def _remove(
        self,
        queue: str,
        wanted: set[str],
        action: Callable[[Kept], Awaitable[None]],
        *,
        but: Callable[[Kept], bool] = lambda _: False,
    ) -> int:
        taken = 0

        async def remove(chosen: tuple[AbstractIncomingMessage, Kept]) -> None:
            message, kept = chosen
            await action(kept)
            await message.ack()

        async with (
            self._side_channel(queue) as channel,
            contextlib.aclosing(_deliveries(channel, queue, None)) as messages,
        ):
            async for group in _groups(messages, wanted):
                done, error = await bulk.each([(m, kept) for m, kept in group if not but(kept)], remove)
                taken += len(done)
                if error is not None:
                    raise error
        return taken

    async def replay(
        self, queue: str, ids: Iterable[str], *, progress: Progress = unseen, second_chance: bool = False
    ) -> int:
        """See the port. Publish, then ack: a crash between leaves a copy, never a loss.

        What came from no work queue stays.
        """

        async def send_back(message: Kept) -> None:
            target = message.queue
            carried = wire.fresh(message.event_id, second_chance=second_chance)
            await self._publish(private_exchange(service_of(target)), target, message.body, carried)
            progress(1)

        return await self._remove(queue, set(ids), send_back, but=lambda kept: not kept.queue)

    async def retry(self, message: Message, step: Step, reason: Reason | None, queue: str) -> None:
        """Publish a copy of a message in hand to a delay queue, to return to `queue` after 80 to 100 % of the step."""
        await self._publish(
            private_exchange(service_of(message.queue)),
            delay_key(step, queue),
            message.body,
            wire.retried(message, reason),
            expires_after=timedelta(seconds=jittered(step, self._rng())),
        )

    async def forward(self, message: Message, queue: str) -> None:
        """Publish a copy of a message in hand to another work queue of its service."""
        await self._publish(private_exchange(service_of(queue)), queue, message.body, wire.retried(message, None))

    async def park(self, message: Message, reason: Reason) -> None:
        """Publish a copy of a message in hand to the parked queue of its service."""
        service = service_of(message.queue)
        carried = wire.parked(message, reason, self._clock())
        await self._publish(private_exchange(service), parked_queue(service), message.body, carried)

    async def _publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        carried: Mapping[str, str | int],
        *,
        expires_after: timedelta | None = None,
    ) -> None:
        required = self._topology.required(exchange, routing_key)
        try:
            async with asyncio.timeout(self._publish_timeout_s):
                await self._up.wait()
                missing = [queue for queue in required if queue in self._missing]
                if missing or not required:
                    raise NotRoutableError(
                        Reason.NOT_ROUTABLE, f"no queue {', '.join(missing) or 'is bound'} for {routing_key!r}"
                    )
                answer = await self._exchanges[exchange].publish(
                    aio_pika.Message(
                        body,
                        content_type=CONTENT_TYPE,
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                        message_id=uuid.uuid4().hex,  # fresh each time: aiormq matches returns by it
                        headers=dict(carried),
                        expiration=expires_after,
                    ),
                    routing_key,
                    mandatory=True,
                )
        except TimeoutError as error:
            raise BrokerError(
                Reason.PUBLISH_TIMED_OUT, f"no confirmation within {self._publish_timeout_s:g} s"
            ) from error
        except PublishError as error:
            raise NotRoutableError(Reason.NOT_ROUTABLE, f"{routing_key!r} was returned by the broker") from error
        except DeliveryError as error:
            raise BrokerError(Reason.PUBLISH_REFUSED, "the broker refused the message: is a queue full?") from error
        except (Exception, asyncio.CancelledError) as error:
            if not _is_of_the_line(error):
                raise
            raise BrokerError(Reason.BROKER_UNAVAILABLE, f"the connection was lost: {type(error).__name__}") from error
        if not isinstance(answer, Basic.Ack):
            raise BrokerError(Reason.PUBLISH_REFUSED, f"the broker answered {type(answer).__name__}")

    async def _keep_line(self, name: str, session: Session, *, refused_for_s: float = math.inf) -> None:
        """Keep one connection up and its session running, for ever; backing off while it cannot be had.

        Raises:
            BrokerError: the connection works, but its session has been refused for `refused_for_s`.
        """
        works_since: float | None = None
        nodes = itertools.cycle(self._urls)
        while True:
            async for attempt in stamina.retry_context(
                on=_LINE_ERRORS, attempts=None, timeout=None, wait_initial=0.2, wait_max=5.0
            ):
                with attempt:
                    if attempt.num > len(self._urls):
                        works_since = None  # it did not work: what was refused before does not count
                    connection = await self._connect(next(nodes), name)
            opened = time.monotonic()
            works_since = works_since or opened
            try:
                async with connection:
                    await session(connection)
            except _LINE_ERRORS as error:
                log.warning("broker.line_lost", line=name, error=type(error).__name__, detail=str(error)[:200])
            _heed_cancellation()
            lasted_s = time.monotonic() - opened
            if lasted_s > _WORKED_AFTER_S:
                works_since = None
            elif time.monotonic() - works_since > refused_for_s:
                raise BrokerError(Reason.BROKER_UNAVAILABLE, f"{name}: refused for {refused_for_s:.0f} s")
            await asyncio.sleep(_AGAIN_AFTER_S)

    async def _connect(self, node: URL, line: str) -> AbstractConnection:
        try:
            return await _opened(node, name=f"{self._name} {line}")
        except _LINE_ERRORS as error:
            log.warning("broker.unreachable", broker=_address(node), line=line, error=str(error)[:200])
            raise

    async def _publish_session(self, connection: AbstractConnection) -> None:
        """Have the topology there, then publish until the line breaks, looking after the required queues."""
        closed = _closed(connection)
        self._reached.set()
        await self._look(connection)
        if self._declares and not self._missing:
            await _declare(connection, self._topology)  # bindings and exchanges cannot be looked for
        await self._await_topology(connection)
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        channel.close_callbacks.add(lambda *_: closed.set())
        self._exchanges = {name: await channel.get_exchange(name, ensure=False) for name in self._topology.exchanges}
        self._connection = connection
        self._up.set()
        log.info("broker.connected", broker=_address(URL(str(connection))))
        try:
            while not await _happened(closed, within_s=self._check_every_s):
                await self._look(connection)
                if self._missing:
                    log.error("queues.missing", queues=sorted(self._missing))
                    await self._await_topology(connection)
        finally:
            self._up.clear()
            self._connection = None

    async def _await_topology(self, connection: AbstractConnection) -> None:
        """Return when nothing is missing: declared by us, or by an administrator."""
        while self._missing:
            if self._declares:
                created = sorted(self._missing)
                await _declare(connection, self._topology)
                log.info("topology.declared", created=len(created), safe_after_s=self._settle_s)
                await asyncio.sleep(self._settle_s)
            else:
                log.warning("topology.awaited", missing=sorted(self._missing), remedy="wavekeep topology apply")
                await asyncio.sleep(self._check_every_s)
            await self._look(connection)
            if not self._missing and not self._declares:  # somebody made them just now
                log.info("topology.found", safe_after_s=self._settle_s)
                await asyncio.sleep(self._settle_s)

    async def _look(self, connection: AbstractConnection) -> None:
        """Note what is missing. On a publishing connection this waits for the end of an alarm."""
        self._missing = await _find_missing(connection, self._topology)
        self._metrics.missing.set(len(self._missing))
        self._looked_at = time.monotonic()

    async def _consume_session(
        self, consumer: Consumer, subscription: Subscription, intake: "_Intake", connection: AbstractConnection
    ) -> None:
        """Consume until the line breaks or the broker no longer knows a consumer of the queue."""
        queue_name = subscription.queue
        broken = _closed(connection)
        if intake.ended:
            await broken.wait()
            return
        channel = await connection.channel()
        channel.close_callbacks.add(lambda *_: broken.set())
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda *_: broken.set())
        await channel.set_qos(prefetch_count=subscription.concurrency, timeout=_ANSWER_TIMEOUT_S)
        queue = await channel.get_queue(queue_name, ensure=False)

        async def take_in_hand(incoming: AbstractIncomingMessage) -> None:
            delivery = _RabbitDelivery(self, incoming, queue_name, self._clock())
            while consumer.free <= 0:  # what a broken line left in hand still counts
                if consumer.brake.engaged:
                    try:
                        await delivery.retry(self._ladder[0], None)
                    except BrokerError as error:  # the line ends, so that it is held no longer
                        log.warning("message.hand_back_failed", queue=queue_name, reason=error.reason)
                        broken.set()
                    return
                consumer.slot_freed.clear()
                await consumer.slot_freed.wait()
            consumer.accept(delivery)

        while not (broken.is_set() or intake.ended):
            tag = await queue.consume(take_in_hand, timeout=_ANSWER_TIMEOUT_S)
            intake.opened(partial(queue.cancel, tag, timeout=self._publish_timeout_s))
            self._consuming.add(queue_name)
            log.info("consumer.started", queue=queue_name, concurrency=subscription.concurrency)
            try:
                if not await self._watch_consumer(queue_name, consumer, intake, connection, broken):
                    return
            finally:
                self._consuming.discard(queue_name)
            await queue.cancel(tag, timeout=_ANSWER_TIMEOUT_S)
            await self._try_one_by_one(queue, consumer, intake, broken)
        await broken.wait()

    async def _watch_consumer(
        self,
        queue_name: str,
        consumer: Consumer,
        intake: "_Intake",
        connection: AbstractConnection,
        broken: asyncio.Event,
    ) -> bool:
        """Wait while the broker knows our consumer; True when the brake engages, False when the session is over."""
        while not await _happened(broken, within_s=self._check_every_s):
            if consumer.brake.engaged:
                return True
            watch = await _channel(connection)
            seen = await watch.declare_queue(queue_name, passive=True, timeout=_ANSWER_TIMEOUT_S)
            await watch.close()
            if not seen.declaration_result.consumer_count and not intake.ended:
                log.error("consumer.lost", queue=queue_name)
                return False
        return False

    async def _try_one_by_one(
        self, queue: AbstractQueue, consumer: Consumer, intake: "_Intake", broken: asyncio.Event
    ) -> None:
        """While the brake is engaged, take one message whenever it allows; nothing else is held meanwhile."""
        while consumer.brake.engaged and not intake.ended:
            if await _happened(broken, within_s=_AGAIN_AFTER_S) or not consumer.brake.engaged:
                return
            if consumer.free and (incoming := await queue.get(fail=False, timeout=_ANSWER_TIMEOUT_S)) is not None:
                consumer.accept(_RabbitDelivery(self, incoming, queue.name, self._clock()))

    @contextlib.asynccontextmanager
    async def _side_channel(self, queue: str) -> AsyncGenerator[AbstractChannel, None]:
        """Lend a channel for an operator's work; in the end, what was taken and not acknowledged has returned."""
        try:
            async with asyncio.timeout(self._publish_timeout_s):
                await self._up.wait()
            if self._connection is None:
                raise BrokerError(Reason.BROKER_UNAVAILABLE, "not connected")
            async with self._connection.channel() as channel:
                try:
                    yield channel
                finally:
                    await _give_back(channel, queue)
        except TimeoutError as error:
            raise BrokerError(Reason.BROKER_UNAVAILABLE, "not connected in time") from error
        except ChannelNotFoundEntity as error:
            raise NotRoutableError(Reason.NOT_ROUTABLE, f"there is no queue {queue}") from error
        except _LINE_ERRORS as error:
            raise BrokerError(Reason.BROKER_UNAVAILABLE, f"the connection was lost: {type(error).__name__}") from error


async def find_missing(url: str, topology: Topology) -> frozenset[str]:
    """Return the queues of a topology that a broker does not have. Needs no right to configure.

    Raises:
        BrokerError: the broker cannot be used.
    """
    async with _visit(url) as connection:
        return await _find_missing(connection, topology)


async def apply_topology(url: str, topology: Topology) -> frozenset[str]:
    """Create what is missing of a topology; return the queues that were. Idempotent; needs the right to configure.

    Raises:
        BrokerError: the broker cannot be used, or has a queue of that name with other arguments.
    """
    async with _visit(url) as connection:
        missing = await _find_missing(connection, topology)
        await _declare(connection, topology)
        return missing


@contextlib.asynccontextmanager
async def _visit(url: str) -> AsyncGenerator[AbstractConnection, None]:
    """Lend one connection for an operator's work, to the first node that will have us."""
    *others, last = broker_urls(url)
    try:
        connection: AbstractConnection | None = None
        for node in others:
            with contextlib.suppress(*_LINE_ERRORS):
                connection = await _opened(URL(node))
                break
        async with connection or await _opened(URL(last)) as lent:
            yield lent
    except _LINE_ERRORS as error:
        raise BrokerError(Reason.BROKER_UNAVAILABLE, f"{type(error).__name__}: {str(error)[:200]}") from error


async def _opened(node: URL, *, name: str = "") -> AbstractConnection:
    """Connect to a node.

    An attempt that fails is closed here: left to the garbage collector it is closed in whatever thread that runs, which
    may have no event loop.
    """
    async with contextlib.AsyncExitStack() as undo:
        connection = aio_pika.Connection(node, client_properties={"connection_name": name} if name else None)
        undo.push_async_callback(connection.close)
        await connection.connect(timeout=_ANSWER_TIMEOUT_S)
        undo.pop_all()
    return connection


class _Intake:
    """The way to stop new messages while those in hand still need the channel."""

    def __init__(self) -> None:
        self.ended = False
        self._cancel: Callable[[], Awaitable[object]] | None = None

    def opened(self, cancel: Callable[[], Awaitable[object]]) -> None:
        self._cancel = cancel

    async def end(self) -> None:
        self.ended = True
        if self._cancel is not None:
            with contextlib.suppress(*_LINE_ERRORS):  # a broken line brings no new messages either
                await self._cancel()


class _RabbitDelivery:
    """A message the broker waits for an answer to."""

    def __init__(self, broker: RabbitBroker, incoming: AbstractIncomingMessage, queue: str, now: datetime) -> None:
        self.message = wire.message(
            incoming.headers, incoming.body, queue=queue, redelivered=bool(incoming.redelivered), now=now
        )
        self._broker = broker
        self._incoming = incoming

    async def ack(self) -> None:
        try:
            await self._incoming.ack()
        except (Exception, asyncio.CancelledError) as error:
            if not (_is_of_the_line(error) or isinstance(error, MessageProcessError)):
                raise
            raise _lost() from error

    async def retry(self, step: Step, reason: Reason | None, *, queue: str | None = None) -> None:
        self._assert_ours()
        await self._broker.retry(self.message, step, reason, queue or self.message.queue)
        await self.ack()

    async def forward(self, queue: str) -> None:
        self._assert_ours()
        await self._broker.forward(self.message, queue)
        await self.ack()

    async def park(self, reason: Reason) -> None:
        self._assert_ours()
        await self._broker.park(self.message, reason)
        await self.ack()

    def _assert_ours(self) -> None:
        """Publish no copy of what the broker hands out again anyway: each would go round by itself to the end."""
        try:
            _ = self._incoming.channel
        except _LINE_ERRORS as error:
            raise _lost() from error


def _lost() -> DeliveryLostError:
    return DeliveryLostError(Reason.BROKER_UNAVAILABLE, "its channel is gone; the broker hands the message out again")


async def _find_missing(connection: AbstractConnection, topology: Topology) -> frozenset[str]:
    """Return the queues that do not answer, by declaring each passively."""
    missing: set[str] = set()
    channel = await _channel(connection)
    for queue in topology.queues:
        try:
            await channel.declare_queue(queue.name, passive=True, timeout=_ANSWER_TIMEOUT_S)
        except ChannelNotFoundEntity:
            missing.add(queue.name)
            channel = await _channel(connection)
    await channel.close()
    return frozenset(missing)


async def _declare(connection: AbstractConnection, topology: Topology) -> None:
    """Create what is missing of the topology. Idempotent."""
    async with connection.channel() as channel:
        for name in topology.exchanges:
            await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
        queues = {
            queue.name: await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
            for queue in topology.queues
        }
        for binding in topology.bindings:
            await queues[binding.queue].bind(binding.exchange, binding.pattern)


async def _channel(connection: AbstractConnection) -> AbstractChannel:
    """Open a channel within bounds, counted from the end of an alarm: only a frozen broker is given up."""
    if connection.transport is not None:
        await connection.transport.ready()
    async with asyncio.timeout(_ANSWER_TIMEOUT_S):
        return await connection.channel()


async def _give_back(channel: AbstractChannel, queue: str) -> None:
    """Return everything unsettled to its queue; closing the channel alone returns it some time after the answer.

    Whoever looks next, even at once, looks at all of it.
    """
    if not channel.is_closed:
        underlay = await channel.get_underlay_channel()
        await underlay.basic_nack(0, multiple=True, requeue=True)
        await channel.declare_queue(queue, passive=True, timeout=_ANSWER_TIMEOUT_S)


async def _deliveries(
    channel: AbstractChannel, queue: str, most: int | None
) -> AsyncGenerator[AbstractIncomingMessage, None]:
    """Have messages delivered, unacknowledged, oldest first, until the queue is empty or there are `most`.

    By a consumer, which brings ten thousand in the time in which a thousand can be got one by one. But the count that
    a queue tells may be behind; only getting one waits for what was returned before.
    """
    left = _MOST_UNSETTLED if most is None else min(most, _MOST_UNSETTLED)
    while left:
        source = await channel.declare_queue(queue, passive=True, timeout=_ANSWER_TIMEOUT_S)
        if told := min(source.declaration_result.message_count or 0, left):
            async with contextlib.aclosing(_brought(channel, source, told)) as messages:
                async for message in messages:
                    yield message
                    left -= 1
        if left:
            got = await source.get(fail=False, timeout=_ANSWER_TIMEOUT_S)
            if got is None:
                return
            yield got
            left -= 1


async def _brought(
    channel: AbstractChannel, source: AbstractQueue, count: int
) -> AsyncGenerator[AbstractIncomingMessage, None]:
    """Consume so many messages, or as many as there are."""
    arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await channel.set_qos(prefetch_count=count, timeout=_ANSWER_TIMEOUT_S)
    tag = await source.consume(arrived.put, timeout=_ANSWER_TIMEOUT_S)
    try:
        for _ in range(count):
            try:
                async with asyncio.timeout(_DELIVERY_TAKES_S):
                    message = await arrived.get()
            except TimeoutError:  # somebody else took the rest meanwhile
                return
            yield message
    finally:
        await source.cancel(tag, timeout=_ANSWER_TIMEOUT_S)


async def _groups(
    messages: AsyncIterator[AbstractIncomingMessage], wanted: set[str]
) -> AsyncIterator[list[tuple[AbstractIncomingMessage, Kept]]]:
    """Choose the messages that are wanted, in groups to be worked on at once; stop once all were found."""
    group: list[tuple[AbstractIncomingMessage, Kept]] = []
    while wanted and (message := await anext(messages, None)) is not None:
        kept = _kept(message)
        if kept.id in wanted:
            wanted.discard(kept.id)
            group.append((message, kept))
        if len(group) == bulk.AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _kept(message: AbstractIncomingMessage) -> Kept:
    name = message.message_id or sha256(message.body).hexdigest()[:32]
    return wire.kept(message.headers, message.body, message_id=name)


def _address(node: URL) -> str:
    return f"{node.host}:{node.port or 5672}"


def _closed(connection: AbstractConnection) -> asyncio.Event:
    """Return an event that is set once the connection is closed, by whomever."""
    event = asyncio.Event()
    connection.close_callbacks.add(lambda *_: event.set())
    return event


def _is_of_the_line(error: BaseException) -> bool:
    """Tell whether an error means that a line or a channel is gone.

    What waits on a line that is closed on our side gets a bare Exception of aiormq's, or a cancellation that nobody
    asked this task for.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, _LINE_ERRORS) or type(error) is Exception


def _heed_cancellation() -> None:
    """Raise the cancellation that was swallowed: `wait_for` of Python 3.11, on which aiormq is built, does that."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _happened(event: asyncio.Event, *, within_s: float | None, unless: asyncio.Task[None] | None = None) -> bool:
    """Wait for an event, but not beyond the end of a task that would bring it; tell whether it came in time."""
    _heed_cancellation()
    waiting = asyncio.ensure_future(event.wait())
    try:
        others = {unless} if unless else set()
        await asyncio.wait({waiting, *others}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return event.is_set()
