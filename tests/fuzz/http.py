"""Fuzz the public edge from outside, by its own description.

Responsible for: requests that fit `GET /openapi.json` and requests that do not, with every proof and without, and the
judgement that each answer is one that is described, and never a 5xx. It must not know how the edge works.
"""

import base64
import hashlib
import hmac
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from simulator.processes import Process
from simulator.rabbitmq_local import free_ports
from tests.fuzz.engine import FOLDER, Outcome, show
from tests.integration.ingress_server import NEW_KEY, TOKEN

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
Operation = APIOperation[Any, Any, Any, Any]
AnyCase = Case[Any]
SETTINGS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

_MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
_PLAIN: Mapping[str, str] = {}
_TWISTS: tuple[Mapping[str, str], ...] = (
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "application/json;;="},
    {"Content-Encoding": "gzip"},
    {"Expect": "something"},
    {"X-Forwarded-For": "127.0.0.1, \xff"},
    {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
    {"Cookie": "=;" * 2_000},
    {"If-None-Match": "*", "Range": "bytes=0-1", "Accept": "text/html"},
)
_ANSWER_WITHIN_S = 15.0
_READY_WITHIN_S = 60.0
_EVERY_S = 5.0
_EXAMPLES = 60
_MEMORY_MB = 300


class Draw(NamedTuple):
    """One request to send.

    Attributes:
        proven: send every proof there is along.
        twist: headers that the description does not know, put over those of the case.
    """

    case: AnyCase
    proven: bool
    twist: Mapping[str, str]


class Sender(requests.Session):
    """Sends, each request on a connection of its own, and remembers what it sent last and what came of all."""

    def __init__(self) -> None:
        super().__init__()
        self.headers["Connection"] = "close"
        self.last: requests.PreparedRequest | None = None
        self.statuses: Counter[int] = Counter()
        self.slowest_s = 0.0

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send one request, which must be answered in a vendor's time."""
        self.last = request
        started = time.monotonic()
        response = super().send(request, **{**options, "timeout": _ANSWER_WITHIN_S, "allow_redirects": False})
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        self.statuses[response.status_code] += 1
        return response

    @property
    def raw(self) -> bytes:
        """The last request as it went over the wire."""
        assert self.last is not None
        body = self.last.body or b""
        assert isinstance(body, str | bytes)
        head = "".join(
            f"{_text(name)}: {_text(value)}\r\n" for name, value in {"Host": "x", **self.last.headers}.items()
        )
        line = f"{self.last.method} {self.last.path_url} HTTP/1.1\r\n"
        return f"{line}{head}\r\n".encode("latin-1") + (body.encode() if isinstance(body, str) else body)


def operations(url: str) -> list[Operation]:
    """Return every operation that an ingress describes."""
    described = requests.get(f"{url}/openapi.json", timeout=_ANSWER_WITHIN_S).json()
    schema = schemathesis.openapi.from_dict(described, config=SchemathesisConfig())
    return [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]


def draws(operation: Operation) -> SearchStrategy[Draw]:
    """Return cases that fit the description of an operation, and cases that do not, each with or without a twist."""
    cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in _MODES])
    return st.builds(Draw, cases, st.booleans(), st.one_of(st.just(_PLAIN), st.sampled_from(_TWISTS)))


def send(draw: Draw, url: str, sender: Sender) -> None:
    """Send a case; an answer that is not described fails."""
    case, headers = draw.case, dict(draw.twist)
    if draw.proven:
        case.query = {**(case.query or {}), "token": TOKEN}
        timestamp = str(int(time.time()))
        signed = f"{_task_named(case.body)}.{timestamp}".encode("utf-8", "replace")
        signature = base64.b64encode(hmac.digest(NEW_KEY.encode(), signed, hashlib.sha256)).decode()
        headers |= {"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": signature}
    response = case.call(base_url=url, session=sender, headers=headers)
    case.validate_response(response, checks=CHECKS)


