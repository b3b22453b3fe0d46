"""What is answered to a callback, and what becomes of it: every sample, the wrong proofs, the trace."""

import json
import re
import secrets
from pathlib import Path

import pytest

from tests.e2e.harness import House, get, new_task, wait_for

SAMPLES = Path(__file__).parents[1] / "samples"
INDEX = json.loads((SAMPLES / "index.json").read_text())

_TASK = INDEX["apibox-success.json"]["task_id"]
_LINK = re.compile(r"https://files\.example\.com/s/[^\"\\]*")


@pytest.mark.parametrize("name", INDEX)
def test_a_sample_of_a_vendor_is_answered_200_and_becomes_what_the_index_says(house: House, name: str) -> None:
    """Every spelling a vendor uses is understood, whoever sends it."""
    wanted, task_id = INDEX[name], new_task()
    link = house.link(spaced_name="space" in name)
    text = _LINK.sub(link, (SAMPLES / name).read_text()).replace(_TASK, task_id)

    assert house.call_back(wanted["vendor"], task_id, text.encode()) == 200

    if wanted["outcome"] == "succeeded":
        stored = house.told(task_id, "conversion.stored")["data"]
        assert [path.as_uri() for path in house.kept(task_id)] == [stored["uri"]]
        assert house.manifest(task_id)["sha256"] == stored["sha256"]
    elif wanted["outcome"] == "failed":
        rejected = house.told(task_id, "conversion.rejected")["data"]
        assert (rejected["reason"], rejected["code"]) == ("vendor_failed", wanted["code"])
        assert house.kept(task_id) == []
    else:
        subject = task_id if wanted["task_id"] else wanted["vendor"]
        unrecognised = house.told(subject, "report.unrecognised")["data"]
        assert unrecognised["body"] is None
        assert unrecognised["explanation"]


def test_a_callback_of_no_known_shape_is_kept_for_replay_each_once(house: House) -> None:
    """Nothing that was answered 200 is lost, though nobody can read it yet."""
    kept = house.depth("wavekeep.unrecognised")
    for number in range(3):
        assert house.call_back("sunoapi", "", json.dumps({"code": 200, "number": number}).encode()) == 200
    wait_for(lambda: house.depth("wavekeep.unrecognised") == kept + 3, "all three are kept")


def test_a_callback_without_the_right_token_is_answered_401_and_goes_nowhere(house: House) -> None:
    """Nobody forges: what is not authentic leaves no trace but a count."""
    accepted = house.metric("wavekeep_ingress_callbacks_accepted_total")
    forged, other_vendors, unsigned = new_task(), house.token("sunoapi"), new_task()
    assert house.call_back("apibox", forged, _success(forged, house.link()), token="") == 401
    assert house.call_back("apibox", forged, _success(forged, house.link()), token="wrong") == 401
    assert house.call_back("apibox", forged, _success(forged, house.link()), token=other_vendors) == 401
    signature = {"X-Webhook-Signature": "d3Jvbmc="}
    assert house.call_back("kie", unsigned, _success(unsigned, house.link()), **signature) == 401

    after = new_task()
    assert house.call_back("apibox", after, _success(after, house.link())) == 200
    house.told(after, "conversion.stored")
    assert house.metric("wavekeep_ingress_callbacks_accepted_total") == accepted + 1
    for task_id in (forged, unsigned):
        assert house.events(task_id) == []
        assert list(house.files.rglob(f"{task_id}*")) == []


def test_a_body_that_no_vendor_sends_is_refused_and_goes_nowhere(house: House) -> None:
    """What cannot be a callback is answered 400 or 413, never 200."""
    accepted = house.metric("wavekeep_ingress_callbacks_accepted_total")
    task_id = new_task()
    assert house.call_back("apibox", task_id, b"{") == 400
    assert house.call_back("apibox", task_id, b"[]") == 400
    assert house.call_back("apibox", task_id, b" " * 70_000) == 413
    assert house.metric("wavekeep_ingress_callbacks_accepted_total") == accepted


def test_the_trace_of_a_callback_is_the_trace_of_what_is_told_of_it(house: House) -> None:
    """One trace id leads from the vendor's request to the webhook, and stands in the logs of both ends."""
    trace, task_id = secrets.token_hex(16), new_task()
    traceparent = f"00-{trace}-{secrets.token_hex(8)}-01"
    assert house.call_back("apibox", task_id, _success(task_id, house.link()), traceparent=traceparent) == 200
    event = house.told(task_id, "conversion.stored")
    assert event["traceparent"].split("-")[1] == trace
    (delivery,) = house.deliveries(task_id)
    assert delivery["headers"]["traceparent"].split("-")[1] == trace
    lines = [line for process in house.deployment.services.values() for line in process.log.read_text().splitlines()]
    traced = {json.loads(line)["event"] for line in lines if trace in line}
    assert {"callback.accepted", "file.stored", "event.told"} <= traced


def test_every_process_is_alive_ready_and_says_what_it_measures(house: House) -> None:
    """What an orchestrator asks is answered by each process of its own."""
    for url in house.deployment.ops_urls.values():
        assert json.loads(get(f"{url}/livez"))["status"] == "alive"
        assert json.loads(get(f"{url}/readyz"))["status"] == "ready"
        assert json.loads(get(f"{url}/version"))["version"]
        assert "wavekeep_" in get(f"{url}/metrics")


def _success(task_id: str, link: str) -> bytes:
    return json.dumps({"code": 200, "msg": "success", "data": {"task_id": task_id, "audioWavUrl": link}}).encode()
