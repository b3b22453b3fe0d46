"""The object store fails: it refuses, is slow, hangs up in the middle of an upload, or does not say what it did.

Fault 19.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults import report
from tests.faults.core import judge
from tests.faults.house import wait_for
from tests.faults.object_house import ObjectHouse
from tests.faults.surroundings import logged
from tests.object_store import Proxy, Server, running_proxy, running_server

LARGE_BYTES = 6_000_000
"""More than one part of an upload."""


@dataclass(frozen=True)
class Trouble:
    """One way to fail.

    Attributes:
        manner: of the proxy.
        waits: whether the attempts fail and wait, so that all must have done so before the fault is lifted.
    """

    manner: Mapping[str, Any] = field(default_factory=dict)
    waits: bool = True


TROUBLES = {
    "503 SlowDown to everything": Trouble({"status": 503, "code": "SlowDown"}),
    "hangs up on everybody": Trouble({"cut": True}),
    "cut in the middle of an upload": Trouble({"matching": "PUT .*partNumber=2", "cut": True}),
    "every answer late by a second": Trouble({"delay_s": 1}, waits=False),
    "uploads completed, and answered 503": Trouble(
        {"matching": "POST .*uploadId=", "done": True, "status": 503}, waits=False
    ),
    "manifests created, and never answered": Trouble({"matching": r"PUT .*\.json", "done": True, "cut": True}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server over HTTP."""
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(server: Server, tmp_path: Path) -> Iterator[Proxy]:
    """What stands between the services and the server."""
    with running_proxy(tmp_path, server) as proxy:
        yield proxy


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.fast_fault] if name == "uploads completed, and answered 503" else [])
        for name in TROUBLES
    ],
)
def test_a_failing_object_store_is_waited_out(name: str, server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """Whatever a store does for a while under load, every file is kept once, and no part of an upload is left."""
    trouble = TROUBLES[name]
    with ObjectHouse(tmp_path / "house", server.bucket(), proxy) as home:
        proxy.tell(**trouble.manner)
        home.convert(*({"files": [{"size_bytes": size}]} for size in [LARGE_BYTES, LARGE_BYTES, LARGE_BYTES, 50_000]))
        if trouble.waits:
            wait_for(lambda: len(logged(home, "message.retry_scheduled", reason="storage_failed")) >= 3, "they wait")
        else:
            wait_for(lambda: len(proxy.met()) >= 3, "it was in the way of all")
            wait_for(lambda: len(home.kept("*.announced")) == 4, "all are kept meanwhile", within_s=90)
        met = len(proxy.met())
        proxy.tell()
        verdict = judge(home, within_s=120)
        retried = logged(home, "message.retry_scheduled", queue="wavekeep.downloader")
    report.record(19, f"object store: {name}", met, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == 4
    assert {line["reason"] for line in retried} == ({"storage_failed"} if trouble.waits else set())


def test_what_a_store_damages_is_stored_without_fetching_it_again(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """A store that gives back other bytes: the file ends stored, and its vendor was asked for it only once."""
    with ObjectHouse(tmp_path / "house", server.bucket(), proxy) as home:
        proxy.tell(matching=r"GET .*\.wav", damaged=True)
        (task,) = home.convert({"files": [{"size_bytes": LARGE_BYTES}]})
        wait_for(lambda: logged(home, "message.retry_scheduled", reason="stored_file_differs"), "it is found out")
        assert home.kept("*.json") == []
        proxy.tell()
        verdict = judge(home, within_s=90)
        recovered = logged(home, "file.recovered")
        (file,) = home.entry(task)["files"]
    assert verdict.problems == ()
    assert recovered
    assert (file["fetches"], file["bytes_served"]) == (1, file["size_bytes"])


def test_what_a_store_damages_once_is_put_again_at_once(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """One read that brings other bytes costs one upload more, and no other attempt."""
    with ObjectHouse(tmp_path / "house", server.bucket(), proxy) as home:
        proxy.tell(matching=r"GET .*\.wav", times=1, damaged=True)
        (task,) = home.convert({"files": [{"size_bytes": LARGE_BYTES}]})
        verdict = judge(home, within_s=90)
        (file,) = home.entry(task)["files"]
        retried = logged(home, "message.retry_scheduled")
    assert verdict.problems == ()
    assert retried == []
    assert (file["fetches"], file["bytes_served"]) == (1, file["size_bytes"])


def test_a_kill_between_upload_and_manifest_costs_no_second_fetch(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """A process that dies while what it put is read again: the next one stores the staged copy, and asks nobody."""
    with ObjectHouse(tmp_path / "house", server.bucket(), proxy) as home:
        proxy.tell(matching=r"GET .*\.wav", delay_s=20)
        (task,) = home.convert({"files": [{"size_bytes": LARGE_BYTES}]})
        wait_for(proxy.met, "it is read again")
        home.process("downloader").kill()
        proxy.tell()
        assert len(home.kept("*.wav")) == 1
        assert home.kept("*.json") == []
        home.start()
        verdict = judge(home, within_s=90)
        (file,) = home.entry(task)["files"]
    assert verdict.problems == ()
    assert (file["fetches"], file["bytes_served"]) == (1, file["size_bytes"])
