"""The ingress, put together.

Responsible for: the one place where its parts meet. Every default can be replaced by keyword. Building touches
neither network nor disk.
"""

import asyncio
from collections.abc import Mapping
from functools import partial

import structlog
from prometheus_client import CollectorRegistry

from ingress.connection import BACKLOG, EdgeRunner
from ingress.descriptors import affordable
from ingress.http import build_app, refuse
from ingress.intake import Intake
from ingress.metrics import IngressMetrics
from ingress.settings import IngressSettings
from shared import lifecycle
from shared.clock import Clock, system_clock
from shared.messaging.factory import build_broker, with_spool
from shared.messaging.port import Broker, Publisher
from shared.metrics import MessagingMetrics
from shared.operations import serving
from shared.settings import load

log = structlog.get_logger()


class Ingress:
    """Serves callbacks until told to stop.

    Raises:
        StartError: no vendor has a secret.
    """

    def __init__(
        self,
        settings: IngressSettings,
        publisher: Publisher,
        registry: CollectorRegistry,
        *,
        clock: Clock = system_clock,
    ) -> None:
        self._settings = settings
        self._metrics = IngressMetrics(registry)
        self._credentials = settings.credentials()
        intake = Intake(
            publisher,
            credentials=self._credentials,
            retention=settings.retention(),
            tolerance_s=settings.signature_tolerance_s,
            clock=clock,
            askable=settings.askable(),
            boundary=settings.boundary(),
            on_skew=self._metrics.skewed,
            on_stale=self._metrics.took_stale,
        )
        self._app = build_app(
            intake,
            metrics=self._metrics,
            body_timeout_s=settings.ingress_body_timeout_s,
            most_in_flight=settings.ingress_max_in_flight,
        )
        self.port: int | None = None
        """Where it listens, once it does."""
        self.listening = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Listen until told to stop; answers in progress are finished."""
        for vendor, credentials in self._credentials.items():
            if credentials.allow_unauthenticated and not (credentials.tokens or credentials.hmac_keys):
                self._metrics.unauthenticated.labels(str(vendor)).set(1)
                log.warning("vendor.unauthenticated", vendor=str(vendor), detail="anybody's callback is believed")
        settings = self._settings
        async with serving(
            self._app,
            settings.ingress_host,
            settings.ingress_port,
            shutdown_timeout_s=settings.grace_time_s,
            make_runner=partial(
                EdgeRunner,
                refuse=partial(refuse, self._metrics),
                metrics=self._metrics,
                head_timeout_s=settings.ingress_body_timeout_s,
                connections=affordable(settings.ingress_max_connections),
            ),
            backlog=BACKLOG,
        ) as self.port:
            log.info(
                "ingress.listening",
                host=settings.ingress_host,
                port=self.port,
                vendors=[str(vendor) for vendor in self._credentials],
            )
            self.listening.set()
            await stop.wait()
            self.listening.clear()

    def checks(self) -> Mapping[str, bool]:
        """Ready while it listens."""
        return {"ingress": self.listening.is_set()}


async def main(stop: asyncio.Event) -> None:
    """Run the ingress as a process of its own, settings from the environment."""
    settings = load(IngressSettings)
    registry = CollectorRegistry()
    metrics = MessagingMetrics(registry, "ingress")
    broker = build_broker(settings, name="ingress", metrics=metrics, spooled=settings.spool_path is not None)
    broker = spool_before(broker, settings, registry)
    service = Ingress(settings, broker, registry)
    await lifecycle.serve("ingress", settings, broker, [service], registry, stop)


def spool_before(broker: Broker, settings: IngressSettings, registry: CollectorRegistry) -> Broker:
    """Put the spool before the broker, where the settings want one."""
    if settings.spool_path is None:
        return broker
    return with_spool(
        broker,
        settings.spool_path,
        registry=registry,
        service="ingress",
        max_messages=settings.spool_max_messages,
        max_bytes=settings.spool_max_bytes,
        reserve_bytes=settings.spool_reserve_bytes,
    )
