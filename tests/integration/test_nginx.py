"""The nginx example before a real ingress: what passes, what does not, and what it writes down."""

import asyncio
import functools
import re
import ssl
from ipaddress import ip_network
from pathlib import Path

import pytest

from ingress.connection import IDLE_S
from ingress.http import LARGEST_BODY_BYTES
from ingress.settings import VENDOR_WAITS_S
from shared.vendors import SAMPLE_ROUTES
from tests.integration.ingress_server import BODY, PATH, TOKEN, Edge, listening_in, running
from tests.integration.nginx_server import CONFIG, NAME, Nginx, nginx_before
from tests.integration.raw_server import RawServer, dripping, sending, serving, trusting

OK = sending(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")


async def test_a_callback_passes_and_its_token_is_not_written_down(edge: Edge, tmp_path: Path) -> None:
    """A callback through the proxy is 200 once the ingress took it; no log holds its query string."""
    with nginx_before(edge.port, tmp_path) as nginx:
        answer = await asyncio.to_thread(nginx.ask, "POST", PATH, BODY)
        assert (answer.status, answer.body) == (200, b'{"status": "received"}')
        assert len(edge.publisher.published) == 1
        refused = await asyncio.to_thread(nginx.ask, "POST", "/callbacks/apibox?token=guessed", BODY)
        assert refused.status == 401
        assert refused.content_type.startswith("application/problem+json")
    written = nginx.written()
    assert '"POST /callbacks/apibox HTTP/1.1" 200' in written
    assert TOKEN not in written
    assert "token" not in written


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/", 404),
        ("GET", PATH, 405),
        ("PUT", PATH, 405),
        ("DELETE", "/wav-callback", 405),
        ("POST", "/openapi.json", 405),
        ("GET", "/metrics", 404),
        ("GET", "/readyz", 404),
        ("POST", "/callbacks/", 404),
        ("POST", "/callbacks/kie/more", 404),
        ("POST", "/callbacks/../metrics", 404),
        ("POST", "/callbacks/%2e%2e/metrics", 404),
    ],
)
async def test_nothing_else_reaches_the_ingress(
    edge: Edge, tmp_path: Path, method: str, path: str, status: int
) -> None:
    """What is no callback is refused by the proxy itself."""
    with nginx_before(edge.port, tmp_path) as nginx:
        answer = await asyncio.to_thread(nginx.ask, method, path, b"{}" if method != "GET" else None)
    assert answer.status == status
    assert not answer.content_type.startswith("application/problem+json")
    assert edge.counted() == 0
    assert edge.publisher.published == []


@pytest.mark.parametrize("path", ["/wav-callback", "/suno-wav-callback", "/wav-conversion-callback"])
async def test_the_sample_routes_pass(edge: Edge, tmp_path: Path, path: str) -> None:
    """The routes of the vendors' own samples reach the ingress, which asks for its proofs."""
    with nginx_before(edge.port, tmp_path) as nginx:
        answer = await asyncio.to_thread(nginx.ask, "POST", path, BODY)
    assert answer.status == 401
    assert answer.content_type.startswith("application/problem+json")


async def test_the_description_passes(tmp_path: Path) -> None:
    """`GET /openapi.json` is handed on."""
    async with serving(OK) as server:
        with nginx_before(server.port, tmp_path) as nginx:
            assert (await asyncio.to_thread(nginx.ask, "GET", "/openapi.json")).status == 200
    assert server.requests[0].startswith(b"GET /openapi.json HTTP/1.1\r\n")


async def test_a_body_as_large_as_the_ingress_takes_passes_and_one_byte_more_does_not(
    edge: Edge, tmp_path: Path
) -> None:
    """The proxy's bound is the ingress's: 64 KiB."""
    body = BODY[:-1] + b" " * (64 * 1024 - len(BODY)) + b"}"
    with nginx_before(edge.port, tmp_path) as nginx:
        assert (await asyncio.to_thread(nginx.ask, "POST", PATH, body)).status == 200
        assert (await asyncio.to_thread(nginx.ask, "POST", PATH, body + b" ")).status == 413
        assert (await asyncio.to_thread(nginx.ask, "POST", PATH, b" " * 10_000_000)).status == 413
    assert edge.counted() == 0
    assert TOKEN not in nginx.written()


