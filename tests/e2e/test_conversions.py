"""What becomes of a conversion, however its vendor and its file host behave: one file, one last end state."""

import base64
import hashlib
import json
import time
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.e2e.harness import WEBHOOK_SECRET, House, new_task, wait_for

FAILED, SUCCEEDED = {"outcome": "failed"}, {"outcome": "succeeded"}


def test_four_copies_at_the_same_moment_are_one_file_told_under_one_id(house: House) -> None:
    """A task is one file, however often its vendor calls."""
    task_id = new_task()
    house.convert(vendor="kie", task_id=task_id, copies=4, files=[{"size_bytes": 500_000}])
    _assert_stored_once(house, task_id)
    entry = house.entry(task_id)
    assert [callback["status"] for callback in entry["callbacks"]] == [200] * 4
    assert entry["files"][0]["fetches"] == 1


def test_another_file_for_a_stored_task_is_a_conflict_and_is_not_fetched(house: House) -> None:
    """Stored is final: what contradicts it is told, and changes nothing."""
    task_id = new_task()
    first = house.convert(task_id=task_id, files=[{}, {}], steps=[SUCCEEDED])
    kept = _assert_stored_once(house, task_id)
    house.call_back("apibox", task_id, _success(task_id, house.link()))
    conflict = house.told(task_id, "conversion.conflicting")["data"]
    assert conflict["claim"] == "succeeded"
    assert conflict["kept_link"] == first["links"][0].partition("?")[0]
    assert _assert_stored_once(house, task_id) == kept


@pytest.mark.parametrize(
    ("steps", "claims"),
    [
        ([SUCCEEDED, {"file": 1, "delay_s": 0.3}], {"succeeded"}),
        ([SUCCEEDED, {**FAILED, "delay_s": 0.3}], {"failed"}),
    ],
    ids=["another-file", "a-failure"],
)
def test_whatever_contradicts_a_success_the_success_stays(
    house: House, steps: list[dict[str, Any]], claims: set[str]
) -> None:
    """Neither a second file nor a late failure undoes custody."""
    task_id = new_task()
    house.convert(vendor="sunoapi", task_id=task_id, files=[{}, {}], steps=steps)
    assert house.told(task_id, "conversion.conflicting")["data"]["claim"] in claims
    _assert_stored_once(house, task_id)
    assert house.events(task_id, kind="conversion.rejected") == []


def test_two_files_called_at_the_same_moment_end_as_one_stored_and_one_conflict(house: House) -> None:
    """Whichever of two contradicting callbacks comes first, both orders end alike."""
    tasks = [new_task() for _ in range(4)]
    for number, task_id in enumerate(tasks):
        steps = [{"file": number % 2}, {"file": 1 - number % 2, "after_answer": False}]
        house.convert(task_id=task_id, files=[{}, {}], steps=steps)
    for task_id in tasks:
        assert house.told(task_id, "conversion.conflicting")["data"]["claim"] == "succeeded"
        _assert_stored_once(house, task_id)


def test_a_success_heals_an_earlier_failure(house: House) -> None:
    """A rejection is not the end where the vendor succeeds later."""
    task_id = new_task()
    house.convert(vendor="kie", task_id=task_id, steps=[FAILED])
    assert house.told(task_id, "conversion.rejected")["data"]["reason"] == "vendor_failed"
    assert house.call_back("kie", task_id, _success(task_id, house.link())) == 200
    house.told(task_id, "conversion.stored")
    assert len(house.kept(task_id)) == 1
    assert house.events(task_id, kind="conversion.conflicting") == []


def test_a_broken_file_is_rejected_with_its_reason_and_parked(house: House) -> None:
    """What cannot get better is given up at once, is never a file in custody, and waits for a person."""
    parked = house.depth("wavekeep.downloader.parked")
    broken = {"alaw": "wav_unsupported", "second_file": "wav_invalid", "bad_block_align": "wav_invalid"}
    tasks = {flavour: new_task() for flavour in broken}
    for flavour, task_id in tasks.items():
        house.convert(task_id=task_id, files=[{"flavour": flavour}])
    for flavour, task_id in tasks.items():
        rejected = house.told(task_id, "conversion.rejected")["data"]
        assert rejected["reason"] == broken[flavour]
        assert rejected["reason"] in house.entry(task_id)["expected"]["reasons"]
        assert house.kept(task_id) == []
    wait_for(lambda: house.depth("wavekeep.downloader.parked") == parked + 3, "the reports are parked")


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after_bytes": 1_000}], ids=["503", "cut"])
def test_a_file_that_is_refused_or_cut_once_is_fetched_again_and_stored(house: House, fault: dict[str, Any]) -> None:
    """A failure of the host costs one step of the ladder, not the file."""
    task_id = new_task()
    house.convert(task_id=task_id, files=[{"misbehaviour": [{"times": 1} | fault]}])
    _assert_stored_once(house, task_id)
    assert house.entry(task_id)["files"][0]["fetches"] >= 2
    assert house.events(task_id, kind="conversion.rejected") == []


