"""The spool before a broker: durable either way, or an error.

Responsible for: the promise that a publish which returned is in the broker or on disk, whatever either of them does.
The broker is a fake that confirms, refuses or hangs on demand; the spool is real, in a temporary folder.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from shared.errors import BrokerError, Reason
from shared.events import EVENTS_EXCHANGE, INTAKE_EXCHANGE
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.spool import spool_topology
from shared.messaging.spooled import SpooledBroker
from shared.metrics import MessagingMetrics, SpoolMetrics
from tests.integration.embedded_house import until

KEY = "report.failed"


class FakeBroker:
    """Confirms what it is given, unless told to refuse, to hang, or to be away."""

    def __init__(self) -> None:
        self.confirmed: list[str] = []
        self.asked = 0
        self.there = True
        self.error: BrokerError | None = None
        self.confirming = asyncio.Event()
        self.confirming.set()

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to close."""

    async def watch(self) -> None:
        """Never fails of itself."""
        await asyncio.Event().wait()

    def publishing(self) -> bool:
        """As told."""
        return self.there

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """Confirm, refuse or hang, as told."""
        self.asked += 1
        await self.confirming.wait()
        if self.error is not None:
            raise self.error
        self.confirmed.append(event_id)


def body(number: int) -> bytes:
    """Return an envelope the relay can route."""
    return (
        b'{"specversion": "1.0", "id": "%d", "source": "wavekeep/kie", "type": "wavekeep.report.failed.v1",'
        b' "subject": "kie/x", "time": "2026-01-01T00:00:00Z", "data": {}}' % number
    )


@asynccontextmanager
async def spooled(
    path: Path, broker: Any, *, registry: CollectorRegistry | None = None, **limits: Any
) -> AsyncIterator[SpooledBroker]:
    """Run a spool over a file before a broker; its metrics are those of a service called `test`."""

    def open_spool() -> EmbeddedBroker:
        return EmbeddedBroker(path, spool_topology(), metrics=MessagingMetrics(CollectorRegistry(), "spool"))

    bounds: dict[str, Any] = {"max_messages": 1_000, "max_bytes": 1_000_000, "probe_every_s": 0.05} | limits
    metrics = SpoolMetrics(registry or CollectorRegistry(), "test")
    spool = SpooledBroker(broker, path.parent, open_spool, metrics=metrics, **bounds)
    await spool.start()
    try:
        yield spool
    finally:
        await spool.close()


async def publish(spool: SpooledBroker, number: int) -> None:
    """Publish one report."""
    await spool.publish(INTAKE_EXCHANGE, KEY, body(number), event_id=str(number))


async def test_confirmed_publishes_never_touch_the_spool(tmp_path: Path) -> None:
    """While the broker confirms, it is the one place where messages are."""
    broker = FakeBroker()
    async with spooled(tmp_path / "spool", broker) as spool:
        for number in range(5):
            await publish(spool, number)
    assert broker.confirmed == ["0", "1", "2", "3", "4"]


async def test_what_the_broker_refuses_is_spooled_and_relayed_in_order(tmp_path: Path) -> None:
    """Each publish returns though the broker is refusing, and all arrive, in order, once it confirms again."""
    broker = FakeBroker()
    broker.error = BrokerError(Reason.PUBLISH_TIMED_OUT, "no confirmation")
    async with spooled(tmp_path / "spool", broker) as spool:
        for number in range(250):
            await publish(spool, number)
        assert broker.confirmed == []
        broker.error = None
        await until(lambda: len(broker.confirmed) >= 250)
        await until(lambda: spool.waiting == 0)
    assert broker.confirmed == [str(number) for number in range(250)]


async def test_after_one_failure_it_goes_straight_to_the_spool(tmp_path: Path) -> None:
    """A broker that hangs costs one publish its time-out, not each."""
    broker = FakeBroker()
    broker.error = BrokerError(Reason.PUBLISH_TIMED_OUT, "no confirmation")
    async with spooled(tmp_path / "spool", broker, probe_every_s=60.0) as spool:
        for number in range(20):
            await publish(spool, number)
        assert broker.asked <= 2  # the first publish, and the one look of the relay within this time


async def test_a_broker_that_is_away_costs_nothing(tmp_path: Path) -> None:
    """Where the connection is known to be lost, the spool takes at once."""
    broker = FakeBroker()
    broker.there = False
    async with spooled(tmp_path / "spool", broker) as spool:
        await publish(spool, 0)
        assert broker.asked == 0
        assert spool.publishing()


async def test_what_waits_survives_the_process(tmp_path: Path) -> None:
    """A later process relays what an earlier one spooled."""
    away, back = FakeBroker(), FakeBroker()
    away.there = False
    async with spooled(tmp_path / "spool", away) as spool:
        for number in range(3):
            await publish(spool, number)
    async with spooled(tmp_path / "spool", back):
        await until(lambda: len(back.confirmed) == 3)
    assert back.confirmed == ["0", "1", "2"]


