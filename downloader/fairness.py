"""Fairness: who may download now, so that neither one vendor, nor one host, nor a few huge files hold every place.

Responsible for: the places of one downloader, bounded for each vendor, each host and for large files, and the queue
that a report belongs in by the time that is left for it. Who finds no place is told so (`BusyError`) and put off; this
must not know when it comes again, nor files, HTTP or brokers.

A full vendor or host that gives back places is waited for, because that keeps first tries in their order. One that has
given back none for longer than its downloads take is not waited for at all: those who would wait hold the places of
others.

Each lane has bounds and places of its own; in the urgent one large files are not bounded.

Why so: `docs/adr/0010-lanes-and-places.md`, `docs/adr/0013-one-place-beyond.md`.
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from weakref import WeakValueDictionary

from downloader.fetch import Head, Held, Sink
from downloader.metrics import DownloaderMetrics
from shared.errors import BusyError, Reason
from shared.messaging.topology import DOWNLOADER, URGENT
from shared.vendors import Vendor

Lane = Literal["normal", "urgent"]

URGENT_FROM_PERCENT: Final = 80
"""Of the time to the deadline; also an at-risk mark, before which an attempt is always made."""

HOST_PATIENCE_S: Final = 2.0
VENDOR_PATIENCE_S: Final = 5.0
"""How long one that does not move is waited for while it is not known how long its downloads take: longer for a vendor,
since it costs every one of its reports its turn to pass it by."""

LONGEST_PATIENCE_S: Final = 30.0
"""However long its downloads take: a vendor or host that begins to hang holds up others for so long."""

_PACE_OF: Final = 8
"""The latest downloads by which the pace of a vendor or host is known."""

_MOST_REMEMBERED: Final = 10_000


def queue_for(received_at: datetime, deadline: datetime, moment: datetime) -> str:
    """Return the queue that a report belongs in which is looked at in that moment."""
    urgent_from = received_at + (deadline - received_at) * URGENT_FROM_PERCENT / 100
    return URGENT if moment >= urgent_from else DOWNLOADER


def lane_of(queue: str) -> Lane:
    """Return the lane that a queue feeds."""
    return "urgent" if queue == URGENT else "normal"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one lane.

    Attributes:
        per_vendor: reports of one vendor that are worked on at once.
        per_host: downloads from one host at once.
    """

    per_vendor: int
    per_host: int


class Places:
    """The places of one downloader.

    Args:
        bounds: of each lane.
        large: downloads of large files at once, in the normal lane.
        large_bytes: above this a file is large.
        host_patience_s: how long to wait for a host that does not move, while its pace is not known.
        vendor_patience_s: the same for a vendor.
        longest_patience_s: whatever the pace is.
    """

    def __init__(
        self,
        bounds: Mapping[Lane, Bounds],
        *,
        large: int,
        large_bytes: int,
        metrics: DownloaderMetrics,
        host_patience_s: float = HOST_PATIENCE_S,
        vendor_patience_s: float = VENDOR_PATIENCE_S,
        longest_patience_s: float = LONGEST_PATIENCE_S,
    ) -> None:
        self._bounds = bounds
        self._large = _LargeFiles(large, large_bytes)
        self._metrics = metrics
        self._host_patience_s = host_patience_s
        self._longest_patience_s = longest_patience_s
        self._vendors = {
            (lane, vendor): _Room(
                bound.per_vendor,
                Reason.VENDOR_BUSY,
                f"as many reports of {vendor} as may be are worked on already",
                patience_s=vendor_patience_s,
                longest_patience_s=longest_patience_s,
            )
            for lane, bound in bounds.items()
            for vendor in Vendor
        }
        self._hosts: WeakValueDictionary[tuple[Lane, str], _Room] = WeakValueDictionary()

    def expect(self, host: str, task: str, lane: Lane) -> None:
        """Return unless it is known that there would be no place: before anybody is asked for anything.

        Raises:
            BusyError: put it off.
        """
        if (room := self._hosts.get((lane, host))) is not None and room.stuck:
            raise room.busy
        if lane == "normal" and self._large.is_full_for(task):
            raise _large_busy()

    @asynccontextmanager
    async def of_vendor(self, vendor: Vendor, lane: Lane) -> AsyncGenerator[None, None]:
        """Hold one of a vendor's places while the context lasts: to ask it, and to download.

        Raises:
            BusyError: put it off.
        """
        async with self._vendors[lane, vendor].place():
            yield

    @asynccontextmanager
    async def take(self, vendor: Vendor, host: str, task: str, lane: Lane) -> AsyncGenerator["Place", None]:
        """Hold a place for a download while the context lasts, within a place of its vendor.

        Args:
            host: of the link that is followed.
            task: by which a file that proved to be large is known the next time.

        Raises:
            BusyError: put it off.
        """
        room = self._hosts.get((lane, host)) or self._room_for(host, lane)
        self._hosts[lane, host] = room
        async with room.place():
            place = Place(self._large if lane == "normal" else None, task)
            began = _now()
            try:
                with self._metrics.places.labels(lane).track_inprogress():
                    yield place
            finally:
                self._large.leave(place)
            for of_its_pace in (room, self._vendors[lane, vendor]):  # how long a failure took says nothing
                of_its_pace.took(_now() - began)

    def _room_for(self, host: str, lane: Lane) -> "_Room":
        return _Room(
            self._bounds[lane].per_host,
            Reason.HOST_BUSY,
            f"as much as may be is fetched from {host} already",
            patience_s=self._host_patience_s,
            longest_patience_s=self._longest_patience_s,
        )


