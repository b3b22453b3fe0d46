"""When to try again: the ladder, its marks and its end.

Responsible for: choosing the next delay from the number of failures, the latest one's reason and the time that is
left. Pure: it reads no clock, draws no random number and touches no queue. It must not know messages or services.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from shared.errors import Reason


@dataclass(frozen=True, slots=True)
class Step:
    """One rung of the ladder.

    Attributes:
        name: as it stands in queue names and logs, for example `10m`.
        seconds: the longest delay of this rung; jitter only shortens it.
    """

    name: str
    seconds: float


LADDER: tuple[Step, ...] = (
    Step("5s", 5),
    Step("30s", 30),
    Step("2m", 120),
    Step("10m", 600),
    Step("30m", 1_800),
    Step("1h", 3_600),
    Step("3h", 10_800),
    Step("6h", 21_600),
    Step("12h", 43_200),
)
"""Delays after the first, second, … failure; the last rung repeats."""

AT_RISK_PERCENT: tuple[int, ...] = (50, 80, 95)
"""Shares of the time to the deadline at which a conversion that is not stored is told as at risk."""

SKIPPED_RUNGS: Mapping[Reason, int] = MappingProxyType(
    {Reason.LINK_EXPIRED: 3, Reason.NOT_CONFIRMED: 1, Reason.LINK_MISSING: 1}
)
"""Rungs that a failure for this reason leaves out.

The vendor wants to be asked about one task every 30 s at most, so that is the first wait for its word.

For an expired link the first wait is 10 minutes, the second 30: it does not come back to life in seconds as a busy host
does; only the vendor can mend it, by another link. It is still tried, because the same statuses also stand for a file
that is not served everywhere yet.
"""

LAST_CALL = timedelta(hours=1)
"""An attempt is always made this long before the deadline."""


def at_risk_marks(start: datetime, deadline: datetime) -> tuple[tuple[int, datetime], ...]:
    """Return (percent, moment) for each at-risk mark between start and deadline, in order of time."""
    span = deadline - start
    return tuple((percent, start + span * percent / 100) for percent in AT_RISK_PERCENT)


def choose_step(
    failures: int,
    *,
    now: datetime,
    end: datetime,
    reason: Reason | None = None,
    marks: Iterable[datetime] = (),
    ladder: Sequence[Step] = LADDER,
) -> Step | None:
    """Choose how long to wait after the latest failure.

    Args:
        failures: how many attempts have failed so far, the latest included; at least 1.
        now: the present, aware.
        end: when trying ends for good, aware.
        reason: of the latest failure; it may leave out rungs (`SKIPPED_RUNGS`).
        marks: moments before which one more attempt must have been made; `LAST_CALL` before `end` always is one.
        ladder: the rungs, shortest first.

    Returns:
        The largest rung, up to the one the number of failures has reached, that still ends before the next mark,
        whatever the reason; the smallest rung where none does. None once `end` has come: give up.
    """
    if now >= end:
        return None
    skipped = SKIPPED_RUNGS.get(reason, 0) if reason is not None else 0
    reached = ladder[: failures + skipped]
    limit = min((moment for moment in (*marks, end - LAST_CALL, end) if moment > now), default=end)
    left_s = (limit - now).total_seconds()
    return next((step for step in reversed(reached) if step.seconds <= left_s), ladder[0])


def put_off(step: Step, retry_after_s: float | None, *, ladder: Sequence[Step] = LADDER) -> Step:
    """Return the rung to wait where the other side asked for time: the chosen one, or the next one and no more.

    So whoever asks for a day is asked again soon enough, and still climbs the ladder. The next rung may end after
    marks and ends that the chosen one was to meet: only for what is not bound to any may this be used.

    Args:
        step: as `choose_step` chose it.
        retry_after_s: what was asked for; None is nothing.
    """
    if retry_after_s is None or jittered(step, 0) >= retry_after_s:
        return step
    return next((longer for longer in ladder if longer.seconds > step.seconds), step)


def jittered(step: Step, fraction: float) -> float:
    """Return the delay in seconds: 80 to 100 % of the step for a fraction in [0, 1)."""
    return step.seconds * (0.8 + 0.2 * fraction)
