"""The walker against the section "The file itself" of the acceptance table: every row, whole and byte by byte."""

import struct
import tracemalloc
from dataclasses import dataclass

import pytest

from downloader.wav import Judgement, Walker, Warning_
from shared.errors import PermanentError, Reason, RetryableError, WavekeepError
from simulator.wavs import wav

UNKNOWN = 0xFFFFFFFF
GUID_TAIL = bytes.fromhex("00001000800000aa00389b71")
AUDIO = bytes(range(1, 241))


def chunk(name: bytes, content: bytes, *, size: int | None = None, order: str = "<") -> bytes:
    """Build a chunk with its pad byte; `size` lies about its length."""
    announced = len(content) if size is None else size
    return name + struct.pack(f"{order}I", announced) + content + b"\0" * (len(content) % 2)


def fmt(
    code: int = 1,
    channels: int = 2,
    bits: int = 16,
    *,
    rate: int = 44_100,
    align: int | None = None,
    byte_rate: int | None = None,
    more: bytes = b"",
    order: str = "<",
) -> bytes:
    """Build a fmt chunk, right unless told otherwise."""
    align = channels * bits // 8 if align is None else align
    byte_rate = rate * align if byte_rate is None else byte_rate
    numbers = struct.pack(f"{order}HHIIHH", code, channels, rate, byte_rate, align, bits)
    return chunk(b"fmt ", numbers + more, order=order)


def extension(code: int = 1, *, valid_bits: int = 16, tail: bytes = GUID_TAIL) -> bytes:
    """Build what an extensible format adds to a fmt chunk."""
    return struct.pack("<HHII", 22, valid_bits, 3, code) + tail


def riff(*chunks: bytes, size: int | None = None, name: bytes = b"RIFF", order: str = "<", after: bytes = b"") -> bytes:
    """Build a file of chunks; `after` is outside of what its size covers."""
    content = b"WAVE" + b"".join(chunks)
    return name + struct.pack(f"{order}I", len(content) if size is None else size) + content + after


def ds64(riff_size: int, data_size: int, *, table: tuple[tuple[bytes, int], ...] = ()) -> bytes:
    """Build a ds64 chunk."""
    rows = b"".join(struct.pack("<4sQ", name, size) for name, size in table)
    return chunk(b"ds64", struct.pack("<QQQI", riff_size, data_size, 0, len(table)) + rows)


def judge(data: bytes, *, piece: int | None = None, proven: bool = False) -> Judgement:
    """Feed a file in pieces of a size and judge it."""
    walker = Walker()
    step = piece or max(len(data), 1)
    for at in range(0, len(data), step):
        walker.feed(data[at : at + step])
    return walker.finish(body_proven_complete=proven)


def refuse(data: bytes, *, piece: int | None = None, proven: bool = True) -> WavekeepError:
    """Feed a file in pieces of a size and return why it is refused."""
    with pytest.raises(WavekeepError) as caught:
        judge(data, piece=piece, proven=proven)
    return caught.value


@dataclass(frozen=True)
class Good:
    """A row of what is accepted: the file, what the walker must read in it, and what it must find odd."""

    data: bytes
    frames: int
    container: str = "RIFF"
    codec: str = "pcm"
    channels: int = 2
    bits: int = 16
    warnings: tuple[Warning_, ...] = ()
    proven: bool = False


DATA = chunk(b"data", AUDIO)
ODD = chunk(b"data", AUDIO[:237])
INFO = chunk(b"LIST", b"INFOICMT\x04\0\0\0abc\0")
LARGE = chunk(b"JUNK", bytes(5_000))
LONG_SIZE = 4 + 36 + len(fmt()) + 8 + 240

