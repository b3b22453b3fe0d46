"""Which broker a process uses.

Responsible for: turning settings into a built, not yet started broker with its topology, the notifier's destinations
included. It must not start it.
"""

from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.port import Broker
from shared.messaging.spool import SPOOL_TIMEOUT_S, spool_topology
from shared.messaging.spooled import SpooledBroker
from shared.messaging.topology import topology
from shared.metrics import MessagingMetrics, SpoolMetrics
from shared.settings import ServiceSettings


def build_broker(
    settings: ServiceSettings,
    *,
    name: str,
    metrics: MessagingMetrics,
    destinations: Sequence[str] = (),
    operator: bool = False,
    spooled: bool = False,
) -> Broker:
    """Build the broker that `WAVEKEEP_BROKER_URL` names.

    Args:
        name: of the process, as the broker's own lists show it.
        destinations: of the notifier, where this process is to declare and consume their queues.
        operator: for the command line, which works beside the services and declares nothing by the way.
        spooled: a spool takes what is published meanwhile, so that the broker is waited for as long as it takes.
    """
    path = settings.embedded_path
    if path is not None:
        return EmbeddedBroker(
            path,
            topology(destinations),
            metrics=metrics,
            owner=not operator,
            publish_timeout_s=settings.publish_timeout_s,
            grace_time_s=settings.grace_time_s,
            brake_after=settings.brake_after,
        )
    assert settings.broker_url is not None
    from shared.messaging.rabbitmq import START_TIMEOUT_S, RabbitBroker  # noqa: PLC0415 - large, and of no use beside an embedded queue

    return RabbitBroker(
        settings.broker_url.get_secret_value(),
        topology(destinations),
        metrics=metrics,
        name=f"wavekeep {name}",
        declare=settings.declare_topology and not operator,
        publish_timeout_s=settings.publish_timeout_s,
        start_timeout_s=None if spooled else START_TIMEOUT_S,
        grace_time_s=settings.grace_time_s,
        brake_after=settings.brake_after,
    )


def with_spool(
    broker: Broker,
    path: Path,
    *,
    registry: CollectorRegistry,
    service: str,
    max_messages: int,
    max_bytes: int,
    reserve_bytes: int | None,
) -> SpooledBroker:
    """Put a spool before a broker.

    Args:
        path: of the spool's file.
        registry: where the spool's metrics are registered.
        service: that the metrics are named after.
        max_messages: that the spool takes.
        max_bytes: of bodies that the spool takes.
        reserve_bytes: stays free on the spool's disk; None for the default.
    """

    def open_spool() -> EmbeddedBroker:
        unseen = MessagingMetrics(CollectorRegistry(), "spool")
        return EmbeddedBroker(path, spool_topology(), metrics=unseen, publish_timeout_s=SPOOL_TIMEOUT_S)

    metrics = SpoolMetrics(registry, service)
    return SpooledBroker(
        broker,
        path.parent,
        open_spool,
        metrics=metrics,
        max_messages=max_messages,
        max_bytes=max_bytes,
        reserve_bytes=reserve_bytes,
    )
