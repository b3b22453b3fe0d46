"""The life of a real process: how it ends, with which status, and what it says."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 30

PROGRAM = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from shared import lifecycle
from shared.errors import StartError
from shared.settings import ServiceSettings, load

class Broker:
    def publishing(self): return True
    async def start(self): {start}
    async def close(self): print("closed", flush=True)
    async def watch(self): await asyncio.Event().wait()

class Service:
    def checks(self): return {{"service": True}}
    async def run(self, stop):
        print("running", flush=True)
        {run}
        print("finished", flush=True)

async def main(stop):
    settings = load(ServiceSettings)
    await lifecycle.serve("tests", settings, Broker(), [Service()] * {services}, CollectorRegistry(), stop)

sys.exit(lifecycle.run(main))
"""


def program(*, start: str = "pass", run: str = "await stop.wait()", services: int = 1) -> list[str]:
    """Write a process that has a broker and services of this kind."""
    return ["-c", PROGRAM.format(start=start, run=run, services=services)]


@contextmanager
def process(arguments: list[str], **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Run Python with settings of the environment; it is gone afterwards."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAVEKEEP_")}
    settings = {f"WAVEKEEP_{name}": value for name, value in ({"OPS_PORT": "0"} | environment).items()}
    child = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=inherited | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def line_with(stream: "subprocess.Popen[str]", event: str) -> dict[str, object]:
    """Return the log line of an event, once it is written."""
    assert stream.stderr is not None
    deadline = time.monotonic() + PATIENCE_S
    for line in stream.stderr:
        if event in line:
            found: dict[str, object] = json.loads(line)
            return found
        assert time.monotonic() < deadline
    raise AssertionError(f"{event} was never logged")


def ended(child: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Return status, output and errors of a process that ends by itself."""
    out, err = child.communicate(timeout=PATIENCE_S)
    return child.returncode, out, err


@pytest.mark.parametrize("module", ["ingress", "downloader", "notifier", "standalone"])
def test_wrong_settings(module: str, tmp_path: Path) -> None:
    """With wrong settings a service ends with 2 and a sentence for each, without a traceback or a value."""
    environment = {"OPS_PORT": "eighty", "LOG_LEVEL": "s3cret", "DATA_DIR": str(tmp_path)}
    with process(["-m", module], **environment) as child:
        status, out, err = ended(child)
    assert status == 2
    assert err.startswith("These settings must be corrected:\n")
    assert "WAVEKEEP_OPS_PORT: " in err
    assert "WAVEKEEP_LOG_LEVEL: " in err
    assert "Traceback" not in err
    assert "s3cret" not in err + out


def test_no_secret(tmp_path: Path) -> None:
    """The ingress does not start without any vendor's secret, and says what to set."""
    with process(["-m", "ingress"], DATA_DIR=str(tmp_path)) as child:
        status, _, err = ended(child)
    assert status == 2
    assert "WAVEKEEP_KIE_CALLBACK_TOKENS" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(number: signal.Signals) -> None:
    """A process that is told to stop finishes, closes its broker, and ends with 0."""
    with process(program()) as child:
        line_with(child, "operations.listening")
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        child.send_signal(number)
        status, out, err = ended(child)
    assert (status, out) == (0, "finished\nclosed\n")
    assert "process.stopped" in err
    assert "Traceback" not in err


def test_ingress_told_to_stop(tmp_path: Path) -> None:
    """A real service ends with 0 when told to."""
    environment = {"DATA_DIR": str(tmp_path), "KIE_CALLBACK_TOKENS": "s3cret", "INGRESS_PORT": "0"}
    with process(["-m", "ingress"], **environment) as child:
        line_with(child, "ingress.listening")
        child.send_signal(signal.SIGTERM)
        status, out, err = ended(child)
    assert (status, out) == (0, "")
    assert "s3cret" not in err


@pytest.mark.parametrize(
    ("sent", "status"), [(b"POST /callbacks/kie?token=s3cret HT", 408), (b"token=s3cret\r\n\r\n", 400)]
)
def test_hostile_heads_on_the_real_loop(sent: bytes, status: int, tmp_path: Path) -> None:
    """In production's event loop too, what never becomes a request is answered, and its token is not logged."""
    environment = {"DATA_DIR": str(tmp_path), "KIE_CALLBACK_TOKENS": "s3cret", "INGRESS_PORT": "0"}
    with process(["-m", "ingress"], INGRESS_BODY_TIMEOUT_S="0.3", **environment) as child:
        port = int(str(line_with(child, "ingress.listening")["port"]))
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(sent)
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        child.send_signal(signal.SIGTERM)
        code, out, err = ended(child)
    assert answer.split()[1] == str(status).encode()
    assert b"application/problem+json" in answer
    assert code == 0
    assert err.count("callback.refused") == 1
    assert "s3cret" not in err + out


@pytest.mark.parametrize("services", [1, 2])
def test_crashed_service(services: int) -> None:
    """A service that crashes ends the process with 1 and a traceback, and the others with it."""
    with process(program(run="raise ValueError('out of order')", services=services)) as child:
        status, out, err = ended(child)
    assert status == 1
    assert out.endswith("closed\n")
    line = json.loads(err.splitlines()[-1])
    assert (line["event"], line["level"], line["service"]) == ("process.failed", "error", "tests")
    assert "ValueError: out of order" in line["exception"]


def test_crash_shows_no_secret() -> None:
    """What a crash tells holds neither a query nor a password."""
    failing = "raise OSError('amqp://user:s3cret' + '@rabbit/?key=s3cret' + '2')"
    with process(program(start=failing)) as child:
        status, _, err = ended(child)
    assert status == 1
    exception = json.loads(err.splitlines()[-1])["exception"]
    assert "OSError: amqp://…@rabbit/?…" in exception.splitlines()[-1]


def test_crash_before_logging_is_configured() -> None:
    """A crash while a service is being built is told like any other."""
    failing = "import sys; from shared import lifecycle\nasync def main(stop): raise OSError('https://x/?key=s3cret')\n"
    with process(["-c", f"{failing}sys.exit(lifecycle.run(main))"]) as child:
        status, out, err = ended(child)
    assert (status, out) == (1, "")
    assert json.loads(err)["event"] == "process.failed"
    assert "OSError: https://x/?…" in json.loads(err)["exception"]


@pytest.mark.parametrize("where", ["start", "run"])
def test_cannot_start(where: str) -> None:
    """What forbids a start, wherever it is found, is a sentence and 2."""
    failing = "raise StartError('The folder is not there.')"
    with process(program(start=failing) if where == "start" else program(run=failing), LOG_LEVEL="error") as child:
        status, out, err = ended(child)
    assert status == 2
    assert err == "The folder is not there.\n"
    assert out.endswith("closed\n")


def test_stopped_while_starting() -> None:
    """A process that waits for its broker can be watched, is not ready, and ends at once when told to."""
    with process(program(start="await asyncio.sleep(3600)")) as child:
        port = line_with(child, "operations.listening")["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5) as answer:
            assert answer.status == 200
        child.send_signal(signal.SIGTERM)
        status, out, _ = ended(child)
    assert (status, out) == (0, "closed\n")


def test_readiness_follows_the_signal() -> None:
    """A process that was told to stop is not ready while it finishes what is in hand."""
    run = "await stop.wait(); print('stopping', flush=True); await asyncio.to_thread(sys.stdin.readline)"
    with process(program(run=run)) as child:
        port = line_with(child, "operations.listening")["port"]
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        assert readiness(port) == 200
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "stopping\n"
        assert readiness(port) == 503


def readiness(port: object) -> int:
    """Return the status of `/readyz`."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
