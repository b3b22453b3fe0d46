"""Splitting: who gets which event, and what nobody outside gets."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from notifier.settings import LogDestination
from notifier.split import KEEP_TRYING_FOR, Splitter
from shared import events
from shared.errors import BrokerError, PermanentError, Reason
from shared.events import Event, ReportUnrecognised
from shared.messaging.port import Message
from tests.integration.receivers import rejected, unrecognised
from tests.recording import RecordingPublisher
from tests.unit.custody_fakes import failed, succeeded

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PEOPLE = LogDestination(name="people", type="log")
SYSTEM = LogDestination(name="system", type="log", events=("conversion.stored",))
EVERYTHING = LogDestination(name="everything", type="log", events=("*",))


def splitter(publisher: RecordingPublisher, *destinations: LogDestination) -> Splitter:
    """Return a splitter for these destinations."""
    return Splitter(destinations, publisher, clock=lambda: NOW)


def message(body: bytes) -> Message:
    """Return what the handler is given."""
    return Message(body=body, event_id="1", queue="wavekeep.notifier", attempts=0, first_seen=NOW)


async def test_each_destination_gets_its_own_message() -> None:
    """One copy a destination that wants the event, under the event's own id, in the destination's own queue."""
    publisher, event = RecordingPublisher(), events.make(rejected(), time=NOW)
    await splitter(publisher, PEOPLE, SYSTEM, EVERYTHING).handle(message(events.encode(event)))
    assert [(copy.exchange, copy.routing_key, copy.event_id) for copy in publisher.published] == [
        ("wavekeep.notifier.private", f"wavekeep.notifier.{name}", event.id) for name in ("people", "everything")
    ]
    assert {copy.body for copy in publisher.published} == {events.encode(event)}


async def test_an_unrecognised_callback_is_told_without_its_body() -> None:
    """People hear of it under the same id; the raw body, which may hold a link, stays in its own queue."""
    publisher = RecordingPublisher()
    event = events.make(unrecognised('{"url": "https://x/?k3y"}'), time=NOW)
    await splitter(publisher, PEOPLE, EVERYTHING).handle(message(events.encode(event)))
    assert len(publisher.published) == 2
    for copy in publisher.published:
        assert b"k3y" not in copy.body
        assert isinstance(copy.event.data, ReportUnrecognised)
        assert copy.event.data == msgspec.structs.replace(_data(event), body=None)
        assert copy.event.id == copy.event_id == event.id


@pytest.mark.parametrize("report", [succeeded(), failed()], ids=["succeeded", "failed"])
async def test_a_raw_report_is_never_handed_on(report: Message) -> None:
    """Even bound to the wrong queue, a link that opens a file reaches no destination."""
    publisher = RecordingPublisher()
    with pytest.raises(PermanentError) as caught:
        await splitter(publisher, EVERYTHING).handle(report)
    assert caught.value.reason is Reason.MESSAGE_UNKNOWN
    assert publisher.published == []


async def test_an_unconfirmed_copy_is_split_again() -> None:
    """Unless every copy is durable the event is not settled."""
    publisher = RecordingPublisher(error=BrokerError(Reason.PUBLISH_TIMED_OUT, "not confirmed"))
    with pytest.raises(BrokerError):
        await splitter(publisher, PEOPLE).handle(message(events.encode(events.make(rejected(), time=NOW))))


async def test_what_is_no_event_is_parked() -> None:
    """An unreadable message is refused for good, and nobody is bothered with it."""
    publisher = RecordingPublisher()
    with pytest.raises(PermanentError):
        await splitter(publisher, EVERYTHING).handle(message(b"?"))
    assert publisher.published == []


def test_splitting_is_tried_for_long_but_not_for_ever() -> None:
    """A broker that is away for days delays the news and loses none; in the end the event is parked."""
    old = Message(body=b"", event_id="1", queue="q", attempts=99, first_seen=NOW - KEEP_TRYING_FOR + timedelta(hours=2))
    assert splitter(RecordingPublisher()).next_step(old, Reason.NOT_ROUTABLE) is not None
    gone = Message(body=b"", event_id="1", queue="q", attempts=99, first_seen=NOW - KEEP_TRYING_FOR)
    assert splitter(RecordingPublisher()).next_step(gone, Reason.NOT_ROUTABLE) is None


def _data(event: Event) -> ReportUnrecognised:
    assert isinstance(event.data, ReportUnrecognised)
    return event.data
