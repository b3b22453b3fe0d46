"""The sample file: something to fetch before any vendor called.

Responsible for: serving one short WAV on a loopback port of its own, so that the printed `curl` line works without
internet. Off by `WAVEKEEP_SAMPLE_FILE=false`. It must not serve anything else.
"""

import io
import math
import struct
import wave
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from downloader.fence import Opening, parse_opening
from shared.errors import StartError
from shared.operations import serving

HOST = "127.0.0.1"
PATH = "/sample.wav"
PORT = 9109
"""The same at each start where it is free, so that a printed `curl` line, and a download in hand, outlive a restart."""

_RATE_HZ = 44_100
_SECONDS = 2
_NOTES_HZ = (261.63, 329.63, 392.0, 523.25)


@asynccontextmanager
async def sample_file() -> AsyncGenerator[tuple[str, Opening], None]:
    """Serve while the context lasts; yields the link, and the opening of exactly this address and port."""
    body = make_sample()
    app = web.Application()

    async def get(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="audio/wav")

    app.router.add_get(PATH, get)
    async with AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(serving(app, HOST, PORT))
        except StartError:  # another one runs on this machine
            port = await stack.enter_async_context(serving(app, HOST, 0))
        yield f"http://{HOST}:{port}{PATH}", parse_opening(f"{HOST}:{port}")


def make_sample() -> bytes:
    """Return a rising chord: 2 s of 16-bit mono at 44.1 kHz."""
    frames = bytearray()
    each = _RATE_HZ * _SECONDS // len(_NOTES_HZ)
    for note in _NOTES_HZ:
        for i in range(each):
            fade = min(i, each - i, 400) / 400
            frames += struct.pack("<h", int(12_000 * fade * math.sin(2 * math.pi * note * i / _RATE_HZ)))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(_RATE_HZ)
        out.writeframes(bytes(frames))
    return file.getvalue()
