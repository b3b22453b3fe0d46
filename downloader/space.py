"""Room for files: no more is begun or written than disks and quota bear.

Responsible for: the reserve that stays free on each disk, so that the queue beside the files can always write; the
quota on what is kept; what the attempts of this process still need of both. Blocking: callers run it in threads. It
must not delete anything.

Between two counts of the storage, what this process keeps and deletes is counted here, by key: the same key twice is
one file. What others put there or take away, replicas and people, is seen by the next count: together they may
overshoot the quota by what came since and is in flight.
"""

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from downloader.keeping_metrics import KeepingMetrics
from downloader.storage import translating
from shared.errors import Reason, RetryableError

DEFAULT_RESERVE_BYTES: Final = 1024**3
DEFAULT_RESERVE_SHARE: Final = 0.05
"""Of a disk: what the default reserve takes at most, so that a small disk is of use."""

LOOK_EVERY_BYTES: Final = 4 * 1024 * 1024

REMEMBERED: Final = 65_536
"""Keys of ours, at most twice as many outside a count: beyond, the oldest are taken for what others keep."""


STAGING: Final = "staging"
"""The name of the disk that attempts are written to."""


class DiskFullError(RetryableError):
    """There is no room on a disk; `disk` is its name."""

    def __init__(self, disk: str, detail: str) -> None:
        super().__init__(Reason.STORAGE_FULL, detail)
        self.disk = disk


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that files are written to.

    Attributes:
        name: for metrics.
        folder: on it.
        passing: what is written to it is already part of what is free no more; else it is written only in the end.
    """

    name: str
    folder: Path
    passing: bool


class Room:
    """What one attempt takes of the disks and of the quota, from before its first byte until it is over."""

    def __init__(self, space: "Space") -> None:
        self._space = space
        self._looked_at_bytes = 0
        self.announced_bytes = 0
        self.written_bytes = 0

    def announce(self, size_bytes: int | None, *, there_bytes: int) -> None:
        """Take note of how large the file will be, as far as that is known, and how much of it is there already.

        One that is there to its end needs nothing more of the disk it is written to.

        Raises:
            RetryableError: `storage_full`: it would not fit.
        """
        self.announced_bytes, self.written_bytes = size_bytes or 0, there_bytes
        self._looked_at_bytes = there_bytes
        self._space.admit_quota(ahead=True)
        self._space.admit_disks(ahead=True, staged=bool(size_bytes) and there_bytes == size_bytes)

    def take(self, size_bytes: int) -> None:
        """Take note of how large the file is now.

        Raises:
            RetryableError: `storage_full`: there is no room for more.
        """
        self.written_bytes = size_bytes
        self._space.admit_quota(ahead=False)
        if size_bytes - self._looked_at_bytes >= LOOK_EVERY_BYTES:
            self._looked_at_bytes = size_bytes
            self._space.admit_disks(ahead=False)

    def kept(self, key: str, *, held: bool = False) -> None:
        """Take note that the file is in storage now, so that it is no longer this attempt's.

        Args:
            held: it was there before, so that it is counted already.
        """
        self._space.leave(self, key=key, held=held)

    def close(self) -> None:
        """Give back what was not used. Idempotent."""
        self._space.leave(self)


class Space:
    """The room that the attempts of this process share.

    Args:
        staging: folder that attempts are written to.
        storage: folder that files are kept in; None where that is no folder.
        reserve_bytes: stays free on each disk; None for the default, which is smaller on a small disk.
        quota_bytes: kept at most; None without a quota.
    """

    def __init__(
        self,
        *,
        staging: Path,
        storage: Path | None,
        reserve_bytes: int | None,
        quota_bytes: int | None,
        metrics: KeepingMetrics,
    ) -> None:
        self._staging = Disk(STAGING, staging, passing=True)
        self._storage = None if storage is None else Disk("storage", storage, passing=False)
        self._reserve_bytes = reserve_bytes
        self._quota_bytes = quota_bytes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._rooms: set[Room] = set()
        self._kept_bytes = 0
        self._recent: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._counting = False
        metrics.quota.set(quota_bytes or 0)

    def enter(self, *, staged: bool = False) -> Room:
        """Begin an attempt.

        Args:
            staged: the whole file is on its disk already.

        Raises:
            RetryableError: `storage_full`: there is no room for any file.
        """
        self.admit_quota(ahead=True)
        self.admit_disks(ahead=True, staged=staged)
        room = Room(self)
        with self._lock:
            self._rooms.add(room)
        return room

    def leave(self, room: Room, *, key: str | None = None, held: bool = False) -> None:
        """End an attempt, whose file is kept under the key if there is one. Idempotent."""
        with self._lock:
            if room not in self._rooms:
                return
            self._rooms.remove(room)
            if key is not None:
                self._add(key, room.written_bytes, held=held)

    def added(self, key: str, size_bytes: int, *, held: bool) -> None:
        """Take note that something is in storage now that no attempt has room for: a picture.

        Args:
            held: as for `Room.kept`.
        """
        with self._lock:
            self._add(key, size_bytes, held=held)

    def removed(self, key: str) -> None:
        """Take note that we deleted something; only what we kept not long ago is known by its key."""
        with self._lock:
            for own in (self._recent, self._before):
                if key in own:
                    self._tell(self._kept_bytes - own[key])
                    own[key] = 0  # and not forgotten: a listing may tell it still

    def freed(self, size_bytes: int) -> None:
        """Take note that something was deleted from storage."""
        with self._lock:
            self._tell(self._kept_bytes - size_bytes)

    @contextmanager
    def counting(self) -> Generator[None, None, None]:
        """Have what is kept counted in here: what is ours, by `is_own`, is not to be counted."""
        with self._lock:
            self._counting = True
        try:
            yield
        finally:
            with self._lock:
                self._counting = False

    def is_own(self, key: str) -> bool:
        """Tell whether this process kept or deleted this since the count before the last one, and so knows its size."""
        with self._lock:
            return key in self._recent or key in self._before

    def counted(self, size_bytes: int) -> None:
        """Take note of what was found beside what is ours."""
        with self._lock:
            self._tell(size_bytes + sum(self._recent.values()) + sum(self._before.values()))
            self._before, self._recent = self._recent, {}

    def look(self) -> None:
        """Tell the metrics what is free now.

        Raises:
            RetryableError: a disk cannot be asked.
        """
        disks = {disk.name: disk for disk in self._disks()}
        for disk in filter(None, (self._staging, self._storage)):
            free_bytes, reserve_bytes = self._usage(disks.get(disk.name, self._staging))
            self._metrics.disk_free.labels(disk.name).set(free_bytes)
            self._metrics.disk_reserve.labels(disk.name).set(reserve_bytes)

    def admit_quota(self, *, ahead: bool) -> None:
        """Refuse where what is under way does not fit into the quota.

        Args:
            ahead: with all that is announced; else only with what is there already, so that of attempts that were
                admitted none fails for what another one is about to take.

        Raises:
            RetryableError: `storage_full`, naming the setting, the numbers, and what to do.
        """
        kept_bytes, _, wanted_bytes = self._under_way(ahead=ahead)
        if self._quota_bytes is not None and max(kept_bytes + wanted_bytes, kept_bytes + 1) > self._quota_bytes:
            raise RetryableError(
                Reason.STORAGE_FULL,
                f"the quota is spent: {kept_bytes} bytes are kept and {wanted_bytes} under way, of"
                f" {self._quota_bytes} (WAVEKEEP_STORAGE_QUOTA_BYTES). Raise it, or let files go",
            )

    def admit_disks(self, *, ahead: bool, staged: bool = False) -> None:
        """Refuse where what is under way does not fit on a disk, beside the reserve.

        Args:
            ahead: as for the quota.
            staged: nothing more is to be written to the disk of attempts.

        Raises:
            DiskFullError: naming the disk, the setting, the numbers, and what to do.
        """
        _, written_bytes, wanted_bytes = self._under_way(ahead=ahead)
        for disk in self._disks():
            if staged and disk.passing:
                continue
            free_bytes, reserve_bytes = self._usage(disk)
            needed_bytes = wanted_bytes - written_bytes if disk.passing else wanted_bytes
            if free_bytes - needed_bytes < reserve_bytes:
                raise DiskFullError(
                    disk.name,
                    f"the disk of the {disk.name} folder is full: {free_bytes} bytes are free, {needed_bytes} are still"
                    f" needed, and {reserve_bytes} stay free (WAVEKEEP_STORAGE_RESERVE_BYTES). Make room on it",
                )

    def _under_way(self, *, ahead: bool) -> tuple[int, int, int]:
        """Return how many bytes are kept, how many the attempts have written, and how many they want in all."""
        with self._lock:
            rooms, kept_bytes = tuple(self._rooms), self._kept_bytes
        written_bytes = sum(room.written_bytes for room in rooms)
        announced_bytes = sum(max(room.announced_bytes, room.written_bytes) for room in rooms)
        return kept_bytes, written_bytes, announced_bytes if ahead else written_bytes

    def _disks(self) -> tuple[Disk, ...]:
        if self._storage is None:
            return (self._staging,)
        with translating():
            same = self._staging.folder.stat().st_dev == self._storage.folder.stat().st_dev
        return (self._staging,) if same else (self._staging, self._storage)

    def _usage(self, disk: Disk) -> tuple[int, int]:
        """Return what is free on a disk for us, and how much of that stays so."""
        with translating():
            found = os.statvfs(disk.folder)
        default_bytes = min(DEFAULT_RESERVE_BYTES, int(found.f_blocks * found.f_frsize * DEFAULT_RESERVE_SHARE))
        reserve_bytes = default_bytes if self._reserve_bytes is None else self._reserve_bytes
        return found.f_bavail * found.f_frsize, reserve_bytes

    def _add(self, key: str, size_bytes: int, *, held: bool) -> None:
        own = self._before if key in self._before else self._recent
        if key not in own and held:
            return
        self._tell(self._kept_bytes + size_bytes - own.get(key, 0))
        own[key] = size_bytes
        if len(self._recent) > REMEMBERED and not self._counting:
            self._before, self._recent = self._recent, {}

    def _tell(self, kept_bytes: int) -> None:
        self._kept_bytes = max(0, kept_bytes)
        self._metrics.kept.set(self._kept_bytes)
