"""Decide whether the bytes that stream by are one whole WAV file.

Responsible for: walking the chunks of RIFF, RIFX, RF64 and BW64 as they pass, and judging structure: whole, cut, not a
WAV at all, or one that cannot be kept as uncompressed audio. Pure: bytes in, a judgement out. It must not read or
write anything, and it must not judge how the audio sounds: that is quality's business, which only warns.

The check is ours because the usual audio libraries open a cut file and report success.

Sources: Multimedia Programming Interface and Data Specifications 1.0 (RIFF, RIFX), EBU Tech 3306 (RF64, ds64), ITU-R
BS.2088 (BW64).
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from downloader.wav_header import CONTAINERS, FMT_BYTES, Container, Fmt, describe, may_begin, parse_fmt
from shared.errors import PermanentError, Reason, RetryableError, WavekeepError
from shared.events import Format

_KNOWN_CHUNKS: Final = frozenset(CONTAINERS) | frozenset(
    b"fmt |data|fact|ds64|LIST|INFO|bext|JUNK|junk|PAD |FLLR|id3 |ID3 |cue |smpl|inst|iXML|_PMX|axml|chna|umid|PEAK|"
    b"DISP|acid|strc|cart|levl|plst|note|afsp|minf|elm1|regn|r64m|SAUR|AFAn|ResU".split(b"|")
)
_SECOND_FILE: Final = re.compile(rb"WAVE(?<=(?:RIFF|RIFX|RF64|BW64).{4}WAVE)", re.DOTALL)
"""Looks for the constant end first and then back: 15 times as fast as the same forwards."""

_UNKNOWN: Final = 0xFFFFFFFF
"""As a size: not known when the header was written, or (RF64, BW64) told by the ds64 chunk."""
_UNKNOWN_64: Final = 0xFFFFFFFFFFFFFFFF
_MAX_CHUNKS: Final = 10_000
"""Bounds the work per byte: a file of nothing but empty chunks would else cost a step for every eight of them."""
_DS64_BYTES: Final = 28 + 12 * 64


class Warning_(StrEnum):  # noqa: N801  the builtin `Warning` is an exception
    """What is odd about a file that is whole all the same."""

    STREAMING_HEADER = "streaming_header"
    RIFF_SIZE_DIFFERS = "riff_size_differs"
    PAD_BYTE_MISSING = "pad_byte_missing"
    TRAILING_BYTES = "trailing_bytes"
    LAST_CHUNK_CUT = "last_chunk_cut"
    PARTIAL_LAST_FRAME = "partial_last_frame"
    BYTE_RATE_DIFFERS = "byte_rate_differs"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A whole file: its format, and what is odd about it, in the order of `Warning_`."""

    format: Format
    warnings: tuple[Warning_, ...]


