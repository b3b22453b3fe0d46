"""Acceptance: every hostile answer there is, all at once, beside good files, and none of these suffers for it."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import hostile_server
from tests.e2e.harness import House, new_task, wait_for

log = logging.getLogger(__name__)

GOOD = 20
GOOD_BYTES = 2_000_000
MOST_BYTES = 5_000_000
GROWTH_MIB = 100
REASONS = {
    "endless": "too_large",
    "endless-chunks": "too_large",
    "huge": "too_large",
    "one-byte-a-second": "too_slow",
    "a-head-one-byte-a-second": "timed_out",
    "silent": "timed_out",
    "length-too-long": "body_cut",
    "length-too-short": "answer_invalid",
    "chunked-and-cut": "body_cut",
    "close-delimited-and-cut": "wav_truncated",
    "206-unasked": "answer_invalid",
    "206-of-another-range": "answer_invalid",
    "206-of-another-etag": "answer_invalid",
    "204": "answer_invalid",
    "304": "answer_invalid",
    "html": "not_wav",
    "gzip-bomb": "answer_invalid",
    "gzip-bomb-under-a-wav-name": "not_wav",
    "header-bomb": "answer_invalid",
    "http-0.9": "answer_invalid",
    "reset": "connection_failed",
    "redirect-loop": "too_many_redirects",
    **{f"tls-{name}": "certificate_invalid" for name in hostile_server.UNTRUSTED},
}
PERMANENT = {"too_large", "too_many_redirects"}


@pytest.fixture
def besieged(tmp_path: Path) -> Iterator[House]:
    """A deployment of its own that may fetch from anywhere on loopback, and has little patience."""
    settings = {
        "WAVEKEEP_DOWNLOAD_ALLOW_ADDRESSES": "127.0.0.1/32",
        "WAVEKEEP_DOWNLOAD_CONCURRENCY": "16",
        "WAVEKEEP_DOWNLOAD_MAX_BYTES": str(MOST_BYTES),
        "WAVEKEEP_DOWNLOAD_MIN_BYTES_PER_S": "500000",
        "WAVEKEEP_DOWNLOAD_RATE_WINDOW_S": "2",
        "WAVEKEEP_DOWNLOAD_ATTEMPT_TIMEOUT_S": "10",
        # the tests' authority is trusted, so that what is wrong with a certificate is what its name says
        "SSL_CERT_FILE": str(hostile_server.TLS / "authority.pem"),
        "WAVEKEEP_LOG_FORMAT": "json",
    }
    house = House(tmp_path / "house", settings=settings)
    with house.deployment:
        yield house
        assert house.leaks() == []


@pytest.mark.slow
def test_hostile_answers_beside_good_files(besieged: House) -> None:
    """All good files are stored, all bad ones refused for a closed reason, and the memory stays flat."""
    house = besieged
    warm = house.convert(files=[{"size_bytes": GOOD_BYTES}])["task_id"]
    house.told(warm, "conversion.stored")
    before_mib = _peak_mib(house)
    with hostile_server.serving() as urls:
        assert set(urls) == set(REASONS)
        bad = {name: _report(house, url) for name, url in urls.items()}
        good = house.simulator.convert([{"vendor": "kie", "files": [{"size_bytes": GOOD_BYTES}]}] * GOOD)
        for made in good:
            house.told(made["task_id"], "conversion.stored")
        wait_for(lambda: set(bad.values()) <= set(_first_reasons(house)), "every bad file was refused")
        reasons = _first_reasons(house)
        assert {name: reasons[task_id] for name, task_id in bad.items()} == REASONS
        for name, task_id in bad.items():
            if REASONS[name] in PERMANENT:
                assert house.told(task_id, "conversion.rejected")["data"]["reason"] == REASONS[name]
    grown_mib = _peak_mib(house) - before_mib

    for made in good:
        (audio,) = house.kept(made["task_id"])
        assert audio.stat().st_size == house.manifest(made["task_id"])["size_bytes"]
        assert house.manifest(made["task_id"])["sha256"] in house.entry(made["task_id"])["expected_sha256"]
    assert not [task_id for task_id in bad.values() if house.kept(task_id)]
    wait_for(lambda: not house.temporaries(), "no temporary file stays")
    log.info("the peak of the memory grew by %.0f MiB", grown_mib)
    assert grown_mib < GROWTH_MIB


def _report(house: House, url: str) -> str:
    """Say that the file is under this URL; return the task."""
    task_id = new_task()
    data = {"task_id": task_id, "audioWavUrl": f"{url}?Signature=secret"}
    assert house.call_back("apibox", task_id, json.dumps({"code": 200, "msg": "success", "data": data}).encode()) == 200
    return task_id


def _first_reasons(house: House) -> Mapping[str, str]:
    """Return why the first attempt at each task failed, by task, from what was logged."""
    lines: list[dict[str, Any]] = [
        json.loads(line)
        for process in house.deployment.services.values()
        for line in process.log.read_text().splitlines()
        if line.startswith("{") and line.endswith("}")
    ]
    tasks = {
        line["event_id"]: line["subject"].partition("/")[2] for line in lines if line["event"] == "callback.accepted"
    }
    reasons: dict[str, str] = {}
    for line in lines:
        if line["event"] in {"message.retry_scheduled", "message.parked"}:
            reasons.setdefault(tasks[line["event_id"]], line["reason"])
    return reasons


def _peak_mib(house: House) -> float:
    """Return the most memory that the process has ever held."""
    (process,) = house.deployment.services.values()
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
