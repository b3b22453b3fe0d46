"""Every encoding we keep becomes the same numbers, wherever the audio lies in its file."""

import struct
from pathlib import Path

import numpy as np
import pytest

from downloader.quality_audio import Samples, UnreadableError, decode, full_scale, read_blocks
from downloader.wav import Walker
from shared.events import Format
from simulator.wavs import Flavour, wav

WHOLE = list(Flavour)[: list(Flavour).index(Flavour.TRUNCATED)]


def judged(data: bytes) -> Format:
    """Return the format as the walker reads it."""
    walker = Walker()
    walker.feed(data)
    return walker.finish(body_proven_complete=True).format


def written(folder: Path, flavour: str, **how: float) -> tuple[Path, Format]:
    """Write a file of a flavour."""
    data = b"".join(wav(flavour=flavour, **how).blocks())  # type: ignore[arg-type]
    path = folder / f"{flavour}.wav"
    path.write_bytes(data)
    return path, judged(data)


def read(path: Path, format_: Format) -> Samples:
    """Read all of a file."""
    return np.concatenate(list(read_blocks(path, format_)))


def plain(codec: str, bits: int, *, container: str = "RIFF") -> Format:
    """Describe one mono frame."""
    return Format(
        container="RIFX" if container == "RIFX" else "RIFF",
        codec="float" if codec == "float" else "pcm",
        sample_rate_hz=8_000,
        channels=1,
        bits_per_sample=bits,
        frames=1,
        duration_s=1 / 8_000,
    )


@pytest.mark.parametrize(
    ("bits", "raw", "expected"),
    [
        (8, bytes([0, 128, 255]), [-1, 0, 127 / 128]),
        (16, struct.pack("<3h", -32768, 0, 32767), [-1, 0, 32767 / 32768]),
        (24, b"\x00\x00\x80" + b"\x01\x00\x00" + b"\xff\xff\x7f", [-1, 2**-23, 1 - 2**-23]),
        (32, struct.pack("<3i", -(2**31), 1, 2**31 - 1), [-1, 2**-31, 1 - 2**-31]),
    ],
)
def test_integers_lose_nothing(bits: int, raw: bytes, expected: list[float]) -> None:
    """The lowest integer is -1, the highest one step below 1, and that is where full scale is."""
    assert decode(raw, plain("pcm", bits)).tolist() == expected
    assert full_scale(plain("pcm", bits)) == expected[-1]


def test_big_endian() -> None:
    """RIFX is read the other way round: 24 bits and floats too."""
    assert decode(b"\x80\x00\x00\x00\x00\x01", plain("pcm", 24, container="RIFX")).tolist() == [-1, 2**-23]
    assert decode(struct.pack(">d", 0.3), plain("float", 64, container="RIFX")).tolist() == [0.3]
    assert decode(struct.pack(">h", 256), plain("pcm", 16, container="RIFX")).tolist() == [256 / 32768]


@pytest.mark.parametrize("flavour", WHOLE)
def test_every_flavour_holds_the_same_audio(flavour: str, tmp_path: Path) -> None:
    """Each flavour of the simulator plays the same chord: the samples agree but for their resolution."""
    path, format_ = written(tmp_path, flavour, duration_s=1.0)
    samples = read(path, format_)
    assert len(samples) == format_.frames * format_.channels
    reference = read(*written(tmp_path, Flavour.FLOAT64, duration_s=1.0))
    if format_.channels == 1:
        reference = reference[::2]
    coarse = 0.5 ** (min(format_.bits_per_sample, 24) - 2)
    assert np.abs(samples - reference[: len(samples)]).max() < coarse


def test_a_file_that_shrank_is_unreadable(tmp_path: Path) -> None:
    """What is no longer there is told, and not taken for silence."""
    path, format_ = written(tmp_path, Flavour.PCM16, duration_s=2.0)
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(UnreadableError, match="ends 1000 bytes before"):
        read(path, format_)


def test_a_file_that_is_none_is_unreadable(tmp_path: Path) -> None:
    """A file that was replaced by something else is told, an empty one too."""
    _, format_ = written(tmp_path, Flavour.PCM16, duration_s=1.0)
    for content in (b"", b"<!DOCTYPE html><html></html>"):
        (tmp_path / "other.wav").write_bytes(content)
        with pytest.raises(UnreadableError):
            read(tmp_path / "other.wav", format_)
