"""The simulator calls back, keeps its ledger and takes orders, over real connections on loopback."""

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, web

from simulator.app import Simulator
from simulator.payloads import signature
from simulator.settings import Settings

DEADLINE_S = 20.0
HMAC_KEY = "test-webhook-hmac-key"


class Receiver:
    """Takes callbacks and answers each with the next status it was given; 200 once they are used up."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.taken: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        """Answer one callback."""
        self.taken.append((json.loads(await request.read()), dict(request.headers)))
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            await asyncio.Event().wait()
        return web.Response(status=status)

    async def has_taken(self, number: int) -> None:
        """Wait until so many callbacks are there."""

        async def enough() -> bool:
            return len(self.taken) >= number

        await eventually(enough)

    @property
    def codes(self) -> list[int]:
        """The vendor's codes, in order."""
        return [body["code"] for body, _ in self.taken]


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    """Run a receiver on a free port."""
    receiver = Receiver(*statuses)
    app = web.Application()
    app.router.add_post("/callback", receiver.take)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/callback"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A simulator whose retries come after 6, 30 and 90 ms, and whose kie signs."""
    async with Simulator(Settings(retry_scale=0.0001, hmac_key=HMAC_KEY, callback_timeout_s=5, seed=1)) as running:
        yield running


@pytest.fixture
async def control(simulator: Simulator) -> AsyncIterator[ClientSession]:
    """A client of the control interface."""
    async with ClientSession(simulator.base_url) as session:
        yield session


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.005)


async def settle(control: ClientSession) -> None:
    """Wait until nothing is left to be sent."""

    async def nothing_pending() -> bool:
        return not (await fetched(control, "/control/pending"))["pending"]

    await eventually(nothing_pending)


async def fetched(control: ClientSession, path: str) -> Any:
    """Return the JSON at a path."""
    async with control.get(path) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def made(control: ClientSession, *plans: dict[str, Any]) -> list[str]:
    """Make conversions, and return their task ids."""
    async with control.post("/control/conversions", json=list(plans)) as response:
        assert response.status == 201, await response.text()
        ids: list[str] = (await response.json())["task_ids"]
        return ids


async def entry(control: ClientSession, task_id: str) -> Any:
    """Return the ledger's one entry about a task."""
    (found,) = (await fetched(control, f"/control/ledger?task_id={task_id}"))["conversions"]
    return found


async def test_calls_back_once_when_answered_200(control: ClientSession) -> None:
    """One 200 ends it, and the ledger knows the file that is owed."""
    async with receiving() as receiver:
        (task,) = await made(control, {"vendor": "apibox", "callback_url": receiver.url})
        await settle(control)
        found = await entry(control, task)
    ((body, headers),) = receiver.taken
    assert body["data"] == {"audioWavUrl": found["files"][0]["links"][0], "task_id": task}
    assert headers["Content-Type"] == "application/json"
    assert [(each["attempt"], each["status"]) for each in found["callbacks"]] == [(1, 200)]
    assert found["callbacks"][0]["answered_ms"] > 0
    assert (found["acknowledged"], found["finished"], found["given_up"]) == (True, True, False)
    assert found["expected"]["outcome"] == "stored"
    assert found["expected_sha256"] == [found["files"][0]["sha256"]]


async def test_stops_for_good_after_three_retries(control: ClientSession) -> None:
    """Four failures in a row, and the vendor never calls again; nothing is owed then."""
    async with receiving(*[500] * 9) as receiver:
        (task,) = await made(control, {"vendor": "sunoapi", "callback_url": receiver.url})
        await settle(control)
        found = await entry(control, task)
    assert [each["attempt"] for each in found["callbacks"]] == [1, 2, 3, 4]
    assert len(receiver.taken) == 4
    assert (found["acknowledged"], found["given_up"]) == (False, True)
    assert found["expected"]["allowed"] == ["none", "stored"]


@pytest.mark.parametrize("status", [201, 202, 204, 301, 400, 503])
async def test_expects_exactly_200(control: ClientSession, status: int) -> None:
    """Any other answer, even a 204, is retried."""
    async with receiving(status) as receiver:
        (task,) = await made(control, {"vendor": "kie", "callback_url": receiver.url})
        await settle(control)
        found = await entry(control, task)
    assert [each["status"] for each in found["callbacks"]] == [status, 200]


