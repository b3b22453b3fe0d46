"""The ladder: how long to wait, by how often and why it failed, and by how much time is left."""

from datetime import UTC, datetime, timedelta

import pytest

from shared.errors import Reason
from shared.retry import LADDER, SKIPPED_RUNGS, choose_step, jittered, put_off

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = NOW + timedelta(days=15)
SECONDS = [step.seconds for step in LADDER]


def waits(reason: Reason | None) -> list[float]:
    """Return the waits after the first, second, … failure, with all the time in the world."""
    steps = [choose_step(failures, now=NOW, end=END, reason=reason) for failures in range(1, len(LADDER) + 2)]
    return [step.seconds for step in steps if step is not None]


@pytest.mark.parametrize("reason", [None, *(reason for reason in Reason if reason not in SKIPPED_RUNGS)])
def test_most_failures_climb_from_the_first_rung(reason: Reason | None) -> None:
    """What may pass in seconds is tried again in seconds; later, less often; the last rung repeats."""
    assert waits(reason) == [*SECONDS, SECONDS[-1]]


def test_an_expired_link_is_retried_more_slowly() -> None:
    """A link that has expired does not recover in seconds: the first wait is ten minutes, and no rung is repeated."""
    assert waits(Reason.LINK_EXPIRED)[:6] == [600, 1_800, 3_600, 10_800, 21_600, 43_200]


@pytest.mark.parametrize("reason", [Reason.NOT_CONFIRMED, Reason.LINK_MISSING])
def test_what_the_vendor_must_tell_is_asked_from_thirty_seconds_on(reason: Reason) -> None:
    """The vendor is not asked about one task more often than it wants to be."""
    assert waits(reason)[:4] == [30, 120, 600, 1_800]
    assert set(SKIPPED_RUNGS) == {Reason.LINK_EXPIRED, Reason.NOT_CONFIRMED, Reason.LINK_MISSING}


def test_the_latest_reason_alone_decides() -> None:
    """Once the link answers again, failures of another kind do not wait longer than their number asks for."""
    slow = choose_step(2, now=NOW, end=END, reason=Reason.LINK_EXPIRED)
    usual = choose_step(3, now=NOW, end=END, reason=Reason.BODY_CUT)
    assert (slow, usual) == (LADDER[4], LADDER[2])


@pytest.mark.parametrize("reason", [Reason.LINK_EXPIRED, Reason.BODY_CUT])
@pytest.mark.parametrize("failures", [1, 5, 10_000])
@pytest.mark.parametrize("left_s", [1, 5, 29, 30, 599, 600, 5_000, 86_400])
def test_no_wait_jumps_over_a_mark(reason: Reason, failures: int, left_s: float) -> None:
    """However slow the reason, one more attempt is made before the next mark, unless not even 5 s are left."""
    step = choose_step(failures, now=NOW, end=END, reason=reason, marks=[NOW + timedelta(seconds=left_s)])
    assert step is not None
    assert step.seconds <= max(left_s, SECONDS[0])


@pytest.mark.parametrize("reason", [Reason.LINK_EXPIRED, Reason.BODY_CUT])
def test_the_last_call_is_heard_and_the_end_is_the_end(reason: Reason) -> None:
    """An attempt is made an hour before the end, more of them within that hour, and none after it."""

    def wait(before: timedelta) -> float | None:
        step = choose_step(100, now=END - before, end=END, reason=reason)
        return None if step is None else step.seconds

    assert wait(timedelta(hours=1, minutes=31)) == 1_800
    assert wait(timedelta(minutes=59)) == 1_800
    assert wait(timedelta(minutes=3)) == 120
    assert wait(timedelta(seconds=1)) == 5
    assert wait(timedelta()) is None
    assert wait(timedelta(days=-1)) is None


def test_jitter_only_shortens() -> None:
    """Copies that failed together come back apart, at most a fifth early and never late."""
    assert [jittered(LADDER[3], fraction) for fraction in (0.0, 0.5, 1.0)] == [480, 540, 600]


@pytest.mark.parametrize(
    ("rung", "retry_after_s", "waited"),
    [(0, None, 5), (0, 4, 5), (0, 4.1, 30), (0, 86_400, 30), (1, 24, 30), (1, 25, 120), (-1, 86_400, 43_200)],
)
def test_who_asks_for_time_gets_the_next_rung_at_most(rung: int, retry_after_s: float | None, waited: float) -> None:
    """A wait asked for is kept though jitter shortens rungs, but never takes more than one rung up the ladder."""
    assert put_off(LADDER[rung], retry_after_s).seconds == waited
