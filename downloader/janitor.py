"""The janitor: what nobody will ever come back for.

Responsible for: sweeping what dead writers left in local folders, and what attempts left of tasks that another replica
has stored since; ending uploads that nobody will end; finding orphans: audio that no manifest names.
An orphan is told and never deleted: it may be all that is left of a file whose manifest was lost, and an attempt that
comes late may need it in the same moment. `wavekeep audit --adopt` makes a stored file of it; a person deletes. And
finding what came back after retention had deleted it: it is told and stays, until a person says what it is to be.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

from downloader.expiry import came_back
from downloader.keeping_metrics import KeepingMetrics
from downloader.manifest import Manifest
from downloader.shelves import Task
from downloader.staging import Staging
from downloader.storage import Entry, Storage, Uploads, sweep, translating
from downloader.storage_failure import StoreError
from downloader.tombstone import read_revision
from shared.errors import PermanentError

log = structlog.get_logger()

OLD_ENOUGH: Final = timedelta(days=1)
"""No attempt takes as long from its audio to its manifest."""

SWEEP_AFTER_S: Final = 3_600.0
TOLD_BY_NAME: Final = 10
UPLOADS_TIMEOUT_S: Final = 300.0
"""What a round gives to old uploads; the next one goes on."""


@dataclass
class Found:
    """What one round of the janitor found.

    Attributes:
        orphans: their keys, the first few.
        came_back: the same of files that retention had deleted.
    """

    count: int = 0
    size_bytes: int = 0
    orphans: list[str] = field(default_factory=list)
    came_back_count: int = 0
    came_back: list[str] = field(default_factory=list)


class Janitor:
    """Looks after one storage.

    Args:
        temporary: folders of temporary files whose living writers hold a lock on them.
        uploads: None where the storage keeps none that could be found.
    """

    def __init__(
        self,
        *,
        staging: Staging,
        storage: Storage,
        temporary: Iterable[Path],
        metrics: KeepingMetrics,
        uploads: Uploads | None = None,
    ) -> None:
        self._staging = staging
        self._storage = storage
        self._temporary = tuple(temporary)
        self._metrics = metrics
        self._uploads = uploads
        self._waiting: frozenset[str] = frozenset()
        self._denial_told = False

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

    async def sweep_uploads(self) -> None:
        """End the uploads that nobody will end. Where that fails it is counted and told, and the round goes on.

        A store that will not let us, with the same rights, ever, is told once.
        """
        if self._uploads is None:
            return
        ended: list[str] = []
        try:
            async with asyncio.timeout(UPLOADS_TIMEOUT_S):
                async for key in self._uploads.sweep():
                    ended.append(key)
                    self._metrics.uploads_ended.inc()
        except (StoreError, TimeoutError) as error:
            denied = isinstance(error, StoreError) and error.denied
            self._metrics.upload_sweeps.labels("denied" if denied else "failed").inc()
            if not (denied and self._denial_told):
                log.warning("uploads.not_swept", denied=denied, detail=str(error) or "not done in time")
            self._denial_told = denied
        else:
            self._metrics.upload_sweeps.labels("done").inc()
            self._denial_told = False
        if ended:
            log.info("uploads.ended", count=len(ended), first=ended[:TOLD_BY_NAME])

    async def look(self, task: Task, found: Found, *, now: datetime) -> None:
        """Look at what is there of a task, and add its orphans, and what came back, to what was found.

        What is left in staging of one that is stored is forgotten; where its disk fails, that is told and no more.

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
        try:
            back = await came_back(self._storage, task)
        except PermanentError as error:
            log.warning("retention.record_unreadable", manifest=task.names.manifest, detail=error.detail)
            return
        found.came_back_count += len(back)
        found.came_back += [entry.key for entry in back][: TOLD_BY_NAME - len(found.came_back)]

    def tell(self, found: Found) -> None:
        """Tell what a whole round found."""
        self._metrics.orphans.set(found.count)
        self._metrics.orphan_bytes.set(found.size_bytes)
        if found.count:
            log.warning("orphans.found", count=found.count, size_bytes=found.size_bytes, first=found.orphans)
        self._metrics.came_back.set(found.came_back_count)
        if found.came_back_count:
            log.warning("files.came_back", count=found.came_back_count, first=found.came_back)


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
            record = read_revision(content)
        except PermanentError:
            return []
        if isinstance(record, Manifest):
            named |= {record.audio, record.waveform, record.peaks}
    return [entry for entry in old if entry.key not in named]


def _crowded(task: Task) -> bool:
    """Tell whether there are bodies of more than one file: the digests in their names differ."""
    return len({entry.key.removeprefix(task.names.stem).split(".")[1] for entry in task.bodies}) > 1
