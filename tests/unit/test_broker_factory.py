"""The broker that the settings ask for gets every setting that it has, whichever it is."""

import pytest
from prometheus_client import CollectorRegistry

from shared.messaging.factory import build_broker
from shared.metrics import MessagingMetrics
from shared.settings import ServiceSettings

SHARED = {"publish_timeout_s": 1.5, "grace_time_s": 7.0, "brake_after": 3}


@pytest.mark.parametrize("url", ["embedded:///nowhere/queue.sqlite3", "amqp://localhost/"])
def test_every_setting_arrives(url: str) -> None:
    """What is set for one broker holds for the other: none of them has a value of its own."""
    settings = ServiceSettings.model_validate({"broker_url": url, **SHARED})
    broker = build_broker(settings, name="test", metrics=MessagingMetrics(CollectorRegistry(), "test"))
    assert {name: getattr(broker, f"_{name}") for name in SHARED} == SHARED
