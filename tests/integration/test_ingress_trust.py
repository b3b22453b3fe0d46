"""Who is believed at the edge: tokens, signatures, both while rotating, and nobody else."""

import json
from typing import Any

import pytest
from pydantic import SecretStr

from ingress.authenticity import sign
from shared.events import ReportLinkless
from tests.integration.ingress_server import (
    BODY,
    NEW_KEY,
    NOW,
    OLD_KEY,
    TOKEN,
    Edge,
    document,
    listening_in,
    refused_once,
    request,
    running,
)

UNKNOWN_SHAPE = b'{"code": 200, "data": {"task_id": "t1", "callbackType": "complete"}}'
"""Authentic, but nothing we know."""

ASKABLE: dict[str, Any] = {"kie_api_key": SecretStr("configured")}
TOKEN_TOO: dict[str, Any] = {"kie_callback_tokens": (SecretStr("older"), SecretStr("newer"))}


def signed(
    task_id: str = "t1", *, key: str = OLD_KEY, late_s: int = 0, body: bytes | None = None, token: str | None = None
) -> bytes:
    """Write a callback of kie with a signature for this task."""
    timestamp = str(int(NOW.timestamp()) - late_s)
    return request(
        document() if body is None else body,
        path="/callbacks/kie" + (f"?token={token}" if token else ""),
        x_webhook_timestamp=timestamp,
        x_webhook_signature=sign(key.encode(), task_id, timestamp),
    )


@pytest.mark.parametrize(
    ("path", "doubt"),
    [
        ("/callbacks/apibox", "token_missing"),
        ("/callbacks/apibox?token=", "token_missing"),
        ("/callbacks/apibox?token=wrong", "token_wrong"),
        ("/callbacks/apibox?Token=" + TOKEN, "token_missing"),
        ("/callbacks/apibox?token=" + TOKEN.upper(), "token_wrong"),
        ("/callbacks/apibox?token=" + TOKEN + "%00", "token_wrong"),
        ("/callbacks/apibox?token=wrong&token=" + TOKEN, "token_wrong"),
        ("/callbacks/apibox?token=%ff%fe", "token_wrong"),
        ("/callbacks/apibox?token=%ED%A0%80", "token_wrong"),
        ("/callbacks/apibox?token=" + "x" * 5_000, "token_wrong"),
        ("/callbacks/apibox#token=" + TOKEN, "token_missing"),
        ("/wav-callback", "token_missing"),
        ("/callbacks/sunoapi?token=" + TOKEN, "vendor_not_served"),
        ("/wav-conversion-callback?token=" + TOKEN, "vendor_not_served"),
        ("/callbacks/kie?token=" + TOKEN, "signature_missing"),
        ("/suno-wav-callback", "signature_missing"),
    ],
)
async def test_not_believed(edge: Edge, path: str, doubt: str) -> None:
    """Who shows no proof, or not the right one for this vendor, is answered 401."""
    answer = await edge.post(path=path)
    assert (answer.status, answer.refusal) == (401, "unauthentic")
    assert doubt in answer.problem["detail"]
    assert edge.registry.get_sample_value("wavekeep_ingress_callbacks_doubted_total", {"doubt": doubt}) == 1
    refused_once(edge, "unauthentic")


@pytest.mark.parametrize(
    "headers", [{"x_forwarded_for": "127.0.0.1"}, {"forwarded": "for=127.0.0.1"}, {"authorization": TOKEN}]
)
async def test_spoofed_headers_are_no_proof(edge: Edge, headers: dict[str, str]) -> None:
    """No header but the signature's proves anything."""
    answer = await edge.send(request(BODY, path="/callbacks/apibox", method="POST", **headers))
    assert (answer.status, answer.refusal) == (401, "unauthentic")


async def test_strangers_bodies_are_not_read(edge: Edge) -> None:
    """Without the token the answer comes before the body does."""
    answer = await edge.send(request(b"", path="/callbacks/apibox", content_length="1000"))
    assert answer.status == 401
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("key", [OLD_KEY, NEW_KEY])
async def test_signed_by_either_key(edge: Edge, key: str) -> None:
    """While rotating, the older key is as good as the newer."""
    assert (await edge.send(signed(key=key))).status == 200
    assert edge.publisher.published[0].event.data.trust == ("signature",)  # type: ignore[attr-defined]


@pytest.mark.parametrize("late_s", [-1_800, 0, 1_800])
async def test_signed_within_tolerance(edge: Edge, late_s: int) -> None:
    """The vendor's late retries are still believed."""
    assert (await edge.send(signed(late_s=late_s))).status == 200


@pytest.mark.parametrize(
    ("sent", "doubt"),
    [
        (signed(key="another"), "signature_wrong"),
        (signed("another task"), "signature_wrong"),
        (signed(late_s=1_801), "signature_stale"),
        (signed(late_s=-1_801), "timestamp_outside"),
        (signed(body=b'{"code": 501}'), "task_missing"),
        (request(path="/callbacks/kie", x_webhook_signature="x"), "signature_missing"),
        (request(path="/callbacks/kie", x_webhook_timestamp="1"), "signature_missing"),
        (request(path="/callbacks/kie", x_webhook_timestamp="1", x_webhook_signature="\xff"), "signature_wrong"),
        (request(path="/callbacks/kie", x_webhook_timestamp="9" * 5_000, x_webhook_signature="x"), "timestamp_outside"),
        (request(path="/callbacks/kie", x_webhook_timestamp="\u0661", x_webhook_signature="x"), "timestamp_outside"),
    ],
)
async def test_signatures_that_do_not_hold(edge: Edge, sent: bytes, doubt: str) -> None:
    """A signature of another key, task or time, or half of one, is answered 401."""
    answer = await edge.send(sent)
    assert (answer.status, answer.refusal) == (401, "unauthentic")
    assert doubt in answer.problem["detail"]
    refused_once(edge, "unauthentic")


