"""What follows from a report by what its vendor answers: every setting, every proof, every outcome."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from downloader.confirmation import Confirm, Course, Report, asks_first, decide
from downloader.record import Outcome
from shared.events import ReportFailed, ReportLinkless, ReportSucceeded, Trust
from shared.vendors import Vendor

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DEADLINE = NOW + timedelta(days=14)
HALF_TIME = NOW + timedelta(days=7)
BEFORE, AFTER = HALF_TIME - timedelta(seconds=1), HALF_TIME

LETTERS = {
    "v": Course.FOLLOW_VENDOR,
    "c": Course.FOLLOW_REPORT,
    "r": Course.REJECT,
    "h": Course.HAND_ON,
    "w": Course.WAIT,
}
COLUMNS = (
    Outcome.READY,
    Outcome.NO_LINK,
    Outcome.PENDING,
    Outcome.FAILED,
    Outcome.UNKNOWN,
    Outcome.THROTTLED,
    Outcome.REFUSED,
    Outcome.UNAVAILABLE,
    Outcome.MALFORMED,
    Outcome.HELD_BACK,
    None,
)
"""The outcomes, in the order of the letters below; the last is that nobody was asked."""

SUCCEEDED: list[tuple[Confirm, tuple[Trust, ...], str, str]] = [
    ("always", ("token",), "v wwwwwwwww c", "v wwwwwwwww c"),
    ("always", ("signature",), "v wwwwwwwww c", "v wwwwwwwww c"),
    ("always", ("token", "signature"), "v wwwwwwwww c", "v wwwwwwwww c"),
    ("always", ("none",), "v wwwwwwwww c", "v wwwwwwwww c"),
    ("always", ("stale",), "v wwwwwwwww w", "v wwwwwwwww w"),
    ("always", ("token", "stale"), "v wwwwwwwww w", "v wwwwwwwww w"),
    ("when_possible", ("token",), "v cwwcccccc c", "v ccccccccc c"),
    ("when_possible", ("signature",), "v wwwwwwwww c", "v ccccccccc c"),
    ("when_possible", ("token", "signature"), "v cwwcccccc c", "v ccccccccc c"),
    ("when_possible", ("none",), "v wwwwwwwww c", "v ccccccccc c"),
    ("when_possible", ("stale",), "v wwwwwwwww w", "v wwwwwwwww w"),
    ("when_possible", ("token", "stale"), "v wwwwwwwww w", "v wwwwwwwww w"),
    ("never", ("token",), "v ccccccccc c", "v ccccccccc c"),
    ("never", ("signature",), "v ccccccccc c", "v ccccccccc c"),
    ("never", ("token", "signature"), "v ccccccccc c", "v ccccccccc c"),
    ("never", ("none",), "v ccccccccc c", "v ccccccccc c"),
    ("never", ("stale",), "v wwwwwwwww w", "v wwwwwwwww w"),
    ("never", ("token", "stale"), "v wwwwwwwww w", "v wwwwwwwww w"),
]
"""Setting, proofs, and the courses before and after half of the time to the deadline."""

TRUSTS = list(dict.fromkeys(trust for _, trust, _, _ in SUCCEEDED))
POLICIES: tuple[Confirm, ...] = get_args(Confirm)


def succeeded(trust: tuple[Trust, ...]) -> ReportSucceeded:
    """Return a report of a file."""
    return ReportSucceeded(
        vendor=Vendor.KIE,
        task_id="t",
        url="https://cdn.example.com/a.wav",
        code=200,
        message="success",
        received_at=NOW,
        deadline=DEADLINE,
        trust=trust,
    )


def failed(trust: tuple[Trust, ...]) -> ReportFailed:
    """Return a report of a failure."""
    return ReportFailed(
        vendor=Vendor.KIE, task_id="t", code=501, message="no", received_at=NOW, deadline=DEADLINE, trust=trust
    )


def linkless(trust: tuple[Trust, ...]) -> ReportLinkless:
    """Return a report of a file that nobody told a link of."""
    return ReportLinkless(
        vendor=Vendor.KIE,
        task_id="t",
        code=200,
        message="success",
        explanation="no link",
        body="{}",
        received_at=NOW,
        deadline=DEADLINE,
        trust=trust,
    )


def courses(confirm: Confirm, report: Report, now: datetime) -> list[Course]:
    """Return what each outcome leads to."""
    return [decide(confirm, report, outcome, now=now) for outcome in COLUMNS]


def read(row: str) -> list[Course]:
    """Return the courses of a row of letters."""
    return [LETTERS[letter] for letter in row.replace(" ", "")]


def test_the_tables_leave_nothing_out() -> None:
    """Each outcome there is has a column, and each setting a row for each combination of proofs."""
    assert set(COLUMNS) == {*Outcome, None}
    assert {(confirm, trust) for confirm, trust, _, _ in SUCCEEDED} == {(c, t) for c in POLICIES for t in TRUSTS}


@pytest.mark.parametrize(("confirm", "trust", "before", "after"), SUCCEEDED)
def test_a_success(confirm: Confirm, trust: tuple[Trust, ...], before: str, after: str) -> None:
    """The vendor's own link always wins; a callback's is followed only where its proofs, the setting or time allow."""
    assert courses(confirm, succeeded(trust), BEFORE) == read(before)
    assert courses(confirm, succeeded(trust), AFTER) == read(after)
    assert courses(confirm, succeeded(trust), DEADLINE + timedelta(days=1)) == read(after)


@pytest.mark.parametrize("confirm", POLICIES)
@pytest.mark.parametrize("trust", TRUSTS)
def test_a_failure(confirm: Confirm, trust: tuple[Trust, ...]) -> None:
    """A failure is believed like a success: the vendor's word counts where it can be had; a stale one needs it."""
    if "stale" in trust:
        before = after = "v wwrwwwwww w"
    elif confirm == "never":
        before = after = "v rrrrrrrrr r"
    elif confirm == "always":
        before = after = "v wwrwwwwww r"
    else:
        before = "v wwrrrrrrr r" if "token" in trust else "v wwrwwwwww r"
        after = "v rrrrrrrrr r"
    assert courses(confirm, failed(trust), BEFORE) == read(before)
    assert courses(confirm, failed(trust), AFTER) == read(after)


@pytest.mark.parametrize("now", [BEFORE, AFTER])
@pytest.mark.parametrize("confirm", POLICIES)
@pytest.mark.parametrize("trust", TRUSTS)
def test_a_success_without_a_link(confirm: Confirm, trust: tuple[Trust, ...], now: datetime) -> None:
    """Only the vendor can say where the file is, or that there is none; without a key, a person must."""
    assert courses(confirm, linkless(trust), now) == read("v wwrwwwwww h")


@pytest.mark.parametrize("confirm", POLICIES)
@pytest.mark.parametrize("trust", TRUSTS)
def test_who_is_asked_about(confirm: Confirm, trust: tuple[Trust, ...]) -> None:
    """`never` asks only where nothing else can tell."""
    stale = "stale" in trust
    assert asks_first(confirm, succeeded(trust)) == (stale or confirm != "never")
    assert asks_first(confirm, failed(trust)) == (stale or confirm != "never")
    assert asks_first(confirm, linkless(trust))
