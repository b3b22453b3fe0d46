"""Which link to follow: the one a report holds, or a fresh one where that has expired.

Responsible for: asking the vendor once within an attempt, and following what it answers within the same time. It must
not know how files are fetched, how vendors are asked, or when to try again.
"""

import asyncio
from typing import Protocol

import structlog

from downloader.fetch import Fetched, Sink
from downloader.record import Answer
from shared.errors import Reason, RetryableError
from shared.events import ReportSucceeded
from shared.links import public
from shared.vendors import Vendor

log = structlog.get_logger()


class Files(Protocol):
    """Where files come from."""

    async def fetch(self, url: str, sink: Sink) -> Fetched:
        """Stream the file into the sink; raises retryable or permanent errors.

        `link_expired` is raised before anything was written.
        """


class Vendors(Protocol):
    """Whom to ask."""

    async def ask(self, vendor: Vendor, task_id: str) -> Answer | None:
        """Return what came of the question; None where the vendor cannot be asked. Raises nothing of a vendor's."""


class Links:
    """Follows the links of reports.

    Args:
        files: fetches past the fence; a fresh link is judged there like any other.
        vendors: are asked for a fresh link.
        attempt_timeout_s: for everything: both links and the question.
    """

    def __init__(self, files: Files, vendors: Vendors, *, attempt_timeout_s: float) -> None:
        self._files = files
        self._vendors = vendors
        self._attempt_timeout_s = attempt_timeout_s

    async def fetch(self, report: ReportSucceeded, sink: Sink) -> tuple[str, Fetched]:
        """Stream a report's file into the sink; return the link it came by, and how it arrived.

        Raises:
            RetryableError: as the fetcher; `link_expired` where no fresh link could be had now, also where the vendor
                says that the conversion failed: a vendor's word about a file it once had is not believed before the
                deadline.
            PermanentError: as the fetcher.
        """
        end = asyncio.get_running_loop().time() + self._attempt_timeout_s
        try:
            return report.url, await self._files.fetch(report.url, sink)
        except RetryableError as error:
            if error.reason is not Reason.LINK_EXPIRED:
                raise
            url = await self._fresh_link(report)
            if url is None:
                raise
        try:
            async with asyncio.timeout_at(end) as attempt:
                return url, await self._files.fetch(url, sink)
        except TimeoutError:
            if not attempt.expired():
                raise
            raise RetryableError(
                Reason.TIMED_OUT, f"{public(url)}: not fetched within {self._attempt_timeout_s:g} s"
            ) from None

    async def _fresh_link(self, report: ReportSucceeded) -> str | None:
        """Return a link that differs from the report's, if only by its signature; None where there is none now."""
        answer = await self._vendors.ask(report.vendor, report.task_id)
        if answer is None or answer.url in {report.url, None}:
            return None
        log.info("link.refreshed", expired=public(report.url))
        return answer.url
