"""What every broker promises about publishing, handing out, settling and ending, whichever it is.

Responsible for: the contract of `shared/messaging/port.py`, on each implementation, from outside. What is out of
circulation is in `test_messaging_kept.py`.
"""

import asyncio
import time

import pytest

from shared.errors import NotRoutableError, PermanentError, Reason, RetryableError
from shared.messaging.port import Broker, Message
from shared.retry import Step
from tests.contract.brokers import (
    LADDER,
    Driver,
    Recorder,
    consuming,
    kill,
    listed,
    said,
    started,
    subscription,
    until,
    until_kept,
    worker,
)


async def publish(broker: Broker, driver: Driver, *bodies: bytes) -> None:
    """Publish reports, which go to the downloader's queue."""
    for body in bodies:
        await broker.publish(driver.name("intake"), "report.succeeded", body, event_id=f"id of {body.decode()}")


async def publish_for(broker: Broker, driver: Driver, key: str, *, seconds: float) -> None:
    """Publish again and again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        await broker.publish(driver.name("intake"), key, b"x", event_id="x")


async def test_a_confirmed_message_survives_its_publisher(driver: Driver) -> None:
    """When publish has returned, kill -9 of the process that published loses nothing."""
    async with worker(driver, "publish", driver.name("intake"), "report.succeeded", "one") as process:
        assert await said(process) == "published"
        await kill(process)
    handler = Recorder()
    async with started(driver.broker()) as broker, consuming(broker, subscription(driver.name("downloader"), handler)):
        await until(lambda: handler.bodies == [b"one"])
    message, _ = handler.seen[0]
    assert (message.event_id, message.queue, message.attempts) == ("event", driver.name("downloader"), 0)


async def test_a_killed_consumer_s_message_is_handed_out_again(driver: Driver) -> None:
    """A message is settled after its handler, never before: kill -9 in mid-handler repeats it."""
    queue = driver.name("downloader")
    async with started(driver.broker()) as broker:
        await publish(broker, driver, b"one")
    async with worker(driver, "take", queue) as process:
        assert await said(process) == "taken one"
        await kill(process)
    handler = Recorder()
    async with started(driver.broker()) as broker, consuming(broker, subscription(queue, handler)):
        await until(lambda: handler.bodies == [b"one"])
        assert handler.seen[0][0].redelivered
        await publish(broker, driver, b"two")
        await until(lambda: len(handler.seen) == 2)
    assert not handler.seen[1][0].redelivered


async def test_a_settled_message_does_not_come_again(driver: Driver) -> None:
    """What a handler returned from is forgotten, also by the next broker."""
    queue = driver.name("downloader")
    for body in (b"one", b"two"):
        handler = Recorder()
        async with started(driver.broker()) as broker, consuming(broker, subscription(queue, handler)):
            await publish(broker, driver, body)
            await until(lambda: handler.seen)  # noqa: B023 - awaited within the turn
        assert handler.bodies == [body]


async def test_patterns_decide_which_queues_take_a_message(driver: Driver) -> None:
    """Each service hears what it is bound to and nothing else; one event may reach several queues."""
    downloader, notifier = Recorder(), Recorder()
    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(driver.name("downloader"), downloader)),
        consuming(broker, subscription(driver.name("notifier"), notifier)),
    ):
        for exchange, key in (
            ("intake", "report.failed"),
            ("intake", "report.unrecognised"),
            ("events", "conversion.stored"),
            ("events", "file.damaged"),
        ):
            await broker.publish(driver.name(exchange), key, key.encode(), event_id=key)
        await until(lambda: len(downloader.seen) == 1 and len(notifier.seen) == 3)
        kept = await until_kept(broker, driver.name("unrecognised"))
    assert downloader.bodies == [b"report.failed"]
    assert set(notifier.bodies) == {b"report.unrecognised", b"conversion.stored", b"file.damaged"}
    assert [(k.body, k.event_id, k.queue, k.reason) for k in kept] == [
        (b"report.unrecognised", "report.unrecognised", "", None)
    ]


async def test_what_no_queue_takes_is_refused(driver: Driver) -> None:
    """A publish into the void raises instead of being confirmed."""
    async with started(driver.broker()) as broker:
        with pytest.raises(NotRoutableError) as caught:
            await broker.publish(driver.name("intake"), "report.unheard-of", b"x", event_id="x")
    assert caught.value.reason is Reason.NOT_ROUTABLE


async def test_a_missing_queue_is_noticed_though_another_one_takes_the_message(driver: Driver) -> None:
    """A publish that only some of the queues took is no success: it raises within 5 s of the queue's end."""
    async with started(driver.broker()):
        pass
    options = {} if driver.recipe["kind"] == "embedded" else {"declare": False}
    async with started(driver.broker(**options)) as broker:
        await broker.publish(driver.name("intake"), "report.unrecognised", b"x", event_id="x")
        assert broker.publishing()
        await driver.delete_queue(driver.name("unrecognised"))
        with pytest.raises(NotRoutableError, match="unrecognised"):
            await publish_for(broker, driver, "report.unrecognised", seconds=5)
        await publish(broker, driver, b"another queue is not concerned")


