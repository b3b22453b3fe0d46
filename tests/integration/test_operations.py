"""The operations server: alive, ready, measured, and of which version."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from shared.operations import operations, product_version, serving


@asynccontextmanager
async def asking(checks: dict[str, bool]) -> AsyncIterator[aiohttp.ClientSession]:
    """Run an operations server and a client of it."""
    registry = CollectorRegistry()
    Counter("wavekeep_tests_things_total", "Things.", registry=registry).inc(3)
    async with (
        operations("127.0.0.1", 0, service="tests", registry=registry, checks=lambda: checks) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(5)) as session,
    ):
        yield session


@pytest.mark.parametrize("ready", [True, False])
async def test_alive_says_nothing_of_readiness(ready: bool) -> None:
    """A process that waits for its broker is alive: restarting it would help nobody."""
    async with asking({"broker": ready}) as session, session.get("/livez") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "alive"})


@pytest.mark.parametrize(
    ("checks", "status", "word"),
    [
        ({"running": True, "broker": True}, 200, "ready"),
        ({"running": True, "broker": False}, 503, "not ready"),
        ({"running": False, "broker": True}, 503, "not ready"),
        ({}, 200, "ready"),
    ],
)
async def test_ready_when_every_check_holds(checks: dict[str, bool], status: int, word: str) -> None:
    """One check that does not hold makes the process not ready, and the answer names it."""
    async with asking(checks) as session, session.get("/readyz") as answer:
        assert (answer.status, await answer.json()) == (status, {"status": word, "checks": checks})


async def test_readiness_is_of_now() -> None:
    """Readiness is asked anew each time, in both directions."""
    checks = {"broker": False}
    async with asking(checks) as session:
        found = []
        for checks["broker"] in (False, True, False):
            async with session.get("/readyz") as answer:
                found.append(answer.status)
    assert found == [503, 200, 503]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/plain;version=0.0.4", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text"),
    ],
)
async def test_metrics(accept: str, content_type: str) -> None:
    """Metrics come in the format that is asked for, with its content type."""
    async with asking({}) as session, session.get("/metrics", headers={"Accept": accept}) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith(content_type)
        assert "charset=utf-8" in answer.headers["Content-Type"]
        text = await answer.text()
    assert text.endswith("# EOF\n") is (content_type == "application/openmetrics-text")
    if content_type == "text/plain":
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        assert ("wavekeep_tests_things_total", 3.0) in [(sample.name, sample.value) for sample in samples]


async def test_readiness_is_measured_as_it_is_answered() -> None:
    """Who watches the metric is told what /readyz would answer at that moment."""
    checks = {"running": True, "broker": False}
    async with asking(checks) as session:
        found = []
        for checks["broker"] in (False, True, False):
            async with session.get("/metrics") as answer:
                lines = (await answer.text()).splitlines()
            found += [line for line in lines if line.startswith("wavekeep_tests_ready ")]
    assert found == ["wavekeep_tests_ready 0.0", "wavekeep_tests_ready 1.0", "wavekeep_tests_ready 0.0"]


async def test_version() -> None:
    """The version is told with the service's name."""
    async with asking({}) as session, session.get("/version") as answer:
        assert (answer.status, await answer.json()) == (200, {"service": "tests", "version": product_version()})
    assert product_version()


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/callbacks/kie", 404), ("POST", "/livez", 405)]
)
async def test_nothing_else(method: str, path: str, status: int) -> None:
    """The operations server serves nothing of the public edge."""
    async with asking({}) as session, session.request(method, path) as answer:
        assert answer.status == status


async def test_answers_in_progress_are_finished() -> None:
    """Leaving the server waits for the answer that is being made, and takes no new connection."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        begun.set()
        await go_on.wait()
        return web.json_response("done")

    app = web.Application()
    app.router.add_get("/", slow)

    async def serve(ports: "asyncio.Queue[int]", leave: asyncio.Event) -> None:
        async with serving(app, "127.0.0.1", 0) as port:
            ports.put_nowait(port)
            await leave.wait()

    ports: asyncio.Queue[int] = asyncio.Queue()
    leave = asyncio.Event()
    server = asyncio.create_task(serve(ports, leave))
    async with asyncio.timeout(10), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{await ports.get()}/"
        answer = asyncio.create_task(fetch(session, url))
        await begun.wait()
        leave.set()
        await refusing(url)
        assert not answer.done()
        go_on.set()
        assert json.loads(await answer) == "done"
        await server


async def fetch(session: aiohttp.ClientSession, url: str) -> str:
    """Return the text of a page."""
    async with session.get(url) as answer:
        return await answer.text()


async def refusing(url: str) -> None:
    """Return once nothing listens there any more."""
    port = int(url.rsplit(":", 1)[1].strip("/"))
    try:
        while True:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await asyncio.sleep(0.01)
    except OSError:
        return
