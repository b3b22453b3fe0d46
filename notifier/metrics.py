"""What the notifier measures.

Responsible for: the delivery metrics. Destinations are a closed set, known at start. Catalogue: `docs/metrics.md`.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.metrics import crash_loops

OUTCOMES = ("delivered", "retryable", "permanent")


class NotifierMetrics:
    """The metrics of deliveries."""

    def __init__(self, registry: CollectorRegistry, destinations: Iterable[str]) -> None:
        self.deliveries = Counter(
            "wavekeep_notifier_deliveries_total",
            "Deliveries tried, by how they went.",
            ["destination", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "wavekeep_notifier_delivery_seconds",
            "Time of one delivery.",
            ["destination"],
            buckets=(0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60),
            registry=registry,
        )
        self.given_up = Counter(
            "wavekeep_notifier_deliveries_given_up_total",
            "Deliveries parked undelivered.",
            ["destination"],
            registry=registry,
        )
        self.failing_since = Gauge(
            "wavekeep_notifier_failing_since_timestamp_seconds",
            "When the oldest message came that failed since the destination last took one; 0 while it takes them.",
            ["destination"],
            registry=registry,
        )
        self.crash_loops = crash_loops(registry, "notifier")
        for destination in destinations:
            self.seconds.labels(destination)
            self.given_up.labels(destination)
            self.failing_since.labels(destination)
            for outcome in OUTCOMES:
                self.deliveries.labels(destination, outcome)
