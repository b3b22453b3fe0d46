"""The channels without a network: signatures, secrets, the line in the log."""

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from notifier.channels import LogChannel, WebhookChannel, retry_after_s, sign, webhook_key
from notifier.settings import WebhookDestination
from shared.errors import StartError
from shared.events import encode
from tests.integration.receivers import event
from tests.log_capture import captured_logs

KEY = b"a key of thirty-two bytes, or so"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"another").decode()


def signed(body: bytes, *, message_id: str = "id-1", at: datetime | None = None) -> dict[str, str]:
    """Return the headers of a delivery."""
    timestamp = str(int((at or datetime.now(UTC)).timestamp()))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": sign(KEY, message_id, timestamp, body),
    }


def test_receivers_libraries_accept_our_signature() -> None:
    """The Standard Webhooks library verifies what we sign, body and all."""
    body = encode(event())
    assert Webhook(SECRET).verify(body, signed(body))["subject"] == "apibox/task-1"


@pytest.mark.parametrize("part", ["secret", "body", "id", "time"])
def test_anything_else_fails_to_verify(part: str) -> None:
    """Another key, body, id or time does not pass as ours."""
    body = encode(event())
    headers = signed(body)
    if part == "id":
        headers["webhook-id"] = "id-2"
    if part == "time":
        headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) + 1)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER_SECRET if part == "secret" else SECRET).verify(body + b" " * (part == "body"), headers)


@pytest.mark.parametrize("secret", [SECRET, SECRET.removeprefix("whsec_")])
def test_a_secret_is_read_with_and_without_its_prefix(secret: str) -> None:
    """Either spelling of one secret is one key."""
    assert webhook_key("billing", secret) == KEY


@pytest.mark.parametrize("secret", ["", "whsec_", "not base64!", "ключ", "YWJj "])
def test_an_unusable_secret_is_refused_without_being_shown(secret: str) -> None:
    """A destination that is to be signed is never served unsigned, and the sentence does not quote the secret."""
    with pytest.raises(StartError, match="destination billing: its secret must be base64") as caught:
        webhook_key("billing", secret)
    assert secret.strip("whsec_ ") == "" or secret not in str(caught.value)


def webhook(**fields: Any) -> WebhookChannel:
    """Return a channel that is never used to connect."""
    destination = WebhookDestination(name="billing", type="webhook", url="https://billing.example.com/hook", **fields)
    return WebhookChannel(destination, clock=lambda: datetime.now(UTC))


async def test_the_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    """A secret that is mounted as a file is read at start, a line end after it is no part of it."""
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    channel = webhook(secret_file=path)
    await channel.start()
    await channel.close()


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff"])
async def test_a_secret_file_without_a_secret_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    """A missing, empty or unreadable secret is told at start, by name of the destination."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartError, match="destination billing: its secret"):
        await webhook(secret_file=path).start()


async def test_an_unsigned_destination_is_warned_about() -> None:
    """Deliveries nobody can verify are possible, but not unnoticed."""
    channel = webhook()
    with captured_logs() as lines:
        await channel.start()
        await channel.close()
    assert [(line["event"], line["log_level"]) for line in lines] == [("destination.unsigned", "warning")]


async def test_the_log_channel_tells_the_gist() -> None:
    """A person reads in one line what became of which task, and why."""
    told = event()
    with captured_logs() as lines:
        await LogChannel("people").deliver(told)
    (line,) = lines
    assert line == {
        "event": "event.told",
        "log_level": "info",
        "destination": "people",
        "type": "wavekeep.conversion.rejected.v1",
        "subject": "apibox/task-1",
        "event_id": told.id,
        "reason": "vendor_failed",
        "detail": "no luck",
        "code": 500,
    }


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("Sun, 01 Mar 2026 12:01:00 GMT", 60),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Sun, 01 Mar 2026 12:01:00", 60),
        (None, None),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 400, None),
        ("\u0661\u0662", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_anything_else_nothing(wish: str | None, seconds: float | None) -> None:
    """What a receiver asks for is read as RFC 9110 writes it; what cannot be read asks for nothing."""
    assert retry_after_s(wish, datetime(2026, 3, 1, 12, tzinfo=UTC)) == seconds
