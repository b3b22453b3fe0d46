"""What lies around a house and can fail: the network, the disk, the clock, the names.

Responsible for: putting one of them in the way of a process from outside, lifting the fault, and saying what it saw.
It must not know any service, nor judge what followed (`tests.faults.core` does).
"""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from simulator.processes import Process
from simulator.rabbitmq_local import free_ports
from tests.faults.house import House, wait_for
from tests.faults.tracer import require_strace
from tests.packages import require

FILLER = "filler"
"""What takes the room on a disk that is filled."""

_CALL_TIMEOUT_S = 10.0
_FAKETIME = "faketime/libfaketimeMT.so.1"
_LIBRARIES = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"), Path("/usr/local/lib"))
_INJECTED = re.compile(r"^(?:\d+ +)?(?P<call>\w+)\((?P<descriptor>\d+)<(?P<path>[^>]*)>.*\(INJECTED\)")


class Proxy:
    """A `tests.faults.tcp_proxy` before one port of loopback: `with Proxy(...).before(URL) as proxy:`.

    Its port is known before it runs, so that a house can be told of it before it is built.

    Args:
        folder: takes its log.
        certificate: makes it the end of TLS.

    Attributes:
        port: where it accepts.
    """

    def __init__(self, folder: Path, *, certificate: Path | None = None) -> None:
        self.port, self._control_port = free_ports(2)
        self._folder = folder / "proxy"
        self._certificate = certificate
        self._process: Process | None = None

    def before(self, url: str) -> Self:
        """Say what it passes bytes on to: the host and port of a URL."""
        tls = {"PROXY_CERTIFICATE": str(self._certificate)} if self._certificate else {}
        self._process = Process(
            "tests.faults.tcp_proxy",
            environ={
                "PROXY_PORT": str(self.port),
                "PROXY_CONTROL_PORT": str(self._control_port),
                "PROXY_TARGET": urlsplit(url).netloc,
                **tls,
            },
            log=self._folder / f"{self.port}.log",
            ready_url=f"http://127.0.0.1:{self._control_port}/lines",
        )
        return self

    def __enter__(self) -> Self:
        assert self._process is not None, "say first what it stands before"
        self._process.start()
        try:
            wait_for(self._process.ready, "the proxy is ready")
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.stop()

    def tell(self, **manner: Any) -> None:
        """Say how lines are treated from now on; without arguments they are passed on untouched."""
        self._call("PUT", "manner", json.dumps(manner).encode())

    @property
    def lines(self) -> dict[str, int]:
        """How many connections were made, how many are open, and the bytes passed back."""
        found: dict[str, int] = json.loads(self._call("GET", "lines"))
        return found

    def _call(self, method: str, path: str, data: bytes | None = None) -> bytes:
        url = f"http://127.0.0.1:{self._control_port}/{path}"
        with urllib.request.urlopen(
            urllib.request.Request(url, data=data, method=method), timeout=_CALL_TIMEOUT_S
        ) as answer:
            content: bytes = answer.read()
        return content


