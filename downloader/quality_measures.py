"""Measure audio while it streams by.

Responsible for: one accumulator for each figure, and all of them together. Fed with blocks of any size, the result
does not depend on how the audio was cut, and memory does not depend on its length. Pure. It must not read, and it must
not judge: `downloader.quality` draws the findings.
"""

import numpy as np
from numpy.typing import NDArray

from downloader.quality import (
    CLIPPED_RUN_LEAST,
    SILENCE_DBFS,
    SILENCE_LEAST_S,
    Measures,
    decibels,
    finite,
)
from downloader.quality_audio import Samples, full_scale
from downloader.quality_loudness import Loudness
from shared.events import Format

_SILENT = 10 ** (SILENCE_DBFS / 20)


class Levels:
    """Extremes, sums and energy of each channel."""

    def __init__(self, channels: int) -> None:
        self._frames = 0
        self._highest = np.full(channels, -np.inf)
        self._lowest = np.full(channels, np.inf)
        self._sum = np.zeros(channels)
        self._energy = np.zeros(channels)

    def take(self, planar: Samples) -> None:
        """Take the next frames, one row a channel."""
        self._frames += planar.shape[1]
        self._highest = np.maximum(self._highest, planar.max(axis=1))
        self._lowest = np.minimum(self._lowest, planar.min(axis=1))
        self._sum += planar.sum(axis=1)
        with np.errstate(over="ignore"):
            self._energy += np.einsum("ij,ij->i", planar, planar)

    @property
    def peak(self) -> float:
        """The highest amplitude."""
        return float(max(self._highest.max(), -self._lowest.min()))

    @property
    def rms(self) -> float:
        """The root of the mean square, over all channels."""
        return float(np.sqrt(self._energy.mean() / self._frames))

    @property
    def dc_offset(self) -> float:
        """The mean of the channel that is farthest from zero."""
        means = self._sum / self._frames
        return float(means[np.abs(means).argmax()])

    @property
    def dead(self) -> tuple[int, ...]:
        """The channels that hardly move, at whatever height they stand still."""
        return tuple(int(channel) for channel in np.flatnonzero((self._highest - self._lowest) / 2 < _SILENT))


class Clipping:
    """Runs of samples at full scale, by channel and sign.

    Args:
        channels: how many.
        full_scale: amplitude from which on a sample counts.
    """

    def __init__(self, channels: int, full_scale: float) -> None:
        self._full_scale = full_scale
        self._open = [(0, 0)] * channels
        """Sign and length of the run that each channel is in; sign 0 is none."""
        self._closed = 0
        self._longest = 0

    def take(self, planar: Samples) -> None:
        """Take the next frames, one row a channel."""
        for channel, row in enumerate(planar):
            signs = (row >= self._full_scale).astype(np.int8) - (row <= -self._full_scale).astype(np.int8)
            if signs.any():
                self._take_signs(channel, signs)
            else:
                self._close(np.array([self._open[channel][1]]))
                self._open[channel] = (0, 0)

    def _take_signs(self, channel: int, signs: NDArray[np.int8]) -> None:
        starts = np.concatenate(([0], np.flatnonzero(np.diff(signs)) + 1))
        lengths = np.diff(starts, append=len(signs))
        kinds = signs[starts]
        sign, length = self._open[channel]
        if kinds[0] == sign:
            lengths[0] += length
        else:
            self._close(np.array([length]))
        self._close(lengths[:-1][kinds[:-1] != 0])
        self._open[channel] = (int(kinds[-1]), int(lengths[-1])) if kinds[-1] else (0, 0)

    def _close(self, lengths: NDArray[np.int64]) -> None:
        runs = lengths[lengths >= CLIPPED_RUN_LEAST]
        self._closed += len(runs)
        self._longest = max(self._longest, int(runs.max(initial=0)))

    @property
    def runs(self) -> int:
        """How many there were, those that are open included."""
        return self._closed + sum(length >= CLIPPED_RUN_LEAST for _, length in self._open)

    @property
    def longest(self) -> int:
        """The longest, in samples."""
        lengths = (length for _, length in self._open if length >= CLIPPED_RUN_LEAST)
        return max(self._longest, max(lengths, default=0))