async def test_waits_only_so_long() -> None:
    """A receiver that does not answer in time counts as failed, and is called again."""
    async with (
        receiving(0) as receiver,
        Simulator(Settings(retry_scale=0.0001, callback_timeout_s=0.2)) as simulator,
        ClientSession(simulator.base_url) as control,
    ):
        (task,) = await made(control, {"vendor": "kie", "callback_url": receiver.url})
        await settle(control)
        found = await entry(control, task)
    assert [(each["status"], each["error"]) for each in found["callbacks"]] == [(None, "timed_out"), (200, None)]


async def test_refused_connection_is_told_apart(control: ClientSession, unused_tcp_port: int) -> None:
    """Where nobody listens, nothing can have been taken, so nothing may appear."""
    (task,) = await made(control, {"vendor": "kie", "callback_url": f"http://127.0.0.1:{unused_tcp_port}/"})
    await settle(control)
    found = await entry(control, task)
    assert [each["error"] for each in found["callbacks"]] == ["refused"] * 4
    assert found["expected"]["allowed"] == ["none"]


async def test_kie_alone_signs(control: ClientSession) -> None:
    """Kie's signature covers task and timestamp; the others send none."""
    async with receiving() as receiver:
        (task, _) = await made(
            control,
            {"vendor": "kie", "callback_url": receiver.url},
            {"vendor": "apibox", "callback_url": receiver.url},
        )
        await settle(control)
    headers = {body["data"]["task_id"] == task: headers for body, headers in receiver.taken}
    timestamp = headers[True]["X-Webhook-Timestamp"]
    assert headers[True]["X-Webhook-Signature"] == signature(HMAC_KEY, task, timestamp)
    assert "X-Webhook-Signature" not in headers[False]


@pytest.mark.parametrize(("outcomes", "codes"), [("sf", [200, 501]), ("fs", [501, 200]), ("ss", [200, 200])])
async def test_conflicts_come_in_order(control: ClientSession, outcomes: str, codes: list[int]) -> None:
    """A step waits for the answer to the one before; a success is owed whatever the order."""
    steps = [
        {"outcome": "succeeded" if letter == "s" else "failed", "file": index} for index, letter in enumerate(outcomes)
    ]
    async with receiving() as receiver:
        plan = {"vendor": "kie", "callback_url": receiver.url, "files": [{}, {}], "steps": steps}
        (task,) = await made(control, plan)
        await settle(control)
        found = await entry(control, task)
    assert receiver.codes == codes
    assert found["expected"]["allowed"] == ["stored"]
    assert len(set(found["expected_sha256"])) == outcomes.count("s")


async def test_copies_come_at_the_same_moment(control: ClientSession) -> None:
    """Four copies are in hand at once, before any is answered; each is retried on its own."""
    async with receiving(0, 0, 0, 0) as receiver:
        (task,) = await made(control, {"vendor": "kie", "callback_url": receiver.url, "copies": 4})
        await receiver.has_taken(4)
        found = await entry(control, task)
        assert (await fetched(control, "/control/pending"))["callbacks"] == 4
    assert sorted(each["copy"] for each in found["callbacks"]) == [0, 1, 2, 3]
    assert len({each["body_sha256"] for each in found["callbacks"]}) == 1


async def test_ledger_counts_what_was_fetched(control: ClientSession) -> None:
    """Fetches and bytes are those that were asked and sent."""
    async with receiving() as receiver:
        (task,) = await made(
            control, {"vendor": "apibox", "callback_url": receiver.url, "files": [{"size_bytes": 100_000}]}
        )
        link = (await entry(control, task))["files"][0]["links"][0]
        async with control.get(link) as response:
            assert len(await response.read()) == 100_000
        async with control.get(link, headers={"Range": "bytes=10-19"}) as response:
            assert len(await response.read()) == 10
        (file,) = (await entry(control, task))["files"]
    assert (file["fetches"], file["bytes_served"], file["answers"]) == (2, 100_010, {"200": 1, "206": 1})


