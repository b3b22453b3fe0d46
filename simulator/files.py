"""The vendor's file host: `GET /files/{name}`, well-behaved or not.

Responsible for: answering with the planned bytes, whole or a range, and for every misbehaviour on the wire that a plan
asks for. What was asked and sent is counted in the ledger. It must not generate samples (`simulator.bodies`) or decide
what follows from a misbehaviour (`simulator.oracle`).

Source: RFC 9110 (range requests, section 14), RFC 9112 (message body length, section 6.3).
"""

import asyncio
import re
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from http import HTTPStatus
from typing import NamedTuple

from aiohttp import web

from simulator.bodies import blocks_of, etag_of
from simulator.conversions import utc_now
from simulator.ledger import Ledger, ServedFile
from simulator.plan import Fault, Framing, Ranges
from simulator.wavs import Flavour

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_ZEROS = bytes(65_536)
_PIECE_BYTES = 262_144


class Unframed(web.StreamResponse):
    """A response whose headers say what they are told, whatever its body: close-delimited, or of a false length."""

    _length_check = False


class Part(NamedTuple):
    """Which bytes are asked for: from start up to, not including, end."""

    start: int
    end: int


class Files:
    """Serves the files of every conversion.

    Args:
        ledger: knows the files and counts their requests.
        clock: returns the present, aware.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._sleep = sleep

    def routes(self) -> list[web.RouteDef]:
        """Return what this serves."""
        return [web.get("/files/{name}", self.get)]

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer one request for a file."""
        file = self._ledger.files.get(request.match_info["name"])
        if file is None:
            return _page(404, "NoSuchKey")
        fault = file.next_fault()
        if fault.delay_s:
            await self._sleep(fault.delay_s)
        if fault.black_hole:
            await asyncio.Event().wait()
        response = self._refusal(request, file) or _told_answer(request, fault)
        if response is not None:
            file.answers[response.status] += 1
            return response
        return await self._serve(request, file, fault)

    def _refusal(self, request: web.Request, file: ServedFile) -> web.Response | None:
        """Return what a strict host answers to a request without agent or valid link."""
        if file.requires_user_agent and not request.headers.get("User-Agent"):
            return _page(403, "AccessDenied")
        if request.query.get("Signature") not in file.links:
            return _page(403, "SignatureDoesNotMatch")
        if self._clock() > file.expires_at:
            return _page(403, "AccessDenied: request has expired")
        return None

    async def _serve(self, request: web.Request, file: ServedFile, fault: Fault) -> web.StreamResponse:
        size = file.size_bytes
        tag = f'"{file.fetches:x}"' if fault.ranges is Ranges.OTHER_ETAG else etag_of(file.plan)
        part = None if fault.gzip or fault.ranges is Ranges.IGNORED else _asked_part(request, size, tag)
        if part is not None and part.start >= part.end:
            file.answers[416] += 1
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        body = part or Part(0, size)
        response = _head(file, fault, part, tag, size)
        file.answers[response.status] += 1
        if request.method == "HEAD":
            return web.Response(status=response.status, headers=response.headers)
        await response.prepare(request)
        await self._send(request, response, file, fault, body)
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, file: ServedFile, fault: Fault, part: Part
    ) -> None:
        """Send the body as far as the fault lets it come."""
        limits = [each for each in (fault.cut_after_bytes, fault.stall_after_bytes) if each is not None]
        left = min(limits) if limits else None
        for block in _pieces(file, fault, part):
            piece = block if left is None else block[:left]
            if fault.bytes_per_s is None:
                await response.write(piece)
                file.bytes_served += len(piece)
            else:
                await self._drip(response, file, piece, fault.bytes_per_s)
            if left is not None:
                left -= len(piece)
                if left == 0:
                    break
        if fault.stall_after_bytes is not None:
            await asyncio.Event().wait()
        if fault.cut_after_bytes is not None or isinstance(response, Unframed):
            await _hang_up(request, reset=fault.reset)

    async def _drip(self, response: web.StreamResponse, file: ServedFile, piece: bytes, bytes_per_s: float) -> None:
        """Send a tenth of a second's worth at a time, and no less than one byte."""
        step = max(1, int(bytes_per_s / 10))
        for start in range(0, len(piece), step):
            drop = piece[start : start + step]
            await response.write(drop)
            file.bytes_served += len(drop)
            await self._sleep(len(drop) / bytes_per_s)


