"""Proving a file while it arrives.

Responsible for: writing one attempt to local disk while hashing it and walking its structure, in one pass over the
bytes, and for leaving nothing behind. It must not know where the bytes come from or where the file goes.
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
from pathlib import Path

from downloader.storage import sweep, translating
from downloader.wav import Judgement, Walker
from shared.errors import RetryableError, StartError


class Attempt:
    """One attempt at one file: a sink that is blind to its source.

    Attributes:
        path: of the staged file.
        size_bytes: written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._hash = hashlib.sha256()
        self._walker = Walker()

    def write(self, block: bytes) -> None:
        """Take the next bytes; runs in a thread.

        Raises:
            RetryableError, PermanentError: the disk fails, or the bytes cannot become a WAV.
        """
        self._walker.feed(block)
        self._hash.update(block)
        with translating():
            view = memoryview(block)
            while view:
                view = view[os.write(self._file, view) :]
        self.size_bytes += len(block)

    def prove(self, *, body_proven_complete: bool) -> tuple[Judgement, str]:
        """Judge the whole, and sync it to disk; return the judgement and the SHA-256 in hex. Runs in a thread.

        Raises:
            RetryableError, PermanentError: the file is not whole, or not one we keep; or the disk fails.
        """
        judgement = self._walker.finish(body_proven_complete=body_proven_complete)
        with translating():
            os.fsync(self._file)
        return judgement, self._hash.hexdigest()

    def close(self) -> None:
        """Let go of the file, and remove it unless it was moved away."""
        self.path.unlink(missing_ok=True)
        os.close(self._file)


class Staging:
    """The folder attempts are proven in.

    Args:
        folder: local, created if missing.
        executor: runs what blocks.
    """

    def __init__(self, folder: Path, *, executor: Executor) -> None:
        self._folder = folder
        self._executor = executor

    async def start(self) -> int:
        """Create the folder, and remove what a crash left; return how many files that were.

        Raises:
            StartError: the folder cannot be used.
        """

        def prepare() -> int:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return sweep(self._folder)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, prepare)
        except OSError as error:
            raise StartError(
                f"The staging folder {self._folder} cannot be used ({error}). Check WAVEKEEP_DATA_DIR."
            ) from error

    @asynccontextmanager
    async def attempt(self) -> AsyncGenerator[Attempt, None]:
        """Lend a new attempt; whatever it left is removed on the way out.

        Raises:
            RetryableError: the disk is full or fails.
        """
        loop = asyncio.get_running_loop()

        def begin() -> Attempt:
            with translating():
                return Attempt(self._folder / f"{uuid.uuid4().hex}.part")

        beginning = loop.run_in_executor(self._executor, begin)
        try:
            yield await asyncio.shield(beginning)
        finally:
            await asyncio.shield(self._end(beginning))

    async def prove(self, attempt: Attempt, *, body_proven_complete: bool) -> tuple[Judgement, str]:
        """Judge an attempt off the event loop; see `Attempt.prove`."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: attempt.prove(body_proven_complete=body_proven_complete)
        )

    async def _end(self, beginning: asyncio.Future[Attempt]) -> None:
        """Close an attempt, also one whose beginning was cancelled while the thread was still at it."""
        with contextlib.suppress(RetryableError):
            attempt = await beginning
            await asyncio.get_running_loop().run_in_executor(self._executor, attempt.close)
