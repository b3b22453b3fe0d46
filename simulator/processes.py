"""Processes of this project, started the way an operator does: a module and an environment, and nothing else.

Responsible for: starting, asking whether one is ready, ending it in good order or at once, and keeping what it printed.
It must not know any service. Plain synchronous code, which never waits longer than it is told.

What is started here does not outlive whoever started it, however that one ended: the kernel sees to it. It goes by the
thread, so a process is started by the main thread, or is not bound.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OURS = ("WAVEKEEP_", "SIMULATOR_")
_ASK_TIMEOUT_S = 2.0


class Process:
    """One `python -m MODULE`, which can be started again after it ended.

    Args:
        module: what is run.
        environ: its settings. Nothing else of ours is handed on from the environment of this process.
        log: takes what it prints on standard error; a second start appends. `output` beside it takes standard output.
        ready_url: answers 200 once it can work.

    Attributes:
        wrapper: put before the command from the next start on; it must end up as the command itself (by `exec`).
    """

    def __init__(self, module: str, *, environ: Mapping[str, str], log: Path, ready_url: str) -> None:
        self.name = module
        self.log = log
        self.output = log.with_suffix(".out")
        self.wrapper: tuple[str, ...] = ()
        self._environ = _environment(environ)
        self._ready_url = ready_url
        self._running: subprocess.Popen[bytes] | None = None
        self._asked = False

    @property
    def pid(self) -> int:
        """Its process id; RuntimeError where it never ran."""
        if self._running is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._running.pid

    @property
    def exit_status(self) -> int | None:
        """How it ended; None while it runs, or before it ran."""
        return None if self._running is None else self._running.poll()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._running is not None and self._running.poll() is None

    def start(self) -> None:
        """Start it; return at once."""
        self._asked = False
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log, self.output.open("ab") as output:
            self._running = subprocess.Popen(  # noqa: S603 - no shell, our own modules
                [*self.wrapper, *_bound_to_us(), sys.executable, "-m", self.name],
                env=self._environ,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                # Ctrl-C goes to us alone: we decide in which order things end
                start_new_session=True,
            )

    def ready(self) -> bool:
        """Ask it once whether it can work.

        Raises:
            ProcessEndedError: it has ended.
        """
        if (status := self.exit_status) is not None:
            raise ProcessEndedError(f"{self.name} ended with {status} while it started:\n{self.tail()}")
        try:
            with urllib.request.urlopen(self._ready_url, timeout=_ASK_TIMEOUT_S) as answer:  # noqa: S310 - loopback
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def terminate(self) -> None:
        """Ask it to end in good order, by one SIGTERM; return at once. Idempotent."""
        if self._running is not None and not self._asked:
            self._asked = True
            self._running.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would; return when it is gone."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def stop(self, *, within_s: float = 15.0) -> int | None:
        """End it in good order, at once where that takes too long; return its exit status. Idempotent."""
        if self._running is None:
            return None
        self.terminate()
        try:
            return self._running.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._running.wait()

    def tail(self, lines: int = 20) -> str:
        """Return the last lines it printed."""
        try:
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


class ProcessEndedError(RuntimeError):
    """A process ended before it was ready; the message holds the end of its log."""


def _bound_to_us() -> tuple[str, ...]:
    """Return what lets a command end with us; nothing where this system has no such thing."""
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return ()
    return (setpriv, "--pdeathsig", "KILL", "--")


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    path = os.pathsep.join(filter(None, (str(_ROOT), kept.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | dict(settings)
