"""A deployment seen from outside, as the end-to-end tests see it.

Responsible for: sending callbacks as a vendor does, and reading what anybody could read: answers, webhook deliveries,
files, logs, metrics, queue lengths. It must not import any service, nor `shared`.
"""

import asyncio
import base64
import json
import re
import sqlite3
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import aio_pika

from simulator.deployment import Deployment
from simulator.payloads import signature

T = TypeVar("T")

WAIT_S = 30.0
HMAC_KEY = "hmac-key-of-the-tests"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"webhook key of the tests, 32 byte").decode()

_POLL_S = 0.05
_DESTINATIONS = """
[[destination]]
name = "log"
type = "log"

[[destination]]
name = "main"
type = "webhook"
url = "{receivers}/main"
secret = "{secret}"
concurrency = 16

[[destination]]
name = "failures"
type = "webhook"
url = "{receivers}/failures"
secret = "{secret}"
events = ["conversion.rejected"]
timeout_s = 2
"""


def wait_for(find: Callable[[], T | None], what: str, *, within_s: float = WAIT_S) -> T:
    """Ask until there is an answer, and return it; AssertionError once time is up."""
    deadline = time.monotonic() + within_s
    while not (found := find()):
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(_POLL_S)
    return found


def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Send one POST; return its status."""
    request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def get(url: str) -> str:
    """Return the text under a URL."""
    with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
        text: str = answer.read().decode()
        return text


class House:
    """One deployment and the vendor beside it.

    Args:
        folder: takes everything it writes.
        broker_url: of a virtual host made for this deployment; None for the embedded broker.
        settings: more of them, by their full names.
    """

    def __init__(
        self, folder: Path, *, broker_url: str | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self._broker_url = broker_url
        self.folder = folder
        self.deployment = Deployment(
            folder,
            broker_url=broker_url,
            destinations=lambda receivers: _DESTINATIONS.format(receivers=receivers, secret=WEBHOOK_SECRET),
            hmac_key=HMAC_KEY,
            settings={"WAVEKEEP_DOWNLOAD_CONCURRENCY": "16"} | dict(settings or {}),
            simulator={"SIMULATOR_RETRY_SCALE": "0.001"},
        )
        self.simulator = self.deployment.simulator
        self.files = self.deployment.files

    # what a vendor does

    def convert(self, **plan: Any) -> dict[str, Any]:
        """Make one conversion; return its vendor, task id and links."""
        (made,) = self.simulator.convert([{"vendor": "apibox"} | plan])
        return made

    def link(self, **file: Any) -> str:
        """Return a link to a file of the simulated vendor's that it calls nobody back about."""
        return str(self.convert(vendor="apibox", files=[{"requires_user_agent": False} | file], steps=[])["links"][0])

    def call_back(self, vendor: str, task_id: str, body: bytes, *, token: str | None = None, **headers: str) -> int:
        """Send a callback with every proof that is asked for; return the status of the answer.

        Args:
            token: instead of the right one; empty for none at all.
            headers: beside the usual ones.
        """
        stamp = str(int(time.time()))
        signed = {"X-Webhook-Timestamp": stamp, "X-Webhook-Signature": signature(HMAC_KEY, task_id, stamp)}
        used = self.token(vendor) if token is None else token
        query = f"?token={used}" if used else ""
        url = f"{self.deployment.ingress_url}/callbacks/{vendor}{query}"
        return post(url, body, {"Content-Type": "application/json"} | (signed if vendor == "kie" else {}) | headers)

    def token(self, vendor: str) -> str:
        """Return the right token of a vendor."""
        return next(token for name, token in self.deployment.tokens.items() if str(name) == vendor)

    # what anybody sees

    def deliveries(self, task_id: str, *, kind: str = "", receiver: str = "main") -> list[dict[str, Any]]:
        """Return the deliveries about a task, of one kind of event or of all, oldest first."""
        return [
            delivery
            for delivery in self.simulator.webhooks(receiver)
            if (event := json.loads(delivery["body"]))["subject"].endswith(task_id) and kind in event["type"]
        ]

    def events(self, task_id: str, *, kind: str = "", receiver: str = "main") -> list[dict[str, Any]]:
        """Return the events told about a task, each id once."""
        found: dict[str, dict[str, Any]] = {}
        for delivery in self.deliveries(task_id, kind=kind, receiver=receiver):
            event = json.loads(delivery["body"])
            found.setdefault(event["id"], event)
        return list(found.values())

    def told(self, task_id: str, kind: str, *, receiver: str = "main", within_s: float = WAIT_S) -> dict[str, Any]:
        """Wait until an event of a kind was told about a task; return it. There must be one, under one id."""
        found = wait_for(
            lambda: self.events(task_id, kind=kind, receiver=receiver), f"{kind} of {task_id}", within_s=within_s
        )
        assert len(found) == 1
        return found[0]

    def entry(self, task_id: str) -> dict[str, Any]:
        """Return what the simulator's ledger says of a task."""
        found = [each for each in self.simulator.ledger()["conversions"] if each["task_id"] == task_id]
        assert len(found) == 1
        entry: dict[str, Any] = found[0]
        return entry

    def kept(self, task_id: str) -> list[Path]:
        """Return the audio files kept of a task."""
        return sorted(self.files.rglob(f"{task_id}.*.wav"))

    def manifest(self, task_id: str) -> dict[str, Any]:
        """Return the one manifest of a task."""
        (path,) = self.files.rglob(f"{task_id}.json")
        manifest: dict[str, Any] = json.loads(path.read_text())
        return manifest

    def temporaries(self) -> list[Path]:
        """Return the files that attempts are written to, and those of the storage itself."""
        folders = [*self.folder.glob("*/staging"), self.files / ".tmp"]
        return [path for folder in folders if folder.is_dir() for path in folder.iterdir()]

    def depth(self, queue: str) -> int:
        """Return how many messages wait in a queue, exactly and now."""
        if self._broker_url is not None:
            return asyncio.run(_depth(self._broker_url, queue))
        with closing(sqlite3.connect(self.folder / "standalone" / "queue.sqlite3")) as db:
            count: int = db.execute("SELECT count(*) FROM message WHERE queue = ?", (queue,)).fetchone()[0]
            return count

    def metrics(self) -> str:
        """Return the metrics of every process."""
        return "\n".join(get(f"{url}/metrics") for url in self.deployment.ops_urls.values())

    def metric(self, series: str) -> float:
        """Return the sum of a metric over its labels and all processes; of one series where its labels are given."""
        lines = [line for line in self.metrics().splitlines() if line.startswith((f"{series} ", f"{series}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def leaks(self) -> list[str]:
        """Return where a secret or a query stands in what was written, told and measured so far."""
        secrets = [*self.deployment.tokens.values(), HMAC_KEY, WEBHOOK_SECRET, WEBHOOK_SECRET.removeprefix("whsec_")]
        forbidden = re.compile("|".join(map(re.escape, [*secrets, "Signature=", "Expires=", "token="])))
        return [
            f"{place}: …{text[max(0, match.start() - 100) : match.start()]}[here]"
            for place, text in self._public()
            for match in forbidden.finditer(text)
        ]

    def _public(self) -> Iterator[tuple[str, str]]:
        for name, process in self.deployment.services.items():
            yield f"log of {name}", process.log.read_text()
        for path in self.files.rglob("*"):
            if path.is_file() and path.suffix != ".wav":
                yield str(path), path.read_text()
        for receiver in ("main", "failures"):
            for delivery in self.simulator.webhooks(receiver):
                yield f"delivery to {receiver}", json.dumps(delivery["headers"]) + delivery["body"]
        yield "metrics", self.metrics()


def new_task() -> str:
    """Return the id of a task that is like no other."""
    return uuid.uuid4().hex


async def _depth(broker_url: str, queue: str) -> int:
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0
