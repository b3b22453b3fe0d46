"""The notifier as a service: over a real queue, to real receivers on loopback."""

import asyncio
import base64
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from notifier.app import Notifier
from notifier.settings import Destination, LogDestination, NotifierSettings, WebhookDestination
from shared import events
from shared.errors import Reason, StartError
from shared.events import CONTENT_TYPE
from shared.messaging.topology import NOTIFIER, destination_queue
from tests.integration.embedded_house import EmbeddedHouse, embedded_house, eventually, until
from tests.integration.receivers import HANG, Receiver, receiving, rejected, unrecognised
from tests.log_capture import captured_logs

SECRET = "whsec_" + base64.b64encode(b"k3y-of-a-receiver").decode()


def hook(name: str, receiver: Receiver, **fields: Any) -> Destination:
    """Return a destination at this receiver."""
    return WebhookDestination.model_validate(
        {"name": name, "type": "webhook", "url": receiver.url, "secret": SECRET, **fields}
    )


def notifier(house: EmbeddedHouse, destinations: Sequence[Destination], **settings: Any) -> Notifier:
    """Return a notifier on this broker."""
    return Notifier(
        NotifierSettings(data_dir=house.folder, **settings),
        destinations,
        house.broker,
        house.registry,
        clock=house.clock,
    )


async def test_an_event_is_delivered_signed(tmp_path: Path) -> None:
    """A receiver verifies the delivery with its own library, knows it by the event's id, and reads the event."""
    async with (
        receiving() as receiver,
        embedded_house(tmp_path, ["billing"]) as house,
        house.running(notifier(house, [hook("billing", receiver)])),
    ):
        event = await house.publish(rejected())
        await until(lambda: receiver.taken)
    ((headers, body),) = receiver.taken
    assert Webhook(SECRET).verify(body, headers)["id"] == headers["webhook-id"] == event.id
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"another").decode()).verify(body, headers)
    assert headers["Content-Type"] == CONTENT_TYPE
    delivered = events.decode(body)
    assert (delivered.data, delivered.source, delivered.subject) == (event.data, event.source, event.subject)
    assert headers["traceparent"].split("-")[1] == event.traceparent.split("-")[1]


async def test_a_dead_destination_delays_no_other(tmp_path: Path) -> None:
    """While one receiver hangs, with all its places taken, every event reaches the other at once."""
    async with receiving(HANG) as dead, receiving() as good, embedded_house(tmp_path, ["dead", "good"]) as house:
        destinations = [hook("dead", dead, concurrency=1, timeout_s=60), hook("good", good)]
        async with house.dying(notifier(house, destinations)):
            told = [await house.publish(rejected(f"task-{number}")) for number in range(20)]
            await until(lambda: len(good.taken) == 20 and dead.taken)
            assert set(good.ids) == {event.id for event in told}
            assert len(dead.taken) == 1
            assert (await house.broker.depths())[destination_queue("dead")] == 20


async def test_a_failed_delivery_is_repeated_under_the_same_id(tmp_path: Path) -> None:
    """A receiver that was down gets the event later, and can tell that it is the same."""
    async with receiving(503, 200) as receiver, embedded_house(tmp_path, ["billing"]) as house:
        async with house.running(notifier(house, [hook("billing", receiver)])):
            event = await house.publish(rejected())
            await until(lambda: retried(house, "billing") == 1)
            house.clock.ahead += timedelta(seconds=6)
            await until(lambda: len(receiver.taken) == 2)
        assert receiver.ids == [event.id, event.id]
        assert delivered(house, "billing", "retryable") == delivered(house, "billing", "delivered") == 1
        assert failing_since(house, "billing") == 0
        assert house.count("wavekeep_test_message_failures_total", reason="destination_failed") == 1


async def test_a_crash_between_delivery_and_ack_repeats_the_id(tmp_path: Path) -> None:
    """What was delivered when the process died may come twice, never under two names."""
    async with receiving(HANG, 200) as receiver:
        for ending in ("dying", "running"):
            async with embedded_house(tmp_path, ["billing"]) as house:
                service = notifier(house, [hook("billing", receiver)])
                async with getattr(house, ending)(service):
                    if ending == "dying":
                        event = await house.publish(rejected())
                        await until(lambda: len(receiver.taken) == 1)
                    else:
                        await until(lambda: len(receiver.taken) == 2)
    assert receiver.ids == [event.id, event.id]
    for headers, body in receiver.taken:
        Webhook(SECRET).verify(body, headers)


