"""Fetching: one guarded GET that streams a file into a sink.

Responsible for: asking for a link past the fence on every hop and every address, proving that the answer is the whole
of one plain body, and handing it on in blocks off the event loop. It must not judge what the bytes are, where they
go, or when to try again.

Each hop has a session of its own, used once: no cookie, credential, cached name or open connection is carried from
one download to another. Foreign exceptions are translated `from None`, because they quote the URL with its query.
"""

import asyncio
import concurrent.futures
import itertools
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Protocol, Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from downloader.answer import (
    REDIRECTS,
    Known,
    Transport,
    check_framing,
    check_range,
    check_status,
    cut,
    known_of,
    media_type,
    shown,
    translated,
    watch,
)
from downloader.digests import Promise, md5_hint, promises
from downloader.fence import Fence
from downloader.flow import Handover, Pace
from downloader.gate import Gate
from shared.errors import PermanentError, Reason, RetryableError
from shared.links import public

BLOCK_BYTES = 256 * 1024
"""A block is handed on once it has reached this size; together with what the line delivers at once it stays < 1 MiB."""

_READ_BUFFER_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """What an earlier attempt left of a file.

    Attributes:
        known: what the answer that it came with told of the whole.
    """

    size_bytes: int
    known: Known


@dataclass(frozen=True, slots=True)
class Head:
    """What an answer says before its bytes come.

    Attributes:
        link: that was asked for.
        offset: of the first byte that follows: 0, or as many as are held.
        known: see `Held`; None where the file cannot be told from another one, so that nobody could go on later.
        promised: digests of the whole file.
        md5_hint: what may be its MD5.
        size_bytes: of the whole file; None where it is not told.
    """

    link: str
    offset: int
    known: Known | None
    promised: tuple[Promise, ...]
    md5_hint: bytes | None
    size_bytes: int | None = None


