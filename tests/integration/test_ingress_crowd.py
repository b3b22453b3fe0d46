"""Crowds before a real ingress process: 10,000 idle connections, and more connections than files may be open.

The crowd is this process, the ingress another one: each has its own limit of open files, and its own sockets to count.
"""

import json
import logging
import re
import resource
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from simulator.processes import Process
from simulator.rabbitmq_local import free_ports

log = logging.getLogger(__name__)

CROWD = 10_000
SPARE_FILES = 500
ANSWER_WITHIN_S = 1.0
PATIENCE_S = 30.0
TOKEN = "token-of-the-crowd"
HEAD = f"POST /callbacks/apibox?token={TOKEN} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CALLBACKS = 20


class Edge:
    """An ingress process on the embedded queue."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port, self.ops_port = free_ports(2)
        self.process = Process(
            "ingress",
            environ={
                "WAVEKEEP_DATA_DIR": str(folder),
                "WAVEKEEP_INGRESS_PORT": str(self.port),
                "WAVEKEEP_OPS_PORT": str(self.ops_port),
                "WAVEKEEP_LOG_FORMAT": "json",
                "WAVEKEEP_APIBOX_CALLBACK_TOKENS": TOKEN,
                # together under the vendor's patience, with as much time as there may be to say nothing
                "WAVEKEEP_INGRESS_BODY_TIMEOUT_S": "9",
                "WAVEKEEP_PUBLISH_TIMEOUT_S": "2",
                **settings,
            },
            log=folder / "ingress.log",
            ready_url=f"http://127.0.0.1:{self.ops_port}/readyz",
        )

    def connect(self, sent: bytes = b"") -> socket.socket:
        """Open a connection that says this much."""
        opened = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        with suppress(ConnectionError):  # closed for somebody else already
            opened.sendall(sent)
        return opened

    def call_back(self, task_id: str) -> tuple[int, float]:
        """Send a good callback on a connection of its own; return the status of the answer and the seconds it took."""
        body = json.dumps({"code": 501, "msg": "failed", "data": {"task_id": task_id}}).encode()
        began = time.monotonic()
        with self.connect(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body) as connection:
            answer = connection.recv(4_096)
        return int(answer.split()[1]) if answer else 0, time.monotonic() - began

    def metric(self, name: str) -> float:
        """Return a metric without labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/metrics", timeout=PATIENCE_S) as answer:
            found = re.search(rf"^wavekeep_ingress_{name} (\S+)$", answer.read().decode(), re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def events(self, name: str) -> list[Mapping[str, object]]:
        """Return the lines logged under this name."""
        lines = [json.loads(line) for line in self.process.log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if line["event"] == name]

    def cpu_s(self) -> float:
        """Return the processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def open_files(self) -> int:
        """Return how many files it has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory_mib(self) -> float:
        """Return its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Edge]:
    """Run an ingress while the context lasts."""
    edge = Edge(folder, **settings)
    edge.process.start()
    try:
        wait_for(edge.process.ready, "it is ready")
        yield edge
        assert edge.process.running, edge.process.tail()
    finally:
        edge.process.stop()


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process, and those it starts, have as many files open as a crowd takes; undone afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CROWD + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.fail(f"{CROWD} connections need {needed} open files; this machine allows {hard}: ulimit -Hn {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def crowd(edge: Edge, count: int) -> Iterator[list[socket.socket]]:
    """Hold this many connections open that do not go on: after a refused request, after nothing, after half a head.

    The first kind, three in five, may sit for longest, so that all can be open at once however slowly they come.
    """
    refused, half = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", f"{HEAD}Content-Le".encode()
    with ExitStack() as stack:
        sent = [refused] * (count * 3 // 5)
        sent += [b"", half] * ((count - len(sent) + 1) // 2)
        yield [stack.enter_context(edge.connect(each)) for each in sent[:count]]


def wait_for(holds: Callable[[], bool], what: str) -> None:
    """Return when it holds; AssertionError once time is up."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.02)


def worst_answer_s(edge: Edge, name: str) -> float:
    """Send good callbacks one after another; all must be answered 200. Return how long the slowest took."""
    answers = [edge.call_back(f"{name}-{number}") for number in range(CALLBACKS)]
    assert {status for status, _ in answers} == {200}
    return max(took_s for _, took_s in answers)


@pytest.mark.usefixtures("many_files")
def test_10000_idle_connections_hold_up_no_good_callback(tmp_path: Path) -> None:
    """Acceptance: while 10,000 connections are held open, a good callback is answered 200 within a second."""
    with running(tmp_path, WAVEKEEP_INGRESS_MAX_CONNECTIONS=str(CROWD + 100)) as edge:
        alone_s, alone_mib = worst_answer_s(edge, "alone"), edge.memory_mib()
        began = time.monotonic()
        with crowd(edge, CROWD):
            opened_s = time.monotonic() - began
            wait_for(lambda: edge.metric("connections") >= CROWD, "all of them are open at once")
            worst_s = worst_answer_s(edge, "crowded")
            assert edge.metric("connections") >= CROWD
            crowded_mib = edge.memory_mib()
        assert edge.metric("connections_displaced_total") == 0
        assert worst_s < ANSWER_WITHIN_S
        log.info(
            "10,000 opened in %.1f s; slowest of %d answers %.0f ms, %.0f ms without them; %.0f MiB, %.0f without",
            *(opened_s, CALLBACKS, worst_s * 1_000, alone_s * 1_000, crowded_mib, alone_mib),
        )


@pytest.mark.usefixtures("many_files")
def test_10000_connections_before_an_ingress_for_fewer(tmp_path: Path) -> None:
    """Acceptance: those over the default bound are closed, and a good callback is answered within a second."""
    with running(tmp_path) as edge, crowd(edge, CROWD):
        worst_s = worst_answer_s(edge, "crowded")
        most = edge.metric("connections")
        assert 0 < most < CROWD
        assert edge.metric("connections_displaced_total") >= CROWD - most
        assert len(edge.events("connections.crowded")) == 1
        assert worst_s < ANSWER_WITHIN_S


def test_the_bound_is_lowered_where_too_few_files_may_be_open(tmp_path: Path) -> None:
    """An ingress that may open few files says so at start, and holds fewer connections than that."""
    edge = Edge(tmp_path)
    edge.process.wrapper = ("sh", "-c", 'ulimit -n 300; exec "$@"', "sh")
    edge.process.start()
    try:
        wait_for(edge.process.ready, "it is ready")
        (line,) = edge.events("connections.limited")
        assert (line["level"], line["open_files"], line["most"]) == ("warning", 300, 150)
        with crowd(edge, 400):
            assert worst_answer_s(edge, "limited") < ANSWER_WITHIN_S
            assert edge.metric("connections") <= 150
            assert edge.open_files() < 250
    finally:
        assert edge.process.stop() == 0


def test_no_file_left_to_open_neither_ends_nor_spins_it(tmp_path: Path) -> None:
    """Where every file is taken, connections fail until one is free; the process waits for that without work."""
    with running(tmp_path) as edge:
        assert edge.call_back("before")[0] == 200
        _, hard = resource.prlimit(edge.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(edge.process.pid, resource.RLIMIT_NOFILE, (edge.open_files() + 20, hard))
        with crowd(edge, 200):
            used_s, began = edge.cpu_s(), time.monotonic()
            wait_for(lambda: time.monotonic() - began > 2, "two seconds have passed")
            assert edge.cpu_s() - used_s < 1
        wait_for(lambda: _answered(edge), "it takes callbacks again")
        assert edge.call_back("after")[0] == 200


def _answered(edge: Edge) -> bool:
    try:
        return edge.call_back("again")[0] == 200
    except OSError:
        return False
