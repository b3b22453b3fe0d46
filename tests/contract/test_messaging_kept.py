"""What every broker promises about messages out of circulation: nothing of them is ever lost by looking.

Responsible for: the port's `kept`, `take` and `replay`, and the parking of what keeps killing its process.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared.errors import PermanentError, Reason
from shared.messaging.port import Broker, Kept
from tests.contract.brokers import Driver, Recorder, consuming, crash, listed, started, subscription, until, until_kept

BODIES = {b"one", b"two", b"three"}


@asynccontextmanager
async def three_parked(driver: Driver) -> AsyncIterator[tuple[Broker, list[Kept]]]:
    """A broker with three parked messages."""
    handler = Recorder(*[PermanentError(Reason.NOT_WAV, "text")] * 3)
    async with started(driver.broker()) as broker:
        async with consuming(broker, subscription(driver.name("downloader"), handler)):
            for body in BODIES:
                await broker.publish(driver.name("intake"), "report.succeeded", body, event_id="same for all")
            kept = await until_kept(broker, driver.name("downloader.parked"), 3)
        yield broker, kept


async def test_looking_moves_nothing(driver: Driver) -> None:
    """Parked messages can be listed 30 times, and all are still there, under the same names."""
    async with three_parked(driver) as (broker, first):
        assert {kept.body for kept in first} == BODIES
        assert len({kept.id for kept in first}) == 3
        for _ in range(30):
            assert {k.id: k for k in await listed(broker, driver.name("downloader.parked"))} == {k.id: k for k in first}
        assert len([k async for k in broker.kept(driver.name("downloader.parked"), limit=2)]) == 2


async def test_taking_removes_what_was_named_after_its_action(driver: Driver) -> None:
    """Only what was named goes, each after its action; an action that fails keeps its message."""
    queue = driver.name("downloader.parked")
    acted: list[bytes] = []

    async def act(kept: Kept) -> None:
        if kept.id == third.id:
            raise PermanentError(Reason.UNEXPECTED, "not that one")
        acted.append(kept.body)

    async with three_parked(driver) as (broker, (first, second, third)):
        assert await broker.take(queue, [second.id, "unknown"], act) == 1
        assert acted == [second.body]
        with pytest.raises(PermanentError):
            await broker.take(queue, [third.id], act)
        left = await until_kept(broker, queue, 2)
        assert {kept.id for kept in left} == {first.id, third.id}
        assert await broker.take(queue, [], act) == 0


async def test_a_replayed_message_returns_to_its_queue_as_new(driver: Driver) -> None:
    """Replay forgets the attempts, the reason and the first reception, and tells how many it moved."""
    queue, handler = driver.name("downloader.parked"), Recorder()
    async with three_parked(driver) as (broker, (first, second, _)):
        async with consuming(broker, subscription(driver.name("downloader"), handler)):
            assert await broker.replay(queue, [first.id, second.id, "unknown"]) == 2
            await until(lambda: len(handler.seen) == 2)
        assert len(await until_kept(broker, queue, 1)) == 1
    assert set(handler.bodies) == {first.body, second.body}
    message = handler.seen[0][0]
    assert (message.event_id, message.attempts, message.last_reason) == ("same for all", 0, None)
    assert message.redelivered is False
    assert first.first_seen is not None
    assert message.first_seen > first.first_seen


async def test_what_never_was_in_a_work_queue_is_not_replayed(driver: Driver) -> None:
    """An unrecognised callback has no queue to return to: it stays where it is."""
    queue = driver.name("unrecognised")
    async with started(driver.broker()) as broker:
        await broker.publish(driver.name("intake"), "report.unrecognised", b"what?", event_id="x")
        (kept,) = await until_kept(broker, queue)
        assert await broker.replay(queue, [kept.id]) == 0
        assert await until_kept(broker, queue) == [kept]


async def test_a_message_that_kills_its_process_again_and_again_is_parked(driver: Driver) -> None:
    """A crash loop ends by itself: the message is parked with the reason delivery_limit, and can be replayed."""
    work, parked = driver.name("downloader"), driver.name("downloader.parked")
    async with started(driver.broker()) as broker:
        await broker.publish(driver.name("intake"), "report.succeeded", b"poison", event_id="x")
    crashes = await crash(driver, work, parked)
    assert crashes >= driver.crash_limit
    async with started(driver.broker()) as broker:
        (kept,) = await listed(broker, parked)
    assert (kept.body, kept.event_id, kept.reason, kept.queue) == (b"poison", "x", Reason.DELIVERY_LIMIT, work)
    async with started(driver.broker()) as broker, consuming(broker, subscription(work, healed := Recorder())):
        assert await broker.replay(parked, [kept.id]) == 1
        await until(lambda: healed.bodies == [b"poison"])
