"""The vendors' API as the simulator plays it: submit, ask, codes and limits, over real connections on loopback."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession

from simulator.app import Simulator
from simulator.settings import Settings

DEADLINE_S = 20.0
SILENT = {"vendor": "kie", "steps": []}


@pytest.fixture
async def client() -> AsyncIterator[ClientSession]:
    """A client of a simulator, with the right key."""
    headers = {"Authorization": "Bearer the-key"}
    async with (
        Simulator(Settings(api_key="the-key")) as running,
        ClientSession(running.base_url, headers=headers) as it,
    ):
        yield it


async def submit(client: ClientSession, vendor: str, **changes: str) -> tuple[int, dict[str, Any]]:
    """Submit a conversion that is called back at the simulator's own webhook receiver."""
    callback = str(client._base_url / "webhooks" / vendor) if client._base_url else ""
    wanted = {"taskId": "music", "audioId": "track", "callBackUrl": callback, **changes}
    async with client.post(f"/{vendor}/api/v1/wav/generate", json=wanted) as response:
        return response.status, await response.json()


async def ask(client: ClientSession, path: str, task_id: str) -> tuple[int, dict[str, Any]]:
    """Ask a vendor about a task."""
    async with client.get(path, params={"taskId": task_id}) as response:
        return response.status, await response.json()


async def behave(client: ClientSession, vendor: str, **manner: object) -> None:
    """Tell a vendor how to behave."""
    async with client.put(f"/control/vendors/{vendor}", json=manner) as response:
        assert response.status == 200, await response.text()


@pytest.mark.parametrize(
    ("vendor", "flag", "link"),
    [
        ("apibox", "successFlag", "audioWavUrl"),
        ("kie", "successFlag", "audioWavUrl"),
        ("sunoapi", "status", "audio_wav_url"),
    ],
)
async def test_submit_is_called_back_and_recorded(client: ClientSession, vendor: str, flag: str, link: str) -> None:
    """What was submitted is called back where `callBackUrl` says, and record-info tells the same link."""
    status, body = await submit(client, vendor)
    assert (status, body["code"], body["msg"]) == (200, 200, "success")
    task = body["data"]["taskId"]
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with client.get(f"/control/webhooks/{vendor}") as response:
                deliveries = (await response.json())["deliveries"]
            if deliveries and deliveries[0]["status"] == 200:
                break
            await asyncio.sleep(0.01)
    _, told = await ask(client, f"/{vendor}/api/v1/wav/record-info", task)
    assert told["data"][flag] == "SUCCESS"
    assert told["data"]["response"][link] in deliveries[0]["body"]


async def test_job_form_is_kies_alone(client: ClientSession) -> None:
    """The newer job form exists at kie, under the same task id."""
    await behave(client, "kie", plan=SILENT | {"record": "succeeded"})
    _, body = await submit(client, "kie")
    _, told = await ask(client, "/kie/api/v1/jobs/recordInfo", body["data"]["taskId"])
    assert told["data"]["state"] == "success"
    assert "resultUrls" in told["data"]["resultJson"]
    async with client.get("/apibox/api/v1/jobs/recordInfo") as response:
        assert response.status == 404


async def test_unknown_task_is_404_under_200(client: ClientSession) -> None:
    """An unknown task is a code in the body, and so is one the plan says is unknown."""
    assert await ask(client, "/kie/api/v1/wav/record-info", "nobody") == (
        200, {"code": 404, "msg": "Task not found", "data": None},
    )  # fmt: skip


@pytest.mark.parametrize(("vendor", "tells"), [("apibox", True), ("kie", True), ("sunoapi", False)])
async def test_second_submission_is_409(client: ClientSession, vendor: str, tells: bool) -> None:
    """One track has one record; its id may or may not be told."""
    await behave(client, vendor, plan={"vendor": vendor, "steps": []})
    _, first = await submit(client, vendor)
    _, second = await submit(client, vendor)
    assert second["code"] == 409
    assert second["data"] == ({"taskId": first["data"]["taskId"]} if tells else None)
    _, other = await submit(client, vendor, audioId="another")
    assert other["code"] == 200


async def test_key_and_fields_are_required(client: ClientSession) -> None:
    """A wrong key is code 401, a missing field code 400; `callbackUrl` is not `callBackUrl`."""
    async with client.post("/kie/api/v1/wav/generate", headers={"Authorization": "Bearer wrong"}) as response:
        assert (await response.json())["code"] == 401
    async with client.post("/kie/api/v1/wav/generate", json={"taskId": "a", "audioId": "b", "callbackUrl": "c"}) as bad:
        assert (await bad.json())["code"] == 400


@pytest.mark.parametrize(("vendor", "code"), [("apibox", 429), ("kie", 402), ("sunoapi", 429)])
async def test_credits_run_out(client: ClientSession, vendor: str, code: int) -> None:
    """After the last credit a submission fails with the vendor's own code."""
    await behave(client, vendor, credits=1, plan={"vendor": vendor, "steps": []})
    codes = [(await submit(client, vendor, audioId=track))[1]["code"] for track in ("a", "b")]
    assert codes == [200, code]


@pytest.mark.parametrize(("vendor", "status", "code"), [("apibox", 200, 430), ("kie", 429, 429), ("sunoapi", 200, 430)])
async def test_asks_are_limited(client: ClientSession, vendor: str, status: int, code: int) -> None:
    """The 21st request within 10 s is too fast; another vendor's account is not touched."""
    path = f"/{vendor}/api/v1/wav/record-info"
    answers = [await ask(client, path, "nobody") for _ in range(21)]
    assert {body["code"] for _, body in answers[:20]} == {404}
    assert (answers[20][0], answers[20][1]["code"]) == (status, code)
    other = "kie" if vendor != "kie" else "apibox"
    assert (await ask(client, f"/{other}/api/v1/wav/record-info", "nobody"))[1]["code"] == 404


async def test_misbehaves_on_demand(client: ClientSession) -> None:
    """Maintenance is a code in the body, an outage an HTTP status; a reset ends both."""
    await behave(client, "kie", fail_code=455)
    assert (await submit(client, "kie"))[1]["code"] == 455
    await behave(client, "kie", http_status=502)
    async with client.get("/kie/api/v1/wav/record-info") as response:
        assert response.status == 502
    async with client.delete("/control/ledger"):
        pass
    assert (await ask(client, "/kie/api/v1/wav/record-info", "nobody"))[1]["code"] == 404
