"""Who sent a callback: the judgement on tokens and signatures.

Responsible for: comparing, in constant time, what a request presents with what is configured; every configured proof
must hold. Pure. It must not read requests, clocks or settings.

Source: kie's webhook page (HMAC-SHA256 over `taskId + "." + timestamp`, base64). The body is not signed.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

OLDEST_ASKABLE_S = 24 * 3_600.0
"""How old a signature may be for its callback to be asked about. The vendor's last try comes after 21 minutes."""


class Doubt(StrEnum):
    """Why a callback is not believed. Also a metric label."""

    TOKEN_MISSING = "token_missing"  # noqa: S105 - a name, not a secret
    TOKEN_WRONG = "token_wrong"  # noqa: S105
    SIGNATURE_MISSING = "signature_missing"
    SIGNATURE_WRONG = "signature_wrong"
    SIGNATURE_STALE = "signature_stale"
    TIMESTAMP_OUTSIDE = "timestamp_outside"
    TASK_MISSING = "task_missing"
    VENDOR_NOT_SERVED = "vendor_not_served"
    SOURCE_OUTSIDE = "source_outside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The secrets of one vendor, which no text of it shows. Several tokens or keys are valid at once while rotating."""

    tokens: tuple[bytes, ...] = field(default=(), repr=False)
    hmac_keys: tuple[bytes, ...] = field(default=(), repr=False)
    allow_unauthenticated: bool = False

    @property
    def usable(self) -> bool:
        """Whether any callback could be believed."""
        return bool(self.tokens or self.hmac_keys or self.allow_unauthenticated)


def doubt_token(credentials: Credentials, presented: str | None) -> Doubt | None:
    """Return why the token is not believed; None where it is, or where none is configured."""
    if not credentials.tokens:
        return None
    if not presented:
        return Doubt.TOKEN_MISSING
    return None if _is_one_of(presented.encode(errors="replace"), credentials.tokens) else Doubt.TOKEN_WRONG


def doubt_signature(
    credentials: Credentials,
    *,
    task_id: str | None,
    timestamp: str | None,
    signature: str | None,
    now: datetime,
    tolerance_s: float,
) -> Doubt | None:
    """Return why the signature is not believed; None where it is, or where no key is configured.

    Args:
        task_id: as the body names it.
        timestamp: of the header, Unix seconds as text.
        signature: of the header, base64.
        tolerance_s: how far the timestamp may be from now, either way. Beyond it, a right signature of the past is
            `SIGNATURE_STALE`, and one of the future, which no vendor makes, `TIMESTAMP_OUTSIDE`.
    """
    if not credentials.hmac_keys:
        return None
    if not timestamp or not signature:
        return Doubt.SIGNATURE_MISSING
    if task_id is None:
        return Doubt.TASK_MISSING
    sent_at = _read_timestamp(timestamp)
    if sent_at is None:
        return Doubt.TIMESTAMP_OUTSIDE
    expected = tuple(sign(key, task_id, timestamp).encode() for key in credentials.hmac_keys)
    if not _is_one_of(signature.encode(errors="replace"), expected):
        return Doubt.SIGNATURE_WRONG
    age_s = now.timestamp() - sent_at
    if abs(age_s) <= tolerance_s:
        return None
    return Doubt.SIGNATURE_STALE if age_s > 0 else Doubt.TIMESTAMP_OUTSIDE


def is_askable(doubt: Doubt | None, *, timestamp: str | None, now: datetime) -> bool:
    """Tell whether a rightly signed callback that is too old may still be asked about: one that may have been delayed.

    What is older was not delayed; it was kept, by whomever.
    """
    sent_at = _read_timestamp(timestamp or "")
    return doubt is Doubt.SIGNATURE_STALE and sent_at is not None and now.timestamp() - sent_at <= OLDEST_ASKABLE_S


def proven_skew_s(
    credentials: Credentials, doubt: Doubt | None, *, timestamp: str | None, now: datetime
) -> float | None:
    """Return how far now is behind (below 0) or after a timestamp that was rightly signed, in seconds.

    A vendor's retry may carry the first attempt's timestamp, so up to 21 minutes after is no fault of any clock; behind
    always is.

    Args:
        doubt: what `doubt_signature` said of it: stale and outside are rightly signed too, for the signature is judged
            first.

    Returns:
        None where nothing proves who wrote the timestamp.
    """
    if not credentials.hmac_keys or doubt not in (None, Doubt.SIGNATURE_STALE, Doubt.TIMESTAMP_OUTSIDE):
        return None
    sent_at = _read_timestamp(timestamp or "")
    return None if sent_at is None else now.timestamp() - sent_at


def sign(key: bytes, task_id: str, timestamp: str) -> str:
    """Return the signature kie sends for a task at a time."""
    return base64.b64encode(hmac.digest(key, f"{task_id}.{timestamp}".encode(), hashlib.sha256)).decode()


def _read_timestamp(text: str) -> int | None:
    """Read Unix seconds; None where they are none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None


def _is_one_of(presented: bytes, valid: Sequence[bytes]) -> bool:
    """Compare with every one, each in constant time, so that the time tells nothing about which one matched."""
    found = False
    for one in valid:
        found |= hmac.compare_digest(presented, one)
    return found
