"""Have files measured by processes of their own.

Responsible for: a fixed number of workers, each started when it is first needed; the time limit, after which a worker
is killed and another takes its place; and a result for every file, whatever becomes of the worker. It must not measure,
and must not import numpy or any other package of the optional extra: those live and die with the workers.

The workers are plain subprocesses and no `ProcessPoolExecutor`, because that can kill none of its processes before
Python 3.14, gives up every other run when one of them dies, and imports the service anew into each.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

import msgspec
import structlog

from downloader.quality import Failure, Job, Quality, Reply, WaveformPaths, failed
from shared.errors import StartError
from shared.events import Format
from shared.settings import PREFIX

log = structlog.get_logger()

WORKER_MEMORY_BYTES: Final = 768 * 1024 * 1024
"""Address space of a worker: its libraries map a quarter of it, its own data stays far below 100 MB."""
_EXTRA: Final = MappingProxyType(
    {"numpy": "numpy", "soundfile": "soundfile", "pyebur128": "pyebur128", "PIL": "pillow"}
)
"""The packages of the extra `quality`, by the name they are imported under."""
_ROOT: Final = Path(__file__).resolve().parents[1]


def available() -> str | None:
    """Return what is missing to measure, and how to get it; None where all is there. Imports none of it."""
    missing = [package for module, package in _EXTRA.items() if find_spec(module) is None]
    if not missing:
        return None
    return f"{', '.join(missing)} not installed; `make quality` in the checkout does that (docs/quality.md)"


def require(*, quality: bool, waveform: bool) -> None:
    """Refuse to start where a setting asks for what cannot be done.

    Raises:
        StartError: the optional extra is not there.
    """
    missing = available() if quality or waveform else None
    if missing:
        wanted = " and ".join(f"{PREFIX}{name}" for name, on in (("QUALITY", quality), ("WAVEFORM", waveform)) if on)
        raise StartError(f"{wanted} cannot be on: {missing}. Or switch it off.")


class QualityRunner:
    """Lends files to workers, one file a worker at a time.

    Args:
        workers: processes at most; more files wait.
        memory_bytes: address space of each.
    """

    def __init__(self, *, workers: int = 1, memory_bytes: int = WORKER_MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._slots: asyncio.Queue[_Worker | None] = asyncio.Queue()
        for _ in range(workers):
            self._slots.put_nowait(None)
        self._alive: set[_Worker] = set()
        self._stopped = False

    async def __aenter__(self) -> Self:
        """Start nothing yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the workers, those in the middle of a file too: its run fails as `stopped`."""
        self._stopped = True
        for worker in tuple(self._alive):
            await self._remove(worker)

    async def judge(
        self, path: Path, format_: Format, *, timeout_s: float, waveform: WaveformPaths | None = None
    ) -> Quality:
        """Measure a file; a failed run is a result too, and nothing but cancellation is ever raised.

        Args:
            path: of the file, on local disk.
            format_: as the walker judged it.
            timeout_s: for all of it, the wait for a free worker included.
            waveform: where to write picture and peaks. They are whole only if the result says `waveform`; the caller
                removes what is there otherwise.

        Safe to cancel: the worker is killed.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._lend(_job(path, format_, waveform))
        except TimeoutError:
            reply = self._explain(Failure.TIMED_OUT, f"took longer than {timeout_s:g} s")
        except (OSError, EOFError, ValueError) as error:
            reply = self._explain(Failure.CRASHED, str(error) or type(error).__name__)
        if reply.detail:
            log.warning("quality.incomplete", reason=reply.quality.failure or "waveform_failed", detail=reply.detail)
        return reply.quality

    async def _lend(self, job: Job) -> Reply:
        """Wait for a worker and have it do a job; whatever goes wrong meanwhile costs the worker its life."""
        worker, kept = await self._slots.get(), None
        try:
            if self._stopped:
                return self._explain(Failure.STOPPED, "")
            if worker is None or worker.gone:
                worker = await self._replace(worker)
            reply = await worker.ask(job)
            kept = worker
            return reply
        finally:
            try:
                if worker is not None and kept is None:
                    await asyncio.shield(self._remove(worker))
            finally:
                self._slots.put_nowait(kept)

    async def _replace(self, gone: "_Worker | None") -> "_Worker":
        """Start a worker, in the place of one that died between two files."""
        if gone is not None:
            await self._remove(gone)
        worker = _Worker(await _spawn(self._memory_bytes))
        self._alive.add(worker)
        if self._stopped:
            await self._remove(worker)
            raise EOFError("the service stopped meanwhile")
        return worker

    async def _remove(self, worker: "_Worker") -> None:
        self._alive.discard(worker)
        await worker.kill()

    def _explain(self, failure: Failure, detail: str) -> Reply:
        return Reply(quality=failed(Failure.STOPPED if self._stopped else failure), detail=detail)


class _Worker:
    """One process, and the line to it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def gone(self) -> bool:
        """The process ended by itself, or was killed by somebody else."""
        return self._process.returncode is not None

    async def ask(self, job: Job) -> Reply:
        """Put one job and wait for its reply.

        Raises:
            EOFError, OSError: the process died.
            ValueError: it answered something else.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError(f"the worker died: {_describe(await self._process.wait())}")
        return msgspec.json.decode(line, type=Reply)

    async def kill(self) -> None:
        """End the process, whatever it does, and wait until it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def _job(path: Path, format_: Format, waveform: WaveformPaths | None) -> Job:
    """Name a file so that it is the same one in the worker's folder."""
    return Job(path=str(path.absolute()), format=format_, waveform=waveform)


async def _spawn(memory_bytes: int) -> Process:
    """Start a worker. It is handed none of our settings, so none of our secrets, and computes in one thread."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "downloader.quality_worker",
        str(memory_bytes),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=_ROOT,
        env={**environment, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


def _describe(returncode: int) -> str:
    return f"exit code {returncode}" if returncode >= 0 else signal.Signals(-returncode).name