class Pauses:
    """Silence and zeros, told from the highest amplitude of each frame.

    Args:
        rate_hz: of frames.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._least = max(1, round(SILENCE_LEAST_S * rate_hz))
        self._frames = 0
        self._silent = 0
        self._first_loud: int | None = None
        self._last_loud = -1
        self._first_nonzero: int | None = None
        self._last_nonzero = -1

    def take(self, amplitudes: Samples) -> None:
        """Take the next frames, one amplitude each."""
        nonzero = amplitudes > 0
        if nonzero.any():
            if self._first_nonzero is None:
                self._first_nonzero = self._frames + int(nonzero.argmax())
            self._last_nonzero = self._frames + len(nonzero) - 1 - int(nonzero[::-1].argmax())
        loud = np.flatnonzero(amplitudes >= _SILENT) + self._frames
        if loud.size:
            gaps = np.diff(loud, prepend=self._last_loud) - 1
            self._silent += int(gaps[gaps >= self._least].sum())
            if self._first_loud is None:
                self._first_loud = int(loud[0])
            self._last_loud = int(loud[-1])
        self._frames += len(amplitudes)

    @property
    def silence_ratio(self) -> float:
        """Share of the frames that lie in a pause."""
        tail = self._frames - 1 - self._last_loud
        silent = self._silent + (tail if tail >= self._least or self._first_loud is None else 0)
        return silent / self._frames

    @property
    def leading_silence_s(self) -> float:
        """Seconds until something is heard; all of them where nothing is."""
        return (self._frames if self._first_loud is None else self._first_loud) / self._rate_hz

    @property
    def leading_zeros_s(self) -> float:
        """Seconds of exact zeros at the beginning."""
        return (self._frames if self._first_nonzero is None else self._first_nonzero) / self._rate_hz

    @property
    def trailing_zeros_s(self) -> float:
        """Seconds of exact zeros at the end."""
        return (self._frames - 1 - self._last_nonzero) / self._rate_hz


class Twins:
    """Channels that are the same, sample by sample.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        self._groups = [list(range(channels))]

    def take(self, planar: Samples) -> None:
        """Take the next frames, one row a channel: groups of equals fall apart, and never come together again."""
        groups: list[list[int]] = []
        for group in self._groups:
            rest = group
            while len(rest) > 1:
                same = [channel for channel in rest if np.array_equal(planar[channel], planar[rest[0]])]
                groups.append(same)
                rest = [channel for channel in rest if channel not in same]
        self._groups = groups

    @property
    def identical(self) -> tuple[int, ...]:
        """Each channel that is equal to an earlier one."""
        return tuple(sorted(channel for group in self._groups for channel in group[1:]))


class Measurement:
    """All figures of one file.

    Args:
        format_: as judged.
    """

    def __init__(self, format_: Format) -> None:
        self._channels = format_.channels
        self._non_finite = 0
        self._levels = Levels(format_.channels)
        self._clipping = Clipping(format_.channels, full_scale(format_))
        self._pauses = Pauses(format_.sample_rate_hz)
        self._twins = Twins(format_.channels)
        self._loudness = Loudness(format_)

    def take(self, samples: Samples) -> Samples:
        """Take the next frames, interleaved; return them one row a channel, NaN and infinity replaced by zero."""
        good = np.isfinite(samples)
        if not good.all():
            self._non_finite += int(samples.size - np.count_nonzero(good))
            samples = np.where(good, samples, 0.0)
        planar = np.ascontiguousarray(samples.reshape(-1, self._channels).T)
        self._levels.take(planar)
        self._clipping.take(planar)
        self._pauses.take(np.abs(planar).max(axis=0))
        self._twins.take(planar)
        self._loudness.take(samples)
        return planar

    def result(self) -> Measures:
        """Return the figures of what was taken: one frame at least."""
        dead = self._levels.dead
        return Measures(
            peak_dbfs=decibels(self._levels.peak),
            true_peak_dbtp=decibels(self._loudness.true_peak),
            rms_dbfs=decibels(self._levels.rms),
            clipped_runs=self._clipping.runs,
            longest_clipped_run=self._clipping.longest,
            dc_offset=finite(self._levels.dc_offset, 6) or 0.0,
            silence_ratio=round(self._pauses.silence_ratio, 4),
            leading_silence_s=round(self._pauses.leading_silence_s, 3),
            leading_zeros_s=round(self._pauses.leading_zeros_s, 3),
            trailing_zeros_s=round(self._pauses.trailing_zeros_s, 3),
            non_finite_samples=self._non_finite,
            dead_channels=dead,
            identical_channels=tuple(channel for channel in self._twins.identical if channel not in dead),
            integrated_loudness_lufs=finite(self._loudness.integrated_lufs, 2),
            loudness_range_lu=finite(self._loudness.range_lu, 2),
        )
