"""A TCP proxy that breaks the line on demand: `python -m tests.faults.tcp_proxy`, a process of its own.

Responsible for: passing bytes between whoever connects and one target, and for every way a network fails in between.
It knows no protocol above TCP; with a certificate it is the end of TLS, as a balancer before a host is. It must not
know any service, nor judge what follows.

A manner is told over HTTP on the control port (`PUT /manner`) and holds for connections accepted from then on;
`GET /lines` counts them. Settings are environment variables: `PROXY_PORT`, `PROXY_CONTROL_PORT`, `PROXY_TARGET`
(`HOST:PORT`), `PROXY_CERTIFICATE` (a PEM file with its key).
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import struct
from typing import Literal

import msgspec
from aiohttp import web

_LOOPBACK = "127.0.0.1"
_PIECE_BYTES = 16 * 1024
_RST = struct.pack("ii", 1, 0)


class Manner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How lines are treated.

    Attributes:
        times: connections this lasts for, afterwards they are passed on untouched; null means until told otherwise.
        delay_s: wait before the target is reached.
        bytes_per_s: what the target sends comes this slowly.
        after_bytes: of what the target sends; then the line ends as `end` says. Null means never.
        end: by RST, by FIN, or not at all: silence in both directions on a line that stays open (`black_hole`).
        refuse: reset at once, the target never hears of it.
        certificate: a PEM file to present in place of the one set at start.
    """

    times: int | None = None
    delay_s: float = 0
    bytes_per_s: float | None = None
    after_bytes: int | None = None
    end: Literal["reset", "fin", "black_hole"] = "reset"
    refuse: bool = False
    certificate: str | None = None


class TcpProxy:
    """One proxy before one target.

    Args:
        host, port: of the target.
        certificate: makes it the end of TLS; None passes bytes as they are.
    """

    def __init__(self, host: str, port: int, *, certificate: str | None = None) -> None:
        self._target = (host, port)
        self._certificate = certificate
        self._context = _context(certificate) if certificate else None
        self._manner = Manner()
        self._left: int | None = None
        self._open = 0
        self._connections = 0
        self._bytes_passed = 0

    async def serve(self, port: int) -> asyncio.Server:
        """Accept on a port of loopback."""
        return await asyncio.start_server(self._accept, _LOOPBACK, port, ssl=self._context)

    def routes(self) -> list[web.RouteDef]:
        """Return what is served on the control port."""
        return [
            web.get("/lines", self._show),
            web.put("/manner", self._tell),
        ]

    async def _show(self, _: web.Request) -> web.Response:
        counts = {"connections": self._connections, "open": self._open, "bytes_passed": self._bytes_passed}
        return web.json_response(counts)

    async def _tell(self, request: web.Request) -> web.Response:
        try:
            manner = msgspec.json.decode(await request.read(), type=Manner)
        except msgspec.ValidationError as error:
            return web.Response(status=400, text=str(error))
        self._manner, self._left = manner, manner.times
        certificate = manner.certificate or self._certificate
        if self._context is not None and certificate is not None:
            self._context.load_cert_chain(certificate)
        return web.Response(status=204)

    def _next(self) -> Manner:
        if self._left is None:
            return self._manner
        self._left -= 1
        return self._manner if self._left >= 0 else Manner()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        manner = self._next()
        self._open += 1
        try:
            await self._pass(reader, writer, manner)
        except OSError:
            _reset(writer)
        finally:
            self._open -= 1
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner) -> None:
        if manner.refuse:
            _reset(writer)
            return
        await asyncio.sleep(manner.delay_s)
        there, back = await asyncio.open_connection(*self._target)
        asking = asyncio.create_task(_copy(reader, back))
        try:
            if await self._answer(there, writer, manner):
                await self._end(reader, writer, manner, asking)
            elif writer.can_write_eof():
                writer.write_eof()
        finally:
            asking.cancel()
            await asyncio.wait({asking})
            back.close()

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner) -> bool:
        """Pass on what the target sends; return whether the line is to end as the manner says."""
        left = manner.after_bytes
        most = _PIECE_BYTES if manner.bytes_per_s is None else max(1, int(manner.bytes_per_s / 10))
        while left != 0:
            piece = await there.read(most if left is None else min(most, left))
            if not piece:
                return False
            writer.write(piece)
            await writer.drain()
            self._bytes_passed += len(piece)
            left = None if left is None else left - len(piece)
            if manner.bytes_per_s is not None:
                await asyncio.sleep(len(piece) / manner.bytes_per_s)
        return True

    async def _end(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner, asking: asyncio.Task[None]
    ) -> None:
        if manner.end == "reset":
            _reset(writer)
        elif manner.end == "black_hole":
            await asyncio.wait({asking})  # the one who asked hangs up, sooner or later


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the line ends, either way."""
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a line by RST; what the kernel has taken but not sent is lost, as it would be."""
    line: socket.socket | None = writer.get_extra_info("socket")
    if line is not None and line.fileno() >= 0:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    writer.transport.abort()


def _context(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def _main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host, _, port = os.environ["PROXY_TARGET"].rpartition(":")
    proxy = TcpProxy(host, int(port), certificate=os.environ.get("PROXY_CERTIFICATE"))
    server = await proxy.serve(int(os.environ["PROXY_PORT"]))
    app = web.Application()
    app.add_routes(proxy.routes())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, _LOOPBACK, int(os.environ["PROXY_CONTROL_PORT"])).start()
    await stop.wait()
    server.close()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_main())
