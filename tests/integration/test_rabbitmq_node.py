"""A private node is ready when it is said to be, can be broken in every way, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from simulator.rabbitmq_local import LocalHost, free_ports
from simulator.rabbitmq_node import RabbitNode
from simulator.rabbitmq_server import NodeError

StartNode = Callable[..., RabbitNode]


def test_nodes_live_side_by_side_and_know_nothing_of_each_other(rabbitmq_node: StartNode) -> None:
    """Tests that run at once cannot disturb each other."""
    with ThreadPoolExecutor() as pool:
        one, other = pool.map(lambda _: rabbitmq_node(), range(2))
    one.ctl("add_vhost", "only-here")
    assert "only-here" in one.ctl("list_vhosts")
    assert "only-here" not in other.ctl("list_vhosts")
    assert one.pid != other.pid
    assert greets(one.amqp_url)
    assert greets(other.amqp_url)


def test_a_killed_node_refuses_and_comes_back_on_its_data_until_it_is_wiped(rabbitmq_node: StartNode) -> None:
    """A fault test sees what a power cut leaves, and what lost disks leave."""
    node = rabbitmq_node()
    node.ctl("add_vhost", "kept")
    url, first_pid = node.amqp_url, node.pid
    node.kill()
    with pytest.raises(ConnectionRefusedError):
        greets(url)
    node.start()
    assert node.amqp_url == url
    assert node.pid != first_pid
    assert "kept" in node.ctl("list_vhosts")
    node.restart()
    assert "kept" in node.ctl("list_vhosts")
    node.wipe()
    assert greets(url)
    assert "kept" not in node.ctl("list_vhosts")


def test_a_frozen_node_takes_connections_but_does_not_answer_until_it_is_thawed(rabbitmq_node: StartNode) -> None:
    """A freeze is not a crash: the kernel still accepts, and only a time-out shows it."""
    node = rabbitmq_node()
    node.freeze()
    with pytest.raises(TimeoutError):
        greets(node.amqp_url, timeout_s=1)
    node.thaw()
    assert greets(node.amqp_url, timeout_s=10)
    node.freeze()
    node.kill()
    node.kill()
    with pytest.raises(ConnectionRefusedError):
        greets(node.amqp_url)


def test_settings_reach_the_broker(rabbitmq_node: StartNode) -> None:
    """Acknowledgement time-outs of seconds are possible, and dead-lettering never stalls for three minutes."""
    node = rabbitmq_node(consumer_timeout=4_321, channel_tick_interval=2_000)
    assert setting(node, "consumer_timeout") == "{ok,4321}"
    assert setting(node, "channel_tick_interval") == "{ok,2000}"
    assert setting(node, "dead_letter_worker_publisher_confirm_timeout") == "{ok,10000}"


def test_nothing_stays_after_stop(rabbitmq_node: StartNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no folder and no port mapper outlives a stopped node."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    node = rabbitmq_node()
    assert len(processes_of(tmp_path)) >= 3, "the VM, its port mapper and the warden"
    node.stop()
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    node.stop()


def test_a_node_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed start shows the broker's own words and clears up."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = tmp_path / "rabbitmq-server"
    server.write_text("#!/bin/sh\necho the reason >&2\nexit 3\n")
    server.chmod(0o700)
    with pytest.raises(NodeError, match=r"(?s)ended while it started.*the reason"):
        RabbitNode(LocalHost(server, {})).start()
    assert list(tmp_path.iterdir()) == [server]


@pytest.mark.usefixtures("rabbitmq_node")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_stays_when_the_starter_ends_however_it_ends(tmp_path: Path, ending: signal.Signals) -> None:
    """An aborted run leaves no broker behind, not even when nobody could clear up."""
    starter = subprocess.Popen(
        [sys.executable, "-m", "simulator.rabbitmq_node"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        assert greets(url)
        assert len(processes_of(tmp_path)) >= 4
        starter.send_signal(ending)
        assert starter.wait(timeout=20) == (0 if ending == signal.SIGTERM else -signal.SIGKILL)
    wait_until(lambda: not processes_of(tmp_path) and not list(tmp_path.iterdir()))


def test_ports_are_none_that_a_reconnecting_client_could_be_given() -> None:
    """A client that hammers a dead node's port must not end up connected to itself."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert not any(first <= port <= last for port in ports)


def greets(url: str, *, timeout_s: float = 5) -> bool:
    """Tell whether an AMQP broker greets a client that says hello; raises what the socket raises."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=timeout_s) as connection:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        return connection.recv(1) == b"\x01"


def setting(node: RabbitNode, key: str) -> str:
    """Return a key of the `rabbit` application as the node has it."""
    return node.ctl("eval", f"application:get_env(rabbit, {key}).").strip()


def processes_of(folder: Path) -> list[int]:
    """Return the processes whose command line or environment names something in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                known = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if bytes(folder) in known:
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 20) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
