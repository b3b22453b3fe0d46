"""Killing a process at an exact system call, by `strace`.

Responsible for: having `strace`, and for one injected SIGKILL. It must not start or restart the process.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from simulator.processes import Process
from tests.faults.house import wait_for
from tests.packages import require

_LAST_CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+\(.*)$")


class Step(NamedTuple):
    """A system call to be killed at: the `nth` of a thread's that touches `path`, or any.

    `path` is as the process writes it: a bare name where it opens relative to a folder.
    """

    name: str
    call: str
    path: Path | str | None = None
    nth: int = 1


def require_strace() -> None:
    """Have `strace`: installed, or installed now, as root on Debian; else the test is skipped."""
    require("strace", "strace")


@contextmanager
def killing(process: Process, step: Step, trace: Path) -> Iterator[None]:
    """Have a running process killed at a step, while the block runs; it is watched when the block begins."""
    path = ["-P", str(step.path)] if step.path else []
    inject = f"inject={step.call}:signal=SIGKILL:when={step.nth}"
    command = ["strace", "-f", "-y", "-s", "0", "-p", str(process.pid), "-e", f"trace={step.call}", "-e", inject, *path]
    with trace.open("wb") as output:
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_for(lambda: "attached" in trace.read_text("utf-8", "replace"), f"strace watches {process.name}")
        yield
    finally:
        tracer.terminate()
        tracer.wait(30)


def last_call(trace: Path) -> str:
    """Return the system call that the process did not survive, as strace wrote it."""
    calls = [
        found[1]
        for line in trace.read_text("utf-8", "replace").splitlines()
        if (found := _LAST_CALL.match(line)) and "resumed>" not in line
    ]
    return calls[-1] if calls else ""