async def test_as_many_messages_are_in_hand_as_asked_for_and_no_more(driver: Driver) -> None:
    """Concurrency is a bound that is reached."""
    handler = Recorder()
    handler.gate.clear()
    async with started(driver.broker()) as broker:
        await publish(broker, driver, *(b"%d" % n for n in range(10)))
        async with consuming(broker, subscription(driver.name("downloader"), handler, concurrency=3)):
            await until(lambda: handler.in_hand == 3)
            handler.gate.set()
            await until(lambda: len(handler.seen) == 10)
    assert handler.most == 3
    assert sorted(handler.bodies) == [b"%d" % n for n in range(10)]


async def test_a_failure_goes_round_by_the_ladder_and_carries_its_history(driver: Driver) -> None:
    """Retries wait at least 80 % of their step, count, and remember the first reception and the latest reason."""
    handler = Recorder(RetryableError(Reason.TIMED_OUT, "too late"), RetryableError(Reason.BODY_CUT, "cut"))
    asked: list[int] = []

    def next_step(message: Message, _: Reason) -> Step:
        asked.append(message.attempts)
        return LADDER[message.attempts]

    async with (
        started(driver.broker(rng=lambda: 0.0)) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler, next_step=next_step)),
    ):
        await publish(broker, driver, b"one")
        await until(lambda: len(handler.seen) == 3)
    messages = [message for message, _ in handler.seen]
    moments = [moment for _, moment in handler.seen]
    assert asked == [0, 1]
    assert [m.attempts for m in messages] == [0, 1, 2]
    assert [m.last_reason for m in messages] == [None, Reason.TIMED_OUT, Reason.BODY_CUT]
    assert {m.first_seen for m in messages} == {messages[0].first_seen}
    assert {(m.body, m.event_id, m.queue, m.redelivered) for m in messages} == {
        (b"one", "id of one", driver.name("downloader"), False)
    }
    for step, before, after in zip(LADDER, moments, moments[1:], strict=False):
        assert 0.8 * step.seconds <= after - before < step.seconds + 5


async def test_a_waiting_message_blocks_no_other(driver: Driver) -> None:
    """While one message waits for its next attempt, those behind it are handled."""
    handler = Recorder(RetryableError(Reason.TIMED_OUT, "too late"))
    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler, next_step=lambda *_: LADDER[-1])),
    ):
        await publish(broker, driver, b"slow", b"quick", b"brown")
        await until(lambda: len(handler.seen) == 4)
    assert handler.bodies == [b"slow", b"quick", b"brown", b"slow"]


async def test_a_fault_of_ours_is_retried_as_unexpected(driver: Driver) -> None:
    """An error nobody foresaw costs an attempt, not the message."""
    handler = Recorder(ZeroDivisionError("a bug"))
    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler)),
    ):
        await publish(broker, driver, b"one")
        await until(lambda: len(handler.seen) == 2)
    assert handler.seen[1][0].last_reason is Reason.UNEXPECTED
    assert handler.seen[1][0].attempts == 1


async def test_the_end_of_the_ladder_is_told_and_then_parked(driver: Driver) -> None:
    """When there is no next step, whoever must know is told first, and the message is kept with its reason."""
    told: list[tuple[bytes, Reason, str]] = []

    async def on_give_up(message: Message, reason: Reason, detail: str) -> None:
        assert await listed(broker, driver.name("downloader.parked")) == []
        told.append((message.body, reason, detail))

    handler = Recorder(*[RetryableError(Reason.TIMED_OUT, "too late")] * 2)
    async with (
        started(driver.broker()) as broker,
        consuming(
            broker,
            subscription(
                driver.name("downloader"),
                handler,
                next_step=lambda message, _: None if message.attempts else LADDER[0],
                on_give_up=on_give_up,
            ),
        ),
    ):
        await publish(broker, driver, b"one")
        (kept,) = await until_kept(broker, driver.name("downloader.parked"))
    assert told == [(b"one", Reason.TIMED_OUT, "too late")]
    assert (kept.body, kept.event_id, kept.queue) == (b"one", "id of one", driver.name("downloader"))
    assert (kept.reason, kept.attempts) == (Reason.TIMED_OUT, 1)
    assert kept.first_seen is not None
    assert kept.parked_at is not None
    assert kept.first_seen < kept.parked_at


