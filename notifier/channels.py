"""The ways out: one small class a kind of destination.

Responsible for: delivering one event once, and classifying how that went. A channel decides nothing about retries:
the error's class does. It must not log what it delivers, nor any secret.

Source of the signature: Standard Webhooks, "Signature scheme".
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

import aiohttp
import structlog

from notifier.settings import WebhookDestination
from shared.clock import Clock
from shared.errors import Reason, RetryableError, StartError
from shared.events import CONTENT_TYPE, Event, encode
from shared.tracing import start

log = structlog.get_logger()

_SECRET_PREFIX = "whsec_"  # noqa: S105 - the public prefix of such secrets


class Channel(Protocol):
    """A way out."""

    async def start(self) -> None:
        """Make ready; raises `StartError` when it cannot be."""

    async def close(self) -> None:
        """Let go."""

    async def deliver(self, event: Event) -> None:
        """Deliver one event.

        Raises:
            RetryableError: the destination may take it later.
            PermanentError: it never will.
        """


class LogChannel:
    """Tells in the log, for people who read it."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def deliver(self, event: Event) -> None:
        """Write one line; it cannot fail."""
        log.info(
            "event.told",
            destination=self._name,
            type=event.type,
            subject=event.subject,
            event_id=event.id,
            **_gist(event),
        )


class WebhookChannel:
    """Posts the event as it is, signed; the CloudEvents id is the webhook id, so that a repetition is known as one.

    A repetition has the same body, byte for byte; only the header's trace context is a new span.

    A 2xx answer is a delivery; redirects are not followed. Every other answer is worth another try: a receiver that
    says 404 or 410 today is often one that is being mended, and until `WAVEKEEP_NOTIFY_GIVE_UP_AFTER` nothing is lost.
    Its Retry-After goes along with the error.
    """

    def __init__(self, destination: WebhookDestination, *, clock: Clock) -> None:
        self._destination = destination
        self._clock = clock
        self._key: bytes | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Read the secret; open no connection yet."""
        self._key = self._read_key()
        if self._key is None:
            log.warning("destination.unsigned", destination=self._destination.name, detail="no secret is set")
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._destination.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=self._destination.concurrency),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def deliver(self, event: Event) -> None:
        """See the port."""
        assert self._session is not None
        body = encode(event)
        headers = {"Content-Type": CONTENT_TYPE, "traceparent": start(event.traceparent)} | self._signed(event.id, body)
        url = self._destination.url.get_secret_value()
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                status, wish = answer.status, answer.headers.get("Retry-After")
        except TimeoutError:
            raise RetryableError(
                Reason.DESTINATION_UNREACHABLE, f"no answer within {self._destination.timeout_s:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:  # it may quote the URL, which may be a secret
            raise RetryableError(Reason.DESTINATION_UNREACHABLE, type(error).__name__) from None
        if 200 <= status < 300:
            return
        refused = 300 <= status < 500
        reason = Reason.DESTINATION_REFUSED if refused else Reason.DESTINATION_FAILED
        raise RetryableError(reason, f"it answered {status}", retry_after_s=retry_after_s(wish, self._clock()))

    def _signed(self, event_id: str, body: bytes) -> dict[str, str]:
        timestamp = str(int(self._clock().timestamp()))
        headers = {"webhook-id": event_id, "webhook-timestamp": timestamp}
        if self._key is not None:
            headers["webhook-signature"] = sign(self._key, event_id, timestamp, body)
        return headers

    def _read_key(self) -> bytes | None:
        destination = self._destination
        secret = destination.secret.get_secret_value() if destination.secret else None
        if destination.secret_file is not None:
            try:
                secret = destination.secret_file.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise StartError(f"destination {destination.name}: its secret_file cannot be read: {error}") from error
        return None if secret is None else webhook_key(destination.name, secret)


def retry_after_s(wish: str | None, now: datetime) -> float | None:
    """Read the header Retry-After: how long a receiver asks to be left alone; None where it does not say.

    Source: RFC 9110, section 10.2.3: seconds, or a date.
    """
    text = (wish or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds())


def webhook_key(name: str, secret: str) -> bytes:
    """Return the key a secret stands for: base64, with or without `whsec_` before it.

    Raises:
        StartError: it is not base64, or empty: a destination that is to be signed is never served unsigned.
    """
    try:
        if key := base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True):
            return key
    except (binascii.Error, ValueError):
        key = b""
    raise StartError(
        f"destination {name}: its secret must be base64, as `whsec_…`; make one with: openssl rand -base64 32"
    )


def sign(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """Return the Standard Webhooks signature, version 1, of a body."""
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _gist(event: Event) -> Mapping[str, object]:
    """Return the few facts a person wants in one line."""
    wanted = ("size_bytes", "sha256", "uri", "reason", "detail", "code", "claim", "threshold_percent", "explanation")
    return {name: value for name in wanted if (value := getattr(event.data, name, None)) is not None}
