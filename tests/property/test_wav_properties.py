"""What holds of the walker for any file, cut into pieces in any way."""

import tracemalloc
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.wav import Judgement, Walker
from shared.errors import PermanentError, Reason, RetryableError
from simulator.wavs import Flavour, wav

WHOLE = (
    Flavour.PCM16,
    Flavour.PCM24,
    Flavour.PCM8,
    Flavour.PCM32,
    Flavour.FLOAT32,
    Flavour.FLOAT64,
    Flavour.EXTENSIBLE,
    Flavour.RF64,
    Flavour.BW64,
    Flavour.RIFX,
    Flavour.WITH_LIST,
    Flavour.ODD,
    Flavour.NO_PAD,
    Flavour.TRAILING_JUNK,
    Flavour.RIFF_SIZE_OFF,
)
"""Those whose header tells the length of the audio."""

OUTCOMES = {Reason.NOT_WAV, Reason.WAV_TRUNCATED, Reason.WAV_INVALID, Reason.WAV_UNSUPPORTED}

NAMES = st.sampled_from([b"RIFF", b"RIFX", b"RF64", b"BW64", b"fmt ", b"data", b"ds64", b"LIST", b"JUNK", b"\0\0\0\0"])
SIZES = st.one_of(
    st.integers(0, 60),
    st.sampled_from([0x7FFFF000, 0x80000000, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
).map(lambda size: size.to_bytes(4, "little"))
FMT = bytes.fromhex("666d7420 10000000 0100 0200 44ac0000 10b10200 0400 1000")
SCRAPS = st.one_of(
    NAMES,
    SIZES,
    st.tuples(NAMES, SIZES, st.binary(max_size=60)).map(b"".join),
    st.tuples(NAMES, SIZES, st.just(b"WAVE")).map(b"".join),
    st.just(FMT),
    st.binary(max_size=40),
)
NEARLY_WAV = st.tuples(
    st.tuples(st.sampled_from([b"RIFF", b"RIFX", b"RF64", b"BW64"]), SIZES, st.just(b"WAVE")).map(b"".join),
    st.lists(SCRAPS, max_size=8).map(b"".join),
).map(b"".join)
ANYTHING = st.one_of(st.binary(max_size=300), NEARLY_WAV)


@cache
def make(flavour: Flavour) -> bytes:
    """Make a small file of a flavour."""
    return b"".join(wav(duration_s=0.005, seed=7, flavour=flavour).blocks())


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut into pieces at these places, some of which may be empty or beyond the end."""
    return [data[start:end] for start, end in pairwise([0, *sorted(places), len(data) + 1])]


def outcome(pieces: list[bytes], *, proven: bool) -> Judgement | tuple[type[Exception], Reason, str]:
    """Judge a file in pieces; a refusal is an outcome too. Anything but the two errors is raised."""
    walker = Walker()
    try:
        for piece in pieces:
            walker.feed(piece)
        return walker.finish(body_proven_complete=proven)
    except (RetryableError, PermanentError) as error:
        return type(error), error.reason, error.detail


@given(
    data=st.one_of(st.sampled_from(Flavour).map(make), ANYTHING),
    places=st.lists(st.integers(0, 2_000), max_size=30),
    proven=st.booleans(),
)
def test_pieces_do_not_matter(data: bytes, places: list[int], *, proven: bool) -> None:
    """Whatever the file and wherever it is cut into pieces, the judgement is that of the file fed whole."""
    assert outcome(cut(data, places), proven=proven) == outcome([data], proven=proven)


@given(data=ANYTHING, proven=st.booleans())
def test_nothing_but_a_judgement_or_one_of_two_errors(data: bytes, *, proven: bool) -> None:
    """No bytes, however hostile, raise anything but the two errors, under one of four reasons, with a sentence."""
    result = outcome([data], proven=proven)

    if isinstance(result, Judgement):
        assert result.format.frames > 0
        assert result.format.duration_s > 0
        assert result.format.frames <= len(data)
    else:
        assert result[1] in OUTCOMES
        assert result[2]


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("flavour", WHOLE)
def test_file_cut_in_its_audio_is_never_accepted(flavour: Flavour, *, proven: bool) -> None:
    """Cut at any byte before the end of its audio, no file is accepted, even if the transport saw a complete body."""
    data = make(flavour)
    judgement = outcome([data], proven=proven)
    assert isinstance(judgement, Judgement)
    found = judgement.format
    end = data.index(b"data") + 8 + found.frames * found.channels * found.bits_per_sample // 8

    reasons = [outcome([data[:at]], proven=proven) for at in range(end)]

    assert {reason[:2] for reason in reasons[1:] if isinstance(reason, tuple)} == {
        (RetryableError, Reason.WAV_TRUNCATED)
    }
    assert not any(isinstance(reason, Judgement) for reason in reasons)


@given(places=st.lists(st.integers(0, 2_000), max_size=5), share=st.floats(0.1, 1))
def test_open_length_is_never_accepted_unproven(places: list[int], share: float) -> None:
    """However much of a file with a streaming header is there, it is refused unless its end is proven."""
    data = make(Flavour.STREAMING_HEADER)

    refusal = outcome(cut(data[: int(len(data) * share)], places), proven=False)

    assert isinstance(refusal, tuple)
    assert refusal[:2] == (RetryableError, Reason.WAV_TRUNCATED)


@given(head=NEARLY_WAV)
def test_memory_is_bounded(head: bytes) -> None:
    """Whatever its header says, half a megabyte more of a file leaves only a few kilobytes in memory."""
    walker, block = Walker(), bytes(64 * 1024)
    tracemalloc.start()
    try:
        walker.feed(head)
        for _ in range(8):
            walker.feed(block)
    except (RetryableError, PermanentError):
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < 32 * 1024