async def test_what_cannot_get_better_is_parked_at_once(driver: Driver) -> None:
    """A permanent error is not tried again, and the queue goes on."""
    handler = Recorder(PermanentError(Reason.MESSAGE_MALFORMED, "no JSON"))
    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler)),
    ):
        await publish(broker, driver, b"one", b"two")
        (kept,) = await until_kept(broker, driver.name("downloader.parked"))
        await until(lambda: len(handler.seen) == 2)
    assert (kept.body, kept.reason, kept.attempts) == (b"one", Reason.MESSAGE_MALFORMED, 0)
    assert handler.bodies == [b"one", b"two"]


async def test_what_cannot_be_told_yet_is_not_parked_yet(driver: Driver) -> None:
    """An on_give_up that raises sends the message round again; it is neither lost nor parked in silence."""
    errors: list[Exception] = [RetryableError(Reason.BROKER_UNAVAILABLE, "not now"), ZeroDivisionError("a bug")]

    async def on_give_up(_message: Message, _reason: Reason, _detail: str) -> None:
        if errors:
            raise errors.pop(0)

    handler = Recorder(*[PermanentError(Reason.NOT_WAV, "text")] * 3)
    async with (
        started(driver.broker()) as broker,
        consuming(broker, subscription(driver.name("downloader"), handler, on_give_up=on_give_up)),
    ):
        await publish(broker, driver, b"one")
        (kept,) = await until_kept(broker, driver.name("downloader.parked"))
    assert len(handler.seen) == 3
    assert (kept.reason, kept.attempts) == (Reason.NOT_WAV, 2)


async def test_a_message_in_hand_at_the_end_is_finished(driver: Driver) -> None:
    """Told to stop, consume takes nothing new and waits for what is in hand."""
    queue, handler, stop = driver.name("downloader"), Recorder(), asyncio.Event()
    handler.gate.clear()
    async with started(driver.broker()) as broker:
        await publish(broker, driver, b"one")
        task = asyncio.create_task(broker.consume(subscription(queue, handler, concurrency=2), stop=stop))
        await until(lambda: handler.in_hand)
        stop.set()
        assert await asyncio.wait({task}, timeout=0.3) == (set(), {task}), "it waits for what is in hand"
        await publish(broker, driver, b"two")
        assert await asyncio.wait({task}, timeout=0.3) == (set(), {task})
        handler.gate.set()
        await task
    after = Recorder()
    async with started(driver.broker()) as broker, consuming(broker, subscription(queue, after)):
        await until(lambda: after.seen)
    assert (handler.bodies, after.bodies) == ([b"one"], [b"two"])


async def test_a_message_that_takes_too_long_at_the_end_is_handed_back_uncounted(driver: Driver) -> None:
    """After the grace time the message is let go of, and comes again as if this attempt had not been."""
    queue, handler, stop = driver.name("downloader"), Recorder(), asyncio.Event()
    handler.gate.clear()
    async with started(driver.broker(grace_time_s=0.1)) as broker:
        await publish(broker, driver, b"one")
        task = asyncio.create_task(broker.consume(subscription(queue, handler), stop=stop))
        await until(lambda: handler.in_hand)
        stop.set()
        await task
        assert not handler.in_hand
    after = Recorder()
    async with started(driver.broker()) as broker, consuming(broker, subscription(queue, after)):
        await until(lambda: after.seen)
    (message, _), (first, _) = after.seen[0], handler.seen[0]
    assert (message.body, message.attempts, message.last_reason) == (b"one", 0, None)
    assert (message.redelivered, message.first_seen) == (False, first.first_seen)


async def test_close_may_be_asked_for_twice(driver: Driver) -> None:
    """Closing is idempotent, before and after a start."""
    broker = driver.broker()
    await broker.close()
    await broker.start()
    assert broker.publishing()
    await broker.close()
    await broker.close()
    assert not broker.publishing()
