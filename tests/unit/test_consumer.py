"""The consumer's heart, over a delivery that records and fails on demand: it settles last, once, and never gives up."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from shared.errors import BrokerError, BusyError, DeliveryLostError, PermanentError, Reason, RetryableError
from shared.messaging import consumer as module
from shared.messaging.consumer import Consumer
from shared.messaging.port import Message, Subscription, own_queue
from shared.metrics import MessagingMetrics
from shared.retry import Step

QUEUE = "wavekeep.downloader"
OTHER = "wavekeep.downloader.urgent"
LADDER = (Step("5s", 5), Step("30s", 30))
BUSY = BusyError(Reason.HOST_BUSY, "full")
LATE = RetryableError(Reason.TIMED_OUT, "too late")
REFUSED = BrokerError(Reason.PUBLISH_TIMED_OUT, "no confirmation")
LOST = DeliveryLostError(Reason.BROKER_UNAVAILABLE, "its channel is gone")


class FakeDelivery:
    """Notes how it was settled, after raising the errors it was given."""

    def __init__(self, *errors: Exception, attempts: int = 0) -> None:
        self.message = Message(
            body=b"", event_id="x", queue=QUEUE, attempts=attempts, first_seen=datetime(2026, 1, 1, tzinfo=UTC)
        )
        self._errors = list(errors)
        self.settled: list[object] = []

    async def ack(self) -> None:
        """Note it."""
        self._settle("ack")

    async def retry(self, step: Step, reason: Reason | None, *, queue: str | None = None) -> None:
        """Note it; with the queue where that is another one."""
        elsewhere = () if queue in {None, QUEUE} else (queue,)
        self._settle(("retry", step.name, reason, *elsewhere))

    async def forward(self, queue: str) -> None:
        """Note it."""
        self._settle(("forward", queue))

    async def park(self, reason: Reason) -> None:
        """Note it."""
        self._settle(("park", reason))

    def _settle(self, how: object) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.settled.append(how)


class House:
    """A consumer with its handler, its registry and the way to ask it."""

    def __init__(
        self,
        answer: BaseException | None = None,
        *,
        step: Step | Exception | None = LADDER[0],
        failure: Callable[[Message, Reason, int], Awaitable[None]] | None = None,
        give_up: Callable[[Message, Reason, str], Awaitable[None]] | None = None,
        grace_time_s: float = 5.0,
        brake_after: int = 20,
        lane: Callable[[Message, float], str] = own_queue,
    ) -> None:
        self._answer = answer
        self._step = step
        self.gate = asyncio.Event()
        self.gate.set()
        self.registry = CollectorRegistry()
        self.consumer = Consumer(
            Subscription(
                queue=QUEUE,
                handler=self._handle,
                concurrency=2,
                next_step=self._next,
                on_failure=failure,
                on_give_up=give_up,
                lane=lane,
            ),
            metrics=MessagingMetrics(self.registry, "test", [QUEUE]),
            grace_time_s=grace_time_s,
            brake_after=brake_after,
            ladder=LADDER,
        )

    async def process(self, delivery: FakeDelivery) -> list[object]:
        """Hand over one message, wait for its end, return how it was settled."""
        self.consumer.accept(delivery)
        await self.consumer.finish()
        return delivery.settled

    def count(self, outcome: str) -> float | None:
        """Return how many messages ended so."""
        labels = {"queue": QUEUE, "outcome": outcome}
        return self.registry.get_sample_value("wavekeep_test_messages_total", labels)

    def settle_failures(self) -> float | None:
        """Return how many settlements had to be tried again."""
        return self.registry.get_sample_value("wavekeep_test_settle_failures_total", {"queue": QUEUE})

    async def _handle(self, _: Message) -> None:
        await self.gate.wait()
        if self._answer is not None:
            raise self._answer

    def _next(self, _message: Message, _reason: Reason) -> Step | None:
        if isinstance(self._step, Exception):
            raise self._step
        return self._step


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settle again without waiting."""
    monkeypatch.setattr(module, "_SETTLE_AGAIN_AFTER_S", (0.0,))


