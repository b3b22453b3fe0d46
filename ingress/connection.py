"""The connections under the public edge: what never becomes a request is refused like one.

Responsible for: the time a head may take, and telling what aiohttp's own parser refuses as a problem document, logged
and counted once, without a word of what came: a request line may hold a token. It must not know callbacks.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from ingress.problems import Refusal, RefusedError

log = structlog.get_logger()

IDLE_S = 75.0
"""How long a connection may stay open between requests."""

LINGER_S = 1.0
"""How long what still comes of a refused body is thrown away, so that its sender sees the answer and not a reset."""

Refuse = Callable[[RefusedError], web.Response]
"""Counts and logs a refusal; returns its answer."""


class EdgeRunner(web.AppRunner):
    """Runs an application on bounded connections.

    Args:
        refuse: tells what the application never sees.
        head_timeout_s: how long the first request's head may take. Later heads have `IDLE_S`.
    """

    def __init__(self, app: web.Application, *, refuse: Refuse, head_timeout_s: float, **options: Any) -> None:
        super().__init__(app, keepalive_timeout=IDLE_S, lingering_time=LINGER_S, auto_decompress=False, **options)
        self._refuse = refuse
        self._head_timeout_s = head_timeout_s

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(plain, self._refuse, self._head_timeout_s, self._kwargs)


class _Server(web.Server):
    def __init__(self, plain: web.Server, refuse: Refuse, head_timeout_s: float, options: dict[str, Any]) -> None:
        super().__init__(_answering(plain.request_handler, refuse), request_factory=plain.request_factory, **options)
        self._refuse = refuse
        self._head_timeout_s = head_timeout_s

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._refuse, self._head_timeout_s, self._kwargs)


class _Connection(web.RequestHandler):
    def __init__(self, server: _Server, refuse: Refuse, head_timeout_s: float, options: dict[str, Any]) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._refuse = refuse
        self._head_timeout_s = head_timeout_s
        self._late: asyncio.TimerHandle | None = None
        self._heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._late = self._loop.call_later(self._head_timeout_s, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        super().data_received(data)

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
        response = self._refuse(error)
        response.force_close()
        return response

    def log_exception(self, *_: Any, **options: Any) -> None:
        """Say that a connection broke; whoever sends can break it, so no more than a line of information."""
        log.info("connection.broken", error=type(options.get("exc_info")).__name__)

    def _head_is_late(self) -> None:
        if self._request_count or self.transport is None:
            return
        if not self._heard:  # nobody to answer
            self.force_close()
            return
        response = self._refuse(RefusedError(Refusal.TOO_SLOW, f"Its head took over {self._head_timeout_s:g} s."))
        assert isinstance(response.body, bytes)
        head = (
            f"HTTP/1.1 {response.status} {response.reason}\r\nContent-Type: {response.content_type}\r\n"
            f"Content-Length: {len(response.body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + response.body)
        self.force_close()


def _answering(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], refuse: Refuse
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Refuse what aiohttp refuses before any middleware: an `Expect` that is not `100-continue`."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handle(request)
        except web.HTTPException:
            response = refuse(RefusedError(Refusal.MALFORMED, "It expects what is not given here."))
            response.force_close()
            return response

    return answer
