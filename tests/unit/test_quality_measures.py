"""Each figure against a signal whose figure is known on paper."""

import math
import tracemalloc

import numpy as np
import pytest

from downloader.quality import Measures
from downloader.quality_audio import Samples
from downloader.quality_measures import Clipping, Levels, Measurement, Pauses, Twins
from shared.events import Format

RATE = 48_000
STEP = 1 / 32_768


def format_of(frames: int, *, channels: int = 2, rate: int = RATE, bits: int = 16, codec: str = "pcm") -> Format:
    """Describe a file as the walker would."""
    return Format(
        container="RIFF",
        codec="float" if codec == "float" else "pcm",
        sample_rate_hz=rate,
        channels=channels,
        bits_per_sample=bits,
        frames=frames,
        duration_s=frames / rate,
    )


def sine(level_dbfs: float, seconds: float, *, hz: float = 997, rate: int = RATE) -> Samples:
    """Make a sine whose highest sample is at a level."""
    wave: Samples = 10 ** (level_dbfs / 20) * np.sin(math.tau * hz * np.arange(round(seconds * rate)) / rate)
    return wave


def measure(*channels: Samples, rate: int = RATE, codec: str = "pcm", block: int = 65_536) -> Measures:
    """Measure channels in blocks of some frames."""
    frames = np.stack(channels, axis=1)
    measurement = Measurement(format_of(len(frames), channels=len(channels), rate=rate, codec=codec))
    for at in range(0, len(frames), block):
        measurement.take(np.ascontiguousarray(frames[at : at + block]).reshape(-1))
    return measurement.result()


def test_a_full_scale_sine() -> None:
    """A sine at full scale peaks at 0 dBFS and has an RMS 3.01 dB below, no offset, no pause."""
    measures = measure(sine(0, 4), sine(0, 4))
    assert measures.peak_dbfs == pytest.approx(0, abs=0.01)
    assert measures.rms_dbfs == pytest.approx(-3.01, abs=0.01)
    assert measures.dc_offset == pytest.approx(0, abs=1e-4)
    assert (measures.silence_ratio, measures.leading_zeros_s, measures.trailing_zeros_s) == (0, 0, 0)


@pytest.mark.parametrize(("level", "expected"), [(-23.0, -23.0), (-33.0, -33.0)])
@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_loudness_of_a_stereo_sine(level: float, expected: float, rate: int) -> None:
    """EBU Tech 3341, test cases 1 and 2: a stereo sine of 20 s at a level has that loudness within 0.1 LU."""
    wave = sine(level, 20, hz=1_000, rate=rate)
    assert measure(wave, wave, rate=rate).integrated_loudness_lufs == pytest.approx(expected, abs=0.1)


def test_loudness_is_gated() -> None:
    """EBU Tech 3341, test case 3: 10 s at -36, 60 s at -23 and 10 s at -36 dBFS are -23 LUFS."""
    wave = np.concatenate([sine(-36, 10, hz=1_000), sine(-23, 60, hz=1_000), sine(-36, 10, hz=1_000)])
    assert measure(wave, wave).integrated_loudness_lufs == pytest.approx(-23.0, abs=0.1)


def test_loudness_weighs_surround_and_leaves_the_sub_out() -> None:
    """EBU Tech 3341, test case 6: a 5.0 sine at -28, -24 and -30 dBFS is -23 LUFS; the LFE of 5.1 adds nothing."""
    front, centre, surround = (sine(level, 20, hz=1_000) for level in (-28, -24, -30))
    loud_sub = sine(-3, 20, hz=1_000)
    five_one = measure(front, front, centre, loud_sub, surround, surround)
    assert five_one.integrated_loudness_lufs == pytest.approx(-23.0, abs=0.1)
    assert measure(front, front, centre, surround, surround).integrated_loudness_lufs == pytest.approx(-23.0, abs=0.1)


def test_loudness_range() -> None:
    """EBU Tech 3342, test case 1: 20 s at -20 and 20 s at -30 dBFS have a range of 10 LU within 1."""
    wave = np.concatenate([sine(-20, 20, hz=1_000), sine(-30, 20, hz=1_000)])
    assert measure(wave, wave).loudness_range_lu == pytest.approx(10, abs=1)


