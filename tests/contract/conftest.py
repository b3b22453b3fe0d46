"""The places that the messaging contract is kept on, one after the other."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.brokers import Driver, EmbeddedDriver, RabbitDriver


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    """A driver for each implementation; the node is started only where it is asked for."""
    if request.param == "embedded":
        return EmbeddedDriver(tmp_path / "data" / "queue.sqlite3")
    return RabbitDriver(request.getfixturevalue("rabbitmq_url"))


@pytest.fixture
async def driver(place: Driver) -> AsyncIterator[Driver]:
    """A place of the test's own, empty afterwards."""
    yield place
    await place.clear()
