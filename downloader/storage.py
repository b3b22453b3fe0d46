"""Where files are kept: the storage port, and what all that work on a local disk share.

Responsible for: what any storage promises, telling a full disk from a broken one, and sweeping what dead writers left.
It must not know what a manifest is, nor where anything is kept: `downloader.storage_folder` and
`downloader.storage_object` do.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from shared.errors import Reason, RetryableError

T = TypeVar("T")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing tells of one object.

    Attributes:
        modified_at: when it was put there, in UTC, by the storage's clock; perhaps without the fraction of a second.
    """

    key: str
    size_bytes: int
    modified_at: datetime


class Storage(Protocol):
    """Whatever keeps files. Keys are relative, with `/`. Each call raises `RetryableError` when it failed.

    Attributes:
        local: a call is work of this machine's, done in a thread, and not an answer of another one that is waited for.
    """

    local: bool

    async def start(self) -> None:
        """Prove by real writes that files can be kept, and created conditionally.

        Raises:
            StartError: not writable, or a second conditional create of one key succeeds: this storage gives no single
                writer.
        """

    async def ask(self) -> None:
        """Return if it answers now, and a disk takes a file; costs next to nothing, and leaves nothing."""

    async def keep(self, staged: Path, key: str) -> None:
        """Put a staged, synced file under its key, durably. What was there had the same content, or is damaged.

        The staged one stays as it is, since nobody has read what is kept again yet, or made a manifest of it: whoever
        staged it removes it. It must not be written to any more: what is kept may be the same file under another name.
        """

    async def create(self, key: str, content: bytes) -> bool:
        """Create an object, durably and whole; False, and nothing changed, where the key is taken.

        What was there is durable too when this returns.
        """

    async def replace(self, key: str, content: bytes) -> None:
        """Put an object under its key, durably, whatever was there; a crash leaves the old or the new one whole."""

    async def read(self, key: str) -> bytes | None:
        """Return a small object, or None."""

    async def exists(self, key: str) -> bool:
        """Tell whether the key is taken."""

    async def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

    async def digest(self, key: str) -> tuple[int, str]:
        """Read an object again; return its size in bytes and its SHA-256 in hex. Memory does not grow with the size."""

    async def together(self, work: Callable[["Storage"], Coroutine[Any, Any, T]]) -> T:
        """Do work of many small calls in sequence, through the storage that it is handed; return what it returns.

        Where calls are made in threads, all of the work is done in one, in an event loop of its own: it must touch
        nothing of the caller's loop, and should be short, since it goes on to its end where the caller is cancelled.
        """

    def list(self, prefix: str = "") -> AsyncIterator[Entry]:
        """Yield every object whose key begins with these whole parts of a path; all by default.

        What is in one folder comes in the order of its keys; folders in no promised order. What comes or goes meanwhile
        may be told or not. Memory does not grow with their number, and no other call waits for a listing.
        """

    def uri(self, key: str) -> str:
        """Return the address others find it under."""


class Uploads(Protocol):
    """Uploads to an object store that were begun and not ended."""

    def sweep(self) -> AsyncIterator[str]:
        """Abort what nobody can be at any more; yield the key of each once it is gone. Raises a `StoreError`."""


@contextlib.contextmanager
def translating() -> Generator[None, None, None]:
    """Turn what the operating system says about a disk into our words: full, or failed."""
    try:
        yield
    except OSError as error:
        reason = Reason.STORAGE_FULL if error.errno in _FULL else Reason.STORAGE_FAILED
        raise RetryableError(reason, f"{error.strerror or type(error).__name__}") from error


def sweep(folder: Path, *, older_than_s: float = 0.0) -> int:
    """Remove the temporary files whose writers are gone; return how many. A living writer holds a lock on its file.

    Args:
        older_than_s: leave what is younger: beside a running service, its writer may not have locked it yet.
    """
    swept = 0
    for path in folder.iterdir():
        # a living writer may end, or another process sweep, at any moment
        with contextlib.suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if older_than_s and time.time() - os.fstat(file.fileno()).st_mtime < older_than_s:
                continue
            path.unlink()
            swept += 1
    return swept
