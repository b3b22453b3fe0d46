"""What is seen of each conversion while the demo runs: its callbacks, its file, and what was told of it.

Responsible for: reading the ledger, the webhook deliveries and the notifier's log, and putting together what belongs to
one conversion. It must not judge: that is `simulator.demo.verdict`.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.demo.script import Act

LOG, WEBHOOK = "log", "webhook"


@dataclass(frozen=True, slots=True)
class Told:
    """One event that one destination heard.

    Attributes:
        kind: routing key, for example `conversion.stored`.
        data: what the event says; empty where only the log was read.
        signed: its signature holds; None where there is none to check.
    """

    destination: str
    kind: str
    event_id: str
    data: Mapping[str, Any] = field(default_factory=dict)
    signed: bool | None = None


@dataclass(frozen=True, slots=True)
class View:
    """All that is known of one conversion.

    Attributes:
        entry: of the simulator's ledger.
        told: in the order heard; repetitions of one event at one destination left out.
    """

    act: Act
    entry: Mapping[str, Any]
    told: tuple[Told, ...]

    @property
    def callbacks(self) -> Sequence[Mapping[str, Any]]:
        """Each POST and its answer."""
        found: Sequence[Mapping[str, Any]] = self.entry["callbacks"]
        return found

    @property
    def fetched_bytes(self) -> int:
        """Bytes served of its files, all attempts together."""
        return sum(file["bytes_served"] for file in self.entry["files"])

    @property
    def size_bytes(self) -> int:
        """Of the file the first callback names."""
        return int(self.entry["files"][0]["size_bytes"])

    @property
    def fetches(self) -> int:
        """Requests for its files."""
        return sum(file["fetches"] for file in self.entry["files"])

    @property
    def refused_fetches(self) -> int:
        """Requests that were answered with an error."""
        answers = [item for file in self.entry["files"] for item in file["answers"].items()]
        return sum(count for status, count in answers if int(status) >= 400)

    def kinds(self, destination: str = WEBHOOK) -> tuple[str, ...]:
        """Return what one destination heard, in order."""
        return tuple(told.kind for told in self.told if told.destination == destination)

    def heard(self, kind: str) -> Told | None:
        """Return the first event of a kind that the webhook received."""
        return next((told for told in self.told if told.destination == WEBHOOK and told.kind == kind), None)

    @property
    def complete(self) -> bool:
        """Everything was called back, and everything that must be told was."""
        ended = bool(self.entry["finished"])
        return ended and all(set(self.act.told) <= set(self.kinds(destination)) for destination in (LOG, WEBHOOK))


def views(acts: Iterable[Act], ledger: Mapping[str, Any], logged: Iterable[Told], key: bytes) -> tuple[View, ...]:
    """Return what is known of each conversion.

    Args:
        ledger: of the simulator, with the webhook deliveries.
        logged: of `read_log`.
        key: deliveries are signed with it.
    """
    entries = {(entry["vendor"], entry["task_id"]): entry for entry in ledger["conversions"]}
    heard: dict[tuple[str, str], dict[tuple[str, str], Told]] = {}
    for told in (*read_deliveries(ledger["webhooks"].get(WEBHOOK, ()), key), *logged):
        known = heard.setdefault((told.data["vendor"], told.data["task_id"]), {})
        known.setdefault((told.destination, told.event_id), told)
    return tuple(
        View(act, entries[place], tuple(heard.get(place, {}).values()))
        for act in acts
        if (place := (str(act.plan.vendor), str(act.plan.task_id))) in entries
    )


def read_deliveries(deliveries: Iterable[Mapping[str, Any]], key: bytes) -> Iterable[Told]:
    """Yield what the webhook receiver got, each with the check of its signature."""
    for delivery in deliveries:
        body = base64.b64decode(delivery["body_base64"])
        event = json.loads(body)
        yield Told(
            WEBHOOK,
            _kind(event["type"]),
            event["id"],
            event["data"],
            signed=delivery["webhook_id"] == event["id"] and _signature_holds(delivery, body, key),
        )


def read_log(log: Path) -> Iterable[Told]:
    """Yield what the destination `log` wrote so far; a line that is still being written is left for the next time."""
    for line in log.read_text("utf-8", "replace").splitlines(keepends=True):
        if '"event.told"' in line and line.endswith("\n"):
            record = json.loads(line)
            vendor, _, task_id = record["subject"].partition("/")
            about = {"vendor": vendor, "task_id": task_id}
            yield Told(LOG, _kind(record["type"]), record["event_id"], about)


def _signature_holds(delivery: Mapping[str, Any], body: bytes, key: bytes) -> bool:
    """Check a delivery as its receiver must (source: Standard Webhooks, "Verifying signatures")."""
    signed = b".".join((str(delivery["webhook_id"]).encode(), str(delivery["webhook_timestamp"]).encode(), body))
    wanted = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return hmac.compare_digest(wanted, delivery["webhook_signature"] or "")


def _kind(event_type: str) -> str:
    return event_type.removeprefix("wavekeep.").rpartition(".v")[0]
