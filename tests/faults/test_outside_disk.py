"""The disk fails: full, over quota, or unable to sync. Fault 18, for the files and for the embedded queue itself."""

import itertools
import random
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shared.vendors import Vendor
from tests.faults import report
from tests.faults.core import judge
from tests.faults.house import House, wait_for
from tests.faults.surroundings import FILLER, Injection, filled, hasten, logged, metric, small_disk

Build = Callable[..., House]

FILE_BYTES = 2_000_000
_KINDS = {"attempt", "temporary", "folder"}
_USED = re.compile(r"^(?:\d+ +)?(?P<call>fsync|write|pwrite64)\((?P<descriptor>\d+)<(?P<path>[^>]*)>")


class _Thread(NamedTuple):
    """Whose call is to fail, one thread's alone or all of a process, and which one of each."""

    of: int
    alone: bool
    when: int


@pytest.mark.fault(18)
@pytest.mark.parametrize("place", ["staging", "files"])
def test_a_full_disk_is_waited_out(house: Build, place: str) -> None:
    """While a file does not fit, the attempt leaves nothing behind, is told and tried again; with room it is kept."""
    home = house("embedded", start=False)
    folder = {"staging": home.folder / "standalone" / "staging", "files": home.files}[place]
    with small_disk(folder, "16m") as disk:
        home.start()
        home.convert({})
        wait_for(lambda: home.kept("*.announced"), "a file that fits is stored")
        with filled(disk, leave_bytes=300_000):
            home.convert(*({"files": [{"size_bytes": FILE_BYTES}]} for _ in range(3)))
            wait_for(lambda: len(logged(home, "message.retry_scheduled", reason="storage_full")) >= 3, "all three wait")
            wait_for(lambda: not _left(home, disk), "nothing of the attempts is left")
            assert metric(home, 'wavekeep_standalone_message_failures_total{reason="storage_full"}') >= 3
            assert len(home.kept("*.wav")) == 1
        verdict = judge(home, within_s=90)
        home.stop()
    report.record(18, f"disk full: {place}", 3, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == 4


def _left(home: House, disk: Path) -> list[Path]:
    return [path for path in {*home.temporaries(), *disk.rglob("*.part")} if path != disk / FILLER]


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("errno", "reason"), [("EIO", "storage_failed"), ("ENOSPC", "storage_full"), ("EDQUOT", "storage_full")]
)
def test_no_failed_sync_is_trusted(house: Build, seed: random.Random, tmp_path: Path, errno: str, reason: str) -> None:
    """Whichever sync of a download fails, it is told and tried again on another descriptor, and the file is kept."""
    home = house("embedded")
    threads = _threads(home.process("downloader").pid, _syncing(home, tmp_path / "syncing.trace"), seed)
    failed, before = 0, len(_acked(home))
    kinds: set[str] = set()
    for files, thread in enumerate(itertools.islice(threads, 100), 1):
        attempts = len(_settled(home))
        trace = tmp_path / f"{files}.trace"
        with Injection(
            thread.of, "fsync", f"error={errno}:when={thread.when}", log=trace, alone=thread.alone
        ) as faults:
            home.convert({})
            wait_for(partial(_longer, _settled, home, attempts), "it is stored or waits")
            injected, calls = faults.injected, faults.calls
        for line, descriptor, path in injected:
            kinds.add(_kind(home, path))
            assert not _reused(calls[line + 1 :], descriptor, path), f"{path} was used after its sync failed"
        failed += bool(injected)
        hasten(home, "wavekeep.downloader")
        wait_for(partial(_longer, _acked, home, before + files - 1), "it is stored after all")
        if kinds == _KINDS and failed >= 5:
            break
    told = logged(home, "message.retry_scheduled", queue="wavekeep.downloader")
    assert {line["reason"] for line in told} == {reason}
    assert len(told) == failed
    assert metric(home, f'wavekeep_standalone_message_failures_total{{reason="{reason}"}}') == failed
    verdict = judge(home, within_s=60)
    report.record(18, f"{errno} on a sync of a download", failed, verdict)
    assert verdict.problems == ()
    assert kinds == _KINDS


def _threads(pid: int, syncing: list[int], rng: random.Random) -> Iterator[_Thread]:
    """Yield all threads of a process at once, then one of those that sync, again and again.

    Strace counts calls by thread. The first sync of all is that of the attempt, and ends it. The first of a single
    thread is an attempt's or a temporary file's, as chance has it; the second that of the folder the latter moves to.
    """
    yield _Thread(pid, alone=False, when=1)
    while True:
        yield _Thread(rng.choice(syncing), alone=True, when=rng.choice((1, 2)))


