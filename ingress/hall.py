"""Who may stay: connections and callbacks in hand, both bounded.

Responsible for: which connection gives way when there is one too many, and which callback is turned away or cut short
when too many are in hand. It must not touch a socket, and it knows no HTTP.
"""

from asyncio import Timeout, get_running_loop, timeout
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Generic, TypeVar

C = TypeVar("C")

PATIENCE_S = 1.0
"""How long a body may take where others wait for its place: a callback is one packet, whoever needs longer is slow."""


class Hall(Generic[C]):
    """The open connections.

    Whoever is in the middle of a request stays. Of the others a connection gives way that never brought a callback,
    the oldest first; then the one that has been without work for longest. So strangers push out strangers, however
    slowly they speak, and a good caller has as long as it takes to fill the hall anew.

    Args:
        most: connections.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._strangers: dict[C, None] = {}
        self._known: dict[C, None] = {}
        self._busy: set[C] = set()

    def __len__(self) -> int:
        return len(self._strangers) + len(self._known) + len(self._busy)

    def enter(self, newcomer: C) -> C | None:
        """Take one in; return who has to be closed for it: the newcomer itself where all others are at work."""
        leaving: C | None = None
        if len(self) >= self.most:
            leaving = next(iter(self._strangers or self._known), newcomer)
            self.leave(leaving)
        if leaving is not newcomer:
            self._strangers[newcomer] = None
        return leaving

    def busy(self, connection: C) -> None:
        """Keep it: a request came."""
        if connection in self._strangers or connection in self._known:
            self.leave(connection)
            self._busy.add(connection)

    def idle(self, connection: C, *, known: bool) -> None:
        """Let it give way again: it has no request any more. `known`: it brought a callback that was taken."""
        if connection in self._busy:
            self._busy.discard(connection)
            (self._known if known else self._strangers)[connection] = None

    def leave(self, connection: C) -> None:
        """Forget it. Idempotent."""
        self._strangers.pop(connection, None)
        self._known.pop(connection, None)
        self._busy.discard(connection)


class NoPlaceError(Exception):
    """Too many callbacks are in hand."""


class CutShortError(Exception):
    """A body took too long, as others wait."""


class Place:
    """The place of one callback in hand."""

    __slots__ = ("given_away",)

    def __init__(self) -> None:
        self.given_away = False


class Desk:
    """The callbacks in hand: being read, or waiting for their confirmation.

    Args:
        most: callbacks at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = most
        self._readings: dict[Place, tuple[float, Timeout]] = {}

    @property
    def in_hand(self) -> int:
        """How many places are taken."""
        return self._most - self._free

    @contextmanager
    def place(self) -> Generator[Place, None, None]:
        """Hold a place while the context lasts.

        Where none is free, the body that has been read for longest gives up its own, if that is over `PATIENCE_S`.

        Raises:
            NoPlaceError: all are taken by those who need them.
        """
        if not self._free:
            self._cut_short()
        self._free -= 1
        place = Place()
        try:
            yield place
        finally:
            if not place.given_away:
                self._free += 1

    @asynccontextmanager
    async def reading(self, place: Place, timeout_s: float) -> AsyncGenerator[None, None]:
        """Read within a time that ends early where others wait for the place.

        Raises:
            CutShortError: the place was given away.
            TimeoutError: the whole time is over.
        """
        try:
            async with timeout(timeout_s) as bound:
                self._readings[place] = get_running_loop().time(), bound
                try:
                    yield
                finally:
                    del self._readings[place]
        except TimeoutError:
            if place.given_away:
                raise CutShortError from None
            raise

    def _cut_short(self) -> None:
        now = get_running_loop().time()
        for place, (since, bound) in self._readings.items():  # the first to come is the first to look at
            if place.given_away or bound.expired():
                continue
            if now - since < PATIENCE_S:
                break
            place.given_away = True
            self._free += 1
            bound.reschedule(now)
            return
        raise NoPlaceError
