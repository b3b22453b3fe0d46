"""What travels beside a body is read back as it was written, and rubbish there is no obstacle."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.errors import Reason
from shared.messaging import headers
from shared.messaging.port import Message

NOW = datetime(2026, 3, 1, 12, 30, 15, 123_456, tzinfo=UTC)
EARLIER = NOW - timedelta(days=2)
MESSAGE = Message(
    body=b"\xff no JSON",
    event_id="an id",
    queue="wavekeep.downloader",
    attempts=3,
    first_seen=EARLIER,
    last_reason=Reason.TIMED_OUT,
)


def read(carried: Any) -> Message:
    """Read a message that is handed over now."""
    return headers.message(carried, MESSAGE.body, queue=MESSAGE.queue, redelivered=False, now=NOW)


def test_a_first_publish_carries_the_event_id_alone() -> None:
    """A message that never failed counts from now."""
    assert read(headers.fresh("an id")) == replace(MESSAGE, attempts=0, first_seen=NOW, last_reason=None)


def test_a_failed_attempt_is_counted_with_its_reason() -> None:
    """The count, the latest reason and the first reception come back with the message."""
    assert read(headers.retried(MESSAGE, Reason.BODY_CUT)) == replace(MESSAGE, attempts=4, last_reason=Reason.BODY_CUT)


def test_what_is_handed_back_comes_as_it_was() -> None:
    """Without a reason no attempt is counted, and the latest reason stays."""
    assert read(headers.retried(MESSAGE, None)) == MESSAGE
    never_failed = replace(MESSAGE, attempts=0, last_reason=None)
    assert read(headers.retried(never_failed, None)) == never_failed


def test_a_parked_message_tells_its_whole_story() -> None:
    """Reason, queue, attempts and both moments are there for the person who decides."""
    kept = headers.kept(headers.parked(MESSAGE, Reason.NOT_WAV, NOW), MESSAGE.body, message_id="1")
    assert (kept.id, kept.event_id, kept.queue, kept.body) == ("1", "an id", MESSAGE.queue, MESSAGE.body)
    assert (kept.reason, kept.attempts) == (Reason.NOT_WAV, 3)
    assert (kept.first_seen, kept.parked_at) == (EARLIER, NOW)


def test_what_the_broker_parked_gets_our_reason_and_its_queue() -> None:
    """A message over its delivery limit has no headers of ours for it: x-death tells, its latest entry."""
    deaths = [
        {"reason": "delivery_limit", "queue": "wavekeep.downloader", "count": 1},
        {"reason": "expired", "queue": "wavekeep.downloader.delay.5s", "count": 1},
    ]
    carried = headers.retried(MESSAGE, Reason.BODY_CUT) | {"x-death": deaths}
    kept = headers.kept(carried, MESSAGE.body, message_id="1")
    assert (kept.reason, kept.queue, kept.parked_at) == (Reason.DELIVERY_LIMIT, "wavekeep.downloader", None)
    assert (kept.attempts, kept.first_seen) == (4, EARLIER)


def test_what_we_parked_keeps_our_reason_whatever_the_broker_remembers() -> None:
    """An old death in a queue does not hide why a person finds the message parked."""
    carried = headers.parked(MESSAGE, Reason.NOT_WAV, NOW) | {"x-death": [{"reason": "delivery_limit", "queue": "q"}]}
    kept = headers.kept(carried, MESSAGE.body, message_id="1")
    assert (kept.reason, kept.queue) == (Reason.NOT_WAV, MESSAGE.queue)


def test_an_unrecognised_callback_has_no_reason_and_no_queue() -> None:
    """What never was in a work queue says so."""
    kept = headers.kept(headers.fresh("an id"), b"what?", message_id="1")
    assert (kept.reason, kept.queue, kept.first_seen, kept.parked_at) == (None, "", None, None)


@pytest.mark.parametrize("rubbish", [None, 7, -1, 1.5, "", "no such word", b"bytes", [], {}, datetime(2026, 1, 1)])  # noqa: DTZ001 - what a broker may give
def test_rubbish_counts_as_a_first_publish(rubbish: Any) -> None:
    """Headers of another type or out of range neither raise nor are believed."""
    names = (headers.FIRST_SEEN, headers.REASON, headers.PARKED_AT, "x-death")
    carried = dict.fromkeys(names, rubbish)
    assert read(carried) == replace(MESSAGE, event_id="", attempts=0, first_seen=NOW, last_reason=None)
    kept = headers.kept(carried, b"", message_id="1")
    assert (kept.reason, kept.first_seen, kept.parked_at) == (None, None, None)
    if not isinstance(rubbish, str):
        assert read({headers.EVENT_ID: rubbish}).event_id == ""
    if rubbish != 7:
        assert read({headers.ATTEMPTS: rubbish}).attempts == 0


def test_a_moment_without_an_offset_is_utc() -> None:
    """A foreign publisher's naive time does not make comparisons fail."""
    assert read({headers.FIRST_SEEN: "2026-02-27T12:30:15.123456"}).first_seen == EARLIER
