"""What must become of a conversion, by what was planned and what was answered.

Responsible for: one pure rule, from a plan and the answers its callbacks got to the end state that a keeper of its word
must reach. It must not look at any service, and it says nothing about the way there: only acknowledged callbacks bind;
those whose answer was lost may have been taken or not, and so only widen what is allowed.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from shared.errors import Reason
from simulator.plan import Expect, Fault, FilePlan, Framing, Outcome, Plan, Ranges, Shape, Step
from simulator.wavs import Flavour

LEAST_RATE_BYTES_PER_S = 16_384
"""A file that drips slower than this for ever is expected to be given up, unless its plan says otherwise."""

SettledBy = Literal["attempt", "deadline"]


class Evidence(NamedTuple):
    """What came of one POST: of which step it was, and its answer."""

    step: int
    status: int | None
    error: str | None


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What must have become of a conversion.

    Attributes:
        outcome: `stored`, `rejected`, or `none` (no end state at all).
        allowed: every outcome that breaks no promise; `outcome` is among them.
        reasons: of a rejection, any one of them; none given means any.
        files: indexes of the files that may be the stored one.
        settled_by: whether a rejection comes with an attempt, or only when the vendor's deadline has passed.
    """

    outcome: Outcome
    allowed: tuple[Outcome, ...]
    reasons: tuple[Reason, ...] = ()
    files: tuple[int, ...] = ()
    settled_by: SettledBy = "attempt"


class Verdict(NamedTuple):
    """What comes of fetching one file: whether it can be stored, whether it must be, and why it may be rejected."""

    can_store: bool
    must_store: bool
    reasons: tuple[Reason, ...] = ()
    settled_by: SettledBy = "attempt"


_GOOD = Verdict(can_store=True, must_store=True)

_RETRIED_FLAVOURS: dict[Flavour, tuple[Reason, ...]] = {
    Flavour.TRUNCATED: (Reason.WAV_TRUNCATED, Reason.BODY_CUT),
    Flavour.HTML: (Reason.NOT_WAV,),
    Flavour.MP3: (Reason.NOT_WAV,),
    Flavour.GZIP: (Reason.NOT_WAV,),
}
_REFUSED_FLAVOURS: dict[Flavour, tuple[Reason, ...]] = {
    Flavour.HEADER_ONLY: (Reason.WAV_INVALID, Reason.WAV_TRUNCATED),
    Flavour.SECOND_FILE: (Reason.WAV_INVALID,),
    Flavour.BAD_BLOCK_ALIGN: (Reason.WAV_INVALID,),
    Flavour.ALAW: (Reason.WAV_UNSUPPORTED,),
    Flavour.ADPCM: (Reason.WAV_UNSUPPORTED,),
}
_EXPIRED = frozenset({401, 403, 404, 410, 441})
_UNRECOGNISED_WHEN_DONE = frozenset({Shape.NO_URL, Shape.MUSIC, Shape.DATA_NULL})


def expectation(plan: Plan, evidence: Iterable[Evidence]) -> Expectation:
    """Return what must become of a conversion whose callbacks were answered like this."""
    evidence = list(evidence)
    acknowledged = _steps(plan, (each for each in evidence if each.status == 200))
    uncertain = _steps(plan, (each for each in evidence if _uncertain(each)))
    if plan.expect is not None:
        return _as_told(plan, plan.expect, acknowledged, uncertain)
    sure, maybe = _judge(plan, acknowledged), _judge(plan, [*acknowledged, *uncertain])
    if maybe == sure:
        return sure
    allowed = tuple(dict.fromkeys((*sure.allowed, *maybe.allowed)))
    reasons = tuple(dict.fromkeys((*sure.reasons, *maybe.reasons)))
    return msgspec.structs.replace(sure, allowed=allowed, reasons=reasons, files=maybe.files)


def claim(step: Step, plan_shape: Shape | None = None) -> Literal["succeeded", "failed", "unrecognised"]:
    """Return what a reader of the vendors' contract must take a step's callback for."""
    shape = step.shape or plan_shape
    if shape is Shape.NO_TASK_ID:
        return "unrecognised"
    if step.outcome == "failed" and shape is Shape.JOB:
        return "failed"
    if step.code not in (None, 200) or (step.outcome == "failed" and step.code is None):
        return "failed"
    return "unrecognised" if step.outcome == "failed" or shape in _UNRECOGNISED_WHEN_DONE else "succeeded"


def judge_file(file: FilePlan) -> Verdict:
    """Return what comes of fetching a file, with retries until the vendor's deadline."""
    last = next((fault for fault in file.misbehaviour if fault.times is None), None)
    fatal = next((fault for fault in file.misbehaviour if fault.endless or fault.redirect_to == "loop"), None)
    for fault in (fatal, last):
        verdict = _judge_fault(fault) if fault else _GOOD
        if verdict is not _GOOD:
            return verdict
    if file.link_expires_s is not None:
        return _at_deadline(Reason.LINK_EXPIRED, can_store=True)
    return _judge_flavour(file, last)