ACCEPTED = {
    "pcm 8": Good(riff(fmt(bits=8), DATA), 120, bits=8),
    "pcm 16": Good(riff(fmt(), DATA), 60),
    "pcm 24": Good(riff(fmt(bits=24), DATA), 40, bits=24),
    "pcm 32": Good(riff(fmt(bits=32), DATA), 30, bits=32),
    "float 32, 18-byte fmt": Good(riff(fmt(3, bits=32, more=b"\0\0"), DATA), 30, codec="float", bits=32),
    "float 64": Good(riff(fmt(3, bits=64, more=b"\0\0"), DATA), 15, codec="float", bits=64),
    "float 32, 16-byte fmt": Good(riff(fmt(3, bits=32), DATA), 30, codec="float", bits=32),
    "mono": Good(riff(fmt(channels=1), DATA), 120, channels=1),
    "six channels": Good(riff(fmt(channels=6), DATA), 20, channels=6),
    "extensible pcm": Good(riff(fmt(0xFFFE, more=extension()), DATA), 60),
    "extensible pcm, 20 bits in 24": Good(riff(fmt(0xFFFE, bits=24, more=extension(valid_bits=20)), DATA), 40, bits=24),
    "extensible float": Good(
        riff(fmt(0xFFFE, bits=32, more=extension(3, valid_bits=32)), DATA), 30, codec="float", bits=32
    ),
    "longer fmt than any known": Good(riff(fmt(more=bytes(100)), DATA), 60),
    "RIFX": Good(
        riff(
            fmt(order=">"), chunk(b"LIST", AUDIO, order=">"), chunk(b"data", AUDIO, order=">"), name=b"RIFX", order=">"
        ),
        60,
        container="RIFX",
    ),
    "RF64": Good(
        riff(ds64(LONG_SIZE, 240), fmt(), chunk(b"data", AUDIO, size=UNKNOWN), name=b"RF64", size=UNKNOWN),
        60,
        container="RF64",
    ),
    "BW64": Good(
        riff(ds64(LONG_SIZE, 240), fmt(), chunk(b"data", AUDIO, size=UNKNOWN), name=b"BW64", size=UNKNOWN),
        60,
        container="BW64",
    ),
    "RF64 with 32-bit sizes": Good(riff(ds64(0, 0), fmt(), DATA, name=b"RF64"), 60, container="RF64"),
    "RF64 with another long chunk": Good(
        riff(
            ds64(LONG_SIZE + 12 + 18, 240, table=((b"LIST", 10),)),
            fmt(),
            chunk(b"LIST", AUDIO[:10], size=UNKNOWN),
            chunk(b"data", AUDIO, size=UNKNOWN),
            name=b"RF64",
            size=UNKNOWN,
        ),
        60,
        container="RF64",
    ),
    "LIST before data": Good(riff(fmt(), INFO, DATA), 60),
    "LIST after data": Good(riff(fmt(), DATA, INFO), 60),
    "bext, JUNK, id3 before and after": Good(
        riff(chunk(b"bext", AUDIO), LARGE, fmt(), chunk(b"id3 ", AUDIO), DATA, LARGE, chunk(b"id3 ", AUDIO)), 60
    ),
    "odd chunk before data": Good(riff(fmt(), chunk(b"bext", b"odd"), DATA), 60),
    "odd chunk without pad before data": Good(
        riff(fmt(), chunk(b"bext", b"odd")[:-1], DATA), 60, warnings=(Warning_.PAD_BYTE_MISSING,)
    ),
    "odd data": Good(riff(fmt(channels=1, bits=24), ODD), 79, channels=1, bits=24),
    "odd data, then LIST": Good(riff(fmt(channels=1, bits=24), ODD, INFO), 79, channels=1, bits=24),
    "odd data, pad byte not zero": Good(riff(fmt(channels=1, bits=24), ODD[:-1] + b"x", INFO), 79, channels=1, bits=24),
    "odd data, last pad byte missing": Good(
        riff(fmt(channels=1, bits=24), ODD[:-1]), 79, channels=1, bits=24, warnings=(Warning_.PAD_BYTE_MISSING,)
    ),
    "odd data, last pad byte missing but counted": Good(
        riff(fmt(channels=1, bits=24), ODD)[:-1], 79, channels=1, bits=24, warnings=(Warning_.PAD_BYTE_MISSING,)
    ),
    "odd data without pad, then LIST": Good(
        riff(fmt(channels=1, bits=24), ODD[:-1], INFO), 79, channels=1, bits=24, warnings=(Warning_.PAD_BYTE_MISSING,)
    ),
    "trailing zeros": Good(riff(fmt(), DATA, after=bytes(500)), 60, warnings=(Warning_.TRAILING_BYTES,)),
    "three trailing bytes": Good(riff(fmt(), DATA, after=b"abc"), 60, warnings=(Warning_.TRAILING_BYTES,)),
    "trailing ID3v1 tag": Good(
        riff(fmt(), DATA, after=b"TAG" + b"Song".ljust(125)), 60, warnings=(Warning_.TRAILING_BYTES,)
    ),
    "junk after the last chunk": Good(
        riff(fmt(), DATA, INFO, after=b"\xff" * 99), 60, warnings=(Warning_.TRAILING_BYTES,)
    ),
    "RIFF size zero": Good(riff(fmt(), DATA, size=0), 60, warnings=(Warning_.RIFF_SIZE_DIFFERS,)),
    "RIFF size too small": Good(riff(fmt(), DATA, INFO, size=50), 60, warnings=(Warning_.RIFF_SIZE_DIFFERS,)),
    "RIFF size too large": Good(riff(fmt(), DATA, size=9_999), 60, warnings=(Warning_.RIFF_SIZE_DIFFERS,)),
    "RIFF size unknown": Good(riff(fmt(), DATA, size=UNKNOWN), 60, warnings=(Warning_.RIFF_SIZE_DIFFERS,)),
    "cut in a chunk after data": Good(
        riff(fmt(), DATA, INFO)[:-5], 60, warnings=(Warning_.RIFF_SIZE_DIFFERS, Warning_.LAST_CHUNK_CUT)
    ),
    "a piece of a frame at the end": Good(
        riff(fmt(), chunk(b"data", AUDIO[:239])), 59, warnings=(Warning_.PARTIAL_LAST_FRAME,)
    ),
    "byte rate wrong": Good(riff(fmt(byte_rate=1), DATA), 60, warnings=(Warning_.BYTE_RATE_DIFFERS,)),
    **{
        f"streaming header {size:#x}": Good(
            riff(fmt(), chunk(b"data", AUDIO, size=size), size=size),
            60,
            warnings=(Warning_.STREAMING_HEADER,),
            proven=True,
        )
        for size in (0, 0x7FFFF000, 0x7FFFFFDB, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, UNKNOWN)
    },
    "streaming header, RF64": Good(
        riff(ds64(0, 0), fmt(), chunk(b"data", AUDIO, size=UNKNOWN), name=b"RF64", size=UNKNOWN),
        60,
        container="RF64",
        warnings=(Warning_.STREAMING_HEADER,),
        proven=True,
    ),
    "streaming header, silence": Good(
        riff(fmt(), chunk(b"data", bytes(240), size=0)), 60, warnings=(Warning_.STREAMING_HEADER,), proven=True
    ),
}

