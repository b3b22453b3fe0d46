"""Fuzz the walker over WAV files.

Responsible for: what must hold of any file. Only the two declared errors may escape, under four reasons, and the
verdict does not depend on how the file was cut into blocks. It must not know who makes the files.
"""

import random
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise

from downloader.wav import Judgement, Walker
from shared.errors import PermanentError, Reason, RetryableError
from simulator.wavs import Flavour, wav

LONGEST_BYTES = 4 * 1024
WORDS = (
    *(b"RIFF", b"RIFX", b"RF64", b"BW64", b"WAVE", b"fmt ", b"data", b"ds64", b"LIST", b"JUNK", b"fact", b"id3 "),
    *(b"\xff\xff\xff\xff", b"\xff" * 8, b"\xfe\xff\xff\xff", b"\x00\xf0\xff\x7f", b"\x00\x00\x00\x80", b"\0" * 8),
    *(b"\x01\x00\x02\x00", b"\x03\x00\x01\x00", b"\xfe\xff\x02\x00", bytes.fromhex("000000001000800000aa00389b71")),
    bytes.fromhex("666d7420 10000000 0100 0100 401f0000 401f0000 0100 0800"),
)
_CHUNK = re.compile(rb"RIFF|RIFX|RF64|BW64|fmt |data|ds64|LIST|JUNK|fact|id3 ")
_SIZES = (0, 1, 2, 15, 16, 18, 27, 28, 40, 41, 0x7FFFEFFF, 0x7FFFF000, 0x80000000, 0xFFFFEFFF, 0xFFFFF000, 0xFFFFFFFF)
_OUTCOMES = {Reason.NOT_WAV, Reason.WAV_TRUNCATED, Reason.WAV_INVALID, Reason.WAV_UNSUPPORTED}

Outcome = Judgement | tuple[type[Exception], Reason, str]


def seeds() -> Iterator[bytes]:
    """Return a tiny file of every flavour, and headers whose sizes are absurd."""
    for flavour in Flavour:
        yield b"".join(wav(duration_s=0.001, seed=7, flavour=flavour).blocks())[:2_048]
    fmt = WORDS[-1]
    yield b"RIFF\xff\xff\xff\xffWAVE" + fmt + b"LIST\xfe\xff\xff\xff" + b"data\x04\0\0\0abcd"
    yield b"RF64\xff\xff\xff\xffWAVEds64\x1c\0\0\0" + b"\xff" * 28 + fmt + b"data\xff\xff\xff\xffabcd"
    yield b"RIFF\0\0\0\0WAVE" + fmt + b"data\0\0\0\0"
    for chunks in (9_990, 200_000):  # a step each must stay a step each
        yield b"RIFF\xff\xff\xff\xffWAVE" + fmt + b"JUNK\0\0\0\0" * chunks + b"data\x04\0\0\0abcd"
        yield b"RIFF\xff\xff\xff\xffWAVE" + fmt + b"data\x04\0\0\0abcd" + b"JUNK\x01\0\0\0x\0" * chunks
    yield b"RF64\xff\xff\xff\xffWAVE" + (b"ds64\x1c\0\0\0" + b"\xff" * 28) * 9_000 + fmt + b"data\x04\0\0\0abcd"


def check(data: bytes) -> None:
    """Judge a file whole and in blocks; AssertionError, or whatever else escapes, is a crash."""
    rng = random.Random(zlib.crc32(data))
    places = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 40)))
    blocks = [data[start:end] for start, end in pairwise([0, *places, len(data)])]
    for proven in (True, False):
        whole = _outcome([data], proven=proven)
        assert _outcome(blocks, proven=proven) == whole
        if proven and len(data) <= 512:
            assert _outcome((data[at : at + 1] for at in range(len(data))), proven=proven) == whole
        if isinstance(whole, Judgement):
            found = whole.format
            assert 0 < found.frames * found.channels * found.bits_per_sample // 8 <= len(data)
            assert found.duration_s > 0
        else:
            assert whole[1] in _OUTCOMES
            assert 0 < len(whole[2]) <= 300


def _outcome(blocks: Iterable[bytes], *, proven: bool) -> Outcome:
    walker = Walker()
    try:
        for block in blocks:
            walker.feed(block)
        return walker.finish(body_proven_complete=proven)
    except (RetryableError, PermanentError) as error:
        return type(error), error.reason, error.detail


def mutate(data: bytes, max_size: int, seed: int) -> bytes | None:
    """Return a file with a chunk more, less or twice, or another size; None where bytes are to be changed instead."""
    rng = random.Random(seed)
    starts = [match.start() for match in _CHUNK.finditer(data)]
    if len(starts) < 2 or rng.random() < 0.4:
        return None
    start, end = sorted(rng.sample([*starts, len(data)], 2))
    chunk, place = data[start:end], rng.choice(starts)
    match rng.randrange(5):
        case 0:
            changed = data[:start] + data[end:]
        case 1:
            changed = data[:place] + chunk + data[place:]
        case 2:
            changed = data[:place] + rng.choice(WORDS)[:4] + rng.choice(_SIZES).to_bytes(4, "little") + data[place:]
        case 3:
            changed = data[: place + 4] + rng.choice(_SIZES).to_bytes(4, "little") + data[place + 8 :]
        case _:
            changed = data[: rng.randint(0, len(data))] + chunk
    return changed if len(changed) <= max_size else None


if __name__ == "__main__":
    from tests.fuzz.engine import main

    sys.exit(main("wav"))
