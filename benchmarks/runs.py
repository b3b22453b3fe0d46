"""Programs run side by side, and what they took.

Responsible for: running each in a process of its own, in turn, several times, and the medians. It must not know what is
measured.
"""

import os
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Timer
from time import perf_counter

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Program:
    """What is run.

    Attributes:
        fits: tells whether what it printed is right: a run that did not do its work is worth no figure.
    """

    name: str
    words: Sequence[str]
    environment: Mapping[str, str]
    fits: Callable[[str], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class Taken:
    """What one program took.

    Attributes:
        wall_s: from its start to its end.
        cpu_s: of all its processes, in user and system time.
    """

    wall_s: float
    cpu_s: float


class BrokenRunError(Exception):
    """A program ended wrongly, or printed something else than it should."""


def run(program: Program) -> Taken:
    """Run a program to its end, which must come in time.

    Raises:
        BrokenRunError: see there.
    """
    with tempfile.TemporaryFile("w+") as printed:
        begun = perf_counter()
        process = subprocess.Popen(
            program.words,
            env=dict(program.environment),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        timer = Timer(TIMEOUT_S, _end, [process.pid])
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = perf_counter() - begun
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            timer.cancel()
            if process.returncode is None:
                _end(process.pid)
                process.wait()
        printed.seek(0)
        text = printed.read()
    if process.returncode or not program.fits(text):
        raise BrokenRunError(f"{program.name} ended with status {process.returncode}: {text[-500:]}")
    return Taken(wall_s, usage.ru_utime + usage.ru_stime)


def side_by_side(programs: Sequence[Program], *, times: int, before: Callable[[], None]) -> dict[str, Taken]:
    """Run all programs in turn, so many times; return the medians by name.

    Args:
        before: is called before each run.
    """
    seen: dict[str, list[Taken]] = {program.name: [] for program in programs}
    for _ in range(times):
        for program in programs:
            before()
            seen[program.name].append(run(program))
    return {name: _median(taken) for name, taken in seen.items()}


def _median(taken: Sequence[Taken]) -> Taken:
    return Taken(
        statistics.median(each.wall_s for each in taken),
        statistics.median(each.cpu_s for each in taken),
    )


def _end(process_group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process_group, signal.SIGKILL)
