"""Asking a vendor over real connections: what is sent, what is believed, and that no vendor can stop custody."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from downloader.account import Account
from downloader.metrics import DownloaderMetrics
from downloader.record import Answer, Outcome
from downloader.vendor_api import MAX_ANSWER_BYTES, VendorApi
from shared.vendors import Vendor
from simulator.app import Simulator
from simulator.plan import Plan, RecordForm
from simulator.settings import Settings
from tests.integration.raw_server import Answer as RawAnswer
from tests.integration.raw_server import RawServer, dripping, sending, serving
from tests.log_capture import captured_logs

KEY = "sk-k3y-of-the-account"
URL = "https://files.example.com/a.wav?Signature=k3y"
TASK = "task 1&x=/ä"
DONE = {"code": 200, "data": {"successFlag": "SUCCESS", "response": {"audioWavUrl": URL}}}
JOB_DONE = {"code": 200, "data": {"state": "success", "resultJson": json.dumps({"resultUrls": [URL]})}}
PENDING = {"code": 200, "data": {"successFlag": "PENDING"}}
UNKNOWN = {"code": 404, "msg": "Task not found", "data": None}


@dataclass
class Asking:
    """A client, and what it measures by."""

    api: VendorApi
    registry: CollectorRegistry
    watch: "Watch"

    def count(self, vendor: Vendor, outcome: Outcome) -> float | None:
        """Return how many questions came out so."""
        labels = {"vendor": str(vendor), "outcome": str(outcome)}
        return self.registry.get_sample_value("wavekeep_downloader_vendor_questions_total", labels)


@dataclass
class Watch:
    """A clock that a test moves."""

    now_s: float = 1_000.0

    slept_s: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        """Return the seconds it shows."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.slept_s.append(seconds)
        self.now_s += seconds


@asynccontextmanager
async def asking(
    bases: Mapping[Vendor, str], *, key: str = KEY, per_10_s: int = 5, answer_within_s: float = 10.0
) -> AsyncIterator[Asking]:
    """Run a client with an account at each of these bases."""
    registry, watch = CollectorRegistry(), Watch()
    accounts = {vendor: Account(base, SecretStr(key), per_10_s) for vendor, base in bases.items()}
    metrics = DownloaderMetrics(registry)
    async with VendorApi(
        accounts, metrics=metrics, monotonic=watch, answer_within_s=answer_within_s, sleep=watch.sleep
    ) as api:
        yield Asking(api, registry, watch)


def saying(document: object, *, status: str = "200 OK", headers: str = "") -> RawAnswer:
    """Return an answer of JSON."""
    return answering(json.dumps(document).encode(), status=status, headers=headers)


def answering(body: bytes, *, status: str = "200 OK", headers: str = "") -> RawAnswer:
    """Return an answer of any bytes that closes its connection."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return sending(head.encode() + body)


@dataclass
class Script:
    """Answers requests in turn; the last answer repeats."""

    answers: list[RawAnswer] = field(default_factory=list)

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        """Give the next answer."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await answer(writer)


def targets(server: RawServer) -> list[str]:
    """Return what was asked for, in order."""
    return [request.split(b" ")[1].decode() for request in server.requests]


async def test_the_question_as_the_vendor_wants_it() -> None:
    """One GET with the task safely in the query, the key in its header, and nothing that tells more."""
    async with serving(saying(DONE)) as server, asking({Vendor.APIBOX: server.url("/base")}) as asked:
        assert await asked.api.ask(Vendor.APIBOX, TASK) == Answer(Outcome.READY, url=URL)
    (request,) = server.requests
    head, *lines = request.decode().strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert head == "GET /base/api/v1/wav/record-info?taskId=task+1%26x%3D/%C3%A4 HTTP/1.1"
    assert headers.pop("user-agent").startswith("wavekeep/")
    assert headers == {
        "host": f"127.0.0.1:{server.port}",
        "authorization": f"Bearer {KEY}",
        "accept": "application/json",
        "accept-encoding": "identity",
    }
    assert asked.count(Vendor.APIBOX, Outcome.READY) == 1


async def test_without_a_key_nobody_is_asked() -> None:
    """Each vendor is asked with its own key or not at all."""
    async with serving(saying(DONE)) as server, asking({Vendor.KIE: server.url("")}) as asked:
        assert await asked.api.ask(Vendor.APIBOX, "t") is None
        assert server.connections == 0
        values = [asked.count(vendor, outcome) for vendor in Vendor for outcome in Outcome]
    assert values == [0.0] * len(Vendor) * len(Outcome)


