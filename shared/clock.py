"""The clock, as an argument.

Responsible for: the type of what tells the time, so that tests can pass their own. Durations come from
`time.monotonic`, never from here.
"""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """Return the present, aware, in UTC."""
    return datetime.now(UTC)
