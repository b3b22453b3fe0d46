"""`wavekeep topology`: exchanges, queues and bindings, with an administrator's rights.

Responsible for: showing, checking and applying the one definition in `shared.messaging.topology`.
"""

import dataclasses
from typing import Any

import click

from cli.output import as_json, print_json, print_table
from cli.session import destinations, finish, settings
from shared.messaging import rabbitmq
from shared.messaging import topology as definition


@click.group()
def topology() -> None:
    """Exchanges, queues and bindings: show, check or apply their definition."""


@topology.command()
@as_json
def show(*, json_output: bool) -> None:
    """Show the definition, the queues of the configured destinations included. Asks no broker."""
    defined = definition.topology(destinations(settings()))
    if json_output:
        print_json(_as_json(defined))
        return
    print_table(
        ("queue", "kind", "taken from"),
        ((q.name, q.kind, _sources(defined, q.name)) for q in defined.queues),
        empty="",
    )


@topology.command()
@as_json
def check(*, json_output: bool) -> None:
    """Look whether the broker has every queue; status 1 where one is missing."""
    url, defined = _rabbitmq()
    missing = sorted(finish(lambda: rabbitmq.find_missing(url, defined)))
    if json_output:
        print_json({"missing": missing})
    else:
        print_table(("missing queue",), ((name,) for name in missing), empty="Every queue is there.")
    if missing:
        raise SystemExit(1)


@topology.command()
@as_json
def apply(*, json_output: bool) -> None:
    """Create what is missing. Idempotent; what is there is never changed or removed."""
    url, defined = _rabbitmq()
    created = sorted(finish(lambda: rabbitmq.apply_topology(url, defined)))
    if json_output:
        print_json({"created": created})
    else:
        print_table(("created queue",), ((name,) for name in created), empty="Every queue was there already.")


def _rabbitmq() -> tuple[str, definition.Topology]:
    found = settings()
    if found.broker_url is None or found.embedded_path is not None:
        raise click.ClickException(
            "The embedded queue declares its topology by itself. Set WAVEKEEP_BROKER_URL to a RabbitMQ (amqp://…)."
        )
    return found.broker_url.get_secret_value(), definition.topology(destinations(found))


def _sources(defined: definition.Topology, queue: str) -> str:
    return ", ".join(f"{b.exchange} {b.pattern}" for b in defined.bindings if b.queue == queue)


def _as_json(defined: definition.Topology) -> dict[str, Any]:
    return {
        "exchanges": [{"name": name, "type": "topic", "durable": True} for name in defined.exchanges],
        "queues": [{"name": q.name, "kind": q.kind, "arguments": dict(q.arguments)} for q in defined.queues],
        "bindings": [dataclasses.asdict(binding) for binding in defined.bindings],
    }
