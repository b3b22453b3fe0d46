"""A file host that does everything wrong at once, on loopback.

Responsible for: one answer a path, spelt byte by byte, over plain HTTP and over TLS that no client should trust. It
runs in a thread of its own and is gone afterwards. It must not know what anybody makes of its answers.
"""

import asyncio
import gzip
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

TLS = Path(__file__).parents[1] / "integration" / "tls"
UNTRUSTED = ("expired", "other", "self-signed")

_OK = b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\n"
_PARTIAL = b"HTTP/1.1 206 Partial Content\r\nContent-Type: audio/wav\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_FRAMES = bytes(range(256)) * 400
_FORMAT = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8_000, 16_000, 2, 16)
_DATA = b"data" + struct.pack("<I", len(_FRAMES)) + _FRAMES
_WAV = b"RIFF" + struct.pack("<I", 4 + len(_FORMAT + _DATA)) + b"WAVE" + _FORMAT + _DATA
_STREAMED = b"RIFF\xff\xff\xff\xffWAVE" + _FORMAT + b"data\xff\xff\xff\xff"
_HTML = b"<!DOCTYPE html><html><body>Please log in.</body></html>"

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def _sending(*parts: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return answer


def _forever(head: bytes, piece: bytes, *, pause_s: float = 0.0) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


def _framed(head: bytes, body: bytes = _WAV) -> Answer:
    return _sending(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def _bomb() -> bytes:
    return gzip.compress(bytes(50_000_000))


ANSWERS: Mapping[str, Answer] = MappingProxyType(
    {
        "endless": _forever(_OK + b"\r\n" + _STREAMED, b"x" * 65_536),
        "endless-chunks": _forever(
            _CHUNKED + b"%x\r\n" % len(_STREAMED) + _STREAMED + b"\r\n", b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
        ),
        "huge": _sending(_OK + b"Content-Length: 1099511627776\r\n\r\n"),
        "one-byte-a-second": _forever(_OK + b"Content-Length: 90000\r\n\r\n" + _STREAMED, b"x", pause_s=1),
        "a-head-one-byte-a-second": _forever(_OK + b"X: ", b"x", pause_s=1),
        "silent": _forever(b"", b"", pause_s=1),
        "length-too-long": _sending(_OK + b"Content-Length: %d\r\n\r\n" % (len(_WAV) + 1) + _WAV),
        "length-too-short": _sending(_OK + b"Content-Length: %d\r\n\r\n" % (len(_WAV) // 2) + _WAV),
        "chunked-and-cut": _sending(_CHUNKED + b"%x\r\n" % len(_WAV) + _WAV + b"\r\n"),
        "close-delimited-and-cut": _sending(_OK + b"\r\n" + _WAV[: len(_WAV) // 2]),
        "206-unasked": _framed(_PARTIAL + b"Content-Range: bytes 0-%d/%d\r\n" % (len(_WAV) - 1, len(_WAV))),
        "206-of-another-range": _framed(_PARTIAL + b"Content-Range: bytes 100-%d/999999\r\n" % (len(_WAV) + 99)),
        "206-of-another-etag": _framed(_PARTIAL + b'ETag: "b"\r\nContent-Range: bytes 0-%d/*\r\n' % (len(_WAV) - 1)),
        "204": _sending(b"HTTP/1.1 204 No Content\r\n\r\n"),
        "304": _sending(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        "html": _framed(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n", _HTML),
        "gzip-bomb": _framed(_OK + b"Content-Encoding: gzip\r\n", _bomb()),
        "gzip-bomb-under-a-wav-name": _framed(_OK, _bomb()),
        "header-bomb": _forever(_OK, b"X: " + b"y" * 4_000 + b"\r\n"),
        "http-0.9": _sending(_WAV),
        "reset": _sending(),
        "redirect-loop": _sending(b"HTTP/1.1 302 Found\r\nLocation: /redirect-loop\r\nContent-Length: 0\r\n\r\n"),
    }
)  # fmt: skip


@contextmanager
def serving() -> Iterator[Mapping[str, str]]:
    """Serve while the context lasts; yields where each answer is: a URL by name."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="hostile server")
    thread.start()
    try:
        stack = AsyncExitStack()
        yield asyncio.run_coroutine_threadsafe(_start(stack), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(stack: AsyncExitStack) -> Mapping[str, str]:
    """Open all servers; leaving the stack closes them, with whoever is still connected."""
    port = await _listen(stack, None)
    urls = {name: f"http://127.0.0.1:{port}/{name}" for name in ANSWERS}
    for name in UNTRUSTED:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / f"{name}.pem")
        urls[f"tls-{name}"] = f"https://127.0.0.1:{await _listen(stack, context)}/html"
    return urls


async def _listen(stack: AsyncExitStack, tls: ssl.SSLContext | None) -> int:
    answering: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            name = head.split()[1].decode().partition("?")[0].strip("/")
            await ANSWERS[name](writer)
        answering.discard(task)
        writer.close()

    async def end() -> None:
        server.close()
        for task in list(answering):
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        await server.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    stack.push_async_callback(end)
    port: int = server.sockets[0].getsockname()[1]
    return port
