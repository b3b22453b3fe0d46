"""Another process over the same place, to be killed.

`python -m tests.contract.worker RECIPE publish EXCHANGE KEY BODY` publishes and prints `published`;
`… RECIPE take QUEUE` consumes and prints `taken BODY` for each message, which it never settles;
`… RECIPE forward QUEUE OTHER` consumes, forwards, and prints `forwarded` before it answers for what it moved;
`… RECIPE hold` starts a broker and prints `holding`. Each then stays until it is killed.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import structlog

from shared.errors import BusyError, Reason
from shared.messaging.port import Broker, Message
from tests.contract.brokers import EmbeddedDriver, RabbitDriver, prefix_of, renamed, subscription


def build(recipe: dict[str, str]) -> Broker:
    """Build the broker that a driver of another process described."""
    place = recipe["place"]
    driver: Any = EmbeddedDriver(Path(place)) if recipe["kind"] == "embedded" else RabbitDriver(place)
    driver.topology = renamed(driver.topology, recipe["prefix"], old=prefix_of(driver.topology))
    broker: Broker = driver.broker()
    return broker


def say(words: str) -> None:
    """Tell the parent, at once."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


async def take(message: Message) -> None:
    """Take a message in hand and never let go."""
    say(f"taken {message.body.decode()}")
    await asyncio.Event().wait()


async def refuse(_: Message) -> None:
    """Have no place for a message."""
    raise BusyError(Reason.HOST_BUSY, "full")


def hang_after_forwarding(broker: Any) -> None:
    """Have a broker go no further once a forwarded message is safe where it was moved to."""
    forward = broker.forward

    async def forward_and_hang(*given: object) -> None:
        await forward(*given)
        say("forwarded")
        await asyncio.Event().wait()

    broker.forward = forward_and_hang


async def main(recipe: str, action: str, *words: str) -> None:
    """Do what the command line says, then stay."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # our words go to standard output
    broker = build(json.loads(recipe))
    await broker.start()
    if action == "publish":
        exchange, key, body = words
        await broker.publish(exchange, key, body.encode(), event_id="event")
        say("published")
    elif action == "take":
        await broker.consume(subscription(words[0], take, concurrency=4), stop=asyncio.Event())
    elif action == "forward":
        queue, other = words
        hang_after_forwarding(broker)
        await broker.consume(subscription(queue, refuse, lane=lambda *_: other), stop=asyncio.Event())
    else:
        say("holding")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
