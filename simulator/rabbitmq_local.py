"""One RabbitMQ node as processes of this machine, out of a start script.

Responsible for: the folder, the ports and the configuration of one node, its processes, and its `rabbitmqctl`. All of
it is gone after `close`, and also when this process ends without it (`simulator.warden`). It must not decide when a
node is ready, nor which server to use.

Nothing of the machine's own RabbitMQ is read or written: configuration, data, logs, cookie and the port mapper
(`epmd`) are the node's own, and everything listens on loopback only. Source of the names: the RabbitMQ guides on
configuration (environment variables) and on networking.
"""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from simulator.rabbitmq_server import NodeError

CONFIRM_TIMEOUT_MS = 10_000
"""How soon the broker tries again to dead-letter what had no queue; its own default of 180 s stalls delay queues."""

_LOOPBACK = "127.0.0.1"
_DISTRIBUTION_ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
_LAST_WORDS_LINES = 30


@dataclass(frozen=True)
class Kin:
    """What nodes must share to form a cluster: the cookie, and the port mapper by which they find one another."""

    cookie: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    mapper_port: int = field(default_factory=lambda: free_ports(1)[0])


class LocalHost:
    """Where a node lives: built without side effects, on `launch` a folder and processes, after `close` nothing."""

    def __init__(self, server: Path, settings: Mapping[str, int], kin: Kin | None = None) -> None:
        """Take the start script, keys for the `rabbit` application beside our own, and the kin of a cluster's node."""
        self._server = server
        self._settings = settings
        self._kin = kin or Kin()
        self.port, self._distribution_port = free_ports(2)
        self._name = f"wavekeep-{secrets.token_hex(4)}@localhost"
        self._folder: Path | None = None
        self._warden: subprocess.Popen[str] | None = None
        self._launched: int | None = None

    @property
    def name(self) -> str:
        """What the node is called among its kin."""
        return self._name

    def launch(self) -> None:
        """Start the node on the data it has."""
        if self._warden is None:
            self._move_in()
        folder = self._home()
        (folder / "pid").unlink(missing_ok=True)
        warden = self._warden
        assert warden is not None
        assert warden.stdin is not None
        assert warden.stdout is not None
        warden.stdin.write("start\n")
        warden.stdin.flush()
        self._launched = int(warden.stdout.readline())

    def alive(self) -> bool:
        """Tell whether the node's process is there, frozen or not."""
        if self._launched is not None and not _exists(self._launched):
            # never asked for again: the number may soon be another process's
            self._launched = None
        return self._launched is not None

    def pid(self) -> int:
        """Return the process id of the Erlang VM; it writes it itself, as a start script may not become the VM."""
        try:
            return int((self._home() / "pid").read_text())
        except (OSError, ValueError) as error:
            raise NodeError(f"the node {self._name} is not running") from error

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the VM; a VM that is gone takes none."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid(), number)

    def ctl(self, *arguments: str, timeout_s: float) -> str:
        """Run `rabbitmqctl` against this node and return what it printed."""
        return run_tool(
            [str(self._server.with_name("rabbitmqctl")), "-q", *arguments],
            timeout_s=timeout_s,
            environ=self._environment(self._home()),
        )

    def empty(self) -> None:
        """Delete the data; the node must not run."""
        shutil.rmtree(self._home() / "data")

    def close(self) -> None:
        """End every process of the node at once, and delete its folder."""
        if self._warden is not None:
            self._warden.communicate()
        self._warden = self._folder = self._launched = None

    def last_words(self) -> str:
        """Return the last lines of the node's logs."""
        lines: list[str] = []
        for log in sorted((self._home() / "log").glob("*")):
            if log.is_file():
                lines += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-_LAST_WORDS_LINES:]]
        return "\n".join(lines)

    def _home(self) -> Path:
        if self._folder is None:
            raise NodeError(f"the node {self._name} was not started")
        return self._folder

    def _move_in(self) -> None:
        folder = self._folder = Path(tempfile.mkdtemp(prefix="wavekeep-rabbitmq-"))
        for name in ("data", "log", "conf.d"):
            (folder / name).mkdir()
        (folder / "rabbitmq-env.conf").touch()
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = {_LOOPBACK}:{self.port}\n")
        (folder / "advanced.config").write_text(advanced_config(self._settings))
        (folder / "enabled_plugins").write_text("[].\n")
        cookie = folder / ".erlang.cookie"
        cookie.write_text(self._kin.cookie)
        cookie.chmod(0o400)
        warden = Path(__file__).with_name("warden.py")
        self._warden = subprocess.Popen(  # noqa: S603 - no shell, our own script
            [sys.executable, "-I", "-S", warden, folder, folder / "log" / "output", self._server],
            env=self._environment(folder),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C goes to us alone: we decide in which order things end
            start_new_session=True,
        )

    def _environment(self, folder: Path) -> dict[str, str]:
        """Return the whole environment of the node and its tools: nothing of ours but PATH reaches them."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._kin.mapper_port),
            "ERL_EPMD_ADDRESS": _LOOPBACK,
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _DISTRIBUTION_ON_LOOPBACK,
            "RABBITMQ_CTL_ERL_ARGS": _DISTRIBUTION_ON_LOOPBACK,
            # the start script then becomes the VM instead of waiting for it, and a signal has one place to go
            "RUNNING_UNDER_SYSTEMD": "true",
        }


def advanced_config(settings: Mapping[str, int]) -> str:
    """Return the configuration of every node of ours, with further keys for the `rabbit` application."""
    named = {"dead_letter_worker_publisher_confirm_timeout": CONFIRM_TIMEOUT_MS, **settings}
    keys = ", ".join(f"{{{key}, {value}}}" for key, value in named.items())
    return f"[{{rabbit, [{keys}]}}].\n"


def run_tool(command: list[str], *, timeout_s: float, environ: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it printed; NodeError when it fails or takes too long."""
    said = Path(command[0]).name + " " + " ".join(command[1:])
    try:
        done = subprocess.run(  # noqa: S603 - no shell, the broker's own tool
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NodeError(f"{said} took longer than {timeout_s:.0f} s") from error
    if done.returncode:
        raise NodeError(f"{said} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens, outside the range from which the kernel serves outgoing connections.

    Inside it, a client that keeps trying a dead node's port is sooner or later given that very port for its own end,
    reaches itself, and the node cannot come back.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    candidates = [port for port in range(10_000, 65_536) if not first <= port <= last]
    random.shuffle(candidates)
    ports: list[int] = []
    for port in candidates:
        with socket.socket() as probe:
            try:
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise NodeError("there are no free ports")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
