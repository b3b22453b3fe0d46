"""Read the audio of a file that was judged whole, block by block.

Responsible for: finding the samples by our own walker, and turning every encoding we keep into numbers between -1 and
1. It must not judge the file again: its format is taken from the judgement.
"""

from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downloader.wav import Walker
from shared.errors import WavekeepError
from shared.events import Format

Samples = NDArray[np.float64]

_BLOCK_SAMPLES: Final = 128 * 1024
"""A megabyte of numbers: small enough for a cache, large enough to make the steps between blocks cheap."""
_PIECE_BYTES: Final = 64 * 1024


class UnreadableError(Exception):
    """The file is not, or no longer, what was judged."""


class _Locator(Walker):
    """The walker, asked only for the place where the audio begins."""

    @property
    def audio_start(self) -> int | None:
        return self._data_start


def read_blocks(path: Path, format_: Format) -> Iterator[Samples]:
    """Read the frames that were judged; yields interleaved samples of whole frames, in memory bounded by one block.

    Raises:
        UnreadableError: the audio is not there, or shorter than judged.
        OSError: the disk fails.
    """
    align = format_.channels * format_.bits_per_sample // 8
    left = format_.frames
    most = max(1, _BLOCK_SAMPLES // format_.channels)
    with path.open("rb", buffering=0) as file:
        file.seek(_find_audio(file))
        while left:
            frames = min(left, most)
            yield decode(_read(file, frames * align), format_)
            left -= frames


def decode(raw: bytes | bytearray, format_: Format) -> Samples:
    """Turn bytes into samples; 1 is one step above the highest integer, so integers lose nothing."""
    order = ">" if format_.container == "RIFX" else "<"
    bits = format_.bits_per_sample
    if format_.codec == "float":
        return np.frombuffer(raw, f"{order}f{bits // 8}").astype(np.float64)
    if bits == 8:
        return (np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128
    whole: NDArray[Any]
    if bits == 24:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        first = 1 if order == "<" else 0
        wide[:, first : first + 3] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        whole, bits = wide.reshape(-1).view(f"{order}i4"), 32
    else:
        whole = np.frombuffer(raw, f"{order}i{bits // 8}")
    samples: Samples = whole * 0.5 ** (bits - 1)
    return samples


def full_scale(format_: Format) -> float:
    """Return the amplitude at and above which a sample is at full scale, on the positive side the highest there is."""
    return 1.0 if format_.codec == "float" else 1.0 - 0.5 ** (format_.bits_per_sample - 1)


def _find_audio(file: FileIO) -> int:
    locator = _Locator()
    while locator.audio_start is None:
        piece = file.read(_PIECE_BYTES)
        if not piece:
            raise UnreadableError("has no audio")
        try:
            locator.feed(piece)
        except WavekeepError as error:
            raise UnreadableError(error.detail) from error
    return locator.audio_start


def _read(file: FileIO, size: int) -> bytearray:
    raw = bytearray(size)
    view = memoryview(raw)
    while view:
        got = file.readinto(view)
        if not got:
            raise UnreadableError(f"ends {len(view)} bytes before the audio that was judged")
        view = view[got:]
    return raw
