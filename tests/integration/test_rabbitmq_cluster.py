"""Several nodes that are one broker, and a broker that is named by several URLs."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from shared.errors import BrokerError
from shared.messaging.rabbitmq import RabbitBroker, find_missing
from shared.messaging.topology import Binding, Topology, kept_queue
from shared.metrics import MessagingMetrics
from simulator.rabbitmq_cluster import RabbitCluster
from simulator.rabbitmq_local import free_ports
from simulator.rabbitmq_server import GIVEN_URL

_TOPOLOGY = Topology(
    exchanges=("cluster.test",),
    queues=(kept_queue("cluster.test"),),
    bindings=(Binding("cluster.test", "#", "cluster.test"),),
)


@pytest.fixture
def cluster() -> Iterator[RabbitCluster]:
    """Three nodes that are one broker; gone after the test."""
    if GIVEN_URL in os.environ:
        pytest.skip(f"the broker of {GIVEN_URL} is somebody else's, and no nodes are started here")
    with RabbitCluster() as started:
        yield started


@pytest.mark.slow
@pytest.mark.rabbitmq
async def test_a_killed_node_is_missed_by_nobody_and_comes_back(cluster: RabbitCluster) -> None:
    """A publisher that knows all nodes goes on at another one, and what was confirmed is on each of them."""
    async with _publisher(cluster.amqp_urls) as broker:
        await broker.publish("cluster.test", "before", b"before", event_id="1")
        cluster.nodes[0].kill()
        await _publish_until_confirmed(broker, b"after")
    cluster.nodes[0].start()
    cluster.await_all()
    for node in cluster.nodes:
        async with _publisher(node.amqp_url) as broker:
            bodies = [kept.body async for kept in broker.kept("cluster.test")]
            assert list(dict.fromkeys(bodies)) == [b"before", b"after"]


async def test_a_node_that_cannot_be_reached_is_passed_over(rabbitmq_url: str) -> None:
    """Services and the command line come to work at once by the next URL."""
    (port,) = free_ports(1)
    urls = f"amqp://guest:guest@127.0.0.1:{port}/,{rabbitmq_url}"
    assert await find_missing(urls, _TOPOLOGY) == {"cluster.test"}
    async with _publisher(urls, Topology((), (), ())) as broker:
        assert broker.publishing()


@asynccontextmanager
async def _publisher(urls: str, topology: Topology = _TOPOLOGY) -> AsyncIterator[RabbitBroker]:
    metrics = MessagingMetrics(CollectorRegistry(), "test")
    broker = RabbitBroker(urls, topology, metrics=metrics, name="test")
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


async def _publish_until_confirmed(broker: RabbitBroker, body: bytes) -> None:
    """Publish as a caller does whose publish may fail: again, until it is confirmed."""
    async with asyncio.timeout(30):
        while True:
            try:
                await broker.publish("cluster.test", "key", body, event_id="2")
            except BrokerError:
                await asyncio.sleep(0.1)
            else:
                return
