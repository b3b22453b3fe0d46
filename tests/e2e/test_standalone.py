"""The single process as a newcomer meets it: the line it prints works, and no file is too large for its memory."""

import json
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from simulator.processes import Process
from simulator.rabbitmq_local import free_ports
from tests.e2e.harness import House, get, new_task, wait_for

log = logging.getLogger(__name__)

_SMALL_BYTES = 100_000_000
_LARGE_BYTES = 5_000_000_000
_FREE_BYTES = 12_000_000_000
_LIMIT_BYTES = 256 * 1024 * 1024
_MAY_GROW_BYTES = 40 * 1024 * 1024
_STACK_BYTES = 1024 * 1024


def test_the_line_that_is_printed_works_and_leaves_a_file_and_its_manifest(tmp_path: Path) -> None:
    """From nothing to a file in custody with one copied line, and no setting."""
    ingress_port, ops_port = free_ports(2)
    process = Process(
        "standalone",
        environ={"WAVEKEEP_INGRESS_PORT": str(ingress_port), "WAVEKEEP_OPS_PORT": str(ops_port)},
        log=tmp_path / "standalone.log",
        ready_url=f"http://127.0.0.1:{ops_port}/readyz",
    )
    process.start()
    try:
        wait_for(process.ready, "it is ready")
        line = wait_for(lambda: re.search(r"^ +(curl .*)$", process.output.read_text(), re.MULTILINE), "it is printed")
        answer = subprocess.run(["bash", "-c", line[1]], capture_output=True, text=True, timeout=20, check=True)
        assert "200 OK" in answer.stdout
        assert '{"status": "received"}' in answer.stdout
        files = tmp_path / "data" / "files"
        manifest_path = wait_for(lambda: next(files.glob("*/*/*.json"), None), "there is a manifest")
        manifest = json.loads(manifest_path.read_text())
        assert (files / manifest["audio"]).stat().st_size == manifest["size_bytes"]
        assert manifest["format"]["container"] == "RIFF"
        wait_for(lambda: '"event.told"' in process.log.read_text(), "somebody is told, with no destination configured")
        assert "1.0" in get(f"http://127.0.0.1:{ops_port}/metrics")
    finally:
        assert process.stop() == 0
    (token,) = set(re.findall(r"token=([\w-]+)'", line[1]))
    assert token in (tmp_path / "data" / "secrets.toml").read_text()
    assert token not in process.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_gigabytes_in_256_mebibytes(tmp_path: Path) -> None:
    """A file of 5 GB is fetched, proven, stored and read again by a process that may have 256 MiB, like one of 100 MB.

    The limit is the system's, on all memory that a process has for itself: what it allocates, threads and libraries
    included, but not the cache of the disk, nor addresses without memory. Besides, its peak is read.
    """
    if shutil.disk_usage(tmp_path).free < _FREE_BYTES:
        pytest.skip("a file of 5 GB, and what is beside it, needs 12 GB of free disk")
    house = House(tmp_path / "house", settings={"WAVEKEEP_DOWNLOAD_MAX_BYTES": str(_LARGE_BYTES + 1_000_000)})
    process = house.deployment.services["standalone"]
    process.wrapper = ("prlimit", f"--data={_LIMIT_BYTES}", f"--stack={_STACK_BYTES}")
    try:
        with house.deployment:
            peaks = [_store(house, size_bytes) for size_bytes in (_SMALL_BYTES, _LARGE_BYTES)]
            assert f"{_LIMIT_BYTES}" in Path(f"/proc/{process.pid}/limits").read_text()
    finally:
        shutil.rmtree(tmp_path / "house")
    log.info("peak memory in bytes: %d, then %d", *peaks)
    assert peaks[1] < _LIMIT_BYTES
    assert peaks[1] - peaks[0] < _MAY_GROW_BYTES


def _store(house: House, size_bytes: int) -> int:
    """Have a file of a size stored; return the most memory the process has had in use so far (source: proc(5))."""
    task_id = new_task()
    house.convert(task_id=task_id, files=[{"flavour": "rf64", "size_bytes": size_bytes}])
    stored = house.told(task_id, "conversion.stored", within_s=400)["data"]
    (audio,) = house.kept(task_id)
    assert audio.stat().st_size == stored["size_bytes"] > size_bytes - 10
    status = Path(f"/proc/{house.deployment.services['standalone'].pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
