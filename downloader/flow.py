"""How bytes flow through a download: handed over to a thread, and fast enough.

Responsible for: working off the event loop, one step ahead of the reader, and for the least rate. It must not know
where blocks come from or go to.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable
from types import TracebackType
from typing import Self

_MARKS_A_WINDOW = 32


class Handover:
    """Has a thread work for a sink, one step at a time, while the next one is being prepared.

    Leaving it waits until the thread is idle, also when cancelled; then what it raised is raised, unless the task was
    cancelled.
    """

    def __init__(self, executor: concurrent.futures.Executor | None) -> None:
        self._executor = executor
        self._writing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        writing = await self._idle()
        if writing is not None and (failure := writing.exception()) and not isinstance(error, asyncio.CancelledError):
            raise failure

    async def run(self, step: Callable[[], None]) -> None:
        """Start a step, once the one before it has ended; raise what that one raised."""
        await self.finish()
        self._writing = asyncio.get_running_loop().run_in_executor(self._executor, step)

    async def finish(self) -> None:
        """Wait until the present step has ended; raise what it raised."""
        writing = await self._idle()
        if writing is not None:
            writing.result()

    async def _idle(self) -> asyncio.Future[None] | None:
        """Wait for the present write, however often this task is cancelled meanwhile; return it, ended, once."""
        cancelled: asyncio.CancelledError | None = None
        while self._writing is not None and not self._writing.done():
            try:
                await asyncio.wait((self._writing,))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            if self._writing is not None:
                self._writing.exception()  # seen: a cancelled task has nobody to tell it to
            raise cancelled
        ended, self._writing = self._writing, None
        return ended


class Pace:
    """The least rate over a sliding window of time spent waiting."""

    def __init__(self, least_bytes_per_s: float, window_s: float) -> None:
        self._least = least_bytes_per_s
        self._window_s = window_s
        self._waited_s = 0.0
        self._received = 0
        self._marks = [(0.0, 0)]

    def holds(self, waited_s: float, size_bytes: int) -> bool:
        """Note what arrived after a wait; tell whether the rate is still kept."""
        self._waited_s += waited_s
        self._received += size_bytes
        marks = self._marks
        if self._waited_s - marks[-1][0] >= self._window_s / _MARKS_A_WINDOW:
            marks.append((self._waited_s, self._received))
        while len(marks) > 1 and self._waited_s - marks[1][0] >= self._window_s:
            del marks[0]
        span_s = self._waited_s - marks[0][0]
        return span_s < self._window_s or self._received - marks[0][1] >= self._least * span_s