async def test_the_rightmost_address_is_what_the_proxy_saw(tmp_path: Path) -> None:
    """What a caller writes about its own address stays to the left; the query reaches the ingress unchanged."""
    async with serving(OK) as server:
        with nginx_before(server.port, tmp_path) as nginx:
            await asyncio.to_thread(
                nginx.ask, "POST", "/callbacks/kie?token=a%2Fb+c", b"{}", x_forwarded_for="6.6.6.6", forwarded="for=7"
            )
    line, *headers = server.requests[0].decode().strip().split("\r\n")
    named = {name.lower(): value for name, _, value in (header.partition(": ") for header in headers)}
    assert line == "POST /callbacks/kie?token=a%2Fb+c HTTP/1.1"
    assert named["x-forwarded-for"] == "6.6.6.6, 127.0.0.1"
    assert "forwarded" not in named
    assert named["host"] == NAME


async def test_a_vendors_networks_hold_behind_the_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The ingress judges the address that the proxy saw; what a caller writes about itself counts for nothing."""
    settings = {
        "trusted_proxies": (ip_network("127.0.0.1"),),
        "apibox_source_networks": (ip_network("127.0.0.2"),),
    }
    with listening_in(monkeypatch) as lines:
        async with running(lines, **settings) as edge:
            with nginx_before(edge.port, tmp_path) as nginx:
                for source, claimed, status in (
                    ("127.0.0.2", "203.0.113.9", 200),
                    ("127.0.0.2", "", 200),
                    ("127.0.0.3", "127.0.0.2", 401),
                    ("127.0.0.3", "127.0.0.2, 127.0.0.1", 401),
                ):
                    ask = functools.partial(nginx.ask, source=source, x_forwarded_for=claimed)
                    assert (await asyncio.to_thread(ask, "POST", PATH, BODY)).status == status


async def test_one_source_cannot_take_everything(tmp_path: Path) -> None:
    """Above the rate a source is answered 429, and that is not written down with its query either."""
    async with serving(OK) as server:
        with nginx_before(server.port, tmp_path, ("rate=200r/s", "rate=1r/m"), ("burst=1000", "burst=2")) as nginx:
            asked = [await asyncio.to_thread(nginx.ask, "POST", PATH, b"{}") for _ in range(5)]
    assert [answer.status for answer in asked] == [200, 200, 200, 429, 429]
    assert TOKEN not in nginx.written()


async def test_an_ingress_that_is_silent_is_answered_for(tmp_path: Path) -> None:
    """The vendor is answered before it gives up, also when the ingress hangs or is away; no log tells the token."""

    async def story(server: RawServer, nginx: Nginx) -> int:
        return (await asyncio.to_thread(nginx.ask, "POST", PATH, b"{}")).status

    async with serving(dripping(b"", b"")) as server:
        with nginx_before(server.port, tmp_path, ("proxy_read_timeout 14s", "proxy_read_timeout 300ms")) as nginx:
            assert await story(server, nginx) == 504
    with nginx_before(server.port, tmp_path) as nginx:
        assert await story(server, nginx) == 502
    written = nginx.written()
    assert "upstream_status=504" in written
    assert "upstream_status=502" in written
    assert TOKEN not in written


async def test_another_name_gets_no_certificate(tmp_path: Path) -> None:
    """A scanner that does not know the name ends at the handshake."""
    async with serving(OK) as server:
        with nginx_before(server.port, tmp_path) as nginx, pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", nginx.port, ssl=trusting(), server_hostname="other.test")
    assert server.connections == 0


def test_its_times_fit_into_the_vendors_patience() -> None:
    """Head, connection and waiting end before the 15 s of the vendor, and kept connections before the ingress's."""
    seconds = {
        name: float(value) for name, value in re.findall(r"^\s*(\w+_timeout) (\d+)s;", CONFIG.read_text(), re.MULTILINE)
    }
    assert seconds["proxy_read_timeout"] < VENDOR_WAITS_S
    assert seconds["client_header_timeout"] + seconds["proxy_connect_timeout"] < VENDOR_WAITS_S
    assert seconds["keepalive_timeout"] < IDLE_S
    assert f"client_max_body_size {LARGEST_BODY_BYTES // 1024}k;" in CONFIG.read_text()
    for route in SAMPLE_ROUTES.values():
        assert route.removeprefix("/") in CONFIG.read_text()
