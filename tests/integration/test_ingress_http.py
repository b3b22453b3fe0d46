"""What the public edge answers: a durable 200 where it is deserved, else one problem document."""

import asyncio
import json

import aiohttp
import pytest

from shared.errors import BrokerError, NotRoutableError, Reason
from tests.integration.ingress_server import BODY, PATH, TOKEN, Edge, listening_in, refused_once, request, running

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()


async def test_taken(edge: Edge) -> None:
    """A good callback is answered exactly 200 with exactly the vendors' own body, logged and counted once."""
    answer = await edge.post()
    assert (answer.status, answer.body) == (200, b'{"status": "received"}')
    assert answer.headers["content-type"] == "application/json"
    (published,) = edge.publisher.published
    assert published.routing_key == "report.failed"
    (line,) = [line for line in edge.lines if line["event"].startswith("callback.")]
    assert (line["event"], line["subject"], line["event_id"]) == ("callback.accepted", "apibox/t1", published.event_id)
    assert (edge.accepted(), edge.counted()) == (1, 0)


async def test_answer_follows_the_confirmation(edge: Edge) -> None:
    """Not a byte of the 200 is sent before the publisher has confirmed."""
    asked, confirmed = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def publish(*_: object, **__: object) -> None:
        order.append("asked")
        asked.set()
        await confirmed.wait()
        order.append("confirmed")

    edge.publisher.publish = publish  # type: ignore[method-assign]
    async with edge.connected() as (reader, writer):
        writer.write(request())
        first = asyncio.create_task(reader.read(1))
        async with asyncio.timeout(5):
            await asked.wait()
        done, _ = await asyncio.wait({first}, timeout=0.1)
        assert not done
        confirmed.set()
        assert await first == b"H"
        order.append("answered")
    assert order == ["asked", "confirmed", "answered"]


@pytest.mark.parametrize(
    "error",
    [
        BrokerError(Reason.BROKER_UNAVAILABLE, "gone"),
        BrokerError(Reason.PUBLISH_TIMED_OUT, "no word"),
        NotRoutableError(Reason.NOT_ROUTABLE, "no queue"),
    ],
)
async def test_not_durable(edge: Edge, error: BrokerError) -> None:
    """What may not be durable is never answered 200: the vendor is asked to send it again."""
    edge.publisher.error = error
    answer = await edge.post()
    assert (answer.status, answer.refusal) == (503, "not_durable")
    assert int(answer.headers["retry-after"]) > 0
    assert edge.counted("not_durable") == edge.counted() == 1
    edge.publisher.error = None
    assert (await edge.post()).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/callbacks/nobody",
        "/callbacks/KIE",
        "/callbacks/%00",
        "/callbacks/%ff",
        "/callbacks/" + "x" * 5_000,
        "/callbacks/kie%0a",
    ],
)
async def test_unknown_vendors(edge: Edge, path: str) -> None:
    """A vendor we do not know is answered 404."""
    answer = await edge.post(path=path)
    assert (answer.status, answer.refusal) == (404, "unknown_vendor")
    refused_once(edge, "unknown_vendor")


@pytest.mark.parametrize(
    "path", ["/", "/callbacks", "/callbacks/", "/callbacks/kie/x", "/metrics", "//", "/%2e%2e/", "http://x/y"]
)
async def test_nothing_there(edge: Edge, path: str) -> None:
    """Everything else is answered 404; what a proxy or the operations server would serve is not here."""
    answer = await edge.post(path=path)
    assert (answer.status, answer.refusal) == (404, "not_found")
    refused_once(edge, "not_found")


@pytest.mark.parametrize(
    "path",
    ["/callbacks/apibox%3Ftoken=s3cret", "/callbacks/apibox&token=s3cret", "/s3cret", "/callbacks/s3cret"],
)
async def test_a_token_in_a_mangled_path_is_not_logged(edge: Edge, path: str) -> None:
    """A callback URL that was encoded twice ends in a 404, and its token in no log."""
    assert (await edge.post(path=path)).status == 404
    assert [line["path"] for line in edge.lines if "path" in line] == ["other"]
    assert "s3cret" not in str(edge.lines)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", [PATH, "/wav-callback"])
async def test_other_methods(edge: Edge, method: str, path: str) -> None:
    """Callbacks come by POST alone, and the answer says so."""
    async with edge.connected() as (reader, writer):
        writer.write(request(b"", path=path, method=method))
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: POST\r\n" in head
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    refused_once(edge, "method")


@pytest.mark.parametrize(
    ("path", "vendor"),
    [(f"/wav-callback?token={TOKEN}", "apibox"), (f"/callbacks/apibox?a=b&token={TOKEN}&c", "apibox")],
)
async def test_sample_routes(edge: Edge, path: str, vendor: str) -> None:
    """The routes of the vendors' own samples work like ours."""
    assert (await edge.post(path=path)).status == 200
    assert edge.publisher.published[0].event.source == f"wavekeep/{vendor}"


async def test_many_at_once(edge: Edge) -> None:
    """The same task called back many times at the same moment is taken every time, as one event."""
    answers = await asyncio.gather(*(edge.post() for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
    assert len({published.event_id for published in edge.publisher.published}) == 1


async def test_trace_goes_on(edge: Edge) -> None:
    """A trace that the sender began goes on in the event."""
    await edge.post(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert "0af7651916cd43dd8448eb211c80319c" in edge.publisher.published[0].event.traceparent


async def test_an_ordinary_client(edge: Edge) -> None:
    """What vendors use, a plain HTTP client, gets its 200."""
    url = f"http://127.0.0.1:{edge.port}{PATH}"
    async with aiohttp.ClientSession() as session, session.post(url, json=json.loads(BODY)) as response:
        assert response.status == 200
        assert await response.json() == {"status": "received"}


async def test_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What nobody foresaw is a 500 that asks for another try, logged with its traceback and without the token."""
    with listening_in(monkeypatch) as lines:
        async with running(lines) as edge:
            edge.publisher.error = RuntimeError(f"http://127.0.0.1{PATH}")
            answer = await edge.post()
            assert (answer.status, answer.refusal) == (500, "fault")
            assert TOKEN not in answer.body.decode()
            assert edge.counted("fault") == 1
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["callback.failed"]
    assert not caplog.records
