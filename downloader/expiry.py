"""Letting one task's files go, so that a crash at any step is seen as what it is, and finished later.

Responsible for: the order. First the tombstone `.expired`, the commit point: from then on the audio may be missing,
and that is no damage. Then `file.expired`, confirmed and marked. Only then the files, of every revision. Manifest,
revisions and markers stay for ever: the task stays stored, so that a late callback fetches nothing anew. It must not
decide which tasks go: `downloader.retention` does.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import structlog

from downloader.keeping_metrics import KeepingMetrics, Rule
from downloader.manifest import Manifest, read_manifest
from downloader.names import Names
from downloader.shelves import Task
from downloader.storage import Storage
from shared import events
from shared.clock import Clock
from shared.errors import PermanentError, Reason
from shared.events import FileExpired
from shared.messaging.port import Publisher
from shared.vendors import Vendor

log = structlog.get_logger()

_CLOCKS_DIFFER = timedelta(minutes=10)
"""Ours and the storage's, at most."""


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """The tombstone: what went, and why. It speaks of one revision: a later one, put there by a person, is alive."""

    version: Literal[1] = 1
    vendor: Vendor
    task_id: str
    revision: int
    uri: str
    size_bytes: int
    sha256: str
    rule: Rule
    expired_at: datetime
    event_id: str

    def announcement(self) -> FileExpired:
        """Return what `file.expired` says of it: always the same."""
        return FileExpired(
            vendor=self.vendor,
            task_id=self.task_id,
            revision=self.revision,
            uri=self.uri,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            rule=self.rule,
            expired_at=self.expired_at,
        )


def read_expiry(content: bytes) -> Expiry:
    """Read a tombstone.

    Raises:
        PermanentError: it is damaged or of a later version; only a person can tell which.
    """
    try:
        return msgspec.json.decode(content, type=Expiry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PermanentError(Reason.STORAGE_FAILED, f"a record cannot be read: {error}") from error


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

        They stay where the manifest is younger than its listing told, where the vendor still keeps the file, or where
        a replacement is under way.

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
        keys = await self._keys(names, manifest)  # before the commit point: a record that cannot be read stops here
        expiry = await self._begun(names, manifest)
        if expiry is None:
            if rule is None or not await self._may_go(task, manifest):
                return 0
            expiry = await self._commit(names, manifest, rule)
        await self._tell(names, expiry, manifest.traceparent)
        size_bytes = 0
        for entry in task.bodies:
            if entry.key in keys:
                if await self._storage.read(names.manifest) != content:
                    break  # a person has put a file in its place meanwhile, perhaps one of these
                await self._storage.delete(entry.key)
                size_bytes += entry.size_bytes
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
        return not (task.in_replacement or await self._storage.exists(task.names.revision(manifest.revision + 1)))

    async def _begun(self, names: Names, manifest: Manifest) -> Expiry | None:
        """Return the tombstone of this revision; None where there is none."""
        content = await self._storage.read(names.expired)
        expiry = None if content is None else read_expiry(content)
        return expiry if expiry is not None and expiry.revision >= manifest.revision else None

    async def _keys(self, names: Names, manifest: Manifest) -> set[str | None]:
        """Return the keys of everything the manifest and its earlier revisions name."""
        keys = {manifest.audio, manifest.waveform, manifest.peaks}
        for number in range(1, manifest.revision):
            content = await self._storage.read(names.revision(number))
            if content is not None:
                earlier = read_manifest(content)
                keys |= {earlier.audio, earlier.waveform, earlier.peaks}
        return keys

    async def _commit(self, names: Names, manifest: Manifest, rule: Rule) -> Expiry:
        """Make the tombstone of this revision; return it, or the one that another process makes at the same time."""
        expiry = Expiry(
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
        record = msgspec.json.format(msgspec.json.encode(expiry), indent=2) + b"\n"
        if await self._storage.create(names.expired, record):
            return expiry
        other = await self._begun(names, manifest)
        if other is None:  # it is of a file that a person had replaced since
            await self._storage.replace(names.expired, record)
        return other or expiry

    async def _tell(self, names: Names, expiry: Expiry, traceparent: str) -> None:
        told = await self._storage.read(names.expiry_announced)
        marker = f"{expiry.event_id}\n".encode()
        if told == marker:
            return
        event = events.make(expiry.announcement(), time=expiry.expired_at, traceparent=traceparent)
        await self._publisher.publish(event.data.EXCHANGE, event.routing_key, events.encode(event), event_id=event.id)
        await self._storage.replace(names.expiry_announced, marker)
