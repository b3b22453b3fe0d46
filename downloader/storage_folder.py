"""A local folder to keep files in.

Responsible for: whole-or-nothing writes and conditional creation on a file system. It must not know what a manifest is,
nor decide what is kept.

On disk: a temporary file of a unique name, fsync, link or rename, fsync of the folder. A temporary file is locked as
long as its writer lives, so that whoever starts next can tell an orphan from work in progress.
"""

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from downloader.reading import digest_of
from downloader.storage import Entry, Storage, sweep, translating
from shared.errors import RetryableError, StartError

T = TypeVar("T")

_BLOCK_BYTES = 1024 * 1024
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK})
"""What says that a file cannot have another name there: it is on another disk, or has as many as it may."""
TEMPORARY = ".tmp"
_PROBE = ".probe"
_PAGE = 1_000
_NAMES = 32_768
"""Of one folder are in memory, or twice as many: a larger one is gone through once for each so many."""


class FolderStorage:
    """A folder of the local machine.

    Args:
        root: created if missing, for this user alone.
        executor: runs what blocks, but for listings, which have a thread of their own; None: whoever calls does, and
            has a thread for it.
        single_writer: start although the file system cannot create conditionally.
    """

    local = True

    def __init__(self, root: Path, *, executor: Executor | None, single_writer: bool = False) -> None:
        self._root = root.absolute()
        self._executor = executor
        self._single_writer = single_writer
        # a listing of millions must not take the threads that files are waited for in; it ends with this object
        self._lister = executor and ThreadPoolExecutor(1, thread_name_prefix="listing")

    async def start(self) -> None:
        """See the port."""
        try:
            lock = await self._run(self._prepare)
            try:
                won_twice = [await self.create(_PROBE, b"probe"), await self.create(_PROBE, b"probe")] != [True, False]
                await self.delete(_PROBE)
            finally:
                os.close(lock)
        except RetryableError as error:
            raise StartError(
                f"Files cannot be kept in {self._root} ({error.detail}). Check the folder's rights and free space, or"
                " set WAVEKEEP_STORAGE_URL."
            ) from error
        if won_twice and not self._single_writer:
            raise StartError(
                f"{self._root} cannot create a file conditionally, so two downloaders could both believe they stored a"
                " task. Use another storage, or set WAVEKEEP_STORAGE_SINGLE_WRITER=true and run one downloader only."
            )

    async def ask(self) -> None:
        """See the port. A disk that is read-only by now, or no longer mounted, answers and takes nothing."""

        def take() -> None:
            with self._temporary():
                pass

        await self._run(take)

    async def keep(self, staged: Path, key: str) -> None:
        """See the port."""
        await self._run(lambda: self._keep(staged, key))

    async def create(self, key: str, content: bytes) -> bool:
        """See the port."""
        return await self._run(lambda: self._create(key, content))

    async def replace(self, key: str, content: bytes) -> None:
        """See the port."""
        await self._run(lambda: self._replace(key, content))

    async def read(self, key: str) -> bytes | None:
        """See the port."""

        def read() -> bytes | None:
            with contextlib.suppress(FileNotFoundError), self._open(key) as file:
                return file.read()
            return None

        return await self._run(read)

    async def exists(self, key: str) -> bool:
        """See the port."""

        def exists() -> bool:
            with contextlib.suppress(FileNotFoundError), self._folder(key) as (folder, name):
                os.stat(name, dir_fd=folder, follow_symlinks=False)
                return True
            return False

        return await self._run(exists)

    async def delete(self, key: str) -> None:
        """See the port."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError), self._folder(key) as (folder, name):
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)

        await self._run(delete)

    async def digest(self, key: str) -> tuple[int, str]:
        """See the port."""

        def digest() -> tuple[int, str]:
            with self._folder(key) as (folder, name):
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                return digest_of(file)
            finally:
                os.close(file)

        return await self._run(digest)

    async def together(self, work: Callable[[Storage], Coroutine[Any, Any, T]]) -> T:
        """See the port."""
        if self._executor is None:
            return await work(self)
        own = FolderStorage(self._root, executor=None, single_writer=self._single_writer)
        return await self._run(lambda: asyncio.run(work(own)))

    async def list(self, prefix: str = "") -> AsyncIterator[Entry]:
        """See the port. One folder at a time; links are passed over, and so is what is not ours to tell."""
        walk = self._walk(prefix)
        while page := await self._run(lambda: tuple(itertools.islice(walk, _PAGE)), self._lister):
            for entry in page:
                yield entry

    def uri(self, key: str) -> str:
        """See the port."""
        return (self._root / key).as_uri()

    def _prepare(self) -> int:
        """Make the folders, sweep, and return a lock: others that start on this root wait until it is closed."""
        for folder in (self._root, self._root / TEMPORARY):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                sync_folder(folder.parent)
        lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sweep(self._root / TEMPORARY)
            (self._root / _PROBE).unlink(missing_ok=True)
        except OSError:
            os.close(lock)
            raise
        return lock

    def _keep(self, staged: Path, key: str) -> None:
        with self._folder(key, create=True) as (folder, name):
            try:
                with self._linked(staged) as path:
                    os.rename(path, name, dst_dir_fd=folder)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                with self._temporary() as (copy, path), staged.open("rb") as source:
                    while block := source.read(_BLOCK_BYTES):
                        _write_all(copy, block)
                    os.fsync(copy)
                    os.rename(path, name, dst_dir_fd=folder)
            os.fsync(folder)

    def _create(self, key: str, content: bytes) -> bool:
        with self._folder(key, create=True) as (folder, name), self._temporary() as (file, path):
            _write_all(file, content)
            os.fsync(file)
            try:
                os.link(path, name, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                return False
            finally:
                os.fsync(folder)  # also of what another writer linked: from here on we rely on it
            return True

    def _replace(self, key: str, content: bytes) -> None:
        with self._folder(key, create=True) as (folder, name), self._temporary() as (file, path):
            _write_all(file, content)
            os.fsync(file)
            os.rename(path, name, dst_dir_fd=folder)
            os.fsync(folder)

    def _walk(self, prefix: str) -> Iterator[Entry]:
        pending = [prefix]
        while pending:
            parent = pending.pop()
            for name, status in self._scan(parent):
                key = f"{parent}/{name}" if parent else name
                if key.startswith("."):
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(key)
                elif stat.S_ISREG(status.st_mode):
                    yield Entry(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def _scan(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        """Yield what is in a folder now, by name; nothing where there is none."""
        last, more = "", True
        with contextlib.suppress(FileNotFoundError), self._folder(f"{folder}/" if folder else "") as (opened, _):
            while more:
                names, more = _next_names(opened, last)
                for last in names:
                    with contextlib.suppress(FileNotFoundError):
                        yield last, os.stat(last, dir_fd=opened, follow_symlinks=False)

    @contextlib.contextmanager
    def _temporary(self) -> Generator[tuple[int, Path], None, None]:
        """Lend a locked temporary file; its name is gone afterwards."""
        path = self._root / TEMPORARY / uuid.uuid4().hex
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file, path
        finally:
            path.unlink(missing_ok=True)
            os.close(file)

    @contextlib.contextmanager
    def _linked(self, staged: Path) -> Generator[Path, None, None]:
        """Lend a temporary name of a staged file; it is gone afterwards, also where a rename did nothing.

        So it does where the key has this very file already.
        """
        path = self._root / TEMPORARY / uuid.uuid4().hex
        with staged.open("rb") as file:
            with contextlib.suppress(BlockingIOError):  # locked already, by whoever staged it
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.link(staged, path, follow_symlinks=False)
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _folder(self, key: str, *, create: bool = False) -> Generator[tuple[int, str], None, None]:
        """Open the folder of a key without following any link below the root; yields it and the name within."""
        *parents, name = key.split("/")
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for parent in parents:
                if create:
                    _make_folder(parent, folder)
                inner = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder, name
        finally:
            os.close(folder)

    def _open(self, key: str) -> BufferedReader:
        with self._folder(key) as (folder, name):
            return os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb")

    async def _run(self, work: Callable[[], T], executor: Executor | None = None) -> T:
        def translated() -> T:
            with translating():
                return work()

        if self._executor is None:
            return translated()
        return await asyncio.get_running_loop().run_in_executor(executor or self._executor, translated)


def _next_names(folder: int, last: str) -> tuple[list[str], bool]:
    """Return the first names of an open folder that come after `last`, in order, and whether there are more."""
    names: list[str] = []
    end: str | None = None
    with os.scandir(folder) as found:
        for entry in found:
            name = entry.name
            if name > last and (end is None or name <= end):
                names.append(name)
                if len(names) > 2 * _NAMES:
                    end = _shorten(names)
    if len(names) > _NAMES:
        end = _shorten(names)
    names.sort()
    return names, end is not None


def _shorten(names: list[str]) -> str:
    """Leave only the first `_NAMES`; return the last of these."""
    names.sort()
    del names[_NAMES:]
    return names[-1]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _make_folder(name: str, parent: int) -> None:
    try:
        os.mkdir(name, mode=0o700, dir_fd=parent)
    except FileExistsError:
        return
    os.fsync(parent)


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
