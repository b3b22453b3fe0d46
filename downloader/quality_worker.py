"""The process that measures: `python -m downloader.quality_worker MEMORY_BYTES`, for `downloader.quality_run` alone.

Responsible for: jobs from standard input, one line each, replies to standard output, until the input ends (so it never
outlives the service), within a bounded address space and with lower priority than the downloads. It must not know
about time: who asks kills it when it takes too long.
"""

import os
import resource
import sys
from pathlib import Path
from typing import Final

import msgspec
import soundfile  # type: ignore[import-untyped]

from downloader.quality import Failure, Job, Quality, Reply, SecondOpinion, failed, find
from downloader.quality_audio import UnreadableError, read_blocks
from downloader.quality_measures import Measurement
from downloader.quality_waveform import Waveform
from shared.events import Format

MOST_CHANNELS: Final = 64
_NICENESS: Final = 10


def measure(job: Job) -> Reply:
    """Measure one file, in one pass; never raises for what is wrong with it."""
    try:
        return _measure(job)
    except MemoryError:
        return Reply(quality=failed(Failure.MEMORY_EXCEEDED), detail="needs more memory than a worker may have")
    except (UnreadableError, OSError) as error:
        return Reply(quality=failed(Failure.UNREADABLE), detail=str(error))


def second_opinion(path: Path) -> tuple[int, int, int] | None:
    """Return frames, channels and rate as libsndfile reads them; None where it cannot open the file."""
    try:
        with soundfile.SoundFile(path) as file:
            return file.frames, file.channels, file.samplerate
    except soundfile.LibsndfileError:
        return None


def compare(path: Path, format_: Format) -> SecondOpinion:
    """Hold libsndfile's reading against the walker's."""
    opinion = second_opinion(path)
    if opinion is None:
        return SecondOpinion.UNAVAILABLE
    ours = (format_.frames, format_.channels, format_.sample_rate_hz)
    return SecondOpinion.AGREES if opinion == ours else SecondOpinion.DIFFERS


def _measure(job: Job) -> Reply:
    path, format_ = Path(job.path), job.format
    if format_.channels > MOST_CHANNELS:
        return Reply(quality=failed(Failure.UNSUPPORTED), detail=f"has more than {MOST_CHANNELS} channels")
    measurement = Measurement(format_)
    waveform = Waveform(format_) if job.waveform else None
    for samples in read_blocks(path, format_):
        planar = measurement.take(samples)
        if waveform:
            waveform.take(planar)
    measures, opinion = measurement.result(), compare(path, format_)
    detail = ""
    if waveform and job.waveform:
        try:
            Path(job.waveform.peaks).write_bytes(waveform.peaks())
            Path(job.waveform.png).write_bytes(waveform.picture())
        except OSError as error:
            detail = f"the waveform could not be written: {error.strerror}"
    quality = Quality(
        status="measured",
        findings=find(measures, format_, opinion),
        second_opinion=opinion,
        measures=measures,
        waveform=waveform is not None and not detail,
    )
    return Reply(quality=quality, detail=detail)


def main() -> None:
    """Answer until the input ends. What a library prints must not land among the replies."""
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.nice(_NICENESS)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0) as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin.buffer:
            replies.write(msgspec.json.encode(measure(msgspec.json.decode(line, type=Job))) + b"\n")


if __name__ == "__main__":
    main()
