"""The brake: so that one fault does not drain a queue into the bin.

Responsible for: deciding, from what was parked and what succeeded, whether a consumer may go on, must stop, or may try
one message; and the same for the messages of one host or vendor alone. Pure: times are passed in. It must not stop
anything itself.
"""

from collections import OrderedDict, deque
from collections.abc import Collection

from shared.errors import Reason

OURS = frozenset(
    {
        Reason.STORAGE_FULL,
        Reason.STORAGE_FAILED,
        Reason.STORED_FILE_DIFFERS,
        Reason.MESSAGE_UNKNOWN,
        Reason.UNEXPECTED,
    }
)
"""Causes on our side: storage, a version that does not know what another one sends, and faults of ours."""

THEIRS = frozenset(
    {
        Reason.URL_MALFORMED,
        Reason.SCHEME_FORBIDDEN,
        Reason.PORT_FORBIDDEN,
        Reason.HOST_FORBIDDEN,
        Reason.ADDRESS_FORBIDDEN,
        Reason.TOO_MANY_REDIRECTS,
        Reason.TOO_LARGE,
        Reason.WAV_INVALID,
        Reason.WAV_UNSUPPORTED,
    }
)
"""Causes that one host has, or a setting that does not suit that host: the others go on."""

WINDOW_S = 60.0
TRY_EVERY_S = 60.0
MOST_GROUPS = 1_000


class Brake:
    """The state of one subscription, or of one group of its messages.

    Args:
        most: how many messages may be parked for these causes within a minute; one more engages the brake.
        causes: that count.
    """

    def __init__(self, most: int, *, causes: Collection[Reason] = OURS, try_every_s: float = TRY_EVERY_S) -> None:
        self._most = most
        self._causes = causes
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
        if reason not in self._causes:
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


class GroupBrakes:
    """A brake for each host or vendor and cause: beyond the number, what would be parked for that is put off.

    Nobody else waits: the consumer goes on, and what is put off climbs the ladder until its time is over. One message a
    minute is parked nevertheless, so that the list shows what is wrong.

    Args:
        most: as for one brake.
        most_groups: that are kept in mind; the one that was quiet longest is forgotten first.
    """

    def __init__(self, most: int, *, most_groups: int = MOST_GROUPS) -> None:
        self._most = most
        self._most_groups = most_groups
        self._brakes: OrderedDict[str, dict[Reason, Brake]] = OrderedDict()

    def engaged(self) -> int:
        """Return how many groups are put off now."""
        return sum(any(brake.engaged for brake in group.values()) for group in self._brakes.values())

    def puts_off(self, group: str, reason: Reason, now_s: float) -> bool:
        """Tell whether a message is put off instead of being parked; False takes note that it is parked."""
        if reason not in THEIRS:
            return False
        brakes = self._brakes.setdefault(group, {})
        brake = brakes.setdefault(reason, Brake(self._most, causes=THEIRS))
        self._brakes.move_to_end(group)
        if len(self._brakes) > self._most_groups:
            self._brakes.popitem(last=False)
        if not brake.engaged:
            return brake.parked(reason, now_s)
        if brake.wait_s(now_s):
            return True
        brake.trying(now_s)
        return False

    def succeeded(self, group: str) -> bool:
        """Take note that a message was settled as it should be; True when this releases its group."""
        brakes = self._brakes.pop(group, {})
        return any(brake.engaged for brake in brakes.values())
