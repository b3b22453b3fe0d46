"""Places with small bounds, and how a report holds one, for the tests of fairness.

Responsible for: building and holding. It must not assert anything.
"""

from contextlib import AsyncExitStack
from typing import Final

from prometheus_client import CollectorRegistry

from downloader.fairness import Bounds, Lane, Place, Places
from downloader.metrics import DownloaderMetrics
from shared.vendors import Vendor

LARGE: Final = 1_000
HOST, OTHER_HOST = "cdn.example.com", "files.example.org"


def build(
    *,
    per_vendor: int = 99,
    per_host: int = 2,
    large: int = 1,
    patience_s: float = 60.0,
    longest_patience_s: float = 60.0,
    registry: CollectorRegistry | None = None,
) -> Places:
    """Return places, in both lanes alike; whoever waits does so for long, unless told otherwise."""
    bounds = Bounds(per_vendor, per_host)
    return Places(
        {"normal": bounds, "urgent": bounds},
        large=large,
        large_bytes=LARGE,
        metrics=DownloaderMetrics(registry or CollectorRegistry()),
        host_patience_s=patience_s,
        vendor_patience_s=patience_s,
        longest_patience_s=longest_patience_s,
    )


async def hold(
    held: AsyncExitStack,
    places: Places,
    host: str = HOST,
    task: str = "",
    *,
    vendor: Vendor = Vendor.APIBOX,
    lane: Lane = "normal",
) -> Place:
    """Take a place for a download until the stack is left, as a report does: first of its vendor, then at its host."""
    async with AsyncExitStack() as taken:
        await taken.enter_async_context(places.of_vendor(vendor, lane))
        place = await taken.enter_async_context(places.take(vendor, host, task, lane))
        held.push_async_exit(taken.pop_all())
    return place
