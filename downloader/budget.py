"""How often a vendor may be asked.

Responsible for: one account's limit of requests, which gives way for a while when the vendor says that it is too much.
It must not wait: who finds the budget spent goes without.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

WINDOW_S: Final = 10.0
HALVED_FOR_S: Final = 60.0


class Budget:
    """Requests to one account.

    Args:
        per_10_s: requests within any ten seconds, at least 1.
        monotonic: returns seconds of a clock that never steps.
    """

    def __init__(self, per_10_s: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_10_s = per_10_s
        self._monotonic = monotonic
        self._taken: deque[float] = deque()
        self._halved_until: float | None = None

    def take(self) -> bool:
        """Take one request from the budget; False where it is spent."""
        now = self._monotonic()
        while self._taken and now - self._taken[0] >= WINDOW_S:
            self._taken.popleft()
        if len(self._taken) >= self._limit(now):
            return False
        self._taken.append(now)
        return True

    def halve(self) -> None:
        """Ask half as often for a minute from now, though never less than once in ten seconds."""
        self._halved_until = self._monotonic() + HALVED_FOR_S

    def _limit(self, now: float) -> int:
        halved = self._halved_until is not None and now < self._halved_until
        return max(1, self._per_10_s // 2) if halved else self._per_10_s