def fuzz(*, seconds: int) -> Outcome:
    """Fuzz a real process, telling how it goes; what it failed at is written to `crashes/http`, as sent.

    Args:
        seconds: to spend.
    """
    sender, failed = Sender(), 0
    with TemporaryDirectory(prefix="wavekeep-fuzz-") as name, running(Path(name)) as (url, process):
        found, told = operations(url), time.monotonic()
        deadline = told + seconds
        for turn, operation in ((turn, operation) for turn in count() for operation in found):
            try:
                _explore(operation, url, sender, turn=turn, deadline=deadline)
            except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
                failed += 1
                _keep(sender.raw, error)
            if time.monotonic() - told > _EVERY_S:
                told = time.monotonic()
                click.echo(f"{'http':9} {sender.statuses.total():>10,} requests  {_listed(sender.statuses)}")
            if time.monotonic() > deadline or not process.running:
                break
        memory_mb = _peak_memory_mb(process.pid) if process.running else 0
        if not process.running or memory_mb > _MEMORY_MB:
            failed += 1
            click.echo(f"the ingress took {memory_mb} MB, or ended:\n{process.tail()}", err=True)
    return Outcome(
        "http",
        sender.statuses.total(),
        0,
        f"{len(found)} operations: {_listed(sender.statuses)}",
        failed,
        f"{max(sender.statuses, default=0)}; slowest {sender.slowest_s * 1_000:.0f} ms, {memory_mb} MB",
    )


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, Process]]:
    """Run an ingress as a process of its own, on an embedded queue; gives its URL."""
    port, ops_port = free_ports(2)
    process = Process(
        "ingress",
        environ={
            "WAVEKEEP_DATA_DIR": str(folder),
            "WAVEKEEP_INGRESS_PORT": str(port),
            "WAVEKEEP_OPS_PORT": str(ops_port),
            "WAVEKEEP_APIBOX_CALLBACK_TOKENS": TOKEN,
            "WAVEKEEP_SUNOAPI_CALLBACK_TOKENS": TOKEN,
            "WAVEKEEP_KIE_HMAC_KEYS": NEW_KEY,
        },
        log=folder / "ingress.log",
        ready_url=f"http://127.0.0.1:{ops_port}/readyz",
    )
    process.start()
    try:
        deadline = time.monotonic() + _READY_WITHIN_S
        while not process.ready():
            if time.monotonic() > deadline:
                raise click.ClickException(f"the ingress did not become ready:\n{process.tail()}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.stop()


def _explore(operation: Operation, url: str, sender: Sender, *, turn: int, deadline: float) -> None:
    """Send some cases of one operation, another choice each turn; the smallest failing one is sent last."""

    @seed(turn)
    @settings(SETTINGS, max_examples=_EXAMPLES, phases=(Phase.generate, Phase.shrink))
    @given(draws(operation))
    def explore(draw: Draw) -> None:
        if time.monotonic() < deadline:
            send(draw, url, sender)

    explore()


def _keep(raw: bytes, error: Exception) -> None:
    folder = FOLDER / "crashes" / "http"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha1(raw).hexdigest()}.http"
    path.write_bytes(raw)
    click.echo(f"{path}:\n{error!r}", err=True)


def _peak_memory_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1_024


def _listed(statuses: Counter[int]) -> str:
    return ", ".join(f"{status} x {count:,}" for status, count in sorted(statuses.items()))


def _task_named(body: object) -> str:
    """Return the task id that a body names, as the vendor that signs it knows it."""
    holders = [body.get("data"), body] if isinstance(body, dict) else []
    for holder in holders:
        for name in ("task_id", "taskId"):
            if isinstance(holder, dict) and holder.get(name):
                return str(holder[name])
    return ""


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


@click.command()
@click.option("--seconds", default=60, show_default=True, help="Time to spend.")
def main(seconds: int) -> None:
    """Fuzz the public edge of a real process."""
    outcome = fuzz(seconds=seconds)
    show([outcome])
    sys.exit(1 if outcome.crashes else 0)


if __name__ == "__main__":
    main()
