"""The quality run as a whole: real workers, killed, crashed, starved and stopped; the service never pays for it."""

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from downloader import quality_run
from downloader.quality import Failure, Finding, SecondOpinion, WaveformPaths
from downloader.quality_run import QualityRunner, available, require
from downloader.wav import Walker
from shared.errors import StartError
from shared.events import Format
from simulator.wavs import Flavour, wav

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


def judged(path: Path) -> Format:
    """Return the format as the walker reads it."""
    walker = Walker()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            walker.feed(block)
    return walker.finish(body_proven_complete=True).format


def written(folder: Path, *, duration_s: float = 12.0, flavour: str = Flavour.PCM16) -> tuple[Path, Format]:
    """Write a file of music-like noise."""
    path = folder / f"{flavour}-{duration_s}.wav"
    with path.open("wb") as file:
        file.writelines(wav(flavour=flavour, duration_s=duration_s).blocks())
    return path, judged(path)


def sparse(folder: Path, size_bytes: int, *, channels: int = 2, rate: int = 48_000) -> tuple[Path, Format]:
    """Write 64-bit float silence that takes no room on disk."""
    path = folder / "sparse.wav"
    align = 8 * channels
    frames = size_bytes // align
    size_bytes = frames * align
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, channels, rate, rate * align, align, 64)
    path.write_bytes(
        struct.pack("<4sI4s", b"RIFF", 36 + size_bytes, b"WAVE") + fmt + struct.pack("<4sI", b"data", size_bytes)
    )
    os.truncate(path, 44 + size_bytes)
    return path, Format(
        container="RIFF",
        codec="float",
        sample_rate_hz=rate,
        channels=channels,
        bits_per_sample=64,
        frames=frames,
        duration_s=frames / rate,
    )


def pids(runner: QualityRunner) -> list[int]:
    """Return the workers that run."""
    return [worker._process.pid for worker in runner._alive]


def running(pid: int) -> bool:
    """Tell whether a process is there and not merely waiting to be collected."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    return False


def highest_kb(pid: int) -> int:
    """Return the most memory a process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def environment_of(pid: int) -> bytes:
    """Return what a process was handed."""
    return Path(f"/proc/{pid}/environ").read_bytes()


def peaks_of(drawing: WaveformPaths) -> dict[str, list[int]]:
    """Read the peaks that a run wrote."""
    peaks: dict[str, list[int]] = json.loads(Path(drawing.peaks).read_bytes())
    return peaks


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, or fail."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - another process tells no event
            await asyncio.sleep(0.01)


async def begun(runner: QualityRunner) -> int:
    """Wait until a worker computes, and return it."""

    def busy() -> bool:
        return any(int(Path(f"/proc/{pid}/stat").read_text("ascii").split()[13]) > 50 for pid in pids(runner))

    await until(busy)
    return pids(runner)[0]


async def test_a_file_is_measured_and_drawn(tmp_path: Path) -> None:
    """Figures, findings, second opinion, picture and peaks, by one worker, in one pass."""
    path, format_ = written(tmp_path)
    drawing = WaveformPaths(png=str(tmp_path / "wave.png"), peaks=str(tmp_path / "wave.json"))
    async with QualityRunner() as runner:
        quality = await runner.judge(path, format_, timeout_s=PATIENCE_S, waveform=drawing)
        again = await runner.judge(path, format_, timeout_s=PATIENCE_S)
        assert len(pids(runner)) == 1
    assert (quality.status, quality.failure, quality.findings) == ("measured", None, ())
    assert quality.second_opinion is SecondOpinion.AGREES
    assert quality.measures == again.measures
    assert quality.measures is not None
    assert quality.measures.peak_dbfs == pytest.approx(-4.43, abs=0.1)
    assert (quality.waveform, again.waveform) == (True, False)
    with Image.open(drawing.png) as image:
        assert image.size == (1_600, 256)
    assert len(peaks_of(drawing)["data"]) > 1_000


