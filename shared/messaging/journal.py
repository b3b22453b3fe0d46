"""One thread that writes to one SQLite file, committing in groups.

Responsible for: durability. An operation's future is resolved only after the transaction that held it was committed
with `synchronous=FULL` in WAL mode, so after an fsync; all operations that wait meanwhile share the next commit. It
must not know what the operations do.

After an error of the disk the file is opened anew: a sync that succeeds after one that failed proves nothing about what
was written between, on that descriptor.

Source: the SQLite pages on WAL, `PRAGMA synchronous` and `PRAGMA data_version`.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import BrokerError, Reason

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], Any]

_GROUP = 500
_LOOK_AROUND_S = 0.25
_BUSY_TIMEOUT_MS = 10_000


def connect(path: Path) -> sqlite3.Connection:
    """Open the file with the settings that every connection to it needs; transactions are begun by hand.

    What is deleted is wiped only where that costs no writing: on a full disk there must be room to delete.
    """
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    settings = (
        "journal_mode = WAL",
        "synchronous = FULL",
        "secure_delete = FAST",
        f"busy_timeout = {_BUSY_TIMEOUT_MS}",
    )
    for pragma in settings:
        db.execute(f"PRAGMA {pragma}").close()
    return db


class Journal:
    """The writer.

    Args:
        path: the file.
        on_foreign_write: called in the event loop after another process committed to the file.
    """

    def __init__(self, path: Path, *, on_foreign_write: Callable[[], None]) -> None:
        self._path = path
        self._on_foreign_write = on_foreign_write
        self._waiting: queue.SimpleQueue[tuple[Operation, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.healthy = False
        """Whether the latest commit succeeded."""
        self.disk_errors = 0
        """How often reading, writing or syncing failed; known before anybody is told of a commit that followed."""

    async def start(self, schema: str) -> None:
        """Open the file, create what is missing, start the thread.

        Raises:
            BrokerError: the file is not usable.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._db = await asyncio.to_thread(self._open, schema)
        except sqlite3.Error as error:
            raise _translated(error) from error
        self._thread = threading.Thread(target=self._write, name=f"journal {self._path.name}", daemon=True)
        self._thread.start()
        self.healthy = True

    async def close(self) -> None:
        """Commit what waits, end the thread, close the file. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            await asyncio.to_thread(thread.join)
            self._db.close()
        self.healthy = False

    async def run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation in the next group; return its result once the group is durable.

        An operation must be repeatable: where one of a group fails, each is run again in a transaction of its own.
        Safe to cancel; the outcome is then unknown.

        Raises:
            BrokerError: it could not be committed.
        """
        if self._thread is None:
            raise BrokerError(Reason.BROKER_UNAVAILABLE, "the queue file is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put((operation, future))
        return await future

    def _open(self, schema: str) -> sqlite3.Connection:
        self._path.touch(mode=0o600)
        db = connect(self._path)
        db.executescript(schema)
        return db

    def _write(self) -> None:
        seen = self._data_version()
        ended = False
        while not ended:
            group, ended = self._next_group()
            if group:
                self._commit(group)
            version = self._data_version(seen)
            if version != seen:
                seen = version
                self._tell(self._on_foreign_write)

    def _next_group(self) -> tuple[list[tuple[Operation, asyncio.Future[Any]]], bool]:
        group: list[tuple[Operation, asyncio.Future[Any]]] = []
        with contextlib.suppress(queue.Empty):
            item = self._waiting.get(timeout=_LOOK_AROUND_S)
            while item is not None:
                group.append(item)
                if len(group) == _GROUP:
                    return group, False
                item = self._waiting.get_nowait()
            return group, True
        return group, False

    def _commit(self, group: list[tuple[Operation, asyncio.Future[Any]]]) -> None:
        try:
            results = self._transaction([operation for operation, _ in group])
        except Exception as error:  # noqa: BLE001 - whatever an operation raises belongs to whoever asked for it
            if _is_of_disk(error):
                self.disk_errors += 1
                self._reopen()
            if len(group) > 1:
                for item in group:
                    self._commit([item])
                return
            failure = _translated(error) if isinstance(error, sqlite3.Error) else error
            self.healthy = not isinstance(error, sqlite3.Error)
            self._tell(lambda: _fail(group[0][1], failure))
        else:
            self.healthy = True
            self._tell(lambda: _resolve(group, results))

    def _transaction(self, operations: list[Operation]) -> list[Any]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            results = [operation(self._db) for operation in operations]
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return results

    def _reopen(self) -> None:
        """Take another connection; where none can be had now, the next error tries again.

        The new one is opened first: closing the last one of a file would write to it, to fold its log back in.
        """
        with contextlib.suppress(sqlite3.Error):
            failed, self._db = self._db, connect(self._path)
            failed.close()

    def _data_version(self, seen: int = 0) -> int:
        try:
            version: int = self._db.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:  # a disk that fails shows in the next commit, to whoever waits for it
            return seen
        return version

    def _tell(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback)


def _resolve(group: list[tuple[Operation, asyncio.Future[Any]]], results: list[Any]) -> None:
    for (_, future), result in zip(group, results, strict=True):
        if not future.done():
            future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _is_of_disk(error: Exception) -> bool:
    """Tell whether reading, writing or syncing the file failed."""
    return isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_IOERR


def _code(error: Exception) -> int:
    """Return the primary code of an error of the library; those of the module itself have none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _translated(error: sqlite3.Error) -> BrokerError:
    full = _code(error) == sqlite3.SQLITE_FULL
    return BrokerError(Reason.STORAGE_FULL if full else Reason.BROKER_UNAVAILABLE, f"the queue file: {error}")
