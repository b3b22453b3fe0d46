"""The server is looked for in the documented order, and a container stands in where there is none."""

import signal
from pathlib import Path

import pytest

from simulator.rabbitmq_docker import IMAGE, ContainerHost
from simulator.rabbitmq_server import (
    DockerEngine,
    GivenUrl,
    NoServerError,
    StartScript,
    find_server,
)

NOT_PACKAGED = Path("/nonexistent/rabbitmq-server")


def test_a_given_broker_comes_before_everything(tmp_path: Path) -> None:
    """Who names a broker gets that one, and nothing is started or installed."""
    environ = {
        "WAVEKEEP_TEST_AMQP_URL": "amqp://somewhere/",
        "WAVEKEEP_TEST_RABBITMQ_SERVER": str(program(tmp_path, "mine")),
    }
    assert find_server(environ) == GivenUrl("amqp://somewhere/")


def test_a_given_start_script_comes_before_an_installed_server(tmp_path: Path) -> None:
    """Another broker line can be tested beside the installed one."""
    mine, installed = program(tmp_path, "mine"), program(tmp_path, "installed")
    assert find_server({"WAVEKEEP_TEST_RABBITMQ_SERVER": str(mine)}, packaged=installed) == StartScript(mine)


def test_a_start_script_that_is_not_there_is_told_and_not_passed_over() -> None:
    """A typing error does not silently test another server."""
    with pytest.raises(NoServerError, match="WAVEKEEP_TEST_RABBITMQ_SERVER names /nonexistent/it"):
        find_server({"WAVEKEEP_TEST_RABBITMQ_SERVER": "/nonexistent/it"})


def test_the_packaged_server_comes_before_the_one_on_path(tmp_path: Path) -> None:
    """The distribution's wrapper on PATH, which insists on the system's own node, is not what we start."""
    on_path, packaged = program(tmp_path, "rabbitmq-server"), program(tmp_path, "packaged")
    environ = {"PATH": str(tmp_path)}
    assert find_server(environ, packaged=packaged) == StartScript(packaged)
    assert find_server(environ, packaged=NOT_PACKAGED) == StartScript(on_path)


def test_an_engine_that_answers_is_the_last_resort(tmp_path: Path) -> None:
    """Without a server and without a way to install one, a container does; an engine that is down does not."""
    environ = {"PATH": str(tmp_path)}
    client = program(tmp_path, "docker")
    assert find_server(environ, packaged=NOT_PACKAGED) == DockerEngine(str(client))
    program(tmp_path, "docker", "exit 1")
    with pytest.raises(NoServerError, match="install the package rabbitmq-server, or start Docker"):
        find_server(environ, packaged=NOT_PACKAGED)


def test_a_container_is_started_broken_and_removed_by_the_engines_own_commands(tmp_path: Path) -> None:
    """A containerised node listens on loopback only, keeps its data over a restart, and is removed at the end."""
    said = tmp_path / "said"
    client = program(tmp_path, "docker", f'echo "$@" >> {said}\n[ "$1" = inspect ] && echo true || true')
    host = ContainerHost(str(client), {"consumer_timeout": 7})
    try:
        host.launch()
        assert host.alive()
        for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
            host.send(number)
        host.launch()
        host.ctl("status", timeout_s=10)
        host.empty()
        host.launch()
    finally:
        host.close()
    run, inspect, pause, unpause, kill, start, ctl, empty, again, removed = said.read_text().splitlines()
    name = pause.removeprefix("pause ")
    assert f"--publish 127.0.0.1:{host.port}:5672 " in run
    assert "/advanced.config:/etc/rabbitmq/advanced.config:ro" in run
    assert run.endswith(f" {IMAGE}")
    assert again == run
    assert inspect == f"inspect --format {{{{.State.Running}}}} {name}"
    assert (unpause, kill, start) == (f"unpause {name}", f"kill {name}", f"start {name}")
    assert ctl == f"exec {name} rabbitmqctl -q status"
    assert empty == removed == f"rm --force --volumes {name}"


def program(folder: Path, name: str, script: str = "exit 0") -> Path:
    """Write an executable that runs a line of shell."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path
