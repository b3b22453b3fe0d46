"""A publisher that remembers, for tests of what publishes.

Responsible for: the publishing half of the messaging port, without a broker. It must not judge what it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from shared import events


@dataclass(frozen=True, slots=True)
class Published:
    """One message as it was handed over."""

    exchange: str
    routing_key: str
    body: bytes
    event_id: str

    @property
    def event(self) -> events.Event:
        """The event in it."""
        return events.decode(self.body)


@dataclass
class RecordingPublisher:
    """Confirms every message, or fails as it is told.

    Attributes:
        error: raised instead of a confirmation.
        confirming: called when a message is confirmed.
    """

    published: list[Published] = field(default_factory=list)
    error: Exception | None = None
    confirming: Callable[[], None] = lambda: None

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """Keep the message."""
        if self.error is not None:
            raise self.error
        self.published.append(Published(exchange, routing_key, body, event_id))
        self.confirming()