class Clock:
    """The wall clock of processes, to be stepped while they run; their monotonic clock stays as it is.

    Args:
        folder: holds the file that says by how much it is off.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._ahead_s = 0.0
        self.step_to(0)

    @property
    def environ(self) -> Mapping[str, str]:
        """What a process needs in its environment to go by this clock."""
        return {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def now(self) -> float:
        """Return what it shows, in Unix seconds."""
        return time.time() + self._ahead_s

    def step_to(self, ahead_s: float) -> None:
        """Let it be ahead of the true time by so much, at once."""
        self._ahead_s = ahead_s
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{ahead_s:+.3f}\n")
        beside.replace(self._file)

    def forward(self, by_s: float) -> None:
        """Let so much time pass at once."""
        self.step_to(self._ahead_s + by_s)


class Injection:
    """A fault of system calls in a running process: `with Injection(...) as faults:`; lifted on the way out.

    Args:
        pid: of the process; all its threads are meant.
        alone: only this one thread of a process is meant, and seen.
        call: the system call.
        fault: as `strace -e inject=` takes it after the call, for example `error=EIO:when=2`.
        log: takes every such call, with descriptors and their paths.
        paths: only calls on one of these files.
    """

    def __init__(
        self, pid: int, call: str, fault: str, *, log: Path, paths: tuple[Path, ...] = (), alone: bool = False
    ) -> None:
        require_strace()
        self._log = log
        self._alone = alone
        self._command = [
            *("strace", "-y", "-q", "-s", "0", "-p", str(pid), "-o", str(log), "-e", "signal=none"),
            *(() if alone else ("-f",)),
            *(
                "-e",
                f"trace={call},write,pwrite64,openat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,close",
            ),
            *("-e", f"inject={call}:{fault}"),
            *(part for path in paths for part in ("-P", str(path))),
        ]
        self._pid = pid
        self._tracer: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._tracer = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_for(self._attached, "strace is attached to every thread")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tracer is not None
        self._tracer.send_signal(signal.SIGINT)
        self._tracer.communicate(timeout=_CALL_TIMEOUT_S)

    @property
    def calls(self) -> list[str]:
        """What was called so far, in order, one line a call."""
        return self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []

    @property
    def injected(self) -> list[tuple[int, str, str]]:
        """Of every call that failed by us so far: its line among `calls`, its descriptor, and the path of that."""
        found = [(number, _INJECTED.match(line)) for number, line in enumerate(self.calls)]
        return [(number, match["descriptor"], match["path"]) for number, match in found if match]

    def _attached(self) -> bool:
        assert self._tracer is not None
        if self._tracer.poll() is not None:
            _, told = self._tracer.communicate()
            pytest.skip(f"strace may not attach here: {told.decode(errors='replace').strip()}")
        threads = Path(f"/proc/{self._pid}/task").glob(f"{self._pid if self._alone else '*'}/status")
        return all(f"TracerPid:\t{self._tracer.pid}\n" in path.read_text() for path in threads)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Make a folder a file system of its own, of so many bytes (`4m`); skip the test where we may not."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.decode(errors='replace').strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: Path, *, leave_bytes: int = 0, name: str = FILLER) -> Iterator[None]:
    """Fill the file system of a folder, but for so many bytes, as long as the context lasts."""
    filler = folder / name
    usage = os.statvfs(folder)
    wanted = max(0, usage.f_bavail * usage.f_frsize - leave_bytes)
    with filler.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, wanted))
    try:
        yield
    finally:
        filler.unlink()


def metric(house: House, series: str) -> float:
    """Return the sum of a metric over all processes of a house; with labels, of that series alone."""
    total = 0.0
    for url in house.deployment.ops_urls.values():
        with urllib.request.urlopen(f"{url}/metrics", timeout=_CALL_TIMEOUT_S) as answer:
            lines = answer.read().decode().splitlines()
        total += sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{series} ", f"{series}{{")))
    return total


def logged(house: House, event: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the lines of an event whose fields are these, oldest first."""
    return [line for line in house.lines() if line.get("event") == event and fields.items() <= line.items()]


def due(house: House, queue: str) -> list[float]:
    """Return when each message that waits in a queue of the embedded broker is handed out, in Unix seconds."""
    with closing(sqlite3.connect(house.folder / "standalone" / "queue.sqlite3", timeout=30)) as db:
        rows = db.execute("SELECT available_at FROM message WHERE queue = ? AND leased = 0", (queue,))
        return sorted(float(row[0]) for row in rows)


def hasten(house: House, queue: str) -> None:
    """Let what waits in a queue of the embedded broker be due now; its service sees that as it sees any other's write.

    For tests in which a stepped clock would cost too much: strace stops each call by which libfaketime reads it.
    """
    with closing(sqlite3.connect(house.folder / "standalone" / "queue.sqlite3", timeout=30)) as db, db:
        db.execute("UPDATE message SET available_at = 0 WHERE queue = ? AND leased = 0", (queue,))


class Names:
    """The names of hosts, as one process sees them: its own `/etc/hosts`, and a DNS that does not answer.

    Args:
        folder: holds both files.
    """

    def __init__(self, folder: Path) -> None:
        self._hosts, self._dns = folder / "hosts", folder / "resolv.conf"
        self._dns.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        self.tell()

    def tell(self, **addresses: str) -> None:
        """Say which names there are from now on, dots written as underscores, and where; all others are unknown."""
        lines = [f"{address} {name.replace('_', '.')}" for name, address in addresses.items()]
        self._hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))  # in place: it is mounted by its inode

    @property
    def wrapper(self) -> tuple[str, ...]:
        """What to start a process by, so that it sees these names; skips the test where that is not allowed."""
        mounts = f"mount --bind {self._hosts} /etc/hosts && mount --bind {self._dns} /etc/resolv.conf"
        wrapper = ("unshare", "--mount", "sh", "-ec", f'{mounts} && exec "$@"', "sh")
        tried = subprocess.run([*wrapper, "true"], capture_output=True, check=False)
        if tried.returncode:
            pytest.skip(f"no process may have names of its own here: {tried.stderr.decode(errors='replace').strip()}")
        return wrapper


def _library() -> Path:
    """Return Debian's libfaketime; install it where we may, else skip the test."""
    require("faketime", "faketime")
    found = next((folder / _FAKETIME for folder in _LIBRARIES if (folder / _FAKETIME).is_file()), None)
    if found is None:
        pytest.skip("There is no libfaketime here: install the package faketime.")
    return found
