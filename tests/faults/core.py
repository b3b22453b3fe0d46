"""The one oracle of all fault tests: once everything is lifted, nothing acknowledged is lost, and nothing is doubled.

Responsible for: waiting until a house has drained, and comparing what the vendor was promised with what is on the disk,
with the destinations and in the queues. It must not inject faults, and must not import any service.
"""

import hashlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.faults.house import DESTINATIONS, House, wait_for

__all__ = ["DESTINATIONS", "DRAIN_S", "House", "Verdict", "derived", "judge", "wait_for"]

DRAIN_S = 180.0
"""A retry may wait 5, 30 and 120 s: most faults are over by the second step."""

_LOOK_EVERY_S = 0.5
_NOTHING: Mapping[str, int] = MappingProxyType({})
_TYPE = "wavekeep.conversion."
_COARSE_CLOCK_S = 0.05
"""The clock of the file system's times is late by a tick."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of everything, by subject (`vendor/task`).

    Attributes:
        acknowledged: some callback of it was answered 200.
        lost: acknowledged, and without an end state.
        doubled: a second file, an end state after the final one, or a second id for one fact; each with its reason.
        problems: all that is not as promised, lost and doubled included. Empty is good.
        recovery_s: from the call until everything had drained.
        parked: bodies of what lies in queues that nobody consumes, by queue.
    """

    acknowledged: tuple[str, ...]
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    problems: tuple[str, ...]
    recovery_s: float
    parked: Mapping[str, list[bytes]] = field(default_factory=dict)


def derived(seed: int, name: str) -> random.Random:
    """Return a source of randomness for one test, out of the run's seed and the test's name."""
    return random.Random(f"{seed}:{name}")


def judge(
    house: House,
    *,
    parked: Mapping[str, int] = _NOTHING,
    waiting: Collection[str] = (),
    within_s: float = DRAIN_S,
    since: float | None = None,
) -> Verdict:
    """Wait until all has drained, and compare. Every fault must be lifted and every process started by then.

    Args:
        parked: how many messages must lie in which parked or unrecognised queue; none elsewhere.
        waiting: task ids that may still be without an end state (they wait for a retry that is far away).
        within_s: after which whatever is still missing is told as a problem.
        since: `time.monotonic()` when the fault was lifted; by default now.

    Returns:
        The verdict; it never raises for what it finds.
    """
    begun = time.monotonic() if since is None else since
    deadline = time.monotonic() + within_s
    late: list[str] = []
    while True:
        look = _Look(house, waiting=waiting, parked=parked)
        late = look.undrained()
        if not late or time.monotonic() > deadline:
            break
        time.sleep(_LOOK_EVERY_S)
    recovery_s = time.monotonic() - begun
    look = _Look(house, waiting=waiting, parked=parked, digests=True)
    lost = look.lost()
    doubled = look.doubled()
    problems = [
        *(f"not drained after {within_s:.0f} s: {each}" for each in late),
        *(f"lost: {each}" for each in lost),
        *(f"doubled: {each}" for each in doubled),
        *look.broken_files(),
        *look.untold(),
        *look.unexpected(),
    ]
    kept = {queue: house.bodies(queue) for queue, count in house.depths().items() if count and _is_kept(queue)}
    return Verdict(tuple(look.acknowledged), tuple(lost), tuple(doubled), tuple(problems), recovery_s, kept)


def _is_kept(queue: str) -> bool:
    return queue.endswith(".parked") or queue == "wavekeep.unrecognised"