@pytest.mark.parametrize("limits", [{"max_messages": 2}, {"max_bytes": 2 * len(body(0))}], ids=["count", "bytes"])
async def test_a_full_spool_refuses(tmp_path: Path, limits: dict[str, Any]) -> None:
    """Beyond its bounds nothing is promised: the publish raises, and readiness tells."""
    broker = FakeBroker()
    broker.there = False
    async with spooled(tmp_path / "spool", broker, **limits) as spool:
        await publish(spool, 0)
        await publish(spool, 1)
        with pytest.raises(BrokerError) as refused:
            await publish(spool, 2)
        assert refused.value.reason == Reason.STORAGE_FULL
        broker.there = True
        await until(lambda: broker.confirmed == ["0", "1"])
        await until(spool.publishing)
        await publish(spool, 3)


async def test_a_failed_disk_closes_the_spool_until_a_probe_was_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error of the disk nothing is taken, until a newly opened file kept a row and gave it back."""
    broker = FakeBroker()
    broker.there = False
    async with spooled(tmp_path / "spool", broker) as spool:
        await publish(spool, 0)

        async def fail(*_: Any, **__: Any) -> None:
            raise BrokerError(Reason.BROKER_UNAVAILABLE, "disk I/O error")

        with monkeypatch.context() as patched:
            patched.setattr(EmbeddedBroker, "publish", fail)
            for number in (1, 2):
                with pytest.raises(BrokerError) as refused:
                    await publish(spool, number)
                assert refused.value.reason == Reason.STORAGE_FAILED
            assert not spool.publishing()
        await until(spool.publishing)
        await publish(spool, 3)
        broker.there = True
        await until(lambda: broker.confirmed == ["0", "3"])


async def test_outstanding_publishes_are_bounded(tmp_path: Path) -> None:
    """A broker that hangs holds so many publishes and no more; the next one is durable at once."""
    broker = FakeBroker()
    broker.confirming.clear()
    async with spooled(tmp_path / "spool", broker, max_outstanding=3, probe_every_s=60.0) as spool:
        held = [asyncio.create_task(publish(spool, number)) for number in range(3)]
        await until(lambda: broker.asked == 3)
        await publish(spool, 3)
        assert broker.asked == 3
        assert not any(task.done() for task in held)
        broker.confirming.set()
        await asyncio.gather(*held)


async def test_only_reports_are_spooled(tmp_path: Path) -> None:
    """What has a message of its own to be tried again with is refused, not hidden away."""
    broker = FakeBroker()
    broker.error = BrokerError(Reason.PUBLISH_REFUSED, "no")
    async with spooled(tmp_path / "spool", broker) as spool:
        with pytest.raises(BrokerError):
            await spool.publish(EVENTS_EXCHANGE, "conversion.stored", b"{}", event_id="e")
        assert spool.waiting == 0


async def test_a_disk_that_hangs_holds_up_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool's time-out ends the publish, though its file cannot even be closed; the next is refused at once."""
    broker, freed = FakeBroker(), asyncio.Event()
    broker.there = False
    close = EmbeddedBroker.close

    async def hang(self: EmbeddedBroker) -> None:
        await freed.wait()
        await close(self)

    async def time_out(*_: Any, **__: Any) -> None:
        raise BrokerError(Reason.PUBLISH_TIMED_OUT, "the disk did not take it")

    async with spooled(tmp_path / "spool", broker) as spool:
        with monkeypatch.context() as patched:
            patched.setattr(EmbeddedBroker, "close", hang)
            patched.setattr(EmbeddedBroker, "publish", time_out)
            async with asyncio.timeout(5):
                for number in range(2):
                    with pytest.raises(BrokerError):
                        await publish(spool, number)
            freed.set()
        await until(spool.publishing)
        await publish(spool, 2)


