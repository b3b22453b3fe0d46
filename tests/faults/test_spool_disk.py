"""The spool's own disk fails while RabbitMQ is away: full, or unable to sync. Fault 18, where nothing else is left."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.brokers import all_sent, answers, begin_load, metric, node_of, spooled
from tests.faults.core import judge
from tests.faults.house import House, wait_for
from tests.faults.surroundings import Injection, filled, logged, small_disk

pytestmark = pytest.mark.rabbitmq

MakeHouse = Callable[..., House]

_OPEN = "wavekeep_ingress_spool_open"
_SOON_GIVEN_UP = {"SIMULATOR_RETRY_SCALE": "0.005"}
"""The vendor tries again after 0.3, 1.5 and 4.5 s, and then never."""


@pytest.mark.fault(18)
def test_a_full_disk_under_the_spool(house: MakeHouse) -> None:
    """What it cannot take is answered 503; what it took is stored once RabbitMQ is back, without a byte being freed."""
    home = house(start=False, simulator=_SOON_GIVEN_UP)
    node = node_of(home)
    with small_disk(home.folder / "ingress", "8m") as disk:
        home.start()
        node.kill()
        made = begin_load(home, rate_per_s=20, seconds=4)
        wait_for(lambda: all_sent(home), "callbacks are spooled")
        assert spooled(home) == made
        with filled(disk):
            begin_load(home, rate_per_s=20, seconds=4)
            wait_for(lambda: 503 in _statuses(home), "the spool refuses")
            wait_for(lambda: all_sent(home), "the vendor has given up")
            taken = home.acknowledged()
            assert spooled(home) == _statuses(home).count(200) >= taken, "still told"
            node.start()
            lifted = time.monotonic()
            wait_for(lambda: not spooled(home), "what was taken is moved on")
            wait_for(lambda: len(home.kept("*.json")) >= taken, "all of it is stored")
        wait_for(lambda: metric(home, "ingress", _OPEN) == 1, "with room it is open")
        verdict = judge(home, since=lifted)
        home.stop()
    report.record(18, "disk full under the spool", 1, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) >= made


@pytest.mark.fault(18)
def test_what_the_spool_could_not_sync_is_never_answered_200(house: MakeHouse, tmp_path: Path) -> None:
    """While its file cannot be synced, callbacks are answered 503; what it took before and after is stored."""
    home = house(simulator=_SOON_GIVEN_UP)
    node = node_of(home)
    node.kill()
    made = begin_load(home, rate_per_s=20, seconds=2)
    wait_for(lambda: all_sent(home), "callbacks are spooled")
    log = home.folder / "ingress" / "spool.sqlite3-wal"
    trace = tmp_path / "spool.trace"
    with Injection(home.process("ingress").pid, "fdatasync", "error=EIO", log=trace, paths=(log,)) as faults:
        begin_load(home, rate_per_s=20, seconds=2)
        wait_for(lambda: all_sent(home), "the vendor has given up")
        assert metric(home, "ingress", _OPEN) == 0
        assert spooled(home) >= made, "still told"
        injected = len(faults.injected)
    assert injected
    assert _statuses(home).count(200) == made
    assert logged(home, "spool.closed", reason="storage_failed")
    wait_for(lambda: metric(home, "ingress", _OPEN) == 1, "a probe was committed and read again")
    made += begin_load(home, rate_per_s=20, seconds=2)
    wait_for(lambda: _statuses(home).count(200) == made, "it takes again")
    node.start()
    verdict = judge(home)
    report.record(18, "EIO on the sync of the spool", injected, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == made


def _statuses(home: House) -> list[int]:
    return [each["status"] for each in answers(home) if each["status"] is not None]
