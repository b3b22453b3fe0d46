"""Asking before fetching, against the simulated vendor: forged links unread, nothing lost, nothing blocked."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession

from downloader.app import Downloader
from downloader.manifest import Manifest, read_manifest
from downloader.names import names_of
from downloader.settings import DownloaderSettings
from shared.errors import Reason
from shared.events import (
    ConversionRejected,
    ConversionStored,
    Data,
    ReportFailed,
    ReportLinkless,
    ReportSucceeded,
    ReportUnrecognised,
    Trust,
)
from shared.links import public
from shared.messaging.topology import DOWNLOADER, NOTIFIER, UNRECOGNISED
from shared.vendors import Vendor
from simulator.app import Simulator
from simulator.bodies import blocks_of
from simulator.ledger import Conversion, ServedFile
from simulator.plan import FilePlan, Plan
from simulator.settings import Settings
from tests.integration.embedded_house import EmbeddedHouse, embedded_house, eventually, until
from tests.integration.raw_server import sending, serving
from tests.log_capture import captured_logs

KEY = "sk-k3y-of-the-account"
PAST_A_RUNG = timedelta(seconds=31)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A vendor that knows our key."""
    async with Simulator(Settings(api_key=KEY, seed=5)) as running:
        yield running


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[EmbeddedHouse]:
    """A broker in a folder of its own."""
    async with embedded_house(tmp_path) as house:
        yield house


def converted(simulator: Simulator, vendor: Vendor, record: str = "succeeded") -> Conversion:
    """Make a conversion whose record links to its first file, and a second file that no honest callback names."""
    plan = Plan(vendor=vendor, files=(FilePlan(), FilePlan()), steps=(), record=record)  # type: ignore[arg-type]  # one of them
    return simulator._conversions.make(plan)


def link(file: ServedFile) -> str:
    """Return the link to a file."""
    return next(iter(file.links.values()))


def downloader(house: EmbeddedHouse, simulator: Simulator, vendor: Vendor, **settings: Any) -> Downloader:
    """Build a downloader with an account at this vendor that may reach loopback, on the clock of the house."""
    account = {f"{vendor}_api_key": KEY, f"{vendor}_api_base": f"{simulator.base_url}/{vendor}"}
    return Downloader(
        DownloaderSettings(
            data_dir=house.folder,
            download_allow_addresses=("127.0.0.0/8",),
            **account | settings,
        ),
        house.broker,
        house.registry,
        clock=house.clock,
        monotonic=lambda: monotonic() + house.clock.ahead.total_seconds(),
    )


async def behave(simulator: Simulator, vendor: Vendor, **manner: object) -> None:
    """Tell a vendor's API how to behave from now on."""
    async with (
        ClientSession() as client,
        client.put(f"{simulator.base_url}/control/vendors/{vendor}", json=manner) as response,
    ):
        assert response.status == 200, await response.text()


def succeeded(house: EmbeddedHouse, conversion: Conversion, url: str, trust: tuple[Trust, ...]) -> ReportSucceeded:
    """Return what a callback with this link would have become."""
    return ReportSucceeded(**said(house, conversion, trust), url=url, code=200, message="success")


def linkless(house: EmbeddedHouse, conversion: Conversion) -> ReportLinkless:
    """Return what a callback without a link would have become."""
    explanation = "it tells success without a link to a WAV"
    return ReportLinkless(
        **said(house, conversion, ("token",)), code=200, message="success", explanation=explanation, body='{"code":200}'
    )


def said(house: EmbeddedHouse, conversion: Conversion, trust: tuple[Trust, ...]) -> dict[str, Any]:
    """Return what all reports have."""
    return {
        "vendor": conversion.vendor,
        "task_id": conversion.task_id,
        "received_at": house.clock(),
        "deadline": house.clock() + timedelta(days=14),
        "trust": trust,
    }


async def kept(house: EmbeddedHouse, conversion: Conversion) -> Manifest:
    """Return the manifest of a task whose first file is kept byte for byte."""
    names = names_of(conversion.vendor, conversion.task_id)
    manifest = read_manifest(await asyncio.to_thread((house.folder / "files" / names.manifest).read_bytes))
    content = await asyncio.to_thread((house.folder / "files" / manifest.audio).read_bytes)
    good = conversion.files[0]
    assert content == b"".join(blocks_of(good.plan, 0, good.size_bytes))
    return manifest