class PickyBroker(FakeBroker):
    """Refuses what goes out under one key, as a node does whose queue of it is full."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.refused: str | None = key
        self.refusals = 0

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """Confirm all but that key."""
        if routing_key == self.refused:
            self.refusals += 1
            raise BrokerError(Reason.PUBLISH_REFUSED, "is a queue full?")
        await super().publish(exchange, routing_key, body, event_id=event_id)


UNRECOGNISED = "report.unrecognised"


async def publish_unrecognised(spool: SpooledBroker, number: int) -> None:
    """Publish one report of another kind."""
    content = body(number).replace(KEY.encode(), UNRECOGNISED.encode())
    await spool.publish(INTAKE_EXCHANGE, UNRECOGNISED, content, event_id=str(number))


async def test_a_refused_key_holds_up_no_other(tmp_path: Path) -> None:
    """A full queue is a fact about one routing key: all others still go straight to the broker."""
    broker, registry = PickyBroker(UNRECOGNISED), CollectorRegistry()
    async with spooled(tmp_path / "spool", broker, registry=registry) as spool:
        for number in range(3):
            await publish_unrecognised(spool, number)
        for number in range(3, 6):
            await publish(spool, number)
        assert broker.confirmed == ["3", "4", "5"]
        assert spool.waiting == 3
        await until(lambda: broker.refusals >= 2)
        assert registry.get_sample_value("wavekeep_test_spool_direct") == 1
        broker.refused = None
        await until(lambda: spool.waiting == 0)
        await publish_unrecognised(spool, 6)
    assert broker.confirmed[3:] == ["0", "1", "2", "6"]


async def test_the_relay_gets_past_any_number_of_refused_messages(tmp_path: Path) -> None:
    """What waits behind several pages of a refused key is moved on; that key is asked for once a round at most."""
    broker = PickyBroker(UNRECOGNISED)
    broker.there = False
    async with spooled(tmp_path / "spool", broker) as spool:
        for number in range(450):
            await (publish_unrecognised if number % 50 else publish)(spool, number)
        broker.there = True
        await until(lambda: spool.waiting == 441)
        assert broker.confirmed == [str(number) for number in range(0, 450, 50)]
        await until(lambda: broker.refusals >= 3)
        await publish_unrecognised(spool, 450)
        await publish(spool, 451)
        assert broker.confirmed[-1] == "451"
        assert broker.refusals <= 12, "asked for once a try, whatever waits"
        await until(lambda: spool._refused[UNRECOGNISED].delay_s >= 0.4)  # left alone for longer and longer
        broker.refused = None
        await until(lambda: spool.waiting == 0)
    assert broker.confirmed[10:] == [str(number) for number in range(451) if number % 50 or number == 450]


async def test_a_message_that_is_none_of_ours_holds_up_nothing(tmp_path: Path) -> None:
    """A body that cannot be routed is refused like any, and the next ones pass it by."""
    broker = PickyBroker("")
    broker.there = False
    async with spooled(tmp_path / "spool", broker) as spool:
        await spool.publish(INTAKE_EXCHANGE, KEY, b"\xff", event_id="0")
        await publish(spool, 1)
        broker.there = True
        await until(lambda: broker.confirmed == ["1"])
        assert spool.waiting == 1


async def test_going_over_to_the_spool_is_told_whatever_the_cause(tmp_path: Path) -> None:
    """Once when the first callback is spooled, though the line is simply gone; once when it is empty again."""
    broker = FakeBroker()
    with capture_logs() as lines:
        async with spooled(tmp_path / "spool", broker) as spool:
            await publish(spool, 0)
            broker.there = False
            await publish(spool, 1)
            await publish(spool, 2)
            assert [line["event"] for line in lines] == ["spool.entered"]
            assert lines[0]["reason"] == Reason.BROKER_UNAVAILABLE
            broker.there = True
            await until(lambda: len(lines) == 2)
            assert lines[1]["event"] == "spool.left"
            assert broker.confirmed == ["0", "1", "2"]


async def test_a_failed_disk_does_not_keep_a_broker_that_confirms_again_from_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With messages in a file that can no longer be opened, publishes go to the broker as soon as it is well."""
    broker = FakeBroker()
    async with spooled(tmp_path / "spool", broker) as spool:
        broker.error = BrokerError(Reason.PUBLISH_TIMED_OUT, "no confirmation")
        await publish(spool, 0)

        async def fail(*_: Any, **__: Any) -> None:
            raise BrokerError(Reason.BROKER_UNAVAILABLE, "disk I/O error")

        with monkeypatch.context() as patched:
            patched.setattr(EmbeddedBroker, "publish", fail)
            with pytest.raises(BrokerError):
                await publish(spool, 1)
            broker.error = None
            await until(spool.publishing)
            await publish(spool, 2)
            assert "2" in broker.confirmed
        await until(lambda: spool.waiting == 0 and set(broker.confirmed) == {"0", "2"})


class LateBroker(FakeBroker):
    """Connects when it is let, and then fails for good; before that it has nothing to watch."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()

    async def start(self) -> None:
        """Wait until it is let."""
        await self.let.wait()

    async def watch(self) -> None:
        """Fail, once connected."""
        if self.let.is_set():
            raise RuntimeError("out of order")


async def test_a_broker_that_fails_for_good_ends_the_process(tmp_path: Path) -> None:
    """What the broker's own tasks raise comes through the spool, also when it was connected to late."""
    broker = LateBroker()
    broker.there = False
    async with spooled(tmp_path / "spool", broker) as spool:
        watching = asyncio.create_task(spool.watch())
        await publish(spool, 0)
        broker.let.set()
        async with asyncio.timeout(5):
            with pytest.raises(ExceptionGroup) as failed:
                await watching
        assert failed.group_contains(RuntimeError, match="out of order")
