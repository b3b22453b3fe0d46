"""A conversion whose link expired, against the simulated vendor: stored through a fresh link, or kept trying."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from downloader.app import Downloader
from downloader.manifest import read_manifest
from downloader.names import names_of
from downloader.settings import DownloaderSettings
from shared.errors import Reason
from shared.events import ConversionRejected, ConversionStored, ReportSucceeded
from shared.links import public
from shared.messaging.topology import DOWNLOADER, NOTIFIER
from shared.vendors import Vendor
from simulator.app import Simulator
from simulator.bodies import blocks_of
from simulator.ledger import Conversion
from simulator.plan import Fault, FilePlan, Plan
from simulator.settings import Settings
from tests.integration.embedded_house import EmbeddedHouse, embedded_house, until
from tests.log_capture import captured_logs

KEY = "sk-k3y-of-the-account"


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A vendor that knows our key."""
    async with Simulator(Settings(api_key=KEY, seed=3)) as running:
        yield running


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[EmbeddedHouse]:
    """A broker in a folder of its own."""
    async with embedded_house(tmp_path) as house:
        yield house


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    """Everything that is logged; afterwards, neither key nor query may be in it."""
    with silent_about(caplog) as lines:
        yield lines


@contextmanager
def silent_about(caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    """Collect the logs, and hold them against what they must not show."""
    caplog.set_level("DEBUG")
    with captured_logs() as lines:
        yield lines
    for text in (str(lines), caplog.text):
        assert KEY not in text
        assert "Signature" not in text


def converted(simulator: Simulator, vendor: Vendor, status: int, record: str = "succeeded") -> tuple[Conversion, str]:
    """Make a conversion whose record links to a good file; return it, and a link of its own that is dead for ever."""
    dead = FilePlan(misbehaviour=(Fault(status=status),))
    plan = Plan(vendor=vendor, files=(FilePlan(), dead), steps=(), record=record)  # type: ignore[arg-type]  # one of them
    conversion = simulator._conversions.make(plan)
    return conversion, next(iter(conversion.files[1].links.values()))


def downloader(house: EmbeddedHouse, simulator: Simulator, vendor: Vendor, **settings: Any) -> Downloader:
    """Build a downloader with an account at this vendor that may reach loopback, and asks for expired links alone."""
    account = {f"{vendor}_api_key": KEY, f"{vendor}_api_base": f"{simulator.base_url}/{vendor}"}
    return Downloader(
        DownloaderSettings(
            data_dir=house.folder,
            download_allow_addresses=("127.0.0.0/8",),
            **{"confirm": "never"} | account | settings,
        ),
        house.broker,
        house.registry,
        clock=house.clock,
    )


def report(house: EmbeddedHouse, conversion: Conversion, url: str, age: timedelta = timedelta()) -> ReportSucceeded:
    """Return what the vendor's callback would have become."""
    received_at = house.clock() - age
    return ReportSucceeded(
        vendor=conversion.vendor,
        task_id=conversion.task_id,
        url=url,
        code=200,
        message="success",
        received_at=received_at,
        deadline=received_at + timedelta(days=14),
        trust=("token",),
    )


@pytest.mark.parametrize(
    ("vendor", "status"), [(Vendor.APIBOX, 403), (Vendor.KIE, 410), (Vendor.KIE, 441), (Vendor.SUNOAPI, 404)]
)
async def test_an_expired_link_is_replaced(
    house: EmbeddedHouse, simulator: Simulator, lines: list[Any], vendor: Vendor, status: int
) -> None:
    """The file is stored in the first attempt, byte for byte, through the link that the vendor gives when asked."""
    conversion, dead_link = converted(simulator, vendor, status)
    good = conversion.files[0]
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, simulator, vendor)):
        await house.publish(report(house, conversion, dead_link))
        await until(lambda: heard)
        for repeated in (dead_link, next(iter(good.links.values()))):
            await house.publish(report(house, conversion, repeated))
        await until(lambda: house.count("wavekeep_test_messages_total", queue=DOWNLOADER, outcome="acked") == 3)
    (event,) = heard
    assert isinstance(event.data, ConversionStored)
    names = names_of(vendor, conversion.task_id)
    kept = house.folder / "files" / names.audio(event.data.sha256)
    assert await asyncio.to_thread(kept.read_bytes) == b"".join(blocks_of(good.plan, 0, good.size_bytes))
    manifest = read_manifest(await asyncio.to_thread((house.folder / "files" / names.manifest).read_bytes))
    assert manifest.link == public(next(iter(good.links.values())))
    assert house.count("wavekeep_downloader_vendor_questions_total", vendor=str(vendor), outcome="ready") == 1
    assert {"vendor.asked", "link.refreshed", "file.stored"} <= {line["event"] for line in lines}


@pytest.mark.parametrize("record", ["failed", "unknown", "pending"])
async def test_no_fresh_link_is_no_end(
    house: EmbeddedHouse, simulator: Simulator, lines: list[Any], record: str
) -> None:
    """Where the vendor has no link, even because it failed, nothing is rejected: the next try is in ten minutes."""
    conversion, dead_link = converted(simulator, Vendor.APIBOX, 403, record)
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, simulator, Vendor.APIBOX)):
        await house.publish(report(house, conversion, dead_link))
        await until(lambda: house.count("wavekeep_test_messages_total", queue=DOWNLOADER, outcome="retried") == 1)
    assert not heard
    (scheduled,) = (line for line in lines if line["event"] == "message.retry_scheduled")
    assert (scheduled["reason"], scheduled["step"]) == (Reason.LINK_EXPIRED, "10m")
    assert house.count("wavekeep_downloader_vendor_questions_total", vendor="apibox", outcome=record) == 1


async def test_a_vendor_that_is_down_blocks_nothing(
    house: EmbeddedHouse, simulator: Simulator, lines: list[Any]
) -> None:
    """With nobody to ask, other conversions go on, and this one ends at its deadline as without a key."""
    conversion, dead_link = converted(simulator, Vendor.KIE, 403)
    other, _ = converted(simulator, Vendor.KIE, 403)
    service = downloader(house, simulator, Vendor.KIE, kie_api_base="http://127.0.0.1:1", download_concurrency=1)
    async with house.hearing(NOTIFIER) as heard, house.running(service):
        await house.publish(report(house, conversion, dead_link, age=timedelta(days=15)))
        await house.publish(report(house, other, next(iter(other.files[0].links.values()))))
        await until(lambda: {ConversionRejected, ConversionStored} <= {type(event.data) for event in heard})
    rejected = next(event.data for event in heard if isinstance(event.data, ConversionRejected))
    assert (rejected.task_id, rejected.reason) == (conversion.task_id, Reason.LINK_EXPIRED)
    assert "message.parked" in {line["event"] for line in lines}


async def test_the_fence_judges_a_fresh_link(house: EmbeddedHouse, simulator: Simulator, lines: list[Any]) -> None:
    """A vendor's answer leads no further inside than a callback does."""
    conversion, dead_link = converted(simulator, Vendor.KIE, 403)
    simulator._conversions.base_url = "http://10.0.0.1"
    simulator._conversions.link(conversion.files[0], fresh=True)
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, simulator, Vendor.KIE)):
        await house.publish(report(house, conversion, dead_link))
        await until(lambda: any(isinstance(event.data, ConversionRejected) for event in heard))
    rejected = next(event.data for event in heard if isinstance(event.data, ConversionRejected))
    assert rejected.reason in {Reason.ADDRESS_FORBIDDEN, Reason.SCHEME_FORBIDDEN}
    assert "link.refreshed" in {line["event"] for line in lines}
