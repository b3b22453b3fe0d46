"""Fixtures of the whole suite: RabbitMQ brokers, one to share and as many to break as a test wants.

Responsible for: starting them, and for marking the tests that need them. It must not declare anything on them: tests
that share a broker use names of their own.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from simulator.rabbitmq_node import RabbitNode, any_broker, private_node
from simulator.rabbitmq_server import GIVEN_URL, NoServerError, find_server

_BROKERS = {"rabbitmq_url", "rabbitmq_node"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the seed of the fault tests; here, because options must be known before a folder's own conftest is read."""
    parser.addoption("--fault-seed", type=int, default=20261121, help="seed of the fault tests (tests/faults)")
    parser.addoption(
        "--every-fault", action="store_true", help="fail where a fault of the list was not injected (make faults)"
    )


def pytest_configure() -> None:
    """Let SIGTERM end a run as Ctrl-C does: what its fixtures started is ended by them."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a node, so that they can be left out by `-m "not rabbitmq"`."""
    for item in _needing_brokers(items):
        item.add_marker(pytest.mark.rabbitmq)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Get a server before the first test, so that installing one costs no test its time."""
    if _needing_brokers(session.items) and not session.config.option.collectonly:
        # the tests that need one say what is wrong
        with suppress(NoServerError):
            find_server()


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    """The URL of a broker that all tests share; it must not be stopped, and names on it must be unique."""
    with any_broker() as url:
        yield url


@pytest.fixture
def rabbitmq_node() -> Iterator[Callable[..., RabbitNode]]:
    """A function that starts a node of the test's own, to kill, freeze, wipe or configure; gone after the test.

    It takes keys for the `rabbit` application by keyword: `rabbitmq_node(consumer_timeout=5_000)`.
    """
    if GIVEN_URL in os.environ:
        pytest.skip(f"the broker of {GIVEN_URL} is somebody else's and must not be broken")
    with ExitStack() as nodes:

        def start(**settings: int) -> RabbitNode:
            return nodes.enter_context(private_node(settings=settings))

        yield start


def _needing_brokers(items: list[pytest.Item]) -> list[pytest.Item]:
    return [item for item in items if _BROKERS & set(getattr(item, "fixturenames", ()))]
