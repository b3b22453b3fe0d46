"""Where callbacks come from, at the edge: networks of a vendor's, trusted proxies, and headers that lie."""

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import pytest

from tests.integration.ingress_server import (
    BODY,
    PATH,
    answer_from,
    listening_in,
    refused_once,
    request,
    running,
)

VENDORS = (ip_network("198.51.100.0/24"), ip_network("2001:db8::/32"))
LOOPBACK = (ip_network("127.0.0.0/8"),)
BEHIND_A_PROXY: Mapping[str, Any] = {"apibox_source_networks": VENDORS, "trusted_proxies": LOOPBACK}


def forwarded(*lines: str, path: str = PATH) -> bytes:
    """Write a callback with these lines of X-Forwarded-For."""
    head, _, body = request(path=path).partition(b"\r\n\r\n")
    added = b"".join(b"\r\nX-Forwarded-For: " + line.encode() for line in lines)
    return head + added + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"apibox_source_networks": LOOPBACK}, forwarded()),
        ({"apibox_source_networks": LOOPBACK}, forwarded("203.0.113.9")),
        ({"kie_source_networks": VENDORS}, forwarded()),
        ({"trusted_proxies": LOOPBACK}, forwarded()),
        (BEHIND_A_PROXY, forwarded("198.51.100.7")),
        (BEHIND_A_PROXY, forwarded("203.0.113.9, 198.51.100.7")),
        (BEHIND_A_PROXY, forwarded("203.0.113.9", "198.51.100.7:567", "127.0.0.2")),
        (BEHIND_A_PROXY, forwarded("[2001:db8::7]:567")),
    ],
)
async def test_from_its_own_networks(settings: dict[str, Any], sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback from the vendor's networks is taken, also through our proxies; where none are set nothing is asked."""
    with listening_in(monkeypatch) as lines:
        async with running(lines, **settings) as edge:
            assert (await edge.send(sent)).status == 200


@pytest.mark.parametrize(
    ("settings", "sent", "source"),
    [
        ({"apibox_source_networks": VENDORS}, forwarded(), "127.0.0.1"),
        ({"apibox_source_networks": VENDORS}, forwarded("198.51.100.7"), "127.0.0.1"),
        (BEHIND_A_PROXY, forwarded("198.51.100.7, 203.0.113.9"), "203.0.113.9"),
        (BEHIND_A_PROXY, forwarded("198.51.100.7", "203.0.113.9"), "203.0.113.9"),
        (BEHIND_A_PROXY, forwarded(), "unknown"),
        (BEHIND_A_PROXY, forwarded("127.0.0.1"), "unknown"),
        (BEHIND_A_PROXY, forwarded("198.51.100.7, s3cret"), "unknown"),
        # judged before the token: a stranger learns nothing about it
        (BEHIND_A_PROXY, forwarded("203.0.113.9", path="/callbacks/apibox?token=wrong"), "203.0.113.9"),
    ],
)
async def test_from_elsewhere(
    settings: dict[str, Any], sent: bytes, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From elsewhere, or from nobody knows where, it is answered 401; the log says which address was judged."""
    with listening_in(monkeypatch) as lines:
        async with running(lines, **settings) as edge:
            answer = await edge.send(sent)
            assert (answer.status, answer.problem["detail"]) == (401, "Not believed: source_outside.")
            refused_once(edge, "unauthentic")
            (line,) = [line for line in lines if line["event"] == "callback.refused"]
            assert line["source"] == source
            assert "s3cret" not in repr(lines)
            sample = edge.registry.get_sample_value(
                "wavekeep_ingress_callbacks_doubted_total", {"doubt": "source_outside"}
            )
            assert sample == 1


async def test_judged_before_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a stranger comes before his body does."""
    with listening_in(monkeypatch) as lines:
        async with running(lines, apibox_source_networks=VENDORS) as edge, edge.connected() as (reader, writer):
            writer.write(request(b"", path=PATH, content_length="1000"))
            answer = await answer_from(reader)
            assert (answer.status, answer.headers["connection"]) == (401, "close")


async def test_networks_are_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the right network, without the token, nobody is believed."""
    with listening_in(monkeypatch) as lines:
        async with running(lines, apibox_source_networks=LOOPBACK, sunoapi_source_networks=LOOPBACK) as edge:
            answer = await edge.post(BODY, path="/callbacks/apibox")
            assert (answer.status, answer.problem["detail"]) == (401, "Not believed: token_missing.")
            answer = await edge.post(BODY, path="/callbacks/sunoapi")
            assert (answer.status, answer.problem["detail"]) == (401, "Not believed: vendor_not_served.")
