"""Rows 1 to 4: a process killed at an exact moment, and the end in good order at any moment."""

import hashlib
import random
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from simulator.deployment import Deployment
from simulator.processes import Process
from simulator.rabbitmq_local import free_ports
from tests.faults import report
from tests.faults.core import Verdict, judge, wait_for
from tests.faults.house import House, own_node
from tests.faults.tracer import Step, killing, last_call, require_strace
from tests.faults.tripwire import ACKNOWLEDGED, REPORT_PUBLISHED, STORED_PUBLISHED, Direction, Tripwire

Build = Callable[..., House]
Stages = tuple[tuple[Direction, bytes], ...]

_ROUNDS = 3
_FILE_BYTES = 1_500_000
_GRACE_S = 35.0
"""The services' own grace time is 25 s; two cores are shared by many."""

_MODES = ("embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq))


class Wired(NamedTuple):
    """A house in which one service, the victim, reaches its broker through a tripwire."""

    home: House
    victim: Process
    wire: Tripwire
    twin: Deployment


@pytest.fixture
def wired(house: Build) -> Iterator[Callable[[str], Wired]]:
    """A function that starts a house with this service as the victim."""
    with ExitStack() as stack:

        def start(service: str) -> Wired:
            node = stack.enter_context(own_node())
            port = int(node.amqp_url.rstrip("/").rpartition(":")[2])
            wire = stack.enter_context(Tripwire(*free_ports(1), port))
            home = house(broker=node)
            home.process(service).stop()
            url = node.amqp_url.replace(f":{port}/", f":{wire.port}/")
            process, twin = home.twin(service, broker_url=url)
            _revive(process)
            return Wired(home, process, wire, twin)

        yield start


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    ("row", "name", "stages"),
    [
        pytest.param(
            1, "ingress killed before the broker heard", (("there", REPORT_PUBLISHED),), marks=pytest.mark.fault(1)
        ),
        pytest.param(
            2,
            "ingress killed between confirm and 200",
            (("there", REPORT_PUBLISHED), ("back", ACKNOWLEDGED)),
            marks=pytest.mark.fault(2),
        ),
    ],
)
def test_an_ingress_killed_while_it_publishes(
    wired: Callable[[str], Wired], row: int, name: str, stages: Stages
) -> None:
    """No 200 was sent, so the vendor calls again; whether the broker had the report or not, it ends as one file."""
    home, ingress, wire, twin = wired("ingress")
    url = f"{twin.ingress_url}/callbacks/kie?token={_token(home, 'kie')}"
    for _ in range(_ROUNDS):
        wait_for(lambda: _publishes_directly(twin), "the ingress needs no spool")
        tripped = wire.arm(*stages)
        (task_id,) = home.convert({"callback_url": url})
        assert tripped.wait(30), "the ingress publishes"
        ingress.kill()
        wire.lift()
        assert not home.entry(task_id)["acknowledged"]
        _revive(ingress)
        wait_for(lambda task_id=task_id: home.entry(task_id)["acknowledged"], "the vendor's retry is answered")  # type: ignore[misc]
    verdict = judge(home)
    report.record(row, name, _ROUNDS, verdict)
    _assert_good(verdict, _ROUNDS)


@pytest.mark.fault(2)
@pytest.mark.fast_fault
def test_an_answer_that_is_lost_on_its_way(house: Build) -> None:
    """The vendor calls again for what was durable already; it stays one file under one id."""
    home = house("embedded")
    standalone = home.process("ingress")
    port = int(home.deployment.ingress_url.rpartition(":")[2])
    with Tripwire(*free_ports(1), port) as wire:
        url = f"http://127.0.0.1:{wire.port}/callbacks/kie?token={_token(home, 'kie')}"
        for _ in range(_ROUNDS):
            tripped = wire.arm(("back", b"HTTP/1.1 200"))
            (task_id,) = home.convert({"callback_url": url})
            assert tripped.wait(30), "the ingress answers"
            standalone.kill()
            wire.lift()
            assert not home.entry(task_id)["acknowledged"]
            home.start()
            wait_for(lambda task_id=task_id: home.entry(task_id)["acknowledged"], "the retry is answered")  # type: ignore[misc]
        verdict = judge(home)
    report.record(2, "standalone killed while its 200 travels", _ROUNDS, verdict)
    _assert_good(verdict, _ROUNDS)