@pytest.mark.parametrize(
    ("answer", "step", "settled", "outcome"),
    [
        (None, LADDER[0], "ack", "acked"),
        (LATE, LADDER[1], ("retry", "30s", Reason.TIMED_OUT), "retried"),
        (LATE, None, ("park", Reason.TIMED_OUT), "parked"),
        (PermanentError(Reason.NOT_WAV, "text"), LADDER[0], ("park", Reason.NOT_WAV), "parked"),
        (ZeroDivisionError(), LADDER[0], ("retry", "5s", Reason.UNEXPECTED), "retried"),
        (ZeroDivisionError(), None, ("park", Reason.UNEXPECTED), "parked"),
    ],
)
async def test_the_error_s_class_decides(
    answer: Exception | None, step: Step | None, settled: object, outcome: str
) -> None:
    """A handler returns or raises; what follows is decided here alone, and counted."""
    house = House(answer, step=step)
    assert await house.process(FakeDelivery()) == [settled]
    assert house.count(outcome) == 1


async def test_a_broken_next_step_costs_no_message() -> None:
    """A fault in choosing the delay sends the message round by the ladder instead of leaving it in hand for ever."""
    house = House(LATE, step=ZeroDivisionError())
    assert await house.process(FakeDelivery(attempts=1)) == [("retry", "30s", Reason.TIMED_OUT)]
    assert house.consumer.free == 2


async def test_giving_up_that_cannot_be_told_goes_round_again() -> None:
    """No message is parked before whoever must know was told."""

    async def give_up(_message: Message, _reason: Reason, _detail: str) -> None:
        raise REFUSED

    house = House(PermanentError(Reason.NOT_WAV, "text"), give_up=give_up)
    assert await house.process(FakeDelivery(attempts=7)) == [("retry", "30s", Reason.NOT_WAV)]
    assert house.count("parked") == 0


async def test_who_finds_no_place_is_put_off_uncounted() -> None:
    """Nothing was tried, so nothing has failed: neither the message's count nor the metric of failures grows."""
    house = House(BUSY, step=LADDER[1])
    assert await house.process(FakeDelivery(attempts=1)) == [("retry", "30s", None)]
    assert (house.count("put_off"), house.count("retried")) == (1, 0)
    assert house.registry.get_sample_value("wavekeep_test_message_failures_total", {"reason": "host_busy"}) == 0


async def test_who_finds_no_place_goes_to_its_own_lane_at_once() -> None:
    """Where another queue has places for it, it does not wait; also past the end, so that its last attempt is made."""
    house = House(BUSY, step=None, lane=lambda *_: OTHER)
    assert await house.process(FakeDelivery()) == [("forward", OTHER)]
    assert house.count("forwarded") == 1


async def test_putting_off_ends_too() -> None:
    """Where there is no other lane and no next step, a message is given up like any other."""
    assert await House(BUSY, step=None).process(FakeDelivery()) == [("park", Reason.HOST_BUSY)]


async def test_a_retry_returns_to_the_lane_of_that_moment() -> None:
    """The lane is asked for the moment when the message is looked at again; a counted failure is never forwarded."""
    asked: list[float] = []

    def lane(_: Message, after_s: float) -> str:
        asked.append(after_s)
        return OTHER

    house = House(LATE, step=LADDER[1], lane=lane)
    assert await house.process(FakeDelivery()) == [("retry", "30s", Reason.TIMED_OUT, OTHER)]
    assert asked == [30]


@pytest.mark.parametrize(
    ("answer", "reason", "failed"),
    [
        (LATE, Reason.TIMED_OUT, 3),
        (BUSY, Reason.HOST_BUSY, 2),
        (ZeroDivisionError(), Reason.UNEXPECTED, 3),
        (PermanentError(Reason.HOST_FORBIDDEN, "x"), Reason.HOST_FORBIDDEN, 3),
    ],
)
async def test_every_failure_is_told_to_whoever_watches(answer: Exception, reason: Reason, failed: int) -> None:
    """Also a fault of ours, what waits for a place, and what a group's brake puts off; telling it costs nothing."""
    told: list[tuple[Reason, int]] = []

    async def failure(_: Message, why: Reason, attempts: int) -> None:
        told.append((why, attempts))
        raise ZeroDivisionError

    house = House(answer, failure=failure, brake_after=0)
    (settled,) = await house.process(FakeDelivery(attempts=2))
    assert settled == ("retry", "5s", None if answer is BUSY else reason)
    assert told == [(reason, failed)]


