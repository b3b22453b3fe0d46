"""The spool before a real RabbitMQ: one that comes late, and one whose queue of one kind is full.

Responsible for: what the fake broker of `tests/contract/test_spooled.py` cannot show: how `RabbitBroker` starts behind
a spool, and what a bounded queue answers.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

from ingress.settings import IngressSettings
from shared.messaging import rabbitmq
from shared.messaging.factory import build_broker
from shared.messaging.rabbitmq import RabbitBroker
from shared.messaging.topology import DOWNLOADER, UNRECOGNISED, topology
from simulator.rabbitmq_node import RabbitNode, private_node
from simulator.rabbitmq_server import GIVEN_URL
from tests.contract.brokers import Recorder, listed, metrics, subscription
from tests.contract.test_spooled import body, publish, publish_unrecognised, spooled
from tests.faults.surroundings import Proxy
from tests.integration.embedded_house import until

pytestmark = pytest.mark.rabbitmq


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitNode]:
    """A node for this file, which may be bounded by a policy."""
    if GIVEN_URL in os.environ:
        pytest.skip(f"the broker of {GIVEN_URL} is somebody else's and must not be bounded")
    with private_node() as node:
        yield node


async def test_consumers_behind_a_spool_wait_for_a_broker_that_comes_late(
    node: RabbitNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing at its address at first, consumers neither end nor are started again: they begin when it comes."""
    proxy = Proxy(tmp_path)
    handler, stop = Recorder(), asyncio.Event()
    monkeypatch.setattr(rabbitmq, "START_TIMEOUT_S", 0.5)  # which is not to hold behind a spool
    url = URL(node.amqp_url).with_port(proxy.port)
    settings = IngressSettings(broker_url=SecretStr(str(url)), data_dir=tmp_path)
    broker = build_broker(settings, name="test", metrics=metrics(), spooled=settings.spool_path is not None)
    with capture_logs() as lines:
        async with spooled(tmp_path / "spool", broker) as spool:
            watching = asyncio.create_task(spool.watch())
            consuming = asyncio.create_task(spool.consume(subscription(DOWNLOADER, handler), stop=stop))
            try:
                await publish(spool, 0)
                await until(lambda: len(lines) > 12)  # several tries of both lines, each later than the last
                assert not consuming.done()
                assert not watching.done()
                with proxy.before(str(URL(node.amqp_url).with_user(None))):
                    await until(lambda: handler.bodies == [body(0)], deadline_s=40)
                    stop.set()
                    await consuming
            finally:
                for task in (consuming, watching):
                    task.cancel()
                await asyncio.wait({consuming, watching})


async def test_a_full_queue_of_one_kind_holds_up_no_other(node: RabbitNode, tmp_path: Path) -> None:
    """A policy bounds one queue: what it refuses waits in the spool, all else is confirmed."""
    broker = RabbitBroker(node.amqp_url, topology(), metrics=metrics(), name="test", settle_s=0.0)
    async with spooled(tmp_path / "spool", broker, probe_every_s=0.2) as spool:
        await until(broker.publishing)
        policy = ("set_policy", "full", f"^{UNRECOGNISED}$", '{"max-length": 1}', "--apply-to", "queues")
        await asyncio.to_thread(node.ctl, *policy)
        count = 0
        while not spool.waiting:
            assert count < 50, "the queue is full before"
            await publish_unrecognised(spool, count)
            count += 1
        for number in range(100, 110):
            await publish(spool, number)
        for number in range(count, count + 3):
            await publish_unrecognised(spool, number)
        assert spool.waiting == 4, "none of the others"
        await asyncio.to_thread(node.ctl, *policy[:3], '{"max-length": 100000}', *policy[4:])
        await until(lambda: spool.waiting == 0)
        kept = {message.event_id for message in await listed(broker, UNRECOGNISED)}
        assert kept == {str(number) for number in range(count + 3)}
