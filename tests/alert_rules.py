"""The alert rules as data, and the metrics of every process as they are before anything happened.

Responsible for: reading `deploy/prometheus/alerts.yml`, finding what an expression looks at, and building each process'
registry. It must not evaluate anything: that is Prometheus' own work.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

from downloader.metrics import DownloaderMetrics
from ingress.metrics import IngressMetrics
from notifier.metrics import NotifierMetrics
from shared.messaging.topology import DOWNLOADER, NOTIFIER, URGENT
from shared.metrics import MessagingMetrics, SpoolMetrics, ready

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus/alerts.yml"
CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
CASES = ROOT / "tests/integration/alerts_test.yml"

_SELECTOR = re.compile(r"(?P<name>[a-z]\w*)?\{(?P<matchers>[^}]*)\}|\b(?P<bare>wavekeep_\w+)")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


@dataclass(frozen=True)
class Selector:
    """What an expression takes of all series.

    Attributes:
        name: a pattern.
        labels: a pattern for each label that is named.
        unwanted: the labels whose pattern must not match.
    """

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    unwanted: frozenset[str] = frozenset()

    def takes(self, sample: Sample) -> bool:
        """Tell whether a sample is among them."""
        return re.fullmatch(self.name, sample.name) is not None and all(
            (re.fullmatch(pattern, sample.labels.get(label, "")) is None) is (label in self.unwanted)
            for label, pattern in self.labels.items()
        )

    def single(self) -> Iterator["Selector"]:
        """Yield it once for each of the values its patterns list, wanted or not."""
        for values in itertools.product(*(pattern.split("|") for pattern in self.labels.values())):
            yield Selector(self.name, dict(zip(self.labels, values, strict=True)))


def alerts() -> dict[str, dict[str, Any]]:
    """Return every alert, by name, in the order of the file."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    found = {rule["alert"]: rule for rule in rules}
    assert len(found) == len(rules), "two alerts of one name"
    return found


def selectors(expression: str) -> list[Selector]:
    """Return what an expression looks at."""
    found = []
    for match in _SELECTOR.finditer(expression):
        name = match["name"] or match["bare"]
        labels, unwanted = {}, set()
        for label, operator, pattern in _MATCHER.findall(match["matchers"] or ""):
            if label == "__name__":
                name = pattern
                continue
            labels[label] = pattern
            if operator.startswith("!"):
                unwanted.add(label)
        assert name, expression
        found.append(Selector(name, labels, frozenset(unwanted)))
    assert found, expression
    return found


def processes() -> dict[str, CollectorRegistry]:
    """Return the metrics of each process that has any, at their first values."""
    made = {name: CollectorRegistry() for name in ("ingress", "downloader", "notifier", "standalone")}
    for name, registry in made.items():
        ready(registry, name)
        MessagingMetrics(registry, name, [DOWNLOADER, URGENT, NOTIFIER])
        if name in {"ingress", "standalone"}:
            IngressMetrics(registry)
            SpoolMetrics(registry, "ingress")
        if name in {"downloader", "standalone"}:
            DownloaderMetrics(registry)
        if name in {"notifier", "standalone"}:
            NotifierMetrics(registry, ["log"])
    return made


def samples(registry: CollectorRegistry) -> list[Sample]:
    """Return everything that a registry shows."""
    return [sample for family in registry.collect() for sample in family.samples]