class Sink(Protocol):
    """Where the bytes go."""

    def held(self, link: str) -> Held | None:
        """Return what is there already of the file behind a link; None for nothing."""

    def begin(self, head: Head) -> None:
        """Take note of what follows. Called once in a worker thread, before any bytes; only where a file follows."""

    def write(self, block: bytes) -> None:
        """Take the next block. Called in a worker thread, one call at a time, in order."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one attempt may take.

    Attributes:
        max_bytes: of a body.
        min_bytes_per_s: the least rate, over `rate_window_s` of waiting for the network; time in the sink is not held
            against the sender.
        attempt_timeout_s: for everything, redirects included.
        connect_timeout_s: for name, connection and TLS of one hop.
        rate_window_s: also the longest silence.
    """

    max_bytes: int
    min_bytes_per_s: float
    attempt_timeout_s: float
    connect_timeout_s: float = 10.0
    rate_window_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A body that arrived whole, as far as HTTP can tell: with `close_delimited` it cannot.

    Attributes:
        content_type: the media type without parameters, lower case; None where there was none.
        final_link: where the last redirect led, without its query.
        size_bytes: that came now.
        resumed_at: where an earlier attempt had broken off; 0 where all of it came now.
    """

    size_bytes: int
    transport: Transport
    content_type: str | None
    status: int
    final_link: str
    resumed_at: int = 0


class Fetcher:
    """The client. Building it touches no network; `start` needs a running loop.

    Args:
        fence: judges each URL and address.
        limits: of each attempt.
        executor: runs the sinks; None for the loop's own. Names are resolved in the loop's own.
        resolver: for tests.
        ssl_context: for tests.
    """

    def __init__(
        self,
        fence: Fence,
        limits: Limits,
        *,
        executor: concurrent.futures.Executor | None = None,
        user_agent: str | None = None,
        resolver: AbstractResolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._fence = fence
        self._limits = limits
        self._executor = executor
        self._headers = {"User-Agent": user_agent or _own_name(), "Accept": "*/*", "Accept-Encoding": "identity"}
        self._resolver = resolver
        self._ssl_context = ssl_context

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Make ready. Opens no connection."""
        self._resolver = self._resolver or aiohttp.ThreadedResolver()
        self._ssl_context = self._ssl_context or _verifying_context()

    async def close(self) -> None:
        """Let go of the resolver; attempts must have ended."""
        if self._resolver is not None:
            await self._resolver.close()

    async def fetch(self, url: str, sink: Sink) -> Fetched:
        """Stream the file into the sink: the rest of it where the sink holds its beginning, and the server agrees.

        Safe to cancel: once this has returned or raised, the sink is not written to any more. Memory is bounded by a
        few blocks whatever the size. What the sink raises passes unchanged.

        Raises:
            PermanentError: the fence refused, or the body is over `max_bytes` (`too_large`).
            RetryableError: anything else about the network or the answer; its reason says what.
        """
        try:
            async with asyncio.timeout(self._limits.attempt_timeout_s) as attempt:
                return await self._follow(self._fence.judge_url(url), url, sink)
        except TimeoutError:
            if not attempt.expired():
                raise
            raise RetryableError(
                Reason.TIMED_OUT, f"{public(url)}: not fetched within {self._limits.attempt_timeout_s:g} s"
            ) from None

    async def _follow(self, target: URL, link: str, sink: Sink) -> Fetched:
        held = sink.held(link)
        rest = {} if held is None else {"Range": f"bytes={held.size_bytes}-", "If-Range": held.known.validator}
        for hop in itertools.count(1):
            async with self._visit(target, rest) as response:
                if response.status not in REDIRECTS:
                    return await self._receive(response, link, held, sink)
                target = self._fence.judge_redirect(target, response.headers.get("Location", ""), hop)
        raise AssertionError  # the fence ends the loop

    @asynccontextmanager
    async def _visit(self, target: URL, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask for one URL; everything about this hop is closed at the end."""
        if self._resolver is None or self._ssl_context is None:
            raise RuntimeError("the fetcher was not started")
        gate = Gate(self._fence, target.scheme, self._resolver)
        connector = aiohttp.TCPConnector(
            resolver=gate,
            socket_factory=gate.open_socket,
            ssl=self._ssl_context,
            use_dns_cache=False,
            force_close=True,
            limit=0,
        )
        async with aiohttp.ClientSession(
            connector=connector,
            headers={**self._headers, **headers},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._limits.connect_timeout_s),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_READ_BUFFER_BYTES,
        ) as session:
            response = await self._ask(session, target, gate)
            try:
                yield response
            finally:
                response.close()

    async def _ask(self, session: aiohttp.ClientSession, target: URL, gate: Gate) -> aiohttp.ClientResponse:
        limit_s = self._limits.connect_timeout_s + self._limits.rate_window_s
        try:
            async with asyncio.timeout(limit_s):
                return await session.get(target, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            raise gate.refusal or translated(error, target) from None

    async def _receive(self, response: aiohttp.ClientResponse, link: str, held: Held | None, sink: Sink) -> Fetched:
        check_status(response, range_asked=held is not None)
        transport = check_framing(response, self._limits.max_bytes)
        closed = watch(response)
        following, offset, known = None, 0, known_of(response)
        promised = promises(response.headers, part=response.status == 206)
        if response.status == 206 and held is not None:
            offset, known, transport = held.size_bytes, held.known, "content_range"
            promised = tuple(dict.fromkeys((*held.known.promised, *promised)))
            following = check_range(response, offset=offset, known=known, max_bytes=self._limits.max_bytes)
        told = following if offset else response.content_length
        head = Head(
            link,
            offset,
            known,
            promised,
            md5_hint(response.headers),
            size_bytes=None if told is None else offset + told,
        )
        size_bytes = 0
        async with Handover(self._executor) as handover:
            await handover.run(partial(sink.begin, head))
            await handover.finish()  # what it refuses, it refuses now, and not when a slow sender has filled a block
            async for block in self._blocks(response, offset):
                size_bytes += len(block)
                await handover.run(partial(sink.write, block))
        if following not in {None, size_bytes}:
            raise RetryableError(Reason.BODY_CUT, f"{shown(response)}: {size_bytes} bytes came of {following}")
        if transport == "close_delimited" and closed is not None and closed.done() and closed.exception() is not None:
            raise RetryableError(Reason.BODY_CUT, f"{shown(response)}: the connection broke before it was closed")
        return Fetched(size_bytes, transport, media_type(response), response.status, shown(response), offset)

    async def _blocks(self, response: aiohttp.ClientResponse, offset: int) -> AsyncIterator[bytes]:
        """Collect what arrives into blocks, holding the sender to the size cap and the least rate."""
        clock = asyncio.get_running_loop().time
        pace = Pace(self._limits.min_bytes_per_s, self._limits.rate_window_s)
        received = gathered = 0
        parts: list[bytes] = []
        while True:
            asked_at = clock()
            part = await self._read(response)
            if not part:
                break
            received += len(part)
            if offset + received > self._limits.max_bytes:
                raise PermanentError(Reason.TOO_LARGE, f"{shown(response)}: over {self._limits.max_bytes} bytes")
            if not pace.holds(clock() - asked_at, len(part)):
                raise RetryableError(
                    Reason.TOO_SLOW, f"{shown(response)}: under {self._limits.min_bytes_per_s:g} bytes a second"
                )
            parts.append(part)
            gathered += len(part)
            if gathered >= BLOCK_BYTES:
                yield b"".join(parts)
                parts, gathered = [], 0
        if parts:
            yield b"".join(parts)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        window_s = self._limits.rate_window_s
        try:
            # The bound is on bytes of the body: framing that drips in counts as silence.
            async with asyncio.timeout(window_s):
                return await response.content.readany()
        except TimeoutError:
            raise RetryableError(Reason.TOO_SLOW, f"{shown(response)}: nothing for {window_s:g} s") from None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # RuntimeError: the line was lost before we asked
            raise cut(error, response) from None


def _own_name() -> str:
    try:
        return f"wavekeep/{version('wavekeep')}"
    except PackageNotFoundError:
        return "wavekeep/0"


def _verifying_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