async def test_findings_reach_the_caller(tmp_path: Path) -> None:
    """A file of zeros is told as silence with a long tail of zeros; it fails nothing."""
    path, format_ = sparse(tmp_path, 16_000_000)
    async with QualityRunner() as runner:
        quality = await runner.judge(path, format_, timeout_s=PATIENCE_S)
    assert quality.status == "measured"
    assert quality.findings == (Finding.SILENCE, Finding.LONG_ZERO_TAIL)


async def test_a_second_opinion_that_differs_is_a_finding(tmp_path: Path) -> None:
    """Where libsndfile reads another number of frames than was judged, that is told, and nothing else happens."""
    path, format_ = written(tmp_path)
    fewer = Format(**{name: getattr(format_, name) for name in format_.__struct_fields__} | {"frames": 500_000})
    async with QualityRunner() as runner:
        quality = await runner.judge(path, fewer, timeout_s=PATIENCE_S)
    assert quality.second_opinion is SecondOpinion.DIFFERS
    assert quality.findings == (Finding.SECOND_OPINION_DIFFERS,)


async def test_a_worker_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    """After the time limit its process is gone, and the next file gets another one."""
    path, format_ = sparse(tmp_path, 2_000_000_000)
    short, its_format = written(tmp_path)
    async with QualityRunner() as runner:
        running_it = asyncio.create_task(runner.judge(path, format_, timeout_s=3.0))
        pid = await begun(runner)
        quality = await running_it
        assert (quality.status, quality.failure) == ("failed", Failure.TIMED_OUT)
        assert not running(pid)
        assert (await runner.judge(short, its_format, timeout_s=PATIENCE_S)).status == "measured"
        assert pid not in pids(runner)


async def test_waiting_for_a_worker_counts(tmp_path: Path) -> None:
    """A run whose turn never comes within its time ends too, and costs the one that is running nothing."""
    path, format_ = sparse(tmp_path, 2_000_000_000)
    async with QualityRunner() as runner:
        first = asyncio.create_task(runner.judge(path, format_, timeout_s=PATIENCE_S))
        pid = await begun(runner)
        assert (await runner.judge(path, format_, timeout_s=0.1)).failure is Failure.TIMED_OUT
        assert running(pid)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first


async def test_a_worker_that_died_between_two_files_is_replaced(tmp_path: Path) -> None:
    """The file after it does not pay for it."""
    path, format_ = written(tmp_path)
    async with QualityRunner() as runner:
        await runner.judge(path, format_, timeout_s=PATIENCE_S)
        (worker,) = runner._alive
        os.kill(worker._process.pid, signal.SIGKILL)
        await until(lambda: worker.gone)
        assert (await runner.judge(path, format_, timeout_s=PATIENCE_S)).status == "measured"


async def test_a_worker_that_dies_takes_no_other_with_it(tmp_path: Path) -> None:
    """One of two workers is shot: its run fails as crashed, the other's goes on, and both slots work afterwards."""
    slow, slow_format = sparse(tmp_path, 2_000_000_000)
    path, format_ = written(tmp_path, duration_s=60.0)
    async with QualityRunner(workers=2) as runner:
        doomed = asyncio.create_task(runner.judge(slow, slow_format, timeout_s=PATIENCE_S))
        victim = await begun(runner)
        other = asyncio.create_task(runner.judge(path, format_, timeout_s=PATIENCE_S))
        await until(lambda: len(pids(runner)) == 2)
        os.kill(victim, signal.SIGKILL)
        assert (await doomed).failure is Failure.CRASHED
        assert (await other).status == "measured"
        both = [runner.judge(path, format_, timeout_s=PATIENCE_S) for _ in range(2)]
        assert [quality.status for quality in await asyncio.gather(*both)] == ["measured"] * 2