def _told_answer(request: web.Request, fault: Fault) -> web.Response | None:
    """Return the redirect or the status a fault asks for in place of the file."""
    hop = int(request.query.get("hop", "0")) if request.query.get("hop", "0").isdigit() else 0
    if hop < fault.redirect_hops:
        following = str(request.rel_url.update_query(hop=str(hop + 1)))
        return web.Response(status=302, headers={"Location": following})
    if fault.redirect_to is not None:
        target = str(request.rel_url) if fault.redirect_to == "loop" else fault.redirect_to
        return web.Response(status=302, headers={"Location": target})
    if fault.status is None:
        return None
    if fault.status in (204, 304):
        return web.Response(status=fault.status)
    return _page(fault.status, "Refused", retry_after_s=fault.retry_after_s)


def _page(status: int, code: str, *, retry_after_s: int | None = None) -> web.Response:
    """Return an error page as object stores answer it."""
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else {}
    known = status in {each.value for each in HTTPStatus}
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code></Error>\n'
    reason = None if known else "Refused"
    return web.Response(status=status, reason=reason, text=text, content_type="application/xml", headers=headers)


def _asked_part(request: web.Request, size: int, tag: str) -> Part | None:
    """Return the one range asked for; None where there is none, several, or one of another version of the file."""
    match = _RANGE.fullmatch(request.headers.get("Range", "").strip())
    if match is None or request.headers.get("If-Range", tag) != tag:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        return Part(max(0, size - int(last)), size)
    return Part(int(first), min(size, int(last) + 1) if last else size)


def _head(file: ServedFile, fault: Fault, part: Part | None, tag: str, size: int) -> web.StreamResponse:
    """Return the response with its headers, nothing sent yet."""
    framing = fault.framing
    if fault.endless or fault.gzip:
        framing = Framing.CHUNKED if framing is Framing.CONTENT_LENGTH else framing
    exact = framing is Framing.CHUNKED or (framing is Framing.CONTENT_LENGTH and not fault.content_length_off)
    status = 206 if part is not None or fault.ranges is Ranges.UNASKED else 200
    body = part or Part(0, size)
    response = (web.StreamResponse if exact else Unframed)(status=status)
    response.headers["Content-Type"] = "text/html" if file.plan.flavour is Flavour.HTML else "audio/wav"
    response.headers["ETag"] = tag
    if fault.ranges is not Ranges.IGNORED:
        response.headers["Accept-Ranges"] = "bytes"
    if status == 206:
        shift = 1 if fault.ranges is Ranges.SHIFTED else 0
        response.headers["Content-Range"] = f"bytes {body.start + shift}-{body.end - 1}/{size}"
    if fault.gzip:
        response.headers["Content-Encoding"] = "gzip"
    if fault.header_bytes:
        response.headers["X-Padding"] = "x" * fault.header_bytes
    if framing is Framing.CHUNKED:
        response.enable_chunked_encoding()
    elif framing is Framing.CONTENT_LENGTH:
        response.headers["Content-Length"] = str(max(0, body.end - body.start + fault.content_length_off))
    if not exact:
        response.force_close()
    return response


def _pieces(file: ServedFile, fault: Fault, part: Part) -> Iterator[bytes]:
    """Yield the body in pieces that bound the memory of one response."""
    blocks = blocks_of(file.plan, part.start, part.end)
    for block in _packed(blocks) if fault.gzip else blocks:
        for start in range(0, len(block), _PIECE_BYTES):
            yield block[start : start + _PIECE_BYTES]
    while fault.endless:
        yield _ZEROS


def _packed(blocks: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    for block in blocks:
        yield packer.compress(block)
    yield packer.flush()


async def _hang_up(request: web.Request, *, reset: bool) -> None:
    """Close the line under the response, by FIN once all is sent, or by RST.

    A reset throws away what is still buffered, so it waits until the kernel has taken it.
    """
    transport = request.transport
    if transport is None:
        return
    if not reset:
        transport.close()
        return
    while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110  # transports tell no one
        await asyncio.sleep(0.001)
    line: socket.socket | None = transport.get_extra_info("socket")
    if line is not None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
