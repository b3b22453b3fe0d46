"""A server on loopback that answers with any bytes at all, and what tests of the fetcher need around it.

Responsible for: sockets of the tests' own, gone after each test. It must not know HTTP: each test writes its answers.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext, create_default_context
from typing import Any, Protocol, TypeVar

import uvloop
from aiohttp.abc import AbstractResolver, ResolveResult

from downloader.fence import Fence, parse_opening
from downloader.fetch import Fetched, Fetcher, Head, Held, Limits
from shared.errors import WavekeepError

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
T = TypeVar("T")

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LIMITS = Limits(max_bytes=1_000_000, min_bytes_per_s=1_000, attempt_timeout_s=5, connect_timeout_s=1, rate_window_s=0.4)
TLS = Path(__file__).parent / "tls"


class Run(Protocol):
    """Runs a coroutine to its end on one kind of event loop."""

    def __call__(self, story: Coroutine[Any, Any, T], /) -> T:
        """Return what the coroutine returns."""


@dataclass
class RawServer:
    """One server: where it listens and what it was asked."""

    port: int
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    def url(self, path: str = "/a.wav", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        """Return a URL of this server."""
        return f"{scheme}://{host}:{self.port}{path}"


class Fresh:
    """The half of a sink that knows of no earlier attempt."""

    def held(self, _link: str) -> Held | None:
        """Hold nothing yet."""
        return None

    def begin(self, head: Head) -> None:
        """Ask nothing of what follows."""


@dataclass
class Kept(Fresh):
    """A sink that keeps everything."""

    blocks: list[bytes] = field(default_factory=list)
    head: Head | None = None

    def begin(self, head: Head) -> None:
        """Keep what was said first."""
        self.head = head

    def write(self, block: bytes) -> None:
        """Keep the block."""
        self.blocks.append(block)

    @property
    def body(self) -> bytes:
        """Return all bytes."""
        return b"".join(self.blocks)


class ScriptedResolver(AbstractResolver):
    """Answers each question with the next of its answers; the last one repeats."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the next answer."""
        self.asked.append(host)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [resolved(host, address, port) for address in answer]

    async def close(self) -> None:
        """Hold nothing."""


def resolved(host: str, address: str, port: int) -> ResolveResult:
    """Return one answer of the DNS."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)


@contextmanager
def running(loop: str) -> Iterator[Run]:
    """Give a way to run coroutines on the loop of this name."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        yield runner.run


@asynccontextmanager
async def serving(
    answer: Answer, *, host: str = "127.0.0.1", port: int = 0, tls: SSLContext | None = None, unasked: bool = False
) -> AsyncIterator[RawServer]:
    """Serve one answer to each connection, once it has asked or even unasked, then close it."""
    handlers: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers[writer] = asyncio.current_task()
        told.connections += 1
        # a cancelled handler would be logged as a fault by the streams of Python 3.11
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if not unasked:
                told.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await answer(writer)
            writer.close()

    server = await asyncio.start_server(handle, host, port, ssl=tls)
    told = RawServer(server.sockets[0].getsockname()[1])
    try:
        yield told
    finally:
        server.close()
        for writer, task in handlers.items():
            assert task is not None
            task.cancel()
            await asyncio.wait((task,))
            if not writer.is_closing():
                writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
        await server.wait_closed()


def sending(*parts: bytes) -> Answer:
    """Return an answer that sends these parts, each on its own way through the network."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.03)

    return answer


def dripping(head: bytes, drop: bytes, *, pause_s: float = 0.02) -> Answer:
    """Return an answer that never ends, one drop at a time."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


def resetting(*parts: bytes) -> Answer:
    """Return an answer that ends in a reset of the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        await sending(*parts)(writer)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    return answer


def redirecting(location: str, *, status: int = 302, headers: str = "") -> Answer:
    """Return an answer that leads elsewhere."""
    return sending(f"HTTP/1.1 {status} Go\r\nLocation: {location}\r\n{headers}Content-Length: 0\r\n\r\n".encode())


def opened(*servers: RawServer, allowed_hosts: tuple[str, ...] = ()) -> Fence:
    """Return a fence that opens exactly these servers."""
    return Fence(tuple(parse_opening(f"127.0.0.1:{server.port}") for server in servers), allowed_hosts)


def trusting() -> SSLContext:
    """Return a client's context that trusts the tests' authority alone."""
    return create_default_context(cafile=str(TLS / "authority.pem"))


def showing(certificate: str) -> SSLContext:
    """Return a server's context with one of the tests' certificates."""
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{certificate}.pem")
    return context


async def attempt(fetcher: Fetcher, url: str, sink: Kept | None = None) -> Fetched | WavekeepError:
    """Fetch once; return what came of it, either way."""
    async with fetcher:
        try:
            return await fetcher.fetch(url, sink or Kept())
        except WavekeepError as error:
            return error
