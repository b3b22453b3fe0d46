"""Files of other projects, and very large ones: our walker, libsndfile and the quality run against the same bytes."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]

from downloader.quality import Job, SecondOpinion
from downloader.quality_audio import read_blocks
from downloader.quality_worker import measure
from downloader.wav import Judgement, Walker
from shared.errors import RetryableError, WavekeepError
from simulator.wavs import Flavour, wav

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"
VERDICTS: dict[str, dict[str, Any]] = json.loads((CORPUS / "verdicts.json").read_text("utf-8"))
ACCEPTED = sorted(name for name, verdict in VERDICTS.items() if "accepted" in verdict)
REFUSED = sorted(name for name, verdict in VERDICTS.items() if "refused" in verdict)
WHOLE = list(Flavour)[: list(Flavour).index(Flavour.TRUNCATED)]

LARGE_BYTES = 5_000_000_000
MEMORY_BYTES = 256 * 1024 * 1024
WALK = """
import hashlib, json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
from downloader.wav import Walker
walker, digest, buffer = Walker(), hashlib.sha256(), bytearray(1 << 20)
with open(sys.argv[1], "rb", buffering=0) as file:
    while size := file.readinto(buffer):
        walker.feed(memoryview(buffer)[:size])
        digest.update(memoryview(buffer)[:size])
judgement = walker.finish(body_proven_complete=False)
peak_kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
format_ = judgement.format
print(json.dumps([format_.container, format_.frames, format_.channels, list(judgement.warnings), peak_kb]))
"""


def judge(data: bytes, *, piece: int, proven: bool = False) -> Judgement:
    """Feed a file in pieces of a size and judge it."""
    walker = Walker()
    for at in range(0, len(data), piece):
        walker.feed(data[at : at + piece])
    return walker.finish(body_proven_complete=proven)


def test_the_corpus_is_complete() -> None:
    """Every file is as its origin publishes it, has a verdict, and its origin and licence are told; five at least."""
    found = {str(path.relative_to(CORPUS)): path for path in CORPUS.rglob("*.wav")}
    assert set(found) == set(VERDICTS)
    for name, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == VERDICTS[name]["sha256"], name
        assert path.stat().st_size < 50_000
    readme = (CORPUS / "README.md").read_text("utf-8")
    origins = {name.partition("/")[0] for name in found}
    assert len(origins) >= 5
    assert not [origin for origin in origins if f"| `{origin}/` |" not in readme]


@pytest.mark.parametrize("piece", [1, 4_096])
@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, piece: int) -> None:
    """The walker reads in it what was decided, with no proof from the transport."""
    judgement = judge((CORPUS / name).read_bytes(), piece=piece)
    read = msgspec.to_builtins(judgement.format)
    assert {key: read[key] for key in VERDICTS[name]["accepted"]} == VERDICTS[name]["accepted"]
    assert [str(warning) for warning in judgement.warnings] == VERDICTS[name]["warnings"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_libsndfile_agrees(name: str) -> None:
    """Frames, channels, rate and every sample are the same by libsndfile, and the quality run says so."""
    format_ = judge((CORPUS / name).read_bytes(), piece=4_096).format
    with soundfile.SoundFile(CORPUS / name) as file:
        assert (file.frames, file.channels, file.samplerate) == (
            format_.frames,
            format_.channels,
            format_.sample_rate_hz,
        )
        theirs = file.read(dtype="float64").reshape(-1)
    ours = np.concatenate(list(read_blocks(CORPUS / name, format_)))
    assert np.array_equal(ours, theirs)
    quality = measure(Job(path=str(CORPUS / name), format=format_, waveform=None)).quality
    assert (quality.status, quality.second_opinion) == ("measured", SecondOpinion.AGREES)


@pytest.mark.parametrize("piece", [1, 4_096])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, piece: int) -> None:
    """The walker refuses it for the reason that was decided, however complete the transport says it is."""
    with pytest.raises(WavekeepError) as caught:
        judge((CORPUS / name).read_bytes(), piece=piece, proven=True)
    told = (str(caught.value.reason), isinstance(caught.value, RetryableError))
    assert told == (VERDICTS[name]["refused"], VERDICTS[name]["retryable"])


@pytest.mark.parametrize("flavour", WHOLE)
def test_libsndfile_agrees_on_what_we_make(flavour: str, tmp_path: Path) -> None:
    """The same for every whole flavour of the simulator; BW64 libsndfile does not know, and that is told too."""
    path = tmp_path / "made.wav"
    path.write_bytes(b"".join(wav(flavour=flavour, duration_s=0.5).blocks()))
    format_ = judge(path.read_bytes(), piece=4_096, proven=True).format
    quality = measure(Job(path=str(path), format=format_, waveform=None)).quality
    expected = SecondOpinion.UNAVAILABLE if flavour == Flavour.BW64 else SecondOpinion.AGREES
    assert quality.second_opinion is expected


@pytest.mark.slow
def test_five_gigabytes_within_256_mb(tmp_path: Path) -> None:
    """An RF64 of 5 GB, sparse on disk, is hashed and judged by a process that may map 256 MB."""
    path = tmp_path / "large.wav"
    frames = LARGE_BYTES // 4
    chunks = struct.pack("<4sIQQQI", b"ds64", 28, 72 + LARGE_BYTES, LARGE_BYTES, frames, 0)
    chunks += struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, 44_100, 176_400, 4, 16)
    path.write_bytes(
        struct.pack("<4sI4s", b"RF64", 0xFFFFFFFF, b"WAVE") + chunks + struct.pack("<4sI", b"data", 0xFFFFFFFF)
    )
    os.truncate(path, path.stat().st_size + LARGE_BYTES)
    assert path.stat().st_blocks * 512 < 10_000_000
    done = subprocess.run(
        [sys.executable, "-c", WALK, str(path), str(MEMORY_BYTES)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr.decode()
    container, read, channels, warnings, peak_kb = json.loads(done.stdout)
    assert (container, read, channels, warnings) == ("RF64", frames, 2, [])
    assert peak_kb * 1024 < MEMORY_BYTES / 2
