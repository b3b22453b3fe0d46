"""Alert rules, metrics and the page that says what to do are one."""

import re
from typing import Any

import pytest
import yaml

from downloader.settings import DownloaderSettings
from ingress.settings import IngressSettings
from notifier.settings import NotifierSettings
from shared.settings import ServiceSettings
from standalone.settings import StandaloneSettings
from tests.alert_rules import CASES, CONFIG, ROOT, RULES, alerts, processes, samples, selectors

ALERTS = alerts()
SHOWN = {process: samples(registry) for process, registry in processes().items()}
OPERATIONS = (ROOT / "docs/operations.md").read_text("utf-8")
PROMETHEUS_OWN = {"up"}
SEVERITIES = {"page", "ticket"}
SETTINGS: dict[str, type[ServiceSettings]] = {
    "ingress": IngressSettings,
    "downloader": DownloaderSettings,
    "notifier": NotifierSettings,
}

each_alert = pytest.mark.parametrize("name", ALERTS)


@each_alert
def test_what_an_alert_looks_at_is_measured(name: str) -> None:
    """A renamed metric, or a label's value that no code has, would make an alert silent for ever."""
    for selector in selectors(ALERTS[name]["expr"]):
        if selector.name not in PROMETHEUS_OWN:
            for single in selector.single():
                assert any(single.takes(sample) for found in SHOWN.values() for sample in found), single


@each_alert
def test_an_alert_works_in_one_process_and_in_several(name: str) -> None:
    """What a service of its own shows is taken from standalone too, and the other way round."""
    for selector in selectors(ALERTS[name]["expr"]):
        if selector.name not in PROMETHEUS_OWN:
            taking = {process for process, found in SHOWN.items() if any(map(selector.takes, found))}
            assert "standalone" in taking, selector
            assert taking - {"standalone"}, selector


@each_alert
def test_an_alert_says_what_it_is_and_where_to_read_on(name: str) -> None:
    """A severity of two, one sentence, and a section of the page that exists."""
    rule = ALERTS[name]
    assert re.fullmatch(r"Wavekeep([A-Z][a-z]+)+", name)
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert re.fullmatch(r"[^.]([^.]|\.(?! ))+\.", rule["annotations"]["summary"])
    page, _, section = rule["annotations"]["runbook"].partition("#")
    assert page == "docs/operations.md"
    assert section in {slug(title) for title in re.findall(r"^## (.+)$", OPERATIONS, re.MULTILINE)}


def test_every_alert_is_found_on_the_page_and_nothing_there_lacks_one() -> None:
    """Whoever is woken looks for the alert's name; whoever reads of an alarm relies on being told."""
    told = [name for names, _ in rows() for name in names]
    assert sorted(told) == sorted(ALERTS)
    assert all(names for names, _ in rows())
    assert set(re.findall(r"`(Wavekeep\w+)`", OPERATIONS)) == set(ALERTS)


def test_a_row_names_what_its_alerts_look_at() -> None:
    """The metrics of a row and those of its rules are the same, so neither is changed alone."""
    for names, metrics in rows():
        looked_at = {metric(selector.name) for name in names for selector in selectors(ALERTS[name]["expr"])}
        assert metrics == looked_at, names


def test_what_is_worth_watching_is_watched() -> None:
    """Each metric of the page's questions stands in a rule."""
    questions = (ROOT / "docs/metrics.md").read_text("utf-8").partition("## What to watch")[2]
    watched = {metric(selector.name) for rule in ALERTS.values() for selector in selectors(rule["expr"])}
    asked = {metric(name) for name in re.findall(r"wavekeep_\w+", questions)}
    assert asked
    assert {name.replace("wavekeep_downloader_broker", "wavekeep_<service>_broker") for name in asked} <= watched


@each_alert
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(name: str) -> None:
    """Its group of alerts_test.yml shows it firing, and asks at another time or of another series where it does not."""
    (group,) = [group for group in yaml.safe_load(CASES.read_text("utf-8"))["tests"] if group["name"] == name]
    asked = [case.get("exp_samples", []) for case in group["promql_expr_test"]]
    firing = {re.findall(r'instance="([^"]+)"', sample["labels"])[0] for case in asked for sample in case}
    assert all(f'alertname="{name}"' in sample["labels"] for case in asked for sample in case)
    assert firing
    assert firing < {re.findall(r'instance="([^"]+)"', series["series"])[0] for series in group["input_series"]}
    assert [] in asked


def test_the_shipped_configuration_scrapes_the_documented_ports() -> None:
    """The job that the rules name scrapes what compose runs, under the ports the code has by default."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text("utf-8"))
    assert config["rule_files"] == [RULES.name]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert jobs["wavekeep"] == [
        f"{service}:{model.model_fields['ops_port'].default}" for service, model in SETTINGS.items()
    ]
    assert set(jobs) == {"wavekeep", "rabbitmq"}
    assert f"127.0.0.1:{StandaloneSettings.model_fields['ops_port'].default}" in CONFIG.read_text("utf-8")
    assert 'job="wavekeep"' in ALERTS["WavekeepDown"]["expr"]


def rows() -> list[tuple[list[str], set[str]]]:
    """Return the alerts and the metrics of each row of the page's table of alarms."""
    section = OPERATIONS.partition("## Alarms\n")[2].partition("\n## ")[0]
    found = []
    for line in section.splitlines():
        if line.startswith("| `"):
            first, second = line.split(" | ")[:2]
            words = re.findall(r"`(wavekeep_[\w<>]+|up\b)", second)
            found.append((re.findall(r"`(Wavekeep\w+)`", first), {metric(word) for word in words}))
    assert len(found) == len([line for line in section.splitlines() if line.startswith("| ")]) - 2
    return found


def metric(name: str) -> str:
    """Return a metric as the documentation calls it."""
    return re.sub(r"_created$", "_total", name.replace("[a-z]+", "<service>"))


def slug(title: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
