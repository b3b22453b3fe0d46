"""What the keeping of files measures: room, retention, orphans.

Responsible for: its metrics, zeroed at start. Catalogue: `docs/metrics.md`.
"""

from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

Rule = Literal["age", "size"]

LET_GO = ("bound", "age")
REPAIRS = ("done", "impossible")
DISKS = ("staging", "storage")
ROUND_OUTCOMES = ("done", "failed", "crashed")
SWEEP_OUTCOMES = ("done", "denied", "failed")
RULES: Final[tuple[Rule, ...]] = ("age", "size")


class KeepingMetrics:
    """The metrics of what becomes of files after they were stored, and of the room for more."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.disk_free = Gauge(
            "wavekeep_downloader_disk_free_bytes",
            "Free on the disk of a folder; 0 where an object store is in its place.",
            ["disk"],
            registry=registry,
        )
        self.disk_reserve = Gauge(
            "wavekeep_downloader_disk_reserve_bytes",
            "Kept free on that disk: with less, no file is fetched.",
            ["disk"],
            registry=registry,
        )
        self.whole_let_go = Counter(
            "wavekeep_downloader_whole_copies_let_go_total",
            "Whole files that were not stored yet and had to leave staging: past its bound, or for their age.",
            ["reason"],
            registry=registry,
        )
        self.not_forgotten = Counter(
            "wavekeep_downloader_staging_not_forgotten_total",
            "Tasks that are over and of which something is left in staging, because its disk failed.",
            registry=registry,
        )
        self.repairs = Counter(
            "wavekeep_downloader_repairs_total",
            "Stored files that a late attempt had damaged: put again from its staged copy, or none was left.",
            ["outcome"],
            registry=registry,
        )
        for outcome in REPAIRS:
            self.repairs.labels(outcome)
        for let_go in LET_GO:
            self.whole_let_go.labels(let_go)
        self.kept = Gauge(
            "wavekeep_downloader_kept_bytes", "Audio and pictures in storage; 0 until counted.", registry=registry
        )
        self.quota = Gauge(
            "wavekeep_downloader_quota_bytes", "What may be kept at most; 0 without a quota.", registry=registry
        )
        self.rounds = Counter(
            "wavekeep_downloader_housekeeping_rounds_total",
            "Rounds of counting, sweeping and retention; a failed one is repeated, a crashed one is a fault of ours.",
            ["outcome"],
            registry=registry,
        )
        self.last_round = Gauge(
            "wavekeep_downloader_housekeeping_last_done_timestamp_seconds",
            "When a round was last done.",
            registry=registry,
        )
        self.orphans = Gauge(
            "wavekeep_downloader_orphans", "Files in storage that no manifest names, for over a day.", registry=registry
        )
        self.orphan_bytes = Gauge("wavekeep_downloader_orphan_bytes", "Size of these.", registry=registry)
        self.came_back = Gauge(
            "wavekeep_downloader_files_came_back",
            "Files in storage that retention had deleted, and that somebody put back.",
            registry=registry,
        )
        self.upload_sweeps = Counter(
            "wavekeep_downloader_upload_sweeps_total",
            "Searches of an S3 storage for uploads that nobody will end; denied where the right is missing.",
            ["outcome"],
            registry=registry,
        )
        self.uploads_ended = Counter(
            "wavekeep_downloader_uploads_ended_total", "Uploads that these ended.", registry=registry
        )
        self.named = Gauge(
            "wavekeep_downloader_retention_named_files",
            "Tasks whose files retention names to go, by the rule that does.",
            ["rule"],
            registry=registry,
        )
        self.named_bytes = Gauge(
            "wavekeep_downloader_retention_named_bytes", "Size of these.", ["rule"], registry=registry
        )
        self.expired = Counter(
            "wavekeep_downloader_files_expired_total",
            "Tasks whose files retention deleted, by rule.",
            ["rule"],
            registry=registry,
        )
        self.expired_bytes = Counter(
            "wavekeep_downloader_expired_bytes_total", "Bytes that retention deleted.", registry=registry
        )
        for disk in DISKS:
            self.disk_free.labels(disk)
            self.disk_reserve.labels(disk)
        for outcome in ROUND_OUTCOMES:
            self.rounds.labels(outcome)
        for outcome in SWEEP_OUTCOMES:
            self.upload_sweeps.labels(outcome)
        for rule in RULES:
            self.named.labels(rule)
            self.named_bytes.labels(rule)
            self.expired.labels(rule)
