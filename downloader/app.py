"""The downloader, put together.

Responsible for: the one place where its parts meet. Every default can be replaced by keyword. Building touches
neither network nor disk.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import structlog
from prometheus_client import CollectorRegistry

from downloader.custody import Custody
from downloader.expiry import Expiring
from downloader.fairness import LONGEST_PATIENCE_S, Bounds, Places
from downloader.fence import Fence, Opening
from downloader.fetch import Fetcher, Limits
from downloader.housekeeping import EVERY_S, Housekeeping
from downloader.inspection import Inspector, NoInspector, QualityInspector
from downloader.janitor import Janitor
from downloader.links import Links
from downloader.metrics import DownloaderMetrics
from downloader.quality_run import QualityRunner, require
from downloader.retention import Retention, Rules
from downloader.settings import DownloaderSettings
from downloader.space import Space
from downloader.staging import Staging
from downloader.storage import Storage
from downloader.storage_factory import build_storage, build_uploads
from downloader.storage_folder import TEMPORARY
from downloader.vendor_api import VendorApi
from shared import lifecycle
from shared.clock import Clock, system_clock
from shared.messaging.factory import build_broker
from shared.messaging.port import Broker, Subscription
from shared.messaging.second_chance import SecondChances
from shared.messaging.topology import DOWNLOADER, URGENT
from shared.metrics import MessagingMetrics
from shared.settings import load

log = structlog.get_logger()


class Downloader:
    """Takes reports until told to stop.

    Raises:
        StartError: the settings want files measured, and what measures them is not installed.

    Args:
        openings: let through the fence besides those of the settings.
        storage: instead of the one the settings name.
        monotonic: returns seconds of a clock that never steps, for what may be asked of a vendor.
    """

    def __init__(
        self,
        settings: DownloaderSettings,
        broker: Broker,
        registry: CollectorRegistry,
        *,
        openings: tuple[Opening, ...] = (),
        storage: Storage | None = None,
        clock: Clock = system_clock,
        monotonic: Callable[[], float] = time.monotonic,
        keep_house_every_s: float = EVERY_S,
    ) -> None:
        self._broker = broker
        self._openings = (*settings.openings, *openings)
        self._metrics = DownloaderMetrics(registry)
        in_hand = settings.in_hand + settings.urgent_in_hand
        self._executor = ThreadPoolExecutor(in_hand + 2, thread_name_prefix="downloader")
        self._storage = storage or build_storage(settings, executor=self._executor)
        folder = settings.storage_folder if settings.object_store is None else None
        self._space = Space(
            staging=settings.staging_folder,
            storage=folder,
            reserve_bytes=settings.storage_reserve_bytes,
            quota_bytes=settings.storage_quota_bytes,
            metrics=self._metrics.keeping,
        )
        self._staging = Staging(
            settings.staging_folder, executor=self._executor, space=self._space, metrics=self._metrics.keeping
        )
        self._fetcher = Fetcher(
            Fence(self._openings, settings.download_allowed_hosts),
            Limits(
                max_bytes=settings.download_max_bytes,
                min_bytes_per_s=settings.least_bytes_per_s,
                attempt_timeout_s=settings.download_attempt_timeout_s,
                rate_window_s=settings.download_rate_window_s,
            ),
            executor=self._executor,
        )
        require(quality=settings.quality, waveform=settings.waveform)
        self._quality_runner = QualityRunner(workers=settings.quality_workers)
        self._vendor_api = VendorApi(settings.accounts(), metrics=self._metrics, monotonic=monotonic)
        self._custody = Custody(
            source=Links(
                self._fetcher,
                self._vendor_api,
                confirm=settings.confirm,
                metrics=self._metrics,
                attempt_timeout_s=settings.download_attempt_timeout_s,
            ),
            places=Places(
                {
                    "normal": Bounds(settings.places_per_vendor, settings.places_per_host),
                    "urgent": Bounds(settings.download_urgent_concurrency, settings.urgent_places_per_host),
                },
                large=settings.places_for_large,
                large_bytes=settings.download_large_bytes,
                metrics=self._metrics,
                longest_patience_s=min(LONGEST_PATIENCE_S, settings.download_attempt_timeout_s / 10),
            ),
            staging=self._staging,
            storage=self._storage,
            inspector=self._inspector(settings),
            publisher=broker,
            metrics=self._metrics,
            clock=clock,
        )
        self._subscriptions = [
            Subscription(
                queue=queue,
                handler=self._custody.handle,
                concurrency=concurrency,
                next_step=self._custody.next_step,
                on_failure=self._custody.warn,
                on_give_up=self._custody.give_up,
                group=self._custody.group,
                lane=self._custody.lane,
            )
            for queue, concurrency in (
                (DOWNLOADER, settings.in_hand),
                (URGENT, settings.urgent_in_hand),
            )
        ]
        self._housekeeping = Housekeeping(
            space=self._space,
            janitor=Janitor(
                staging=self._staging,
                storage=self._storage,
                temporary=() if folder is None else (folder / TEMPORARY,),
                metrics=self._metrics.keeping,
                uploads=build_uploads(settings, executor=self._executor, clock=clock),
            ),
            retention=Retention(
                mode=settings.retention_mode,
                rules=Rules(max_age_days=settings.retention_max_age_days, max_bytes=settings.retention_max_bytes),
                storage=self._storage,
                expiring=Expiring(storage=self._storage, publisher=broker, metrics=self._metrics.keeping, clock=clock),
                metrics=self._metrics.keeping,
                clock=clock,
            ),
            storage=self._storage,
            executor=self._executor,
            metrics=self._metrics,
            clock=clock,
            every_s=keep_house_every_s,
        )
        self._second_chances = SecondChances(broker, DOWNLOADER, crash_loops=self._metrics.crash_loops, clock=clock)

    async def run(self, stop: asyncio.Event) -> None:
        """Prove that files can be kept, then take reports until told to stop.

        Raises:
            StartError: staging or storage cannot be used.
        """
        for opening in self._openings:
            log.warning(
                "fence.opened", opening=str(opening), detail="reachable by any scheme, though it may be private"
            )
        async with AsyncExitStack() as stack:
            stack.callback(self._executor.shutdown)
            self._metrics.swept.inc(await self._staging.start())
            await self._storage.start()
            await stack.enter_async_context(self._fetcher)
            await stack.enter_async_context(self._vendor_api)
            await stack.enter_async_context(self._quality_runner)
            await stack.enter_async_context(self._second_chances.running())
            await stack.enter_async_context(self._housekeeping.running())
            async with asyncio.TaskGroup() as group:
                for subscription in self._subscriptions:
                    group.create_task(self._broker.consume(subscription, stop=stop))

    def _inspector(self, settings: DownloaderSettings) -> Inspector:
        if not (settings.quality or settings.waveform):
            return NoInspector()
        return QualityInspector(
            self._quality_runner,
            timeout_s=settings.quality_timeout_s,
            quality=settings.quality,
            waveform=settings.waveform,
            metrics=self._metrics,
        )

    def checks(self) -> Mapping[str, bool]:
        """Ready while reports reach it, urgent ones too, and its storage answers; a full one does."""
        return {
            "downloader": all(self._broker.consuming(subscription.queue) for subscription in self._subscriptions),
            "storage": self._housekeeping.storage_answers,
        }


async def main(stop: asyncio.Event) -> None:
    """Run the downloader as a process of its own, settings from the environment."""
    settings = load(DownloaderSettings)
    registry = CollectorRegistry()
    broker = build_broker(
        settings, name="downloader", metrics=MessagingMetrics(registry, "downloader", [DOWNLOADER, URGENT])
    )
    service = Downloader(settings, broker, registry)
    await lifecycle.serve("downloader", settings, broker, [service], registry, stop)
