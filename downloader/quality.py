"""How a kept file sounds, in figures: the words, the thresholds, and what is odd about it.

Responsible for: what a quality run reports, and for drawing findings from the figures. Pure, and free of the packages
of the optional extra: the service imports this. It must not measure anything, and nothing here ever rejects a file.

Sources: EBU R 128 and ITU-R BS.1770 (loudness, true peak), EBU Tech 3342 (loudness range), AES17 (dBFS, but without
its 3 dB: a full-scale sine has an RMS of -3.01 dBFS here). Definitions and reasons: `docs/quality.md`.
"""

import math
from enum import StrEnum
from typing import Final, Literal

import msgspec

from shared.events import Format

SILENCE_DBFS: Final = -60.0
"""A sample below this is silent; a channel whose swing stays below it is dead."""
SILENCE_LEAST_S: Final = 0.5
"""A shorter pause counts as music."""
CLIPPED_RUN_LEAST: Final = 3
"""Consecutive samples at full scale, of one sign, in one channel: fewer can be a peak that was normalised."""

SILENCE_RATIO: Final = 0.8
ZERO_TAIL_S: Final = 5.0
TOO_QUIET_LUFS: Final = -36.0
CLIPPED_RUNS: Final = 10
CLIPPED_RUN_LONG: Final = 100
DC_OFFSET: Final = 0.01
SHORT_S: Final = 10.0
LOW_SAMPLE_RATE_HZ: Final = 44_100


class Finding(StrEnum):
    """What is odd about the sound. A closed list; each warns, none rejects."""

    SILENCE = "silence"
    LONG_ZERO_TAIL = "long_zero_tail"
    TOO_QUIET = "too_quiet"
    CLIPPING = "clipping"
    DC_OFFSET = "dc_offset"
    NON_FINITE = "non_finite"
    DEAD_CHANNEL = "dead_channel"
    IDENTICAL_CHANNELS = "identical_channels"
    SHORT = "short"
    LOW_SAMPLE_RATE = "low_sample_rate"
    SECOND_OPINION_DIFFERS = "second_opinion_differs"


class Failure(StrEnum):
    """Why a quality run has no result. The file is kept all the same."""

    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    MEMORY_EXCEEDED = "memory_exceeded"
    UNREADABLE = "unreadable"
    UNSUPPORTED = "unsupported"
    STOPPED = "stopped"


class SecondOpinion(StrEnum):
    """Whether libsndfile reads the same frames, channels and rate; unavailable where it cannot open the file."""

    AGREES = "agrees"
    DIFFERS = "differs"
    UNAVAILABLE = "unavailable"


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures. Levels are null where there is no signal, loudness also where the standard defines none.

    Attributes:
        peak_dbfs: highest sample.
        true_peak_dbtp: highest point between the samples, by oversampling.
        rms_dbfs: over all samples of all channels.
        clipped_runs: in all channels together; see `CLIPPED_RUN_LEAST`.
        longest_clipped_run: in samples; 0 without any.
        dc_offset: mean of the channel where it is farthest from zero; 1 is full scale.
        silence_ratio: share of the time that lies in pauses; see `SILENCE_DBFS` and `SILENCE_LEAST_S`.
        leading_silence_s: until the first sample that is not silent.
        leading_zeros_s: until the first frame with a sample that is not exactly zero.
        trailing_zeros_s: after the last such frame.
        non_finite_samples: NaN or infinite; every other figure takes them for zero.
        dead_channels: counted from 0.
        identical_channels: counted from 0; each is equal to an earlier one, sample by sample, and not dead.
        integrated_loudness_lufs: over the whole file, gated.
        loudness_range_lu: LRA.
    """

    peak_dbfs: float | None
    true_peak_dbtp: float | None
    rms_dbfs: float | None
    clipped_runs: int
    longest_clipped_run: int
    dc_offset: float
    silence_ratio: float
    leading_silence_s: float
    leading_zeros_s: float
    trailing_zeros_s: float
    non_finite_samples: int
    dead_channels: tuple[int, ...]
    identical_channels: tuple[int, ...]
    integrated_loudness_lufs: float | None
    loudness_range_lu: float | None


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """What a quality run found, or why it failed.

    Attributes:
        failure: null where it was measured.
        findings: in the order of `Finding`.
        measures: null where it failed.
        waveform: picture and peaks were asked for, and written.
    """

    status: Literal["measured", "failed"]
    failure: Failure | None = None
    findings: tuple[Finding, ...] = ()
    second_opinion: SecondOpinion = SecondOpinion.UNAVAILABLE
    measures: Measures | None = None
    waveform: bool = False


class WaveformPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run writes the picture and the peaks: absolute, in a folder that exists."""

    png: str
    peaks: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the service asks of a worker: one line of JSON."""

    path: str
    format: Format
    waveform: WaveformPaths | None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker answers, in one line of JSON; the detail is for the log only."""

    quality: Quality
    detail: str = ""


def failed(failure: Failure) -> Quality:
    """Return the result of a run that has none."""
    return Quality(status="failed", failure=failure)


def find(measures: Measures, format_: Format, second_opinion: SecondOpinion) -> tuple[Finding, ...]:
    """Draw the findings from the figures."""
    loudness = measures.integrated_loudness_lufs
    alive = format_.channels - len(measures.dead_channels)
    drawn = {
        Finding.SILENCE: measures.silence_ratio >= SILENCE_RATIO,
        Finding.LONG_ZERO_TAIL: measures.trailing_zeros_s >= ZERO_TAIL_S,
        Finding.TOO_QUIET: loudness is not None and loudness < TOO_QUIET_LUFS,
        Finding.CLIPPING: measures.clipped_runs >= CLIPPED_RUNS or measures.longest_clipped_run >= CLIPPED_RUN_LONG,
        Finding.DC_OFFSET: abs(measures.dc_offset) >= DC_OFFSET,
        Finding.NON_FINITE: measures.non_finite_samples > 0,
        Finding.DEAD_CHANNEL: bool(measures.dead_channels) and alive > 0,
        Finding.IDENTICAL_CHANNELS: bool(measures.identical_channels),
        Finding.SHORT: format_.duration_s < SHORT_S,
        Finding.LOW_SAMPLE_RATE: format_.sample_rate_hz < LOW_SAMPLE_RATE_HZ,
        Finding.SECOND_OPINION_DIFFERS: second_opinion is SecondOpinion.DIFFERS,
    }
    return tuple(finding for finding in Finding if drawn[finding])


def decibels(ratio: float) -> float | None:
    """Return a ratio of amplitudes in dB, to two places; null where it is nothing or has no end."""
    if not 0 < ratio < math.inf:
        return None
    return finite(20 * math.log10(ratio), 2)


def finite(value: float, places: int) -> float | None:
    """Round a figure; null where it is none, because JSON knows neither NaN nor infinity."""
    return round(value, places) + 0.0 if math.isfinite(value) else None