@pytest.mark.parametrize("flavour", ["pcm24", "pcm8", "float32", "float64", "extensible", "rf64", "bw64", "with_list"])
def test_every_kind_of_whole_wav_is_kept_byte_for_byte(house: House, flavour: str) -> None:
    """What is whole is kept as it was served."""
    task_id = new_task()
    house.convert(task_id=task_id, files=[{"flavour": flavour, "size_bytes": 300_000}])
    _assert_stored_once(house, task_id)


def test_a_delivery_verifies_with_the_library_of_the_standard(house: House) -> None:
    """A receiver needs nothing of ours to believe a webhook."""
    task_id = new_task()
    house.convert(task_id=task_id)
    house.told(task_id, "conversion.stored")
    for delivery in house.deliveries(task_id):
        Webhook(WEBHOOK_SECRET).verify(base64.b64decode(delivery["body_base64"]), delivery["headers"])
        assert delivery["headers"]["content-type"] == "application/cloudevents+json"


def test_a_repeated_delivery_says_the_same_under_the_same_webhook_id(house: House) -> None:
    """A receiver that said 503 hears the same thing again, under the same id."""
    house.simulator.tell_webhook("failures", {"status": 503, "times": 1})
    task_id = new_task()
    house.convert(task_id=task_id, steps=[FAILED])
    wait_for(lambda: len(house.deliveries(task_id, receiver="failures")) > 1, "it is repeated")
    deliveries = house.deliveries(task_id, receiver="failures")
    assert len({delivery["webhook_id"] for delivery in deliveries}) == 1
    first, again = (json.loads(delivery["body"]) for delivery in deliveries)
    assert again | {"traceparent": first["traceparent"]} == first
    assert [delivery["status"] for delivery in deliveries][:2] == [503, 200]


def test_a_destination_that_hangs_delays_no_other_and_hears_everything_in_the_end(house: House) -> None:
    """Each destination has a queue of its own."""
    house.simulator.tell_webhook("failures", {"hang": True})
    tasks = [new_task() for _ in range(12)]
    began = time.monotonic()
    for task_id in tasks:
        house.convert(task_id=task_id, steps=[FAILED])
    for task_id in tasks:
        house.told(task_id, "conversion.rejected")
    took_s = time.monotonic() - began
    house.simulator.tell_webhook("failures", {"status": 200})
    assert took_s < 4, "four at a time of twelve deliveries that hang for 2 s each take 6 s"
    wait_for(lambda: all(_heard(house, "failures", task_id) for task_id in tasks), "the one that hung hears of all")
    for task_id in tasks:
        house.told(task_id, "conversion.rejected", receiver="failures")


def _heard(house: House, receiver: str, task_id: str) -> bool:
    return any(delivery["status"] == 200 for delivery in house.deliveries(task_id, receiver=receiver))


def _assert_stored_once(house: House, task_id: str) -> str:
    """Wait until a task is stored; assert that there is one file, one manifest and one id; return the digest."""
    stored = house.told(task_id, "conversion.stored")["data"]
    (audio,) = house.kept(task_id)
    digest = hashlib.sha256(audio.read_bytes()).hexdigest()
    manifest = house.manifest(task_id)
    assert digest == stored["sha256"] == manifest["sha256"]
    assert audio.as_uri() == stored["uri"] == manifest["uri"]
    entry = house.entry(task_id)
    assert entry["expected"]["outcome"] == "stored"
    assert digest in entry["expected_sha256"]
    return digest


def _success(task_id: str, link: str) -> bytes:
    return json.dumps({"code": 200, "msg": "success", "data": {"task_id": task_id, "audioWavUrl": link}}).encode()
