"""The waveform: what players read, and a picture of bounded size."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from downloader.quality_audio import Samples
from downloader.quality_waveform import HEIGHT, LEAST_SAMPLES_PER_PIXEL, MOST_PIXELS, WIDTH, Waveform
from shared.events import Format


def waveform(planar: Samples, *, block: int = 50_000) -> Waveform:
    """Feed channels in blocks."""
    channels, frames = planar.shape
    made = Waveform(
        Format(
            container="RIFF",
            codec="pcm",
            sample_rate_hz=44_100,
            channels=channels,
            bits_per_sample=16,
            frames=frames,
            duration_s=frames / 44_100,
        )
    )
    for at in range(0, frames, block):
        made.take(planar[:, at : at + block])
    return made


def test_peaks_are_what_players_read() -> None:
    """The JSON has the keys of version 2, and minimum and maximum of each channel for each pixel."""
    planar = np.zeros((2, 600))
    planar[0, 10], planar[0, 20] = 1 - 1 / 32_768, -1
    planar[1, 599] = 0.5
    peaks = json.loads(waveform(planar).peaks())
    assert {key: value for key, value in peaks.items() if key != "data"} == {
        "version": 2,
        "channels": 2,
        "sample_rate": 44_100,
        "samples_per_pixel": 256,
        "bits": 8,
        "length": 3,
    }
    assert peaks["data"] == [-128, 127, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64]


@pytest.mark.parametrize("block", [1, 255, 256, 257, 1_000])
def test_peaks_do_not_depend_on_the_blocks(block: int) -> None:
    """A pixel that begins in one block and ends in another is the same."""
    planar = np.random.default_rng(1).uniform(-1, 1, (3, 5_000))
    assert waveform(planar, block=block).peaks() == waveform(planar, block=5_000).peaks()


@pytest.mark.parametrize("frames", [1, 256, MOST_PIXELS * LEAST_SAMPLES_PER_PIXEL + 1, 5_000_000])
def test_the_size_is_bounded(frames: int) -> None:
    """However long the file, there are no more than so many pixels, and all of the file is in them."""
    planar = np.zeros((1, frames))
    planar[0, -1] = 0.5
    made = waveform(planar, block=100_000)
    peaks = json.loads(made.peaks())
    assert 1 <= peaks["length"] <= MOST_PIXELS
    assert (peaks["length"] - 1) * peaks["samples_per_pixel"] < frames <= peaks["length"] * peaks["samples_per_pixel"]
    assert len(peaks["data"]) == 2 * peaks["length"]
    assert peaks["data"][-1] == 64
    assert len(made.picture()) < 50_000


def test_the_picture_shows_the_file() -> None:
    """One lane a channel: the left half of the first is loud, the second is a line in the middle of its lane."""
    planar = np.zeros((2, 1_000_000))
    planar[0, :500_000:2], planar[0, 1:500_000:2] = 1, -1
    image = Image.open(BytesIO(waveform(planar).picture()))
    assert (image.format, image.size) == ("PNG", (WIDTH, HEIGHT))
    drawn = np.asarray(image)
    assert drawn[: HEIGHT // 2, : WIDTH // 2 - 2].all()
    assert drawn[: HEIGHT // 2, WIDTH // 2 + 2 :].mean() < 0.02
    assert 0 < drawn[HEIGHT // 2 :].mean() < 0.02


@pytest.mark.parametrize("value", [5.0, -5.0, 1e300])
def test_floats_beyond_full_scale_are_cut_off(value: float) -> None:
    """What is louder than full scale stays within the picture and the eight bits."""
    peaks = json.loads((made := waveform(np.full((1, 1_000), value))).peaks())
    assert set(peaks["data"]) <= {-128, 127}
    assert made.picture().startswith(b"\x89PNG")
