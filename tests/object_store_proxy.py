"""An HTTP proxy before an object store that misbehaves on demand: `python -m tests.object_store_proxy`.

Responsible for: every way a store fails under those who use it: refusing, being slow, hanging up in the middle of an
upload, doing what it was asked without saying so, and ignoring conditions. It must not keep anything itself.

A manner is told over HTTP on the control port (`PUT /manner`) and holds from the next request on; `GET /met` tells what
was treated so. Settings are environment variables: `PROXY_PORT`, `PROXY_CONTROL_PORT`, `PROXY_TARGET` (a URL).
"""

import asyncio
import os
import re
import signal
from datetime import UTC, datetime, timedelta

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

_LOOPBACK = "127.0.0.1"
_LARGEST_BYTES = 2**40
BEGUN = "2010-11-10T20:48:33.000Z"
"""When the stand-in says that every upload was begun, and so taken for dead; here it becomes a minute ago."""
_HOP_BY_HOP = {"transfer-encoding", "connection", "content-encoding", "content-length", "host"}


class Manner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests are treated.

    Attributes:
        times: matching requests this lasts for; null means until told otherwise.
        matching: a regular expression that `METHOD PATH?QUERY` of those that are meant holds.
        status: is answered, with `code` as S3 says it, in place of what the store says.
        done: the store is asked nevertheless, before that is answered.
        delay_s: before anything.
        cut: hang up once the request's head is there, in the middle of its body; or, where `done`, without an answer.
        dropped: headers that the store never sees.
        replaced: texts in the store's answer, by what they become.
        damaged: the last byte of the store's answer is another one.
    """

    times: int | None = None
    matching: str = ""
    status: int | None = None
    code: str = "InternalError"
    done: bool = False
    delay_s: float = 0
    cut: bool = False
    dropped: tuple[str, ...] = ()
    replaced: dict[str, str] = {}
    damaged: bool = False

    @property
    def harmless(self) -> bool:
        """Whether it does nothing at all."""
        return self == Manner()


class StoreProxy:
    """One proxy before one store."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        self._target = target
        self._session = session
        self._manner = Manner()
        self._left: int | None = None
        self._met: list[str] = []

    def routes(self) -> list[web.RouteDef]:
        """Return what is served on the control port."""
        return [web.get("/met", self._tell_met), web.put("/manner", self._take_manner)]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Treat a request as told."""
        manner = self._next(f"{request.method} {request.raw_path}")
        await asyncio.sleep(manner.delay_s)
        if manner.cut and not manner.done:
            await request.content.readany()
            return _hang_up(request)
        if manner.status is not None and not manner.done:
            await request.read()
            return _refuse(manner)
        answer = await self._pass(request, manner)
        if manner.done:
            return _hang_up(request) if manner.cut else _refuse(manner)
        return answer

    async def _pass(self, request: web.Request, manner: Manner) -> web.Response:
        left_out = _HOP_BY_HOP | set(manner.dropped)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in left_out}
        async with self._session.request(
            request.method,
            URL(self._target + request.raw_path, encoded=True),
            headers=headers,
            data=await request.read(),
            allow_redirects=False,
        ) as answer:
            body = await answer.read()
            for text, other in manner.replaced.items():
                body = body.replace(text.encode(), other.encode())
            lately = datetime.now(UTC) - timedelta(minutes=1)
            body = body.replace(BEGUN.encode(), f"{lately:%Y-%m-%dT%H:%M:%S}.000Z".encode())
            if manner.damaged and body:
                body = body[:-1] + bytes([body[-1] ^ 1])
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, body=body, headers=kept)

    def _next(self, line: str) -> Manner:
        if self._manner.harmless or not re.search(self._manner.matching, line) or self._left == 0:
            return Manner()
        if self._left is not None:
            self._left -= 1
        self._met.append(line)
        return self._manner

    async def _tell_met(self, _: web.Request) -> web.Response:
        return web.json_response(self._met)

    async def _take_manner(self, request: web.Request) -> web.Response:
        self._manner = msgspec.json.decode(await request.read(), type=Manner)
        self._left = self._manner.times
        self._met.clear()
        return web.Response(status=204)


def _refuse(manner: Manner) -> web.Response:
    return web.Response(status=manner.status or 500, text=f"<Error><Code>{manner.code}</Code></Error>")


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        proxy = StoreProxy(os.environ["PROXY_TARGET"], session)
        control = web.Application()
        control.add_routes(proxy.routes())
        app = web.Application(client_max_size=_LARGEST_BYTES)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runners = []
        for each, port in ((app, "PROXY_PORT"), (control, "PROXY_CONTROL_PORT")):
            runner = web.AppRunner(each, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, _LOOPBACK, int(os.environ[port])).start()
            runners.append(runner)
        await stop.wait()
        for runner in runners:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_main())
