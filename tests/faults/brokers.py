"""What the tests of broken brokers share: load, answers, readiness, consumers, an operator's command line.

Responsible for: doing and reading what a vendor, an administrator or a monitoring system could. It must not judge, nor
import any service.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import aio_pika

from simulator.rabbitmq_node import RabbitNode
from simulator.rabbitmq_server import NodeError
from tests.faults.house import House, wait_for

WORK_QUEUES = frozenset(
    {
        "wavekeep.downloader",
        "wavekeep.downloader.urgent",
        "wavekeep.notifier",
        "wavekeep.notifier.log",
        "wavekeep.notifier.hook",
    }
)
BACK_WITHIN_S = 30.0
"""How long after the broker is there again consumers may take."""

VENDOR_TIMEOUT_MS = 15_000.0

_ASK_TIMEOUT_S = 10.0
_ROOT = Path(__file__).resolve().parents[2]


def node_of(house: House) -> RabbitNode:
    """Return the node that a house has to itself."""
    assert isinstance(house.broker, RabbitNode)
    return house.broker


def begin_load(house: House, *, rate_per_s: float, seconds: float, size_bytes: int = 4_000) -> int:
    """Begin a steady load of two vendors; return how many conversions it makes."""
    return house.simulator.begin(
        {"rate_per_s": rate_per_s, "seconds": seconds, "size_bytes": size_bytes, "vendors": {"kie": 1, "apibox": 1}}
    )


def all_sent(house: House) -> bool:
    """Tell whether the vendor has nothing more to send or to try again."""
    return not house.simulator.pending()["pending"]


def answers(house: House) -> list[dict[str, Any]]:
    """Return every POST of a callback with its answer: `status`, `answered_ms`, `error`."""
    ledger = house.simulator.ledger(digests="no")["conversions"]
    return [callback for conversion in ledger for callback in conversion["callbacks"]]


def slowest_ms(house: House) -> float:
    """Return the longest that a vendor waited for an answer; every POST must have been answered, and with 200."""
    given = answers(house)
    assert [each for each in given if each["status"] != 200] == []
    return max(float(each["answered_ms"]) for each in given)


def readiness(house: House, service: str) -> dict[str, bool]:
    """Return what the readiness of a service rests on, `ready` included: the status of the answer."""
    try:
        with urllib.request.urlopen(f"{house.deployment.ops_urls[service]}/readyz", timeout=_ASK_TIMEOUT_S) as answer:
            return {"ready": True, **json.load(answer)["checks"]}
    except urllib.error.HTTPError as error:
        with error:
            return {"ready": False, **json.load(error)["checks"]}


def metric(house: House, service: str, series: str) -> float:
    """Return a metric of a service, summed over the labels that are not given."""
    with urllib.request.urlopen(f"{house.deployment.ops_urls[service]}/metrics", timeout=_ASK_TIMEOUT_S) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{series} ", f"{series}{{")))


def spooled(house: House) -> int:
    """Return how many callbacks wait in the spool."""
    return int(metric(house, "ingress", "wavekeep_ingress_spool_messages"))


def logged(house: House, event: str, *, level: str) -> list[dict[str, Any]]:
    """Return what was logged under a name, at a level."""
    return [line for line in house.lines() if line.get("event") == event and line.get("level") == level]


def consumed(house: House) -> frozenset[str]:
    """Return the queues that have a consumer, as the broker sees it; none while it does not answer."""
    assert house.broker is not None
    try:
        listed = house.broker.ctl("list_queues", "--no-table-headers", "name", "consumers")
    except NodeError:
        return frozenset()
    rows = (line.rpartition("\t") for line in listed.splitlines())
    return frozenset(name for name, _, count in rows if count.isdigit() and int(count))


def wait_for_consumers(house: House) -> float:
    """Return, in seconds, how long it took until every work queue had a consumer; AssertionError after 30 s."""
    begun = time.monotonic()
    wait_for(lambda: consumed(house) >= WORK_QUEUES, "every queue is consumed again", within_s=BACK_WITHIN_S)
    return time.monotonic() - begun


def publish(house: House, exchange: str, routing_key: str, *bodies: bytes) -> None:
    """Publish as some other program could: without our headers, confirmed."""
    assert house.broker is not None
    asyncio.run(_publish(house.broker.amqp_url, exchange, routing_key, bodies))


def subscribe_to_all(house: House, queue: str, exchange: str) -> None:
    """Bind a queue of somebody else's to everything that an exchange gets."""
    assert house.broker is not None
    asyncio.run(_subscribe(house.broker.amqp_url, queue, exchange))


async def _subscribe(url: str, queue: str, exchange: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        declared = await channel.declare_queue(queue, durable=True)
        await declared.bind(exchange, "#")


async def _publish(url: str, exchange: str, routing_key: str, bodies: tuple[bytes, ...]) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        target = await channel.get_exchange(exchange, ensure=False)
        for body in bodies:
            await target.publish(aio_pika.Message(body, delivery_mode=2), routing_key, mandatory=True)


def operate(house: House, *arguments: str) -> str:
    """Run the operator's command line beside the house; return what it printed."""
    assert house.broker is not None
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env=os.environ
        | {
            "PYTHONPATH": str(_ROOT),
            "WAVEKEEP_BROKER_URL": house.broker.amqp_url,
            "WAVEKEEP_STORAGE_URL": house.files.as_uri(),
            "WAVEKEEP_DATA_DIR": str(house.folder / "cli"),
            "WAVEKEEP_NOTIFY_CONFIG": str(house.folder / "destinations.toml"),
        },
        cwd=house.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
