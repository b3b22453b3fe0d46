"""A real ingress on loopback with a publisher that remembers, and raw connections to it.

Responsible for: starting and ending it, and sending it any bytes at all. It must not judge the answers.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import structlog
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from ingress.app import Ingress
from ingress.settings import IngressSettings
from tests.recording import RecordingPublisher

TOKEN = "t0ken-of-apibox"
OLD_KEY = "older-key"
NEW_KEY = "newer-key"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TIMEOUT_S = 0.4
PATH = f"/callbacks/apibox?token={TOKEN}"
BODY = b'{"code": 501, "msg": "failed", "data": {"task_id": "t1"}}'
PATIENCE_S = 10
CHUNKED = {"content_length": "", "transfer_encoding": "chunked"}


@dataclass(frozen=True)
class Answer:
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document, which it must be."""
        assert self.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = msgspec.json.decode(self.body)
        assert set(document) == {"type", "title", "status", "detail"}
        assert document["status"] == self.status
        return document

    @property
    def refusal(self) -> str:
        """The refusal that the problem document names."""
        kind: str = self.problem["type"]
        return kind.removeprefix("urn:wavekeep:problem:")


@dataclass
class Edge:
    """A running ingress, and what it has done."""

    port: int
    publisher: RecordingPublisher
    registry: CollectorRegistry
    lines: list[dict[str, Any]] = field(default_factory=list)

    def counted(self, refusal: str | None = None) -> float:
        """Return how many requests were refused, of one kind or of all."""
        found = [
            sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "wavekeep_ingress_callbacks_refused_total" and refusal in {None, sample.labels["refusal"]}
        ]
        assert found, refusal
        return sum(found)

    def accepted(self) -> float:
        """Return how many callbacks were counted as accepted."""
        return sum(
            sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "wavekeep_ingress_callbacks_accepted_total"
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a raw connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def send(self, *parts: bytes) -> Answer:
        """Send raw bytes on a connection of their own; return the answer, which must come in time."""
        async with self.connected() as (reader, writer):
            with suppress(ConnectionError):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
            return await answer_from(reader)

    async def post(self, body: bytes = BODY, *, path: str = PATH, **headers: str) -> Answer:
        """Post a body with headers, JSON unless told otherwise; an empty header is left out."""
        return await self.send(request(body, path=path, **headers))


def request(body: bytes = BODY, *, path: str = PATH, method: str = "POST", **headers: str) -> bytes:
    """Write a request; names of headers have _ for -, and an empty value leaves one out."""
    fields = {"host": "x", "content_type": "application/json", "content_length": str(len(body))} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def answer_from(reader: asyncio.StreamReader) -> Answer:
    """Read one answer."""
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(status.split()[1]), headers, body)


@contextmanager
def listening_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Collect what the ingress logs, however loggers were configured before."""
    capture = structlog.testing.LogCapture()
    processors: list[Any] = [structlog.processors.ExceptionRenderer(), capture]
    for module in ("http", "connection", "app"):
        logger = structlog.wrap_logger(None, processors=processors, wrapper_class=structlog.BoundLogger)
        monkeypatch.setattr(f"ingress.{module}.log", logger)
    yield capture.entries  # type: ignore[misc]


@asynccontextmanager
async def running(lines: list[dict[str, Any]], **settings: Any) -> AsyncIterator[Edge]:
    """Run an ingress: apibox with a token, kie with two keys, sunoapi not at all."""
    publisher, registry = RecordingPublisher(), CollectorRegistry()
    defaults: dict[str, Any] = {
        "ingress_port": 0,
        "ingress_body_timeout_s": TIMEOUT_S,
        "grace_time_s": 1,
        "apibox_callback_tokens": (SecretStr(TOKEN),),
        "kie_hmac_keys": (SecretStr(OLD_KEY), SecretStr(NEW_KEY)),
    }
    service = Ingress(IngressSettings(**(defaults | settings)), publisher, registry, clock=lambda: NOW)
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(stop))
    try:
        async with asyncio.timeout(PATIENCE_S):
            await service.listening.wait()
        assert service.port is not None
        yield Edge(service.port, publisher, registry, lines)
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await task


def told(edge: Edge, caplog: pytest.LogCaptureFixture) -> str:
    """Return everything that was logged, by us or by libraries."""
    formatter = logging.Formatter()
    return "\n".join([*map(repr, edge.lines), *map(formatter.format, caplog.records)])


def refused_once(edge: Edge, refusal: str) -> None:
    """Check that one request was refused: nothing published, one line, one count, of the same closed reason."""
    assert edge.publisher.published == []
    assert edge.counted(refusal) == edge.counted() == 1
    (line,) = [line for line in edge.lines if line["event"].startswith("callback.")]
    assert (line["event"], line["refusal"]) == ("callback.refused", refusal)


def document(**data: object) -> bytes:
    """Write a callback of failure with this in its data."""
    return json.dumps({"code": 501, "data": {"task_id": "t1", **data}}).encode()


def chunks(body: bytes, size: int = 7) -> bytes:
    """Write a body in chunks."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"
