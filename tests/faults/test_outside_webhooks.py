"""Destinations fail, each in its own way, for more than an hour. Fault 22."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.core import judge
from tests.faults.house import House, wait_for
from tests.faults.surroundings import Clock, Proxy, due, logged, metric

Build = Callable[..., House]

LADDER_S = {"5s": 5, "30s": 30, "2m": 120, "10m": 600, "30m": 1_800, "1h": 3_600, "3h": 10_800}
SCHEDULE = ["5s", "30s", "2m", "10m", "30m", "1h"]
FAILURES: dict[str, tuple[str, list[str]]] = {
    "down": ("destination_unreachable", SCHEDULE),
    "broken": ("destination_failed", SCHEDULE),
    "gone": ("destination_refused", SCHEDULE),
    "moved": ("destination_refused", SCHEDULE),
    "silent": ("destination_unreachable", SCHEDULE),
    "busy": ("destination_refused", ["30s", "30s", "2m", "10m", "30m", "1h"]),
    "busy-for-years": ("destination_refused", ["30s", "2m", "10m", "30m", "1h", "3h"]),
}
"""As what each failing destination is known, and what is waited after each of its failures."""

_DESTINATION = """
[[destination]]
name = "{name}"
type = "webhook"
url = "http://127.0.0.1:{port}/webhooks/{name}"
timeout_s = {timeout_s}
"""


@pytest.mark.fault(22)
def test_failing_destinations_keep_the_schedule_and_harm_no_other(house: Build, tmp_path: Path) -> None:
    """Each way to fail is tried again by the ladder for over an hour, under one id; other destinations hear at once."""
    clock, broken_line, line = Clock(tmp_path), Proxy(tmp_path), Proxy(tmp_path)
    ports = {name: broken_line.port if name == "down" else line.port for name in FAILURES}
    home = house(
        "embedded",
        start=False,
        settings={**clock.environ},
        destinations="".join(
            _DESTINATION.format(name=name, port=port, timeout_s=1 if name == "silent" else 30)
            for name, port in ports.items()
        ),
    )
    with broken_line.before(home.simulator.base_url), line.before(home.simulator.base_url):
        home.start()
        broken_line.tell(refuse=True)
        home.simulator.tell_webhook("broken", {"status": 500})
        home.simulator.tell_webhook("gone", {"status": 410})
        home.simulator.tell_webhook("moved", {"status": 301, "location": "/webhooks/elsewhere"})
        home.simulator.tell_webhook("silent", {"hang": True})
        home.simulator.tell_webhook("busy", {"status": 429, "retry_after": "20"})
        home.simulator.tell_webhook("busy-for-years", {"status": 429, "retry_after": "Wed, 21 Oct 2099 07:28:00 GMT"})
        begun = clock.now()
        home.convert({})
        for failures in range(1, len(SCHEDULE) + 1):
            for name in FAILURES:
                wait_for(partial(_waits, home, name, failures), f"{name} failed {failures} times")
                _check_wait(home, name, failures)
            clock.forward(max(LADDER_S[steps[failures - 1]] for _, steps in FAILURES.values()))
        assert clock.now() - begun > 3_600
        for name in FAILURES:
            wait_for(partial(_waits, home, name, len(SCHEDULE) + 1), f"{name} was tried once more")
        home.convert({})
        wait_for(
            partial(_heard, home, "hook", 2), "a destination that works hears of the next file at once", within_s=20
        )

        broken_line.tell()
        for name in FAILURES.keys() - {"down", "gone"}:
            home.simulator.tell_webhook(name, {})
        clock.forward(6 * 3_600)  # the seventh failure of whoever asked for years waits that long
        for name in FAILURES.keys() - {"gone"}:
            wait_for(partial(_heard, home, name, 2), f"{name} was told of both files")
        clock.forward(73 * 3_600)
        verdict = judge(home, parked={"wavekeep.notifier.parked": 2}, within_s=60)
        given_up = logged(home, "delivery.given_up", destination="gone")
        counted = metric(home, 'wavekeep_notifier_deliveries_given_up_total{destination="gone"}')
    report.record(22, "destinations down, 500, 410, 301, silent and 429 for over an hour", len(FAILURES), verdict)
    assert verdict.problems == ()
    assert len(given_up) == counted == 2
    assert _ids_agree(home)
    assert home.simulator.webhooks("elsewhere") == []


def _waits(home: House, name: str, failures: int) -> bool:
    return len(_retries(home, name)) >= failures and bool(due(home, f"wavekeep.notifier.{name}"))


def _retries(home: House, name: str) -> list[dict[str, object]]:
    return logged(home, "message.retry_scheduled", queue=f"wavekeep.notifier.{name}")


def _check_wait(home: House, name: str, failures: int) -> None:
    """Compare what is waited after so many failures with the schedule: the step, less a fifth at most by chance."""
    reason, steps = FAILURES[name]
    told = _retries(home, name)
    assert [line["step"] for line in told] == steps[:failures]
    assert {line["reason"] for line in told} == {reason}
    failed_at = datetime.fromisoformat(str(told[-1]["timestamp"])).timestamp()
    (next_at,) = due(home, f"wavekeep.notifier.{name}")
    longest = LADDER_S[steps[failures - 1]]
    assert 0.8 * longest - 1 <= next_at - failed_at <= longest + 5


def _ids(home: House, name: str) -> set[str]:
    return {str(each["webhook_id"]) for each in home.simulator.webhooks(name) if each["status"] == 200}


def _heard(home: House, name: str, events: int) -> bool:
    return len(_ids(home, name)) == events


def _ids_agree(home: House) -> bool:
    """Tell whether every destination was told the same facts under the same ids, however often it was tried."""
    ids = _ids(home, "hook")
    tried = {name: {str(each["webhook_id"]) for each in home.simulator.webhooks(name)} for name in FAILURES}
    return all(found == ids for found in tried.values())
