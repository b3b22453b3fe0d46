"""When to try again: the ladder, its marks and its end.

Responsible for: choosing the next delay from the number of failures and the time that is left. Pure: it reads no
clock, draws no random number and touches no queue. It must not know what failed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta


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
    marks: Iterable[datetime] = (),
    ladder: Sequence[Step] = LADDER,
) -> Step | None:
    """Choose how long to wait after the latest failure.

    Args:
        failures: how many attempts have failed so far, the latest included; at least 1.
        now: the present, aware.
        end: when trying ends for good, aware.
        marks: moments before which one more attempt must have been made; `LAST_CALL` before `end` always is one.
        ladder: the rungs, shortest first.

    Returns:
        The largest rung, up to the one the number of failures has reached, that still ends before the next mark; the
        smallest rung where none does. None once `end` has come: give up.
    """
    if now >= end:
        return None
    reached = ladder[: min(failures, len(ladder))]
    limit = min((moment for moment in (*marks, end - LAST_CALL, end) if moment > now), default=end)
    left_s = (limit - now).total_seconds()
    return next((step for step in reversed(reached) if step.seconds <= left_s), ladder[0])


def jittered(step: Step, fraction: float) -> float:
    """Return the delay in seconds: 80 to 100 % of the step for a fraction in [0, 1)."""
    return step.seconds * (0.8 + 0.2 * fraction)
