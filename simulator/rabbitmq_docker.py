"""One RabbitMQ node in a container, for machines with a Docker engine and no server of their own.

Responsible for: the same as `simulator.rabbitmq_local`, by the engine's own commands. When this process ends without
`close`, the warden removes the container. It must not decide when a node is ready.
"""

import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from simulator.rabbitmq_local import advanced_config, free_ports, run_tool

IMAGE = "rabbitmq:4.1-management"
"""The image of `docker-compose.yml`."""

_PULL_TIMEOUT_S = 600.0
_COMMAND_TIMEOUT_S = 60.0

_COMMANDS = {
    signal.SIGKILL: ("kill",),
    signal.SIGTERM: ("kill", "--signal", "TERM"),
    signal.SIGSTOP: ("pause",),
    signal.SIGCONT: ("unpause",),
}


class ContainerHost:
    """Where a node lives: nothing until `launch`, then a container, after `close` nothing again."""

    def __init__(self, client: str, settings: Mapping[str, int]) -> None:
        """Take the client program, and keys for the `rabbit` application beside our own."""
        self._client = client
        self._settings = settings
        (self.port,) = free_ports(1)
        self._name = f"wavekeep-{secrets.token_hex(4)}"
        self._folder: Path | None = None
        self._warden: subprocess.Popen[str] | None = None
        self._made = False

    def launch(self) -> None:
        """Start the node on the data it has."""
        if self._made:
            self._docker("start", self._name)
            return
        folder = self._folder or self._move_in()
        self._docker(
            *("run", "--detach", "--name", self._name, "--hostname", self._name),
            *("--publish", f"127.0.0.1:{self.port}:5672"),
            *("--volume", f"{folder / 'advanced.config'}:/etc/rabbitmq/advanced.config:ro"),
            IMAGE,
            timeout_s=_PULL_TIMEOUT_S,
        )
        self._made = True

    def alive(self) -> bool:
        """Tell whether the container runs, paused or not."""
        return self._made and self._inspect("{{.State.Running}}") == "true"

    def pid(self) -> int:
        """Return the process id of the container's first process."""
        return int(self._inspect("{{.State.Pid}}"))

    def send(self, number: signal.Signals) -> None:
        """Do what the signal would do to the node."""
        self._docker(*_COMMANDS[number], self._name)

    def ctl(self, *arguments: str, timeout_s: float) -> str:
        """Run `rabbitmqctl` in the container and return what it printed."""
        return self._docker("exec", self._name, "rabbitmqctl", "-q", *arguments, timeout_s=timeout_s)

    def empty(self) -> None:
        """Remove the container with its data."""
        self._docker("rm", "--force", "--volumes", self._name)
        self._made = False

    def close(self) -> None:
        """Remove the container, its data and our folder."""
        if self._warden is not None:
            self._warden.communicate()
        self._warden = self._folder = None
        self._made = False

    def last_words(self) -> str:
        """Return the last lines of the container's log."""
        return self._docker("logs", "--tail", "30", self._name)

    def _move_in(self) -> Path:
        folder = self._folder = Path(tempfile.mkdtemp(prefix="wavekeep-rabbitmq-"))
        (folder / "advanced.config").write_text(advanced_config(self._settings))
        will = folder / "last-will"
        removal = shlex.join([self._client, "rm", "--force", "--volumes", self._name])
        will.write_text(f"#!/bin/sh\n{removal} >/dev/null 2>&1\n")
        will.chmod(0o700)
        warden = Path(__file__).with_name("warden.py")
        self._warden = subprocess.Popen(  # noqa: S603 - no shell, our own script
            [sys.executable, "-I", "-S", warden, folder, folder / "output", "true"],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return folder

    def _inspect(self, template: str) -> str:
        return self._docker("inspect", "--format", template, self._name).strip()

    def _docker(self, *arguments: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        return run_tool([self._client, *arguments], timeout_s=timeout_s)
