"""Who is believed at the edge: tokens, signatures, both while rotating, and nobody else."""

import pytest

from ingress.authenticity import sign
from tests.integration.ingress_server import BODY, NEW_KEY, NOW, OLD_KEY, TOKEN, Edge, document, refused_once, request


def signed(task_id: str = "t1", *, key: str = OLD_KEY, late_s: int = 0, body: bytes | None = None) -> bytes:
    """Write a callback of kie with a signature for this task."""
    timestamp = str(int(NOW.timestamp()) - late_s)
    return request(
        document() if body is None else body,
        path="/callbacks/kie",
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
        (signed(late_s=1_801), "timestamp_outside"),
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
