"""The topology: names, arguments and patterns are what the documentation says and what RabbitMQ's traps ask for."""

import re
from pathlib import Path

import pytest

from shared.events import EVENTS_EXCHANGE, INTAKE_EXCHANGE
from shared.messaging.topology import (
    CRASH_LOOP_LIMIT,
    DOWNLOADER,
    LOOKED_AT_FOREVER,
    NOTIFIER,
    UNRECOGNISED,
    URGENT,
    Topology,
    delay_key,
    destination_queue,
    matches,
    parked_queue,
    private_exchange,
    service_of,
    topology,
)
from shared.retry import LADDER, Step

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rabbitmq.md").read_text()
DESTINATION = "<destination>"


def rows_between(start: str, end: str) -> list[str]:
    """Return the rows of the table on the page between two marks, without its head."""
    block = PAGE.split(f"<!-- {start} -->")[1].split(f"<!-- {end} -->")[0]
    return [line for line in block.strip().splitlines() if line.startswith("|")][2:]


def queue_rows(described: Topology) -> list[str]:
    """Return the rows that describe the queues; the rungs of a ladder are one row."""
    rows = []
    for queue in described.queues:
        name, arguments = queue.name, dict(queue.arguments)
        if queue.step is not None:
            name = name.replace(queue.step.name, "<step>")
            assert arguments["x-message-ttl"] == queue.step.seconds * 1_000
            arguments["x-message-ttl"] = "<step in ms>"
        told = ", ".join(f"`{key}: {value}`" for key, value in sorted(arguments.items()))
        rows.append(f"| `{name}` | {queue.kind} | {told} |")
    return list(dict.fromkeys(rows))


def test_the_page_shows_every_queue_with_its_arguments() -> None:
    """The table of queues is the topology: an administrator may create them by it."""
    assert rows_between("queues", "/queues") == queue_rows(topology([DESTINATION]))


def test_the_page_shows_every_binding() -> None:
    """The table of exchanges is the topology too; the rungs of a ladder are one row."""
    described = topology([DESTINATION], ladder=[Step("<step>", 1)])
    rows = [f"| `{b.exchange}` | `{b.pattern}` | `{b.queue}` |" for b in described.bindings]
    assert rows_between("bindings", "/bindings") == rows


def test_the_page_shows_the_ladder() -> None:
    """The steps that stand in queue names are told."""
    assert ", ".join(f"`{step.name}`" for step in LADDER) in PAGE


def test_every_trap_is_covered_by_tests_that_exist() -> None:
    """The table of traps has a row for each of the 19, and what it names can be found."""
    files = dict(re.findall(r"`(\w+)`\s+is\s+`(tests/[\w/]+\.py)`", PAGE))
    assert {"traps", "crashes", "contract", "kept", "topology"} == set(files)
    named = re.findall(r"`(\w+)::(\w+)`", PAGE)
    assert len(named) > 19
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / files[file]).read_text(), re.MULTILINE), test
    assert re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE) == [str(number) for number in range(1, 20)]


@pytest.mark.parametrize(
    ("pattern", "key", "taken"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.b.c", "a.b", False),
        ("*", "a", True),
        ("*", "a.b", False),
        ("*", "", True),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.c", False),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("a.#", "b.a", False),
        ("#.c", "a.b.c", True),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.#.c", "a.b.d", False),
        ("a.#.*", "a", False),
        ("A", "a", False),
    ],
)
def test_patterns_are_matched_as_the_broker_does(pattern: str, key: str, *, taken: bool) -> None:
    """`*` is one word, `#` is any number, and the rest is literal."""
    assert matches(pattern, key) is taken