async def test_deliveries_end_after_the_time_that_was_set(tmp_path: Path) -> None:
    """A receiver that never answers well is given up after NOTIFY_GIVE_UP_AFTER: parked, counted, and logged."""
    async with receiving(410) as receiver, embedded_house(tmp_path, ["billing"]) as house:
        service = notifier(house, [hook("billing", receiver)], notify_give_up_after=timedelta(hours=1))
        with captured_logs() as lines:
            async with house.running(service):
                event = await house.publish(rejected())
                await until(lambda: retried(house, "billing") == 1)
                since = failing_since(house, "billing")
                house.clock.ahead += timedelta(minutes=30)
                await until(lambda: retried(house, "billing") == 2)
                assert failing_since(house, "billing") == since
                assert await house.parked(f"{NOTIFIER}.parked") == []
                house.clock.ahead += timedelta(minutes=31)
                await eventually(lambda: has_parked(house, Reason.DESTINATION_REFUSED))
        (kept,) = await house.parked(f"{NOTIFIER}.parked")
        assert (kept.event_id, kept.queue, kept.attempts) == (event.id, destination_queue("billing"), 2)
        assert kept.first_seen is not None
        assert kept.first_seen.timestamp() == pytest.approx(since)
        assert house.count("wavekeep_notifier_deliveries_given_up_total", destination="billing") == 1
        assert failing_since(house, "billing") == 0
        assert [line["destination"] for line in lines if line["event"] == "delivery.given_up"] == ["billing"]
        assert len(receiver.taken) == 3


async def test_what_was_parked_can_be_replayed(tmp_path: Path) -> None:
    """Once the receiver is mended, an operator's replay delivers what was given up."""
    async with receiving(500, 500, 200) as receiver, embedded_house(tmp_path, ["billing"]) as house:
        service = notifier(house, [hook("billing", receiver)], notify_give_up_after=timedelta(seconds=1))
        async with house.running(service):
            event = await house.publish(rejected())
            await until(lambda: retried(house, "billing") == 1)
            house.clock.ahead += timedelta(seconds=6)
            await eventually(lambda: has_parked(house, Reason.DESTINATION_FAILED))
            (kept,) = await house.parked(f"{NOTIFIER}.parked")
            assert await house.broker.replay(f"{NOTIFIER}.parked", [kept.id]) == 1
            await until(lambda: delivered(house, "billing", "delivered") == 1)
            assert receiver.ids == [event.id] * 3


async def test_an_unrecognised_callback_is_told_without_its_body(tmp_path: Path) -> None:
    """People learn that something came that nobody could read; what it was stays in its own queue."""
    async with receiving() as receiver, embedded_house(tmp_path, ["people", "billing"]) as house:
        destinations = [LogDestination(name="people", type="log"), hook("billing", receiver)]
        with captured_logs() as lines:
            async with house.running(notifier(house, destinations)):
                await house.publish(unrecognised("the raw b0dy"))
                await until(lambda: receiver.taken and [line for line in lines if line["event"] == "event.told"])
        assert b"b0dy" not in receiver.taken[0][1]
        assert "b0dy" not in str(lines)
        (kept,) = await house.parked("wavekeep.unrecognised")
        assert b"the raw b0dy" in kept.body


async def test_an_undecodable_message_is_parked(tmp_path: Path) -> None:
    """What is no event of ours bothers no destination and waits for a person."""
    async with receiving() as receiver, embedded_house(tmp_path, ["billing"]) as house:
        async with house.running(notifier(house, [hook("billing", receiver)])):
            await house.broker.publish(events.EVENTS_EXCHANGE, "conversion.stored", b"?", event_id="x")
            await eventually(lambda: has_parked(house, Reason.MESSAGE_MALFORMED))
        assert receiver.taken == []


async def test_the_secret_is_in_no_log(tmp_path: Path) -> None:
    """Deliveries that fail and succeed, through the whole service, show neither key nor address."""
    async with receiving(500, 200) as receiver, embedded_house(tmp_path, ["billing"]) as house:
        with captured_logs() as lines:
            async with house.running(notifier(house, [hook("billing", receiver)])):
                await house.publish(rejected())
                await until(lambda: retried(house, "billing") == 1)
                house.clock.ahead += timedelta(seconds=6)
                await until(lambda: delivered(house, "billing", "delivered") == 1)
    assert len(lines) >= 3
    assert SECRET.removeprefix("whsec_") not in str(lines)
    assert receiver.url not in str(lines)


async def test_a_bad_secret_stops_the_start(tmp_path: Path) -> None:
    """A notifier that could sign for one destination but not for another starts for neither."""
    async with receiving() as receiver, embedded_house(tmp_path, ["good", "bad"]) as house:
        service = notifier(house, [hook("good", receiver), hook("bad", receiver, secret="no base64")])
        with pytest.raises(StartError, match="destination bad"):
            await service.run(asyncio.Event())
        assert not house.broker.consuming(NOTIFIER)


def retried(house: EmbeddedHouse, destination: str) -> float:
    """Return how many deliveries were put off."""
    return house.count("wavekeep_test_messages_total", queue=destination_queue(destination), outcome="retried")


def delivered(house: EmbeddedHouse, destination: str, outcome: str) -> float:
    """Return how many deliveries went so."""
    return house.count("wavekeep_notifier_deliveries_total", destination=destination, outcome=outcome)


def failing_since(house: EmbeddedHouse, destination: str) -> float:
    """Return since when a destination takes nothing, in Unix seconds."""
    return house.count("wavekeep_notifier_failing_since_timestamp_seconds", destination=destination)


async def has_parked(house: EmbeddedHouse, reason: Reason) -> bool:
    """Tell whether exactly one message is parked, with this reason."""
    return [kept.reason for kept in await house.parked(f"{NOTIFIER}.parked")] == [reason]
