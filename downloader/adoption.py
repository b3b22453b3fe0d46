"""Adoption: what the audit found loose is brought back to order, as far as that can be proven.

Responsible for: making a manifest for whole audio that has none, putting the latest revision back in its place, and
telling what was never told, with its marker. Everything is created conditionally, so that a service that is at it wins;
nothing is deleted, and nothing damaged is touched.

Whatever is adopted is told here, under the id it always had: a redelivery that would do it may never come.
"""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from downloader.audit import Audited, marker_of
from downloader.findings import Kind
from downloader.manifest import Manifest, read_rejection, write
from downloader.names import names_of
from downloader.storage import Entry, Storage, translating
from downloader.wav import Judgement, Walker
from shared import events, tracing
from shared.errors import PermanentError, WavekeepError
from shared.events import ConversionStored, Evidence
from shared.links import identity
from shared.messaging.port import Publisher
from shared.vendors import RETENTION_DAYS, Vendor

LARGEST_IN_MEMORY_BYTES: Final = 512 * 1024 * 1024
"""What an object store keeps can be judged up to this size only, since it is read in one piece."""

_BLOCK_BYTES: Final = 1024 * 1024

Step = Literal["manifest_made", "manifest_restored", "replacement_finished", "told"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What was done about one task, or would be.

    Attributes:
        step: `manifest_made`: for an orphan; `manifest_restored`: from its latest revision; `replacement_finished`: a
            later revision was put in its place; `told`: the event was published, and marked.
        refused: why it was not, in words; None where it was.
    """

    step: Step
    vendor: Vendor
    task_id: str
    key: str
    refused: str | None = None


class Adoption:
    """Adopts. Idempotent; safe beside running services.

    Args:
        publisher: confirms before it returns; None where nothing is to be done, only said.
    """

    def __init__(self, *, storage: Storage, publisher: Publisher | None) -> None:
        self._storage = storage
        self._publisher = publisher

    async def adopt(self, seen: Audited) -> list[Adopted]:
        """Bring one task to order; return what was done, and what was refused.

        Raises:
            RetryableError: storage or broker failed; what was done stays, the rest is for the next time.
        """
        kinds = {finding.kind for finding in seen.findings}
        names = seen.holding.names
        lost = names.manifest not in seen.holding.entries and kinds & {Kind.ORPHAN, Kind.MISSING}
        if not lost and Kind.UNTOLD not in kinds:
            return []
        damage = [finding for finding in seen.findings if finding.is_damage]
        if any((finding.kind, finding.key) != (Kind.MISSING, names.manifest) for finding in damage):
            return [self._did(seen, "told", names.manifest, "it is damaged: a person must look at it first")]
        if seen.manifests:
            return await self._put_in_place(seen) + await self._tell(seen, list(seen.manifests.values()))
        return await self._make(seen)

    async def _put_in_place(self, seen: Audited) -> list[Adopted]:
        """Put the latest revision where the manifest is to be, as a replacement that was broken off would have."""
        place = seen.holding.names.manifest
        latest = max(seen.manifests.values(), key=lambda manifest: manifest.revision)
        there = seen.manifests.get(place)
        if there is not None and there.revision == latest.revision:
            return []
        content = write(latest)
        if there is None:
            if self._publisher and not await self._storage.create(place, content):
                return []  # somebody else was faster
            return [self._did(seen, "manifest_restored", place)]
        if self._publisher:
            await self._storage.replace(place, content)
        return [self._did(seen, "replacement_finished", place)]

    async def _make(self, seen: Audited) -> list[Adopted]:
        """Make the manifest of the one orphan of a task."""
        orphans = [finding.key for finding in seen.findings if finding.kind == Kind.ORPHAN]
        place = seen.holding.names.manifest
        if len(orphans) != 1:
            why = f"{len(orphans)} files could be meant" if orphans else "no file of it is there, or it may be in use"
            return [self._did(seen, "manifest_made", place, why)]
        task_id = await self._task_id(seen)
        if task_id is None:
            why = "the task's id is known no more: name the task, VENDOR/ID, if you know it"
            return [self._did(seen, "manifest_made", orphans[0], why)]
        try:
            manifest = await self._prove(seen, seen.holding.entries[orphans[0]], task_id)
        except _RefusedError as error:
            return [self._did(seen, "manifest_made", orphans[0], str(error))]
        if self._publisher and not await self._storage.create(place, write(manifest)):
            return []  # somebody else was faster
        return [self._did(seen, "manifest_made", orphans[0]), *await self._tell(seen, [manifest])]

    async def _task_id(self, seen: Audited) -> str | None:
        """Return the vendor's id of a task; None where only its SHA-256 is known."""
        names = seen.holding.names
        if names_of(seen.holding.vendor, seen.task_id) == names:
            return seen.task_id
        with suppress(PermanentError):
            content = await self._storage.read(names.rejected)
            if content is not None:
                task_id = read_rejection(content).task_id
                return task_id if names_of(seen.holding.vendor, task_id) == names else None
        return None

    async def _prove(self, seen: Audited, entry: Entry, task_id: str) -> Manifest:
        """Read an orphan; return the manifest it may have.

        Its name holds the beginning of the digest that was proven when it came: that, and its structure, must fit.
        """
        judgement, digest = await self._judge(entry)
        if not seen.holding.names.is_audio(entry.key, digest):
            raise _RefusedError("its SHA-256 is not the one in its name")
        vendor, uri = seen.holding.vendor, self._storage.uri(entry.key)
        return Manifest(
            vendor=vendor,
            task_id=task_id,
            audio=entry.key,
            uri=uri,
            size_bytes=entry.size_bytes,
            sha256=digest,
            format=judgement.format,
            evidence=Evidence(trust=("operator",), transport="local_file"),
            warnings=tuple(str(warning) for warning in judgement.warnings),
            link=uri,  # where it came from before is known no more
            link_identity=events.digest(identity(uri)),
            received_at=entry.modified_at,
            deadline=entry.modified_at + timedelta(days=RETENTION_DAYS[vendor]),
            stored_at=entry.modified_at,
            event_id=events.event_id(vendor, task_id, ConversionStored.TYPE),
            traceparent=tracing.start(None),
        )

    async def _judge(self, entry: Entry) -> tuple[Judgement, str]:
        uri = urlsplit(self._storage.uri(entry.key))
        try:
            if uri.scheme == "file":
                return await asyncio.to_thread(lambda: _walk(_blocks(Path(unquote(uri.path)))))
            if entry.size_bytes > LARGEST_IN_MEMORY_BYTES:
                raise _RefusedError("it is too large to be judged from here")
            content = await self._storage.read(entry.key)
            if content is None:
                raise _RefusedError("it is gone")
            return await asyncio.to_thread(lambda: _walk(iter((content,))))
        except WavekeepError as error:
            raise _RefusedError(str(error)) from error

    async def _tell(self, seen: Audited, manifests: list[Manifest]) -> list[Adopted]:
        """Tell each revision that was never told, and mark it."""
        done: list[Adopted] = []
        names = seen.holding.names
        for manifest in sorted({each.revision: each for each in manifests}.values(), key=lambda each: each.revision):
            marker = marker_of(names, manifest)
            if await self._storage.exists(marker):
                continue
            if self._publisher:
                first = manifest.revision == 1
                data = manifest.announcement() if first else manifest.replacement_announcement()
                event = events.make(data, time=manifest.stored_at, traceparent=manifest.traceparent)
                body = events.encode(event)
                await self._publisher.publish(data.EXCHANGE, event.routing_key, body, event_id=event.id)
                await self._storage.create(marker, f"{event.id}\n".encode())
            done.append(self._did(seen, "told", marker))
        return done

    def _did(self, seen: Audited, step: Step, key: str, refused: str | None = None) -> Adopted:
        return Adopted(step=step, vendor=seen.holding.vendor, task_id=seen.task_id, key=key, refused=refused)


class _RefusedError(Exception):
    """An orphan cannot be adopted; the message says why."""


def _blocks(path: Path) -> Iterator[bytes]:
    with translating(), os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _walk(blocks: Iterator[bytes]) -> tuple[Judgement, str]:
    """Return the judgement of a file, and its SHA-256. Blocking. Its end is proven by nothing but its structure."""
    walker, digest = Walker(), hashlib.sha256()
    for block in blocks:
        walker.feed(block)
        digest.update(block)
    return walker.finish(body_proven_complete=False), digest.hexdigest()
