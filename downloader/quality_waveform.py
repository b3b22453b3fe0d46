"""The waveform of a file: peaks for players, and a picture for people.

Responsible for: lowest and highest sample of each stretch of a file while it streams by, as JSON and as PNG, of a
bounded size whatever the duration. Pure: bytes come out. It must not write them anywhere.

Source: BBC audiowaveform, "Waveform data file format", JSON version 2: what peaks.js and waveform-data.js read.
"""

from io import BytesIO
from typing import Final

import msgspec
import numpy as np
from PIL import Image

from downloader.quality_audio import Samples
from shared.events import Format

MOST_PIXELS: Final = 4_096
"""Stretches in the peaks: enough to zoom in once or twice; at two channels 64 kB of JSON at most."""
LEAST_SAMPLES_PER_PIXEL: Final = 256
WIDTH: Final = 1_600
HEIGHT: Final = 256
_COLOUR: Final = (0x2F, 0x6F, 0xA7)
_GROUND: Final = (0xFF, 0xFF, 0xFF)


class Peaks(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON: `data` holds minimum and maximum of each channel in turn, for each pixel in turn."""

    version: int = 2
    channels: int
    sample_rate: int
    samples_per_pixel: int
    bits: int = 8
    length: int
    data: list[int]


class Waveform:
    """Lowest and highest sample of each stretch.

    Args:
        format_: as judged; the number of frames decides the length of a stretch.
    """

    def __init__(self, format_: Format) -> None:
        self._rate_hz = format_.sample_rate_hz
        self._per_pixel = max(LEAST_SAMPLES_PER_PIXEL, -(-format_.frames // MOST_PIXELS))
        self._length = -(-format_.frames // self._per_pixel)
        self._low = np.full((format_.channels, self._length), np.inf)
        self._high = np.full((format_.channels, self._length), -np.inf)
        self._frames = 0

    def take(self, planar: Samples) -> None:
        """Take the next frames, one row a channel. A stretch may begin in one block and end in another."""
        first, into = divmod(self._frames, self._per_pixel)
        starts = np.arange(-into, planar.shape[1], self._per_pixel).clip(0)
        pixels = slice(first, first + len(starts))
        self._low[:, pixels] = np.minimum(self._low[:, pixels], np.minimum.reduceat(planar, starts, axis=1))
        self._high[:, pixels] = np.maximum(self._high[:, pixels], np.maximum.reduceat(planar, starts, axis=1))
        self._frames += planar.shape[1]

    def peaks(self) -> bytes:
        """Return the JSON of all frames, once they were taken."""
        pairs = np.stack((self._low, self._high), axis=-1).transpose(1, 0, 2)
        data = np.floor(pairs * 128).clip(-128, 127).astype(np.int8)
        return msgspec.json.encode(
            Peaks(
                channels=len(self._low),
                sample_rate=self._rate_hz,
                samples_per_pixel=self._per_pixel,
                length=self._length,
                data=data.reshape(-1).tolist(),
            )
        )

    def picture(self) -> bytes:
        """Return the PNG: one lane a channel, the whole file from left to right."""
        starts = np.arange(WIDTH) * self._length // WIDTH
        lanes = np.array_split(np.zeros((HEIGHT, WIDTH), np.uint8), len(self._low))
        for lane, low, high in zip(lanes, self._low, self._high, strict=True):
            half = (len(lane) - 1) / 2
            rows = np.arange(len(lane))[:, None]
            top = np.floor(half - np.maximum.reduceat(high, starts).clip(-1, 1) * half)
            bottom = np.ceil(half - np.minimum.reduceat(low, starts).clip(-1, 1) * half)
            lane[(rows >= top) & (rows <= bottom)] = 1
        image = Image.frombytes("P", (WIDTH, HEIGHT), np.concatenate(lanes).tobytes())
        image.putpalette(_GROUND + _COLOUR)
        png = BytesIO()
        image.save(png, "PNG", optimize=True)
        return png.getvalue()
