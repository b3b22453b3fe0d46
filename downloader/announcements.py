"""What custody tells: each fact once, or again under the same id.

Responsible for: the events of end states, of contradictions and of danger, and the marker that follows each one once
it is confirmed, so that a redelivery after a crash tells again and later repetitions end silently. It must not decide
what became of a task.
"""

from datetime import datetime
from hashlib import sha256

import structlog

from downloader.confirmation import Report
from downloader.manifest import Manifest, Rejection, write
from downloader.metrics import DownloaderMetrics
from downloader.names import Names
from downloader.storage import Storage
from shared import events
from shared.clock import Clock
from shared.errors import Reason, RetryableError
from shared.events import (
    ConversionAtRisk,
    ConversionConflicting,
    ConversionRejected,
    Data,
    Event,
    ReportFailed,
    ReportLinkless,
    ReportSucceeded,
    ReportUnrecognised,
)
from shared.links import identity, public
from shared.messaging.port import Publisher
from shared.retry import at_risk_marks

log = structlog.get_logger()

_MOST_REMEMBERED = 10_000


class Announcements:
    """Tells what became of tasks. Each method is idempotent.

    Args:
        storage: keeps the markers.
        publisher: confirms before it returns.
    """

    def __init__(self, *, storage: Storage, publisher: Publisher, metrics: DownloaderMetrics, clock: Clock) -> None:
        self._storage = storage
        self._publisher = publisher
        self._metrics = metrics
        self._clock = clock
        self._warned: dict[str, None] = {}

    async def stored(self, cause: Event, manifest: Manifest, names: Names) -> None:
        """Tell that a file is in custody."""
        if await self._storage.exists(names.announced):
            return
        # its writer may have failed between creating and syncing it: make it durable before it is told
        await self._storage.create(names.manifest, write(manifest))
        if await self._announce(cause, manifest.announcement(), manifest.stored_at, names.announced):
            self._metrics.stored.labels(str(manifest.vendor)).inc()

    async def rejected(self, cause: Event, rejection: Rejection, names: Names) -> None:
        """Tell that a conversion is given up."""
        told = await self._announce(
            cause,
            ConversionRejected(
                vendor=rejection.vendor,
                task_id=rejection.task_id,
                reason=rejection.reason,
                detail=rejection.detail,
                code=rejection.code,
                rejected_at=rejection.rejected_at,
            ),
            rejection.rejected_at,
            names.rejection_announced(rejection.reason),
        )
        if told:
            self._metrics.rejected.labels(str(rejection.reason)).inc()

    async def conflicting(
        self, cause: Event, manifest: Manifest, names: Names, report: ReportSucceeded | ReportFailed
    ) -> None:
        """Tell that a report contradicts what is stored."""
        failed = isinstance(report, ReportFailed)
        claimed = f"code-{report.code}" if isinstance(report, ReportFailed) else events.digest(identity(report.url))
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
        if await self._announce(cause, conflict, report.received_at, names.conflict_announced(claimed)):
            self._metrics.conflicts.labels(conflict.claim).inc()

    async def at_risk(self, cause: Event, report: Report, names: Names, reason: Reason, *, attempts: int) -> None:
        """Tell each share of the time to the deadline that has passed; where that fails, the next failure does.

        It is told though the storage fails, once by each process at least: that may be the danger.

        Args:
            reason: of the latest attempt's failure.
            attempts: that failed so far.
        """
        now = self._clock()
        for percent, moment in at_risk_marks(report.received_at, report.deadline):
            if moment <= now:
                warning = ConversionAtRisk(
                    vendor=report.vendor,
                    task_id=report.task_id,
                    threshold_percent=percent,
                    deadline=report.deadline,
                    last_reason=reason,
                    attempts=attempts,
                )
                try:
                    told = await self._warn(cause, warning, now, names.risk_announced(percent))
                except RetryableError as error:
                    log.warning("risk.untold", percent=percent, reason=error.reason)
                else:
                    self._metrics.at_risk.labels(str(percent)).inc(told)

    async def unrecognised(self, cause: Event, report: ReportLinkless) -> None:
        """Hand on a report that only a person can bring further; without a marker, because its queue keeps copies."""
        data = ReportUnrecognised(
            vendor=report.vendor,
            task_id=report.task_id,
            explanation=report.explanation,
            body=report.body,
            body_sha256=sha256(report.body.encode()).hexdigest(),
            received_at=report.received_at,
            trust=report.trust,
            origin=report.origin,
        )
        event = await self._publish(cause, data, report.received_at)
        log.info("report.handed_on", type=event.type, event_id=event.id)

    async def _warn(self, cause: Event, warning: ConversionAtRisk, time: datetime, marker: str) -> bool:
        """Publish, then mark, unless the marker is there, or this process could not make it and knows that it told."""
        if marker in self._warned:
            return False
        marks = True
        try:
            if await self._storage.exists(marker):
                return False
        except RetryableError:
            marks = False
        event = await self._publish(cause, warning, time)
        log.info("event.announced", type=event.type, event_id=event.id)
        try:
            if marks:
                await self._storage.create(marker, f"{event.id}\n".encode())
        except RetryableError:
            marks = False
        if not marks:
            log.warning("risk.told_unmarked", percent=warning.threshold_percent)
            if len(self._warned) == _MOST_REMEMBERED:
                del self._warned[next(iter(self._warned))]
            self._warned[marker] = None
        return True

    async def _announce(self, cause: Event, data: Data, time: datetime, marker: str) -> bool:
        """Publish, then mark; False where the marker tells that it was confirmed before."""
        if await self._storage.exists(marker):
            return False
        event = await self._publish(cause, data, time)
        await self._storage.create(marker, f"{event.id}\n".encode())
        log.info("event.announced", type=event.type, event_id=event.id)
        return True

    async def _publish(self, cause: Event, data: Data, time: datetime) -> Event:
        event = events.make(data, time=time, traceparent=cause.traceparent)
        await self._publisher.publish(data.EXCHANGE, event.routing_key, events.encode(event), event_id=event.id)
        return event