@pytest.mark.parametrize("first", [saying(UNKNOWN), sending(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")])
async def test_kie_is_asked_in_its_newer_form_too(first: RawAnswer) -> None:
    """A task that the older form does not know may be one of the newer form."""
    async with serving(Script([first, saying(JOB_DONE)])) as server, asking({Vendor.KIE: server.url("")}) as asked:
        assert await asked.api.ask(Vendor.KIE, "t") == Answer(Outcome.READY, url=URL)
    assert targets(server) == ["/api/v1/wav/record-info?taskId=t", "/api/v1/jobs/recordInfo?taskId=t"]
    assert asked.count(Vendor.KIE, Outcome.READY) == 1


@pytest.mark.parametrize("vendor", [Vendor.APIBOX, Vendor.SUNOAPI])
async def test_the_others_have_no_second_form(vendor: Vendor) -> None:
    """Where a vendor has one form, an unknown task is unknown."""
    async with serving(saying(UNKNOWN)) as server, asking({vendor: server.url("")}) as asked:
        assert await asked.api.ask(vendor, "t") == Answer(Outcome.UNKNOWN, code=404)
    assert len(server.requests) == 1


async def test_one_task_is_asked_about_every_half_minute() -> None:
    """Attempts in quick succession share one answer, as the vendors want it; another task is another question."""
    async with serving(saying(DONE)) as server, asking({Vendor.APIBOX: server.url("")}) as asked:
        for waited_s, task, requests in ((0, "t", 1), (0, "t", 1), (29.9, "t", 1), (0.1, "t", 2), (0, "another", 3)):
            asked.watch.now_s += waited_s
            assert await asked.api.ask(Vendor.APIBOX, task) == Answer(Outcome.READY, url=URL)
            assert len(server.requests) == requests


@pytest.mark.parametrize("document", [PENDING, UNKNOWN, {"code": 500}])
async def test_an_answer_without_a_link_is_waited_out(document: object) -> None:
    """Who comes back by a rung of 30 s, shortened by its jitter, hears a new answer; who comes earlier, the old one."""
    answers = Script([saying(document), saying(DONE)])
    async with serving(answers) as server, asking({Vendor.APIBOX: server.url("")}) as asked:
        first = await asked.api.ask(Vendor.APIBOX, "t")
        asked.watch.now_s += 21.9
        assert await asked.api.ask(Vendor.APIBOX, "t") == first
        assert (len(server.requests), asked.watch.slept_s) == (1, [])
        asked.watch.now_s += 2.1
        assert await asked.api.ask(Vendor.APIBOX, "t") == Answer(Outcome.READY, url=URL)
        assert len(server.requests) == 2
        assert asked.watch.slept_s == [pytest.approx(6)]


async def test_a_spent_budget_holds_back() -> None:
    """Over our own limit nothing is sent, and the caller hears at once that there is no answer now."""
    async with serving(saying(DONE)) as server, asking({Vendor.APIBOX: server.url("")}, per_10_s=2) as asked:
        answers = [await asked.api.ask(Vendor.APIBOX, f"t{number}") for number in range(4)]
        assert answers[2:] == [Answer(Outcome.HELD_BACK)] * 2
        assert len(server.requests) == 2
        assert asked.count(Vendor.APIBOX, Outcome.HELD_BACK) == 2
        asked.watch.now_s += 10
        assert await asked.api.ask(Vendor.APIBOX, "t3") == Answer(Outcome.READY, url=URL)


@pytest.mark.parametrize("answer", [saying({"code": 430}), saying({}, status="429 Too Many Requests")])
async def test_too_fast_means_slower(answer: RawAnswer) -> None:
    """A vendor that finds us too fast is asked half as often at once."""
    async with serving(answer) as server, asking({Vendor.APIBOX: server.url("")}, per_10_s=4) as asked:
        outcomes = [await asked.api.ask(Vendor.APIBOX, f"t{number}") for number in range(4)]
    assert [answer.outcome for answer in outcomes if answer] == [Outcome.THROTTLED] * 2 + [Outcome.HELD_BACK] * 2
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (saying({}, status="302 Found", headers="Location: http://127.0.0.1:1/\r\n"), Outcome.MALFORMED),
        (answering(b'{"code":200,"data":"' + b"x" * MAX_ANSWER_BYTES + b'"}'), Outcome.MALFORMED),
        (answering(b"\x1f\x8b\x08", headers="Content-Encoding: gzip\r\n"), Outcome.MALFORMED),
        (answering(b"<html>", status="200 OK"), Outcome.MALFORMED),
        (saying({}, status="503 Service Unavailable"), Outcome.UNAVAILABLE),
        (sending(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), Outcome.UNAVAILABLE),
        (sending(b"no HTTP at all\r\n\r\n"), Outcome.UNAVAILABLE),
        (sending(), Outcome.UNAVAILABLE),
        (dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", b" "), Outcome.UNAVAILABLE),
    ],
    ids=["redirect", "large", "encoded", "page", "status", "cut", "no-http", "closed", "drip"],
)
async def test_an_odd_vendor_is_only_no_answer(answer: RawAnswer, outcome: Outcome) -> None:
    """Whatever comes over the line, in whatever time, the question ends in bounds and raises nothing."""
    async with (
        serving(answer) as server,
        asking({Vendor.APIBOX: server.url("")}, answer_within_s=0.5) as asked,
        asyncio.timeout(5),
    ):
        told = await asked.api.ask(Vendor.APIBOX, "t")
    assert told is not None
    assert told.outcome is outcome
    assert asked.count(Vendor.APIBOX, outcome) == 1


async def test_a_vendor_that_is_down_is_only_no_answer() -> None:
    """A port where nobody listens, and an address that is none, are told like any other silence."""
    async with serving(saying(DONE)) as gone:
        pass
    bases = {Vendor.APIBOX: gone.url(""), Vendor.KIE: "http://"}
    async with asking(bases) as asked:
        for vendor in bases:
            assert await asked.api.ask(vendor, "t") == Answer(Outcome.UNAVAILABLE)


async def test_no_proxy_and_no_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key does not go to a proxy that the environment names, and nothing is remembered between questions."""
    async with serving(saying(DONE)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        cookie = saying(DONE, headers="Set-Cookie: a=b\r\n")
        async with serving(cookie) as server, asking({Vendor.APIBOX: server.url("")}) as asked:
            for task in ("t1", "t2"):
                await asked.api.ask(Vendor.APIBOX, task)
        assert proxy.connections == 0
    assert len(server.requests) == 2
    assert not any(b"cookie" in request.lower() for request in server.requests)


@pytest.mark.parametrize(
    "answer",
    [
        saying({"code": 401, "msg": f"Unauthorized: {KEY}"}),
        saying({"code": 200, "data": {"state": "fail", "failCode": "501", "failMsg": f"no luck with {KEY} at {URL}"}}),
        saying(DONE),
        sending(KEY.encode() + b"\r\n\r\n"),
    ],
    ids=["refused", "failed", "ready", "no-http"],
)
async def test_no_log_shows_the_key(answer: RawAnswer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither our key nor the key to a file is in a log, also where the vendor quotes it back."""
    caplog.set_level("DEBUG")
    with captured_logs() as lines:
        async with serving(answer) as server, asking({Vendor.APIBOX: server.url("")}) as asked:
            await asked.api.ask(Vendor.APIBOX, "t")
            shown = f"{asked.api!r} {asked.api._accounts}"
    assert [line["event"] for line in lines] == ["vendor_api.unencrypted", "vendor.asked"]
    for text in (str(lines), caplog.text, shown):
        assert KEY not in text
        assert "k3y" not in text


@pytest.mark.parametrize("form", RecordForm)
@pytest.mark.parametrize("vendor", Vendor)
@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        ("succeeded", Outcome.READY),
        ("pending", Outcome.PENDING),
        ("failed", Outcome.FAILED),
        ("unknown", Outcome.UNKNOWN),
    ],
)
async def test_every_vendor_as_simulated(vendor: Vendor, form: RecordForm, record: str, outcome: Outcome) -> None:
    """Every vendor's record is understood in each of its forms."""
    async with Simulator(Settings(api_key=KEY)) as simulator:
        plan = Plan(vendor=vendor, steps=(), record=record, record_form=form)  # type: ignore[arg-type]  # one of them
        conversion = simulator._conversions.make(plan)
        async with asking({vendor: f"{simulator.base_url}/{vendor}"}) as asked:
            told = await asked.api.ask(vendor, conversion.task_id)
    assert told is not None
    assert told.outcome is outcome
    link = next(iter(conversion.files[0].links.values()))
    assert told.url == (link if outcome is Outcome.READY else None)


async def test_a_wrong_key_is_refused() -> None:
    """A key that the vendor does not accept is told as such: time does not mend it, a person does."""
    async with (
        Simulator(Settings(api_key=KEY)) as simulator,
        asking({Vendor.KIE: f"{simulator.base_url}/kie"}, key="another") as asked,
    ):
        assert await asked.api.ask(Vendor.KIE, "t") == Answer(Outcome.REFUSED, code=401)
