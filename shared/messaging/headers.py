"""What travels beside a message's body, and how it is read back.

Responsible for: the header names on the wire and the translation between them and the port's models. Pure. It must
not read the body: a message whose body is rubbish can still be retried, parked and listed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from shared.errors import Reason
from shared.messaging.port import Kept, Message

EVENT_ID = "wavekeep-event-id"
ATTEMPTS = "wavekeep-attempts"
FIRST_SEEN = "wavekeep-first-seen"
REASON = "wavekeep-reason"
QUEUE = "wavekeep-queue"
PARKED_AT = "wavekeep-parked-at"
SECOND_CHANCE = "wavekeep-second-chance"


def fresh(event_id: str, *, second_chance: bool = False) -> dict[str, str | int]:
    """Return the headers of a first publish, or of a message that is sent back as if new."""
    return {EVENT_ID: event_id, **({SECOND_CHANCE: 1} if second_chance else {})}


def retried(message: Message, reason: Reason | None) -> dict[str, str | int]:
    """Return the headers of a message that goes round again: with a reason, one more attempt has failed."""
    headers: dict[str, str | int] = {
        **fresh(message.event_id, second_chance=message.second_chance),
        ATTEMPTS: message.attempts + (1 if reason else 0),
        FIRST_SEEN: message.first_seen.isoformat(),
    }
    latest = reason or message.last_reason
    if latest:
        headers[REASON] = str(latest)
    return headers


def parked(message: Message, reason: Reason, now: datetime) -> dict[str, str | int]:
    """Return the headers of a parked message."""
    return retried(message, None) | {REASON: str(reason), QUEUE: message.queue, PARKED_AT: now.isoformat()}


def message(headers: Mapping[str, Any], body: bytes, *, queue: str, redelivered: bool, now: datetime) -> Message:
    """Read a message in hand. Headers that are missing or of another type count as those of a first publish."""
    return Message(
        body=body,
        event_id=_text(headers, EVENT_ID),
        queue=queue,
        attempts=_number(headers, ATTEMPTS),
        first_seen=_moment(headers, FIRST_SEEN) or now,
        last_reason=_reason(headers),
        redelivered=redelivered,
        second_chance=bool(_number(headers, SECOND_CHANCE)),
    )


def kept(headers: Mapping[str, Any], body: bytes, *, message_id: str) -> Kept:
    """Read a message out of circulation. What the broker parked by its delivery limit has no reason of ours yet."""
    parked_at = _moment(headers, PARKED_AT)
    death = _latest_death(headers) if parked_at is None else {}
    by_limit = death.get("reason") == "delivery_limit"
    return Kept(
        id=message_id,
        event_id=_text(headers, EVENT_ID),
        queue=str(death.get("queue", "")) if by_limit else _text(headers, QUEUE),
        reason=Reason.DELIVERY_LIMIT if by_limit else _reason(headers),
        attempts=_number(headers, ATTEMPTS),
        first_seen=_moment(headers, FIRST_SEEN),
        parked_at=_died_at(death) if by_limit else parked_at,
        body=body,
        second_chance=bool(_number(headers, SECOND_CHANCE)),
    )


def _latest_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else {}
    return latest if isinstance(latest, Mapping) else {}


def _died_at(death: Mapping[str, Any]) -> datetime | None:
    """Return when the broker moved a message away; some of its versions do not say."""
    moment = death.get("time")
    return moment.astimezone(UTC) if isinstance(moment, datetime) else None


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    return value if isinstance(value, str) else ""


def _number(headers: Mapping[str, Any], name: str) -> int:
    value = headers.get(name)
    return value if isinstance(value, int) and value >= 0 else 0


def _moment(headers: Mapping[str, Any], name: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(_text(headers, name))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _reason(headers: Mapping[str, Any]) -> Reason | None:
    try:
        return Reason(_text(headers, REASON))
    except ValueError:
        return None