def test_true_peak_lies_between_the_samples() -> None:
    """EBU Tech 3341, test case 16: a sine at a quarter of the rate, taken at 45 degrees, peaks 3 dB above them."""
    wave = 0.5 * np.sin(math.tau * np.arange(RATE) / 4 + math.pi / 4)
    measures = measure(wave, wave)
    assert measures.peak_dbfs == pytest.approx(-9.03, abs=0.01)
    assert measures.true_peak_dbtp == pytest.approx(-6.0, abs=0.4)


def test_silence_has_no_level() -> None:
    """All zeros: levels and loudness are null and not infinite, the whole file is a pause and a tail of zeros."""
    nothing = np.zeros(RATE * 4)
    measures = measure(nothing, nothing)
    assert (measures.peak_dbfs, measures.true_peak_dbtp, measures.rms_dbfs) == (None, None, None)
    assert measures.integrated_loudness_lufs is None
    assert (measures.silence_ratio, measures.leading_silence_s) == (1, 4)
    assert (measures.leading_zeros_s, measures.trailing_zeros_s) == (4, 4)
    assert measures.dead_channels == (0, 1)
    assert measures.identical_channels == ()


def test_pauses_are_measured_by_the_sample() -> None:
    """Zeros, then noise below the threshold, then sound, then a tail of zeros: each is as long as it was made."""
    parts = [np.zeros(RATE), np.full(RATE, 0.0005), sine(-6, 2), np.zeros(4 * RATE)]
    measures = measure(np.concatenate(parts), np.concatenate(parts))
    assert measures.leading_zeros_s == 1
    assert measures.leading_silence_s == pytest.approx(2, abs=0.001)
    assert measures.trailing_zeros_s == pytest.approx(4, abs=0.001)
    assert measures.silence_ratio == pytest.approx(6 / 8, abs=0.001)


def test_a_short_pause_is_music() -> None:
    """Gaps of less than half a second are no silence, one of half a second is."""
    pauses = Pauses(1_000)
    pauses.take(np.concatenate([np.ones(10), np.zeros(499), np.ones(1), np.zeros(500), np.ones(10)]))
    assert pauses.silence_ratio == pytest.approx(500 / 1_020)


def test_a_single_sound_channel_ends_a_pause() -> None:
    """What is silent in one channel only is no pause."""
    measures = measure(sine(-6, 3), np.zeros(3 * RATE))
    assert measures.silence_ratio == 0
    assert measures.dead_channels == (1,)


@pytest.mark.parametrize(
    ("row", "runs", "longest"),
    [
        ([0.5, 1, 1, 0.5], 0, 0),
        ([0.5, 1, 1, 1, 0.5], 1, 3),
        ([1, 1, 1, -1, -1, -1, -1], 2, 4),
        ([1, -1, 1, -1, 1, -1], 0, 0),
        ([1] * 12, 1, 12),
        ([-1, -1, -1, 0, 1, 1, 1, 1, 0, 1], 2, 4),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 3, 5, 100])
def test_clipped_runs(row: list[float], runs: int, longest: int, block: int) -> None:
    """Three samples of one sign at full scale are a run, wherever the blocks are cut."""
    clipping = Clipping(1, 1.0)
    for at in range(0, len(row), block):
        clipping.take(np.array([row[at : at + block]]))
    assert (clipping.runs, clipping.longest) == (runs, longest)


def test_clipping_counts_every_channel() -> None:
    """Runs are counted by channel: the same moment clipped in two channels is two runs."""
    hot = np.array([0, 1, 1, 1, 0], float)
    clipping = Clipping(2, 1.0)
    clipping.take(np.stack([hot, hot]))
    assert clipping.runs == 2


def test_the_highest_integer_is_full_scale() -> None:
    """A 16-bit file that is clipped at 32767 counts as clipped; one at 32766 does not."""
    wave = sine(-6, 4)
    wave[1_000:1_010] = 1 - STEP
    wave[2_000:2_010] = 1 - 2 * STEP
    measures = measure(wave, wave)
    assert (measures.clipped_runs, measures.longest_clipped_run) == (2, 10)


