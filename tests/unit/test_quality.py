"""Findings, thresholds, and the words of a quality result."""

import json
import math
import os

import msgspec
import pytest

from downloader.quality import (
    CLIPPED_RUN_LONG,
    CLIPPED_RUNS,
    DC_OFFSET,
    LOW_SAMPLE_RATE_HZ,
    SHORT_S,
    SILENCE_RATIO,
    TOO_QUIET_LUFS,
    ZERO_TAIL_S,
    Failure,
    Finding,
    Measures,
    Quality,
    SecondOpinion,
    decibels,
    failed,
    find,
    finite,
)
from downloader.settings import DownloaderSettings
from shared.errors import StartError
from shared.events import Format
from shared.settings import PREFIX, load

GOOD = Measures(
    peak_dbfs=-0.3,
    true_peak_dbtp=0.1,
    rms_dbfs=-15.0,
    clipped_runs=0,
    longest_clipped_run=0,
    dc_offset=0.0001,
    silence_ratio=0.02,
    leading_silence_s=0.1,
    leading_zeros_s=0.0,
    trailing_zeros_s=0.4,
    non_finite_samples=0,
    dead_channels=(),
    identical_channels=(),
    integrated_loudness_lufs=-14.0,
    loudness_range_lu=6.0,
)
FORMAT = Format(
    container="RIFF",
    codec="pcm",
    sample_rate_hz=44_100,
    channels=2,
    bits_per_sample=16,
    frames=44_100 * 180,
    duration_s=180.0,
)


def test_a_good_file_has_no_findings() -> None:
    """Ordinary music raises nothing."""
    assert find(GOOD, FORMAT, SecondOpinion.AGREES) == ()
    assert find(GOOD, FORMAT, SecondOpinion.UNAVAILABLE) == ()


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"silence_ratio": SILENCE_RATIO}, Finding.SILENCE),
        ({"trailing_zeros_s": ZERO_TAIL_S}, Finding.LONG_ZERO_TAIL),
        ({"integrated_loudness_lufs": TOO_QUIET_LUFS - 0.01}, Finding.TOO_QUIET),
        ({"clipped_runs": CLIPPED_RUNS}, Finding.CLIPPING),
        ({"clipped_runs": 1, "longest_clipped_run": CLIPPED_RUN_LONG}, Finding.CLIPPING),
        ({"dc_offset": -DC_OFFSET}, Finding.DC_OFFSET),
        ({"non_finite_samples": 1}, Finding.NON_FINITE),
        ({"dead_channels": (1,)}, Finding.DEAD_CHANNEL),
        ({"identical_channels": (1,)}, Finding.IDENTICAL_CHANNELS),
    ],
)
def test_each_figure_has_its_finding(change: dict[str, object], finding: Finding) -> None:
    """At its threshold, and alone."""
    assert find(msgspec.structs.replace(GOOD, **change), FORMAT, SecondOpinion.AGREES) == (finding,)


@pytest.mark.parametrize(
    "change",
    [
        {"silence_ratio": SILENCE_RATIO - 0.01},
        {"trailing_zeros_s": ZERO_TAIL_S - 0.1},
        {"integrated_loudness_lufs": TOO_QUIET_LUFS},
        {"integrated_loudness_lufs": None},
        {"clipped_runs": CLIPPED_RUNS - 1, "longest_clipped_run": CLIPPED_RUN_LONG - 1},
        {"dc_offset": DC_OFFSET - 0.0001},
        {"dead_channels": (0, 1)},
    ],
)
def test_below_its_threshold_a_figure_has_none(change: dict[str, object]) -> None:
    """Just short of a threshold there is no finding; and where all channels are dead, silence says so."""
    assert find(msgspec.structs.replace(GOOD, **change), FORMAT, SecondOpinion.AGREES) == ()


def test_findings_about_the_format() -> None:
    """A short file, a low rate and a libsndfile that reads otherwise are told, in the order of the list."""
    odd = msgspec.structs.replace(FORMAT, duration_s=SHORT_S - 0.1, sample_rate_hz=LOW_SAMPLE_RATE_HZ - 1)
    assert find(GOOD, odd, SecondOpinion.DIFFERS) == (
        Finding.SHORT,
        Finding.LOW_SAMPLE_RATE,
        Finding.SECOND_OPINION_DIFFERS,
    )


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.0, 0.0), (0.5, -6.02), (0.0, None), (math.inf, None), (math.nan, None)]
)
def test_decibels(ratio: float, expected: float | None) -> None:
    """A ratio in dB; null where there is no such figure."""
    assert decibels(ratio) == expected


def test_finite() -> None:
    """What JSON cannot say is null, and zero has no sign."""
    assert finite(-math.inf, 2) is None
    assert math.copysign(1, finite(-0.0001, 2) or 0.0) == 1


def test_a_result_is_plain_json() -> None:
    """A result survives JSON, both measured and failed, with its closed words."""
    measured = Quality(
        status="measured", findings=(Finding.SILENCE,), second_opinion=SecondOpinion.AGREES, measures=GOOD
    )
    for quality in (measured, failed(Failure.TIMED_OUT)):
        text = msgspec.json.encode(quality)
        assert msgspec.json.decode(text, type=Quality) == quality
        json.loads(text, parse_constant=pytest.fail)
    assert json.loads(msgspec.json.encode(failed(Failure.TIMED_OUT)))["failure"] == "timed_out"


@pytest.mark.parametrize("switch", ["quality", "waveform"])
def test_measuring_must_fit_into_the_time_of_a_message(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt and its measuring end before the broker hands the message out again; off, it takes no time."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(f"{PREFIX}QUALITY_TIMEOUT_S", "300")
    assert load(DownloaderSettings).quality is False
    monkeypatch.setenv(f"{PREFIX}{switch.upper()}", "true")
    with pytest.raises(StartError, match=f"{PREFIX}QUALITY_TIMEOUT_S together must be below"):
        load(DownloaderSettings)
    monkeypatch.setenv(f"{PREFIX}QUALITY_TIMEOUT_S", "299")
    assert getattr(load(DownloaderSettings), switch) is True