async def test_replayed(edge: Edge) -> None:
    """The same callback again is taken again, as the same event."""
    for _ in range(3):
        assert (await edge.send(signed())).status == 200
    assert len({published.event_id for published in edge.publisher.published}) == 1
    assert len(edge.publisher.published) == 3


async def test_signed_sample_route(edge: Edge) -> None:
    """The sample route of kie asks for kie's signature."""
    sent = signed().replace(b"/callbacks/kie", b"/suno-wav-callback")
    assert (await edge.send(sent)).status == 200
    assert edge.publisher.published[0].event.source == "wavekeep/kie"


def count(edge: Edge, name: str, **labels: str) -> float | None:
    """Return a counter of the ingress."""
    return edge.registry.get_sample_value(f"wavekeep_ingress_{name}", labels)


@pytest.mark.parametrize(
    ("settings", "token", "trust"),
    [(ASKABLE, None, ("stale",)), (ASKABLE | TOKEN_TOO, "older", ("token", "stale"))],
)
async def test_stale_where_the_vendor_can_be_asked(
    settings: dict[str, Any], token: str | None, trust: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right but old signature is taken for the vendor to confirm, told as stale, and counted by itself."""
    with listening_in(monkeypatch) as lines:
        async with running(lines, **settings) as edge:
            assert (await edge.send(signed(late_s=1_801, token=token))).status == 200
            assert edge.publisher.published[0].event.data.trust == trust  # type: ignore[attr-defined]
            assert count(edge, "callbacks_stale_total", vendor="kie") == 1
            assert count(edge, "callbacks_doubted_total", doubt="signature_stale") == 0
            assert (await edge.send(signed(token=token))).status == 200
            assert count(edge, "callbacks_stale_total", vendor="kie") == 1


@pytest.mark.parametrize(
    ("settings", "sent", "doubt"),
    [
        (ASKABLE, signed(late_s=-1_801), "timestamp_outside"),
        (ASKABLE, signed(late_s=86_460), "signature_stale"),
        (ASKABLE, signed(late_s=1_801, body=UNKNOWN_SHAPE), "signature_stale"),
        (ASKABLE, signed(late_s=1_801, key="another"), "signature_wrong"),
        (ASKABLE, signed("another task", late_s=1_801), "signature_wrong"),
        (ASKABLE | TOKEN_TOO, signed(late_s=1_801), "token_missing"),
        (ASKABLE | TOKEN_TOO, signed(late_s=1_801, token="wrong"), "token_wrong"),
        ({"apibox_api_key": SecretStr("configured")}, signed(late_s=1_801), "signature_stale"),
    ],
)
async def test_an_api_key_excuses_nothing_else(
    settings: dict[str, Any], sent: bytes, doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the future, great age, an unknown shape, a wrong proof nor another vendor's key is taken as stale."""
    with listening_in(monkeypatch) as lines:
        async with running(lines, **settings) as edge:
            answer = await edge.send(sent)
            assert (answer.status, answer.refusal) == (401, "unauthentic")
            assert doubt in answer.problem["detail"]
            assert count(edge, "callbacks_stale_total", vendor="kie") == 0
            refused_once(edge, "unauthentic")


@pytest.mark.parametrize("token", ["older", "newer"])
@pytest.mark.parametrize("key", [OLD_KEY, NEW_KEY])
async def test_both_proofs_while_both_rotate(token: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two tokens and two keys, one of each is needed and any of each is enough."""
    with listening_in(monkeypatch) as lines:
        async with running(lines, **TOKEN_TOO) as edge:
            assert (await edge.send(signed(key=key, token=token))).status == 200
            assert edge.publisher.published[0].event.data.trust == ("token", "signature")  # type: ignore[attr-defined]
            assert (await edge.send(signed(key=key))).status == 401
            assert (await edge.send(signed(key="another", token=token))).status == 401
            assert (await edge.post(path=f"/callbacks/kie?token={token}")).status == 401


async def test_a_success_without_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the vendor can be asked it is answered 200, told as such, and counted as such."""
    body = json.dumps({"code": 200, "data": {"task_id": "t1", "audioWavUrl": ""}}).encode()
    with listening_in(monkeypatch) as lines:
        async with running(lines, **ASKABLE) as edge:
            assert (await edge.send(signed(body=body))).status == 200
            (published,) = edge.publisher.published
            assert (published.routing_key, type(published.event.data)) == ("report.linkless", ReportLinkless)
            assert count(edge, "callbacks_accepted_total", vendor="kie", reading="linkless") == 1


async def test_unauthenticated_shouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lets anybody in for a vendor reads so at start and sees it in a metric, for that vendor alone."""
    with listening_in(monkeypatch) as lines:
        async with running(lines, sunoapi_allow_unauthenticated=True, kie_allow_unauthenticated=True) as edge:
            assert (await edge.post(path="/callbacks/sunoapi")).status == 200
            shouted = [line for line in lines if line["event"] == "vendor.unauthenticated"]
            assert [(line["log_level"], line["vendor"]) for line in shouted] == [("warning", "sunoapi")]
            assert count(edge, "vendor_unauthenticated", vendor="sunoapi") == 1
            assert count(edge, "vendor_unauthenticated", vendor="kie") == 0
            assert count(edge, "vendor_unauthenticated", vendor="apibox") == 0
