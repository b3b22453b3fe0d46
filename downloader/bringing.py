"""Bringing a whole file to local disk: the one that an earlier attempt proved and could not store, else a fetched one.

Responsible for: asking the vendor for no byte of a file that is here and whole, and for what a file must withstand to
be called proven. It must not store anything, nor know HTTP or storages.

Why a whole file is kept until it is in custody: `docs/adr/0015-the-staged-copy-outlives-the-proof.md`.
"""

from collections.abc import Callable
from typing import Protocol

import structlog

from downloader.attempt import Attempt
from downloader.fetch import Sink
from downloader.links import Followed, Lead
from downloader.metrics import DownloaderMetrics
from downloader.proven import Proven
from downloader.staging import Staging
from shared.errors import Reason, RetryableError
from shared.events import Evidence, ReportSucceeded, digest
from shared.links import identity, public

log = structlog.get_logger()

DIGEST_WARNING = "server_digest_differs"
"""Of a file that is whole, and the same each time it was fetched, but not what its server's digest says."""

_SAME_BYTES = 3
"""Fetches of this process that brought the same bytes, until it is the server's digest that is believed to be wrong: a
file must not be lost for that, nor bytes be believed that differ from one fetch to the next."""

_REMEMBERED = 4_096
"""Tasks whose last bytes that differed are remembered; the oldest begin anew."""


class Fetching(Protocol):
    """Where files come from."""

    async def fetch(self, lead: Lead, sink: Sink) -> Followed:
        """Stream a file into the sink; return the link it came by, which may be fresher than the lead's.

        Raises retryable or permanent errors.
        """


class Bringing:
    """Brings files.

    Args:
        source: follows links, past the fence.
        staging: proves attempts, and keeps what is proven until it is stored.
    """

    def __init__(self, *, source: Fetching, staging: Staging, metrics: DownloaderMetrics) -> None:
        self._source = source
        self._staging = staging
        self._metrics = metrics
        self._differed: dict[str, tuple[str, int]] = {}

    async def bring(self, lead: Lead, attempt: Attempt, sink: Sink) -> Proven:
        """Return what is proven of the file that the attempt holds now.

        Args:
            attempt: begun for what `stands_for(lead)`.
            sink: the attempt, perhaps watched.

        Raises:
            RetryableError, PermanentError: it could not be fetched, is not whole, or is none that we keep.
        """
        if attempt.has_proven:
            if (recovered := await self._staging.recover(attempt)) is not None:
                self._metrics.recovered.labels("whole").inc()
                log.info("file.recovered", size_bytes=recovered.size_bytes, sha256=recovered.sha256)
                return recovered
            self._metrics.recovered.labels("damaged").inc()
            log.warning("file.not_recovered", detail="the staged copy is not what was proven: it is fetched anew")
        return await self._fetch(lead, attempt, sink)

    async def _fetch(self, lead: Lead, attempt: Attempt, sink: Sink) -> Proven:
        followed = await self._source.fetch(lead, sink)
        transport = followed.fetched.transport
        proof = await self._staging.prove(attempt, body_proven_complete=transport != "close_delimited")
        subject = f"{lead.report.vendor}/{lead.report.task_id}"
        if proof.differs and self._came(subject, proof.sha256) < _SAME_BYTES:
            raise RetryableError(Reason.DIGEST_DIFFERS, f"the bytes that came do not match {', '.join(proof.differs)}")
        self._differed.pop(subject, None)
        judgement = proof.judgement
        proven = Proven(
            asked=asked(lead),
            claimed=_claimed(lead),
            link=public(followed.url),
            came_by=digest(identity(followed.url)),
            size_bytes=attempt.size_bytes,
            sha256=proof.sha256,
            format=judgement.format,
            warnings=(*map(str, judgement.warnings), *((DIGEST_WARNING,) if proof.differs else ())),
            evidence=Evidence(
                trust=followed.trust,
                transport=transport,
                digest=proof.digest,
                matched=proof.matched,
                differs=proof.differs,
            ),
        )
        await self._staging.note(attempt, proven)
        return proven

    def _came(self, subject: str, sha256: str) -> int:
        """Take note of bytes of a task that differ from its server's digest; return how often they came in a row."""
        before, times = self._differed.pop(subject, (sha256, 0))
        times = times + 1 if before == sha256 else 1
        self._differed[subject] = (sha256, times)
        if len(self._differed) > _REMEMBERED:
            del self._differed[next(iter(self._differed))]
        return times


def asked(lead: Lead) -> str:
    """Return what tells the file behind a lead's link from others."""
    return digest(identity(lead.url))


def stands_for(lead: Lead) -> Callable[[Proven], bool]:
    """Return what tells whether a proven file may stand for a lead's, so that this need not be fetched.

    It may where it was asked for by the same link; and where the same link was reported and the vendor's own word
    vouches for the file: a vendor may name a new link each time it is asked.
    """

    def stands(proven: Proven) -> bool:
        confirmed = "vendor_confirmed" in proven.evidence.trust
        return proven.asked == asked(lead) or (confirmed and proven.claimed == _claimed(lead))

    return stands


def _claimed(lead: Lead) -> str:
    """Return what tells the link that a report tells from others; that of none where it tells none."""
    return digest(identity(lead.claimed) if isinstance(lead.report, ReportSucceeded) else "")
