"""The single process as a newcomer meets it: the line it prints works, and its memory does not grow with a file."""

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
_LARGE_BYTES = 4_300_000_000
_FREE_BYTES = 6_000_000_000
_ALLOWED_KIB = 40 * 1024


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
@pytest.mark.timeout(300)
def test_peak_memory_does_not_grow_with_the_size_of_a_file(tmp_path: Path) -> None:
    """A file of 4 GB costs the memory of one of 100 MB: neither is ever held."""
    if shutil.disk_usage(tmp_path).free < _FREE_BYTES:
        pytest.skip("needs 6 GB of free disk")
    house = House(tmp_path / "house", settings={"WAVEKEEP_DOWNLOAD_MAX_BYTES": str(5_000_000_000)})
    try:
        with house.deployment:
            peaks = [_store(house, size_bytes) for size_bytes in (_SMALL_BYTES, _LARGE_BYTES)]
    finally:
        shutil.rmtree(tmp_path / "house")
    log.info("peak memory in KiB: %d, then %d", *peaks)
    assert peaks[1] - peaks[0] < _ALLOWED_KIB


def _store(house: House, size_bytes: int) -> int:
    """Have a file of a size stored; return the peak memory of the process so far, in KiB."""
    task_id = new_task()
    house.convert(task_id=task_id, files=[{"flavour": "rf64", "size_bytes": size_bytes}])
    stored = house.told(task_id, "conversion.stored", within_s=200)["data"]
    (audio,) = house.kept(task_id)
    assert audio.stat().st_size == stored["size_bytes"] > size_bytes - 10
    status = Path(f"/proc/{house.deployment.services['standalone'].pid}/status").read_text()
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert peak is not None
    return int(peak[1])
