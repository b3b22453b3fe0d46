"""What follows from a report, given what its vendor answers when asked.

Responsible for: whether the vendor is to be asked before anything is fetched, and what its answer is worth beside the
proofs that came with the callback. Pure. It must not ask, fetch or tell.

Why so: `docs/adr/0009-asking-before-fetching.md`.
"""

from datetime import datetime
from enum import Enum, auto
from typing import Final, Literal

from downloader.record import Outcome
from shared.events import ReportFailed, ReportLinkless, ReportSucceeded

Report = ReportSucceeded | ReportFailed | ReportLinkless

Confirm = Literal["always", "when_possible", "never"]
"""How much weight the vendor's own word has: nothing is fetched without it, what no token vouches for waits for it, or
it is asked for only where nothing else tells what to fetch."""

_DENIES_SUCCESS: Final = frozenset({Outcome.PENDING, Outcome.FAILED})
_DENIES_FAILURE: Final = frozenset({Outcome.PENDING, Outcome.NO_LINK})
"""Answers that deny what the callback said; all others but `ready` only leave it open."""


class Course(Enum):
    """What is to be done next."""

    FOLLOW_VENDOR = auto()
    """Fetch by the link that the vendor gave when asked."""
    FOLLOW_REPORT = auto()
    """Fetch by the link that the callback told."""
    REJECT = auto()
    """The conversion failed."""
    HAND_ON = auto()
    """A success whose link nobody can be asked for: only a person can help."""
    WAIT = auto()
    """Ask again later; the deadline ends it."""


def asks_first(confirm: Confirm, report: Report) -> bool:
    """Tell whether the vendor is to be asked about a report before anything else is done."""
    if isinstance(report, ReportLinkless) or "stale" in report.trust:
        return True
    return confirm != "never"


def decide(confirm: Confirm, report: Report, outcome: Outcome | None, *, now: datetime) -> Course:
    """Return what is to be done about a report of a task that nothing is stored of.

    Args:
        confirm: as set.
        outcome: of the question; None where none was put, because none was wanted or nobody can be asked.
        now: aware.
    """
    if outcome is Outcome.READY:
        return Course.FOLLOW_VENDOR
    if isinstance(report, ReportLinkless):
        if outcome is None:
            return Course.HAND_ON
        return Course.REJECT if outcome is Outcome.FAILED else Course.WAIT
    failed = isinstance(report, ReportFailed)
    if failed and outcome is Outcome.FAILED:
        return Course.REJECT
    if "stale" in report.trust or not _believed(confirm, report, outcome, now):
        return Course.WAIT
    return Course.REJECT if failed else Course.FOLLOW_REPORT


def _believed(confirm: Confirm, report: ReportSucceeded | ReportFailed, outcome: Outcome | None, now: datetime) -> bool:
    """Tell whether a callback is believed that was authentic and recent, but that the vendor did not confirm."""
    if outcome is None or confirm == "never":
        return True
    if confirm == "always":
        return False
    denials = _DENIES_FAILURE if isinstance(report, ReportFailed) else _DENIES_SUCCESS
    half_time = report.received_at + (report.deadline - report.received_at) / 2
    return ("token" in report.trust and outcome not in denials) or now >= half_time
