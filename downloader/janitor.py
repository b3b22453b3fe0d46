"""The janitor: what nobody will ever come back for.

Responsible for: sweeping what dead writers left in local folders, and what attempts left of tasks that another replica
has stored since; finding orphans: audio that no manifest names.
An orphan is told and never deleted: it may be all that is left of a file whose manifest was lost, and an attempt that
comes late may need it in the same moment. `wavekeep audit --adopt` makes a stored file of it; a person deletes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

from downloader.keeping_metrics import KeepingMetrics
from downloader.manifest import read_manifest
from downloader.shelves import Task
from downloader.staging import Staging
from downloader.storage import Entry, Storage, sweep, translating
from shared.errors import PermanentError

log = structlog.get_logger()

OLD_ENOUGH: Final = timedelta(days=1)
"""No attempt takes as long from its audio to its manifest."""

SWEEP_AFTER_S: Final = 3_600.0
TOLD_BY_NAME: Final = 10


@dataclass
class Found:
    """What one round of the janitor found.

    Attributes:
        orphans: their keys, the first few.
    """

    count: int = 0
    size_bytes: int = 0
    orphans: list[str] = field(default_factory=list)


class Janitor:
    """Looks after one storage.

    Args:
        temporary: folders of temporary files whose living writers hold a lock on them.
    """

    def __init__(
        self,
        *,
        staging: Staging,
        storage: Storage,
        temporary: Iterable[Path],
        metrics: KeepingMetrics,
    ) -> None:
        self._staging = staging
        self._storage = storage
        self._temporary = tuple(temporary)
        self._metrics = metrics
        self._waiting: frozenset[str] = frozenset()

    def sweep(self) -> int:
        """Remove the files of dead writers that are over an hour old; return how many. Blocking.

        Raises:
            RetryableError: a disk fails.
        """
        swept = self._staging.sweep(older_than_s=SWEEP_AFTER_S)
        self._waiting = self._staging.waiting()
        with translating():
            swept += sum(sweep(folder, older_than_s=SWEEP_AFTER_S) for folder in self._temporary)
        return swept

    async def look(self, task: Task, found: Found, *, now: datetime) -> None:
        """Look at what is there of a task: forget what is left to go on from if it is stored, add orphans to `found`.

        Raises:
            RetryableError: the storage fails.
        """
        if task.manifest is not None and self._staging.named(task.names.stem) in self._waiting:
            await self._staging.forget(task.names.stem)
        for orphan in await orphans(self._storage, task, now=now):
            found.count += 1
            found.size_bytes += orphan.size_bytes
            if len(found.orphans) < TOLD_BY_NAME:
                found.orphans.append(orphan.key)

    def tell(self, found: Found) -> None:
        """Tell what a whole round found."""
        self._metrics.orphans.set(found.count)
        self._metrics.orphan_bytes.set(found.size_bytes)
        if found.count:
            log.warning("orphans.found", count=found.count, size_bytes=found.size_bytes, first=found.orphans)


async def orphans(storage: Storage, task: Task, *, now: datetime) -> list[Entry]:
    """Return the files of a task that are over a day old, and that no manifest or revision of it names.

    Where a record cannot be read, it may name any of them: none is returned. The one file beside a manifest is taken
    for the one it names, without reading it: whether it is, the audit says.

    Raises:
        RetryableError: the storage fails.
    """
    old = [entry for entry in task.bodies if now - entry.modified_at >= OLD_ENOUGH]
    if not old or (task.manifest is not None and not _crowded(task)):
        return []
    named: set[str | None] = set()
    for key in task.records:
        content = await storage.read(key)
        if content is None:  # taken away meanwhile, by a person perhaps
            return []
        try:
            manifest = read_manifest(content)
        except PermanentError:
            return []
        named |= {manifest.audio, manifest.waveform, manifest.peaks}
    return [entry for entry in old if entry.key not in named]


def _crowded(task: Task) -> bool:
    """Tell whether there are bodies of more than one file: the digests in their names differ."""
    return len({entry.key.removeprefix(task.names.stem).split(".")[1] for entry in task.bodies}) > 1
