"""The messaging port: what every broker promises, whichever it is.

Responsible for: the contract that `rabbitmq` and `embedded` both keep and one suite (`tests/contract`) checks. It must
not know how either does it.

Promised: `publish` returns only when every queue bound to the routing key holds the message durably, and raises
otherwise, also when a queue that the topology requires is missing. A message is handed over at least once; it is
settled after the handler, never before. What a handler refuses for good is parked with its reason and kept until a
person decides. Not promised: order. Messages of one queue are handed over about in the order in which they came in,
but retries, several handlers at once and redelivery after a crash change it; a handler must not rely on it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import msgspec

from shared.errors import Reason
from shared.retry import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a handler is given.

    Attributes:
        body: the event as it was published.
        event_id: the CloudEvents id, for logs; empty where a foreign publisher set none.
        queue: the work queue it was taken from.
        attempts: how many attempts have failed so far.
        first_seen: when it was first handed over and failed, or now; aware.
        last_reason: of the latest failed attempt.
        redelivered: the broker may have handed it over before.
        second_chance: it was parked by the delivery limit once, and sent back by itself.
    """

    body: bytes
    event_id: str
    queue: str
    attempts: int
    first_seen: datetime
    last_reason: Reason | None = None
    redelivered: bool = False
    second_chance: bool = False


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A message out of circulation: parked, or unrecognised.

    Attributes:
        id: names this one message; not the event's id, which copies share.
        queue: the work queue it was taken from, where replay sends it back to; empty for what never was in one.
        reason: why it was parked; None in the queue of unrecognised callbacks.
        parked_at: None where the broker parked it by its delivery limit, and does not say when.
        second_chance: as of a message.
    """

    id: str
    event_id: str
    queue: str
    reason: Reason | None
    attempts: int
    first_seen: datetime | None
    parked_at: datetime | None
    body: bytes
    second_chance: bool = False


Handler = Callable[[Message], Awaitable[None]]
Lane = Callable[[Message, float], str]
Progress = Callable[[int], None]


def unseen(_: int) -> None:
    """Watch no progress."""


def own_queue(message: Message, _: float) -> str:
    """Keep a message in its queue."""
    return message.queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What a service wants from one queue.

    Attributes:
        queue: a work queue of the topology.
        handler: returns when the message's effect is durable; raises `RetryableError` to get it again by the ladder,
            `PermanentError` to have it parked. Anything else it raises is a fault of ours and is retried. What it
            refuses uncounted (`RetryableError.counted`) goes to its lane at once where that is another queue, and else
            is put off by the step, with no failure more.
        concurrency: how many messages are in hand at once at most, which is the prefetch too.
        next_step: the delay after the failure numbered `message.attempts + 1`, for this reason; None to give up.
        on_failure: called after each failure that another try may mend, whatever its reason, a fault of ours too,
            with how often the message has failed by then; what it raises is logged.
        on_give_up: called before a message is parked; when it raises, the message is retried instead.
        group: names the host or vendor that a message depends on: where one parks too much, that one alone is slowed.
        lane: names the work queue, of the same service, that a message belongs in when it is looked at again so many
            seconds from now: there it returns from its delay.
    """

    queue: str
    handler: Handler
    concurrency: int
    next_step: Callable[[Message, Reason], Step | None]
    on_failure: Callable[[Message, Reason, int], Awaitable[None]] | None = None
    on_give_up: Callable[[Message, Reason, str], Awaitable[None]] | None = None
    group: Callable[[Message], str] = lambda message: message.queue
    lane: Lane = own_queue


class Delivery(Protocol):
    """One message in hand, with the ways to settle it. Each raises `BrokerError` when it could not be settled."""

    message: Message

    async def ack(self) -> None:
        """Forget the message: its effect is durable."""

    async def retry(self, step: Step, reason: Reason | None, *, queue: str | None = None) -> None:
        """Hand it out again after the step; with a reason, count the attempt as failed.

        It returns to its own queue, or to the one given, of the same service.
        """

    async def forward(self, queue: str) -> None:
        """Move it, uncounted, to the end of another work queue of its service. A crash leaves a copy, never a loss."""

    async def park(self, reason: Reason) -> None:
        """Move it to the parked queue of its service."""


class Publisher(Protocol):
    """The publishing half."""

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """Publish one message; return when it is durable in every queue it belongs in.

        Safe to cancel: the outcome is then unknown, as after a time-out.

        Raises:
            NotRoutableError: a queue that must take it is missing.
            BrokerError: not confirmed in time, or refused; the message may be there all the same.
        """


class Broker(Publisher, Protocol):
    """A broker, from start to close."""

    async def start(self) -> None:
        """Connect, and declare the topology or wait until it is there. Retried within bounds, then raises."""

    async def close(self) -> None:
        """Let go of everything. What is unsettled is handed out again, later or by another process."""

    async def watch(self) -> None:
        """Raise when something of the broker's own has failed for good; else wait until cancelled."""

    async def consume(self, subscription: Subscription, *, stop: "StopSignal") -> None:
        """Hand messages to the handler until told to stop; then finish, or hand back, what is in hand.

        Survives a broken connection. Raises when consuming is impossible for good: the process should end.
        """

    def consuming(self, queue: str) -> bool:
        """Tell whether messages of this queue reach us now."""

    def publishing(self) -> bool:
        """Tell whether a publish could be confirmed now."""

    def kept(self, queue: str, *, limit: int = 1_000) -> AsyncIterator[Kept]:
        """Look at the messages of a parked or unrecognised queue, about oldest first. Nothing is moved."""

    async def take(self, queue: str, ids: Iterable[str], action: Callable[[Kept], Awaitable[None]]) -> int:
        """Remove the messages named by id, each after the action returned for it; return how many.

        The queue is gone through once, however many they are, and several actions run at once. Where one raises, its
        message stays, those begun beside it are finished, and the error is raised.
        """

    async def replay(
        self, queue: str, ids: Iterable[str], *, progress: Progress = unseen, second_chance: bool = False
    ) -> int:
        """Send parked messages back to the work queues they came from, as if new; return how many.

        What came from no work queue stays. The queue is gone through once; `progress` is told how many more were sent.
        With `second_chance` the messages say from then on that they had one.
        """


class StopSignal(Protocol):
    """What `consume` watches: an `asyncio.Event` does."""

    def is_set(self) -> bool:
        """Tell whether to stop."""

    async def wait(self) -> object:
        """Return when it is time to stop."""