async def test_cancelling_kills_the_worker(tmp_path: Path) -> None:
    """A run that nobody waits for any more costs nothing."""
    path, format_ = sparse(tmp_path, 2_000_000_000)
    async with QualityRunner() as runner:
        unwanted = asyncio.create_task(runner.judge(path, format_, timeout_s=PATIENCE_S))
        pid = await begun(runner)
        unwanted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unwanted
        assert not running(pid)


async def test_stopping_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    """On the way out no worker is left, and every run has a result that says why."""
    path, format_ = sparse(tmp_path, 2_000_000_000)
    async with QualityRunner() as runner:
        runs = [asyncio.create_task(runner.judge(path, format_, timeout_s=PATIENCE_S)) for _ in range(3)]
        pid = await begun(runner)
    assert [quality.failure for quality in await asyncio.gather(*runs)] == [Failure.STOPPED] * 3
    assert not running(pid)


async def test_stopping_while_a_worker_starts(tmp_path: Path) -> None:
    """A worker that is only just being started is not forgotten on the way out."""
    path, format_ = written(tmp_path)
    async with QualityRunner() as runner:
        early = asyncio.create_task(runner.judge(path, format_, timeout_s=PATIENCE_S))
        await asyncio.sleep(0)
    assert (await early).failure is Failure.STOPPED
    assert pids(runner) == []


async def test_a_worker_does_not_outlive_the_service(tmp_path: Path) -> None:
    """After a kill -9 of the service its workers see the end of their input, and end too."""
    path, format_ = written(tmp_path)
    script = (
        "import asyncio, sys, time, msgspec\n"
        "from pathlib import Path\n"
        "from downloader.quality_run import QualityRunner\n"
        "from shared.events import Format\n"
        "async def main():\n"
        "    runner = QualityRunner()\n"
        "    format_ = msgspec.json.decode(sys.argv[2], type=Format)\n"
        "    print((await runner.judge(Path(sys.argv[1]), format_, timeout_s=30)).status)\n"
        "    print([worker._process.pid for worker in runner._alive][0], flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    fields = json.dumps({name: getattr(format_, name) for name in format_.__struct_fields__})
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(path), fields, cwd=ROOT, stdout=subprocess.PIPE
    )
    assert service.stdout is not None
    assert await service.stdout.readline() == b"measured\n"
    worker = int(await service.stdout.readline())
    assert running(worker)
    service.kill()
    await service.wait()
    await until(lambda: not running(worker))


@pytest.mark.parametrize(
    ("spoil", "failure"),
    [
        (lambda path: path.unlink(), Failure.UNREADABLE),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), Failure.UNREADABLE),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>"), Failure.UNREADABLE),
    ],
    ids=["gone", "shorter", "no WAV"],
)
async def test_an_unreadable_file_is_a_result(
    spoil: Callable[[Path], object], failure: Failure, tmp_path: Path
) -> None:
    """What cannot be read is told as such, and the worker stays."""
    path, format_ = written(tmp_path)
    spoil(path)
    async with QualityRunner() as runner:
        quality = await runner.judge(path, format_, timeout_s=PATIENCE_S)
        assert (quality.status, quality.failure, quality.measures) == ("failed", failure, None)
        assert len(pids(runner)) == 1


async def test_too_many_channels_are_unsupported(tmp_path: Path) -> None:
    """Sixty-five channels are kept, but not measured."""
    path, format_ = sparse(tmp_path, 1_000_000, channels=65)
    async with QualityRunner() as runner:
        assert (await runner.judge(path, format_, timeout_s=PATIENCE_S)).failure is Failure.UNSUPPORTED


async def test_memory_is_bounded(tmp_path: Path) -> None:
    """A run that needs more than its worker may have fails alone, as told."""
    path, format_ = sparse(tmp_path, 50_000_000, channels=8, rate=384_000)
    async with QualityRunner(memory_bytes=200_000_000) as runner:
        quality = await runner.judge(path, format_, timeout_s=PATIENCE_S)
    assert quality.failure is Failure.MEMORY_EXCEEDED


