"""What the ingress says of itself holds for any request that a fuzzer can make of it."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import Phase, given, settings
from pydantic import SecretStr
from schemathesis.config import SchemathesisConfig

from ingress import openapi
from ingress.http import LARGEST_BODY_BYTES
from tests.fuzz.http import SETTINGS, AnyCase, Draw, Sender, draws, operations, send
from tests.integration.ingress_server import PATIENCE_S, TOKEN, running

REPEATABLE = settings(SETTINGS, derandomize=True, max_examples=60, phases=(Phase.generate, Phase.shrink))
SCHEMA = schemathesis.openapi.from_dict(
    openapi.document("1.2.3", largest_body_bytes=LARGEST_BODY_BYTES),
    config=SchemathesisConfig.from_dict({"phases": {"fuzzing": {"enabled": False}}}),
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An ingress that serves all three vendors, in a thread of its own."""
    started, ended = threading.Event(), asyncio.Event()
    found: list[tuple[str, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        # requests carry the real time, the server's clock stands still
        async with running([], sunoapi_callback_tokens=(SecretStr(TOKEN),), signature_tolerance_s=1e12) as edge:
            found.append((f"http://127.0.0.1:{edge.port}", asyncio.get_running_loop()))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(PATIENCE_S)
    ((url, loop),) = found
    yield url
    loop.call_soon_threadsafe(ended.set)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_it_describes_itself(url: str) -> None:
    """The description is served to anybody, for caches to keep, and is that of the code."""
    response = requests.get(f"{url}/openapi.json", timeout=PATIENCE_S)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.headers["cache-control"].startswith("public, max-age=")
    assert response.json()["paths"] == SCHEMA.raw_schema["paths"]
    assert TOKEN not in response.text


def test_only_reading_is_offered_there(url: str) -> None:
    """Whoever posts to the description is told which methods there are."""
    response = requests.post(f"{url}/openapi.json", timeout=PATIENCE_S)
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    assert response.json()["detail"] == "Use GET, HEAD."


def test_any_request_is_answered_as_described(url: str) -> None:
    """Whatever is drawn, with proofs and without, the answer is a described one and never a 5xx."""
    sender = Sender()
    for operation in operations(url):

        @REPEATABLE
        @given(draws(operation))
        def explore(draw: Draw) -> None:
            send(draw, url, sender)

        explore()

    assert sender.statuses[200] > 20, "hardly anything came past authentication"
    assert sender.statuses[401] > 20
    assert sender.statuses[400] > 5
    assert sender.statuses[415] > 5


@SCHEMA.parametrize()
def test_edge_cases_are_answered_as_described(case: AnyCase, url: str) -> None:
    """At every edge of the description, with proofs, the answer is a described one and never a 5xx."""
    send(Draw(case, proven=True, twist={}), url, Sender())
