"""The wall clock steps by an hour, and deadlines pass. Fault 23, and what befalls a file that never comes."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults import report
from tests.faults.core import judge
from tests.faults.house import House, wait_for
from tests.faults.surroundings import Clock, Proxy, due, logged, metric

Build = Callable[..., House]

ROOT = Path(__file__).parents[2]
HOUR_S = 3_600.0
QUEUE = "wavekeep.downloader"
URGENT = "wavekeep.downloader.urgent"
PARKED = f"{QUEUE}.parked"
SKEW = 'wavekeep_ingress_signature_skew_seconds{vendor="kie"}'


@pytest.mark.fault(23)
def test_work_under_way_does_not_notice_a_step(house: Build, tmp_path: Path) -> None:
    """A download during which the clock steps an hour, either way, is neither cut short nor measured by that clock."""
    clock = Clock(tmp_path)
    home = house(
        "embedded",
        settings={
            **clock.environ,
            "WAVEKEEP_DOWNLOAD_MAX_BYTES": "10000000",
            "WAVEKEEP_DOWNLOAD_MIN_BYTES_PER_S": "8000",
        },
    )
    for step_s in (HOUR_S, -HOUR_S):
        before = metric(home, "wavekeep_downloader_attempt_seconds_count")
        home.convert({"files": [{"size_bytes": 120_000, "misbehaviour": [{"bytes_per_s": 40_000}]}]})
        wait_for(lambda: metric(home, "wavekeep_downloader_attempts_in_progress") == 1, "the download is under way")
        clock.forward(step_s)
        assert metric(home, "wavekeep_downloader_attempt_seconds_count") == before
        wait_for(partial(_counted, home, before + 1), "the download ended")
    verdict = judge(home, within_s=60)
    report.record(23, "the clock steps an hour, both ways, in mid-download", 2, verdict)
    assert verdict.problems == ()
    settled = logged(home, "message.settled", queue=QUEUE)
    assert [line["outcome"] for line in settled] == ["acked", "acked"]
    assert all(2 < line["duration_s"] < 120 for line in settled)
    assert 4 < metric(home, "wavekeep_downloader_attempt_seconds_sum") < 240


def _counted(home: House, attempts: float) -> bool:
    return metric(home, "wavekeep_downloader_attempt_seconds_count") >= attempts


@pytest.mark.fault(23)
@pytest.mark.fast_fault
def test_what_waits_comes_at_most_the_step_early_or_late(house: Build, tmp_path: Path) -> None:
    """A retry that waits by the wall clock comes at once when that steps on, and a step late when it steps back."""
    clock = Clock(tmp_path)
    home = house("embedded", settings={**clock.environ})
    busy_once = {"files": [{"misbehaviour": [{"status": 503, "times": 1}]}]}
    (early,) = home.convert(busy_once)
    wait_for(lambda: due(home, QUEUE), "the first one waits")
    clock.forward(HOUR_S)
    wait_for(lambda: home.kept(f"{early}.announced"), "it came early")

    (late,) = home.convert(busy_once)
    wait_for(lambda: due(home, QUEUE), "the second one waits")
    clock.forward(-HOUR_S)
    (next_at,) = due(home, QUEUE)
    assert HOUR_S - 5 < next_at - clock.now() <= HOUR_S + 5
    clock.forward(HOUR_S + 5)
    wait_for(lambda: home.kept(f"{late}.announced"), "it came the step late")
    verdict = judge(home, within_s=60)
    report.record(23, "the clock steps an hour, both ways, while a retry waits", 2, verdict)
    assert verdict.problems == ()


@pytest.mark.fault(23)
def test_our_own_skew_is_judged_as_documented_and_shown(house: Build, tmp_path: Path) -> None:
    """A clock 20 minutes off believes signatures, one an hour off does not; the metric says by how much it is off."""
    clock, key = Clock(tmp_path), "hmac-key-of-the-fault-tests"
    home = house(
        "embedded",
        settings={**clock.environ, "WAVEKEEP_KIE_HMAC_KEYS": key},
        simulator={"SIMULATOR_HMAC_KEY": key, "SIMULATOR_RETRY_SCALE": "0.05"},
    )
    for skew_s in (1_200.0, -1_200.0):
        clock.step_to(skew_s)
        (task_id,) = home.convert({})
        wait_for(partial(_answered, home, task_id, 200), "it is believed")
        assert metric(home, SKEW) == pytest.approx(skew_s, abs=30)
        # what is published and not yet taken in hand would wait as long as the clock is then set back
        wait_for(lambda: home.kept(f"{task_id}.announced") and not any(home.depths().values()), "nothing waits")  # noqa: B023
    for skew_s in (HOUR_S, -HOUR_S):
        clock.step_to(skew_s)
        (task_id,) = home.convert({"steps": [{"sign_retries_anew": True}]})
        wait_for(partial(_answered, home, task_id, 401), "it is not believed")
        assert metric(home, SKEW) == pytest.approx(skew_s, abs=30)
    for doubt in ("signature_stale", "timestamp_outside"):
        assert metric(home, f'wavekeep_ingress_callbacks_doubted_total{{doubt="{doubt}"}}') >= 1
    clock.step_to(0)
    verdict = judge(home, within_s=120)
    report.record(23, "our clock is 20 minutes and an hour off", 4, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == 4
    assert abs(metric(home, SKEW)) < 30


def _answered(home: House, task_id: str, status: int) -> bool:
    return any(each.get("status") == status for each in home.entry(task_id)["callbacks"])


@pytest.mark.fault(16)
def test_a_file_that_never_comes_is_told_until_its_deadline_and_can_be_healed(house: Build, tmp_path: Path) -> None:
    """A file nobody can reach is told at risk once a mark, then rejected and parked; sent again, it is stored."""
    clock, proxy = Clock(tmp_path), Proxy(tmp_path)
    home = house(
        "embedded",
        start=False,
        simulator={"SIMULATOR_PUBLIC_URL": f"http://127.0.0.1:{proxy.port}"},
        settings={
            **clock.environ,
            "WAVEKEEP_DOWNLOAD_ALLOW_ADDRESSES": f"127.0.0.1:{proxy.port}",
            "WAVEKEEP_KIE_RETENTION_DAYS": "1",
        },
    )
    with proxy.before(home.simulator.base_url):
        clock.step_to(-2 * 24 * HOUR_S)  # so that the day which passes ends before the time the oracle goes by
        home.start()
        proxy.tell(refuse=True)
        (task_id,) = home.convert({})
        attempts = 0
        while not home.kept(f"{task_id}.rejected.json"):
            attempts += 1
            wait_for(partial(_failed_or_ended, home, attempts), f"attempt {attempts} failed")
            waiting = [*due(home, QUEUE), *due(home, URGENT)]
            clock.forward(max(0.0, waiting[0] - clock.now() + 0.05) if waiting else 0.0)
        _check_warnings(home, task_id, attempts)
        wait_for(lambda: home.depths().get(PARKED) == 1, "it is parked")
        assert [line["reason"] for line in logged(home, "message.parked")] == ["connection_failed"]
        proxy.tell()
        _command(home, clock, "parked", "replay", "--service", "downloader", "--all")
        verdict = judge(home, within_s=60)
    report.record("+", "a file that does not come within its deadline, then replayed", attempts, verdict)
    assert verdict.problems == ()
    assert [event["type"].split(".")[2] for event in _told(home, task_id)][-2:] == ["rejected", "stored"]


def _failed_or_ended(home: House, attempts: int) -> bool:
    settled = [line for queue in (QUEUE, URGENT) for line in logged(home, "message.settled", queue=queue)]
    return len(settled) >= attempts


def _told(home: House, task_id: str) -> list[dict[str, Any]]:
    found = {event["id"]: event for event in home.told("hook") if event["subject"].endswith(task_id)}
    return sorted(found.values(), key=lambda event: str(event["time"]))


def _check_warnings(home: House, task_id: str, attempts: int) -> None:
    """Compare what was told, and when, with the marks: 50, 80 and 95 % of the way to the deadline, then the end."""
    wait_for(lambda: len(_told(home, task_id)) == 4, "three warnings and the rejection are told")
    *warnings, rejection = _told(home, task_id)
    assert [event["data"]["threshold_percent"] for event in warnings] == [50, 80, 95]
    assert {event["data"]["last_reason"] for event in warnings} == {"connection_failed"}
    assert rejection["data"]["reason"] == "connection_failed"
    deadline = _time(warnings[0]["data"]["deadline"])
    for event in warnings:
        mark = deadline - timedelta(days=1) * (1 - event["data"]["threshold_percent"] / 100)
        assert timedelta(seconds=-10) < _time(event["time"]) - mark < timedelta(minutes=2)
    assert timedelta() <= _time(rejection["time"]) - deadline < timedelta(minutes=2)
    assert warnings[-1]["data"]["attempts"] < attempts


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _command(home: House, clock: Clock, *arguments: str) -> None:
    """Run a command of the operator's beside the running house, by the same clock."""
    environ = {
        **os.environ,
        **clock.environ,
        "PYTHONPATH": str(ROOT),
        "WAVEKEEP_DATA_DIR": str(home.folder / "standalone"),
        "WAVEKEEP_NOTIFY_CONFIG": str(home.folder / "destinations.toml"),
    }
    subprocess.run([sys.executable, "-m", "cli", *arguments], env=environ, cwd=home.folder, check=True, timeout=60)
