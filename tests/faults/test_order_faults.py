"""Rows 12 to 15: the same callback twice, contradicting ones, late ones, and two workers on one task."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from simulator.rabbitmq_local import free_ports
from tests.faults import report
from tests.faults.core import judge, wait_for
from tests.faults.house import House
from tests.faults.tripwire import Tripwire

Build = Callable[..., House]

_SUCCESS_A: dict[str, Any] = {"outcome": "succeeded", "file": 0}
_SUCCESS_B: dict[str, Any] = {"outcome": "succeeded", "file": 1}
_FAILURE: dict[str, Any] = {"outcome": "failed"}
_SAME_FILE_NEW_LINK = {"outcome": "succeeded", "file": 0, "fresh_link": True}

_MODES = (pytest.param("embedded", marks=pytest.mark.fast_fault), pytest.param("rabbitmq", marks=pytest.mark.rabbitmq))


@pytest.mark.fault(12)
@pytest.mark.rabbitmq
def test_a_download_longer_than_the_acknowledgement_time_out_the_service_knows_of(house: Build) -> None:
    """An attempt ends before the broker loses patience, and the next one is a retry of ours: one writer at a time."""
    home = house(
        node={"consumer_timeout": 5_000, "channel_tick_interval": 2_000},
        settings={
            "WAVEKEEP_ACK_TIMEOUT_S": "5",
            "WAVEKEEP_DOWNLOAD_ATTEMPT_TIMEOUT_S": "4",
            "WAVEKEEP_DOWNLOAD_MAX_BYTES": "4000000",
        },
    )
    slow = {"times": 1, "bytes_per_s": 300_000}
    tasks = home.convert(*({"files": [{"size_bytes": 3_000_000, "misbehaviour": [slow]}]} for _ in range(3)))
    verdict = judge(home)
    report.record(12, "acknowledgement time-out shorter than the download", len(tasks), verdict)
    assert verdict.problems == ()
    assert _fetches(home, tasks) == [2, 2, 2]


@pytest.mark.fault(12)
@pytest.mark.rabbitmq
def test_an_acknowledgement_time_out_the_service_does_not_know_of(house: Build) -> None:
    """The broker hands the message out again and again, yet attempts are bounded and one of them is the writer."""
    home = house(node={"consumer_timeout": 5_000, "channel_tick_interval": 2_000})
    slow = {"times": 1, "bytes_per_s": 100_000}
    tasks = home.convert(*({"files": [{"size_bytes": 3_000_000, "misbehaviour": [slow]}]} for _ in range(3)))
    verdict = judge(home)
    report.record(12, "acknowledgement time-out unknown to the service", len(tasks), verdict)
    assert verdict.problems == ()
    # three messages share a channel: what closes it for one hands out all of them anew
    assert all(2 <= count <= 12 for count in _fetches(home, tasks))


@pytest.mark.fault(13)
@pytest.mark.rabbitmq
def test_one_callback_four_times_at_once_on_two_ingresses_and_two_downloaders(house: Build) -> None:
    """Whoever creates the manifest is the writer; the other one announces what it says, under the same id."""
    home = house()
    home.twin("downloader")
    _, second = home.twin("ingress")
    home.start()
    ports = [int(url.rpartition(":")[2]) for url in (home.deployment.ingress_url, second.ingress_url)]
    with Tripwire(*free_ports(1), *ports) as balancer:
        token = next(token for name, token in home.deployment.tokens.items() if name == "kie")
        url = f"http://127.0.0.1:{balancer.port}/callbacks/kie?token={token}"
        slowly = {"size_bytes": 600_000, "misbehaviour": [{"bytes_per_s": 400_000}]}
        rounds = 6
        tasks = home.convert(*({"callback_url": url, "copies": 4, "files": [slowly]} for _ in range(rounds)))
        verdict = judge(home)
    report.record(13, "one callback four times at once, two ingresses, two downloaders", 4 * rounds, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == rounds
    assert any(count == 2 for count in _fetches(home, tasks)), "two downloaders never had the same task in hand"
    accepted = [sum("callback.accepted" in line for line in p.log.read_text().splitlines())
                for p in home.processes if p.name == "ingress"]  # fmt: skip
    assert all(accepted), "one ingress had nothing to do"
    stored = {event["id"] for event in home.told("hook")}
    assert len(stored) == rounds


@pytest.mark.fault(14)
@pytest.mark.parametrize("mode", _MODES)
def test_conflicting_callbacks_in_every_order(house: Build, mode: str) -> None:
    """Success is final, whatever came before, after or meanwhile; what contradicts it is told, once a claim."""
    home = house(mode)
    if mode == "rabbitmq":
        home.twin("downloader")
        home.start()
    claims = (_SUCCESS_A, _SUCCESS_B, _FAILURE)
    orders = [order for length in (2, 3) for order in itertools.permutations(claims, length)]
    plans = [{"files": [{}, {}], "steps": _spaced(order, apart_s)} for order in orders for apart_s in (0.0, 0.05, 1.5)]
    home.convert(*plans)
    verdict = judge(home)
    report.record(14, f"conflicting callbacks in every order, {mode}", len(plans), verdict)
    assert verdict.problems == ()
    conflicts = Counter(event["subject"] for event in {e["id"]: e for e in home.told("hook")}.values()
                        if event["type"] == "wavekeep.conversion.conflicting.v1")  # fmt: skip
    for entry in home.simulator.ledger(digests="no")["conversions"]:
        wanted = _conflicts_owed(entry["plan"]["steps"])
        if wanted is not None:
            assert conflicts[f"{entry['vendor']}/{entry['task_id']}"] == wanted, entry["plan"]["steps"]


@pytest.mark.fault(15)
@pytest.mark.fast_fault
def test_late_and_out_of_order_callbacks(house: Build) -> None:
    """No state goes backwards, also not after the process that knew it was killed."""
    home = house("embedded")
    late: dict[str, Any] = {"delay_s": 2.0}
    plans: dict[str, list[dict[str, Any]]] = {
        "the same success again, later": [_SUCCESS_A, _SAME_FILE_NEW_LINK | late],
        "its copies out of order": [_SAME_FILE_NEW_LINK, _SUCCESS_A | {"after_answer": False}, _SUCCESS_A | late],
        "the failure arrives last": [_SUCCESS_A, _FAILURE | late],
        "the failure arrives twice around it": [_FAILURE, _SUCCESS_A | late, _FAILURE | late],
        "it is healed, and heals once": [_FAILURE, _SUCCESS_A | late, _SUCCESS_B | late, _SUCCESS_A | late],
        "only failures": [_FAILURE, _FAILURE | late, _FAILURE | {"code": 451} | late],
    }
    for steps in plans.values():
        home.convert({"files": [{}, {}], "steps": steps})
    wait_for(lambda: home.acknowledged() == len(plans), "the first ones are answered")
    home.restart("standalone")
    verdict = judge(home)
    report.record(15, "late and out-of-order callbacks", len(plans), verdict)
    assert verdict.problems == ()
    ends = Counter(
        (event["subject"], event["type"]) for event in {event["id"]: event for event in home.told("hook")}.values()
    )
    assert all(count == 1 for (_, kind), count in ends.items() if kind != "wavekeep.conversion.conflicting.v1")


def _spaced(steps: tuple[dict[str, Any], ...], apart_s: float) -> list[dict[str, Any]]:
    """Send steps so far apart; 0 is at the same moment."""
    return [{**step, "delay_s": apart_s, "after_answer": apart_s > 0} for step in steps]


def _conflicts_owed(steps: list[dict[str, Any]]) -> int | None:
    """Return how many claims must be told as conflicting, where the steps were far enough apart to say so."""
    if min(step.get("delay_s", 0) for step in steps) < 1:
        return None
    kinds = ["failure" if step.get("outcome") == "failed" else f"file {step.get('file', 0)}" for step in steps]
    final = next((kind for kind in kinds if kind != "failure"), None)
    if final is None:
        return 0
    return len({kind for kind in kinds[kinds.index(final) :] if kind != final})


def _fetches(home: House, tasks: list[str]) -> list[int]:
    return [home.entry(task_id)["files"][0]["fetches"] for task_id in tasks]