class Place:
    """A place that is held.

    Args:
        large: where large files need one more place; None where they do not.
    """

    def __init__(self, large: "_LargeFiles | None", task: str) -> None:
        self._large = large
        self.task = task

    def watch(self, sink: Sink) -> Sink:
        """Return the sink, to be told `large_busy` before any byte of a large file for which there is no place."""
        return sink if self._large is None else _Watched(sink, self, self._large)


class _Watched:
    """A sink that looks at sizes. Called in worker threads, as any sink."""

    def __init__(self, sink: Sink, place: Place, large: "_LargeFiles") -> None:
        self._sink = sink
        self._place = place
        self._large = large
        self._size_bytes = 0

    def held(self, link: str) -> Held | None:
        return self._sink.held(link)

    def begin(self, head: Head) -> None:
        if (head.size_bytes or 0) > self._large.above_bytes and not self._large.enter(self._place):
            raise _large_busy()
        self._size_bytes = head.offset
        self._sink.begin(head)

    def write(self, block: bytes) -> None:
        before, self._size_bytes = self._size_bytes, self._size_bytes + len(block)
        if before <= self._large.above_bytes < self._size_bytes:  # its size was not told: too late to stop it
            self._large.enter(self._place, beyond=True)
        self._sink.write(block)


class _Room:
    """The places for one vendor or host; first come, first served.

    Args:
        reason, detail: what tells that there is none.
        patience_s: how long to wait while nothing moves and the pace is not known.
        longest_patience_s: and how long at most where it is.
    """

    def __init__(
        self, places: int, reason: Reason, detail: str, *, patience_s: float, longest_patience_s: float
    ) -> None:
        self._free = asyncio.Semaphore(places)
        self._reason = reason
        self._detail = detail
        self._patience_s = patience_s
        self._longest_patience_s = longest_patience_s
        self._took_s: deque[float] = deque(maxlen=_PACE_OF)
        self._moved_at = -math.inf

    @property
    def busy(self) -> BusyError:
        """What to raise where there is no place."""
        return BusyError(self._reason, self._detail)

    @property
    def stuck(self) -> bool:
        """Whether it is full, and no place was taken or given back for longer than its downloads take."""
        return self._free.locked() and _now() - self._moved_at >= self._waited_for_s

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None, None]:
        """Hold a place while the context lasts.

        Raises:
            BusyError: there is none, and none came free in time.
        """
        if self.stuck:
            raise self.busy
        try:
            async with asyncio.timeout(self._waited_for_s):
                await self._free.acquire()
        except TimeoutError:
            raise self.busy from None
        self._moved_at = _now()
        try:
            yield
        finally:
            self._free.release()
            self._moved_at = _now()

    def took(self, duration_s: float) -> None:
        """Note how long a download took that ended well."""
        self._took_s.append(duration_s)

    @property
    def _waited_for_s(self) -> float:
        """Within the time that its downloads take, every place of one that moves is given back once."""
        return max(self._patience_s, min(max(self._took_s, default=0.0), self._longest_patience_s))


class _LargeFiles:
    """The places for large files, and which those are. Safe to use in several threads."""

    def __init__(self, places: int, above_bytes: int) -> None:
        self.above_bytes = above_bytes
        self._places = places
        self._lock = threading.Lock()
        self._taken: set[Place] = set()
        self._known: dict[str, None] = {}

    def is_full_for(self, task: str) -> bool:
        """Tell whether a task's file proved to be large, and there is no place for it."""
        return task in self._known and len(self._taken) >= self._places

    def enter(self, place: Place, *, beyond: bool = False) -> bool:
        """Take a place for a large file; False where there is none. Idempotent."""
        with self._lock:
            self._known[place.task] = None
            if len(self._known) > _MOST_REMEMBERED:
                del self._known[next(iter(self._known))]
            if place not in self._taken and len(self._taken) >= self._places and not beyond:
                return False
            self._taken.add(place)
            return True

    def leave(self, place: Place) -> None:
        """Give back what was taken, if anything was."""
        with self._lock:
            self._taken.discard(place)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _large_busy() -> BusyError:
    return BusyError(Reason.LARGE_BUSY, "as many large files as may be are fetched already")
