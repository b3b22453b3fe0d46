"""The one consumer loop's heart: hand a message to its handler, then settle it.

Responsible for: deciding from the error's class what becomes of a message (ack, retry, forward, park), settling last,
bounding what is in hand, and the orderly end. It must not know which broker it serves, nor what a handler does.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from time import monotonic

import structlog

from shared import tasks
from shared.errors import BrokerError, DeliveryLostError, PermanentError, Reason, RetryableError
from shared.messaging.brake import Brake, GroupBrakes
from shared.messaging.port import Delivery, Message, Subscription
from shared.metrics import MessagingMetrics
from shared.retry import LADDER, Step, put_off

log = structlog.get_logger()

_SETTLE_AGAIN_AFTER_S = (1.0, 2.0, 5.0, 10.0, 30.0)

_TELLING_TAKES_S = 60.0
"""Far below any acknowledgement time-out: what is told late is told after the next failure."""

_FOR_A_PERSON = frozenset({Reason.NOT_ROUTABLE, Reason.PUBLISH_REFUSED})
"""Why settling fails where the parked queue, or a delay queue, is gone or full: waiting alone mends neither."""


class Consumer:
    """Runs the deliveries of one subscription.

    Args:
        subscription: the handler and what it wants.
        metrics: of the service that subscribes.
        grace_time_s: how long messages in hand may still take once the end was asked for.
        brake_after: how many messages may be parked within a minute for one cause, until the brake engages.
        ladder: its first step is where a message is handed back to.
    """

    def __init__(
        self,
        subscription: Subscription,
        *,
        metrics: MessagingMetrics,
        grace_time_s: float,
        brake_after: int,
        ladder: tuple[Step, ...] = LADDER,
    ) -> None:
        self._subscription = subscription
        self._metrics = metrics
        self._grace_time_s = grace_time_s
        self._ladder = ladder
        self._in_hand: dict[asyncio.Task[None], Delivery] = {}
        self.brake = Brake(brake_after)
        self._groups = GroupBrakes(brake_after)
        self.slot_freed = asyncio.Event()
        self.failed = asyncio.Event()
        """Set when settling a message raised what nobody foresaw; `check` then raises it."""
        self._ending = False
        self._failure: BaseException | None = None

    @property
    def free(self) -> int:
        """How many more messages may be taken in hand; with the brake engaged, one when its time has come."""
        if self.brake.engaged:
            return 0 if self._in_hand or self.brake.wait_s(monotonic()) else 1
        return self._subscription.concurrency - len(self._in_hand)

    def accept(self, delivery: Delivery) -> None:
        """Take a message in hand; returns at once."""
        self.brake.trying(monotonic())
        task = asyncio.create_task(self._process(delivery), name=f"settle {delivery.message.event_id}")
        self._in_hand[task] = delivery
        task.add_done_callback(self._forget)

    async def finish(self) -> None:
        """Let what is in hand finish within the grace time; hand back the rest, uncounted, to the first delay step."""
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=self._grace_time_s)
        left = await self._cancel()
        await asyncio.gather(*(self._hand_back(delivery) for task, delivery in left if task.cancelled()))

    async def abandon(self) -> None:
        """Drop what is in hand unsettled: the broker hands it out again. For the way out after a failure."""
        await self._cancel()

    async def _cancel(self) -> list[tuple[asyncio.Task[None], Delivery]]:
        self._ending = True
        left = list(self._in_hand.items())
        await tasks.end(*(task for task, _ in left))
        return left

    async def _hand_back(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            await delivery.retry(self._ladder[0], None)
        except BrokerError as error:
            log.warning("message.hand_back_failed", queue=message.queue, event_id=message.event_id, reason=error.reason)
        else:
            self._metrics.handled(message.queue, "handed_back", None, 0.0)
            log.info("message.handed_back", queue=message.queue, event_id=message.event_id)

    def check(self) -> None:
        """Raise what settling a message raised unforeseen: consuming on would leave that message in hand for ever."""
        if self._failure is not None:
            raise self._failure

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._in_hand.pop(task, None)
        if not task.cancelled():
            self._failure = self._failure or task.exception()
        elif not self._ending:
            self._failure = self._failure or RuntimeError("a handler was cancelled, though nobody asked for it")
        if self._failure is not None:
            self.failed.set()
        self.slot_freed.set()

    async def _process(self, delivery: Delivery) -> None:
        message = delivery.message
        started = monotonic()
        outcome, reason, settle = await self._judge(delivery)
        try:
            await self._settle(settle)
        except DeliveryLostError as error:
            outcome, reason = "lost", error.reason
        duration_s = monotonic() - started
        self._metrics.handled(message.queue, outcome, reason, duration_s)
        self._heed_brake(message, outcome, reason)
        log.info(
            "message.settled",
            queue=message.queue,
            event_id=message.event_id,
            outcome=outcome,
            reason=reason,
            attempts=message.attempts,
            duration_s=round(duration_s, 4),
        )

    async def _judge(self, delivery: Delivery) -> tuple[str, Reason | None, Callable[[], Awaitable[None]]]:
        """Run the handler; return the outcome, its reason, and how to settle."""
        message = delivery.message
        retry_after_s: float | None = None
        counted = True
        try:
            await self._subscription.handler(message)
        except PermanentError as error:
            if not self._puts_off(message, error.reason):
                return await self._give_up(delivery, error.reason, error.detail)
            reason, detail = error.reason, error.detail
        except RetryableError as error:
            reason, detail, retry_after_s, counted = error.reason, error.detail, error.retry_after_s, error.counted
            if error.progressed:
                delivery.message = replace(message, attempts=0)
        except Exception as error:
            log.exception("handler.failed", queue=message.queue, event_id=message.event_id)
            reason, detail = Reason.UNEXPECTED, f"a fault of ours: {type(error).__name__}"
        else:
            return "acked", None, delivery.ack
        await self._tell_failure(message, reason, message.attempts + counted)
        if not counted and (lane := self._lane(message, 0.0)) != message.queue:
            log.info("message.forwarded", queue=message.queue, event_id=message.event_id, to=lane, reason=reason)
            return "forwarded", None, lambda: delivery.forward(lane)
        return await self._schedule(delivery, reason, detail, retry_after_s=retry_after_s, counted=counted)

    async def _schedule(
        self, delivery: Delivery, reason: Reason, detail: str, *, retry_after_s: float | None, counted: bool
    ) -> tuple[str, Reason | None, Callable[[], Awaitable[None]]]:
        """Choose when a message that failed is tried again, or give it up."""
        message = delivery.message
        try:
            step = self._subscription.next_step(message, reason)
        except Exception:
            log.exception("message.next_step_failed", queue=message.queue, event_id=message.event_id, reason=reason)
            step = self._own_step(message)
        if step is None:
            return await self._give_up(delivery, reason, detail)
        step = put_off(step, retry_after_s, ladder=self._ladder)
        lane = self._lane(message, step.seconds)
        if not counted:
            log.info("message.put_off", queue=message.queue, event_id=message.event_id, reason=reason, step=step.name)
            return "put_off", None, lambda: delivery.retry(step, None, queue=lane)
        log.warning(
            "message.retry_scheduled",
            queue=message.queue,
            event_id=message.event_id,
            reason=reason,
            detail=detail,
            attempts=message.attempts + 1,
            step=step.name,
        )
        return "retried", reason, lambda: delivery.retry(step, reason, queue=lane)

    async def _tell_failure(self, message: Message, reason: Reason, attempts: int) -> None:
        """Say so to whoever watches failures; what that fails at is heard again at the next one."""
        if self._subscription.on_failure is None:
            return
        try:
            async with asyncio.timeout(_TELLING_TAKES_S):
                await self._subscription.on_failure(message, reason, attempts)
        except Exception:
            log.exception("message.failure_untold", queue=message.queue, event_id=message.event_id, reason=reason)

    async def _give_up(
        self, delivery: Delivery, reason: Reason, detail: str
    ) -> tuple[str, Reason, Callable[[], Awaitable[None]]]:
        """Say so to whoever must know, then park; where that cannot be said now, the message goes round again."""
        message = delivery.message
        try:
            if self._subscription.on_give_up:
                await self._subscription.on_give_up(message, reason, detail)
        except Exception:
            log.exception("message.give_up_failed", queue=message.queue, event_id=message.event_id, reason=reason)
            step = self._own_step(message)
            return "retried", reason, lambda: delivery.retry(step, reason)
        log.error("message.parked", queue=message.queue, event_id=message.event_id, reason=reason, detail=detail)
        return "parked", reason, lambda: delivery.park(reason)

    def _puts_off(self, message: Message, reason: Reason) -> bool:
        """Tell whether what would be parked waits instead, because too much of its host's or vendor's was."""
        group = self._subscription.group(message)
        before = self._groups.engaged()
        put_off = self._groups.puts_off(group, reason, monotonic())
        if self._groups.engaged() > before:
            log.error(
                "group.braked", queue=message.queue, group=group, reason=reason, remedy="docs/operations.md: the brake"
            )
        return put_off

    def _heed_brake(self, message: Message, outcome: str, reason: Reason | None) -> None:
        queue = self._subscription.queue
        if outcome == "acked" and self._groups.succeeded(group := self._subscription.group(message)):
            log.warning("group.released", queue=queue, group=group)
        self._metrics.braked_groups.labels(queue).set(self._groups.engaged())
        if outcome == "parked" and reason is not None and self.brake.parked(reason, monotonic()):
            log.error("consumer.braked", queue=queue, reason=reason, remedy="docs/operations.md: the brake")
        elif outcome == "acked" and self.brake.succeeded():
            log.warning("consumer.released", queue=queue)
        self._metrics.braked.labels(queue).set(self.brake.engaged)

    def _lane(self, message: Message, after_s: float) -> str:
        try:
            return self._subscription.lane(message, after_s)
        except Exception:
            log.exception("message.lane_failed", queue=message.queue, event_id=message.event_id)
            return message.queue

    def _own_step(self, message: Message) -> Step:
        """Choose a delay where the subscription cannot say one."""
        return self._ladder[min(message.attempts, len(self._ladder) - 1)]

    async def _settle(self, settle: Callable[[], Awaitable[None]]) -> None:
        """Settle, however long the broker refuses: until then the message stays unacknowledged, and ours."""
        failures = 0
        while True:
            try:
                await settle()
            except DeliveryLostError:
                raise
            except BrokerError as error:
                delay_s = _SETTLE_AGAIN_AFTER_S[min(failures, len(_SETTLE_AGAIN_AFTER_S) - 1)]
                failures += 1
                self._metrics.settle_failed(self._subscription.queue)
                tell = log.error if error.reason in _FOR_A_PERSON else log.warning
                tell(
                    "message.settle_failed", queue=self._subscription.queue, reason=error.reason, again_after_s=delay_s
                )
                await asyncio.sleep(delay_s)
            else:
                return
