"""The broker killed, frozen, under an alarm, gone for long, wiped, robbed of a queue: nothing acknowledged is lost."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults import report
from tests.faults.brokers import (
    BACK_WITHIN_S,
    VENDOR_TIMEOUT_MS,
    WORK_QUEUES,
    all_sent,
    answers,
    begin_load,
    consumed,
    logged,
    metric,
    node_of,
    operate,
    readiness,
    slowest_ms,
    spooled,
    subscribe_to_all,
    wait_for_consumers,
)
from tests.faults.core import judge
from tests.faults.house import House, wait_for

pytestmark = pytest.mark.rabbitmq

MakeHouse = Callable[..., House]

_NOTICED_WITHIN_S = 5.0
_SHOWN_AFTER_S = 3.0
"""What a metric and a question about it may be late."""


@pytest.mark.fault(5)
@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.fast_fault), 4])
def test_a_broker_killed_under_load(house: MakeHouse, kills: int) -> None:
    """No callback is refused meanwhile, and consumers are back 30 s after the broker at the latest."""
    home = house()
    node = node_of(home)
    slowest_s = 0.0
    for _ in range(kills):
        begin_load(home, rate_per_s=30, seconds=8)  # for each: on a busy machine one load would be over before the last
        before = len(home.kept("*.json"))
        wait_for(lambda n=before: len(home.kept("*.json")) > n + 20, "files are being stored")  # type: ignore[misc]
        node.kill()
        node.start()
        slowest_s = max(slowest_s, wait_for_consumers(home))
    lifted = time.monotonic()
    verdict = judge(home, since=lifted)
    report.record(5, f"broker killed under load; consumers back after {slowest_s:.1f} s", kills, verdict)
    assert verdict.problems == ()
    assert slowest_ms(home) < VENDOR_TIMEOUT_MS


@pytest.mark.fault(7)
def test_a_broker_frozen_for_30_s(house: MakeHouse) -> None:
    """The vendor has its 200 in time from the spool; what the frozen broker had taken all the same is told once."""
    home = house()
    node = node_of(home)
    node.freeze()
    made = begin_load(home, rate_per_s=10, seconds=30)
    wait_for(lambda: all_sent(home), "everything was sent while the broker was frozen")
    assert spooled(home) == made
    node.thaw()
    lifted = time.monotonic()
    verdict = judge(home, since=lifted)
    report.record(7, f"broker frozen for 30 s; slowest answer {slowest_ms(home):.0f} ms", 1, verdict)
    assert verdict.problems == ()
    assert slowest_ms(home) < VENDOR_TIMEOUT_MS
    handled = 'wavekeep_downloader_messages_total{outcome="acked",queue="wavekeep.downloader"}'
    assert metric(home, "downloader", handled) > made, "the publishes that timed out came as ghosts"


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    ("alarm", "lift"),
    [
        pytest.param(
            ("set_vm_memory_high_watermark", "absolute", "1MB"),
            ("set_vm_memory_high_watermark", "0.4"),
            id="memory",
        ),
        pytest.param(("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "50MB"), id="disk"),
    ],
)
def test_an_alarm_while_publishing(house: MakeHouse, alarm: tuple[str, ...], lift: tuple[str, ...]) -> None:
    """Publishers are blocked without a word: callbacks go to the spool, what was queued is fetched, readiness tells."""
    home = house()
    node = node_of(home)
    downloader = home.process("downloader")
    os.kill(downloader.pid, signal.SIGSTOP)
    queued = home.convert(*[{}] * 8)
    wait_for(lambda: home.acknowledged() == len(queued), "reports are queued")
    node.ctl(*alarm)
    os.kill(downloader.pid, signal.SIGCONT)
    wait_for(lambda: len(home.kept("*.json")) == len(queued), "what was queued is stored under the alarm")
    made = begin_load(home, rate_per_s=10, seconds=15)
    wait_for(lambda: all_sent(home), "everything was sent under the alarm")
    assert spooled(home) == made
    wait_for(lambda: not readiness(home, "downloader")["broker"], "the downloader's readiness tells")
    assert not readiness(home, "downloader")["ready"]
    assert readiness(home, "downloader")["downloader"], "it consumes all the same"
    assert readiness(home, "ingress")["ready"], "the spool takes callbacks"
    node.ctl(*lift)
    lifted = time.monotonic()
    verdict = judge(home, since=lifted)
    report.record(8, f"{alarm[0]} while publishing; slowest answer {slowest_ms(home):.0f} ms", 1, verdict)
    assert verdict.problems == ()
    assert slowest_ms(home) < VENDOR_TIMEOUT_MS
    assert readiness(home, "downloader")["ready"]


@pytest.mark.fault(9)
@pytest.mark.fast_fault
def test_a_broker_gone_for_longer_than_the_vendor_tries(house: MakeHouse) -> None:
    """Every callback that came meanwhile is answered 200 from the spool and ends stored; the ingress may restart."""
    home = house(simulator={"SIMULATOR_RETRY_SCALE": "0.005"})  # tries again after 0.3, 1.5 and 4.5 s
    node = node_of(home)
    node.kill()
    made = begin_load(home, rate_per_s=20, seconds=12)
    wait_for(lambda: spooled(home) > made / 3, "callbacks are spooled")
    ingress = home.process("ingress")
    ingress.kill()
    ingress.start()
    wait_for(ingress.ready, "the ingress is there again, without a broker")
    wait_for(lambda: all_sent(home), "the vendor has sent everything")
    assert spooled(home) >= made
    assert ingress.stop() == 0
    ingress.start()
    wait_for(ingress.ready, "the ingress is there once more")
    assert spooled(home) >= made, "what was spooled is still there"
    node.start()
    lifted = time.monotonic()
    verdict = judge(home, since=lifted)
    report.record(9, "broker gone for longer than the vendor tries, ingress restarted twice", 1, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == made
    unanswered = [each for each in answers(home) if each["status"] != 200]
    assert [each["status"] for each in unanswered] == [None] * len(unanswered), "only the killed ingress gave no answer"


@pytest.mark.fault(10)
def test_a_broker_wiped_while_its_queues_are_empty(house: MakeHouse) -> None:
    """The services put the topology back by themselves, and go on within 30 s."""
    home = house()
    node = node_of(home)
    home.convert(*[{}] * 5)
    assert judge(home).problems == ()
    stored = len(home.kept("*.json"))
    node.wipe()
    wiped = time.monotonic()
    home.convert(*[{}] * 5)
    wait_for(lambda: consumed(home) >= WORK_QUEUES, "every queue is there and consumed", within_s=BACK_WITHIN_S)
    left_s = BACK_WITHIN_S - (time.monotonic() - wiped)
    wait_for(lambda: len(home.kept("*.json")) == stored + 5, "publishing and consuming go on", within_s=left_s)
    verdict = judge(home, since=wiped)
    report.record(10, "broker wiped while its queues are empty", 1, verdict)
    assert verdict.problems == ()
    assert slowest_ms(home) < VENDOR_TIMEOUT_MS


@pytest.mark.fault(11)
@pytest.mark.parametrize("queue", sorted(WORK_QUEUES))
def test_an_empty_queue_deleted(house: MakeHouse, queue: str) -> None:
    """The broker cancels its consumer, which is back within 30 s; no report is published past the missing queue."""
    home = house()
    home.convert(*[{}] * 3)
    assert judge(home).problems == ()
    node_of(home).ctl("delete_queue", queue)
    deleted = time.monotonic()
    if queue == "wavekeep.downloader":
        home.convert(*[{}] * 5)
    wait_for_consumers(home)
    home.convert(*[{}] * 5)
    verdict = judge(home, since=deleted)
    report.record(11, f"empty {queue} deleted, its consumer cancelled", 1, verdict)
    assert verdict.problems == ()
    assert slowest_ms(home) < VENDOR_TIMEOUT_MS


@pytest.mark.fault(11)
def test_a_missing_queue_is_noticed_also_where_another_subscriber_hides_it(house: MakeHouse) -> None:
    """Who subscribes to everything blinds `mandatory`: publishers look for the queue itself, and spool within 5 s."""
    home = house(settings={"WAVEKEEP_DECLARE_TOPOLOGY": "false"}, start=False)
    node = node_of(home)
    with ThreadPoolExecutor(1) as starter:
        started = starter.submit(home.start)
        wait_for(lambda: logged(home, "topology.awaited", level="warning"), "the services wait for their topology")
        assert "wavekeep.downloader" in operate(home, "topology", "apply")
        started.result()
    subscribe_to_all(home, "eavesdropper", "wavekeep.intake")
    wait_for(lambda: metric(home, "ingress", "wavekeep_ingress_spool_direct"), "the ingress goes to the broker first")
    node.ctl("delete_queue", "wavekeep.downloader")
    wait_for(
        lambda: not metric(home, "ingress", "wavekeep_ingress_spool_direct"),
        "the ingress noticed",
        within_s=_NOTICED_WITHIN_S + _SHOWN_AFTER_S,
    )
    made = len(home.convert(*[{}] * 10))
    wait_for(lambda: all_sent(home), "everything was sent")
    assert spooled(home) == made
    assert "wavekeep.downloader" in operate(home, "topology", "apply")
    applied = time.monotonic()
    wait_for_consumers(home)
    node.ctl("delete_queue", "eavesdropper")
    verdict = judge(home, since=applied)
    report.record(11, "queue deleted, hidden by another subscriber", 1, verdict)
    assert verdict.problems == ()