def _judge_fault(fault: Fault) -> Verdict:
    """Return the verdict of the first trait that decides; a fault that merely delays is none."""
    slow = fault.bytes_per_s is not None and fault.bytes_per_s < LEAST_RATE_BYTES_PER_S
    cut = (Reason.BODY_CUT, Reason.WAV_TRUNCATED, Reason.ANSWER_INVALID, Reason.CONNECTION_FAILED)
    oversized = (Reason.TOO_LARGE, Reason.TIMED_OUT)
    verdicts = (
        (fault.redirect_to == "loop" or fault.redirect_hops > 3, _at_once(Reason.TOO_MANY_REDIRECTS)),
        (fault.endless, Verdict(can_store=fault.times is not None, must_store=False, reasons=oversized)),
        (fault.black_hole, _at_deadline(Reason.TIMED_OUT, Reason.TOO_SLOW)),
        (fault.status is not None, _at_deadline(*_reasons_of_status(fault.status or 0))),
        (fault.stall_after_bytes is not None, _at_deadline(Reason.TIMED_OUT, Reason.TOO_SLOW, can_store=True)),
        (fault.cut_after_bytes is not None or fault.content_length_off, _at_deadline(*cut, can_store=True)),
        (fault.gzip or fault.ranges is Ranges.UNASKED, _at_deadline(Reason.ANSWER_INVALID, Reason.NOT_WAV)),
        (slow, _at_deadline(Reason.TOO_SLOW, Reason.TIMED_OUT, can_store=True)),
    )
    return next((verdict for decides, verdict in verdicts if decides), _GOOD)


def _judge_flavour(file: FilePlan, last: Fault | None) -> Verdict:
    name = file.flavour
    if name in _REFUSED_FLAVOURS:
        return _at_once(*_REFUSED_FLAVOURS[name])
    if name in _RETRIED_FLAVOURS:
        return _at_deadline(*_RETRIED_FLAVOURS[name])
    if file.flavour == Flavour.STREAMING_HEADER and last is not None and last.framing is Framing.CLOSE:
        return _at_deadline(Reason.WAV_TRUNCATED, Reason.BODY_CUT, Reason.WAV_INVALID)
    return _GOOD


def _reasons_of_status(status: int) -> tuple[Reason, ...]:
    if status in _EXPIRED:
        return (Reason.LINK_EXPIRED, Reason.HTTP_REFUSED)
    if status >= 500 or status in (408, 429):
        return (Reason.HTTP_FAILED,)
    return (Reason.HTTP_REFUSED, Reason.HTTP_FAILED, Reason.ANSWER_INVALID, Reason.NOT_WAV)


def _at_once(*reasons: Reason) -> Verdict:
    return Verdict(can_store=False, must_store=False, reasons=reasons)


def _at_deadline(*reasons: Reason, can_store: bool = False) -> Verdict:
    return Verdict(can_store=can_store, must_store=False, reasons=reasons, settled_by="deadline")


def _as_told(plan: Plan, wanted: Expect, acknowledged: Sequence[Step], uncertain: Sequence[Step]) -> Expectation:
    claimed = {step.file for step in (*acknowledged, *uncertain) if claim(step, plan.shape) == "succeeded"}
    files = tuple(sorted(claimed)) if wanted.outcome == "stored" else ()
    if acknowledged:
        return Expectation(outcome=wanted.outcome, allowed=(wanted.outcome,), reasons=wanted.reasons, files=files)
    allowed: tuple[Outcome, ...] = ("none", wanted.outcome) if uncertain else ("none",)
    return Expectation(outcome="none", allowed=allowed, reasons=wanted.reasons if uncertain else (), files=files)


def _judge(plan: Plan, steps: Sequence[Step]) -> Expectation:
    claims = [(claim(step, plan.shape), step) for step in steps]
    verdicts = {step.file: judge_file(plan.files[step.file]) for kind, step in claims if kind == "succeeded"}
    failed = any(kind == "failed" for kind, _ in claims)
    storable = tuple(sorted(index for index, verdict in verdicts.items() if verdict.can_store))
    if any(verdict.must_store for verdict in verdicts.values()):
        return Expectation(outcome="stored", allowed=("stored",), files=storable)
    if not verdicts and not failed:
        return Expectation(outcome="none", allowed=("none",))
    reasons = dict.fromkeys(reason for verdict in verdicts.values() for reason in verdict.reasons)
    if failed:
        reasons[Reason.VENDOR_FAILED] = None
    at_deadline = not failed and all(verdict.settled_by == "deadline" for verdict in verdicts.values())
    return Expectation(
        outcome="rejected",
        allowed=("rejected", "stored") if storable else ("rejected",),
        reasons=tuple(reasons),
        files=storable,
        settled_by="deadline" if at_deadline else "attempt",
    )


def _steps(plan: Plan, evidence: Iterable[Evidence]) -> list[Step]:
    return [plan.steps[index] for index in sorted({each.step for each in evidence})]


def _uncertain(evidence: Evidence) -> bool:
    """An answer that was lost, or a failure of the receiver: it may have taken the callback all the same."""
    if evidence.status is None:
        return evidence.error is not None and evidence.error != "refused"
    return evidence.status != 200 and not 400 <= evidence.status < 500
