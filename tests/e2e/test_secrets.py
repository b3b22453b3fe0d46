"""No secret and no query string leaves by any way out, whatever went wrong."""

import json

from tests.e2e.harness import House, new_task, wait_for


def test_no_way_out_holds_a_secret_or_a_query(house: House) -> None:
    """Links are keys to files: logs, manifests, webhooks and metrics show them without what opens them."""
    tasks = {name: new_task() for name in ("stored", "refused", "cut", "broken", "conflicting", "unknown", "forged")}
    house.convert(vendor="kie", task_id=tasks["stored"], files=[{"spaced_name": True}])
    house.convert(task_id=tasks["refused"], files=[{"misbehaviour": [{"status": 403}]}])
    house.convert(task_id=tasks["cut"], files=[{"misbehaviour": [{"cut_after_bytes": 10, "reset": True}]}])
    house.convert(task_id=tasks["broken"], files=[{"flavour": "adpcm"}])
    house.convert(task_id=tasks["conflicting"], files=[{}, {}], steps=[{}, {"file": 1}])
    house.convert(task_id=tasks["unknown"], shape="music")
    link = house.link()
    body = {"code": 200, "msg": f"see {link}", "data": {"task_id": tasks["forged"], "audioWavUrl": link}}
    assert house.call_back("apibox", tasks["forged"], json.dumps(body).encode(), token="guessed-token") == 401
    outside = {
        "code": 200,
        "msg": "",
        "data": {"task_id": new_task(), "audioWavUrl": "http://127.0.0.1:1/?Signature=x"},
    }
    assert house.call_back("apibox", "", json.dumps(outside).encode()) == 200
    failed = {"code": 500, "msg": f"could not write {link}", "data": {"task_id": new_task()}}
    assert house.call_back("apibox", "", json.dumps(failed).encode()) == 200

    house.told(tasks["stored"], "conversion.stored")
    house.told(tasks["conflicting"], "conversion.conflicting")
    house.told(tasks["unknown"], "report.unrecognised")
    house.told(tasks["broken"], "conversion.rejected")
    house.told(outside["data"]["task_id"], "conversion.rejected")  # type: ignore[index]
    house.told(failed["data"]["task_id"], "conversion.rejected")  # type: ignore[index]
    wait_for(lambda: all(house.entry(tasks[name])["files"][0]["fetches"] for name in ("refused", "cut")), "both failed")
    assert house.leaks() == []
