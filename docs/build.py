"""Writes what the documentation repeats from the code: `make docs`.

Responsible for: `docs/asyncapi.yaml`, `docs/openapi.yaml`, and the tables between the markers in
`docs/configuration.md` and `docs/metrics.md`. `tests/unit/test_docs.py` fails where one of them is behind the code.
"""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from downloader.metrics import DownloaderMetrics
from downloader.settings import DownloaderSettings
from ingress import openapi
from ingress.http import LARGEST_BODY_BYTES
from ingress.metrics import IngressMetrics
from ingress.settings import IngressSettings
from notifier.metrics import NotifierMetrics
from notifier.settings import NotifierSettings
from shared.asyncapi import document
from shared.metrics import MessagingMetrics, SpoolMetrics, ready
from shared.operations import product_version
from shared.settings import PREFIX, ServiceSettings
from standalone.settings import StandaloneSettings

DOCS = Path(__file__).parent

SETTINGS: dict[str, type[ServiceSettings]] = {
    "shared": ServiceSettings,
    "ingress": IngressSettings,
    "downloader": DownloaderSettings,
    "notifier": NotifierSettings,
    "standalone": StandaloneSettings,
}


def build() -> dict[Path, str]:
    """Return every file that is made from the code, with the content it should have."""
    configuration, metrics = DOCS / "configuration.md", DOCS / "metrics.md"
    return {
        DOCS / "asyncapi.yaml": _yaml(document(product_version()), source="shared/events.py"),
        DOCS / "openapi.yaml": _yaml(
            openapi.document(product_version(), largest_body_bytes=LARGEST_BODY_BYTES), source="ingress/openapi.py"
        ),
        configuration: _filled(configuration, {room: settings_table(room) for room in SETTINGS}),
        metrics: _filled(metrics, metrics_tables()),
    }


def settings_table(room: str) -> str:
    """Return the table of the settings that a room adds to the shared ones."""
    model = SETTINGS[room]
    known = {} if room == "shared" else dict(ServiceSettings.model_fields)
    if room == "standalone":
        for other in ("ingress", "downloader", "notifier"):
            known |= SETTINGS[other].model_fields
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if name not in known:
            rows.append(f"| `{PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description} |")
    return "\n".join(rows)


def metrics_tables() -> dict[str, str]:
    """Return the table of metrics of each part."""
    made = {
        "operations": lambda registry: ready(registry, "SERVICE"),
        "messaging": lambda registry: MessagingMetrics(registry, "SERVICE"),
        "ingress": IngressMetrics,
        "spool": lambda registry: SpoolMetrics(registry, "ingress"),
        "downloader": DownloaderMetrics,
        "notifier": lambda registry: NotifierMetrics(registry, ["DESTINATION"]),
    }
    tables = {}
    for part, make in made.items():
        registry = CollectorRegistry()
        make(registry)
        rows = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
        rows += [f"| `{name}` | {kind} | {labels} | {meaning} |" for name, kind, labels, meaning in _metrics(registry)]
        tables[part] = "\n".join(rows)
    return tables


def _metrics(registry: CollectorRegistry) -> Iterator[tuple[str, str, str, str]]:
    for collector in registry._collector_to_names:
        assert isinstance(collector, MetricWrapperBase)
        kind = collector._type
        name = collector._name + ("_total" if kind == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        yield name.replace("SERVICE", "<service>"), kind, labels, collector._documentation


def _yaml(content: dict[str, Any], *, source: str) -> str:
    text: str = yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True)
    return f"# Made from {source} by `make docs`.\n{text}"


def _shown(default: Any) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, timedelta):
        return f"`{default.total_seconds() / 3600:g}h`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _filled(path: Path, tables: dict[str, str]) -> str:
    text = path.read_text("utf-8")
    for name, table in tables.items():
        marked = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, found = marked.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if found != 1:
            raise SystemExit(f"{path} has no place marked <!-- {name} -->")
    return text


if __name__ == "__main__":
    for path, content in build().items():
        path.write_text(content, "utf-8")
