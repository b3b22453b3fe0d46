"""One attempt at a file: proven while it arrives.

Responsible for: writing it to local disk while hashing it and walking its structure, in one pass over the bytes, and
for what is noted of it for the next attempt. Blocking: callers run it in threads. It must not know where the bytes come
from or where the file goes.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from downloader.answer import Known
from downloader.digests import MD5_HINT, Checker
from downloader.fetch import Head, Held
from downloader.partial import Claim, Partials, forget, lock_new, unnote
from downloader.proven import Proven
from downloader.space import Room
from downloader.storage import translating
from downloader.wav import Judgement, Walker
from shared.errors import Reason, RetryableError
from shared.events import digest
from shared.links import identity

log = structlog.get_logger()

_READ_BYTES: Final = 1024 * 1024


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
        proven: what was proven of it, once that is noted; then it is left to the next attempt whatever happens to
            this one, until it is stored.
    """

    def __init__(self, path: Path, claim: Claim | None = None, room: Room | None = None) -> None:
        self.path = path
        self.proven: Proven | None = None
        self._claim = claim
        self._room = room
        if claim is None:
            self._file = lock_new(path)
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
        note = None if self._claim is None else self._claim.note
        return None if note is None or note.known is None else (note.identity, note.known)

    @property
    def has_proven(self) -> bool:
        """Whether an earlier attempt left the whole file here; until its bytes are found to be others, it is that."""
        return self._claim is not None and self._claim.note.proven is not None

    @property
    def waits(self) -> bool:
        """Whether the whole file is here, to be stored by this attempt or the next one."""
        return self.proven is not None or self.has_proven

    def held(self, link: str) -> Held | None:
        """Return what is there already of the file behind a link."""
        claim = self._claim
        if claim is None or self._head is not None or self.waits or claim.note.identity != _identity(link):
            return None
        return None if claim.note.known is None else Held(claim.size_bytes, claim.note.known)

    def recover(self) -> Proven | None:
        """Return what an earlier attempt proved of the file, if every byte of it still is what it was.

        Where one is not, the file is forgotten, and this attempt begins at the beginning, with another one. Runs in a
        thread.

        Raises:
            RetryableError: the disk fails, or there is no room for the file where it is to be kept.
        """
        proven = None if self._claim is None else self._claim.note.proven
        if proven is None:
            return None
        with translating():
            os.lseek(self._file, 0, os.SEEK_SET)
            with open(self._file, "rb", closefd=False) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            if found != (proven.sha256, proven.size_bytes):
                self._renew()
                return None
        self.size_bytes, self.proven = proven.size_bytes, proven
        if self._room is not None:
            self._room.announce(proven.size_bytes, there_bytes=proven.size_bytes)
        return proven

    def note(self, proven: Proven) -> None:
        """Take note of what was proven, after `prove`. Runs in a thread."""
        self.proven = proven

    def begin(self, head: Head) -> None:
        """Take note of what follows: the rest of what is held, or a file from its beginning. Runs in a thread.

        What is held is read again, for its digest and its structure.

        Raises:
            RetryableError, PermanentError: the disk fails, or the bytes cannot become a WAV.
        """
        if self.waits:
            with translating():
                self._renew()
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
        assert not self.waits, "a whole file is never written to: it may be linked into storage"
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

    def kept(self, key: str, *, held: bool = False) -> None:
        """Take note that the file is in storage.

        Args:
            held: it was there before.
        """
        if self._room is not None:
            self._room.kept(key, held=held)

    def close(self, partials: Partials | None = None) -> None:
        """Let go of the file: leave it to the next attempt where `partials` are given, else remove what is there."""
        try:
            if partials is not None and self.waits and self.path.exists():
                partials.make_room()  # its note stands beside it already
            elif partials is not None and not self.waits and (left := self.left) is not None:
                partials.keep(self.path, self._file, identity=left[0], known=left[1])
            else:
                forget(self.path)
        finally:
            self._let_go()

    def abandon(self) -> None:
        """Let go of a file that nobody was lent: what an earlier attempt left stays as it is."""
        try:
            if self._claim is None:
                forget(self.path)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        try:
            os.close(self._file)
        finally:
            if self._room is not None:
                self._room.close()

    def _renew(self) -> None:
        """Begin with another file under the name: the one that was there may be linked into storage."""
        forget(self.path)
        file = lock_new(self.path)
        os.close(self._file)
        self._file, self._claim, self.proven = file, None, None

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


class NotedAttempt(Attempt):
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

    def note(self, proven: Proven) -> None:
        """See the base: from here on no death of the process costs the file, and an older one like it is not needed."""
        left = self.left
        known = None if left is None else left[1]
        with translating():
            self._partials.note(
                self.path, identity=proven.came_by, known=known, synced_bytes=proven.size_bytes, proven=proven
            )
        super().note(proven)
        try:
            self._partials.supersede(self.path, proven)
        except OSError as error:  # the older one waits for its age, and costs nothing but room
            log.warning("staging.not_superseded", error=type(error).__name__)


def _identity(link: str) -> str:
    return digest(identity(link))
