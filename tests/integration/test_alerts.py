"""The alert rules in Prometheus' own hands: they are valid, fire when they should, and are quiet otherwise."""

import asyncio
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import ClientSession
from prometheus_client.samples import Sample

from simulator.rabbitmq_local import free_ports
from tests.alert_rules import CASES, CONFIG, RULES, processes, samples
from tests.contract.storages import files
from tests.integration.embedded_house import eventually
from tests.integration.prometheus_server import Prometheus, prometheus_over
from tests.integration.test_standalone import Run, line_to_try, started
from tests.packages import require

FIRE_WITHIN_S = 60.0
IDLE_MINUTES = 240
MORE_THAN_ANY_DISK = str(10**18)

AT_WORK = {"_ready": 1.0, "_broker_connected": 1.0, "_spool_open": 1.0, "_spool_direct": 1.0}
"""What a process shows once it is up; all else is as it was made."""

_ROUND = "housekeeping_last_done_timestamp_seconds"
_HOURLY = "60x59 3660x59 7260x59 10860x60"


def promtool(*arguments: str) -> str:
    """Run promtool; return what it says, once it is content."""
    program = require("promtool", "prometheus")
    run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_rules_and_configuration_are_valid() -> None:
    """Prometheus starts with the shipped files, and takes every rule of them."""
    assert "SUCCESS" in promtool("check", "rules", str(RULES))
    assert "1 rule files found" in promtool("check", "config", str(CONFIG))


def test_each_alert_fires_when_it_should_and_not_otherwise() -> None:
    """The cases of alerts_test.yml hold."""
    assert "SUCCESS" in promtool("test", "rules", str(CASES))


def test_a_fresh_idle_system_is_quiet(tmp_path: Path) -> None:
    """Nobody is told anything by processes that were started and had nothing to do, together or as one."""
    series = [
        {"series": f"{sample.name}{{{labels(sample, process)}}}", "values": values(sample)}
        for process, registry in processes().items()
        for sample in samples(registry)
        if not sample.name.endswith("_bucket")
    ]
    series += [
        {"series": f'up{{job="wavekeep",instance="{process}"}}', "values": f"1x{IDLE_MINUTES}"}
        for process in processes()
    ]
    quiet = [
        {"expr": "ALERTS", "eval_time": f"{minute}m", "exp_samples": []} for minute in (0, 1, 5, 60, 190, IDLE_MINUTES)
    ]
    case = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": quiet}],
    }
    (tmp_path / "idle.yml").write_text(json.dumps(case), "utf-8")  # JSON is YAML
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / "idle.yml"))


async def test_a_full_disk_is_told_and_a_healthy_process_is_left_alone(tmp_path: Path) -> None:
    """Over real processes: all are scraped, every rule can be evaluated, and exactly what is wrong is told."""
    ports = free_ports(2)
    healthy, full = (f"127.0.0.1:{port}" for port in ports)
    folders = [tmp_path / name for name in ("healthy", "full", "prometheus")]
    folders[2].mkdir()
    async with (
        started(folders[0], ops_port=str(ports[0]), storage_reserve_bytes="0") as good,
        started(folders[1], ops_port=str(ports[1]), storage_reserve_bytes=MORE_THAN_ANY_DISK) as bad,
    ):
        await asyncio.gather(call_back(good), call_back(bad))
        await good.logged("event.told")
        await bad.logged("storage_full")
        async with prometheus_over((healthy, full), folders[2]) as prometheus:
            expected = {full: {"WavekeepDiskBelowReserve": "firing", "WavekeepStorageFull": "firing"}}
            await shown(prometheus, expected)
            seen_at = datetime.now(UTC)
            await evaluated_after(prometheus, seen_at)
            assert await prometheus.alerts() == expected
            created = await prometheus.ask("query", query="wavekeep_standalone_message_failures_created")
            assert created["result"], "what is counted before the first scrape would not be told"
            assert await prometheus.health() == {healthy: "up", full: "up"}
            assert {rule["health"] for rule in await prometheus.rules()} == {"ok"}
    assert [name for name in files(folders[0] / "files") if name.endswith(".wav")]


def labels(sample: Sample, process: str) -> str:
    """Return the labels of a sample as Prometheus has them once it was scraped."""
    named = {"job": "wavekeep", "instance": process} | sample.labels
    return ",".join(f'{name}="{value}"' for name, value in named.items())


def values(sample: Sample) -> str:
    """Return a sample over the idle hours, in promtool's words."""
    if sample.name.endswith(_ROUND):
        return _HOURLY
    if sample.name.endswith("_created"):
        return f"0x{IDLE_MINUTES}"
    value = next((value for end, value in AT_WORK.items() if sample.name.endswith(end)), sample.value)
    return f"{value:g}x{IDLE_MINUTES}"


async def call_back(run: Run) -> None:
    """Send the callback that the process itself proposes."""
    url, body = line_to_try(await run.greeting())
    async with (
        ClientSession() as session,
        session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer,
    ):
        assert answer.status == 200


async def shown(prometheus: Prometheus, expected: dict[str, dict[str, str]]) -> None:
    """Return once exactly these alerts are there."""
    found: dict[str, dict[str, str]] = {}

    async def as_expected() -> bool:
        nonlocal found
        found = await prometheus.alerts()
        return found == expected

    try:
        await eventually(as_expected, deadline_s=FIRE_WITHIN_S)
    except TimeoutError:
        raise AssertionError(f"{found} instead of {expected}; targets: {await prometheus.health()}") from None


async def evaluated_after(prometheus: Prometheus, moment: datetime) -> None:
    """Return once every rule was evaluated after a moment."""

    async def all_later() -> bool:
        return all(datetime.fromisoformat(rule["lastEvaluation"]) > moment for rule in await prometheus.rules())

    await eventually(all_later, deadline_s=FIRE_WITHIN_S)
