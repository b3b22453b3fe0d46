"""A private RabbitMQ node on loopback, for tests, demonstrations and benchmarks, which may freeze, kill and wipe it.

Responsible for: what such a node promises (ready when `start` returns, gone after `stop`), whichever way it runs:
`simulator.rabbitmq_local` or `simulator.rabbitmq_docker`, found by `simulator.rabbitmq_server`. It must not declare
anything on the broker.

Why not a kept plug-in: `docs/adr/0003-private-rabbitmq-nodes.md`. Plain synchronous code: call it through
`asyncio.to_thread` where an event loop runs. A quorum queue is crash-safe only some seconds after it was created, so
wait 10 s after a declaration before the first `kill`.
"""

import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, MappingProxyType
from typing import Protocol, Self

import click

from simulator.rabbitmq_docker import ContainerHost
from simulator.rabbitmq_local import LocalHost
from simulator.rabbitmq_server import GIVEN_URL, DockerEngine, GivenUrl, NodeError, StartScript, find_server

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"
_POLL_S = 0.1
_END_TIMEOUT_S = 30.0
_NO_SETTINGS: Mapping[str, int] = MappingProxyType({})


class Host(Protocol):
    """Where a node lives. `launch` and `empty` are called only while it does not run."""

    port: int

    def launch(self) -> None:
        """Start the node on the data it has; do not wait for it."""

    def alive(self) -> bool:
        """Tell whether its process is there, frozen or not."""

    def pid(self) -> int:
        """Return the process id of the Erlang VM."""

    def send(self, number: signal.Signals) -> None:
        """Send it SIGKILL, SIGTERM, SIGSTOP or SIGCONT."""

    def ctl(self, *arguments: str, timeout_s: float) -> str:
        """Run `rabbitmqctl` and return what it printed."""

    def empty(self) -> None:
        """Delete its data."""

    def close(self) -> None:
        """End it and delete all it has."""

    def last_words(self) -> str:
        """Return the end of its log."""


class RabbitNode:
    """One node: `with RabbitNode(...) as node:`, or `start` and `stop`.

    Attributes:
        amqp_url: known before the start, and the same after every restart.
    """

    def __init__(self, host: Host, *, start_timeout_s: float = 60.0) -> None:
        self._host = host
        self._start_timeout_s = start_timeout_s
        self.amqp_url = f"amqp://guest:guest@127.0.0.1:{host.port}/"

    @property
    def pid(self) -> int:
        """The process id of the Erlang VM; NodeError before the first start."""
        return self._host.pid()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the node, on the data it has if it ran before; return when it takes connections. Idempotent.

        Raises:
            NodeError: it ended, or was not ready in time; with the end of its log.
        """
        if self._host.alive():
            return
        try:
            self._host.launch()
            deadline = time.monotonic() + self._start_timeout_s
            while not _answers(self._host.port):
                if not self._host.alive():
                    raise NodeError(f"the node ended while it started:\n{self._host.last_words()}")
                if time.monotonic() > deadline:
                    raise NodeError(f"not ready after {self._start_timeout_s:.0f} s:\n{self._host.last_words()}")
                time.sleep(_POLL_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the node and delete everything it had. Idempotent."""
        self._host.close()

    def kill(self) -> None:
        """End the VM as a power cut would: SIGKILL; return when it is gone. Its data stay. Idempotent."""
        if not self._host.alive():
            return
        self._host.send(signal.SIGKILL)
        _wait(lambda: not self._host.alive(), "the killed node is still there")

    def freeze(self) -> None:
        """Stop the VM without ending it: connections stay open, and nothing answers."""
        self._host.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen VM go on."""
        self._host.send(signal.SIGCONT)

    def restart(self) -> None:
        """Shut the node down in good order and start it again on the same data."""
        self._host.send(signal.SIGTERM)
        _wait(lambda: not self._host.alive(), "the node does not shut down")
        self.start()

    def wipe(self) -> None:
        """Kill the node, delete its data, start it empty: what is left of a broker whose disks were lost."""
        self.kill()
        self._host.empty()
        self.start()

    def ctl(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """Run `rabbitmqctl` against this node and return what it printed; NodeError when it fails."""
        return self._host.ctl(*arguments, timeout_s=timeout_s)


def private_node(*, settings: Mapping[str, int] = _NO_SETTINGS) -> RabbitNode:
    """Build a node of our own, not yet started.

    Args:
        settings: keys for the `rabbit` application, such as `consumer_timeout` and `channel_tick_interval` (both ms).

    Raises:
        NodeError: there is no server, or somebody else's broker was given, which nobody may break.
    """
    server = find_server()
    if isinstance(server, GivenUrl):
        raise NodeError(f"{GIVEN_URL} is set, so no broker is started here")
    return _node(server, settings)


@contextmanager
def any_broker() -> Iterator[str]:
    """Give the URL of a broker that works: the one that was given, or a node of our own for as long as it is used."""
    server = find_server()
    if isinstance(server, GivenUrl):
        yield server.amqp_url
        return
    with _node(server, _NO_SETTINGS) as node:
        yield node.amqp_url


def _node(server: StartScript | DockerEngine, settings: Mapping[str, int]) -> RabbitNode:
    if isinstance(server, StartScript):
        return RabbitNode(LocalHost(server.path, settings))
    return RabbitNode(ContainerHost(server.client, settings))


def _answers(port: int) -> bool:
    """Tell whether an AMQP broker greets us: a listener alone may come before the broker behind it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(_PROTOCOL_HEADER)
            return connection.recv(1) == _METHOD_FRAME
    except OSError:
        return False


def _wait(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _END_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise NodeError(f"{complaint} after {_END_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S / 4)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


@click.command()
def main() -> None:
    """Run a private RabbitMQ node, print its URL, and keep it until SIGTERM or Ctrl-C; nothing of it stays."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    try:
        with any_broker() as url:
            click.echo(url)
            while True:
                signal.pause()
    except NodeError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
