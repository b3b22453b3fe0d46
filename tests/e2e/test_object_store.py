"""Files in an object store: the single process keeps, shows and replaces them there as it does in a folder."""

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.wavs import wav
from tests.e2e.harness import House, new_task, wait_for
from tests.object_store import Bucket, Proxy, Server, environment, running_proxy, running_server
from tests.object_store_proxy import BEGUN

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server over HTTP."""
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(server: Server) -> Bucket:
    """A bucket on it."""
    return server.bucket()


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """What tells the service when uploads were begun."""
    with running_proxy(tmp_path_factory.mktemp("proxy"), server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def house(bucket: Bucket, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """All services in one process, keeping files in the bucket."""
    settings = {"WAVEKEEP_STORAGE_URL": bucket.address, **environment(proxy.url)}
    house = House(tmp_path_factory.mktemp("house"), settings=settings)
    with house.deployment:
        yield house
        assert house.leaks() == []


def wavekeep(house: House, bucket: Bucket, *arguments: str) -> Any:
    """Run the command line beside the service, with the same variables; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WAVEKEEP_", "AWS_"))}
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments, "--json"],
        cwd=ROOT,
        env={
            **kept,
            **environment(bucket.server),
            "WAVEKEEP_STORAGE_URL": bucket.address,
            "WAVEKEEP_DATA_DIR": str(house.folder / "standalone"),
            "WAVEKEEP_NOTIFY_CONFIG": str(house.folder / "destinations.toml"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_file_is_kept_in_the_store_and_shown_from_there(house: House, bucket: Bucket) -> None:
    """The event names an object that holds exactly the file that was proven; nothing of it stays on local disk."""
    task_id = new_task()
    house.convert(task_id=task_id, files=[{"size_bytes": 6_000_000}])
    stored = house.told(task_id, "conversion.stored")["data"]
    key = stored["uri"].removeprefix(f"{bucket.address}/")
    content = bucket.get(key)
    assert stored["uri"] == f"{bucket.address}/{key}"
    assert (len(content), hashlib.sha256(content).hexdigest()) == (stored["size_bytes"], stored["sha256"])
    wait_for(lambda: any(each.endswith(f"{task_id}.announced") for each in bucket.sizes()), "it is marked")
    (shown,) = wavekeep(house, bucket, "show", task_id)
    assert shown["state"] == "stored"
    assert shown["announced"]
    assert shown["uri"] == stored["uri"]
    assert house.temporaries() == []
    assert bucket.uploads() == []


def test_a_file_is_replaced_in_the_store(house: House, bucket: Bucket, tmp_path: Path) -> None:
    """A person's replacement puts the manifest's next revision in its place, and everybody hears it."""
    task_id = new_task()
    house.convert(task_id=task_id, files=[{"size_bytes": 100_000}])
    house.told(task_id, "conversion.stored")
    wait_for(lambda: any(each.endswith(f"{task_id}.announced") for each in bucket.sizes()), "it is marked")
    better = tmp_path / "better.wav"
    better.write_bytes(b"".join(wav(duration_s=0.2, seed=5).blocks()))
    done = wavekeep(house, bucket, "replace", task_id, "--vendor", "apibox", "--file", str(better))
    assert done["replaced"]
    replaced = house.told(task_id, "file.replaced")["data"]
    (shown,) = wavekeep(house, bucket, "show", task_id)
    assert [each["revision"] for each in shown["revisions"]] == [1, 2]
    assert shown["uri"] == replaced["uri"] == done["manifest"]["uri"]
    assert bucket.get(replaced["uri"].removeprefix(f"{bucket.address}/")) == better.read_bytes()


def test_a_store_that_is_not_there_ends_the_process_with_one_sentence(bucket: Bucket, tmp_path: Path) -> None:
    """A mistyped bucket is told at start, by its name, before any callback is taken for nothing."""
    wrong = {"WAVEKEEP_STORAGE_URL": "s3://bucket-of-nobody/kept", **environment(bucket.server)}
    ours = {"WAVEKEEP_DATA_DIR": str(tmp_path), "WAVEKEEP_INGRESS_PORT": "0", "WAVEKEEP_OPS_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "standalone"],
        cwd=ROOT,
        env={**os.environ, **wrong, **ours},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "There is no bucket bucket-of-nobody" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_service_looks_for_uploads_that_nobody_will_end(house: House, bucket: Bucket, proxy: Proxy) -> None:
    """Housekeeping of a service on S3 ends what was begun long ago; what is not of Wavekeep's making stays."""
    forgotten = "kept/here/kie/ab/task.0123456789ab.wav"
    for key in (forgotten, "kept/here/backup.tar"):
        bucket.begin_upload(key)
    proxy.tell(replaced={BEGUN: BEGUN.replace("2010", "2020")})
    house.deployment.stop()
    house.deployment.start()
    wait_for(lambda: bucket.uploads() == ["kept/here/backup.tar"], "it is ended")
    (ops,) = house.deployment.ops_urls.values()
    with urllib.request.urlopen(f"{ops}/metrics") as answer:
        assert "wavekeep_downloader_uploads_ended_total 1.0" in answer.read().decode()
