"""A downloader that comes late and a broker that stays away: backlogs drain, and memory does not grow with them."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.brokers import all_sent, begin_load, node_of, slowest_ms, spooled
from tests.faults.core import judge
from tests.faults.house import House, wait_for

pytestmark = pytest.mark.rabbitmq

MakeHouse = Callable[..., House]

_OUTAGE_MINUTES = float(os.environ.get("WAVEKEEP_TEST_OUTAGE_MINUTES", "1"))
_OUTAGE_RATE_PER_S = 50
_ANSWER_WITHIN_MS = 1_000.0

_MEMORY_LIMIT_BYTES = 512 * 1024 * 1024
_MAY_GROW_BYTES = 32 * 1024 * 1024
_DRAINED_PER_S = 10
"""Far below what was measured; only a hang takes longer."""


@pytest.mark.fault(24)
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("backlog", [pytest.param(1_000, marks=pytest.mark.fast_fault), 10_000])
def test_a_backlog_drains_in_flat_memory(house: MakeHouse, backlog: int) -> None:
    """A downloader under a memory limit takes no more in hand than it works on, however much waits."""
    home = house()
    downloader = home.process("downloader")
    assert downloader.stop(within_s=30) == 0
    begin_load(home, rate_per_s=200, seconds=backlog / 200)
    wait_for(lambda: all_sent(home), "the backlog is there", within_s=backlog / 20)
    wait_for(lambda: home.depths().get("wavekeep.downloader") == backlog, "all of it waits")
    downloader.wrapper = ("prlimit", f"--data={_MEMORY_LIMIT_BYTES}")
    begun = time.monotonic()
    downloader.start()
    wait_for(lambda: _stored(home) > backlog / 10, "it drains", within_s=backlog / _DRAINED_PER_S)
    early = _peak_bytes(downloader.pid)
    wait_for(lambda: _stored(home) == backlog, "all of it is stored", within_s=backlog / _DRAINED_PER_S)
    rate = backlog / (time.monotonic() - begun)
    grown = _peak_bytes(downloader.pid) - early
    verdict = judge(home, since=begun, within_s=backlog / _DRAINED_PER_S)
    told = f"backlog of {backlog:,}, {rate:.0f}/s, memory +{grown / 1e6:.1f} MB of {early / 1e6:.0f}"
    report.record(24, told, 1, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == backlog
    assert slowest_ms(home) < _ANSWER_WITHIN_MS * 15
    assert grown < _MAY_GROW_BYTES
    assert downloader.running


@pytest.mark.fault(9)
@pytest.mark.timeout(60 * (6 * _OUTAGE_MINUTES + 10))
def test_a_broker_gone_for_minutes_under_load(house: MakeHouse) -> None:
    """Every callback is answered 200 within a second, and all are stored once it is back.

    `WAVEKEEP_TEST_OUTAGE_MINUTES` says how long.
    """
    home = house()
    node = node_of(home)
    seconds = 60 * _OUTAGE_MINUTES
    made = begin_load(home, rate_per_s=_OUTAGE_RATE_PER_S, seconds=seconds)
    wait_for(lambda: _stored(home) > _OUTAGE_RATE_PER_S, "files are being stored")
    node.kill()
    wait_for(lambda: all_sent(home), "everything was sent", within_s=seconds + 60)
    most = spooled(home)
    node.start()
    lifted = time.monotonic()
    verdict = judge(home, since=lifted, within_s=made / _DRAINED_PER_S + 180)
    slowest = slowest_ms(home)
    told = f"broker gone for {_OUTAGE_MINUTES:g} min under {_OUTAGE_RATE_PER_S}/s: {most:,} spooled"
    report.record(9, f"{told}, slowest answer {slowest:.0f} ms", 1, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == made
    assert most > 0.8 * made
    assert slowest < _ANSWER_WITHIN_MS


def _stored(home: House) -> int:
    return len(home.kept("*.json"))


def _peak_bytes(pid: int) -> int:
    """Return the most memory a process has had in use (source: proc(5), VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
