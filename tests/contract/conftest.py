"""The places that the contracts are kept on: brokers one after the other, and a server of object stores."""

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contract.brokers import Driver, EmbeddedDriver, RabbitDriver
from tests.contract.storages import FolderKit, Kit, ObjectKit
from tests.object_store import Proxy, Server, environment, running_proxy, running_server


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


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server over HTTP, for the tests of one module."""
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def kit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    """A place, once for each kind of storage; the server is started only where it is asked for."""
    with ThreadPoolExecutor(8) as executor:
        if request.param == "folder":
            yield FolderKit(tmp_path / "files", executor)
        else:
            server: Server = request.getfixturevalue("s3_server")
            for name, value in environment(server.url).items():
                monkeypatch.setenv(name, value)
            yield ObjectKit(server.bucket(), executor)


@pytest.fixture
def store_proxy(s3_server: Server, tmp_path: Path) -> Iterator[Proxy]:
    """What stands between the storage and the server; well until told otherwise."""
    with running_proxy(tmp_path, s3_server) as proxy:
        yield proxy


@pytest.fixture
def object_kit(s3_server: Server, store_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectKit]:
    """A bucket, reached through the proxy."""
    for name, value in environment(store_proxy.url).items():
        monkeypatch.setenv(name, value)
    with ThreadPoolExecutor(4) as executor:
        yield ObjectKit(s3_server.bucket(), executor)
