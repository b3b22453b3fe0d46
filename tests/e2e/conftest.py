"""Deployments for the end-to-end tests: one of each way to run Wavekeep, shared by all of them.

Responsible for: starting and ending them. A test must leave its deployment running, and use tasks of its own.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from simulator.rabbitmq_node import private_node
from simulator.rabbitmq_server import GIVEN_URL, NoServerError, find_server
from tests.e2e.harness import House, new_task

MODES = ("embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Get a server before the first test, so that installing one costs no test its time."""
    needed = any("house" in getattr(item, "fixturenames", ()) and item.get_closest_marker("rabbitmq")
                 for item in session.items)  # fmt: skip
    if needed and not session.config.option.collectonly:
        with suppress(NoServerError):
            find_server()


@pytest.fixture(scope="session")
def vhost() -> Iterator[Callable[[], str]]:
    """A function that makes a virtual host on a node that all deployments share, and returns its URL."""
    if GIVEN_URL in os.environ:
        pytest.skip(f"the broker of {GIVEN_URL} is somebody else's, and gets no virtual hosts from us")
    with private_node() as node:

        def make() -> str:
            name = f"e2e-{new_task()}"
            node.ctl("add_vhost", name)
            node.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
            return node.amqp_url + name

        yield make


@pytest.fixture(scope="session", params=MODES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A running deployment, in each of the two ways; at its end nothing it wrote holds a secret."""
    folder: Path = tmp_path_factory.mktemp(f"house-{request.param}")
    broker_url = request.getfixturevalue("vhost")() if request.param == "rabbitmq" else None
    house = House(folder, broker_url=broker_url)
    with house.deployment:
        yield house
        assert house.leaks() == []
