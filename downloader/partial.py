"""What is left of an attempt, for the next one to go on from: a cut download, or a whole file that is not stored yet.

Responsible for: partial files and what is known of them, who may go on with one, and when they are let go. Blocking:
callers run it in threads. It must not know HTTP, nor what the bytes are.

A partial file `{task}.{id}.part` is written by one attempt, which holds a lock on it as long as it lives. `{id}.note`
beside it says by which validator the server tells this very file from another one. Whoever goes on takes the file by
renaming it: one rename wins. What a crash of the machine may have left unwritten is not trusted: only as many bytes as
were synced, unless the machine still runs since they were written.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from downloader.answer import Known
from downloader.proven import Proven

WholeLetGo = Literal["bound", "age"]

LONGEST_KEPT_S: Final = 16 * 86_400.0
"""Longer than any vendor keeps a file."""

_BESIDE: Final = frozenset({".note", ".tmp", ".png", ".json"})
"""Names of ours; what else is in the folder is somebody else's."""
_NO_LINK: Final = frozenset({errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


Stands = Callable[[Proven], bool]
"""Tells of a whole file whether it is what is asked for."""


def nothing(_: Proven) -> bool:
    """Tell that no whole file is what is asked for."""
    return False


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a partial file.

    Attributes:
        identity: digest of the link it came by, without what merely signs that.
        known: what the first answer told of the file; null where nothing surely tells it from another one.
        synced_bytes: how much of it survives a crash of the machine.
        boot: of the machine that wrote it.
        proven: what was proven of it; null as long as it is not whole.
    """

    version: int = 3
    identity: str
    known: Known | None
    synced_bytes: int
    boot: str
    proven: Proven | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A partial file that is ours now: open, locked, and cut back to what can be trusted."""

    path: Path
    file: int
    size_bytes: int
    note: Note


class Partials:
    """The partial files of a folder.

    Args:
        folder: of attempts; exists.
        max_bytes: kept at most, all together.
        let_go: is told why a whole file had to go, and its size in bytes.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int, let_go: Callable[[WholeLetGo, int], None] = lambda *_: None
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._let_go = let_go

    def new(self, task: str) -> Path:
        """Return a path for an attempt that begins at the beginning."""
        return self._folder / f"{name_of(task)}.{uuid.uuid4().hex}.part"

    def claim(self, task: str, stands: Stands = nothing) -> Claim | None:
        """Take over a whole file of a task, else its largest partial one; None where there is none to go on from.

        Args:
            stands: tells whether a whole file is what is asked for: other ones wait for who asks for them.
        """
        found = sorted(self._folder.glob(f"{name_of(task)}.*.part"), key=_worth, reverse=True)
        return next((claim for path in found if (claim := self._take(path, task, stands)) is not None), None)

    def tasks(self) -> frozenset[str]:
        """Return the names (see `name_of`) of the tasks that something is left of."""
        return frozenset(path.name.partition(".")[0] for path in self._folder.glob("*.part"))

    def keep(self, path: Path, file: int, *, identity: str, known: Known) -> None:
        """Leave a file, open as `file`, to the next attempt."""
        os.fsync(file)
        self.note(path, identity=identity, known=known, synced_bytes=os.fstat(file).st_size)
        self.make_room()

    def note(
        self,
        path: Path,
        *,
        identity: str,
        known: Known | None,
        synced_bytes: int = 0,
        proven: Proven | None = None,
    ) -> None:
        """Write what is known of a file, in one step."""
        note = Note(identity=identity, known=known, synced_bytes=synced_bytes, boot=_boot(), proven=proven)
        beside = path.with_suffix(".tmp")
        try:
            with open(beside, "xb", opener=_private) as out:
                out.write(msgspec.json.encode(note))
            beside.replace(path.with_suffix(".note"))
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def supersede(self, path: Path, proven: Proven) -> None:
        """Let go of what an earlier attempt proved of the same task by the same reported link, unless it is in hand."""
        for other in self._folder.glob(f"{path.name.partition('.')[0]}.*.part"):
            note = None if other == path else _read(other)
            if note is not None and note.proven is not None and note.proven.claimed == proven.claimed:
                self._drop(other)

    def sweep(self, *, older_than_s: float = 0.0) -> int:
        """Remove what nobody can go on from, or will; return how many files that were. Living attempts are left."""
        swept = 0
        for path in self._folder.iterdir():
            if older_than_s and any(time.time() - status.st_mtime < older_than_s for status in _status(path)):
                continue
            if path.suffix == ".part":
                swept += self._sweep_part(path)
            elif path.suffix in _BESIDE and not path.with_suffix(".part").exists():  # else it belongs to an attempt
                if path.suffix == ".note" and any(status.st_nlink > 1 for status in _status(path)):
                    continue  # somebody gives a file a new name: its note has that already, or still the old one too
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    swept += 1
        return swept + self.make_room()

    def _take(self, path: Path, task: str, stands: Stands) -> Claim | None:
        with contextlib.ExitStack() as stack:
            file = _lock(path, stack)
            if file is None:
                return None
            note = _read(path)
            if note is not None and note.proven is not None and not stands(note.proven):
                return None
            trusted = 0 if note is None else _trusted(file, note)  # of a whole file its digest decides, once it is read
            if note is None or not trusted:
                forget(path)
                return None
            ours = self.new(task)
            try:  # the note first: whatever name the file has if we die in between, its note is beside it
                _name_again(path.with_suffix(".note"), ours.with_suffix(".note"))
                path.rename(ours)
            except FileNotFoundError:  # another process was faster
                unnote(ours)
                return None
            unnote(path)
            if note.proven is None:
                os.ftruncate(file, trusted)
            else:  # it may be linked into storage, so its bytes are left alone; the note tells when it was asked for
                os.utime(ours.with_suffix(".note"))
            stack.pop_all()
            return Claim(ours, file, trusted, note)

    def _sweep_part(self, path: Path) -> int:
        with contextlib.ExitStack() as stack:
            file = _lock(path, stack)
            if file is None:
                return 0
            note = _read(path)
            asked_for_at = max(
                [os.fstat(file).st_mtime, *(status.st_mtime for status in _status(path.with_suffix(".note")))]
            )
            old = time.time() - asked_for_at > LONGEST_KEPT_S
            if note is None or old or not _trusted(file, note):
                size_bytes = os.fstat(file).st_size
                forget(path)
                if note is not None and note.proven is not None:
                    self._let_go("age", size_bytes)
                return 1
        return 0

    def forget_task(self, task: str, *, whole: bool = True) -> None:
        """Remove the partial files of a task that nobody works on; whole ones only where these are meant too."""
        for path in self._folder.glob(f"{name_of(task)}.*.part"):
            if whole or not _is_whole(path):
                self._drop(path)

    def whole(self, task: str | None = None) -> frozenset[str]:
        """Return the names (see `name_of`) of the tasks that a whole file is there of; of this one alone, if given."""
        found = self._folder.glob(f"{name_of(task) if task else '*'}.*.part")
        return frozenset(path.name.partition(".")[0] for path in found if _is_whole(path))

    def drop_oldest(self) -> bool:
        """Let the oldest cut download go, never a whole file; False where there is none."""
        return any(self._drop(path) for path, _, whole in self._by_age() if not whole)

    def make_room(self) -> int:
        """Let partial files go, the oldest first and whole ones last, until the rest is within bounds.

        Returns:
            How many went.
        """
        files = self._by_age()
        excess = sum(status.st_size for _, status, _ in files) - self._max_bytes
        removed = 0
        for path, status, whole in files:
            if excess <= 0:
                break
            if self._drop(path):
                removed += 1
                excess -= status.st_size
                if whole:
                    self._let_go("bound", status.st_size)
        return removed

    def _by_age(self) -> list[tuple[Path, os.stat_result, bool]]:
        """Return the partial files, with whether they are whole: cut ones before whole ones, the oldest first."""
        files = [(path, status, _is_whole(path)) for path in self._folder.glob("*.part") for status in _status(path)]
        return sorted(files, key=lambda each: (each[2], each[1].st_mtime))

    def _drop(self, path: Path) -> bool:
        """Remove a partial file, unless somebody works on it."""
        with contextlib.ExitStack() as stack:
            if _lock(path, stack) is None:
                return False
            forget(path)
            return True


def left_of(folder: Path, task: str) -> list[tuple[Path, os.stat_result, bool]]:
    """Return the partial files of a task and whether each is whole; also one that is being written.

    Locks none, so that nobody misses it.
    """
    found = sorted(folder.glob(f"{name_of(task)}.*.part"))
    return [(path, status, _is_whole(path)) for path in found for status in _status(path)]


def forget(path: Path) -> None:
    """Remove a partial file and what is known of it."""
    path.unlink(missing_ok=True)
    unnote(path)


def _name_again(note: Path, name: Path) -> None:
    """Give a note one more name; a copy of it, where the file system has no second names."""
    try:
        name.hardlink_to(note)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(note, name)


def unnote(path: Path) -> None:
    """Forget what is known of a file, before other bytes take the place of those it is known of."""
    path.with_suffix(".note").unlink(missing_ok=True)


def lock_new(path: Path) -> int:
    """Make the file of an attempt, locked as long as it lives; return its descriptor."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def name_of(task: str) -> str:
    """Return what the names of a task's partial files begin with."""
    return hashlib.sha256(task.encode()).hexdigest()[:32]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _trusted(file: int, note: Note) -> int:
    """Return how many bytes of a file are surely those that came."""
    size = os.fstat(file).st_size
    return size if note.boot and note.boot == _boot() else min(size, note.synced_bytes)


def _lock(path: Path, stack: contextlib.ExitStack) -> int | None:
    """Open and lock a file that nobody writes, until the stack is left; None where somebody does, or it is gone."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link: it may lead anywhere
            return None
        raise
    stack.callback(os.close, file)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return file


def _read(path: Path) -> Note | None:
    try:
        return msgspec.json.decode(path.with_suffix(".note").read_bytes(), type=Note)
    except (OSError, msgspec.DecodeError):
        return None


def _is_whole(path: Path) -> bool:
    note = _read(path)
    return note is not None and note.proven is not None


def _worth(path: Path) -> tuple[bool, int]:
    """Order partial files by how much they save: whole ones first, then by size."""
    return _is_whole(path), next((status.st_size for status in _status(path)), 0)


def _status(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of a file, unless it is gone."""
    with contextlib.suppress(FileNotFoundError):
        yield path.stat()
