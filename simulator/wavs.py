"""Make WAV files on the fly: any size, any flavour, good and broken, the same for the same seed.

Responsible for: bytes that can be served from any offset without ever holding a file. The audio is a real chord with a
little noise, about a second of it computed once and repeated without a seam; the second has an odd number of frames,
so that blocks of a file that were swapped or lost change its digest. It must not know who asks, or over what.
"""

import gzip
import math
import random
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256

RATE_HZ = 44_100
_LOOP_FRAMES = 44_101
_BLOCK_BYTES = 256 * 1024
_UNKNOWN = 0xFFFFFFFF


class Flavour(StrEnum):
    """What kind of file: first those that are whole, then those that are broken, foreign or not supported."""

    PCM16 = "pcm16"
    PCM24 = "pcm24"
    PCM8 = "pcm8"
    PCM32 = "pcm32"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    EXTENSIBLE = "extensible"
    RF64 = "rf64"
    BW64 = "bw64"
    RIFX = "rifx"
    WITH_LIST = "with_list"
    ODD = "odd"
    NO_PAD = "no_pad"
    TRAILING_JUNK = "trailing_junk"
    RIFF_SIZE_OFF = "riff_size_off"
    STREAMING_HEADER = "streaming_header"

    TRUNCATED = "truncated"
    HEADER_ONLY = "header_only"
    HTML = "html"
    MP3 = "mp3"
    GZIP = "gzip"
    SECOND_FILE = "second_file"
    BAD_BLOCK_ALIGN = "bad_block_align"
    ALAW = "alaw"
    ADPCM = "adpcm"


_BITS = {
    Flavour.PCM8: 8,
    Flavour.PCM24: 24,
    Flavour.PCM32: 32,
    Flavour.FLOAT32: 32,
    Flavour.FLOAT64: 64,
    Flavour.EXTENSIBLE: 24,
    Flavour.ODD: 24,
    Flavour.NO_PAD: 24,
    Flavour.ALAW: 8,
    Flavour.ADPCM: 8,
}
"""Of a sample; every other flavour has 16."""

_CODES = {Flavour.FLOAT32: 3, Flavour.FLOAT64: 3, Flavour.ALAW: 6}
"""Of the codec; every other flavour is PCM. Under A-law and ADPCM there is the sound of 8-bit PCM: noise."""

_LONG = frozenset({Flavour.RF64, Flavour.BW64})
_MONO = frozenset({Flavour.ODD, Flavour.NO_PAD})
_FOREIGN = frozenset({Flavour.HTML, Flavour.MP3, Flavour.GZIP})
_ADPCM_BLOCK_BYTES = 1024
_ADPCM_BLOCK_FRAMES = 1017


@dataclass(frozen=True, slots=True)
class _Piece:
    """A pattern, repeated until it fills its size; the last repetition may be cut."""

    pattern: bytes
    size: int

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        buffer = self.pattern if self.size <= len(self.pattern) else _repeat(self.pattern)
        while start < end:
            at = start % len(self.pattern)
            size = min(_BLOCK_BYTES, end - start)
            yield buffer[at : at + size]
            start += size


@lru_cache(maxsize=16)
def _repeat(pattern: bytes) -> bytes:
    """Return enough repetitions to cut a block from at any phase."""
    return pattern * (1 + math.ceil(_BLOCK_BYTES / len(pattern)))