class _Look:
    """One look at a house: the vendor's ledger and the disk, read once; the rest when asked."""

    def __init__(
        self, house: House, *, waiting: Collection[str], parked: Mapping[str, int], digests: bool = False
    ) -> None:
        self._house = house
        self._waiting = frozenset(waiting)
        self._parked = {queue: count for queue, count in parked.items() if count}
        self._pending = int(house.simulator.pending()["pending"])
        ledger = house.simulator.ledger(digests="yes" if digests else "no")["conversions"]
        self._ledger: dict[str, dict[str, Any]] = {f"{each['vendor']}/{each['task_id']}": each for each in ledger}
        self.acknowledged = [subject for subject, each in self._ledger.items() if each["acknowledged"]]
        self._rejections = {_subject(each): each for _, each in _objects(house, "*.rejected.json")}
        self._manifests = {
            _subject(each): (path, each)
            for path, each in _objects(house, "*.json")
            if not path.name.endswith(".rejected.json")
        }
        self._announced = {path: path.read_text("utf-8").strip() for path in house.kept("*.announced")}
        self._waits = bool(self._waiting)

    # has it drained?

    def undrained(self) -> list[str]:
        """Return what is still on its way; cheap questions first, the rest only once they are answered."""
        if self._pending:
            return [f"{self._pending} callbacks to be sent or retried"]
        for missing in (self._unended, self._unmarked, self.untold, self._unsettled):
            if found := missing():
                return found
        return []

    def _unended(self) -> list[str]:
        return [f"{subject} has no end state" for subject in self.lost()]

    def _unmarked(self) -> list[str]:
        told = set(self._announced)
        stored = [path.with_suffix(".announced") for path, _ in self._manifests.values()]
        return [f"{path.name} is missing" for path in stored if path not in told]

    def _unsettled(self) -> list[str]:
        temporaries = [f"temporary file {path}" for path in self._house.temporaries()]
        if temporaries:
            return temporaries
        depths = self._house.depths()
        busy = [f"{count} messages in {queue}" for queue, count in depths.items() if not self._may_hold(queue)]
        exact = self._house.ready([queue for queue in depths if _is_work(queue)])
        return busy or [f"{count} messages ready in {queue}" for queue, count in exact.items()]

    def _may_hold(self, queue: str) -> bool:
        return _is_kept(queue) or (self._waits and ".delay." in queue) or (self._waits and self._house.broker is None)

    # what became of everything

    def lost(self) -> list[str]:
        """Return the subjects that were acknowledged, are owed an end state, and have none."""
        return [
            subject
            for subject in self.acknowledged
            if self._ledger[subject]["expected"]["outcome"] != "none"
            and self._ledger[subject]["task_id"] not in self._waiting
            and subject not in self._manifests
            and subject not in self._rejections
        ]

    def doubled(self) -> list[str]:
        """Return the subjects with a second file, an end state after the final one, or a second id for one fact."""
        return [*self._second_files(), *self._later_ends(), *self._second_ids(), *self._second_rejections()]

    def broken_files(self) -> list[str]:
        """Return what is wrong with end states and files: another outcome than owed, another content than served."""
        found = []
        for subject, entry in self._ledger.items():
            outcome = self._outcome(subject)
            allowed = [*entry["expected"]["allowed"], *(["none"] if entry["task_id"] in self._waiting else [])]
            if outcome not in allowed and not (outcome == "none" and subject in self.acknowledged):
                found.append(f"{subject} is {outcome}, not {' or '.join(allowed)}")
            if outcome == "stored":
                found += self._check_file(subject, entry)
        known = {(path.parent / Path(each["audio"]).name) for path, each in self._manifests.values()}
        found += [f"partial or orphaned file {path}" for path in self._house.kept("*.wav") if path not in known]
        return found

    def untold(self) -> list[str]:
        """Return the announced events that a destination was not told, and what it was told without announcement."""
        ids = set(self._announced.values())
        found = []
        for destination in DESTINATIONS:
            told = self._house.told(destination)
            heard = {event["id"] for event in told if str(event["type"]).startswith(_TYPE)}
            delivered = {event["id"] for event in told if event.get("status", 200) == 200}
            found += [f"{destination} was not told {event_id}" for event_id in ids - delivered]
            found += [f"{destination} was told {event_id}, which nobody marked" for event_id in heard - ids]
            found += [
                f"{destination} was told {event['id']} under the webhook id {event['webhook_id']}"
                for event in told
                if event.get("webhook_id", event["id"]) != event["id"]
            ]
        return found

    def unexpected(self) -> list[str]:
        """Return where parked messages are not those expected."""
        lying = {queue: count for queue, count in self._house.depths().items() if _is_kept(queue)}
        queues = sorted(lying.keys() | self._parked.keys())
        return [
            f"{queue} holds {lying.get(queue, 0)} messages, not {self._parked.get(queue, 0)}"
            for queue in queues
            if lying.get(queue, 0) != self._parked.get(queue, 0)
        ]

    def _outcome(self, subject: str) -> str:
        if subject in self._manifests:
            return "stored"
        return "rejected" if subject in self._rejections else "none"

    def _check_file(self, subject: str, entry: Mapping[str, Any]) -> Iterator[str]:
        path, manifest = self._manifests[subject]
        audio = path.parent / Path(manifest["audio"]).name
        if not audio.is_file():
            yield f"{subject} has a manifest and no file"
            return
        with audio.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != manifest["sha256"] or audio.stat().st_size != manifest["size_bytes"]:
            yield f"{subject} is not the file its manifest describes"
        if digest not in entry["expected_sha256"]:
            yield f"{subject} is a file that was not served for it"

    def _second_files(self) -> Iterator[str]:
        for subject, (path, _) in self._manifests.items():
            audio = list(path.parent.glob(f"{path.stem}.*.wav"))
            if len(audio) > 1:
                yield f"{subject} has {len(audio)} files"

    def _later_ends(self) -> Iterator[str]:
        for event in self._events("rejected"):
            path, _ = self._manifests.get(event["subject"], (None, None))
            if path is not None and _seconds(event["time"]) > path.stat().st_mtime + _COARSE_CLOCK_S:
                yield f"{event['subject']} was rejected after it was stored"

    def _second_ids(self) -> Iterator[str]:
        ids: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        for event in self._events(""):
            ids[(event["subject"], event["type"], _fact(event))].add(event["id"])
        for (subject, kind, _), found in ids.items():
            if len(found) > 1:
                yield f"{subject} has {len(found)} ids of {kind}"

    def _second_rejections(self) -> Iterator[str]:
        """A task is rejected once for its vendor's failure, and once because we gave it up, for whatever reason."""
        ids: dict[tuple[str, bool], set[str]] = defaultdict(set)
        for event in self._events("rejected"):
            ids[(event["subject"], event["data"]["reason"] == "vendor_failed")].add(event["id"])
        for (subject, _), found in ids.items():
            if len(found) > 1:
                yield f"{subject} has {len(found)} rejections"

    def _events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self._house.told("hook") if str(event["type"]).startswith(_TYPE + kind)]


def _is_work(queue: str) -> bool:
    return queue.startswith("wavekeep.") and not _is_kept(queue) and ".delay." not in queue and ".spool" not in queue


def _fact(event: Mapping[str, Any]) -> str:
    """Return what tells two events of one type and subject apart as two facts."""
    data = event["data"]
    told = ("reason", "claim", "claimed_link", "claimed_code", "threshold_percent")
    return json.dumps([data.get(name) for name in told])


def _seconds(time_of_event: str) -> float:
    return datetime.fromisoformat(time_of_event).timestamp()


def _objects(house: House, pattern: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in house.kept(pattern):
        yield path, json.loads(path.read_text("utf-8"))


def _subject(record: Mapping[str, Any]) -> str:
    return f"{record['vendor']}/{record['task_id']}"
