"""What the ingress measures.

Responsible for: the callback metrics, zeroed at start. Catalogue: `docs/metrics.md`.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ingress.authenticity import Doubt
from ingress.problems import Refusal
from shared.vendors import Vendor

READINGS = ("succeeded", "failed", "linkless", "unrecognised")


class IngressMetrics:
    """The metrics of the HTTP edge."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.accepted = Counter(
            "wavekeep_ingress_callbacks_accepted_total",
            "Callbacks answered 200, by what the vendor said.",
            ["vendor", "reading"],
            registry=registry,
        )
        self.refused = Counter(
            "wavekeep_ingress_callbacks_refused_total",
            "Requests answered otherwise, by why.",
            ["refusal"],
            registry=registry,
        )
        self.doubted = Counter(
            "wavekeep_ingress_callbacks_doubted_total",
            "Callbacks that were not authentic, by which proof failed.",
            ["doubt"],
            registry=registry,
        )
        self.answer_seconds = Histogram(
            "wavekeep_ingress_answer_seconds",
            "Time from a request's headers to its answer.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15),
            registry=registry,
        )
        self.unauthenticated = Gauge(
            "wavekeep_ingress_vendor_unauthenticated",
            "1 where a setting makes us believe a vendor's callbacks without any proof.",
            ["vendor"],
            registry=registry,
        )
        self.connections = Gauge("wavekeep_ingress_connections", "Open connections.", registry=registry)
        self.displaced = Counter(
            "wavekeep_ingress_connections_displaced_total",
            "Connections closed to make room for new ones.",
            registry=registry,
        )
        self.in_flight = Gauge(
            "wavekeep_ingress_callbacks_in_flight", "Callbacks being read or made durable.", registry=registry
        )
        self._stale = Counter(
            "wavekeep_ingress_callbacks_stale_total",
            "Callbacks taken although their right signature is too old: fetched only once the vendor confirms.",
            ["vendor"],
            registry=registry,
        )
        self._skew = Gauge(
            "wavekeep_ingress_signature_skew_seconds",
            "Our clock minus the timestamp of the latest rightly signed callback, taken or refused.",
            ["vendor"],
            registry=registry,
        )
        for vendor in Vendor:
            self._skew.labels(str(vendor))
            self._stale.labels(str(vendor))
            self.unauthenticated.labels(str(vendor))
            for reading in READINGS:
                self.accepted.labels(str(vendor), reading)
        for refusal in Refusal:
            self.refused.labels(str(refusal))
        for doubt in Doubt:
            self.doubted.labels(str(doubt))

    def skewed(self, vendor: Vendor, skew_s: float) -> None:
        """Note how far our clock is from a rightly signed timestamp."""
        self._skew.labels(str(vendor)).set(skew_s)

    def took_stale(self, vendor: Vendor) -> None:
        """Note a callback that was taken although its signature is stale."""
        self._stale.labels(str(vendor)).inc()
