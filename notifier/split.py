"""Splitting: one event in, one message a destination out.

Responsible for: choosing the destinations of an event, and taking out what nobody outside may see. A crash in the
middle splits again; the deliveries then repeat under the same id. It must not deliver anything.
"""

from collections.abc import Sequence
from datetime import timedelta

import msgspec
import structlog

from notifier.settings import Destination
from shared import events
from shared.clock import Clock
from shared.errors import PermanentError, Reason
from shared.events import ReportFailed, ReportSucceeded, ReportUnrecognised
from shared.messaging.port import Message, Publisher
from shared.messaging.topology import NOTIFIER, destination_queue, private_exchange
from shared.retry import Step, choose_step

KEEP_TRYING_FOR = timedelta(days=15)


class Splitter:
    """Hands each event on to the queues of the destinations that want it."""

    def __init__(self, destinations: Sequence[Destination], publisher: Publisher, *, clock: Clock) -> None:
        self._destinations = destinations
        self._publisher = publisher
        self._clock = clock

    async def handle(self, message: Message) -> None:
        """Publish the event once for each destination; return when all are durable.

        Raises:
            BrokerError: one of them may not be.
            PermanentError: it is no event of ours, or none that anybody outside may see.
        """
        event = events.decode(message.body)
        structlog.contextvars.bind_contextvars(subject=event.subject, traceparent=event.traceparent)
        if isinstance(event.data, ReportSucceeded | ReportFailed):
            raise PermanentError(Reason.MESSAGE_UNKNOWN, "raw reports hold keys to files and are never told")
        body = message.body
        if isinstance(event.data, ReportUnrecognised):
            body = events.encode(msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, body=None)))
        for destination in self._destinations:
            if destination.wants(event.routing_key):
                await self._publisher.publish(
                    private_exchange(NOTIFIER), destination_queue(destination.name), body, event_id=event.id
                )

    def next_step(self, message: Message, reason: Reason) -> Step | None:
        """Return how long to wait for the broker to take the copies."""
        end = message.first_seen + KEEP_TRYING_FOR
        return choose_step(message.attempts + 1, now=self._clock(), end=end, reason=reason)