def settled(house: EmbeddedHouse, outcome: str) -> float:
    """Return how many messages ended so."""
    return house.count("wavekeep_test_messages_total", queue=DOWNLOADER, outcome=outcome)


def confirmations(house: EmbeddedHouse, outcome: str) -> float:
    """Return how many questions before fetching ended so."""
    return house.count("wavekeep_downloader_confirmations_total", outcome=outcome)


@pytest.mark.parametrize(
    ("vendor", "trust"),
    [
        (Vendor.APIBOX, ("token",)),
        (Vendor.KIE, ("signature",)),
        (Vendor.KIE, ("stale",)),
        (Vendor.SUNOAPI, ("none",)),
    ],
)
async def test_a_forged_link_is_never_asked_for(
    house: EmbeddedHouse, simulator: Simulator, vendor: Vendor, trust: tuple[Trust, ...]
) -> None:
    """A stranger's server is not even connected to: the vendor's own file is stored, on the vendor's own word."""
    conversion = converted(simulator, vendor)
    with captured_logs() as lines:
        async with (
            serving(sending(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")) as stranger,
            house.hearing(NOTIFIER) as heard,
            house.running(downloader(house, simulator, vendor)),
        ):
            await house.publish(succeeded(house, conversion, stranger.url("/a.wav?Signature=f0rged"), trust))
            await house.publish(succeeded(house, conversion, link(conversion.files[1]), trust))
            await until(lambda: settled(house, "acked") == 2)
        assert stranger.connections == 0
    assert conversion.files[1].fetches == 0
    manifest = await kept(house, conversion)
    stored = next(event.data for event in heard if isinstance(event.data, ConversionStored))
    assert stored.evidence.trust == manifest.evidence.trust == (*trust, "vendor_confirmed")
    assert manifest.link == public(link(conversion.files[0]))
    assert confirmations(house, "differs") == (1 if "stale" in trust else 2)
    assert "link.differs" in {line["event"] for line in lines}
    assert "Signature" not in str(lines)
    assert KEY not in str(lines)


async def test_a_vendor_that_is_down_delays_and_loses_nothing(house: EmbeddedHouse, simulator: Simulator) -> None:
    """What only a signature covers waits while nobody answers, and is stored when the vendor is back."""
    conversion = converted(simulator, Vendor.KIE)
    await behave(simulator, Vendor.KIE, http_status=503)
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, simulator, Vendor.KIE)):
        await house.publish(succeeded(house, conversion, link(conversion.files[0]), ("signature",)))
        await until(lambda: settled(house, "retried") == 1)
        assert conversion.files[0].fetches == 0
        house.clock.ahead += PAST_A_RUNG
        await until(lambda: settled(house, "retried") == 2)
        await behave(simulator, Vendor.KIE)
        house.clock.ahead += timedelta(minutes=3)
        await until(lambda: heard)
    assert [type(event.data) for event in heard] == [ConversionStored]
    assert (await kept(house, conversion)).evidence.trust == ("signature", "vendor_confirmed")
    assert house.count("wavekeep_test_message_failures_total", reason=Reason.NOT_CONFIRMED) == 2
    assert (confirmations(house, "waited"), confirmations(house, "confirmed")) == (2, 1)


@pytest.mark.parametrize("manner", [{"http_status": 500}, {"http_status": 429}, {"fail_code": 430}, {"fail_code": 401}])
async def test_a_token_waits_for_no_vendor(
    house: EmbeddedHouse, simulator: Simulator, manner: dict[str, object]
) -> None:
    """Whatever is wrong with the vendor's API, what a token vouches for is stored at once, without its word."""
    conversion = converted(simulator, Vendor.APIBOX)
    await behave(simulator, Vendor.APIBOX, **manner)
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, simulator, Vendor.APIBOX)):
        await house.publish(succeeded(house, conversion, link(conversion.files[0]), ("token",)))
        await until(lambda: heard)
    assert (await kept(house, conversion)).evidence.trust == ("token",)
    assert settled(house, "retried") == 0


