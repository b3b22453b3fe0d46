"""A process that starts others for someone, and clears up after them when that someone is gone, however it went.

Responsible for: starting one command as often as it is asked to, and, when its standard input ends, killing every
process that came of it and deleting one folder. The end of standard input is the only sign that cannot be missed: the
kernel closes the pipe also when the starter was killed with SIGKILL. It must not know what it watches over.

Run as a file, isolated and with the standard library alone, so that it starts in a moment:
`python -I -S warden.py FOLDER LOG COMMAND...`. Every line read from standard input starts COMMAND once, with its
output appended to LOG; the answer is a line with its process id. What is no child of ours, a container say, is ended by
the script FOLDER/last-will, if there is one.
"""

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(folder: Path, log: Path, command: list[str]) -> None:
    """Serve the standard input until it ends, or until SIGTERM or SIGINT; leave nothing behind."""
    # Daemons that the command detaches become our children when their parents end, so none of them can hide.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    try:
        for _ in sys.stdin:
            sys.stdout.write(f"{_start(log, command)}\n")
            sys.stdout.flush()
    finally:
        _kill_all()
        will = folder / "last-will"
        if will.exists():
            os.spawnl(os.P_WAIT, will, will)  # noqa: S606 - written by the starter
        shutil.rmtree(folder, ignore_errors=True)


def _start(log: Path, command: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp(command[0], command)  # noqa: S606 - the command is the starter's own
    finally:
        os._exit(127)


def _reap(_signal: int, _frame: FrameType | None) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _kill_all() -> None:
    """Kill the children until there are none; those of a killed one become ours in turn."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    me = os.getpid()
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _parent_of(entry) == me]


def _parent_of(entry: Path) -> int | None:
    try:
        stat = (entry / "stat").read_text()
    except OSError:
        return None
    # the name of the process, in parentheses, may hold anything
    return int(stat.rpartition(")")[2].split()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
