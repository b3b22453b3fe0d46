"""Messages nobody can read, and no room to park them: the queue goes on, and nothing is thrown away."""

import json
from collections.abc import Callable

import pytest

from simulator.rabbitmq_node import RabbitNode
from tests.faults import report
from tests.faults.brokers import logged, metric, node_of, operate, publish
from tests.faults.core import judge
from tests.faults.house import House, wait_for

pytestmark = pytest.mark.rabbitmq

MakeHouse = Callable[..., House]

_PARKED = "wavekeep.downloader.parked"
_UNSETTLED = "wavekeep_downloader_settle_failures_total"


def poison(*, url: str = "https://files.example/a.wav", code: object = 200, version: str = "v1") -> bytes:
    """Return a report as the ingress would send it, but for what is asked for."""
    data = {
        "vendor": "kie",
        "task_id": "poison",
        "url": url,
        "code": code,
        "message": "success",
        "received_at": "2026-01-01T00:00:00Z",
        "deadline": "2126-01-01T00:00:00Z",
        "trust": ["token"],
    }
    event = {
        "specversion": "1.0",
        "id": "5ad1d2a8-0000-5000-8000-000000000000",
        "source": "wavekeep/kie",
        "type": f"wavekeep.report.succeeded.{version}",
        "subject": "kie/poison",
        "time": "2026-01-01T00:00:00Z",
        "datacontenttype": "application/json",
        "data": data,
    }
    return json.dumps(event).encode()


def limit_parked(node: RabbitNode, messages: int) -> None:
    """Give the downloader's parked queue a length, as an administrator does."""
    limit = json.dumps({"max-length": messages})
    node.ctl("set_policy", "length", "^wavekeep[.]downloader[.]parked$", limit, "--apply-to", "queues")


_POISONS = {
    "message_malformed": [b"{not json", b"\xff\xfe", b"[]", poison(code="x" * 1_000_000)],
    "message_unknown": [poison(version="v9")],
    "url_malformed": [poison(url="https://files.example/" + "x" * 1_000_000)],
}


@pytest.mark.fault(20)
@pytest.mark.fast_fault
def test_poison_is_parked_with_its_reason_and_the_queue_goes_on(house: MakeHouse) -> None:
    """Bad JSON, an unknown version and fields of 1 MB do not stop the others; replay hands them out again."""
    home = house()
    bodies = [body for group in _POISONS.values() for body in group]
    publish(home, "wavekeep.intake", "report.succeeded", *bodies)
    publish(home, "wavekeep.events", "conversion.stored", b"{not json")
    home.convert(*[{}] * 10)
    expected = {_PARKED: len(bodies), "wavekeep.notifier.parked": 1}
    verdict = judge(home, parked=expected)
    report.record(20, "messages nobody can read, in both queues", len(bodies) + 1, verdict)
    assert verdict.problems == ()
    assert sorted(verdict.parked[_PARKED]) == sorted(bodies), "nothing of them is changed"
    listed = json.loads(operate(home, "parked", "list", "--service", "downloader", "--json"))
    assert sorted(each["reason"] for each in listed) == sorted(
        reason for reason, group in _POISONS.items() for _ in group
    )
    parked_once = len(logged(home, "message.parked", level="error"))
    assert operate(home, "parked", "replay", "--service", "downloader", "--all").startswith(f"{len(bodies)} replayed")
    wait_for(
        lambda: len(logged(home, "message.parked", level="error")) == parked_once + len(bodies),
        "each was handed out again, and parked again",
    )
    assert judge(home, parked=expected).problems == ()


@pytest.mark.fault(21)
def test_a_full_parked_queue_keeps_the_message_where_it_is(house: MakeHouse) -> None:
    """What cannot be parked stays in hand, an error and a counter tell; once there is room, it is parked."""
    home = house()
    node = node_of(home)
    limit_parked(node, 1)
    bodies = [poison(version=f"v{version}") for version in range(2, 8)]
    publish(home, "wavekeep.intake", "report.succeeded", *bodies)
    wait_for(lambda: metric(home, "downloader", _UNSETTLED), "the broker refuses to park")
    assert logged(home, "message.settle_failed", level="error")
    home.convert(*[{}] * 10)
    wait_for(lambda: len(home.kept("*.json")) == 10, "the queue goes on")
    assert home.depths()[_PARKED] < len(bodies)
    # raised, not cleared: on 3.10 those who were refused stay refused when the limit merely goes
    limit_parked(node, 1_000)
    verdict = judge(home, parked={_PARKED: len(bodies)})
    report.record(21, "parked queue full", 1, verdict)
    assert verdict.problems == ()
    assert sorted(verdict.parked[_PARKED]) == sorted(bodies)


@pytest.mark.fault(21)
def test_a_missing_parked_queue_keeps_the_message_where_it_is(house: MakeHouse) -> None:
    """A parked queue that is gone is put back, and what was to be parked meanwhile is parked then."""
    home = house()
    node_of(home).ctl("delete_queue", _PARKED)
    bodies = [poison(version=f"v{version}") for version in range(2, 6)]
    publish(home, "wavekeep.intake", "report.succeeded", *bodies)
    home.convert(*[{}] * 5)
    verdict = judge(home, parked={_PARKED: len(bodies)})
    report.record(21, "parked queue gone", 1, verdict)
    assert verdict.problems == ()
    assert sorted(verdict.parked[_PARKED]) == sorted(bodies)
    assert metric(home, "downloader", _UNSETTLED), "it could not be parked at once"
    assert logged(home, "message.settle_failed", level="error")