@pytest.mark.parametrize(
    ("exchange", "key", "queues"),
    [
        (INTAKE_EXCHANGE, "report.succeeded", (DOWNLOADER,)),
        (INTAKE_EXCHANGE, "report.failed", (DOWNLOADER,)),
        (INTAKE_EXCHANGE, "report.linkless", (DOWNLOADER,)),
        (INTAKE_EXCHANGE, "report.unrecognised", (UNRECOGNISED, NOTIFIER)),
        (INTAKE_EXCHANGE, "conversion.stored", ()),
        (EVENTS_EXCHANGE, "conversion.stored", (NOTIFIER,)),
        (EVENTS_EXCHANGE, "file.damaged", (NOTIFIER,)),
        (EVENTS_EXCHANGE, "report.failed", ()),
        ("nowhere", "conversion.stored", ()),
        (private_exchange(DOWNLOADER), DOWNLOADER, (DOWNLOADER,)),
        (private_exchange(DOWNLOADER), URGENT, (URGENT,)),
        (private_exchange(DOWNLOADER), delay_key(LADDER[1], URGENT), (f"{DOWNLOADER}.delay.30s",)),
        (private_exchange(NOTIFIER), destination_queue("chat"), (destination_queue("chat"),)),
        (private_exchange(NOTIFIER), parked_queue(NOTIFIER), (parked_queue(NOTIFIER),)),
        (private_exchange(NOTIFIER), delay_key(LADDER[1], NOTIFIER), (f"{NOTIFIER}.delay.30s",)),
        (private_exchange(NOTIFIER), delay_key(LADDER[0], destination_queue("chat")), (f"{NOTIFIER}.delay.5s",)),
    ],
)
def test_each_message_has_the_queues_that_must_take_it(exchange: str, key: str, queues: tuple[str, ...]) -> None:
    """What must take a message is known before it is published."""
    assert topology(["chat", "systems"]).required(exchange, key) == queues


@pytest.mark.parametrize(
    "queue", [DOWNLOADER, URGENT, NOTIFIER, destination_queue("chat"), destination_queue("systems")]
)
@pytest.mark.parametrize("step", LADDER, ids=lambda step: step.name)
def test_what_has_waited_returns_to_its_own_queue_alone(queue: str, step: Step) -> None:
    """A dead-lettered message keeps its routing key, by which the return exchange knows whose it is."""
    described = topology(["chat", "systems"])
    service = service_of(queue)
    (waiting,) = described.required(private_exchange(service), delay_key(step, queue))
    back = described.queue(waiting).arguments["x-dead-letter-exchange"]
    assert isinstance(back, str)
    assert described.required(back, delay_key(step, queue)) == (queue,)


def test_every_queue_is_safe_from_the_traps() -> None:
    """Quorum, refusing when full; limits told outright; dead letters at least once, to a queue that is there."""
    described = topology(["chat"])
    for queue in described.queues:
        arguments = queue.arguments
        assert arguments["x-queue-type"] == "quorum"
        assert arguments["x-overflow"] == "reject-publish"
        assert arguments["x-delivery-limit"] == (CRASH_LOOP_LIMIT if queue.kind == "work" else LOOKED_AT_FOREVER)
        assert ("x-dead-letter-exchange" in arguments) is (queue.kind != "kept")
        assert ("x-message-ttl" in arguments) is (queue.kind == "delay")
        if queue.kind == "kept":
            continue
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        if queue.kind == "work":
            exchange, key = arguments["x-dead-letter-exchange"], arguments["x-dead-letter-routing-key"]
            assert described.required(str(exchange), str(key)) == (parked_queue(service_of(queue.name)),)


def test_names_are_unique_and_everything_bound_exists() -> None:
    """No queue is defined twice, and no binding leads nowhere."""
    described = topology(["chat", "systems"])
    names = [queue.name for queue in described.queues]
    assert len(names) == len(set(names))
    assert {binding.queue for binding in described.bindings} == set(names)
    assert {binding.exchange for binding in described.bindings} == set(described.exchanges)
    with pytest.raises(KeyError):
        described.queue("wavekeep.nothing")


def test_lanes_and_destinations_belong_to_their_service() -> None:
    """The service of a queue is its first two words."""
    assert service_of(DOWNLOADER) == service_of(URGENT) == DOWNLOADER
    assert service_of(destination_queue("chat")) == NOTIFIER
