"""Custody: what becomes of a report.

Responsible for: the one way from a report to an end state. It fetches, has the file proven, stores it, and alone has
stored, rejected, conflicting and at risk announced. It must not know HTTP, files or brokers: those are behind ports.

Whoever creates a task's manifest is its single writer; everybody else announces what that manifest says.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import msgspec
import structlog

from downloader.announcements import Announcements
from downloader.attempt import Attempt
from downloader.bringing import Bringing, Fetching, stands_for
from downloader.confirmation import Report
from downloader.fairness import Place, Places, lane_of, queue_for
from downloader.inspection import Inspector
from downloader.links import Lead, Refusal, Unanswerable
from downloader.manifest import Manifest, Rejection, read_manifest, read_rejection, write
from downloader.metrics import DownloaderMetrics
from downloader.names import Names, names_of
from downloader.proven import Proven
from downloader.staging import Staging
from downloader.storage import Storage
from shared import events
from shared.clock import Clock
from shared.errors import BusyError, PermanentError, Reason, RetryableError
from shared.events import Event, ReportFailed, ReportLinkless, ReportSucceeded
from shared.links import host_of, identity
from shared.messaging.port import Message, Publisher
from shared.retry import Step, at_risk_marks, choose_step

log = structlog.get_logger()

FOR_EVER = timedelta(days=365)

_WAIT_FOR_COPY_S = 2.0
_PUT_OFF_LONGER_AFTER = timedelta(minutes=10)
_BUSY = frozenset({Reason.VENDOR_BUSY, Reason.HOST_BUSY, Reason.LARGE_BUSY})
_NOT_THE_BYTES = frozenset(
    {
        Reason.STORAGE_FAILED,
        Reason.STORAGE_FULL,
        Reason.STORED_FILE_DIFFERS,
        Reason.NOT_CONFIRMED,
        Reason.LINK_MISSING,
    }
)
"""Failures that may still be mended where the whole file is here already, though its vendor has deleted it."""

_NOT_THE_FILE = frozenset(
    {
        Reason.TASK_IN_HAND,
        Reason.BROKER_UNAVAILABLE,
        Reason.PUBLISH_TIMED_OUT,
        Reason.PUBLISH_REFUSED,
        Reason.NOT_ROUTABLE,
    }
)


class Source(Fetching, Protocol):
    """Where files come from, and who says so."""

    async def find(self, report: Report, *, now: datetime) -> Lead | Refusal | Unanswerable:
        """Return what follows from a report of a task that nothing is stored of; raises retryable errors."""


class Custody:
    """Handles reports. Idempotent: a report handled twice changes nothing the second time.

    Args:
        source: finds links, and follows them past the fence.
        places: says who may download now.
        staging: proves attempts.
        storage: keeps what is whole.
        inspector: looks at what is whole, before it is kept.
        publisher: announces; confirms before it returns.
    """

    def __init__(
        self,
        *,
        source: Source,
        places: Places,
        staging: Staging,
        storage: Storage,
        inspector: Inspector,
        publisher: Publisher,
        metrics: DownloaderMetrics,
        clock: Clock,
    ) -> None:
        self._source = source
        self._bringing = Bringing(source=source, staging=staging, metrics=metrics)
        self._places = places
        self._staging = staging
        self._storage = storage
        self._inspector = inspector
        self._announcements = Announcements(storage=storage, publisher=publisher, metrics=metrics, clock=clock)
        self._metrics = metrics
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def handle(self, message: Message) -> None:
        """Bring a report to its end state.

        Raises:
            RetryableError: it may succeed later.
            PermanentError: it cannot.
        """
        event, report = _report(message)
        names = names_of(report.vendor, report.task_id)
        structlog.contextvars.bind_contextvars(subject=event.subject, traceparent=event.traceparent)
        async with self._alone(event.subject):
            manifest = await self._manifest(names)
            if manifest is None:
                manifest = await self._bring_in(event, report, names, message)
            elif message.last_reason is Reason.STORED_FILE_DIFFERS or self._staging.holds_whole(names.stem):
                await self._mend(manifest, names)
            if manifest is not None:
                await self._announcements.stored(event, manifest, names)
                await self._staging.forget(names.stem)  # also what a process left that died after its manifest
                if not isinstance(report, ReportLinkless) and await self._contradicts(manifest, report):
                    await self._announcements.conflicting(event, manifest, names, report)

    async def warn(self, message: Message, reason: Reason, attempts: int) -> None:
        """Tell that a file is at risk, once for each share of the time to its deadline that has passed.

        Whatever failed: also our own storage, which then cannot tell whether the file is there, or was told of.

        Args:
            reason: of the latest failure.
            attempts: that failed so far.
        """
        try:
            event, report = _report(message)
        except PermanentError:
            return
        (_, first), *_ = at_risk_marks(report.received_at, report.deadline)
        names = names_of(report.vendor, report.task_id)
        if first <= self._clock() and not await self._is_stored(names):
            await self._announcements.at_risk(event, report, names, reason, attempts=attempts)

    def next_step(self, message: Message, reason: Reason) -> Step | None:
        """Return how long to wait after one more failure for this reason; None past the deadline.

        The deadline ends the fetching of a file, not the telling of one that is stored, nor the storing of one that is
        here whole, nor the waiting for a place, since the last attempt is still to come.
        """
        try:
            _, report = _report(message)
        except PermanentError:
            return None
        now = self._clock()
        if reason in _NOT_THE_FILE:
            return choose_step(message.attempts + 1, now=now, end=now + FOR_EVER)
        failures, end = message.attempts + 1, report.deadline
        if reason in _BUSY:  # 30 s, and later on 2 min: whom thousands wait for is not asked about all of them at once
            failures = 2 if now - message.first_seen < _PUT_OFF_LONGER_AFTER else 3
            end = end if now < end else now + FOR_EVER
        elif reason in _NOT_THE_BYTES and self._staging.holds_whole(names_of(report.vendor, report.task_id).stem):
            end = end if now < end else now + FOR_EVER  # the vendor is not asked for it any more
        marks = (moment for _, moment in at_risk_marks(report.received_at, report.deadline))
        return choose_step(failures, now=now, end=end, reason=reason, marks=marks)

    def lane(self, message: Message, after_s: float) -> str:
        """Name the queue that a report belongs in when it is looked at so many seconds from now."""
        try:
            _, report = _report(message)
        except PermanentError:
            return message.queue
        return queue_for(report.received_at, report.deadline, self._clock() + timedelta(seconds=after_s))

    async def give_up(self, message: Message, reason: Reason, detail: str) -> None:
        """Tell that a report is given up, before it is parked.

        What is no report, or stands beside a manifest that only a person can read, is parked without a word.
        """
        try:
            event, report = _report(message)
            names = names_of(report.vendor, report.task_id)
            async with self._alone(event.subject):
                if await self._manifest(names) is None:
                    await self._reject(event, report, names, reason, detail)
        except PermanentError:
            return

    def group(self, message: Message) -> str:
        """Name the host that a report's file is on; its vendor where there is no link, or none that can be read."""
        try:
            event, report = _report(message)
        except PermanentError:
            return message.queue
        return _host(report) or event.source

    @asynccontextmanager
    async def _alone(self, subject: str) -> AsyncGenerator[None, None]:
        """Handle one copy of a task at a time.

        Others wait a moment, since most files take no longer, and then go round: a copy that waited on would keep its
        place from other tasks, and its broker waiting for an answer beyond the acknowledgement time-out.
        """
        lock = self._locks.setdefault(subject, asyncio.Lock())
        try:
            async with asyncio.timeout(_WAIT_FOR_COPY_S):
                await lock.acquire()
        except TimeoutError:
            raise RetryableError(Reason.TASK_IN_HAND, "another copy of this task is being handled") from None
        try:
            yield
        finally:
            lock.release()

    async def _bring_in(self, event: Event, report: Report, names: Names, message: Message) -> Manifest | None:
        """Do what follows from a report of a task that nothing is stored of; return the manifest that is there now."""
        lane = lane_of(message.queue)
        try:
            self._places.expect(_host(report), event.subject, lane)
            async with self._places.of_vendor(report.vendor, lane):
                found = await self._source.find(report, now=self._clock())
                if isinstance(found, Lead):
                    async with self._places.take(report.vendor, host_of(found.url), event.subject, lane) as place:
                        return await self._fetch_and_store(event, found, names, place)
        except BusyError as error:
            self._metrics.put_offs.labels(str(error.reason)).inc()
            raise
        if isinstance(found, Refusal):
            await self._reject(event, report, names, Reason.VENDOR_FAILED, found.detail, code=found.code)
        else:
            await self._announcements.unrecognised(event, found.report)
        return None

    async def _contradicts(self, manifest: Manifest, report: ReportSucceeded | ReportFailed) -> bool:
        """Tell whether a report contradicts what is stored, and may alarm people.

        A stale signature only repeats what anybody may have overheard. Where the vendor can be asked, its word counts:
        who replays a body or knows a token would else have a bell to ring.
        """
        if "stale" in report.trust:
            return False
        if isinstance(report, ReportSucceeded) and manifest.knows(events.digest(identity(report.url))):
            return False
        try:
            found = await self._source.find(report, now=self._clock())
        except RetryableError:
            return "token" in report.trust
        return not (isinstance(found, Lead) and manifest.knows(events.digest(identity(found.url))))

    async def _fetch_and_store(self, event: Event, lead: Lead, names: Names, place: Place) -> Manifest:
        """Bring, store, prove again, commit; return the manifest that won, ours or another writer's.

        The staged copy is there until there is a manifest: whatever fails before, the next attempt goes on from it.
        """
        with self._metrics.attempt() as outcome:
            async with self._staging.attempt(names.stem, stands=stands_for(lead)) as attempt:
                proven = await self._bringing.bring(lead, attempt, place.watch(attempt))
                manifest = await self._inspect(self._manifest_of(event, lead, names, proven), names, attempt)
                held = await self._storage.exists(manifest.audio)
                await self._put(attempt.path, manifest, held=held)
                attempt.kept(manifest.audio, held=held)
                ours = await self._storage.create(names.manifest, write(manifest))
            if ours:
                outcome.stored(manifest.size_bytes)
                log.info("file.stored", audio=manifest.audio, size_bytes=manifest.size_bytes, sha256=manifest.sha256)
                return manifest
            winner = await self._manifest(names)
            if winner is None:
                raise RetryableError(Reason.STORAGE_FAILED, "a manifest was there, and is gone")
            replaced = await self._storage.exists(names.revision(1))  # then ours may be what an earlier revision names
            if not replaced:
                await self._withdraw(manifest, winner)
            log.warning("file.lost_race", audio=manifest.audio, kept=winner.audio)
            outcome.lost_race()
            return winner

    async def _withdraw(self, ours: Manifest, winner: Manifest) -> None:
        """Delete what we kept for our manifest, file and pictures, where the one that won does not name it."""
        named = {winner.audio, winner.waveform, winner.peaks}
        for key in (ours.audio, ours.waveform, ours.peaks):
            if key is not None and key not in named:
                await self._storage.delete(key)
                self._staging.removed(key)

    def _manifest_of(self, event: Event, lead: Lead, names: Names, proven: Proven) -> Manifest:
        report, claimed = lead.report, events.digest(identity(lead.claimed))
        audio = names.audio(proven.sha256)
        return Manifest(
            vendor=report.vendor,
            task_id=report.task_id,
            audio=audio,
            uri=self._storage.uri(audio),
            size_bytes=proven.size_bytes,
            sha256=proven.sha256,
            format=proven.format,
            evidence=proven.evidence,
            warnings=proven.warnings,
            link=proven.link,
            link_identity=claimed,
            fetched_identity=None if proven.came_by == claimed else proven.came_by,
            received_at=report.received_at,
            deadline=report.deadline,
            stored_at=self._clock().astimezone(UTC),
            event_id=events.event_id(report.vendor, report.task_id, events.ConversionStored.TYPE),
            traceparent=event.traceparent,
        )

    async def _inspect(self, manifest: Manifest, names: Names, attempt: Attempt) -> Manifest:
        """Add to a manifest what is found out about its file, and keep what was drawn of it."""
        async with self._inspector.inspect(attempt.path, manifest.format) as found:
            drawn = {
                key: path
                for key, path in (
                    (names.waveform(manifest.sha256), found.waveform),
                    (names.peaks(manifest.sha256), found.peaks),
                )
                if path is not None
            }
            for key, path in drawn.items():
                size_bytes, held = await self._staging.size_bytes(path), await self._storage.exists(key)
                await self._storage.keep(path, key)
                self._staging.added(key, size_bytes, held=held)
        waveform, peaks = tuple(drawn) or (None, None)
        return msgspec.structs.replace(manifest, quality=found.quality, waveform=waveform, peaks=peaks)

    async def _put(self, staged: Path, manifest: Manifest, *, held: bool) -> None:
        """Have the file in storage, and check what is kept against what was proven, before it is called stored.

        What is right there already is left as it is: another writer's manifest may describe it by now. For the same
        reason what was put and differs is put once more at once, and left where it still does.
        """
        if held and await self._is_right(manifest):
            return
        for _ in range(2):
            await self._storage.keep(staged, manifest.audio)
            if await self._is_kept(manifest):
                return
        raise RetryableError(Reason.STORED_FILE_DIFFERS, "the kept file is not the one that was proven")

    async def _is_kept(self, manifest: Manifest) -> bool:
        """Tell whether what is in storage is what a manifest describes."""
        return await self._storage.digest(manifest.audio) == (manifest.size_bytes, manifest.sha256)

    async def _is_right(self, manifest: Manifest) -> bool:
        """Tell the same of what was there before us: what cannot be read is not right, and a copy takes its place."""
        try:
            return await self._is_kept(manifest)
        except RetryableError as error:
            log.warning("file.unreadable", audio=manifest.audio, reason=error.reason, detail=error.detail)
            return False

    async def _mend(self, manifest: Manifest, names: Names) -> None:
        """See that the stored file is there and right, as long as there may be a copy of it; else mend it.

        An attempt of ours may have put it last, and read back otherwise.

        Raises:
            RetryableError: it could not be mended yet; the copy is left for that.
        """
        if await self._storage.exists(manifest.audio):
            if await self._is_right(manifest):
                return
        elif await self._storage.exists(names.expired):
            return  # retention let it go
        async with self._staging.attempt(names.stem, stands=lambda each: each.sha256 == manifest.sha256) as attempt:
            if not attempt.has_proven or await self._staging.recover(attempt) is None:
                self._metrics.keeping.repairs.labels("impossible").inc()
                log.error("file.not_mended", audio=manifest.audio, detail="it differs, and no copy of it is left")
                return
            await self._put(attempt.path, manifest, held=False)
        self._metrics.keeping.repairs.labels("done").inc()
        log.warning("file.mended", audio=manifest.audio, sha256=manifest.sha256)

    async def _manifest(self, names: Names) -> Manifest | None:
        content = await self._storage.read(names.manifest)
        return None if content is None else read_manifest(content)

    async def _is_stored(self, names: Names) -> bool:
        """Tell whether a task's file is known to be stored."""
        try:
            return await self._storage.exists(names.manifest)
        except RetryableError:
            return False

    async def _reject(
        self, event: Event, report: Report, names: Names, reason: Reason, detail: str, *, code: int | None = None
    ) -> None:
        rejection = Rejection(
            vendor=report.vendor,
            task_id=report.task_id,
            reason=reason,
            detail=detail,
            code=code,
            rejected_at=self._clock().astimezone(UTC),
        )
        rejection = await self._recorded(rejection, names)
        if await self._manifest(names) is None:  # else stored meanwhile by another process: that is final
            await self._announcements.rejected(event, rejection, names)
        await self._staging.forget(names.stem, whole=False)  # a replay, or another callback, may heal it from that

    async def _recorded(self, rejection: Rejection, names: Names) -> Rejection:
        """Record a rejection before it is told; return it, or the one on record that tells the same fact.

        Two facts may be told of a task: its vendor has failed, and we give it up. Each is told in the words, and so
        under the id, of whoever recorded it first, though every copy of a report has a last reason of its own.
        """
        for key in (names.rejected, names.rejected_too):
            if await self._storage.create(key, write(rejection)):
                return rejection
            content = await self._storage.read(key)
            earlier = None if content is None else read_rejection(content)
            if earlier is not None and _is_of_the_vendor(earlier.reason) == _is_of_the_vendor(rejection.reason):
                return earlier
        return rejection


def _is_of_the_vendor(reason: Reason) -> bool:
    """Tell the two facts of which a rejection may speak: the vendor has failed, or we give up."""
    return reason is Reason.VENDOR_FAILED


def _host(report: Report) -> str:
    """Return the host that a report tells its file to be on; empty where it tells none."""
    return host_of(report.url) if isinstance(report, ReportSucceeded) else ""


def _report(message: Message) -> tuple[Event, Report]:
    event = events.decode(message.body)
    if isinstance(event.data, ReportSucceeded | ReportFailed | ReportLinkless):
        return event, event.data
    raise PermanentError(Reason.MESSAGE_UNKNOWN, f"{event.type} is no report of an end")
