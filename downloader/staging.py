"""Proving a file while it arrives.

Responsible for: writing one attempt to local disk while hashing it and walking its structure, in one pass over the
bytes; for keeping a cut download for the next attempt, and leaving nothing else behind. It must not know where the
bytes come from or where the file goes.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from downloader.answer import Known
from downloader.digests import MD5_HINT, Checker
from downloader.fetch import Head, Held
from downloader.partial import Claim, Partials, forget, unnote
from downloader.space import Room, Space
from downloader.storage import translating
from downloader.wav import Judgement, Walker
from shared.errors import Reason, RetryableError, StartError
from shared.events import digest
from shared.links import identity

DEFAULT_PARTIAL_BYTES: Final = 8 * 1024**3
"""Kept of cut downloads at most, all together."""

LEAST_PROGRESS_BYTES: Final = 1024 * 1024
"""An attempt that gained less has not brought the file forward: a server that drips is not asked again at once."""

_READ_BYTES: Final = 1024 * 1024

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


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proven of a whole file.

    Attributes:
        sha256: in hex, computed over the bytes as they came.
        matched, differs: digests that the server sent, by name: those that are of these bytes, and those that are not.
    """

    judgement: Judgement
    sha256: str
    matched: tuple[str, ...]
    differs: tuple[str, ...]

    @property
    def digest(self) -> Literal["own", "server"]:
        """What the bytes were held against; an ETag is only a hint."""
        return "server" if set(self.matched) - {MD5_HINT} else "own"


class Attempt:
    """One attempt at one file: a sink that is blind to its source.

    Args:
        path: of the staged file, which must not exist; or of the claim.
        claim: what an earlier attempt left.
        room: what it may take of the disks; None for whatever is there.

    Attributes:
        size_bytes: of the file so far.
    """

    def __init__(self, path: Path, claim: Claim | None = None, room: Room | None = None) -> None:
        self.path = path
        self._claim = claim
        self._room = room
        if claim is None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        else:
            self._file = claim.file
        self._head: Head | None = None
        self._begin_anew()

    @property
    def gained_bytes(self) -> int:
        """How much further this attempt came than the one before; 0 where it had to begin at the beginning again."""
        if self._claim is None:
            return self.size_bytes
        went_on = self._head is not None and self._head.offset > 0
        return self.size_bytes - self._claim.size_bytes if went_on else 0

    @property
    def left(self) -> tuple[str, Known] | None:
        """What is known of what is there, and of which link, for another attempt to go on from; None where none can."""
        if self._head is not None:
            known = self._head.known
            return (_identity(self._head.link), known) if known is not None and self.size_bytes else None
        return None if self._claim is None else (self._claim.note.identity, self._claim.note.known)

    def held(self, link: str) -> Held | None:
        """Return what is there already of the file behind a link."""
        claim = self._claim
        if claim is None or self._head is not None or claim.note.identity != _identity(link):
            return None
        return Held(claim.size_bytes, claim.note.known)

    def begin(self, head: Head) -> None:
        """Take note of what follows: the rest of what is held, or a file from its beginning. Runs in a thread.

        What is held is read again, for its digest and its structure.

        Raises:
            RetryableError, PermanentError: the disk fails, or the bytes cannot become a WAV.
        """
        self._begin_anew(Checker(head.promised, head.md5_hint))
        self._head = head
        with translating():
            os.lseek(self._file, 0, os.SEEK_SET)
            while self.size_bytes < head.offset:
                block = os.read(self._file, min(_READ_BYTES, head.offset - self.size_bytes))
                if not block:
                    raise RetryableError(Reason.STORAGE_FAILED, "a partial file became shorter")
                self._take(block)
            os.ftruncate(self._file, head.offset)
        if self._room is not None:
            self._room.announce(head.size_bytes, there_bytes=head.offset)

    def write(self, block: bytes) -> None:
        """Take the next bytes; runs in a thread.

        Raises:
            RetryableError, PermanentError: the disk fails, or the bytes cannot become a WAV.
        """
        self._take(block)
        if self._room is not None:
            self._room.take(self.size_bytes)
        with translating():
            view = memoryview(block)
            while view:
                view = view[os.write(self._file, view) :]

    def prove(self, *, body_proven_complete: bool) -> Proof:
        """Judge the whole, and sync it to disk. Runs in a thread.

        Raises:
            RetryableError, PermanentError: the file is not whole, or not one we keep; or the disk fails.
        """
        judgement = self._walker.finish(body_proven_complete=body_proven_complete)
        matched, differs = self._checker.finish()
        with translating():
            os.fsync(self._file)
        return Proof(judgement, self._hash.hexdigest(), matched, differs)

    def kept(self, key: str) -> None:
        """Take note that the file is in storage."""
        if self._room is not None:
            self._room.kept(key)

    def close(self, partials: Partials | None = None) -> None:
        """Let go of the file: leave it to the next attempt where `partials` are given, else remove what is there."""
        try:
            if partials is not None and (left := self.left) is not None:
                partials.keep(self.path, self._file, identity=left[0], known=left[1])
            else:
                forget(self.path)
        finally:
            try:
                os.close(self._file)
            finally:
                if self._room is not None:
                    self._room.close()

    def _begin_anew(self, checker: Checker | None = None) -> None:
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        self._walker = Walker()
        self._checker = checker or Checker()

    def _take(self, block: bytes) -> None:
        self._walker.feed(block)
        self._hash.update(block)
        self._checker.update(block)
        self.size_bytes += len(block)