@dataclass(frozen=True, slots=True)
class Wav:
    """A file that is nowhere: every byte is made when it is asked for."""

    flavour: Flavour
    pieces: tuple[_Piece, ...]

    @property
    def size_bytes(self) -> int:
        """The whole size."""
        return sum(piece.size for piece in self.pieces)

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Make the bytes from `start` up to, not including, `end`; what lies outside the file is left out.

        Memory is bounded by a block of 256 KiB and the second of audio, which files of one seed and sample share.

        Raises:
            ValueError: an offset is negative.
        """
        if start < 0 or (end is not None and end < 0):
            raise ValueError(f"offsets count from the beginning: {start}, {end}")
        at = 0
        for piece in self.pieces:
            last = piece.size if end is None else min(end - at, piece.size)
            yield from piece.blocks(max(start - at, 0), last)
            at += piece.size

    def sha256(self) -> str:
        """Return the digest of the whole file in hex. Makes all of it, which takes seconds for gigabytes."""
        digest = sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()


def wav(
    *, size_bytes: int | None = None, duration_s: float | None = None, seed: int = 0, flavour: str = Flavour.PCM16
) -> Wav:
    """Describe a file; nothing of it is made yet but a second of audio.

    Args:
        size_bytes: of the whole file, rounded down to whole frames (or whatever else the flavour is made of):
            the result's `size_bytes` is the truth. What is left of `truncated` has this size; `header_only` announces
            it.
        duration_s: of the audio, instead of a size; `truncated` announces it and holds half; what holds no audio is as
            large as a 16-bit WAV of this duration. With neither, one second.
        seed: decides the chord and the noise.
        flavour: one of `Flavour`.

    Raises:
        ValueError: an unknown flavour, both a size and a duration, no room for a single frame, or too much for a
            container whose sizes have 32 bits.
    """
    kind = Flavour(flavour)
    if size_bytes is not None and duration_s is not None:
        raise ValueError("give a size or a duration, not both")
    if kind in _FOREIGN:
        return _foreign(kind, wav(duration_s=duration_s).size_bytes if size_bytes is None else size_bytes, seed)
    if kind is Flavour.SECOND_FILE:
        half = wav(size_bytes=size_bytes and size_bytes // 2, duration_s=duration_s, seed=seed)
        return Wav(kind, half.pieces * 2)
    if size_bytes is None:
        frames = round((1.0 if duration_s is None else duration_s) * RATE_HZ)
        if kind is Flavour.TRUNCATED:
            frames //= 2
        if kind is Flavour.ADPCM:
            frames = math.ceil(frames / _ADPCM_BLOCK_FRAMES)
    else:
        frames = (size_bytes - sum(map(len, _surround(kind, _align(kind), seed)))) // _align(kind)
    if kind in _MONO and frames % 2 == 0:
        frames -= 1
    if frames < 1:
        raise ValueError(f"no room for a frame of {kind} in {size_bytes} bytes or {duration_s} s")
    size = frames * _align(kind)
    head, tail = _surround(kind, 2 * size if kind is Flavour.TRUNCATED else size, seed)
    pieces = [_Piece(head, len(head)), _Piece(_loop(kind, seed), size), _Piece(tail, len(tail))]
    return Wav(kind, tuple(pieces[:1] if kind is Flavour.HEADER_ONLY else pieces))


def _align(kind: Flavour) -> int:
    """Return the bytes of a frame; of a block, where frames are packed."""
    if kind is Flavour.ADPCM:
        return _ADPCM_BLOCK_BYTES
    return _BITS.get(kind, 16) // 8 * (1 if kind in _MONO else 2)


def _surround(kind: Flavour, data_size: int, seed: int) -> tuple[bytes, bytes]:
    """Return what comes before and after the audio. The lengths do not depend on the size of the audio."""
    fmt = _chunk(b"fmt ", _fmt(kind), kind)
    before = _info("before") if kind is Flavour.WITH_LIST else b""
    after = _info("after") if kind is Flavour.WITH_LIST else b"\0" if kind is Flavour.ODD else b""
    chunks = len(fmt) + len(before) + 8 + data_size + len(after)
    junk = b"\0" * 8 + random.Random(seed).randbytes(1_000) if kind is Flavour.TRAILING_JUNK else b""
    if kind in _LONG:
        ds64 = _chunk(b"ds64", struct.pack("<QQQI", 4 + 36 + chunks, data_size, data_size // _align(kind), 0), kind)
        head = kind.value.upper().encode() + _u32(_UNKNOWN, kind) + b"WAVE" + ds64
        return head + fmt + b"data" + _u32(_UNKNOWN, kind), after
    riff_size = 4 + chunks
    if kind is Flavour.RIFF_SIZE_OFF:
        riff_size += 1_000
    if kind is Flavour.STREAMING_HEADER:
        riff_size = data_size = _UNKNOWN
    name = b"RIFX" if kind is Flavour.RIFX else b"RIFF"
    head = name + _u32(riff_size, kind) + b"WAVE" + fmt + before + b"data" + _u32(data_size, kind)
    return head, after + junk


def _fmt(kind: Flavour) -> bytes:
    channels, bits, align = 1 if kind in _MONO else 2, _BITS.get(kind, 16), _align(kind)
    if kind is Flavour.ADPCM:
        byte_rate = RATE_HZ * align // _ADPCM_BLOCK_FRAMES
        return struct.pack("<HHIIHHHH", 0x11, channels, RATE_HZ, byte_rate, align, 4, 2, _ADPCM_BLOCK_FRAMES)
    if kind is Flavour.BAD_BLOCK_ALIGN:
        align -= 1
    order = ">" if kind is Flavour.RIFX else "<"
    code = 0xFFFE if kind is Flavour.EXTENSIBLE else _CODES.get(kind, 1)
    fmt = struct.pack(f"{order}HHIIHH", code, channels, RATE_HZ, RATE_HZ * align, align, bits)
    if kind is Flavour.EXTENSIBLE:
        front_left_and_right = 3
        guid = struct.pack("<IHH", 1, 0, 0x10) + bytes.fromhex("800000aa00389b71")
        return fmt + struct.pack("<HHI", 22, bits, front_left_and_right) + guid
    return fmt if code == 1 else fmt + struct.pack("<H", 0)


def _info(comment: str) -> bytes:
    """Return a LIST chunk with one comment."""
    text = f"{comment} the audio".encode() + b"\0"
    entry = _chunk(b"ICMT", text, Flavour.WITH_LIST) + b"\0" * (len(text) % 2)
    return _chunk(b"LIST", b"INFO" + entry, Flavour.WITH_LIST)


def _chunk(name: bytes, content: bytes, kind: Flavour) -> bytes:
    return name + _u32(len(content), kind) + content


def _u32(number: int, kind: Flavour) -> bytes:
    if number > _UNKNOWN:
        raise ValueError(f"{number} bytes are too many for {kind}; rf64 and bw64 have no such limit")
    return number.to_bytes(4, "big" if kind is Flavour.RIFX else "little")


def _foreign(kind: Flavour, size_bytes: int, seed: int) -> Wav:
    """Return a file that is no WAV: one unit of its kind at least, and as many as there is room for."""
    head = tail = b""
    if kind is Flavour.HTML:
        head = b"<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head><body>\n"
        unit = b"<p>The link has expired.</p>\n"
        tail = b"</body></html>\n"
    elif kind is Flavour.MP3:
        unit = b"\xff\xfb\x90\x64" + bytes(413)
    else:
        unit = gzip.compress(b"".join(wav(duration_s=0.05, seed=seed).blocks()), mtime=0)
    units = max(1, (size_bytes - len(head) - len(tail)) // len(unit))
    return Wav(kind, (_Piece(head, len(head)), _Piece(unit, units * len(unit)), _Piece(tail, len(tail))))


def _loop(kind: Flavour, seed: int) -> bytes:
    """Return the second of audio as this flavour writes it."""
    letter = "f" if _CODES.get(kind) == 3 else "i"
    return _encode(seed, letter, _BITS.get(kind, 16), mono=kind in _MONO, big=kind is Flavour.RIFX)


@lru_cache(maxsize=32)
def _encode(seed: int, letter: str, bits: int, *, mono: bool, big: bool) -> bytes:
    wave = _synthesise(seed)[:: 2 if mono else 1]
    if letter == "f":
        return _bytes_of(array("f" if bits == 32 else "d", wave), big=big)
    if bits == 8:
        return bytes(128 + round(value * 127) for value in wave)
    peak = (1 << (bits - 1)) - 1
    samples = array("h" if bits == 16 else "i", (round(value * peak) for value in wave))
    if bits != 24:
        return _bytes_of(samples, big=big)
    wide = _bytes_of(samples, big=False)
    packed = bytearray(len(samples) * 3)
    for place in range(3):
        packed[place::3] = wide[place::4]
    return bytes(packed)


def _bytes_of(samples: "array[float] | array[int]", *, big: bool) -> bytes:
    if big != (sys.byteorder == "big"):
        samples.byteswap()
    return samples.tobytes()


@lru_cache(maxsize=4)
def _synthesise(seed: int) -> "array[float]":
    """Return a major chord with noise, in stereo, between -1 and 1. Its tones fit the loop: it has no seam."""
    chance = random.Random(seed)
    root = chance.randrange(30, 90)
    sine = [0.2 * math.sin(math.tau * i / _LOOP_FRAMES) for i in range(_LOOP_FRAMES)]
    wave = array("d", bytes(16 * _LOOP_FRAMES))
    for i in range(_LOOP_FRAMES):
        tone = sum(sine[i * root * part % _LOOP_FRAMES] for part in (4, 5, 6))
        wave[2 * i] = tone + chance.uniform(-0.02, 0.02)
        wave[2 * i + 1] = tone + chance.uniform(-0.02, 0.02)
    return wave
