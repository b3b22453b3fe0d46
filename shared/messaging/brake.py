"""The brake: so that a fault on our side does not drain a queue into the bin.

Responsible for: deciding, from what was parked and what succeeded, whether a consumer may go on, must stop, or may try
one message. Pure: times are passed in. It must not stop anything itself.

What a vendor or a host does wrong never engages it: such messages wait on the ladder, each for itself.
"""

from collections import deque

from shared.errors import Reason

OURS = frozenset(
    {
        Reason.STORAGE_FULL,
        Reason.STORAGE_FAILED,
        Reason.STORED_FILE_DIFFERS,
        Reason.HOST_FORBIDDEN,
        Reason.MESSAGE_UNKNOWN,
        Reason.UNEXPECTED,
    }
)
"""Causes on our side: storage, settings, a version that does not know what another one sends, and faults of ours."""

WINDOW_S = 60.0
TRY_EVERY_S = 60.0


class Brake:
    """The state of one subscription.

    Args:
        most: how many messages may be parked for causes of ours within a minute; one more engages the brake.
    """

    def __init__(self, most: int, *, try_every_s: float = TRY_EVERY_S) -> None:
        self._most = most
        self._try_every_s = try_every_s
        self._parked: deque[float] = deque()
        self._next_try: float | None = None

    @property
    def engaged(self) -> bool:
        """Whether consuming has stopped."""
        return self._next_try is not None

    def parked(self, reason: Reason, now_s: float) -> bool:
        """Take note that a message was parked; True when this engages the brake.

        Args:
            now_s: of a monotonic clock.
        """
        if reason not in OURS:
            return False
        self._parked.append(now_s)
        while self._parked[0] <= now_s - WINDOW_S:
            self._parked.popleft()
        if self.engaged or len(self._parked) <= self._most:
            return False
        self._next_try = now_s + self._try_every_s
        return True

    def succeeded(self) -> bool:
        """Take note that a message was settled as it should be; True when this releases the brake."""
        released = self.engaged
        self._next_try = None
        if released:
            self._parked.clear()
        return released

    def wait_s(self, now_s: float) -> float:
        """Return how long until the next message may be tried, in seconds; 0 where it may be now."""
        return 0.0 if self._next_try is None else max(self._next_try - now_s, 0.0)

    def trying(self, now_s: float) -> None:
        """Take note that one message is being tried; the next one waits again."""
        if self.engaged:
            self._next_try = now_s + self._try_every_s