class _NotedAttempt(Attempt):
    """An attempt that a crash may leave behind: what is known of it is written down before its bytes are."""

    def __init__(self, path: Path, claim: Claim | None, room: Room | None, partials: Partials) -> None:
        super().__init__(path, claim, room)
        self._partials = partials

    def begin(self, head: Head) -> None:
        """See the base: and no note ever stands beside bytes that it is not about."""
        if not head.offset:
            with translating():
                unnote(self.path)
        super().begin(head)
        if not head.offset and head.known is not None:
            with translating():
                self._partials.note(self.path, identity=_identity(head.link), known=head.known)


class Staging:
    """The folder attempts are proven in.

    Args:
        folder: local, created if missing.
        executor: runs what blocks.
        partial_bytes: kept of cut downloads at most.
        space: the room that all attempts share; None for whatever is there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        executor: Executor,
        partial_bytes: int = DEFAULT_PARTIAL_BYTES,
        space: Space | None = None,
    ) -> None:
        self._folder = folder
        self._space = space
        self._executor = executor
        self._partials = Partials(folder, max_bytes=partial_bytes)

    async def start(self) -> int:
        """Create the folder, and remove what a crash left and nobody can go on from; return how many files that were.

        Raises:
            StartError: the folder cannot be used.
        """

        def prepare() -> int:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return self._partials.sweep()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, prepare)
        except OSError as error:
            raise StartError(
                f"The staging folder {self._folder} cannot be used ({error}). Check WAVEKEEP_DATA_DIR."
            ) from error

    @asynccontextmanager
    async def attempt(self, task: str | None = None) -> AsyncGenerator[Attempt, None]:
        """Lend an attempt; on the way out what it left is removed, or kept for the next attempt at the same task.

        Kept is what broke off on its way, also by our own end. An error of an attempt that brought the file forward
        says so (`progressed`).

        Args:
            task: names what is fetched; None where no other attempt goes on from this one.

        Raises:
            RetryableError: the disk is full or fails.
        """
        loop = asyncio.get_running_loop()
        keep = False

        def make(room: Room | None) -> Attempt:
            if task is None:
                return Attempt(self._folder / f"{uuid.uuid4().hex}.part", room=room)
            claim = self._partials.claim(task)
            return _NotedAttempt(claim.path if claim else self._partials.new(task), claim, room, self._partials)

        def begin() -> Attempt:
            room = self._enter()
            try:
                with translating():
                    return make(room)
            except BaseException:
                if room is not None:
                    room.close()
                raise

        beginning = loop.run_in_executor(self._executor, begin)
        try:
            attempt = await asyncio.shield(beginning)
            try:
                yield attempt
            except asyncio.CancelledError:
                keep = task is not None
                raise
            except RetryableError as error:
                keep = task is not None and error.reason in _WAY_TO_THE_FILE
                error.progressed = keep and attempt.left is not None and attempt.gained_bytes >= LEAST_PROGRESS_BYTES
                raise
        finally:
            await asyncio.shield(self._end(beginning, self._partials if keep else None))

    async def forget(self, task: str) -> None:
        """Remove what is left of a task that needs no other attempt."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._partials.forget_task, task)

    def _enter(self) -> Room | None:
        """Begin an attempt; where there is no room, cut downloads go before it is refused, the oldest first."""
        while self._space is not None:
            try:
                return self._space.enter()
            except RetryableError:
                if not self._partials.drop_oldest():
                    raise
        return None

    def sweep(self, *, older_than_s: float) -> int:
        """Remove what nobody can go on from; return how many files that were. Blocking.

        Args:
            older_than_s: leave what is younger: an attempt may be about to begin.

        Raises:
            RetryableError: the disk fails.
        """
        with translating():
            return self._partials.sweep(older_than_s=older_than_s)

    async def prove(self, attempt: Attempt, *, body_proven_complete: bool) -> Proof:
        """Judge an attempt off the event loop; see `Attempt.prove`."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: attempt.prove(body_proven_complete=body_proven_complete)
        )

    async def _end(self, beginning: asyncio.Future[Attempt], partials: Partials | None) -> None:
        """Close an attempt, also one whose beginning was cancelled while the thread was still at it."""
        with contextlib.suppress(RetryableError, OSError):
            attempt = await beginning
            await asyncio.get_running_loop().run_in_executor(self._executor, partial(attempt.close, partials))


def _identity(link: str) -> str:
    return digest(identity(link))