class Walker:
    """Walks one file, fed in pieces of any size, and judges it at its end.

    The judgement does not depend on how the file was cut into pieces. Memory is bounded: at most one `fmt` or `ds64`
    chunk is held, never audio. Skipping audio costs the same for any size of piece; only audio of open length is
    searched, for a second file. A refusal is final: once `feed` or `finish` raised, both raise the same error again.
    """

    def __init__(self) -> None:
        self._position = 0
        self._skip = 0
        self._pending = bytearray()
        self._need = 12
        self._step: Callable[[bytes], None] = self._read_signature
        self._tail: bytes | None = None
        """The latest bytes of what has no chunks (audio of open length, junk at the end); None while there are some."""
        self._refusal: WavekeepError | None = None

        self._container: Container | None = None
        self._order = "<"
        self._riff_end = 0
        self._sizes_64: dict[bytes, int] = {}
        self._fmt: Fmt | None = None
        self._chunks = 0
        self._chunk_end = 0
        self._data_start: int | None = None
        self._data_size: int | None = None
        """As announced; None where the audio goes on to the end of the file."""
        self._pad_missing = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the file.

        Raises:
            RetryableError: `not_wav`.
            PermanentError: `wav_invalid`, `wav_unsupported`.
        """
        if self._refusal is not None:
            raise self._refusal
        try:
            self._walk(memoryview(data))
        except WavekeepError as error:
            self._refusal = error
            raise

    def finish(self, *, body_proven_complete: bool) -> Judgement:
        """Judge the file: all its bytes were fed.

        Args:
            body_proven_complete: the transport told where the body ends, and it ended there. Only then may a header
                leave the length of the audio open.

        Returns:
            The judgement. `frames` counts whole frames; the duration follows from them.

        Raises:
            RetryableError: `not_wav`, or `wav_truncated` where audio is missing or there is none.
            PermanentError: `wav_invalid`.
        """
        if self._refusal is not None:
            raise self._refusal
        try:
            return self._judge(body_proven_complete=body_proven_complete)
        except WavekeepError as error:
            self._refusal = error
            raise

    def _walk(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            if self._tail is not None:
                self._scan_tail(view[at:])
                self._position += len(view) - at
                return
            if self._skip:
                taken = min(self._skip, len(view) - at)
                self._skip -= taken
            else:
                taken = min(self._need - len(self._pending), len(view) - at)
                self._pending += view[at : at + taken]
            at += taken
            self._position += taken
            if len(self._pending) == self._need:
                piece = bytes(self._pending)
                self._pending.clear()
                self._step(piece)

    def _expect(self, need: int, step: Callable[[bytes], None]) -> None:
        """Hand the next bytes to a step, after those that are to be skipped."""
        self._need, self._step = need, step

    def _u32(self, piece: bytes, at: int) -> int:
        return int.from_bytes(piece[at : at + 4], "big" if self._order == ">" else "little")

    def _read_signature(self, piece: bytes) -> None:
        self._container = CONTAINERS.get(piece[:4])
        if self._container is None or piece[8:12] != b"WAVE":
            raise RetryableError(Reason.NOT_WAV, describe(piece))
        self._order = ">" if self._container == "RIFX" else "<"
        self._riff_end = 8 + self._u32(piece, 4)
        self._expect(8, self._read_header)

    def _read_header(self, piece: bytes) -> None:
        start = self._position - len(piece)
        name, size = piece[:4], self._u32(piece, 4)
        if name in CONTAINERS:
            raise PermanentError(Reason.WAV_INVALID, f"a second file ({name.decode()}) begins at byte {start}")
        self._chunks += 1
        if self._data_start is not None and self._is_tail(start, name):
            self._scan_tail(piece)
            return
        if not _is_name(name):
            raise PermanentError(Reason.WAV_INVALID, f"no chunk can be named {name!r}, at byte {start}")
        if self._chunks > _MAX_CHUNKS:
            raise PermanentError(Reason.WAV_INVALID, f"more than {_MAX_CHUNKS} chunks before the audio")
        if size == _UNKNOWN:
            size = self._sizes_64.get(name, size)
        self._chunk_end = self._position + size
        if name == b"data":
            self._open_data(size)
        elif name == b"fmt " and self._data_start is None:
            if self._fmt is not None:
                raise PermanentError(Reason.WAV_INVALID, "has two fmt chunks")
            if size < 16:
                raise PermanentError(Reason.WAV_INVALID, f"its fmt chunk has {size} bytes, 16 is the least")
            self._expect(min(size, FMT_BYTES), self._read_fmt)
        elif name == b"ds64" and self._container in {"RF64", "BW64"} and self._data_start is None:
            if size < 28:
                raise PermanentError(Reason.WAV_INVALID, f"its ds64 chunk has {size} bytes, 28 is the least")
            self._expect(min(size, _DS64_BYTES), self._read_ds64)
        else:
            self._leave_chunk()

    def _is_tail(self, start: int, name: bytes) -> bool:
        """Tell whether what begins here, after the audio, lies outside the file's chunks."""
        assert self._data_start is not None
        data_end = self._data_start + (self._data_size or 0)
        return start >= self._riff_end >= data_end or not _is_name(name) or self._chunks > _MAX_CHUNKS

    def _scan_tail(self, piece: bytes | memoryview) -> None:
        """Skip what has no chunks, but look for a second file in it."""
        seam = (self._tail or b"") + bytes(piece[:11])
        if _SECOND_FILE.search(seam) or _SECOND_FILE.search(piece):
            raise PermanentError(Reason.WAV_INVALID, "a second file follows the first")
        self._tail = (seam if len(piece) < 11 else bytes(piece[-11:]))[-11:]

    def _leave_chunk(self) -> None:
        """Skip the rest of a chunk, and its pad byte if its size is odd."""
        odd = (self._chunk_end - self._position) % 2
        self._skip = self._chunk_end - self._position
        if odd:
            self._expect(5, self._read_pad)
        else:
            self._expect(8, self._read_header)

    def _read_pad(self, piece: bytes) -> None:
        """Step over a pad byte, unless its writer forgot it: then it is the first letter of a known name."""
        missing = piece[:4] in _KNOWN_CHUNKS and piece[1:] not in _KNOWN_CHUNKS
        self._pad_missing |= missing
        self._pending += piece if missing else piece[1:]
        self._expect(8, self._read_header)

    def _read_fmt(self, piece: bytes) -> None:
        self._fmt = parse_fmt(piece, self._order)
        self._leave_chunk()

    def _read_ds64(self, piece: bytes) -> None:
        riff_size, data_size, _, entries = struct.unpack_from("<QQQI", piece)
        if self._riff_end == 8 + _UNKNOWN:
            self._riff_end = 8 + riff_size
        for at in range(28, min(28 + 12 * entries, len(piece) - 11), 12):
            name, size = struct.unpack_from("<4sQ", piece, at)
            self._sizes_64[name] = size
        self._sizes_64[b"data"] = data_size
        self._leave_chunk()

    def _open_data(self, size: int) -> None:
        if self._fmt is None:
            raise PermanentError(Reason.WAV_INVALID, "its data chunk comes before any fmt chunk")
        if self._data_start is not None:
            raise PermanentError(Reason.WAV_INVALID, f"a second data chunk begins at byte {self._position - 8}")
        if size == _UNKNOWN and self._container in {"RF64", "BW64"} and b"data" not in self._sizes_64:
            raise PermanentError(Reason.WAV_INVALID, f"is {self._container} without a ds64 chunk")
        self._data_start = self._position
        if size == 0:
            self._data_size = 0
            self._expect(8, self._read_after_empty_data)
        elif self._is_open(size):
            self._data_size = None if size in {_UNKNOWN, _UNKNOWN_64} else size
            self._tail = b""
        else:
            self._data_size = size
            self._leave_chunk()

    def _read_after_empty_data(self, piece: bytes) -> None:
        """Tell audio whose length was left open from a data chunk that is empty and followed by another chunk."""
        if piece[:4] in _KNOWN_CHUNKS:
            self._read_header(piece)
        else:
            self._data_size = None
            self._scan_tail(piece)

    def _is_open(self, size: int) -> bool:
        """Tell whether a size of data is what writers to a pipe put there: one near 2 GiB or 4 GiB.

        The bands are 4 KiB wide, because some writers subtract the header or round down to whole pages.
        """
        if b"data" in self._sizes_64:
            return size == _UNKNOWN_64
        return 0x7FFFF000 <= size <= 0x80000000 or 0xFFFFF000 <= size <= _UNKNOWN

    def _judge(self, *, body_proven_complete: bool) -> Judgement:
        if self._container is None:
            head = bytes(self._pending)
            if may_begin(head):
                raise RetryableError(Reason.WAV_TRUNCATED, f"ends after {len(head)} bytes, within its first header")
            raise RetryableError(Reason.NOT_WAV, describe(head))
        if self._fmt is None or self._data_start is None:
            raise RetryableError(Reason.WAV_TRUNCATED, f"ends after {self._position} bytes, before any audio")
        size, streaming = self._measure_audio(self._data_start, body_proven_complete=body_proven_complete)
        frames, partial = divmod(size, self._fmt.block_align)
        if frames == 0:
            raise RetryableError(Reason.WAV_TRUNCATED, f"has no audio: {size} bytes in its data chunk, not one frame")
        warnings = {Warning_.STREAMING_HEADER} if streaming else self._outer_warnings()
        if partial:
            warnings.add(Warning_.PARTIAL_LAST_FRAME)
        if self._fmt.byte_rate_differs:
            warnings.add(Warning_.BYTE_RATE_DIFFERS)
        return Judgement(
            Format(
                container=self._container,
                codec=self._fmt.codec,
                sample_rate_hz=self._fmt.sample_rate_hz,
                channels=self._fmt.channels,
                bits_per_sample=self._fmt.bits_per_sample,
                frames=frames,
                duration_s=frames / self._fmt.sample_rate_hz,
            ),
            tuple(warning for warning in Warning_ if warning in warnings),
        )

    def _measure_audio(self, start: int, *, body_proven_complete: bool) -> tuple[int, bool]:
        """Return the size of the audio, and whether only the end of the body tells it."""
        present = self._position - start
        announced = self._data_size
        if announced is not None and present >= announced:
            return announced, False
        if announced is not None and not self._is_open(announced):
            raise RetryableError(
                Reason.WAV_TRUNCATED, f"its header announces {announced} bytes of audio, {present} are there"
            )
        if not body_proven_complete:
            raise RetryableError(
                Reason.WAV_TRUNCATED, "its header leaves the length open, and nothing proved that the body is complete"
            )
        return present, True

    def _outer_warnings(self) -> set[Warning_]:
        """Compare where the chunks end with where the file ends and where its header says it ends."""
        warnings: set[Warning_] = set()
        odd = self._step == self._read_pad
        rest = self._position - self._chunk_end
        if self._tail is not None or rest > odd:
            warnings.add(Warning_.TRAILING_BYTES)
        if rest < 0:
            warnings.add(Warning_.LAST_CHUNK_CUT)
        if self._pad_missing or (odd and rest == 0):
            warnings.add(Warning_.PAD_BYTE_MISSING)
        end = min(self._chunk_end, self._position)
        if end + end % 2 != self._riff_end + self._riff_end % 2:
            warnings.add(Warning_.RIFF_SIZE_DIFFERS)
        return warnings


def _is_name(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name)
