"""Letting one task's files go, so that a crash at any step is seen as what it is, and finished later.

Responsible for: the order. First the tombstone, created where the next revision would stand: the commit point, at which
either retention or a person who replaces the file wins, see `downloader.tombstone`. From then on the audio may be
missing, and that is no damage. Then `file.expired`, confirmed and marked. Only then the files, of every revision so
far, and the record that they are gone: what is there later came back, and stays. Manifest, revisions and markers stay
for ever: the task stays stored, so that a late callback fetches nothing anew. It must not decide which tasks go:
`downloader.retention` does.

Nothing that comes after a tombstone is named as what it condemns (`Names.audio`), so a deletion that comes late finds
no file of a later revision.
"""

from datetime import UTC, timedelta
from typing import Final

import structlog

from downloader.keeping_metrics import KeepingMetrics, Rule
from downloader.manifest import Manifest, read_manifest
from downloader.names import Names
from downloader.shelves import Task
from downloader.storage import Entry, Storage
from downloader.tombstone import Expiry, copied, next_of, tell, write_expiry
from shared import events
from shared.clock import Clock
from shared.events import FileExpired
from shared.messaging.port import Publisher

log = structlog.get_logger()

_CLOCKS_DIFFER: Final = timedelta(minutes=10)
"""Ours and the storage's, at most."""


class Expiring:
    """Lets files go. Idempotent: what a crash broke off is finished by the next call; several replicas may call.

    Args:
        publisher: confirms before it returns.
    """

    def __init__(self, *, storage: Storage, publisher: Publisher, metrics: KeepingMetrics, clock: Clock) -> None:
        self._storage = storage
        self._publisher = publisher
        self._metrics = metrics
        self._clock = clock

    async def expire(self, task: Task, rule: Rule | None) -> int:
        """Let the files of an announced task go; return how many bytes went, 0 where they have to stay.

        They stay where the manifest is younger than its listing told, where the vendor still keeps the file, where a
        person's file comes or came in their place, and where they came back after they were gone.

        Args:
            rule: that names it; None where only what was begun is to be finished.

        Raises:
            RetryableError: storage or broker failed; what was begun is finished by the next call.
            PermanentError: a record cannot be read; only a person can tell why.
        """
        names = task.names
        content = await self._storage.read(names.manifest)
        if content is None:
            return 0
        manifest = read_manifest(content)
        keys = await _keys(self._storage, names, manifest)  # before the commit point: what is unreadable stops here
        following = await next_of(self._storage, names, manifest.revision)
        if isinstance(following, Manifest):
            return 0  # it is not in its place yet
        expiry = following
        if expiry is None:
            copy = await copied(self._storage, names)
            if copy is not None and copy.revision >= manifest.revision:
                expiry = await self._commit(names, copy)  # of a version that put it nowhere else
            elif rule is not None and await self._may_go(task, manifest):
                expiry = await self._commit(names, self._tombstone(manifest, rule))
        if expiry is None or await self._storage.exists(names.gone(expiry.revision)):
            return 0
        await tell(self._storage, self._publisher, names, expiry, manifest.traceparent)
        condemned = [entry for entry in task.bodies if entry.key in keys and not _is_younger(entry, expiry)]
        size_bytes = 0
        for entry in condemned:
            if await self._storage.exists(names.gone(expiry.revision)):
                break  # another process was faster, and what is there now may have come back
            if await self._storage.read(names.manifest) != content:
                break  # an older `wavekeep` may have put a file in its place meanwhile, under the same name
            await self._storage.delete(entry.key)
            size_bytes += entry.size_bytes
        else:
            listed = {entry.key for entry in task.bodies}
            if not any([await self._storage.exists(key) for key in keys - listed]):  # else it is the next round's
                await self._storage.create(names.gone(expiry.revision), f"{expiry.event_id}\n".encode())
        if size_bytes:
            self._metrics.expired.labels(expiry.rule).inc()
            self._metrics.expired_bytes.inc(size_bytes)
            log.info("file.expired", manifest=names.manifest, rule=expiry.rule, size_bytes=size_bytes)
        return size_bytes

    async def _may_go(self, task: Task, manifest: Manifest) -> bool:
        listed = task.manifest
        if listed is None or manifest.stored_at > listed.modified_at + _CLOCKS_DIFFER:
            return False
        if manifest.deadline > self._clock():
            return False
        marker = task.names.replacement_announced(manifest.revision)
        return manifest.revision == 1 or await self._storage.exists(marker)

    def _tombstone(self, manifest: Manifest, rule: Rule) -> Expiry:
        return Expiry(
            vendor=manifest.vendor,
            task_id=manifest.task_id,
            revision=manifest.revision,
            uri=manifest.uri,
            size_bytes=manifest.size_bytes,
            sha256=manifest.sha256,
            rule=rule,
            expired_at=self._clock().astimezone(UTC),
            event_id=events.event_id(manifest.vendor, manifest.task_id, FileExpired.TYPE, str(manifest.revision)),
        )

    async def _commit(self, names: Names, expiry: Expiry) -> Expiry | None:
        """Put a tombstone in its place, and return it; or that of another process; None where a person won."""
        if await self._storage.create(names.revision(expiry.revision + 1), write_expiry(expiry)):
            return expiry
        other = await next_of(self._storage, names, expiry.revision)
        if isinstance(other, Expiry):
            return other
        log.info("file.expiry_overtaken", manifest=names.manifest, detail="a person has just replaced the file")
        return None


async def came_back(storage: Storage, task: Task) -> list[Entry]:
    """Return the files of a task that retention had deleted, and that are there again without a person's revision.

    Raises:
        RetryableError: the storage fails.
        PermanentError: a record cannot be read; only a person can tell why.
    """
    if not (task.gone and task.bodies):
        return []
    content = await storage.read(task.names.manifest)
    if content is None:
        return []
    manifest = read_manifest(content)
    expiry = await next_of(storage, task.names, manifest.revision)
    if not isinstance(expiry, Expiry) or not await storage.exists(task.names.gone(expiry.revision)):
        return []
    keys = await _keys(storage, task.names, manifest)
    return [entry for entry in task.bodies if entry.key in keys]


async def _keys(storage: Storage, names: Names, manifest: Manifest) -> set[str]:
    """Return the keys of everything the manifest and its earlier revisions name."""
    keys = {manifest.audio, manifest.waveform, manifest.peaks}
    for number in range(1, manifest.revision):
        earlier = await next_of(storage, names, number - 1)
        if isinstance(earlier, Manifest):
            keys |= {earlier.audio, earlier.waveform, earlier.peaks}
    return {key for key in keys if key is not None}


def _is_younger(entry: Entry, expiry: Expiry) -> bool:
    """Tell whether a file came after its tombstone: a person put it there, for no attempt does."""
    return entry.modified_at > expiry.expired_at + _CLOCKS_DIFFER