async def test_load_makes_its_conversions(control: ClientSession) -> None:
    """A load of 200 a second for half a second makes 100 conversions of the vendors asked for, all called back."""
    async with receiving() as receiver:
        load = {"rate_per_s": 200, "seconds": 0.5, "vendors": {"kie": 1, "apibox": 3}, "callback_url": receiver.url,
                "distinct_files": 2, "size_bytes": 5_000}  # fmt: skip
        async with control.post("/control/load", json=load) as response:
            assert (response.status, await response.json()) == (202, {"conversions": 100})
        await settle(control)
        found = (await fetched(control, "/control/ledger"))["conversions"]
    assert len(receiver.taken) == len(found) == 100
    assert {each["vendor"] for each in found} == {"kie", "apibox"}
    assert all(each["acknowledged"] for each in found)
    assert len({each["files"][0]["sha256"] for each in found}) == 2


async def test_mistakes_are_told(control: ClientSession) -> None:
    """A plan that is not understood is 400 with a sentence, and makes nothing."""
    for wrong in ({"vendor": "kie", "flavor": "x"}, {"vendor": "kie"}, [{"vendor": "kie", "copies": 0}]):
        async with control.post("/control/conversions", json=wrong) as response:
            assert response.status == 400
            assert (await response.json())["error"]
    assert (await fetched(control, "/control/ledger"))["conversions"] == []


async def test_reset_forgets_everything(control: ClientSession) -> None:
    """After a reset nothing is pending, and the ledger is empty."""
    async with receiving(0) as receiver:
        await made(control, {"vendor": "kie", "callback_url": receiver.url})
        await receiver.has_taken(1)
        async with control.delete("/control/ledger") as response:
            assert response.status == 204
        assert (await fetched(control, "/control/pending"))["pending"] == 0
        assert (await fetched(control, "/control/ledger")) == {"conversions": [], "webhooks": {}}


async def test_webhooks_are_recorded_and_answered_as_told(control: ClientSession) -> None:
    """Deliveries are kept byte for byte, and answered as told for so long."""
    manner = {"times": 1, "status": 429, "retry_after": "7"}
    async with control.post("/control/webhooks/ops", json=manner) as response:
        assert response.status == 200
    answers = []
    for body in (b'{"a":1}', b"\xff"):
        async with control.post("/webhooks/ops", data=body, headers={"webhook-id": "evt_1"}) as response:
            answers.append((response.status, response.headers.get("Retry-After")))
    listed = (await fetched(control, "/control/webhooks/ops"))["deliveries"]
    assert answers == [(429, "7"), (200, None)]
    assert [base64.b64decode(each["body_base64"]) for each in listed] == [b'{"a":1}', b"\xff"]
    assert [(each["webhook_id"], each["status"]) for each in listed] == [("evt_1", 429), ("evt_1", 200)]


async def test_webhook_can_hang(control: ClientSession) -> None:
    """A hanging receiver records the delivery and never answers."""
    async with control.post("/control/webhooks/dead", json={"hang": True}):
        pass
    hanging = asyncio.ensure_future(control.post("/webhooks/dead", data=b"{}"))

    async def recorded() -> bool:
        return bool((await fetched(control, "/control/webhooks/dead"))["deliveries"])

    await eventually(recorded)
    (delivery,) = (await fetched(control, "/control/webhooks/dead"))["deliveries"]
    assert delivery["status"] is None
    assert not hanging.done()
    hanging.cancel()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_runs_as_a_process(number: signal.Signals) -> None:
    """The command prints one line of JSON when ready, reads its environment, and ends cleanly by signal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulator", "--port", "0",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "SIMULATOR_CALLBACK_URL": "kie=http://127.0.0.1:1/ apibox=http://127.0.0.1:1/"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert process.stdout is not None
            ready = json.loads(await process.stdout.readline())
            async with ClientSession(ready["base_url"]) as session:
                assert await fetched(session, "/control/health") == {"status": "ok"}
                await made(session, {"vendor": "kie"}, {"vendor": "apibox"})
            process.send_signal(number)
            assert await process.wait() == 0
            assert await process.stdout.read() == b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
