"""Which link to follow: the one a report tells, or the vendor's own.

Responsible for: asking the vendor before anything is fetched, and once more within an attempt whose link has expired,
and following what it answers within the attempt's time. It must not know how files are fetched or vendors are asked,
what an answer is worth (`downloader.confirmation`), or when to try again.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from downloader.confirmation import Confirm, Course, Report, asks_first, decide
from downloader.fetch import Fetched, Sink
from downloader.metrics import DownloaderMetrics
from downloader.record import Answer, Outcome
from shared.errors import Reason, RetryableError
from shared.events import ReportFailed, ReportLinkless, ReportSucceeded, Trust
from shared.links import identity, public, public_text
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


@dataclass(frozen=True, slots=True)
class Lead:
    """A file to fetch.

    Attributes:
        url: to follow.
        claimed: the link that the report tells; `url` where it tells none.
        trust: what vouches for `url`.
        end: when the time of this attempt is over, by the loop's clock.
    """

    report: Report
    url: str
    claimed: str
    trust: tuple[Trust, ...]
    end: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """The conversion failed.

    Attributes:
        code: the vendor's; None where it told none.
        detail: a sentence, fit for the public.
    """

    code: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class Unanswerable:
    """A success without a link, of a vendor that cannot be asked."""

    report: ReportLinkless


@dataclass(frozen=True, slots=True)
class Followed:
    """A file that was fetched: the link it came by, what vouches for that link, and how it arrived."""

    url: str
    trust: tuple[Trust, ...]
    fetched: Fetched


class Links:
    """Finds and follows the links of reports.

    Args:
        files: fetches past the fence; a vendor's own link is judged there like any other.
        vendors: are asked.
        confirm: how much weight their word has.
        metrics: counts how the questions before fetching end.
        attempt_timeout_s: for everything: questions and links.
    """

    def __init__(
        self, files: Files, vendors: Vendors, *, confirm: Confirm, metrics: DownloaderMetrics, attempt_timeout_s: float
    ) -> None:
        self._files = files
        self._vendors = vendors
        self._confirm = confirm
        self._metrics = metrics
        self._attempt_timeout_s = attempt_timeout_s

    async def find(self, report: Report, *, now: datetime) -> Lead | Refusal | Unanswerable:
        """Return what follows from a report of a task that nothing is stored of.

        Raises:
            RetryableError: the vendor must tell first; the next attempt asks again.
        """
        end = asyncio.get_running_loop().time() + self._attempt_timeout_s
        asked = asks_first(self._confirm, report)
        answer = await self._vendors.ask(report.vendor, report.task_id) if asked else None
        outcome = None if answer is None else answer.outcome
        course = decide(self._confirm, report, outcome, now=now)
        if asked:
            self._count(report, answer, course)
        match course:
            case Course.FOLLOW_VENDOR:
                assert answer is not None
                assert answer.url is not None
                claimed = report.url if isinstance(report, ReportSucceeded) else answer.url
                return Lead(report, answer.url, claimed, _confirmed(report.trust), end)
            case Course.FOLLOW_REPORT:
                assert isinstance(report, ReportSucceeded)
                return Lead(report, report.url, report.url, report.trust, end)
            case Course.REJECT:
                return _refusal(report, answer)
            case Course.HAND_ON:
                assert isinstance(report, ReportLinkless)
                return Unanswerable(report)
            case Course.WAIT:
                linkless = isinstance(report, ReportLinkless)
                reason = Reason.LINK_MISSING if linkless else Reason.NOT_CONFIRMED
                said = "the vendor cannot be asked" if outcome is None else f"asked, the vendor's word is {outcome}"
                raise RetryableError(reason, said)

    async def fetch(self, lead: Lead, sink: Sink) -> Followed:
        """Stream a file into the sink; return the link it came by, which is a fresh one where the lead's has expired.

        Raises:
            RetryableError: as the fetcher; `link_expired` where no fresh link could be had now, also where the vendor
                says that the conversion failed: a vendor's word about a file it once had is not believed before the
                deadline.
            PermanentError: as the fetcher.
        """
        try:
            return Followed(lead.url, lead.trust, await self._fetch(lead.url, sink, lead.end))
        except RetryableError as error:
            if error.reason is not Reason.LINK_EXPIRED:
                raise
            url = await self._fresh_link(lead)
            if url is None:
                raise
        return Followed(url, _confirmed(lead.trust), await self._fetch(url, sink, lead.end))

    async def _fetch(self, url: str, sink: Sink, end: float) -> Fetched:
        try:
            async with asyncio.timeout_at(end) as attempt:
                return await self._files.fetch(url, sink)
        except TimeoutError:
            if not attempt.expired():
                raise
            raise RetryableError(
                Reason.TIMED_OUT, f"{public(url)}: not fetched within {self._attempt_timeout_s:g} s"
            ) from None

    async def _fresh_link(self, lead: Lead) -> str | None:
        """Return a link that differs from the followed one, if only by its signature; None where there is none now."""
        answer = await self._vendors.ask(lead.report.vendor, lead.report.task_id)
        if answer is None or answer.url in {lead.url, None}:
            return None
        log.info("link.refreshed", expired=public(lead.url))
        return answer.url

    def _count(self, report: Report, answer: Answer | None, course: Course) -> None:
        """Count how a question before fetching ended, and tell where the vendor contradicts its callback."""
        if course is Course.WAIT:
            self._metrics.confirmations.labels("waited").inc()
        elif answer is None:
            return
        elif course is Course.FOLLOW_REPORT or (course is Course.REJECT and answer.outcome is not Outcome.FAILED):
            log.info("link.unconfirmed", outcome=answer.outcome)
            self._metrics.confirmations.labels("unconfirmed_fetched").inc()
        elif _agree(report, answer):
            self._metrics.confirmations.labels("confirmed").inc()
        else:
            claimed = public(report.url) if isinstance(report, ReportSucceeded) else None
            told = None if answer.url is None else public(answer.url)
            log.warning("link.differs", report=report.TYPE, claimed=claimed, outcome=answer.outcome, told=told)
            self._metrics.confirmations.labels("differs").inc()


def _agree(report: Report, answer: Answer) -> bool:
    """Tell whether a vendor's answer says what its callback said."""
    if isinstance(report, ReportFailed):
        return answer.outcome is Outcome.FAILED
    if isinstance(report, ReportLinkless):
        return answer.url is not None
    return answer.url is not None and identity(answer.url) == identity(report.url)


def _confirmed(trust: tuple[Trust, ...]) -> tuple[Trust, ...]:
    return trust if "vendor_confirmed" in trust else (*trust, "vendor_confirmed")


def _refusal(report: Report, answer: Answer | None) -> Refusal:
    """Return the failure in the vendor's own words; those of a callback only where it needs no confirmation."""
    if isinstance(report, ReportFailed) and (answer is None or answer.outcome is not Outcome.FAILED):
        return Refusal(report.code, public_text(report.message))
    assert answer is not None
    return Refusal(answer.code, "the vendor says so when asked")
