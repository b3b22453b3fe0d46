"""What every service measures about its messages, in Prometheus' terms.

Responsible for: names, labels and buckets of the messaging metrics, zeroed at start so that a rate exists before the
first event. Catalogue: `docs/metrics.md`, held against this by a test. It must not keep a global registry.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.errors import Reason

OUTCOMES = ("acked", "retried", "put_off", "forwarded", "parked", "handed_back", "lost")
PUBLISH_OUTCOMES = ("confirmed", "failed")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1_800)


class MessagingMetrics:
    """The messaging metrics of one service.

    Args:
        registry: where they are registered.
        service: the name between `wavekeep_` and the rest, for example `downloader`.
        queues: the work queues this service consumes.
    """

    def __init__(self, registry: CollectorRegistry, service: str, queues: Iterable[str] = ()) -> None:
        prefix = f"wavekeep_{service}"
        self._handled = Counter(
            f"{prefix}_messages_total",
            "Messages settled, by what became of them.",
            ["queue", "outcome"],
            registry=registry,
        )
        self._failures = Counter(
            f"{prefix}_message_failures_total",
            "Attempts at a message that failed, by reason.",
            ["reason"],
            registry=registry,
        )
        self._seconds = Histogram(
            f"{prefix}_message_seconds",
            "Time from taking a message in hand to settling it.",
            ["queue"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._settle_failures = Counter(
            f"{prefix}_settle_failures_total",
            "Settlements the broker did not take at once.",
            ["queue"],
            registry=registry,
        )
        self._publishes = Counter(f"{prefix}_publishes_total", "Publishes, by outcome.", ["outcome"], registry=registry)
        self._publish_seconds = Histogram(
            f"{prefix}_publish_seconds",
            "Time from a publish to its confirmation.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.connected = Gauge(f"{prefix}_broker_connected", "1 while a publish could be confirmed.", registry=registry)
        self.missing = Gauge(
            f"{prefix}_queues_missing", "Required queues that the broker does not have.", registry=registry
        )
        self.depth = Gauge(
            f"{prefix}_queue_messages",
            "Messages in a queue, those in hand included.",
            ["queue"],
            registry=registry,
        )
        self.braked = Gauge(
            f"{prefix}_consumer_braked",
            "1 while a queue is not consumed because too much of it was parked for causes of ours.",
            ["queue"],
            registry=registry,
        )
        self.braked_groups = Gauge(
            f"{prefix}_braked_groups",
            "Hosts or vendors whose messages are put off because too many of them were parked.",
            ["queue"],
            registry=registry,
        )
        for outcome in PUBLISH_OUTCOMES:
            self._publishes.labels(outcome)
        for reason in Reason:
            self._failures.labels(str(reason))
        for queue in queues:
            self._seconds.labels(queue)
            self._settle_failures.labels(queue)
            self.braked.labels(queue)
            self.braked_groups.labels(queue)
            for outcome in OUTCOMES:
                self._handled.labels(queue, outcome)

    def handled(self, queue: str, outcome: str, reason: Reason | None, duration_s: float) -> None:
        """Count one message settled."""
        self._handled.labels(queue, outcome).inc()
        self._seconds.labels(queue).observe(duration_s)
        if reason is not None:
            self._failures.labels(str(reason)).inc()

    def settle_failed(self, queue: str) -> None:
        """Count one settlement that must be tried again."""
        self._settle_failures.labels(queue).inc()

    def published(self, outcome: str, duration_s: float) -> None:
        """Count one publish."""
        self._publishes.labels(outcome).inc()
        self._publish_seconds.observe(duration_s)


def ready(registry: CollectorRegistry, service: str) -> Gauge:
    """Return the gauge of what `/readyz` answers."""
    return Gauge(f"wavekeep_{service}_ready", "1 while /readyz answers 200.", registry=registry)


def crash_loops(registry: CollectorRegistry, service: str) -> Gauge:
    """Return the gauge of what `shared.messaging.second_chance` finds."""
    return Gauge(
        f"wavekeep_{service}_crash_loops",
        "Messages parked by the delivery limit: handling them ended the process again and again.",
        registry=registry,
    )


class SpoolMetrics:
    """The metrics of a spool."""

    def __init__(self, registry: CollectorRegistry, service: str) -> None:
        prefix = f"wavekeep_{service}_spool"
        self.messages = Gauge(f"{prefix}_messages", "Messages that wait for the broker.", registry=registry)
        self.bytes = Gauge(f"{prefix}_bytes", "Bytes of the bodies that wait.", registry=registry)
        self.oldest = Gauge(
            f"{prefix}_oldest_timestamp_seconds",
            "When the oldest message that waits came, in Unix seconds; 0 while none waits.",
            registry=registry,
        )
        self.open = Gauge(f"{prefix}_open", "1 while the spool's disk is trusted with more.", registry=registry)
        self.direct = Gauge(f"{prefix}_direct", "1 while publishes go to the broker first.", registry=registry)
        self.spooled = Counter(f"{prefix}_spooled_total", "Messages committed to the spool.", registry=registry)
        self.relayed = Counter(f"{prefix}_relayed_total", "Messages moved on to the broker.", registry=registry)
        self.refused = Counter(
            f"{prefix}_refused_total",
            "Messages neither the broker confirmed nor the spool took, by why.",
            ["reason"],
            registry=registry,
        )
        self.failures = Counter(
            f"{prefix}_failures_total",
            "Times the spool's disk was full or failed, or its file could not be opened, by why.",
            ["reason"],
            registry=registry,
        )
        for reason in (Reason.STORAGE_FULL, Reason.STORAGE_FAILED):
            self.refused.labels(str(reason))
            self.failures.labels(str(reason))
