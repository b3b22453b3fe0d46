"""The file maker of the simulator: sizes, ranges, determinism, and what each flavour is."""

import gzip
import io
import struct
import wave
from hashlib import sha256
from itertools import pairwise

import pytest

from downloader.wav import Walker, Warning_
from shared.errors import PermanentError, Reason, RetryableError, WavekeepError
from simulator.wavs import RATE_HZ, Flavour, Wav, wav

GOOD = {
    Flavour.PCM16: ("RIFF", "pcm", 16, 2, ()),
    Flavour.PCM24: ("RIFF", "pcm", 24, 2, ()),
    Flavour.PCM8: ("RIFF", "pcm", 8, 2, ()),
    Flavour.PCM32: ("RIFF", "pcm", 32, 2, ()),
    Flavour.FLOAT32: ("RIFF", "float", 32, 2, ()),
    Flavour.FLOAT64: ("RIFF", "float", 64, 2, ()),
    Flavour.EXTENSIBLE: ("RIFF", "pcm", 24, 2, ()),
    Flavour.RF64: ("RF64", "pcm", 16, 2, ()),
    Flavour.BW64: ("BW64", "pcm", 16, 2, ()),
    Flavour.RIFX: ("RIFX", "pcm", 16, 2, ()),
    Flavour.WITH_LIST: ("RIFF", "pcm", 16, 2, ()),
    Flavour.ODD: ("RIFF", "pcm", 24, 1, ()),
    Flavour.NO_PAD: ("RIFF", "pcm", 24, 1, (Warning_.PAD_BYTE_MISSING,)),
    Flavour.TRAILING_JUNK: ("RIFF", "pcm", 16, 2, (Warning_.TRAILING_BYTES,)),
    Flavour.RIFF_SIZE_OFF: ("RIFF", "pcm", 16, 2, (Warning_.RIFF_SIZE_DIFFERS,)),
    Flavour.STREAMING_HEADER: ("RIFF", "pcm", 16, 2, (Warning_.STREAMING_HEADER,)),
}
BAD = {
    Flavour.TRUNCATED: (RetryableError, Reason.WAV_TRUNCATED),
    Flavour.HEADER_ONLY: (RetryableError, Reason.WAV_TRUNCATED),
    Flavour.HTML: (RetryableError, Reason.NOT_WAV),
    Flavour.MP3: (RetryableError, Reason.NOT_WAV),
    Flavour.GZIP: (RetryableError, Reason.NOT_WAV),
    Flavour.SECOND_FILE: (PermanentError, Reason.WAV_INVALID),
    Flavour.BAD_BLOCK_ALIGN: (PermanentError, Reason.WAV_INVALID),
    Flavour.ALAW: (PermanentError, Reason.WAV_UNSUPPORTED),
    Flavour.ADPCM: (PermanentError, Reason.WAV_UNSUPPORTED),
}


def whole(file: Wav) -> bytes:
    """Make all of a small file."""
    return b"".join(file.blocks())


def walk(file: Wav) -> Walker:
    """Feed a file to the walker, block by block."""
    walker = Walker()
    for block in file.blocks():
        walker.feed(block)
    return walker


def test_every_flavour_is_judged_here() -> None:
    """No flavour is without a row in one of the two tables."""
    assert GOOD.keys() | BAD.keys() == set(Flavour)
    assert not GOOD.keys() & BAD.keys()


@pytest.mark.parametrize("flavour", GOOD)
def test_good_flavour_is_what_it_says(flavour: Flavour) -> None:
    """A good flavour is accepted as just what its name says, with just its own oddity."""
    judgement = walk(wav(duration_s=0.5, flavour=flavour)).finish(body_proven_complete=True)

    container, codec, bits, channels, warnings = GOOD[flavour]
    found = judgement.format
    assert (found.container, found.codec, found.bits_per_sample, found.channels) == (container, codec, bits, channels)
    assert judgement.warnings == warnings
    assert found.duration_s == pytest.approx(0.5, abs=2 / RATE_HZ)


@pytest.mark.parametrize("flavour", BAD)
def test_broken_flavour_is_refused(flavour: Flavour) -> None:
    """A broken flavour is refused for just its own defect."""
    with pytest.raises(WavekeepError) as caught:
        walk(wav(duration_s=0.5, flavour=flavour)).finish(body_proven_complete=True)

    assert (type(caught.value), caught.value.reason) == BAD[flavour]


@pytest.mark.parametrize("flavour", [Flavour.PCM8, Flavour.PCM16, Flavour.PCM24, Flavour.PCM32, Flavour.WITH_LIST])
def test_independent_reader_agrees(flavour: Flavour) -> None:
    """The standard library reads the same header as the walker, and as many frames."""
    data = whole(wav(duration_s=1.25, flavour=flavour))
    found = walk(wav(duration_s=1.25, flavour=flavour)).finish(body_proven_complete=False).format

    with wave.open(io.BytesIO(data)) as reader:
        assert reader.getframerate() == found.sample_rate_hz
        assert reader.getnchannels() == found.channels
        assert reader.getsampwidth() * 8 == found.bits_per_sample
        assert reader.getnframes() == found.frames
        assert len(reader.readframes(found.frames)) == found.frames * found.channels * found.bits_per_sample // 8


