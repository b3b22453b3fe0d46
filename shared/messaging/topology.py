"""The one definition of exchanges, queues and bindings, for every broker.

Responsible for: names and arguments. Neither can be changed later without new names (a redeclaration with other
arguments is refused by RabbitMQ with 406), so what may change (lengths, ages) is left to policies. It must not talk
to a broker.

For each service: a work queue `wavekeep.<service>`, and others named after it (the downloader's urgent lane, the
notifier's destinations); an exchange `wavekeep.<service>.private` for its delay queues, its parked queue and those
others; an exchange `wavekeep.<service>.return`, by which what has waited comes back to the queue that its key names
(`docs/adr/0004-return-exchange.md`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from shared.events import EVENTS_EXCHANGE, INTAKE_EXCHANGE
from shared.retry import LADDER, Step

DOWNLOADER = "wavekeep.downloader"
URGENT = f"{DOWNLOADER}.urgent"
NOTIFIER = "wavekeep.notifier"
UNRECOGNISED = "wavekeep.unrecognised"

LOOKED_AT_FOREVER = 2_147_483_647
"""A delivery limit that looking never reaches. Never -1: RabbitMQ 3.10 then drops a message at its first return."""

CRASH_LOOP_LIMIT = 20
"""Deliveries after which the broker itself parks a message: its handler keeps killing the process."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue and its arguments, as RabbitMQ takes them.

    Attributes:
        kind: `work` (consumed), `delay` (waits, then returns), `kept` (parked or unrecognised: looked at, never aged).
        step: of a delay queue.
    """

    name: str
    kind: str
    arguments: MappingProxyType[str, str | int] = field(hash=False)
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """A topic binding: `*` is one word, `#` any number of words."""

    exchange: str
    pattern: str
    queue: str


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that is declared. Exchanges are durable topic exchanges without an alternate."""

    exchanges: tuple[str, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]

    def queue(self, name: str) -> Queue:
        """Return the queue of this name; KeyError where there is none."""
        for queue in self.queues:
            if queue.name == name:
                return queue
        raise KeyError(name)

    def required(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        """Return the queues that must take a message, by name. Empty means it is not routable."""
        return tuple(
            dict.fromkeys(b.queue for b in self.bindings if b.exchange == exchange and matches(b.pattern, routing_key))
        )


def matches(pattern: str, routing_key: str) -> bool:
    """Tell whether a topic pattern takes a routing key (source: AMQP 0-9-1, section 3.1.3.3)."""
    return _match(pattern.split("."), routing_key.split("."))


def _match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(_match(rest, words[i:]) for i in range(len(words) + 1))
    return bool(words) and head in {"*", words[0]} and _match(rest, words[1:])


def private_exchange(service: str) -> str:
    """Return the exchange by which a service reaches its own delay, parked and destination queues."""
    return f"{service}.private"


def parked_queue(service: str) -> str:
    """Return the queue that holds what a service gave up."""
    return f"{service}.parked"


def delay_key(step: Step, queue: str) -> str:
    """Return the routing key under which a message waits for a step before it returns to its queue."""
    return f"delay.{step.name}.{queue}"


def service_of(queue: str) -> str:
    """Return the service a work queue belongs to: the first two words, whether a lane's or a destination's follow."""
    return ".".join(queue.split(".")[:2])


def destination_queue(destination: str) -> str:
    """Return the notifier's queue for one destination."""
    return f"{NOTIFIER}.{destination}"


def _quorum(name: str, kind: str, step: Step | None = None, **arguments: str | int) -> Queue:
    base: dict[str, str | int] = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
    named = {key.replace("_", "-"): value for key, value in arguments.items()}
    return Queue(name, kind, MappingProxyType(base | named), step)


def _work(name: str) -> Queue:
    return _quorum(
        name,
        "work",
        x_delivery_limit=CRASH_LOOP_LIMIT,
        x_dead_letter_exchange=private_exchange(service_of(name)),
        x_dead_letter_routing_key=parked_queue(service_of(name)),
        x_dead_letter_strategy="at-least-once",
    )


def kept_queue(name: str) -> Queue:
    """Define a queue that is looked at and never consumed: nothing leaves it by time or by looking."""
    return _quorum(name, "kept", x_delivery_limit=LOOKED_AT_FOREVER)


def _service(name: str, ladder: Sequence[Step], others: Sequence[str] = ()) -> Topology:
    private, back = private_exchange(name), f"{name}.return"
    work = [_work(name), *map(_work, others)]
    delays = [
        _quorum(
            f"{name}.delay.{step.name}",
            "delay",
            step,
            x_message_ttl=int(step.seconds * 1_000),
            x_dead_letter_exchange=back,
            x_dead_letter_strategy="at-least-once",
            x_delivery_limit=LOOKED_AT_FOREVER,
        )
        for step in ladder
    ]
    return Topology(
        exchanges=(private, back),
        queues=(*work, *delays, kept_queue(parked_queue(name))),
        bindings=(
            *(Binding(private, queue.name, queue.name) for queue in work),
            *(Binding(back, f"delay.*.{queue.name}", queue.name) for queue in work),
            *(Binding(private, f"delay.{step.name}.#", f"{name}.delay.{step.name}") for step in ladder),
            Binding(private, parked_queue(name), parked_queue(name)),
        ),
    )


def topology(destinations: Sequence[str] = (), *, ladder: Sequence[Step] = LADDER) -> Topology:
    """Build the whole topology, with a queue for each of the notifier's destinations."""
    downloader = _service(DOWNLOADER, ladder, [URGENT])
    notifier = _service(NOTIFIER, ladder, [destination_queue(each) for each in destinations])
    return Topology(
        exchanges=(INTAKE_EXCHANGE, EVENTS_EXCHANGE, *downloader.exchanges, *notifier.exchanges),
        queues=(*downloader.queues, *notifier.queues, kept_queue(UNRECOGNISED)),
        bindings=(
            Binding(INTAKE_EXCHANGE, "report.succeeded", DOWNLOADER),
            Binding(INTAKE_EXCHANGE, "report.failed", DOWNLOADER),
            Binding(INTAKE_EXCHANGE, "report.linkless", DOWNLOADER),
            Binding(INTAKE_EXCHANGE, "report.unrecognised", UNRECOGNISED),
            Binding(INTAKE_EXCHANGE, "report.unrecognised", NOTIFIER),
            Binding(EVENTS_EXCHANGE, "conversion.#", NOTIFIER),
            Binding(EVENTS_EXCHANGE, "file.#", NOTIFIER),
            *downloader.bindings,
            *notifier.bindings,
        ),
    )
