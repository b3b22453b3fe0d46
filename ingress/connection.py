"""The connections under the public edge: what never becomes a request is refused like one.

Responsible for: the time and size a head may take, closing whoever gives way to others, and telling what aiohttp's own
parser refuses as a problem document, logged and counted once, without a word of what came: a request line may hold a
token. It must not know callbacks, nor decide who gives way: that is `ingress.hall`.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import structlog
from aiohttp import StreamReader, web
from aiohttp.streams import EMPTY_PAYLOAD

from ingress.hall import Hall
from ingress.metrics import IngressMetrics
from ingress.problems import Refusal, RefusedError

log = structlog.get_logger()

IDLE_S = 75.0
"""How long a connection may stay open between requests."""

LINGER_S = 1.0
"""How long what still comes of a refused body is thrown away, so that its sender sees the answer and not a reset."""

LARGEST_HEAD_BYTES = 16 * 1024

BACKLOG = 2_048
"""How many connections may wait to be taken: whoever comes when it is full tries again only after a second."""

_READ_BUFFER_BYTES = 32 * 1024
"""What may wait of a body that nobody reads; aiohttp stops to read at twice as much."""

_RECEIVE_BUFFER_BYTES = 32 * 1024
"""What the system keeps of what we do not read; Linux takes it twice. A single read brings no more either."""

_HEADERS = 64

_CROWDED_EVERY_S = 60.0

Refuse = Callable[[RefusedError], web.Response]
"""Counts and logs a refusal; returns its answer."""


class EdgeRunner(web.AppRunner):
    """Runs an application on bounded connections.

    Args:
        refuse: tells what the application never sees.
        head_timeout_s: how long a head may take, from the start of the connection or from its own first byte.
        connections: how many may be open.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        refuse: Refuse,
        metrics: IngressMetrics,
        head_timeout_s: float,
        connections: int,
        **options: Any,
    ) -> None:
        super().__init__(
            app,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER_BYTES,
            max_headers=_HEADERS,
            **options,
        )
        self._edge = _Edge(refuse, metrics, head_timeout_s, connections)

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(plain, self._edge, self._kwargs)


class _Edge:
    """What all connections share."""

    def __init__(self, refuse: Refuse, metrics: IngressMetrics, head_timeout_s: float, connections: int) -> None:
        self.refuse = refuse
        self.head_timeout_s = head_timeout_s
        self.hall: Hall[_Connection] = Hall(connections)
        self._metrics = metrics
        self._told_at = -_CROWDED_EVERY_S
        metrics.connections.set_function(lambda: len(self.hall))

    def enter(self, connection: "_Connection") -> None:
        """Take a connection in; close the one that gives way."""
        leaving = self.hall.enter(connection)
        if leaving is None:
            return
        self._metrics.displaced.inc()
        leaving.give_way()
        if monotonic() - self._told_at >= _CROWDED_EVERY_S:
            self._told_at = monotonic()
            log.warning("connections.crowded", most=self.hall.most, detail="one is closed for each that comes")


class _Server(web.Server):
    def __init__(self, plain: web.Server, edge: _Edge, options: dict[str, Any]) -> None:
        super().__init__(_answering(plain.request_handler, edge), request_factory=plain.request_factory, **options)
        self._edge = edge

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._edge, self._kwargs)


class _Connection(web.RequestHandler):
    def __init__(self, server: _Server, edge: _Edge, options: dict[str, Any]) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._edge = edge
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._body: StreamReader = EMPTY_PAYLOAD
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        with suppress(OSError):  # it may be gone already
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._late = self._loop.call_later(self._edge.head_timeout_s, self._head_is_late)
        self._edge.enter(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._in_time()
        self._read()
        self._edge.hall.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        requests, part_of_a_head = self._request_count, self._body.is_eof()
        super().data_received(data)
        if self._request_count != requests:
            self.asked(self._messages[-1][1])
        elif part_of_a_head and data:
            self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD_BYTES:
                self._refuse_head(RefusedError(Refusal.MALFORMED, f"Its head is over {LARGEST_HEAD_BYTES} bytes."))
            elif self._late is None and not self._busy:
                self._late = self._loop.call_later(self._edge.head_timeout_s, self._head_is_late)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._loop.call_later(self._edge.head_timeout_s, self.give_way)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def give_way(self) -> None:
        """Close, and wait for nobody to read what is still to be written."""
        transport = self.transport
        self.force_close()
        if transport is not None and self.writing_paused:
            transport.abort()

    def asked(self, body: StreamReader) -> None:
        """Note that a head is whole, and which body follows it."""
        self._body = body
        self._head_bytes = 0
        self._in_time()
        if not self._busy:
            self._busy = True
            self._edge.hall.busy(self)

    @property
    def pipelined(self) -> bool:
        """Whether requests wait behind this one. No vendor does that; whoever does could stay at work for ever."""
        return bool(self._messages)

    def answered(self, *, known: bool) -> None:
        """Note that a request is answered, but for the writing; `known`: it was a callback that was taken."""
        if not self._messages:
            self._busy = False
            self._edge.hall.idle(self, known=known)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        if status < 500:
            error = RefusedError(Refusal.MALFORMED, "It is not a valid HTTP request.")
        else:
            log.error("callback.failed", exc_info=exc)
            error = RefusedError(Refusal.FAULT, "It was logged; send the callback again.")
        response = self._edge.refuse(error)
        response.force_close()
        return response

    def log_exception(self, *_: Any, **options: Any) -> None:
        """Say that a connection broke; whoever sends can break it, so no more than a line of information."""
        log.info("connection.broken", error=type(options.get("exc_info")).__name__)

    def _head_is_late(self) -> None:
        self._late = None
        if self._head_bytes:
            self._refuse_head(RefusedError(Refusal.TOO_SLOW, f"Its head took over {self._edge.head_timeout_s:g} s."))
        else:  # nobody to answer
            self.force_close()

    def _refuse_head(self, error: RefusedError) -> None:
        """Answer a head that is not waited for any longer, and close."""
        if self.transport is None:
            return
        response = self._edge.refuse(error)
        assert isinstance(response.body, bytes)
        head = (
            f"HTTP/1.1 {response.status} {response.reason}\r\nContent-Type: {response.content_type}\r\n"
            f"Content-Length: {len(response.body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + response.body)
        self.force_close()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def _answering(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], edge: _Edge
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Let the connection go once its request is answered; refuse what aiohttp refuses before any middleware.

    That is an `Expect` other than `100-continue`.
    """

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        connection, known = request.protocol, False
        assert isinstance(connection, _Connection)
        connection.asked(request.content)
        try:
            response = await handle(request)
            known = response.status == 200 and request.method == "POST"
            if connection.pipelined:
                response.force_close()
            return response
        except web.HTTPException:
            response = edge.refuse(RefusedError(Refusal.MALFORMED, "It expects what is not given here."))
            response.force_close()
            return response
        finally:
            connection.answered(known=known)

    return answer