async def test_a_full_budget_blocks_no_token(house: EmbeddedHouse, simulator: Simulator) -> None:
    """Over our own limit a token's file is fetched without the vendor's word; a signature's waits for its turn."""
    conversions = [converted(simulator, Vendor.KIE) for _ in range(6)]
    unsigned = converted(simulator, Vendor.KIE)
    service = downloader(house, simulator, Vendor.KIE, kie_api_rate_per_10s=1, download_concurrency=1)
    async with house.hearing(NOTIFIER) as heard, house.running(service):
        for conversion in conversions:
            await house.publish(succeeded(house, conversion, link(conversion.files[0]), ("token",)))
        await house.publish(succeeded(house, unsigned, link(unsigned.files[0]), ("signature",)))
        await until(lambda: settled(house, "acked") == len(conversions) and settled(house, "retried") == 1)
        trusts = [(await kept(house, conversion)).evidence.trust for conversion in conversions]
        assert sorted(trusts) == [("token",)] * 5 + [("token", "vendor_confirmed")]
        assert unsigned.files[0].fetches == 0
        house.clock.ahead += PAST_A_RUNG
        await until(lambda: len(heard) == len(conversions) + 1)
    assert (await kept(house, unsigned)).evidence.trust == ("signature", "vendor_confirmed")
    assert house.count("wavekeep_downloader_vendor_questions_total", vendor="kie", outcome="held_back") == 6


async def test_a_success_without_a_link_is_stored_after_the_vendor_has_it(
    house: EmbeddedHouse, simulator: Simulator
) -> None:
    """A callback that tells no link is worth a file: the vendor is asked by the ladder until it tells."""
    conversion = converted(simulator, Vendor.SUNOAPI, record="pending")
    with captured_logs() as lines:
        async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, simulator, Vendor.SUNOAPI)):
            await house.publish(linkless(house, conversion))
            await until(lambda: settled(house, "retried") == 1)
            conversion.plan = msgspec.structs.replace(conversion.plan, record="succeeded")
            house.clock.ahead += PAST_A_RUNG
            await until(lambda: heard)
            await house.publish(linkless(house, conversion))
            await until(lambda: settled(house, "acked") == 2)
    assert [type(event.data) for event in heard] == [ConversionStored]
    assert (await kept(house, conversion)).evidence.trust == ("token", "vendor_confirmed")
    (scheduled,) = (line for line in lines if line["event"] == "message.retry_scheduled")
    assert (scheduled["reason"], scheduled["step"]) == (Reason.LINK_MISSING, "30s")


async def test_a_success_without_a_link_may_have_failed(house: EmbeddedHouse, simulator: Simulator) -> None:
    """The vendor's own word is told as its failure, with its code."""
    conversion = converted(simulator, Vendor.KIE, record="failed")
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, simulator, Vendor.KIE)):
        await house.publish(linkless(house, conversion))
        await until(lambda: heard)
    (event,) = heard
    assert isinstance(event.data, ConversionRejected)
    assert event.data.reason is Reason.VENDOR_FAILED
    assert event.data.code is not None


async def test_without_a_key_a_success_without_a_link_is_kept_for_a_person(
    house: EmbeddedHouse, simulator: Simulator
) -> None:
    """It lies in the queue of what nobody understood, whole, and is out of the downloader's hands."""
    conversion = converted(simulator, Vendor.KIE)
    service = downloader(house, simulator, Vendor.APIBOX)
    async with house.hearing(NOTIFIER) as heard, house.running(service):
        await house.publish(linkless(house, conversion))
        await until(lambda: settled(house, "acked") == 1 and heard)
    assert [type(event.data) for event in heard] == [ReportUnrecognised]

    async def is_kept() -> bool:
        return len(await house.parked(UNRECOGNISED)) == 1

    await eventually(is_kept)
    (message,) = await house.parked(UNRECOGNISED)
    assert b'{\\"code\\":200}' in message.body


@pytest.mark.parametrize(("record", "outcome"), [("failed", ConversionRejected), ("succeeded", ConversionStored)])
async def test_a_stale_failure_is_what_the_vendor_says(
    house: EmbeddedHouse, simulator: Simulator, record: str, outcome: type[Data]
) -> None:
    """A failure replayed under an old signature rejects nothing that the vendor has a file of."""
    conversion = converted(simulator, Vendor.KIE, record=record)
    failed = ReportFailed(**said(house, conversion, ("stale",)), code=501, message="replayed")
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, simulator, Vendor.KIE)):
        await house.publish(failed)
        await until(lambda: heard)
    assert [type(event.data) for event in heard] == [outcome]
    assert "replayed" not in str(heard)