async def test_a_waveform_that_cannot_be_written_loses_no_figure(tmp_path: Path) -> None:
    """The measures stand; only the picture is missing, and the result says so."""
    path, format_ = written(tmp_path)
    nowhere = WaveformPaths(png=str(tmp_path / "no" / "a.png"), peaks=str(tmp_path / "no" / "a.json"))
    async with QualityRunner() as runner:
        quality = await runner.judge(path, format_, timeout_s=PATIENCE_S, waveform=nowhere)
    assert (quality.status, quality.waveform) == ("measured", False)


async def test_a_worker_that_cannot_start_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No interpreter, no process: the run fails, the file does not."""
    path, format_ = written(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    async with QualityRunner() as runner:
        assert (await runner.judge(path, format_, timeout_s=PATIENCE_S)).failure is Failure.CRASHED


async def test_a_worker_gets_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of our settings is in its environment, and it steps back for the downloads."""
    monkeypatch.setenv("WAVEKEEP_KIE_API_KEY", "secret")
    path, format_ = written(tmp_path)
    async with QualityRunner() as runner:
        await runner.judge(path, format_, timeout_s=PATIENCE_S)
        (pid,) = pids(runner)
        assert b"WAVEKEEP_" not in environment_of(pid)
        assert os.getpriority(os.PRIO_PROCESS, pid) >= 10


async def test_ten_minutes_take_no_more_memory_than_one(tmp_path: Path) -> None:
    """The same worker measures and draws ten minutes of stereo after one, and hardly grows; below 100 MB."""
    drawing = WaveformPaths(png=str(tmp_path / "wave.png"), peaks=str(tmp_path / "wave.json"))
    highest = []
    async with QualityRunner() as runner:
        for seconds in (60.0, 600.0):
            path, format_ = written(tmp_path, duration_s=seconds)
            quality = await runner.judge(path, format_, timeout_s=60.0, waveform=drawing)
            assert quality.status == "measured"
            highest.append(highest_kb(pids(runner)[0]))
    assert highest[1] < highest[0] + 4_000
    assert highest[1] < 100_000


@pytest.mark.slow
async def test_a_gigabyte_takes_no_more_memory(tmp_path: Path) -> None:
    """1 GB, sparse on disk, within the same memory."""
    path, format_ = sparse(tmp_path, 1_000_000_000)
    async with QualityRunner() as runner:
        quality = await runner.judge(path, format_, timeout_s=100.0)
        assert quality.status == "measured"
        assert highest_kb(pids(runner)[0]) < 100_000


def test_the_service_imports_none_of_it(tmp_path: Path) -> None:
    """A process with the downloader in it, which has a file measured, has neither numpy nor its companions loaded."""
    path, format_ = written(tmp_path)
    fields = json.dumps({name: getattr(format_, name) for name in format_.__struct_fields__})
    script = (
        "import asyncio, sys, msgspec, downloader.app\n"
        "from pathlib import Path\n"
        "from downloader.quality_run import QualityRunner, require\n"
        "from shared.events import Format\n"
        "async def main():\n"
        "    require(quality=True, waveform=True)\n"
        "    async with QualityRunner() as runner:\n"
        "        format_ = msgspec.json.decode(sys.argv[2], type=Format)\n"
        "        return (await runner.judge(Path(sys.argv[1]), format_, timeout_s=30)).status\n"
        "print(asyncio.run(main()), {'numpy', 'soundfile', 'pyebur128', 'PIL'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), fields], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "measured set()\n"


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra a start is refused in one sentence that says how to get it; with it, or switched off, never."""
    assert available() is None
    require(quality=True, waveform=True)
    monkeypatch.setattr(quality_run, "find_spec", lambda name: None if name in {"PIL", "numpy"} else object())
    assert available() == "numpy, pillow not installed; `make quality` in the checkout does that (docs/quality.md)"
    require(quality=False, waveform=False)
    with pytest.raises(StartError, match=r"^WAVEKEEP_WAVEFORM cannot be on: numpy, pillow not installed"):
        require(quality=False, waveform=True)
