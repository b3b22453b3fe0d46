"""What the downloader measures.

Responsible for: the metrics of attempts and end states, zeroed at start. Catalogue: `docs/metrics.md`.
"""

from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from downloader.keeping_metrics import KeepingMetrics
from downloader.quality import Failure, Finding, Quality
from downloader.record import Outcome
from shared.errors import BusyError, Reason
from shared.metrics import crash_loops
from shared.retry import AT_RISK_PERCENT
from shared.vendors import Vendor

ATTEMPT_OUTCOMES = ("stored", "lost_race", "put_off", "failed")
LANES = ("normal", "urgent")
PUT_OFFS = (Reason.VENDOR_BUSY, Reason.HOST_BUSY, Reason.LARGE_BUSY)
CLAIMS = ("succeeded", "failed")
RECOVERIES = ("whole", "damaged")
CONFIRMATIONS = ("confirmed", "differs", "unconfirmed_fetched", "waited")


class AttemptOutcome:
    """What became of one attempt; failed, unless told otherwise."""

    def __init__(self) -> None:
        self.word = "failed"
        self.size_bytes = 0

    def stored(self, size_bytes: int) -> None:
        """The file is in custody."""
        self.word, self.size_bytes = "stored", size_bytes

    def lost_race(self) -> None:
        """Another writer's manifest was there first."""
        self.word = "lost_race"


class DownloaderMetrics:
    """The metrics of custody."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._attempts = Counter(
            "wavekeep_downloader_attempts_total", "Attempts at a file, by outcome.", ["outcome"], registry=registry
        )
        self._seconds = Histogram(
            "wavekeep_downloader_attempt_seconds",
            "Time of an attempt: fetch, proof, storing.",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_500),
            registry=registry,
        )
        self._bytes = Counter(
            "wavekeep_downloader_stored_bytes_total", "Bytes of audio taken into custody.", registry=registry
        )
        self._inspections = Counter(
            "wavekeep_downloader_quality_runs_total",
            "Files measured, by how that went: measured, or why not. The file is kept either way.",
            ["outcome"],
            registry=registry,
        )
        self._findings = Counter(
            "wavekeep_downloader_quality_findings_total",
            "What was odd about how files sound.",
            ["finding"],
            registry=registry,
        )
        for outcome in ("measured", *Failure):
            self._inspections.labels(str(outcome))
        for finding in Finding:
            self._findings.labels(str(finding))
        self.crash_loops = crash_loops(registry, "downloader")
        self._in_progress = Gauge("wavekeep_downloader_attempts_in_progress", "Attempts under way.", registry=registry)
        self.places = Gauge(
            "wavekeep_downloader_places_taken",
            "Places for downloads that are taken, by lane.",
            ["lane"],
            registry=registry,
        )
        self.put_offs = Counter(
            "wavekeep_downloader_put_offs_total",
            "Reports put off untried, by what there was no place for.",
            ["reason"],
            registry=registry,
        )
        for lane in LANES:
            self.places.labels(lane)
        for reason in PUT_OFFS:
            self.put_offs.labels(str(reason))
        self.stored = Counter(
            "wavekeep_downloader_conversions_stored_total",
            "Conversions announced stored.",
            ["vendor"],
            registry=registry,
        )
        self.rejected = Counter(
            "wavekeep_downloader_conversions_rejected_total",
            "Conversions announced rejected.",
            ["reason"],
            registry=registry,
        )
        self.conflicts = Counter(
            "wavekeep_downloader_conflicts_total",
            "Reports that contradict what is final, by what they claim.",
            ["claim"],
            registry=registry,
        )
        self.at_risk = Counter(
            "wavekeep_downloader_at_risk_total",
            "Conversions told as at risk, by share of the time gone.",
            ["percent"],
            registry=registry,
        )
        self.questions = Counter(
            "wavekeep_downloader_vendor_questions_total",
            "Questions put to a vendor about a task, by what came of them.",
            ["vendor", "outcome"],
            registry=registry,
        )
        self.confirmations = Counter(
            "wavekeep_downloader_confirmations_total",
            "How asking before fetching, or before telling a conflict, ended.",
            ["outcome"],
            registry=registry,
        )
        self.recovered = _recoveries(registry)
        self.swept = Counter(
            "wavekeep_downloader_swept_files_total",
            "Files of dead attempts and writers removed, at start and later.",
            registry=registry,
        )
        self.keeping = KeepingMetrics(registry)
        for vendor in Vendor:
            self.stored.labels(str(vendor))
            for answer in Outcome:
                self.questions.labels(str(vendor), str(answer))
        for reason in Reason:
            self.rejected.labels(str(reason))
        for claim in CLAIMS:
            self.conflicts.labels(claim)
        for percent in AT_RISK_PERCENT:
            self.at_risk.labels(str(percent))
        for outcome in ATTEMPT_OUTCOMES:
            self._attempts.labels(outcome)
        for outcome in CONFIRMATIONS:
            self.confirmations.labels(outcome)

    def inspected(self, quality: Quality) -> None:
        """Count one quality run."""
        self._inspections.labels(str(quality.failure or "measured")).inc()
        for finding in quality.findings:
            self._findings.labels(str(finding)).inc()

    @contextmanager
    def attempt(self) -> Generator[AttemptOutcome, None, None]:
        """Measure one attempt."""
        started, outcome = monotonic(), AttemptOutcome()
        self._in_progress.inc()
        try:
            yield outcome
        except BusyError:
            outcome.word = "put_off"
            raise
        finally:
            self._in_progress.dec()
            self._seconds.observe(monotonic() - started)
            self._attempts.labels(outcome.word).inc()
            self._bytes.inc(outcome.size_bytes)


def _recoveries(registry: CollectorRegistry) -> Counter:
    recoveries = Counter(
        "wavekeep_downloader_recoveries_total",
        "Files that an earlier attempt had proven and not stored, by what their staged copy still was; whole ones are"
        " not fetched again.",
        ["outcome"],
        registry=registry,
    )
    for outcome in RECOVERIES:
        recoveries.labels(outcome)
    return recoveries
