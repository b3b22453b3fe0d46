"""Finding a RabbitMQ server to use: given, installed, installable, or in a container.

Responsible for: the order in which they are tried, and installing the distribution's package where that is possible.
It must not start a broker; that is `simulator.rabbitmq_node`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from simulator.debian import install, installer

GIVEN_URL = "WAVEKEEP_TEST_AMQP_URL"
GIVEN_SERVER = "WAVEKEEP_TEST_RABBITMQ_SERVER"

_PACKAGED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Where Debian and Ubuntu put the server itself; the one on PATH insists on the system's own folders and user."""


class NodeError(RuntimeError):
    """A private node did not do what it was told to; the message holds what it said itself."""


class NoServerError(NodeError):
    """There is no RabbitMQ server here, and none could be had."""


@dataclass(frozen=True, slots=True)
class GivenUrl:
    """A broker that somebody else runs."""

    amqp_url: str


@dataclass(frozen=True, slots=True)
class StartScript:
    """A server on this machine; `rabbitmqctl` lies beside it."""

    path: Path


@dataclass(frozen=True, slots=True)
class DockerEngine:
    """An engine that answers."""

    client: str


Server = GivenUrl | StartScript | DockerEngine


def find_server(environ: Mapping[str, str] | None = None, *, packaged: Path = _PACKAGED) -> Server:
    """Return the server to use, installing it first where this machine lets us.

    Order: `WAVEKEEP_TEST_AMQP_URL`, `WAVEKEEP_TEST_RABBITMQ_SERVER`, an installed one, the distribution's package
    (as root, where `apt-get` is), a Docker engine.

    Raises:
        NoServerError: with one sentence that says what to do.
    """
    environ = os.environ if environ is None else environ
    if url := environ.get(GIVEN_URL):
        return GivenUrl(url)
    if script := environ.get(GIVEN_SERVER):
        if not os.access(script, os.X_OK):
            raise NoServerError(f"{GIVEN_SERVER} names {script}, which cannot be executed.")
        return StartScript(Path(script))
    path = environ.get("PATH")
    if installed := _installed(path, packaged):
        return StartScript(installed)
    failure = ""
    if apt_get := installer(path):
        failure = _install(apt_get)
        if installed := _installed(path, packaged):
            return StartScript(installed)
    if client := _docker_client(path):
        return DockerEngine(client)
    raise NoServerError(
        "There is no RabbitMQ here: install the package rabbitmq-server, or start Docker, "
        f"or set {GIVEN_URL} to a broker that tests may use.{failure}"
    )


def _installed(path: str | None, packaged: Path) -> Path | None:
    if os.access(packaged, os.X_OK):
        return packaged
    found = shutil.which("rabbitmq-server", path=path)
    # its neighbours are found beside the file itself, not beside a link to it
    return Path(found).resolve() if found else None


def _install(apt_get: str) -> str:
    """Install the distribution's package; return why not, or nothing."""
    _tell("rabbitmq-server is not installed: installing the distribution's package …")
    failure = install("rabbitmq-server", apt_get=apt_get)
    _tell(failure or "rabbitmq-server is installed.")
    return f"\n{failure}" if failure else ""


def _docker_client(path: str | None) -> str | None:
    client = shutil.which("docker", path=path)
    if client is None:
        return None
    try:
        asked = subprocess.run(  # noqa: S603 - no shell, our own words
            [client, "version", "--format", "{{.Server.Version}}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        return None
    return client if asked.returncode == 0 else None


def _tell(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