@pytest.mark.parametrize(
    ("flavour", "letter", "order", "peak"),
    [
        (Flavour.PCM16, "h", "<", 1 << 15),
        (Flavour.RIFX, "h", ">", 1 << 15),
        (Flavour.PCM32, "i", "<", 1 << 31),
        (Flavour.FLOAT32, "f", "<", 1),
        (Flavour.FLOAT64, "d", "<", 1),
    ],
)
def test_audio_is_heard(flavour: Flavour, letter: str, order: str, peak: int) -> None:
    """The samples are a signal well above silence and below clipping, and smooth also where the loop starts over."""
    file = wav(duration_s=1.1, flavour=flavour)
    samples = 2 * round(1.1 * RATE_HZ)
    audio = whole(file)[-samples * struct.calcsize(letter) :]
    left = [value / peak for value in struct.unpack(f"{order}{samples}{letter}", audio)[::2]]

    assert 0.3 < max(left) < 0.7
    assert -0.7 < min(left) < -0.3
    assert max(abs(after - before) for before, after in pairwise(left)) < 0.1


def test_24_bit_audio_is_the_16_bit_audio_with_more_bits() -> None:
    """Samples of three bytes are packed right: their upper two bytes are the 16-bit samples, but for rounding."""
    wide, narrow = whole(wav(duration_s=0.1, flavour="pcm24"))[44:], whole(wav(duration_s=0.1, flavour="pcm16"))[44:]
    upper = b"".join(wide[at + 1 : at + 3] for at in range(0, len(wide), 3))
    count = len(narrow) // 2

    pairs = zip(struct.unpack(f"<{count}h", upper), struct.unpack(f"<{count}h", narrow), strict=True)
    assert all(abs(one - other) <= 2 for one, other in pairs)


@pytest.mark.parametrize("flavour", Flavour)
def test_size_is_kept_to(flavour: Flavour) -> None:
    """A file is as large as it says, and as was asked for but for the rounding down."""
    file = wav(size_bytes=20_000, flavour=flavour)

    assert len(whole(file)) == file.size_bytes
    if flavour is not Flavour.HEADER_ONLY:
        unit = {Flavour.GZIP: 10_000, Flavour.ADPCM: 1_024, Flavour.MP3: 417, Flavour.HTML: 60}.get(flavour, 16)
        assert 20_000 - unit < file.size_bytes <= 20_000


@pytest.mark.parametrize("flavour", Flavour)
def test_range_is_a_slice(flavour: Flavour) -> None:
    """The bytes of any range are those at this place in the file."""
    file = wav(size_bytes=600_000, seed=3, flavour=flavour)
    data = whole(file)
    edges = [0, 1, 43, 44, 45, 80, 176_404, 176_448, 262_144, 300_001, len(data) - 1, len(data), len(data) + 10]

    for start in edges:
        for end in edges:
            assert b"".join(file.blocks(start, end)) == data[start:end]
        assert b"".join(file.blocks(start)) == data[start:]


def test_digest_is_of_all_bytes() -> None:
    """The digest is the SHA-256 of what is served."""
    file = wav(size_bytes=600_000)

    assert file.sha256() == sha256(whole(file)).hexdigest()


@pytest.mark.parametrize("flavour", [Flavour.PCM16, Flavour.TRAILING_JUNK, Flavour.GZIP])
def test_seed_decides(flavour: Flavour) -> None:
    """Equal seeds make equal files, others make others of the same size."""
    one, again, other = (wav(size_bytes=40_000, seed=seed, flavour=flavour) for seed in (1, 1, 2))

    assert whole(one) == whole(again)
    assert whole(one) != whole(other)


def test_lost_block_changes_the_digest() -> None:
    """Blocks of a power of two are all different in a file of a minute, so that none can be lost or swapped unseen."""
    data = whole(wav(duration_s=60))
    blocks = [data[at : at + 65_536] for at in range(0, len(data), 65_536)]

    assert len(set(blocks)) == len(blocks)


def test_long_file_is_served_from_any_place() -> None:
    """A file of more than 4 GiB has its exact size in ds64, and its end is there at once."""
    size = (6 << 30) + 2
    file = wav(size_bytes=size, flavour="rf64")
    head = b"".join(file.blocks(0, 80))
    riff_size, data_size, frames = struct.unpack_from("<QQQ", head, 20)

    assert file.size_bytes == size - 2
    assert (riff_size, data_size, frames) == (size - 10, size - 82, (size - 82) // 4)
    assert len(b"".join(file.blocks(size - 1_000))) == 998


def test_blocks_are_small() -> None:
    """No block is larger than 256 KiB, however long the file."""
    assert max(len(block) for block in wav(size_bytes=3_000_000).blocks()) == 256 * 1024


def test_gzip_is_real() -> None:
    """The gzip flavour unpacks to WAV files."""
    assert gzip.decompress(whole(wav(size_bytes=30_000, flavour="gzip")))[8:12] == b"WAVE"


@pytest.mark.parametrize(
    ("size_bytes", "duration_s", "flavour"),
    [
        (1_000, 1.0, "pcm16"),
        (47, None, "pcm16"),
        (0, None, "second_file"),
        (None, 0.0, "pcm16"),
        (None, None, "vinyl"),
        (5 << 30, None, "pcm16"),
    ],
)
def test_impossible_wish_is_refused(size_bytes: int | None, duration_s: float | None, flavour: str) -> None:
    """What cannot be made is refused, rather than made as something else."""
    with pytest.raises(ValueError, match=r"not both|no room|not a valid|too many"):
        wav(size_bytes=size_bytes, duration_s=duration_s, flavour=flavour)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (0, -1)])
def test_offset_counts_from_the_beginning(start: int, end: int | None) -> None:
    """A negative offset is a mistake of the caller, not a slice."""
    with pytest.raises(ValueError, match="offsets count"):
        list(wav(size_bytes=1_000).blocks(start, end))