@pytest.mark.fault(3)
@pytest.mark.fast_fault
def test_everything_in_one_process_killed_at_every_step(house: Build, tmp_path: Path, seed: random.Random) -> None:
    """Whatever it was doing, no partial file stands under a final name, and the next start completes it."""
    require_strace()
    home = house(
        "embedded",
        settings={"WAVEKEEP_DOWNLOAD_CONCURRENCY": "1"},
        simulator={"SIMULATOR_RETRY_SCALE": "0.02"},
    )
    journal = home.folder / "standalone" / "queue.sqlite3-wal"
    kills = 0
    for nth in range(1, 7):
        step = Step(f"commit {nth} to the queue", "fdatasync", journal, nth)
        kills += _kill_at(home, home.process("downloader"), home.start, step, tmp_path, seed)
    for make in _STEPS:
        kills += _kill_at(home, home.process("downloader"), home.start, make, tmp_path, seed)
    verdict = judge(home)
    report.record(3, "standalone killed at every step", kills, verdict)
    _assert_good(verdict, kills)


@pytest.mark.fault(3)
@pytest.mark.rabbitmq
def test_a_downloader_killed_at_every_step(wired: Callable[[str], Wired], tmp_path: Path, seed: random.Random) -> None:
    """As above, with a broker between: also while it publishes, waits for the confirm, and acknowledges."""
    require_strace()
    home, downloader, wire, _ = wired("downloader")

    def revive() -> None:
        wire.lift()
        _revive(downloader)

    published: Stages = (("there", STORED_PUBLISHED),)
    confirmed: Stages = (*published, ("back", ACKNOWLEDGED))
    acknowledged: Stages = (*confirmed, ("there", ACKNOWLEDGED))
    for stages in (published, confirmed, acknowledged):
        tripped = wire.arm(*stages)
        with _interrupted(home, downloader, revive, seed):
            assert tripped.wait(30), f"it reaches {stages[-1]}"
            downloader.kill()
    kills = 3
    for step in _STEPS:
        kills += _kill_at(home, downloader, revive, step, tmp_path, seed)
    verdict = judge(home)
    report.record(3, "downloader killed at every step", kills, verdict)
    _assert_good(verdict, kills)


@pytest.mark.fault(4)
@pytest.mark.rabbitmq
def test_a_notifier_killed_between_a_delivery_and_its_acknowledgement(
    wired: Callable[[str], Wired],
) -> None:
    """The receiver is told a second time, under the same id."""
    home, notifier, wire, _ = wired("notifier")
    for unanswered in (True, False):
        before = len(home.told("hook"))
        home.simulator.tell_webhook("hook", {"times": 1, "delay_s": 60 if unanswered else 10})
        home.convert({})
        wait_for(lambda before=before: len(home.told("hook")) > before, "the delivery has arrived")  # type: ignore[misc]
        if not unanswered:
            wait_for(lambda: _waits_for_the_hook_alone(home), "all other messages are settled")
            assert wire.arm(("there", ACKNOWLEDGED)).wait(30), "it acknowledges"
        notifier.kill()
        wire.lift()
        _revive(notifier)
        wait_for(lambda before=before: len(home.told("hook")) > before + 1, "it is told again")  # type: ignore[misc]
        first, second = home.told("hook")[before:]
        assert first["webhook_id"] == second["webhook_id"] == second["id"]
    verdict = judge(home)
    report.record(4, "notifier killed after the POST, before the ack", 2, verdict)
    _assert_good(verdict, 2)


