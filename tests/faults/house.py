"""A house that tests may break: real processes, a vendor, two destinations and a broker of its own.

Responsible for: starting and ending it, replicas of its services, and reading what anybody could read of it: files,
deliveries, logs, queues. It must not judge (`tests.faults.core` does), and must not import any service: what it knows
of them is what an operator knows.
"""

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, Self, TypeVar

import aio_pika
import pytest

from simulator.deployment import START_TIMEOUT_S, Deployment
from simulator.processes import Process
from simulator.rabbitmq_node import RabbitNode, private_node
from simulator.rabbitmq_server import GIVEN_URL

T = TypeVar("T")
Mode = Literal["embedded", "rabbitmq"]

WAIT_S = 60.0
DESTINATIONS = ("log", "hook")

_POLL_S = 0.1
_NONE: Mapping[str, str] = MappingProxyType({})
_DEFAULT_NODE: Mapping[str, int] = MappingProxyType({})
_DESTINATIONS = """
[[destination]]
name = "log"
type = "log"
concurrency = 16

[[destination]]
name = "hook"
type = "webhook"
url = "{receivers}/hook"
concurrency = 16
"""


class Broker(Protocol):
    """What a house needs of its broker; a `RabbitNode` is one."""

    amqp_url: str

    def ctl(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """Run `rabbitmqctl`."""


def wait_for(find: Callable[[], T | None], what: str, *, within_s: float = WAIT_S) -> T:
    """Ask until there is an answer, and return it; AssertionError once time is up."""
    deadline = time.monotonic() + within_s
    while not (found := find()):
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(_POLL_S)
    return found


class House:
    """One deployment, its vendor and its replicas: `with House(...) as house:`.

    Args:
        folder: takes everything it writes.
        broker: of this house alone; None for all in one process, embedded.
        broker_url: by which the services reach the broker, where that is not its own address: a proxy before it.
        settings, simulator: more of them, by their full names.
        destinations: TOML of further destinations.

    Attributes:
        deployment, simulator, files: as of the deployment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        broker: Broker | None = None,
        broker_url: str | None = None,
        settings: Mapping[str, str] = _NONE,
        simulator: Mapping[str, str] = _NONE,
        destinations: str = "",
    ) -> None:
        self.folder = folder
        self.broker = broker
        self._broker_url = broker_url or (broker.amqp_url if broker else None)
        self._settings = {"WAVEKEEP_DOWNLOAD_CONCURRENCY": "8"} | dict(settings)
        self._twins: list[Process] = []
        self.deployment = Deployment(
            folder,
            broker_url=self._broker_url,
            destinations=lambda receivers: _DESTINATIONS.format(receivers=receivers) + destinations,
            settings=self._settings,
            simulator={"SIMULATOR_RETRY_SCALE": "0.05", "SIMULATOR_SEED": "1"} | dict(simulator),
        )
        self.simulator = self.deployment.simulator
        self.files = self.deployment.files

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # its processes

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of a service, replicas included; the simulator is not among them."""
        return (*self.deployment.services.values(), *self._twins)

    def process(self, service: str) -> Process:
        """Return the process a service runs in: its own, or the one of all."""
        services = self.deployment.services
        return services.get(service) or services["standalone"]

    def twin(self, service: str, *, broker_url: str | None = None, **settings: str) -> tuple[Process, Deployment]:
        """Build a replica of a service, not yet started: own data folder and ports, everything else shared.

        Args:
            broker_url: where the replica reaches the broker by another way.
            settings: more of them, by their full names.

        Returns:
            The process, and the deployment that knows its addresses (`ingress_url`, `ops_urls`).
        """
        tokens = {f"WAVEKEEP_{name.upper()}_CALLBACK_TOKENS": each for name, each in self.deployment.tokens.items()}
        receivers = self.simulator.base_url.removeprefix("http://")
        shared = {
            **tokens,
            "WAVEKEEP_STORAGE_URL": self.files.as_uri(),
            "WAVEKEEP_NOTIFY_CONFIG": str(self.folder / "destinations.toml"),
            "WAVEKEEP_DOWNLOAD_ALLOW_ADDRESSES": receivers,
        }
        twin = Deployment(
            self.folder / f"twin-{len(self._twins)}",
            broker_url=broker_url or self._broker_url,
            destinations=lambda _: "",
            settings=shared | self._settings | settings,
        )
        process = twin.services[service]
        self._twins.append(process)
        return process, twin

    def start(self) -> None:
        """Start whatever does not run, replicas included; return when all of it is ready."""
        for process in self._twins:
            if not process.running:
                process.start()
        self.deployment.start()
        for process in self._twins:
            wait_for(process.ready, f"{process.name} is ready", within_s=START_TIMEOUT_S)

    def restart(self, *services: str) -> None:
        """Kill services and start them again; return when all are ready."""
        for service in services:
            self.process(service).kill()
        self.start()

    def stop(self) -> None:
        """End everything. Idempotent."""
        for process in self._twins:
            process.terminate()
        self.deployment.stop()
        for process in self._twins:
            process.stop()

    # what a vendor does

    def convert(self, *plans: Mapping[str, Any]) -> list[str]:
        """Make conversions and call them back; return their task ids. Of kie where a plan does not say."""
        made = self.simulator.convert([{"vendor": "kie", **plan} for plan in plans or ({},)])
        return [str(each["task_id"]) for each in made]

    def entry(self, task_id: str) -> dict[str, Any]:
        """Return what the simulator's ledger says of a task, without digests."""
        (entry,) = self.simulator.ledger(task_id=task_id, vendor="kie", digests="no")["conversions"] or [{}]
        return dict(entry)

    def acknowledged(self) -> int:
        """Return how many conversions were acknowledged so far."""
        return sum(each["acknowledged"] for each in self.simulator.ledger(digests="no")["conversions"])

    # what anybody sees

    def kept(self, pattern: str) -> list[Path]:
        """Return the files of the storage whose names match."""
        return sorted(path for path in self.files.rglob(pattern) if ".tmp" not in path.parts)

    def temporaries(self) -> list[Path]:
        """Return the files that attempts are written to, and those of the storage itself."""
        folders = [*self.folder.rglob("staging"), self.files / ".tmp"]
        return [path for folder in folders if folder.is_dir() for path in folder.iterdir()]

    def told(self, destination: str) -> list[dict[str, Any]]:
        """Return what a destination was told, repetitions included: `id`, `type`, `subject`; of a webhook the event.

        A webhook's are all that came in, whatever was answered.
        """
        if destination == "log":
            return [
                {"id": line["event_id"], "type": line["type"], "subject": line["subject"]}
                for line in self.lines()
                if line.get("event") == "event.told" and line.get("destination") == "log"
            ]
        events = []
        for delivery in self.simulator.webhooks(destination):
            event: dict[str, Any] = json.loads(delivery["body"])
            events.append(event | {"webhook_id": delivery["webhook_id"], "status": delivery["status"]})
        return events

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield every line that the services logged, of all their lives; what is no JSON object is left out."""
        for log in sorted(self.folder.rglob("logs/*.log")):
            for text in log.read_text("utf-8", "replace").splitlines():
                if text.startswith("{") and text.endswith("}"):
                    try:
                        yield json.loads(text)
                    except ValueError:
                        continue

    def depths(self) -> dict[str, int]:
        """Return how many messages each queue holds, in hand or not; of a quorum queue up to a second late."""
        found: dict[str, int] = {}
        for path in (*self.folder.rglob("queue.sqlite3"), *self.folder.rglob("spool.sqlite3")):
            with closing(sqlite3.connect(path, timeout=30)) as db:
                found |= dict(db.execute("SELECT queue, count(*) FROM message GROUP BY queue"))
        if self.broker is not None:
            for line in self.broker.ctl("list_queues", "--no-table-headers", "name", "messages").splitlines():
                name, _, count = line.partition("\t")
                found[name] = int(count)
        return {name: count for name, count in found.items() if count}

    def ready(self, queues: list[str]) -> dict[str, int]:
        """Return how many messages wait in queues of RabbitMQ, by passive declare: exact, without those in hand."""
        if self.broker is None:
            return {}
        return {name: n for name, n in asyncio.run(_ready(self.broker.amqp_url, queues)).items() if n}

    def bodies(self, queue: str) -> list[bytes]:
        """Return the bodies a queue holds, and leave them there."""
        if self.broker is not None:
            return asyncio.run(_bodies(self.broker.amqp_url, queue))
        with closing(sqlite3.connect(self.folder / "standalone" / "queue.sqlite3", timeout=30)) as db:
            return [bytes(row[0]) for row in db.execute("SELECT body FROM message WHERE queue = ?", (queue,))]


def own_node(settings: Mapping[str, int] = _DEFAULT_NODE) -> RabbitNode:
    """Return a node that tells its depths soon, not yet started; skip where the only broker is somebody else's."""
    if GIVEN_URL in os.environ:
        pytest.skip(f"the broker of {GIVEN_URL} is somebody else's and must not be broken")
    return private_node(settings={"quorum_tick_interval": 1_000, **settings})


async def _ready(broker_url: str, queues: list[str]) -> dict[str, int]:
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        declared = {name: await channel.declare_queue(name, passive=True) for name in queues}
        return {name: queue.declaration_result.message_count or 0 for name, queue in declared.items()}


async def _bodies(broker_url: str, queue: str) -> list[bytes]:
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        declared = await channel.declare_queue(queue, passive=True)
        found: list[bytes] = []
        while (message := await declared.get(fail=False)) is not None:
            found.append(message.body)
        return found  # what was not acknowledged returns with the connection's end
