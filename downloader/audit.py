"""The audit: kept files are read again and held against their manifests.

Responsible for: finding what is not as it should be, several tasks at once, at the speed of the disk. It changes
nothing, and tells nobody: that is for whoever asked. What can be rebuilt of what it finds, `downloader.adoption`
decides.

It works beside running services. What is younger than an hour may be in use and is no loose end; and what the listing
and the manifests disagree about is looked at once more before it counts.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Final, TypeVar

from downloader.findings import Finding, Kind
from downloader.holdings import Holding, Selection, holdings
from downloader.manifest import Manifest
from downloader.names import Names, names_of
from downloader.storage import Entry, Storage
from downloader.tombstone import Expiry, read_expiry, read_revision
from shared import tasks
from shared.clock import Clock
from shared.errors import PermanentError, Reason, RetryableError

T = TypeVar("T")

TASKS_AT_ONCE: Final = 4
HANDFUL_TASKS: Final = 16
HANDFUL_BYTES: Final = 32 * 1024 * 1024
"""Local tasks are taken by the handful: small files take less time than a change of threads. Large ones come singly."""

IN_USE: Final = timedelta(hours=1)
"""Whatever is younger may be in the middle of being stored, replaced or told."""


@dataclass(slots=True)
class Audited:
    """What the audit saw of one task.

    Attributes:
        task_id: the vendor's; its SHA-256 where only that is known.
        manifests: that could be read, by key: the one in its place first, then the revisions.
        tombstones: that stand among these.
        files: audio files that were read.
        size_bytes: of these together.
    """

    holding: Holding
    task_id: str
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tombstones: list[Expiry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    size_bytes: int = 0


class Auditor:
    """Reads again what is kept.

    Args:
        storage: need not be started; may be in use by others.
    """

    def __init__(self, storage: Storage, *, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock

    async def audit(
        self,
        selection: Selection,
        *,
        seen: Callable[[Audited], Awaitable[None]],
        enough: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Read every task that is meant; return whether all were read.

        Args:
            seen: is told of each task; waited for.
            enough: no further task is begun once it returns true. May be asked in any thread.

        Raises:
            RetryableError: the storage as a whole cannot be read.
        """
        ids, turn, left = selection.ids, asyncio.Lock(), threading.Event()

        async def read(handful: list[Holding], storage: Storage) -> list[Audited]:
            auditor, audited = Auditor(storage, clock=self._clock), []
            for holding in handful:
                if left.is_set() or enough():
                    left.set()
                    break
                audited.append(await auditor.check(holding, ids.get(holding.stem)))
            return audited

        async def work(found: AsyncGenerator[Holding, None]) -> None:
            while True:
                async with turn:
                    handful = [] if left.is_set() else await self._take(found)
                if not handful:
                    return
                for audited in await self._storage.together(partial(read, handful)):
                    await seen(audited)

        async with aclosing(holdings(self._storage, selection)) as found:
            workers = [asyncio.create_task(work(found)) for _ in range(TASKS_AT_ONCE)]
            try:
                await asyncio.gather(*workers)
            except BaseException:
                left.set()  # for what is in a thread, where it cannot be cancelled
                raise
            finally:
                await tasks.end(*workers)
        return not left.is_set()

    async def _take(self, found: AsyncGenerator[Holding, None]) -> list[Holding]:
        """Take the next tasks, as many as are read in one go; none once all were taken."""
        handful: list[Holding] = []
        size_bytes = 0
        while (holding := await anext(found, None)) is not None:
            handful.append(holding)
            size_bytes += sum(entry.size_bytes for entry in holding.audio)
            if not self._storage.local or len(handful) == HANDFUL_TASKS or size_bytes >= HANDFUL_BYTES:
                break
        return handful

    async def check(self, holding: Holding, task_id: str | None = None) -> Audited:
        """Read one task: its manifests, and all audio they name.

        Args:
            task_id: where it is known already.
        """
        seen = Audited(holding, task_id or holding.stem.rpartition("/")[2])
        unread = await self._read_manifests(seen)
        if seen.manifests:
            seen.task_id = next(iter(seen.manifests.values())).task_id
        seen.findings += [replace(finding, task_id=seen.task_id) for finding in unread]
        await self._find_lost_manifest(seen)
        by_revision = sorted(seen.manifests.values(), key=lambda manifest: manifest.revision)
        for manifest in {(each.audio, each.size_bytes, each.sha256): each for each in by_revision}.values():
            await self._check_audio(seen, manifest)
        if not unread:  # else it may be named there
            await self._find_orphans(seen)
        await self._find_untold(seen)
        self._find_what_came_back(seen)
        return seen

    async def _read_manifests(self, seen: Audited) -> list[Finding]:
        """Take up what manifests there are; return what was found about the others."""
        unread: list[Finding] = []
        names = seen.holding.names
        places = [(names.manifest, None), *((key, number) for number, key in seen.holding.revisions.items())]
        for key, number in places:
            if key not in seen.holding.entries:
                continue
            try:
                content = await self._read(key, self._storage.read)
            except _UnreadableError as error:
                unread.append(replace(self._finding(seen, Kind.UNREADABLE, key, number), detail=str(error)))
                continue
            if content is None:
                continue
            try:
                record = _fitting(content, names, number)
            except PermanentError as error:
                finding = replace(
                    self._finding(seen, Kind.UNREADABLE, key, number),
                    found_sha256=sha256(content).hexdigest(),
                    found_size_bytes=len(content),
                    detail=error.detail,
                )
                unread.append(finding)
                continue
            if isinstance(record, Expiry):
                seen.tombstones.append(record)
            else:
                seen.manifests[key] = record
        return unread

    async def _find_lost_manifest(self, seen: Audited) -> None:
        names, entries = seen.holding.names, seen.holding.entries
        lost = names.manifest not in entries and (names.announced in entries or seen.holding.revisions)
        if lost and not await self._storage.exists(names.manifest):
            seen.findings.append(self._finding(seen, Kind.MISSING, names.manifest, None))

    async def _check_audio(self, seen: Audited, manifest: Manifest) -> None:
        """Read the audio of a manifest, and hold it against that."""
        kind, found, detail = None, None, None
        try:
            if manifest.audio in seen.holding.entries or await self._storage.exists(manifest.audio):
                found = await self._read(manifest.audio, self._storage.digest)
        except _UnreadableError as error:
            kind, detail = Kind.UNREADABLE, str(error)
        else:
            if found is None:
                kind = Kind.MISSING
            elif found[0] != manifest.size_bytes:
                kind = Kind.SIZE_DIFFERS
            elif found[1] != manifest.sha256:
                kind = Kind.DIGEST_DIFFERS
        size_bytes, digest = found or (None, None)
        seen.files += size_bytes is not None
        seen.size_bytes += size_bytes or 0
        if kind is None or (kind == Kind.MISSING and await self._may_be_missing(seen, manifest)):
            return
        finding = replace(
            self._finding(seen, kind, manifest.audio, manifest.revision),
            expected_sha256=manifest.sha256,
            expected_size_bytes=manifest.size_bytes,
            found_sha256=digest,
            found_size_bytes=size_bytes,
            detail=detail,
        )
        seen.findings.append(finding)

    async def _may_be_missing(self, seen: Audited, manifest: Manifest) -> bool:
        """Tell whether retention let the file go, or a person took away all that speaks of it meanwhile."""
        if any(manifest.revision <= tombstone.revision for tombstone in seen.tombstones):
            return True
        tombstone = await self._storage.read(seen.holding.names.expired)
        if tombstone is not None:
            try:
                return manifest.revision <= read_expiry(tombstone).revision
            except PermanentError:
                return False
        keys = [key for key, each in seen.manifests.items() if each.audio == manifest.audio]
        return not any([await self._storage.exists(key) for key in keys])

    async def _find_orphans(self, seen: Audited) -> None:
        named = {manifest.audio for manifest in seen.manifests.values()}
        for entry in seen.holding.audio:
            if entry.key in named or self.in_use(entry):
                continue
            if not seen.manifests and await self._storage.exists(seen.holding.names.manifest):
                continue  # it was made meanwhile
            finding = self._finding(seen, Kind.ORPHAN, entry.key, None)
            seen.findings.append(replace(finding, found_size_bytes=entry.size_bytes))

    async def _find_untold(self, seen: Audited) -> None:
        looked_at: set[int] = set()
        for key, manifest in seen.manifests.items():
            marker = marker_of(seen.holding.names, manifest)
            if manifest.revision in looked_at or marker in seen.holding.entries:
                continue
            looked_at.add(manifest.revision)
            if not self.in_use(seen.holding.entries[key]) and not await self._storage.exists(marker):
                seen.findings.append(self._finding(seen, Kind.UNTOLD, key, manifest.revision))

    def _find_what_came_back(self, seen: Audited) -> None:
        """Find audio of the latest revision, or an earlier one, whose deletion was recorded as done."""
        names, entries = seen.holding.names, seen.holding.entries
        latest = max((manifest.revision for manifest in seen.manifests.values()), default=0)
        if not any(each.revision == latest and names.gone(latest) in entries for each in seen.tombstones):
            return
        for manifest in {each.audio: each for each in seen.manifests.values()}.values():
            if manifest.audio in entries:
                finding = self._finding(seen, Kind.CAME_BACK, manifest.audio, manifest.revision)
                seen.findings.append(replace(finding, found_size_bytes=entries[manifest.audio].size_bytes))

    async def _read(self, key: str, read: Callable[[str], Awaitable[T]]) -> T | None:
        """Read an object, twice where that fails; None where there is none.

        Raises:
            _UnreadableError: it is there, and the storage does not give it back.
            RetryableError: the storage does not even tell whether it is there.
        """
        try:
            return await read(key)
        except RetryableError:
            if not await self._storage.exists(key):
                return None
        try:
            return await read(key)
        except RetryableError as error:
            raise _UnreadableError(error.detail) from error

    def in_use(self, entry: Entry) -> bool:
        """Tell whether somebody may just be working with an object."""
        return self._clock() - entry.modified_at < IN_USE

    def _finding(self, seen: Audited, kind: Kind, key: str, revision: int | None) -> Finding:
        return Finding(
            kind=kind,
            vendor=seen.holding.vendor,
            task_id=seen.task_id,
            revision=revision,
            key=key,
            uri=self._storage.uri(key),
            found_at=self._clock(),
        )


class _UnreadableError(Exception):
    """An object is there, and cannot be read."""


def marker_of(names: Names, manifest: Manifest) -> str:
    """Return the key of the marker that this revision was told."""
    return names.announced if manifest.revision == 1 else names.replacement_announced(manifest.revision)


def _fitting(content: bytes, names: Names, number: int | None) -> Manifest | Expiry:
    """Read a manifest, or a tombstone in the place of one, which must be of this task.

    Raises:
        PermanentError: it cannot be read, or speaks of something else than what it is called after.
    """
    record = read_revision(content)
    own = names_of(record.vendor, record.task_id) == names
    if isinstance(record, Expiry):
        fits = own and number == record.revision + 1
    else:
        whole = (record.revision > 1) == (record.replacement is not None)
        fits = own and whole and names.is_audio(record.audio, record.sha256) and number in {None, record.revision}
    if not fits:
        raise PermanentError(Reason.STORAGE_FAILED, "the record speaks of something else than its name says")
    return record
