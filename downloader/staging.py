"""The folder that attempts are proven in.

Responsible for: lending attempts, keeping a cut download, or a whole file that is not stored yet, for the next one, and
leaving nothing else behind. It must not know where the bytes come from or where the file goes.
"""

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from downloader.attempt import Attempt, NotedAttempt, Proof
from downloader.flow import Handover
from downloader.keeping_metrics import KeepingMetrics
from downloader.partial import Claim, Partials, Stands, WholeLetGo, name_of, nothing
from downloader.proven import Proven
from downloader.space import STAGING, DiskFullError, Room, Space
from downloader.storage import translating
from shared import tasks
from shared.errors import PermanentError, Reason, RetryableError, StartError

log = structlog.get_logger()

T = TypeVar("T")

DEFAULT_PARTIAL_BYTES: Final = 8 * 1024**3
"""Kept of cut downloads at most, all together."""

LEAST_PROGRESS_BYTES: Final = 1024 * 1024
"""An attempt that gained less has not brought the file forward: a server that drips is not asked again at once."""

_REMEMBERED: Final = 65_536
"""Names of tasks that a whole file waits of; beyond, one that is over is forgotten like any other that has none."""

_WAY_TO_THE_FILE: Final = frozenset(
    {
        Reason.HOST_UNRESOLVED,
        Reason.CONNECTION_FAILED,
        Reason.CERTIFICATE_INVALID,
        Reason.TIMED_OUT,
        Reason.TOO_SLOW,
        Reason.LINK_EXPIRED,
        Reason.HTTP_REFUSED,
        Reason.HTTP_FAILED,
        Reason.BODY_CUT,
        Reason.LARGE_BUSY,
    }
)
"""Failures that say nothing against the bytes that are there."""


