"""Delivering: one message of one destination's queue, once more.

Responsible for: the attempt, its measure, and when to stop trying. How the destination is reached is the channel's.
"""

from datetime import datetime, timedelta
from time import monotonic

import structlog

from notifier.channels import Channel
from notifier.metrics import NotifierMetrics
from shared import events
from shared.clock import Clock
from shared.errors import PermanentError, Reason, RetryableError
from shared.messaging.port import Message
from shared.retry import Step, choose_step

log = structlog.get_logger()


class Delivery:
    """Delivers to one destination.

    Args:
        give_up_after: since the first failure.
    """

    def __init__(
        self, name: str, channel: Channel, *, metrics: NotifierMetrics, give_up_after: timedelta, clock: Clock
    ) -> None:
        self._name = name
        self._channel = channel
        self._metrics = metrics
        self._give_up_after = give_up_after
        self._clock = clock
        self._failing_since: datetime | None = None

    async def handle(self, message: Message) -> None:
        """Deliver; raises as the channel classified it."""
        event = events.decode(message.body)
        started, outcome = monotonic(), "delivered"
        structlog.contextvars.bind_contextvars(subject=event.subject, traceparent=event.traceparent)
        try:
            await self._channel.deliver(event)
        except RetryableError:
            outcome = "retryable"
            self._note(min(self._failing_since or message.first_seen, message.first_seen))
            raise
        except PermanentError:
            outcome = "permanent"
            raise
        else:
            self._note(None)
        finally:
            self._metrics.deliveries.labels(self._name, outcome).inc()
            self._metrics.seconds.labels(self._name).observe(monotonic() - started)

    def next_step(self, message: Message, reason: Reason) -> Step | None:
        """Return how long to wait after one more failure; None once it took too long."""
        end = message.first_seen + self._give_up_after
        return choose_step(message.attempts + 1, now=self._clock(), end=end, reason=reason)

    async def give_up(self, message: Message, reason: Reason, detail: str) -> None:
        """Say in the log and the metrics that this destination will not hear of it."""
        self._metrics.given_up.labels(self._name).inc()
        if self._failing_since == message.first_seen:  # it waits no more; what still does is noted when it fails again
            self._note(None)
        log.error("delivery.given_up", destination=self._name, event_id=message.event_id, reason=reason, detail=detail)

    def _note(self, failing_since: datetime | None) -> None:
        """Note since when this destination takes nothing; None when it takes."""
        self._failing_since = failing_since
        self._metrics.failing_since.labels(self._name).set(failing_since.timestamp() if failing_since else 0)
