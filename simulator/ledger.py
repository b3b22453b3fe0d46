"""What happened: every conversion, callback, answer, fetch and delivery.

Responsible for: keeping the history by which a run is judged, and turning it into JSON. Pure data: it
must not send, serve or wait, and it never forgets on its own; only `reset` does that.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from shared.vendors import Vendor
from simulator.oracle import Evidence, Expectation, expectation
from simulator.plan import Fault, FilePlan, Plan


class Attempt(msgspec.Struct, kw_only=True):
    """One POST of one callback.

    Attributes:
        step: index within the plan.
        copy: index within the step.
        attempt: 1 for the first, up to 4.
        outcome, shape, code, url, sign: what was sent; `body_sha256` tells equal bodies.
        status, answered_ms: the answer; null while there is none.
        error: why there was no answer.
    """

    step: int
    copy: int
    attempt: int
    outcome: str
    shape: str
    code: int
    url: str | None
    sign: str
    body_sha256: str
    sent_at: datetime
    status: int | None = None
    answered_ms: float | None = None
    error: str | None = None


class ServedFile(msgspec.Struct, kw_only=True):
    """A file, its links and what was fetched of it.

    Attributes:
        plan: with its seed set.
        links: every link given out, newest last, by its signature.
        fetches: requests for it, whatever the answer.
        bytes_served: of bodies, as handed to the connection.
        answers: how often each HTTP status was answered; those cut off are among them.
    """

    name: str
    plan: FilePlan
    size_bytes: int
    requires_user_agent: bool
    expires_at: datetime
    links: dict[str, str] = msgspec.field(default_factory=dict)
    fetches: int = 0
    bytes_served: int = 0
    answers: Counter[int] = msgspec.field(default_factory=Counter)
    faults_used: int = 0

    def next_fault(self) -> Fault:
        """Count one request and return how it is to be answered; a fault without any trait once all are used up."""
        self.fetches += 1
        position = self.faults_used
        for fault in self.plan.misbehaviour:
            if fault.times is None or position < fault.times:
                self.faults_used += 1
                return fault
            position -= fault.times
        return Fault()


class Conversion(msgspec.Struct, kw_only=True):
    """One task of one vendor, from its plan to its last callback.

    Attributes:
        submitted: it was asked for through the vendor's API, with `source` (music task, track).
        steps_begun: how far the plan has come.
        completed_at: when the vendor finished; null while it works.
        given_up: some copy was never acknowledged, and its retries are over.
        finished: nothing more is sent.
    """

    vendor: Vendor
    task_id: str
    plan: Plan
    created_at: datetime
    callback_url: str | None
    files: list[ServedFile]
    source: tuple[str, str] | None = None
    callbacks: list[Attempt] = msgspec.field(default_factory=list)
    steps_begun: int = 0
    completed_at: datetime | None = None
    given_up: bool = False
    finished: bool = False

    @property
    def acknowledged(self) -> bool:
        """Some callback of it was answered with exactly 200 in time."""
        return any(attempt.status == 200 for attempt in self.callbacks)

    def expectation(self) -> Expectation:
        """Return what must have become of it, by the answers so far."""
        return expectation(self.plan, [Evidence(each.step, each.status, each.error) for each in self.callbacks])


class Delivery(msgspec.Struct, kw_only=True):
    """One request that came in at a webhook receiver.

    Attributes:
        headers: all of them, names in lower case.
        body: for people; bytes that are not UTF-8 are replaced.
        body_base64: the exact bytes.
        status: what was answered; null where no answer was given.
    """

    received_at: datetime
    webhook_id: str | None
    webhook_timestamp: str | None
    webhook_signature: str | None
    headers: dict[str, str]
    body: str
    body_base64: bytes
    status: int | None = None


class Ledger:
    """The history of one run."""

    def __init__(self) -> None:
        self.conversions: dict[tuple[Vendor, str], Conversion] = {}
        self.files: dict[str, ServedFile] = {}
        self.sources: dict[tuple[Vendor, str, str], Conversion] = {}
        self.deliveries: dict[str, list[Delivery]] = {}

    def add(self, conversion: Conversion) -> None:
        """Take a conversion in.

        Raises:
            ValueError: its vendor has a task of that name already.
        """
        key = (conversion.vendor, conversion.task_id)
        if key in self.conversions:
            raise ValueError(f"{conversion.vendor} has a task {conversion.task_id[:80]!r} already")
        self.conversions[key] = conversion
        self.files.update((file.name, file) for file in conversion.files)
        if conversion.source is not None:
            self.sources[(conversion.vendor, *conversion.source)] = conversion

    def select(self, *, vendor: Vendor | None = None, task_id: str | None = None) -> list[Conversion]:
        """Return the conversions of a vendor, of a task, or all, in the order they were made."""
        if vendor is not None and task_id is not None:
            found = self.conversions.get((vendor, task_id))
            return [found] if found else []
        return [
            each
            for each in self.conversions.values()
            if vendor in (None, each.vendor) and task_id in (None, each.task_id)
        ]

    def reset(self) -> None:
        """Forget everything."""
        self.conversions.clear()
        self.files.clear()
        self.sources.clear()
        self.deliveries.clear()


def export(conversions: Iterable[Conversion], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return conversions as plain data for JSON.

    Args:
        conversions: those wanted.
        digests: SHA-256 in hex by name of file; files that are not in it have null.
    """
    return [_view(each, digests) for each in conversions]


def _view(conversion: Conversion, digests: Mapping[str, str]) -> dict[str, Any]:
    wanted = conversion.expectation()
    return {
        "vendor": conversion.vendor,
        "task_id": conversion.task_id,
        "created_at": conversion.created_at,
        "completed_at": conversion.completed_at,
        "callback_url": conversion.callback_url,
        "submitted": conversion.source is not None,
        "plan": conversion.plan,
        "callbacks": conversion.callbacks,
        "acknowledged": conversion.acknowledged,
        "given_up": conversion.given_up,
        "finished": conversion.finished,
        "files": [_file_view(file, digests) for file in conversion.files],
        "expected": wanted,
        "expected_sha256": [digests.get(conversion.files[index].name) for index in wanted.files],
    }


def _file_view(file: ServedFile, digests: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": file.name,
        "flavour": file.plan.flavour,
        "links": list(file.links.values()),
        "size_bytes": file.size_bytes,
        "sha256": digests.get(file.name),
        "fetches": file.fetches,
        "bytes_served": file.bytes_served,
        "answers": {str(status): count for status, count in sorted(file.answers.items())},
    }