@pytest.mark.fault("+")
@pytest.mark.parametrize("mode", _MODES)
def test_sigterm_at_any_moment(house: Build, mode: str, seed: random.Random) -> None:
    """Each process leaves with 0 within its grace time, and what it had in hand is finished by the next one."""
    home = house(mode)
    rounds = 5
    for _ in range(rounds):
        goal = home.acknowledged() + seed.randrange(1, 12)
        slow = {"times": 1, "bytes_per_s": seed.choice([300_000, 1_500_000])}
        home.convert(*({"files": [{"size_bytes": _FILE_BYTES, "misbehaviour": [slow]}]} for _ in range(12)))
        wait_for(lambda goal=goal: home.acknowledged() >= goal, "some are answered")  # type: ignore[misc]
        chosen = seed.sample(home.processes, seed.randint(1, len(home.processes)))
        for process in chosen:
            process.terminate()
        assert {process.name: process.stop(within_s=_GRACE_S) for process in chosen} == {p.name: 0 for p in chosen}
        home.start()
    verdict = judge(home)
    report.record("+", f"SIGTERM at any moment, {mode}", rounds, verdict)
    assert verdict.problems == ()


_SHARD, _TASK = "{shard}", "{task}"
_STEPS = (
    Step("staging file made", "flock"),
    Step("first write", "write", None, 1),
    Step("fifth write", "write", None, 5),
    Step("staging file synced", "fsync"),
    Step("audio linked", "linkat"),
    Step("audio renamed", "renameat"),
    Step("folder synced", "fsync", _SHARD),
    Step("staging name let go", "unlink"),
    Step("manifest linked", "linkat", f"{_TASK}.json"),
    Step("marker linked", "linkat", f"{_TASK}.announced"),
)


def _kill_at(
    home: House, process: Process, revive: Callable[[], None], step: Step, traces: Path, seed: random.Random
) -> int:
    """Have the process die at a step of one conversion's, and see it completed after a new start; return 1."""
    task_id = uuid.UUID(int=seed.getrandbits(128), version=4).hex
    if step.path is not None:
        shard = home.files / "kie" / hashlib.sha256(task_id.encode()).hexdigest()[:2]
        shard.mkdir(parents=True, exist_ok=True, mode=0o700)
        step = step._replace(path=str(step.path).replace(_SHARD, str(shard)).replace(_TASK, task_id))
    trace = traces / f"{step.name}.strace"
    with killing(process, step, trace), _interrupted(home, process, revive, seed, task_id=task_id):
        wait_for(lambda: not process.running, f"killed at: {step.name}")
    assert step.call in last_call(trace), f"{step.name}: {last_call(trace)}"
    return 1


@contextmanager
def _interrupted(
    home: House, process: Process, revive: Callable[[], None], seed: random.Random, *, task_id: str | None = None
) -> Iterator[None]:
    """Begin a conversion; the block kills the process. See that nothing partial is kept, and that it is completed."""
    task_id = task_id or uuid.UUID(int=seed.getrandbits(128), version=4).hex
    home.convert({"task_id": task_id, "files": [{"size_bytes": _FILE_BYTES}]})
    yield
    assert not process.running
    served = {file["sha256"] for entry in home.simulator.ledger()["conversions"] for file in entry["files"]}
    for path in home.kept("*.wav"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in served, f"{path} is partial"
    revive()
    wait_for(lambda: home.entry(task_id)["acknowledged"], f"{task_id} is acknowledged, if by a retry")
    wait_for(lambda: home.kept(f"{task_id}.announced"), f"{task_id} is completed")
    subject = f"kie/{task_id}"
    wait_for(lambda: subject in {event["subject"] for event in home.told("hook")}, f"{task_id} is told")


def _waits_for_the_hook_alone(home: House) -> bool:
    return home.depths() == {"wavekeep.notifier.hook": 1}


def _publishes_directly(ingress: Deployment) -> bool:
    with urllib.request.urlopen(f"{ingress.ops_urls['ingress']}/metrics", timeout=10) as answer:
        return b"wavekeep_ingress_spool_direct 1.0" in answer.read()


def _revive(process: Process) -> None:
    process.start()
    wait_for(process.ready, f"{process.name} is ready")


def _token(home: House, vendor: str) -> str:
    return next(token for name, token in home.deployment.tokens.items() if name == vendor)


def _assert_good(verdict: Verdict, acknowledged: int) -> None:
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == acknowledged
