"""A cluster of three loses one node, then another: callbacks are taken throughout, and nothing is lost."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest

from simulator.rabbitmq_cluster import RabbitCluster
from simulator.rabbitmq_server import GIVEN_URL
from tests.faults import report
from tests.faults.brokers import VENDOR_TIMEOUT_MS, all_sent, answers, begin_load, slowest_ms
from tests.faults.core import judge
from tests.faults.house import House, wait_for

pytestmark = pytest.mark.rabbitmq

MakeHouse = Callable[..., House]

_REFUSED_FOR_S = 15.0


@pytest.fixture
def cluster() -> Iterator[RabbitCluster]:
    """Three nodes that are one broker; gone after the test."""
    if GIVEN_URL in os.environ:
        pytest.skip(f"the broker of {GIVEN_URL} is somebody else's and must not be broken")
    with RabbitCluster() as started:
        yield started


@pytest.mark.fault(6)
@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no-spool"])
def test_one_node_killed_then_another(house: MakeHouse, cluster: RabbitCluster, *, spool: bool) -> None:
    """Files are stored throughout, and callbacks are taken; without a spool none is refused for longer than 15 s."""
    home = house(
        broker=cluster,
        broker_url=cluster.amqp_urls,
        settings={"WAVEKEEP_SPOOL": str(spool).lower()},
    )
    # the first of them is the one that all connections and, by that, all leaders are on
    victims = cluster.nodes[:2]
    made = begin_load(home, rate_per_s=20, seconds=60)
    for node in victims:
        _await_more(home, "files are being stored")
        node.kill()
        _await_more(home, "files are stored without it")
        node.start()
        cluster.await_all()
    wait_for(lambda: all_sent(home), "everything was sent", within_s=120)
    lifted = time.monotonic()
    verdict = judge(home, since=lifted)
    gap_s = _longest_refusal_s(home)
    told = (
        f"two of three nodes killed in turn, {'with' if spool else 'without'} spool; refused for {gap_s:.1f} s at most"
    )
    report.record(6, told, len(victims), verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == made
    assert gap_s < _REFUSED_FOR_S
    if spool:
        assert slowest_ms(home) < VENDOR_TIMEOUT_MS


def _await_more(home: House, what: str) -> None:
    before = len(home.kept("*.json"))
    wait_for(lambda: len(home.kept("*.json")) > before + 20, what, within_s=30)


def _longest_refusal_s(home: House) -> float:
    """Return the longest time in which callbacks came and none of them was taken; 0 where all were."""
    refused_since: datetime | None = None
    longest = timedelta()
    for given in sorted(answers(home), key=lambda each: str(each["sent_at"])):
        sent_at = datetime.fromisoformat(given["sent_at"])
        if given["status"] != 200:
            refused_since = refused_since or sent_at
        elif refused_since is not None:
            longest = max(longest, sent_at - refused_since)
            refused_since = None
    return longest.total_seconds()
