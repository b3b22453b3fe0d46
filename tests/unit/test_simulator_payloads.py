"""The simulator spells callbacks as the vendors do."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from simulator.payloads import Said, body, signature, signed_headers
from simulator.plan import Shape, Sign

SAMPLES = Path(__file__).parents[1] / "samples"
TASK = "988e7f0a4b0d4c6f9a52b1d3e7c8c8d3"
URL = "https://files.example.com/s/04e6a1b2c3d4e727.wav"
KEY, SIGNED_TASK, SIGNED_AT = "test-webhook-hmac-key", "ee9c2715375b7837f8bb51d641ff5863", 1769670760
VECTOR = "xG6/yOyrMyJtUdc1yjmHpKLHSHF3MpzOPa6uxSj3qb4="


def said(code: int = 200, message: str = "success", url: str | None = URL) -> Said:
    """Return what a callback about the samples' task says."""
    return Said(task_id=TASK, code=code, message=message, url=url, at=datetime.fromtimestamp(1769670760.456, UTC))


@pytest.mark.parametrize(
    ("sample", "shape", "content"),
    [
        ("apibox-success", Shape.CAMEL, said()),
        ("kie-success", Shape.SNAKE, said()),
        ("kie-success-signed-shape", Shape.SIGNED, said()),
        ("sunoapi-response-nested", Shape.NESTED_CAMEL, said()),
        ("kie-job-success", Shape.JOB, said()),
        ("code-as-string", Shape.CODE_AS_STRING, said()),
        ("unknown-keys", Shape.UNKNOWN_KEYS, said()),
        ("data-null", Shape.DATA_NULL, said(500, "error")),
        ("success-without-url", Shape.NO_URL, said()),
        ("no-task-id", Shape.NO_TASK_ID, said()),
        ("music-callback", Shape.MUSIC, said(message="All generated successfully.")),
        ("kie-failure", Shape.SNAKE, said(501, "WAV conversion failed", None)),
        ("apibox-failure-credits", Shape.CAMEL, said(429, "Insufficient credits", None)),
    ],
)
def test_spells_as_the_sample(sample: str, shape: Shape, content: Said) -> None:
    """Each shape is, field for field, the vendor's own sample."""
    assert json.loads(body(shape, content)) == json.loads((SAMPLES / f"{sample}.json").read_bytes())


@pytest.mark.parametrize("shape", list(Shape))
@pytest.mark.parametrize("url", [URL, None])
def test_every_shape_is_json(shape: Shape, url: str | None) -> None:
    """Every shape can tell a success and a failure, and is an object with a code."""
    read: dict[str, Any] = json.loads(body(shape, said(url=url)))
    assert str(read["code"]) == "200"


def test_signs_as_the_vector() -> None:
    """The signature is the one of the vendor's published vector."""
    assert signature(KEY, SIGNED_TASK, str(SIGNED_AT)) == VECTOR
    assert signed_headers(Sign.AUTO, KEY, SIGNED_TASK, SIGNED_AT + 0.9) == {
        "X-Webhook-Timestamp": str(SIGNED_AT),
        "X-Webhook-Signature": VECTOR,
    }


@pytest.mark.parametrize(("sign", "key"), [(Sign.NO, KEY), (Sign.AUTO, None)])
def test_signs_nothing_without_a_reason(sign: Sign, key: str | None) -> None:
    """A vendor without a key, or told not to, sends no signature headers."""
    assert signed_headers(sign, key, SIGNED_TASK, SIGNED_AT) == {}


@pytest.mark.parametrize("sign", [Sign.WRONG, Sign.OTHER_TASK])
def test_signs_wrongly_on_demand(sign: Sign) -> None:
    """A wrong signature has the right form and does not verify."""
    headers = signed_headers(sign, KEY, SIGNED_TASK, SIGNED_AT)
    assert len(headers["X-Webhook-Signature"]) == len(VECTOR)
    assert headers["X-Webhook-Signature"] != VECTOR


@pytest.mark.parametrize(("sign", "skew_s"), [(Sign.STALE, -3_600), (Sign.FUTURE, 3_600)])
def test_signs_at_another_time(sign: Sign, skew_s: int) -> None:
    """A stale or future callback is signed rightly over its own timestamp."""
    headers = signed_headers(sign, KEY, SIGNED_TASK, SIGNED_AT)
    assert headers["X-Webhook-Timestamp"] == str(SIGNED_AT + skew_s)
    assert headers["X-Webhook-Signature"] == signature(KEY, SIGNED_TASK, str(SIGNED_AT + skew_s))
