"""Read what the fixed parts of a WAV file say: its first twelve bytes, and its `fmt` chunk.

Responsible for: naming the container, refusing codecs and numbers that cannot be kept or cannot be, and telling a
person what is there where a WAV should be. Pure. It must not know where in the file it is: that is `downloader.wav`.

Sources: Microsoft's `mmreg.h` (format codes, WAVE_FORMAT_EXTENSIBLE), the signatures in each format's own definition.
"""

import struct
from dataclasses import dataclass
from typing import Final, Literal

from shared.errors import PermanentError, Reason

Container = Literal["RIFF", "RIFX", "RF64", "BW64"]
Codec = Literal["pcm", "float"]

CONTAINERS: Final[dict[bytes, Container]] = {b"RIFF": "RIFF", b"RIFX": "RIFX", b"RF64": "RF64", b"BW64": "BW64"}
FMT_BYTES: Final = 40
"""What there is to read of a `fmt` chunk, the extension included."""

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_CODECS: Final = {
    0x0002: "Microsoft ADPCM",
    0x0006: "A-law",
    0x0007: "mu-law",
    0x0011: "IMA ADPCM",
    0x0031: "GSM 6.10",
    0x0050: "MPEG audio",
    0x0055: "MP3",
    0x00FF: "AAC",
    0x0161: "Windows Media Audio",
    0x2000: "AC-3",
    0xF1AC: "FLAC",
}
_SUBFORMAT_TAIL: Final = (0x0000, 0x0010, bytes.fromhex("800000aa00389b71"))
"""What follows the format code in the GUID of an extensible format."""

_BEGINNINGS: Final = (
    (b"\x1f\x8b", "gzip data"),
    (b"ID3", "an MP3 file"),
    (b"fLaC", "a FLAC file"),
    (b"OggS", "an Ogg file"),
    (b"FORM", "an AIFF file"),
    (b"PK\x03\x04", "a ZIP archive"),
)
_TEXT_BEGINNINGS: Final = (
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<head", "an HTML page"),
    (b"<body", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"<", "an HTML or XML page"),
    (b"{", "JSON"),
    (b"[", "JSON"),
)


@dataclass(frozen=True, slots=True)
class Fmt:
    """What a `fmt` chunk says."""

    codec: Codec
    sample_rate_hz: int
    channels: int
    bits_per_sample: int
    block_align: int
    byte_rate_differs: bool


def parse_fmt(piece: bytes, order: str) -> Fmt:
    """Read a `fmt` chunk and refuse what is compressed or cannot be.

    Args:
        piece: its first bytes, 16 at least and `FMT_BYTES` at most.
        order: of its numbers, as `struct` writes it.

    Raises:
        PermanentError: `wav_unsupported`, `wav_invalid`.
    """
    code, channels, rate, byte_rate, align, bits = struct.unpack_from(f"{order}HHIIHH", piece)
    if code == _EXTENSIBLE:
        code = _parse_extension(piece, order, bits)
    if code not in {_PCM, _FLOAT}:
        known = _CODECS.get(code)
        raise PermanentError(
            Reason.WAV_UNSUPPORTED, f"holds {known} audio" if known else f"holds audio of the unknown codec {code:#06x}"
        )
    codec: Codec = "pcm" if code == _PCM else "float"
    if bits not in ({8, 16, 24, 32} if codec == "pcm" else {32, 64}):
        raise PermanentError(Reason.WAV_INVALID, f"a {codec} sample cannot have {bits} bits")
    if not channels or not rate:
        raise PermanentError(Reason.WAV_INVALID, f"has {channels} channels at {rate} Hz")
    if align != channels * bits // 8:
        raise PermanentError(
            Reason.WAV_INVALID, f"block align {align} cannot be with {channels} channels of {bits} bits"
        )
    return Fmt(codec, rate, channels, bits, align, byte_rate != rate * align)


def _parse_extension(piece: bytes, order: str, bits: int) -> int:
    """Return the format code that an extensible format hides in its GUID."""
    if len(piece) < FMT_BYTES:
        raise PermanentError(Reason.WAV_INVALID, f"its extensible format has {len(piece)} bytes, 40 is the least")
    valid_bits, _, code, *tail = struct.unpack_from(f"{order}HIIHH8s", piece, 18)
    if valid_bits > bits:
        raise PermanentError(Reason.WAV_INVALID, f"{valid_bits} valid bits cannot be in a sample of {bits} bits")
    if tuple(tail) != _SUBFORMAT_TAIL:
        raise PermanentError(Reason.WAV_UNSUPPORTED, f"holds audio of the unknown sub-format {piece[24:40].hex()}")
    return int(code)


def may_begin(head: bytes) -> bool:
    """Tell whether fewer than 12 bytes could be the beginning of a WAV file. None at all is no beginning."""
    return head != b"" and b"WAVE".startswith(head[8:]) and any(name.startswith(head[:4]) for name in CONTAINERS)


def describe(head: bytes) -> str:
    """Say what a file that is no WAV looks like, from its first 12 bytes."""
    if not head:
        return "is empty"
    if head[:4] in CONTAINERS:
        return f"is a {head[:4].decode()} file of the kind {head[8:12]!r}, not WAVE"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, what in _TEXT_BEGINNINGS:
        if text.startswith(beginning):
            return f"starts with {what}"
    return f"starts like {_describe_binary(head)}"


def _describe_binary(head: bytes) -> str:
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            return what
    if head[4:8] == b"ftyp":
        return "an MP4 file"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "an AAC file" if head[1] & 0x06 == 0 else "an MP3 file"
    return f"no known format: {head!r}"
