"""Custody: what becomes of a report.

Responsible for: the one way from a report to an end state. It fetches, has the file proven, stores it, and alone
announces stored, rejected, conflicting and at risk. It must not know HTTP, files or brokers: those are behind ports.

Whoever creates a task's manifest is its single writer; everybody else announces what that manifest says. Each
announcement is followed by a marker, so that a redelivery after a crash tells again under the same id, and later
repetitions end silently.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Protocol
from weakref import WeakValueDictionary

import structlog

from downloader.fetch import Fetched, Sink
from downloader.manifest import Manifest, Rejection, read_manifest, read_rejection, write
from downloader.metrics import DownloaderMetrics
from downloader.names import Names, names_of
from downloader.staging import Attempt, Staging
from downloader.storage import Storage
from shared import events
from shared.clock import Clock
from shared.errors import PermanentError, Reason, RetryableError
from shared.events import (
    ConversionAtRisk,
    ConversionConflicting,
    ConversionRejected,
    Data,
    Event,
    Evidence,
    ReportFailed,
    ReportSucceeded,
)
from shared.links import host_of, identity, public, public_text
from shared.messaging.port import Message, Publisher
from shared.retry import Step, at_risk_marks, choose_step

log = structlog.get_logger()

Report = ReportSucceeded | ReportFailed

FOR_EVER = timedelta(days=365)

_WAIT_FOR_COPY_S = 2.0
_NOT_THE_FILE = frozenset(
    {
        Reason.TASK_IN_HAND,
        Reason.BROKER_UNAVAILABLE,
        Reason.PUBLISH_TIMED_OUT,
        Reason.PUBLISH_REFUSED,
        Reason.NOT_ROUTABLE,
    }
)


class Source(Protocol):
    """Where files come from."""

    async def fetch(self, report: ReportSucceeded, sink: Sink) -> tuple[str, Fetched]:
        """Stream a report's file into the sink; return the link it came by, which may be fresher than the report's.

        Raises retryable or permanent errors.
        """


class Custody:
    """Handles reports. Idempotent: a report handled twice changes nothing the second time.

    Args:
        source: follows links, past the fence.
        staging: proves attempts.
        storage: keeps what is whole.
        publisher: announces; confirms before it returns.
    """

    def __init__(
        self,
        *,
        source: Source,
        staging: Staging,
        storage: Storage,
        publisher: Publisher,
        metrics: DownloaderMetrics,
        clock: Clock,
    ) -> None:
        self._source = source
        self._staging = staging
        self._storage = storage
        self._publisher = publisher
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
            if isinstance(report, ReportFailed):
                await self._vendor_failed(event, report, names)
            else:
                await self._vendor_succeeded(event, report, names, message)

    def next_step(self, message: Message, reason: Reason) -> Step | None:
        """Return how long to wait after one more failure for this reason; None past the deadline.

        The deadline ends the fetching of a file, not the telling of one that is stored.
        """
        try:
            _, report = _report(message)
        except PermanentError:
            return None
        now = self._clock()
        if reason in _NOT_THE_FILE:
            return choose_step(message.attempts + 1, now=now, end=now + FOR_EVER)
        marks = (moment for _, moment in at_risk_marks(report.received_at, report.deadline))
        return choose_step(message.attempts + 1, now=now, end=report.deadline, reason=reason, marks=marks)

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
        return (host_of(report.url) if isinstance(report, ReportSucceeded) else "") or event.source

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

    async def _vendor_succeeded(self, event: Event, report: ReportSucceeded, names: Names, message: Message) -> None:
        manifest = await self._manifest(names)
        if manifest is None:
            try:
                manifest = await self._fetch_and_store(event, report, names)
            except RetryableError as error:
                await self._warn_at_risk(event, report, names, message, error.reason)
                raise
        claimed = events.digest(identity(report.url))
        await self._announce_stored(event, manifest, names)
        if not manifest.knows(claimed):
            await self._announce_conflict(event, manifest, names, report, claimed)

    async def _vendor_failed(self, event: Event, report: ReportFailed, names: Names) -> None:
        manifest = await self._manifest(names)
        if manifest is None:
            await self._reject(event, report, names, Reason.VENDOR_FAILED, public_text(report.message))
        else:
            await self._announce_stored(event, manifest, names)
            await self._announce_conflict(event, manifest, names, report, f"code-{report.code}")

    async def _fetch_and_store(self, event: Event, report: ReportSucceeded, names: Names) -> Manifest:
        """Fetch, prove, store, commit; return the manifest that won, ours or another writer's."""
        with self._metrics.attempt() as outcome:
            async with self._staging.attempt() as attempt:
                link, fetched = await self._source.fetch(report, attempt)
                manifest = await self._prove(event, report, names, attempt, link, fetched)
                await self._storage.keep(attempt.path, manifest.audio)
            await self._read_again(manifest)
            if await self._storage.create(names.manifest, write(manifest)):
                outcome.stored(manifest.size_bytes)
                log.info("file.stored", audio=manifest.audio, size_bytes=manifest.size_bytes, sha256=manifest.sha256)
                return manifest
            winner = await self._manifest(names)
            if winner is None:
                raise RetryableError(Reason.STORAGE_FAILED, "a manifest was there, and is gone")
            replaced = await self._storage.exists(names.revision(1))  # then ours may be what an earlier revision names
            if winner.audio != manifest.audio and not replaced:
                await self._storage.delete(manifest.audio)
            log.warning("file.lost_race", audio=manifest.audio, kept=winner.audio)
            outcome.lost_race()
            return winner

    async def _prove(
        self, event: Event, report: ReportSucceeded, names: Names, attempt: Attempt, link: str, fetched: Fetched
    ) -> Manifest:
        proven_by_transport = fetched.transport != "close_delimited"
        judgement, digest = await self._staging.prove(attempt, body_proven_complete=proven_by_transport)
        audio = names.audio(digest)
        return Manifest(
            vendor=report.vendor,
            task_id=report.task_id,
            audio=audio,
            uri=self._storage.uri(audio),
            size_bytes=attempt.size_bytes,
            sha256=digest,
            format=judgement.format,
            evidence=Evidence(trust=report.trust, transport=fetched.transport),
            warnings=tuple(str(warning) for warning in judgement.warnings),
            link=public(link),
            link_identity=events.digest(identity(report.url)),
            fetched_identity=None if link == report.url else events.digest(identity(link)),
            received_at=report.received_at,
            deadline=report.deadline,
            stored_at=self._clock().astimezone(UTC),
            event_id=events.event_id(report.vendor, report.task_id, events.ConversionStored.TYPE),
            traceparent=event.traceparent,
        )

    async def _read_again(self, manifest: Manifest) -> None:
        """Check what is kept against what was proven, before it is called stored.

        What differs is left: another writer's manifest may describe it by now, and the next attempt writes over it.
        """
        if await self._storage.digest(manifest.audio) != (manifest.size_bytes, manifest.sha256):
            raise RetryableError(Reason.STORED_FILE_DIFFERS, "the kept file is not the one that was proven")

    async def _manifest(self, names: Names) -> Manifest | None:
        content = await self._storage.read(names.manifest)
        return None if content is None else read_manifest(content)

    async def _rejection(self, names: Names) -> Rejection | None:
        content = await self._storage.read(names.rejected)
        return None if content is None else read_rejection(content)

    async def _announce_stored(self, event: Event, manifest: Manifest, names: Names) -> None:
        if await self._storage.exists(names.announced):
            return
        # its writer may have failed between creating and syncing it: make it durable before it is told
        await self._storage.create(names.manifest, write(manifest))
        if await self._announce(event, manifest.announcement(), manifest.stored_at, names.announced):
            self._metrics.stored.labels(str(manifest.vendor)).inc()

    async def _reject(self, event: Event, report: Report, names: Names, reason: Reason, detail: str) -> None:
        rejection = Rejection(
            vendor=report.vendor,
            task_id=report.task_id,
            reason=reason,
            detail=detail,
            code=report.code if isinstance(report, ReportFailed) else None,
            rejected_at=self._clock().astimezone(UTC),
        )
        if not await self._storage.create(names.rejected, write(rejection)):
            earlier = await self._rejection(names)
            if earlier is not None and earlier.reason == reason:
                rejection = earlier  # the same fact is told again in the same words
        if await self._manifest(names) is not None:
            return  # stored meanwhile by another process: that is final
        told = await self._announce(
            event,
            ConversionRejected(
                vendor=rejection.vendor,
                task_id=rejection.task_id,
                reason=rejection.reason,
                detail=rejection.detail,
                code=rejection.code,
                rejected_at=rejection.rejected_at,
            ),
            rejection.rejected_at,
            names.rejection_announced(reason),
        )
        if told:
            self._metrics.rejected.labels(str(reason)).inc()

    async def _announce_conflict(
        self, event: Event, manifest: Manifest, names: Names, report: Report, claimed: str
    ) -> None:
        failed = isinstance(report, ReportFailed)
        conflict = ConversionConflicting(
            vendor=report.vendor,
            task_id=report.task_id,
            claim="failed" if failed else "succeeded",
            kept_link=manifest.link,
            claimed_link=None if isinstance(report, ReportFailed) else public(report.url),
            claimed_code=report.code if failed else None,
            kept_identity=manifest.kept_identity,
            claimed_identity=claimed,
            received_at=report.received_at,
        )
        if await self._announce(event, conflict, report.received_at, names.conflict_announced(claimed)):
            self._metrics.conflicts.labels(conflict.claim).inc()

    async def _warn_at_risk(
        self, event: Event, report: ReportSucceeded, names: Names, message: Message, reason: Reason
    ) -> None:
        now = self._clock()
        for percent, moment in at_risk_marks(report.received_at, report.deadline):
            if moment <= now:
                warning = ConversionAtRisk(
                    vendor=report.vendor,
                    task_id=report.task_id,
                    threshold_percent=percent,
                    deadline=report.deadline,
                    last_reason=reason,
                    attempts=message.attempts + 1,
                )
                try:
                    told = await self._announce(event, warning, now, names.risk_announced(percent))
                except (
                    RetryableError
                ) as error:  # the attempt's own reason decides about the next one, which tells again
                    log.warning("risk.untold", percent=percent, reason=error.reason)
                else:
                    self._metrics.at_risk.labels(str(percent)).inc(told)

    async def _announce(self, cause: Event, data: Data, time: datetime, marker: str) -> bool:
        """Publish, then mark; False where the marker tells that it was confirmed before."""
        if await self._storage.exists(marker):
            return False
        event = events.make(data, time=time, traceparent=cause.traceparent)
        await self._publisher.publish(data.EXCHANGE, event.routing_key, events.encode(event), event_id=event.id)
        await self._storage.create(marker, f"{event.id}\n".encode())
        log.info("event.announced", type=event.type, event_id=event.id)
        return True


def _report(message: Message) -> tuple[Event, Report]:
    event = events.decode(message.body)
    if isinstance(event.data, ReportSucceeded | ReportFailed):
        return event, event.data
    raise PermanentError(Reason.MESSAGE_UNKNOWN, f"{event.type} is no report of an end")