def test_dc_offset_of_the_worst_channel() -> None:
    """The offset told is that of the channel farthest from zero, with its sign."""
    measures = measure(sine(-12, 4) + 0.01, sine(-12, 4) - 0.03)
    assert measures.dc_offset == pytest.approx(-0.03, abs=1e-4)


def test_a_channel_stuck_off_zero_is_dead() -> None:
    """A channel that stands still is dead, whatever its offset."""
    levels = Levels(2)
    levels.take(np.stack([np.full(100, 0.4), np.linspace(-1, 1, 100)]))
    assert levels.dead == (0,)


def test_identical_channels() -> None:
    """Channels that are equal are told by the later one; a single other sample, in any block, tells them apart."""
    wave, other = sine(-6, 3), sine(-6, 3)
    other[-1] += STEP
    assert measure(wave, wave, other, wave).identical_channels == (1, 3)
    assert measure(wave, other).identical_channels == ()


def test_groups_of_twins_fall_apart() -> None:
    """Two pairs are two pairs, not four of a kind."""
    twins = Twins(4)
    twins.take(np.array([[1, 2], [3, 4], [1, 2], [3, 4]], float))
    twins.take(np.array([[5.0], [6], [5], [7]]))
    assert twins.identical == (2,)


def test_non_finite_samples_are_counted_and_taken_for_zero() -> None:
    """NaN and infinity do not spoil the other figures."""
    wave = sine(-6, 4)
    clean = measure(wave, wave, codec="float")
    spoilt = wave.copy()
    spoilt[[0, RATE, 2 * RATE]] = [np.nan, np.inf, -np.inf]
    measures = measure(spoilt, wave, codec="float")
    assert measures.non_finite_samples == 3
    assert measures.peak_dbfs == clean.peak_dbfs
    assert measures.integrated_loudness_lufs == pytest.approx(clean.integrated_loudness_lufs, abs=0.05)


def test_absurd_floats_give_null_and_no_infinity() -> None:
    """A float of 1e300 is finite, but its square is not: what cannot be told is null."""
    measures = measure(np.full(RATE * 4, 1e300), sine(-6, 4), codec="float")
    assert measures.rms_dbfs is None
    assert measures.peak_dbfs == 6_000
    assert measures.integrated_loudness_lufs is None


@pytest.mark.parametrize("rate", [1, 16, 7_999, 384_001])
def test_rates_outside_the_standard_have_no_loudness(rate: int) -> None:
    """The filters have no meaning there: null, and everything else is measured."""
    measures = measure(sine(-6, 0.1), sine(-6, 0.1), rate=rate)
    assert (measures.integrated_loudness_lufs, measures.loudness_range_lu, measures.true_peak_dbtp) == (None,) * 3
    assert measures.peak_dbfs == pytest.approx(-6, abs=0.1)


def test_nine_channels_have_no_loudness() -> None:
    """The standard knows no place for a ninth loudspeaker."""
    assert measure(*[sine(-6, 1)] * 9).integrated_loudness_lufs is None
    assert measure(*[sine(-6, 4)] * 8).integrated_loudness_lufs is not None


@pytest.mark.parametrize("block", [1_000, 4_800, 99_999])
def test_the_figures_do_not_depend_on_the_blocks(block: int) -> None:
    """However the file is cut into blocks, the figures are the same."""
    chance = np.random.default_rng(7)
    noise = chance.uniform(-1.2, 1.2, 3 * RATE).clip(-1, 1 - STEP)
    noise[RATE : 2 * RATE] = 0
    other = np.roll(noise, 17)
    assert measure(noise, other, block=block) == measure(noise, other, block=10**9)


def test_memory_does_not_grow_with_the_file() -> None:
    """Ten times the audio takes no more memory."""

    def peak_of(blocks: int) -> int:
        samples = np.random.default_rng(3).uniform(-1, 1, 2 * 8_192)
        measurement = Measurement(format_of(blocks * 8_192))
        measurement.take(samples)
        tracemalloc.start()
        for _ in range(blocks - 1):
            measurement.take(samples)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_of(200) < peak_of(20) * 1.1 + 10_000