TRUNCATED = (RetryableError, Reason.WAV_TRUNCATED)
NOT_WAV = (RetryableError, Reason.NOT_WAV)
INVALID = (PermanentError, Reason.WAV_INVALID)
UNSUPPORTED = (PermanentError, Reason.WAV_UNSUPPORTED)

Refusal = tuple[type[WavekeepError], Reason]

REFUSED: dict[str, tuple[bytes, Refusal, str]] = {
    "data longer than the file": (riff(fmt(), DATA)[:-1], TRUNCATED, "announces 240 bytes of audio, 239 are there"),
    "RF64 data longer than the file": (
        riff(ds64(LONG_SIZE, 240), fmt(), chunk(b"data", AUDIO, size=UNKNOWN), name=b"RF64", size=UNKNOWN)[:-1],
        TRUNCATED,
        "announces 240 bytes of audio, 239 are there",
    ),
    "RF64 of a placeholder's size, cut": (
        riff(ds64(0, 0x7FFFF000), fmt(), chunk(b"data", AUDIO, size=UNKNOWN), name=b"RF64", size=UNKNOWN),
        TRUNCATED,
        "announces 2147479552 bytes",
    ),
    "header only": (riff(fmt(), chunk(b"data", b"", size=240)), TRUNCATED, "240 bytes of audio, 0 are there"),
    "no data chunk": (riff(fmt(), INFO), TRUNCATED, "before any audio"),
    "cut within fmt": (riff(fmt())[:25], TRUNCATED, "before any audio"),
    "cut within the first header": (b"RIFF\x10\0\0\0WA", TRUNCATED, "after 10 bytes"),
    "one letter": (b"R", TRUNCATED, "after 1 bytes"),
    "no frames, nothing after": (riff(fmt(), chunk(b"data", b"")), TRUNCATED, "no audio"),
    "no frames, then LIST": (riff(fmt(), chunk(b"data", b""), INFO), TRUNCATED, "no audio"),
    "no frames, size open": (riff(fmt(), chunk(b"data", b"", size=UNKNOWN)), TRUNCATED, "no audio"),
    "less than a frame": (riff(fmt(), chunk(b"data", b"abc")), TRUNCATED, "not one frame"),
    "empty": (b"", NOT_WAV, "is empty"),
    "HTML": (b"<!DOCTYPE html><html>Forbidden</html>", NOT_WAV, "starts with an HTML page"),
    "HTML after a blank line": (b"\xef\xbb\xbf\r\n<HTML><body>", NOT_WAV, "starts with an HTML page"),
    "XML": (b"<?xml version='1.0'?><Error/>", NOT_WAV, "starts with an XML document"),
    "XML without a prologue": (b"<Error><Code>AccessDenied</Code></Error>", NOT_WAV, "an HTML or XML page"),
    "JSON": (b'{"code": 404, "msg": "gone"}', NOT_WAV, "starts with JSON"),
    "MP3 with a tag": (b"ID3\x04" + bytes(99), NOT_WAV, "an MP3 file"),
    "MP3 without a tag": (b"\xff\xfb\x90\x64" + bytes(99), NOT_WAV, "an MP3 file"),
    "AAC": (b"\xff\xf1\x50\x80" + bytes(99), NOT_WAV, "an AAC file"),
    "FLAC": (b"fLaC" + bytes(99), NOT_WAV, "a FLAC file"),
    "AIFF": (b"FORM\0\0\0\x10AIFF" + bytes(99), NOT_WAV, "an AIFF file"),
    "Ogg": (b"OggS" + bytes(99), NOT_WAV, "an Ogg file"),
    "MP4": (b"\0\0\0\x20ftypM4A " + bytes(99), NOT_WAV, "an MP4 file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), NOT_WAV, "gzip data"),
    "gzip, two bytes": (b"\x1f\x8b", NOT_WAV, "gzip data"),
    "zeros": (bytes(99), NOT_WAV, "no known format"),
    "RIFF of another kind": (b"RIFF\x10\0\0\0AVI " + bytes(99), NOT_WAV, "AVI"),
    "second file appended": (riff(fmt(), DATA) * 2, INVALID, "a second file (RIFF) begins at byte 284"),
    "second file, RIFF size covers both": (
        riff(fmt(), DATA, riff(fmt(), DATA)),
        INVALID,
        "a second file (RIFF) begins at byte 284",
    ),
    "second file after a missing pad": (
        riff(fmt(channels=1, bits=24), ODD[:-1]) + riff(fmt(), DATA),
        INVALID,
        "a second file (RIFF)",
    ),
    "second file after junk": (riff(fmt(), DATA, after=bytes(77)) + riff(fmt(), DATA), INVALID, "a second file"),
    "second file of another container": (
        riff(fmt(), DATA) + riff(ds64(LONG_SIZE, 240), fmt(), DATA, name=b"RF64"),
        INVALID,
        "a second file (RF64)",
    ),
    "second file after a streaming one": (
        riff(fmt(), chunk(b"data", AUDIO, size=UNKNOWN), size=UNKNOWN) * 2,
        INVALID,
        "a second file",
    ),
    "second file after one of no length": (riff(fmt(), chunk(b"data", AUDIO, size=0)) * 2, INVALID, "a second file"),
    "file within a file": (riff(riff(fmt(), DATA)), INVALID, "begins at byte 12"),
    "block align": (riff(fmt(align=3), DATA), INVALID, "block align 3 cannot be"),
    "block align zero": (riff(fmt(align=0), DATA), INVALID, "block align 0 cannot be"),
    "pcm of 12 bits": (riff(fmt(bits=12), DATA), INVALID, "cannot have 12 bits"),
    "pcm of 0 bits": (riff(fmt(bits=0), DATA), INVALID, "cannot have 0 bits"),
    "float of 16 bits": (riff(fmt(3, bits=16), DATA), INVALID, "cannot have 16 bits"),
    "no channels": (riff(fmt(channels=0), DATA), INVALID, "0 channels"),
    "no sample rate": (riff(fmt(rate=0), DATA), INVALID, "0 Hz"),
    "more valid bits than bits": (
        riff(fmt(0xFFFE, more=extension(valid_bits=24)), DATA),
        INVALID,
        "24 valid bits cannot be",
    ),
    "extensible without its extension": (riff(fmt(0xFFFE), DATA), INVALID, "40 is the least"),
    "short fmt": (riff(chunk(b"fmt ", bytes(14)), DATA), INVALID, "16 is the least"),
    "two fmt": (riff(fmt(), fmt(channels=1), DATA), INVALID, "two fmt chunks"),
    "data before fmt": (riff(DATA, fmt()), INVALID, "before any fmt"),
    "two data chunks": (riff(fmt(), DATA, DATA), INVALID, "a second data chunk begins at byte 284"),
    "RF64 without ds64": (
        riff(fmt(), chunk(b"data", AUDIO, size=UNKNOWN), name=b"RF64", size=UNKNOWN),
        INVALID,
        "without a ds64",
    ),
    "short ds64": (riff(chunk(b"ds64", bytes(20)), fmt(), DATA, name=b"RF64"), INVALID, "28 is the least"),
    "no name of a chunk": (riff(bytes(8), fmt(), DATA), INVALID, "no chunk can be named"),
    "chunks without end": (riff(chunk(b"JUNK", b"") * 10_001, fmt(), DATA), INVALID, "more than 10000 chunks"),
    "A-law": (riff(fmt(6, bits=8, more=b"\0\0"), DATA), UNSUPPORTED, "A-law"),
    "mu-law": (riff(fmt(7, bits=8, more=b"\0\0"), DATA), UNSUPPORTED, "mu-law"),
    "Microsoft ADPCM": (riff(fmt(2, bits=4, align=256), DATA), UNSUPPORTED, "Microsoft ADPCM"),
    "IMA ADPCM": (riff(fmt(0x11, bits=4, align=256), DATA), UNSUPPORTED, "IMA ADPCM"),
    "MP3 in WAV": (riff(fmt(0x55, bits=0, align=1, more=bytes(14)), DATA), UNSUPPORTED, "MP3"),
    "A-law by extension": (riff(fmt(0xFFFE, bits=8, more=extension(6, valid_bits=8)), DATA), UNSUPPORTED, "A-law"),
    "unknown codec": (riff(fmt(0x1234), DATA), UNSUPPORTED, "0x1234"),
    "unknown sub-format": (riff(fmt(0xFFFE, more=extension(tail=bytes(12))), DATA), UNSUPPORTED, "sub-format"),
}


@pytest.mark.parametrize("piece", [None, 1, 7])
@pytest.mark.parametrize("row", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_whole_file_is_accepted(row: Good, piece: int | None) -> None:
    """A whole file is kept, its format read and its oddities told, however it arrives."""
    judgement = judge(row.data, piece=piece, proven=row.proven)

    found = judgement.format
    assert (found.container, found.codec, found.channels, found.bits_per_sample, found.frames) == (
        row.container,
        row.codec,
        row.channels,
        row.bits,
        row.frames,
    )
    assert found.sample_rate_hz == 44_100
    assert found.duration_s == pytest.approx(row.frames / 44_100)
    assert set(judgement.warnings) == set(row.warnings)


@pytest.mark.parametrize("piece", [None, 1, 7])
@pytest.mark.parametrize(("data", "refusal", "detail"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_whole_file_is_refused(data: bytes, refusal: Refusal, detail: str, piece: int | None) -> None:
    """What is cut, foreign, impossible or compressed is refused with its reason, although the body was complete."""
    error = refuse(data, piece=piece)

    assert (type(error), error.reason) == refusal
    assert detail in error.detail


@pytest.mark.parametrize("name", [name for name, row in ACCEPTED.items() if Warning_.STREAMING_HEADER in row.warnings])
def test_open_length_needs_a_proven_end(name: str) -> None:
    """A header that leaves the length open is accepted only when the transport proved the body complete."""
    error = refuse(ACCEPTED[name].data, proven=False)

    assert (type(error), error.reason) == TRUNCATED


@pytest.mark.parametrize("name", [name for name, row in ACCEPTED.items() if not row.proven])
def test_whole_file_needs_no_proven_end(name: str) -> None:
    """What the transport proved changes nothing where the header tells the length."""
    assert judge(ACCEPTED[name].data, proven=True) == judge(ACCEPTED[name].data, proven=False)


def test_refusal_is_final() -> None:
    """A refused file stays refused, whatever is fed or asked afterwards."""
    walker = Walker()
    with pytest.raises(PermanentError) as first:
        walker.feed(riff(fmt(6, bits=8), DATA))

    with pytest.raises(PermanentError) as fed:
        walker.feed(riff(fmt(), DATA))
    with pytest.raises(PermanentError) as finished:
        walker.finish(body_proven_complete=True)

    assert fed.value is first.value
    assert finished.value is first.value


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"<!DOCTYPE ht", Reason.NOT_WAV), (riff(fmt(0x55, bits=0, align=1)), Reason.WAV_UNSUPPORTED)],
)
def test_hopeless_file_is_refused_early(data: bytes, reason: Reason) -> None:
    """What its first bytes rule out is refused before the rest is downloaded."""
    with pytest.raises(WavekeepError) as caught:
        Walker().feed(data)

    assert caught.value.reason is reason


def test_memoryview_is_taken() -> None:
    """A view of a larger buffer is as good as bytes."""
    walker = Walker()
    walker.feed(memoryview(b"before" + riff(fmt(), DATA))[6:])

    assert walker.finish(body_proven_complete=False).format.frames == 60


def test_long_file_is_walked_past_four_gibibytes() -> None:
    """An RF64 file of 5 GiB is measured exactly, and one byte less is refused."""
    size = 5 << 30
    file = wav(size_bytes=size, flavour="rf64")
    block, head = memoryview(bytes(64 << 20)), b"".join(file.blocks(0, 80))

    def walk(total: int) -> Walker:
        walker = Walker()
        walker.feed(head)
        for at in range(80, total, len(block)):
            walker.feed(block[: total - at])
        return walker

    assert walk(size).finish(body_proven_complete=False).format.frames == (size - 80) // 4
    with pytest.raises(RetryableError):
        walk(size - 1).finish(body_proven_complete=True)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(riff(fmt(), chunk(b"data", b"", size=1 << 31)), id="audio"),
        pytest.param(riff(fmt(), chunk(b"data", b"", size=UNKNOWN)), id="audio of open length"),
        pytest.param(riff(fmt(), DATA), id="trailing bytes"),
        pytest.param(riff(chunk(b"fmt ", fmt()[8:], size=1 << 31)), id="an endless fmt"),
        pytest.param(riff(chunk(b"ds64", b"", size=1 << 31), name=b"RF64"), id="an endless ds64"),
        pytest.param(riff(chunk(b"JUNK", b"", size=1 << 31)), id="an endless chunk"),
    ],
)
def test_memory_is_bounded(head: bytes) -> None:
    """Whatever a file is made of, the walker holds a few kilobytes of it at most."""
    walker, block = Walker(), bytes(1 << 20)
    tracemalloc.start()
    try:
        walker.feed(head)
        for _ in range(64):
            walker.feed(block)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 32 * 1024