def _syncing(home: House, trace: Path) -> list[int]:
    """Return the threads that sync something of a few downloads, of which nothing fails."""
    with Injection(home.process("downloader").pid, "fsync", "error=EIO:when=60000", log=trace) as faults:
        home.convert({}, {}, {})
        wait_for(lambda: len(_acked(home)) >= 3, "they are stored")
        return sorted({int(call.split()[0]) for call in faults.calls if " fsync(" in call})


def _kind(home: House, path: str) -> str:
    """Return what was to be synced: a staged file, a small object before it has its name, or a storage folder."""
    if "/staging/" in path:
        return "attempt"
    return "temporary" if path.startswith(f"{home.files}/.tmp/") else "folder"


def _settled(home: House) -> list[dict[str, Any]]:
    return logged(home, "message.settled", queue="wavekeep.downloader")


def _acked(home: House) -> list[dict[str, Any]]:
    return [line for line in _settled(home) if line["outcome"] == "acked"]


def _longer(find: Callable[[House], list[dict[str, Any]]], home: House, than: int) -> bool:
    return len(find(home)) > than


def _reused(calls: list[str], descriptor: str, path: str) -> bool:
    """Tell whether a descriptor was written or synced again before it was closed."""
    for call in calls:
        if f"close({descriptor}<{path}>)" in call:
            return False
        used = _USED.match(call)
        if used and (used["descriptor"], used["path"]) == (descriptor, path):
            return True
    return False


@pytest.mark.fault(18)
@pytest.mark.fast_fault
def test_what_the_queue_could_not_sync_is_never_answered_200(house: Build, tmp_path: Path) -> None:
    """While the queue's own file cannot be synced, callbacks are answered 503; the descriptor is not used again."""
    home = house("embedded")
    log = home.folder / "standalone" / "queue.sqlite3-wal"
    trace = tmp_path / "queue.trace"
    with Injection(home.process("ingress").pid, "fdatasync", "error=EIO", log=trace, paths=(log,)) as faults:
        statuses = {_call_back(home, uuid.uuid4().hex) for _ in range(5)}
        injected, calls = faults.injected, faults.calls
    assert statuses == {503}
    assert injected
    for line, descriptor, path in injected:
        assert not _reused(calls[line + 1 :], descriptor, path), f"{path} was used after its sync failed"
    assert logged(home, "callback.not_durable")
    assert metric(home, 'wavekeep_ingress_callbacks_refused_total{refusal="not_durable"}') >= 5
    home.convert({}, {})
    verdict = judge(home, within_s=60)
    report.record(18, "EIO on the sync of the embedded queue", len(injected), verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == 2


@pytest.mark.fault(18)
def test_a_full_disk_under_the_queue_is_never_answered_200(house: Build) -> None:
    """While the queue's file cannot grow, callbacks are answered 503; once it can, the vendor's retry is taken."""
    home = house("embedded", start=False, simulator={"SIMULATOR_RETRY_SCALE": "0.1"})
    with small_disk(home.folder / "standalone", "4m") as disk:
        home.start()
        with filled(disk):
            wait_for(lambda: _call_back(home, uuid.uuid4().hex, padding="x" * 60_000) == 503, "the queue is full")
            task_ids = home.convert({"shape": "unknown_keys"}, {"shape": "unknown_keys"})
            wait_for(lambda: all(_answers(home, each) for each in task_ids), "the first callbacks were answered")
            answered = [status for each in task_ids for status in _answers(home, each)]
        verdict = judge(home, within_s=90)
        home.stop()
    report.record(18, "disk full under the embedded queue", 1, verdict)
    assert verdict.problems == ()
    assert set(answered) <= {200, 503}


def _answers(home: House, task_id: str) -> list[int]:
    return [each["status"] for each in home.entry(task_id)["callbacks"] if each.get("status") is not None]


def _call_back(home: House, task_id: str, *, padding: str = "") -> int:
    """Send a callback of our own that tells of a failure; return the status of its answer."""
    body: dict[str, Any] = {"code": 501, "msg": f"failed {padding}", "data": {"task_id": task_id}}
    request = urllib.request.Request(
        home.deployment.callback_url(Vendor.APIBOX),
        data=str(body).replace("'", '"').encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
