"""The tombstone: the record that retention let a file go, and its place among the revisions.

Responsible for: its fields, the event it becomes, and telling it from a manifest. What follows revision N is one key,
`.v{N+1}.json`, which is created only if nobody has it: the manifest of a person's file, or the tombstone of revision N.
So a person and retention contend for one record, and one of them wins. `.expired` is a copy of the latest tombstone,
for whoever lists or copies; before the tombstones stood among the revisions, it was all there was. Why so:
`docs/adr/0017-what-follows-a-revision.md`. It must not delete, nor decide what goes.
"""

from datetime import datetime
from typing import Literal, TypeVar

import msgspec

from downloader.keeping_metrics import Rule
from downloader.manifest import Manifest, read_manifest
from downloader.names import Names
from downloader.storage import Storage
from shared import events
from shared.errors import PermanentError, Reason
from shared.events import FileExpired
from shared.messaging.port import Publisher
from shared.vendors import Vendor

R = TypeVar("R")


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """What went, and why. It speaks of one revision and those before: a later one, put there by a person, is alive."""

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


class _Told(msgspec.Struct, frozen=True):
    """What tells a tombstone from a manifest."""

    expired_at: datetime | None = None


def write_expiry(expiry: Expiry) -> bytes:
    """Return the JSON of a tombstone, indented: people read it."""
    return msgspec.json.format(msgspec.json.encode(expiry), indent=2) + b"\n"


def read_expiry(content: bytes) -> Expiry:
    """Read a tombstone.

    Raises:
        PermanentError: it is damaged or of a later version; only a person can tell which.
    """
    return _decode(content, Expiry)


def read_revision(content: bytes) -> Manifest | Expiry:
    """Read what stands at a number of the revisions.

    Raises:
        PermanentError: as for a tombstone.
    """
    return read_manifest(content) if _decode(content, _Told).expired_at is None else read_expiry(content)


async def next_of(storage: Storage, names: Names, number: int) -> Manifest | Expiry | None:
    """Return what follows a number of the revisions; None where nothing does yet.

    Raises:
        RetryableError: the storage fails.
        PermanentError: the record cannot be read; only a person can tell why.
    """
    content = await storage.read(names.revision(number + 1))
    return None if content is None else read_revision(content)


async def copied(storage: Storage, names: Names) -> Expiry | None:
    """Return the tombstone under `.expired`; None where there never was one.

    Raises:
        RetryableError, PermanentError: as above.
    """
    content = await storage.read(names.expired)
    return None if content is None else read_expiry(content)


async def tell(storage: Storage, publisher: Publisher, names: Names, expiry: Expiry, traceparent: str) -> None:
    """Do what comes before anything is deleted, or put in its place: copy the tombstone, tell it, and mark that.

    Idempotent: the same tombstone is always told in the same words, under the same id.

    Raises:
        RetryableError, PermanentError: as above; or the broker does not confirm.
    """
    record = write_expiry(expiry)
    if not await storage.create(names.expired, record):
        there = await copied(storage, names)
        if there is None or there.revision < expiry.revision:  # of a file that a person had replaced since
            await storage.replace(names.expired, record)
    marker = f"{expiry.event_id}\n".encode()
    if await storage.read(names.expiry_announced) == marker:
        return
    event = events.make(expiry.announcement(), time=expiry.expired_at, traceparent=traceparent)
    await publisher.publish(event.data.EXCHANGE, event.routing_key, events.encode(event), event_id=event.id)
    await storage.replace(names.expiry_announced, marker)


def _decode(content: bytes, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PermanentError(Reason.STORAGE_FAILED, f"a record cannot be read: {error}") from error