class Staging:
    """The folder attempts are proven in.

    Args:
        folder: local, created if missing.
        executor: runs what blocks.
        partial_bytes: kept of cut downloads at most.
        space: the room that all attempts share; None for whatever is there.
        metrics: counts what could not be removed, and what had to be; None counts nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        executor: Executor,
        partial_bytes: int = DEFAULT_PARTIAL_BYTES,
        space: Space | None = None,
        metrics: KeepingMetrics | None = None,
    ) -> None:
        self._folder = folder
        self._space = space
        self._metrics = metrics
        self._executor = executor
        self._partials = Partials(folder, max_bytes=partial_bytes, let_go=self._let_go)
        self._whole: set[str] = set()

    async def start(self) -> int:
        """Create the folder, and remove what a crash left and nobody can go on from; return how many files that were.

        Raises:
            StartError: the folder cannot be used.
        """

        def prepare() -> int:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            swept = self._partials.sweep()
            self._whole.update(self._partials.whole())
            return swept

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, prepare)
        except OSError as error:
            raise StartError(
                f"The staging folder {self._folder} cannot be used ({error}). Check WAVEKEEP_DATA_DIR."
            ) from error

    @asynccontextmanager
    async def attempt(self, task: str | None = None, *, stands: Stands = nothing) -> AsyncGenerator[Attempt, None]:
        """Lend an attempt; on the way out what it left is removed, or kept for the next attempt at the same task.

        Kept is what broke off on its way, also by our own end; and what is proven, unless it was stored (then this is
        left without an error) or never will be. An error of an attempt that brought the file forward says so
        (`progressed`).

        Args:
            task: names what is fetched; None where no other attempt goes on from this one.
            stands: tells of a whole file of the task whether it may stand for this one; others wait for who asks.

        Raises:
            RetryableError: the disk is full or fails.
        """
        loop = asyncio.get_running_loop()
        lent = keep = False

        def make(task: str | None, claim: Claim | None, room: Room | None) -> Attempt:
            if task is None:
                return Attempt(self._folder / f"{uuid.uuid4().hex}.part", room=room)
            return NotedAttempt(claim.path if claim else self._partials.new(task), claim, room, self._partials)

        def begin() -> Attempt:
            with contextlib.ExitStack() as undo, translating():
                claim = None if task is None else self._partials.claim(task, stands)
                if claim is not None:  # before there is room: what is ours is not let go to make some
                    undo.callback(os.close, claim.file)
                room = self._enter(whole=claim is not None and claim.note.proven is not None)
                if room is not None:
                    undo.callback(room.close)
                attempt = make(task, claim, room)
                undo.pop_all()
                return attempt

        beginning = loop.run_in_executor(self._executor, begin)
        try:
            attempt = await asyncio.shield(beginning)
            lent = True
            try:
                yield attempt
            except asyncio.CancelledError:
                keep = task is not None
                raise
            except PermanentError:
                raise
            except RetryableError as error:
                on_its_way = task is not None and error.reason in _WAY_TO_THE_FILE
                error.progressed = (
                    on_its_way and attempt.left is not None and attempt.gained_bytes >= LEAST_PROGRESS_BYTES
                )
                keep = on_its_way or (task is not None and attempt.waits)
                raise
            except BaseException:
                keep = task is not None and attempt.waits
                raise
        finally:
            await tasks.finish(self._end(beginning, task, lent=lent, keep=keep))

    async def forget(self, task: str, *, whole: bool = True) -> None:
        """Remove what is left of a task that needs no other attempt. A disk that fails is told, and never raised.

        Args:
            whole: the whole file too, because it is stored; else it waits for whoever asks for it again.
        """
        work = partial(self._partials.forget_task, task, whole=whole)
        try:
            with translating():
                await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except RetryableError as error:
            if self._metrics is not None:
                self._metrics.not_forgotten.inc()
            log.warning("staging.not_forgotten", reason=error.reason, detail=error.detail)
        if whole:
            self._whole.discard(name_of(task))

    def holds_whole(self, task: str) -> bool:
        """Tell whether a whole file of a task waits here to be stored, as far as this process knows."""
        return name_of(task) in self._whole

    async def size_bytes(self, path: Path) -> int:
        """Return the size of what was drawn of an attempt.

        Raises:
            RetryableError: the disk fails.
        """
        with translating():
            status = await asyncio.get_running_loop().run_in_executor(self._executor, path.stat)
        return status.st_size

    def added(self, key: str, size_bytes: int, *, held: bool) -> None:
        """Take note that what was drawn of an attempt is in storage; `held`: it was there before."""
        if self._space is not None:
            self._space.added(key, size_bytes, held=held)

    def removed(self, key: str) -> None:
        """Take note that what was kept is deleted from storage."""
        if self._space is not None:
            self._space.removed(key)

    def _enter(self, *, whole: bool) -> Room | None:
        """Begin an attempt; where this disk has no room, cut downloads go before it is refused, the oldest first.

        Args:
            whole: the file is here already, and needs no more of this disk.
        """
        while self._space is not None:
            try:
                return self._space.enter(staged=whole)
            except DiskFullError as error:  # what else refuses is not helped by room on this disk
                if error.disk != STAGING or not self._partials.drop_oldest():
                    raise
        return None

    def _let_go(self, reason: WholeLetGo, size_bytes: int) -> None:
        if self._metrics is not None:
            self._metrics.whole_let_go.labels(reason).inc()
        log.warning("staging.whole_let_go", reason=reason, size_bytes=size_bytes)

    def sweep(self, *, older_than_s: float) -> int:
        """Remove what nobody can go on from; return how many files that were. Blocking.

        Args:
            older_than_s: leave what is younger: an attempt may be about to begin.

        Raises:
            RetryableError: the disk fails.
        """
        with translating():
            swept = self._partials.sweep(older_than_s=older_than_s)
            self._whole &= self._partials.whole()
            return swept

    def waiting(self) -> frozenset[str]:
        """Return the names of the tasks that something is left of, see `named`. Blocking.

        Raises:
            RetryableError: the disk fails.
        """
        with translating():
            return self._partials.tasks()

    @staticmethod
    def named(task: str) -> str:
        """Return the name of a task among those that are `waiting`."""
        return name_of(task)

    async def recover(self, attempt: Attempt) -> Proven | None:
        """Read again what an earlier attempt proved, off the event loop; see `Attempt.recover`."""
        return await self._work(attempt.recover)

    async def note(self, attempt: Attempt, proven: Proven) -> None:
        """Note what was proven, off the event loop; see `Attempt.note`.

        Raises:
            RetryableError: the disk fails.
        """
        await self._work(partial(attempt.note, proven))

    async def prove(self, attempt: Attempt, *, body_proven_complete: bool) -> Proof:
        """Judge an attempt off the event loop; see `Attempt.prove`."""
        return await self._work(partial(attempt.prove, body_proven_complete=body_proven_complete))

    async def _work(self, work: Callable[[], T]) -> T:
        """Have a thread work on an attempt, and wait for it also when cancelled.

        Else its descriptor would be closed, and belong to another file, while the thread is still at it.
        """
        results: list[T] = []
        async with Handover(self._executor) as handover:
            await handover.run(lambda: results.append(work()))
        return results[0]

    async def _end(self, beginning: asyncio.Future[Attempt], task: str | None, *, lent: bool, keep: bool) -> None:
        """Close an attempt, also one whose beginning was cancelled while the thread was still at it."""
        with contextlib.suppress(RetryableError, OSError):
            attempt = await beginning
            close = partial(attempt.close, self._partials if keep else None) if lent else attempt.abandon
            await asyncio.get_running_loop().run_in_executor(self._executor, close)
        if task is None:
            return
        with contextlib.suppress(OSError):
            whole = await asyncio.get_running_loop().run_in_executor(self._executor, self._partials.whole, task)
            self._whole.discard(name_of(task))
            if len(self._whole) < _REMEMBERED:
                self._whole |= whole
