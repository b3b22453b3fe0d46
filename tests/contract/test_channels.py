"""What every channel promises: it succeeds or raises a classified error, and never leaks a secret."""

import asyncio
import base64
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import get_args

import pytest

from notifier.app import build_channel
from notifier.channels import Channel
from notifier.settings import Destination, LogDestination, WebhookDestination
from shared.errors import Reason, RetryableError, WavekeepError
from tests.integration.receivers import HANG, REDIRECT, Receiver, event, receiving
from tests.log_capture import captured_logs

KEY = b"k3y-that-signs-and-is-never-seen"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
URL_SECRET = "t0ken-in-the-address"
SECRETS = (SECRET, SECRET.removeprefix("whsec_"), KEY.decode(), URL_SECRET)


def log(_: Receiver) -> Destination:
    """Return a destination in the log."""
    return LogDestination(name="people", type="log")


def webhook(receiver: Receiver) -> Destination:
    """Return a destination with every secret it can have."""
    return WebhookDestination.model_validate(
        {
            "name": "billing",
            "type": "webhook",
            "url": f"{receiver.url}/{URL_SECRET}?key={URL_SECRET}",
            "secret": SECRET,
            "timeout_s": 0.2,
        }
    )


CHANNELS: dict[type, Callable[[Receiver], Destination]] = {LogDestination: log, WebhookDestination: webhook}


@asynccontextmanager
async def started(destination: Destination) -> AsyncIterator[Channel]:
    """Run the channel of a destination."""
    channel = build_channel(destination, lambda: datetime.now(UTC))
    await channel.start()
    try:
        yield channel
    finally:
        await channel.close()


def test_every_kind_of_destination_is_tried_here() -> None:
    """A new channel cannot escape this suite."""
    assert set(CHANNELS) == set(get_args(Destination))


@pytest.mark.parametrize("make", CHANNELS.values(), ids=lambda make: make.__name__)
@pytest.mark.parametrize("status", [200, 204, REDIRECT, 400, 401, 404, 410, 429, 500, 503, HANG, None])
async def test_no_channel_leaks_a_secret(make: Callable[[Receiver], Destination], status: int | None) -> None:
    """However a delivery goes, neither log, error, its causes nor any representation shows a secret."""
    shown: list[str] = []
    with captured_logs() as lines:
        async with receiving(200 if status is None else status) as receiver:
            destination = make(receiver)
            async with started(destination) as channel:
                if status is not None:
                    shown += await outcome(channel)
        if status is None:  # nobody listens there any more
            async with started(destination) as channel:
                shown += await outcome(channel)
    shown += [
        str(lines),
        repr(lines),
        repr(destination),
        str(destination),
        repr(channel),
        destination.model_dump_json(),
    ]
    for text in shown:
        for secret in (*SECRETS, f"127.0.0.1:{receiver.port}", str(("127.0.0.1", receiver.port))):
            assert secret not in text


async def outcome(channel: Channel) -> list[str]:
    """Return everything an error of a delivery could show."""
    try:
        await channel.deliver(event())
    except WavekeepError as error:
        return [str(error), repr(error), "".join(traceback.format_exception(error))]
    return []


@pytest.mark.parametrize("make", CHANNELS.values(), ids=lambda make: make.__name__)
async def test_a_channel_can_be_cancelled_and_closed(make: Callable[[Receiver], Destination]) -> None:
    """The end of the process in the middle of a delivery takes no longer than letting go."""
    async with receiving(HANG) as receiver, started(make(receiver)) as channel:
        task = asyncio.create_task(channel.deliver(event()))
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await task
        assert task.done()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (301, Reason.DESTINATION_REFUSED),
        (REDIRECT, Reason.DESTINATION_REFUSED),
        (400, Reason.DESTINATION_REFUSED),
        (401, Reason.DESTINATION_REFUSED),
        (404, Reason.DESTINATION_REFUSED),
        (410, Reason.DESTINATION_REFUSED),
        (429, Reason.DESTINATION_REFUSED),
        (500, Reason.DESTINATION_FAILED),
        (503, Reason.DESTINATION_FAILED),
        (599, Reason.DESTINATION_FAILED),
        (HANG, Reason.DESTINATION_UNREACHABLE),
    ],
)
async def test_whatever_a_webhook_answers_it_is_tried_again(status: int, reason: Reason) -> None:
    """Anything but 2xx in time is worth another try, under a closed reason; redirects are not followed."""
    async with receiving(status) as receiver, started(webhook(receiver)) as channel:
        with pytest.raises(RetryableError) as caught:
            await channel.deliver(event())
        assert caught.value.reason is reason
        assert receiver.paths == [f"/hook/{URL_SECRET}?key={URL_SECRET}"]


async def test_a_webhook_nobody_listens_to_is_tried_again() -> None:
    """A receiver that is down is told apart from one that refuses."""
    async with receiving() as receiver:
        destination = webhook(receiver)
    async with started(destination) as channel:
        with pytest.raises(RetryableError) as caught:
            await channel.deliver(event())
    assert caught.value.reason is Reason.DESTINATION_UNREACHABLE


@pytest.mark.parametrize("status", [200, 202, 204, 299])
async def test_any_2xx_is_a_delivery(status: int) -> None:
    """The receiver's own choice among the statuses of success does not matter."""
    async with receiving(status) as receiver, started(webhook(receiver)) as channel:
        await channel.deliver(event())
        assert len(receiver.taken) == 1
