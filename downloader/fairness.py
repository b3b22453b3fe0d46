"""Fairness: who may download now, so that neither one host nor a few huge files hold every place.

Responsible for: the places of one downloader, bounded for each host and for large files, and the queue that a report
belongs in by the time that is left for it. Who finds no place is told so (`BusyError`) and put off; this must not know
when it comes again, nor files, HTTP or brokers.

A full host that gives back places is waited for a moment, because that keeps first tries in their order. One that has
given back none for longer than that is not waited for at all: those who would wait hold the places of others.

In the urgent lane nothing is bounded: it has few places, and nobody else's.
"""

import asyncio
import math
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, Literal
from weakref import WeakValueDictionary

from downloader.fetch import Head, Held, Sink
from downloader.metrics import DownloaderMetrics
from shared.errors import BusyError, Reason
from shared.messaging.topology import DOWNLOADER, URGENT

Lane = Literal["normal", "urgent"]

URGENT_FROM_PERCENT: Final = 80
"""Of the time to the deadline; also an at-risk mark, before which an attempt is always made."""

PATIENCE_S: Final = 2.0

_MOST_REMEMBERED: Final = 10_000


def queue_for(received_at: datetime, deadline: datetime, moment: datetime) -> str:
    """Return the queue that a report belongs in which is looked at in that moment."""
    urgent_from = received_at + (deadline - received_at) * URGENT_FROM_PERCENT / 100
    return URGENT if moment >= urgent_from else DOWNLOADER


def lane_of(queue: str) -> Lane:
    """Return the lane that a queue feeds."""
    return "urgent" if queue == URGENT else "normal"


class Places:
    """The places of one downloader.

    Args:
        per_host: downloads from one host at once, in the normal lane.
        large: downloads of large files at once, in the normal lane.
        large_bytes: above this a file is large.
        patience_s: how long to wait for a host that moves.
    """

    def __init__(
        self,
        *,
        per_host: int,
        large: int,
        large_bytes: int,
        metrics: DownloaderMetrics,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._per_host = per_host
        self._large = _LargeFiles(large, large_bytes)
        self._metrics = metrics
        self._patience_s = patience_s
        self._hosts: WeakValueDictionary[str, _Host] = WeakValueDictionary()

    def expect(self, host: str, task: str, lane: Lane) -> None:
        """Return unless it is known that there would be no place: before anybody is asked for anything.

        Raises:
            BusyError: put it off.
        """
        if lane == "urgent":
            return
        if (room := self._hosts.get(host)) is not None and room.stuck:
            raise _host_busy(host)
        if self._large.is_full_for(task):
            raise _large_busy()

    @asynccontextmanager
    async def take(self, host: str, task: str, lane: Lane) -> AsyncGenerator["Place", None]:
        """Hold a place for a download while the context lasts.

        Args:
            host: of the link that is followed.
            task: by which a file that proved to be large is known the next time.

        Raises:
            BusyError: put it off.
        """
        taken = self._metrics.places.labels(lane).track_inprogress
        if lane == "urgent":
            with taken():
                yield Place(None, task)
            return
        room = self._hosts.get(host) or _Host(self._per_host, self._patience_s)
        self._hosts[host] = room
        if not await room.enter():
            raise _host_busy(host)
        place = Place(self._large, task)
        try:
            with taken():
                yield place
        finally:
            self._large.leave(place)
            room.leave()


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


class _Host:
    """The places for one host; first come, first served."""

    def __init__(self, places: int, patience_s: float) -> None:
        self._free = asyncio.Semaphore(places)
        self._patience_s = patience_s
        self._moved_at = -math.inf

    @property
    def stuck(self) -> bool:
        """Whether it is full, and no place was taken or given back of late."""
        return self._free.locked() and asyncio.get_running_loop().time() - self._moved_at >= self._patience_s

    async def enter(self) -> bool:
        """Take a place; False where there is none, and none came free within a moment."""
        if self.stuck:
            return False
        try:
            async with asyncio.timeout(self._patience_s):
                await self._free.acquire()
        except TimeoutError:
            return False
        self._moved()
        return True

    def leave(self) -> None:
        """Give a place back."""
        self._free.release()
        self._moved()

    def _moved(self) -> None:
        self._moved_at = asyncio.get_running_loop().time()


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


def _host_busy(host: str) -> BusyError:
    return BusyError(Reason.HOST_BUSY, f"as much as may be is fetched from {host} already")


def _large_busy() -> BusyError:
    return BusyError(Reason.LARGE_BUSY, "as many large files as may be are fetched already")
