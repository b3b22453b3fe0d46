"""Loudness and true peak of a stream, by libebur128.

Responsible for: keeping libebur128 within what it was made for (rates, channels, bounded history), and for telling it
which loudspeaker a channel of a WAV belongs to. It must not round or judge.

Sources: ITU-R BS.1770-4 (weights of the channels, true peak), EBU Tech 3341 (integrated loudness), EBU Tech 3342
(range); the order of channels is that of `mmreg.h`, SPEAKER_FRONT_LEFT onwards.
"""

import math
from typing import Final

import pyebur128  # type: ignore[import-untyped]

from downloader.quality_audio import Samples
from shared.events import Format

_RATES_HZ: Final = range(8_000, 384_001)
"""Below, the filters of the standard have no meaning; memory grows with the rate."""
_EXACT_S: Final = 3_600.0
"""Up to here every block of 400 ms is remembered (a megabyte); beyond, a histogram of 0.1 LU takes their place."""

_Type = pyebur128.ChannelType
_LAYOUTS: Final = {
    1: (_Type.LEFT,),
    2: (_Type.LEFT, _Type.RIGHT),
    3: (_Type.LEFT, _Type.RIGHT, _Type.CENTER),
    4: (_Type.LEFT, _Type.RIGHT, _Type.LEFT_SURROUND, _Type.RIGHT_SURROUND),
    5: (_Type.LEFT, _Type.RIGHT, _Type.CENTER, _Type.LEFT_SURROUND, _Type.RIGHT_SURROUND),
    6: (_Type.LEFT, _Type.RIGHT, _Type.CENTER, _Type.UNUSED, _Type.LEFT_SURROUND, _Type.RIGHT_SURROUND),
    7: (
        _Type.LEFT,
        _Type.RIGHT,
        _Type.CENTER,
        _Type.UNUSED,
        _Type.M_PLUS_180,
        _Type.M_PLUS_090,
        _Type.M_MINUS_090,
    ),
    8: (
        _Type.LEFT,
        _Type.RIGHT,
        _Type.CENTER,
        _Type.UNUSED,
        _Type.M_PLUS_135,
        _Type.M_MINUS_135,
        _Type.M_PLUS_090,
        _Type.M_MINUS_090,
    ),
}


class Loudness:
    """Integrated loudness, loudness range and true peak; NaN where the format has no such figure.

    A single channel counts as one loudspeaker, as the standard has it, not as two.

    Args:
        format_: as judged.
    """

    def __init__(self, format_: Format) -> None:
        self._channels = format_.channels
        self._long_enough = format_.duration_s >= 3.0
        self._state = None
        layout = _LAYOUTS.get(format_.channels)
        if layout is None or format_.sample_rate_hz not in _RATES_HZ:
            return
        mode = pyebur128.MeasurementMode
        modes = mode.MODE_I | mode.MODE_LRA | mode.MODE_TRUE_PEAK
        if format_.duration_s > _EXACT_S:
            modes |= mode.MODE_HISTOGRAM
        self._state = pyebur128.R128State(format_.channels, format_.sample_rate_hz, modes)
        for number, speaker in enumerate(layout):
            self._state.set_channel(number, speaker)

    def take(self, samples: Samples) -> None:
        """Take the next frames: interleaved, finite and contiguous. The library checks none of it."""
        if self._state is not None and samples.size:
            self._state.add_frames(samples, samples.size // self._channels)

    @property
    def integrated_lufs(self) -> float:
        """The gated loudness of all; minus infinity where everything is below the gate."""
        return math.nan if self._state is None else float(pyebur128.get_loudness_global(self._state))

    @property
    def range_lu(self) -> float:
        """The loudness range; it needs three seconds at least."""
        if self._state is None or not self._long_enough:
            return math.nan
        return float(pyebur128.get_loudness_range(self._state))

    @property
    def true_peak(self) -> float:
        """The highest amplitude between the samples, of all channels."""
        if self._state is None:
            return math.nan
        return max(float(pyebur128.get_true_peak(self._state, number)) for number in range(self._channels))