@pytest.mark.parametrize("answer", [LATE, BUSY])
async def test_a_broken_lane_costs_no_message(answer: Exception) -> None:
    """A fault in choosing the lane leaves the message in its queue."""

    def lane(_message: Message, _after_s: float) -> str:
        raise ZeroDivisionError

    house = House(answer, lane=lane)
    reason = Reason.TIMED_OUT if answer is LATE else None
    assert await house.process(FakeDelivery()) == [("retry", "5s", reason)]


@pytest.mark.parametrize("answer", [None, LATE, PermanentError(Reason.NOT_WAV, "text")])
async def test_a_settlement_that_the_broker_does_not_take_is_tried_until_it_does(answer: Exception | None) -> None:
    """The message stays ours, and its handler is not asked again."""
    house = House(answer)
    assert len(await house.process(FakeDelivery(REFUSED, REFUSED, REFUSED))) == 1
    assert house.settle_failures() == 3


async def test_a_lost_delivery_is_let_go_of() -> None:
    """What the broker hands out again by itself is no longer ours: no crash, no further try, a count."""
    house = House()
    delivery = FakeDelivery(REFUSED, LOST)
    assert await house.process(delivery) == []
    assert (house.count("lost"), house.count("acked")) == (1, 0)
    assert house.consumer.free == 2


async def test_a_slot_is_taken_until_the_settlement_is_done() -> None:
    """In hand means until settled: a broker that refuses settlements slows consuming down."""
    house = House()
    house.gate.clear()
    house.consumer.accept(FakeDelivery())
    assert house.consumer.free == 1
    house.consumer.slot_freed.clear()
    house.gate.set()
    async with asyncio.timeout(5):
        await house.consumer.slot_freed.wait()
    assert house.consumer.free == 2


async def test_the_end_waits_for_what_is_in_hand() -> None:
    """Within the grace time a handler finishes, and its message is settled as it said."""
    house = House()
    house.gate.clear()
    delivery = FakeDelivery()
    house.consumer.accept(delivery)
    finishing = asyncio.create_task(house.consumer.finish())
    await asyncio.sleep(0)
    assert not finishing.done()
    house.gate.set()
    await finishing
    assert delivery.settled == ["ack"]


async def test_after_the_grace_time_the_rest_is_handed_back_uncounted() -> None:
    """The first delay step takes it, with no reason, so that no attempt counts; one that fails stops no other."""
    house = House(grace_time_s=0.01)
    house.gate.clear()
    refused, taken = FakeDelivery(REFUSED), FakeDelivery()
    house.consumer.accept(refused)
    house.consumer.accept(taken)
    await house.consumer.finish()
    assert taken.settled == [("retry", "5s", None)]
    assert refused.settled == []
    assert house.count("handed_back") == 1


async def test_abandoning_settles_nothing() -> None:
    """On the way out after a failure the broker hands out again what was in hand."""
    house = House()
    house.gate.clear()
    delivery = FakeDelivery()
    house.consumer.accept(delivery)
    await house.consumer.abandon()
    assert delivery.settled == []
    assert house.consumer.free == 2


async def test_a_settlement_that_fails_unforeseen_ends_the_consumer() -> None:
    """A message that can neither be settled nor handed out again is told by the process's end, not by silence."""
    house = House()
    delivery = FakeDelivery(ValueError("a fault of ours"))
    house.consumer.accept(delivery)
    async with asyncio.timeout(5):
        await house.consumer.failed.wait()
    with pytest.raises(ValueError, match="a fault of ours"):
        house.consumer.check()


async def test_a_handler_that_is_cancelled_by_nobody_ends_the_consumer() -> None:
    """Its message would stay in hand for ever."""
    house = House(asyncio.CancelledError())
    house.consumer.accept(FakeDelivery())
    async with asyncio.timeout(5):
        await house.consumer.failed.wait()
    with pytest.raises(RuntimeError, match="cancelled"):
        house.consumer.check()


async def test_an_orderly_end_is_no_failure() -> None:
    """What is cancelled after the grace time was cancelled by us."""
    house = House(grace_time_s=0.0)
    house.gate.clear()
    assert await house.process(FakeDelivery()) == [("retry", "5s", None)]
    house.consumer.check()
