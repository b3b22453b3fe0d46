"""Custody without a place: who is put off costs nobody anything, is told all the same, and never given up for it."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from downloader.metrics import PUT_OFFS
from shared.errors import BusyError, Reason
from shared.events import ConversionAtRisk
from shared.messaging.port import Message
from shared.messaging.topology import DOWNLOADER, URGENT
from tests.unit.custody_fakes import DEADLINE, NOW, House, failed, linkless, succeeded
from tests.unit.places import OTHER_HOST, build, hold


@pytest.fixture
async def held() -> AsyncExitStack:
    """What is held until the end of a test."""
    return AsyncExitStack()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Custody among fakes, with a key, and one place for each host that nobody waits for."""
    with ThreadPoolExecutor(4) as executor:
        house = House(tmp_path / "staging", executor)
        house.places = build(per_host=1, patience_s=0.0)
        yield house


async def test_who_finds_no_place_asks_nobody(house: House, held: AsyncExitStack) -> None:
    """A report that is put off costs neither the vendor a question nor the host a request; it is counted by reason."""
    assert house.places is not None
    async with held:
        await hold(held, house.places)
        with pytest.raises(BusyError):
            await house.custody().handle(succeeded())
    assert (house.vendors.asked, house.source.followed, house.publisher.told) == ([], [], [])
    assert house.count("put_offs_total", reason="host_busy") == 1
    await house.custody().handle(succeeded())
    assert house.publisher.types == ["conversion.stored"]


@pytest.mark.parametrize("report", [succeeded(), linkless(), failed()], ids=["succeeded", "linkless", "failed"])
async def test_no_question_is_put_without_a_place_of_the_vendor(
    house: House, held: AsyncExitStack, report: Message
) -> None:
    """A vendor that answers slowly, or not at all, holds no more than its places either."""
    house.places = build(per_vendor=1, patience_s=0.0)
    async with held:
        await hold(held, house.places, OTHER_HOST)
        with pytest.raises(BusyError):
            await house.custody().handle(report)
    assert (house.vendors.asked, house.source.followed, house.publisher.told) == ([], [], [])
    assert house.count("put_offs_total", reason="vendor_busy") == 1


async def test_who_is_put_off_is_told_at_risk_all_the_same(house: House, held: AsyncExitStack) -> None:
    """Waiting for a place ends no duty to warn; the attempts told are those that were made."""
    assert house.places is not None
    house.now = NOW + (DEADLINE - NOW) * 0.6
    async with held:
        await hold(held, house.places)
        assert isinstance(await house.fails(succeeded()), BusyError)
    (warning,) = [event.data for event in house.publisher.told]
    assert isinstance(warning, ConversionAtRisk)
    assert (warning.threshold_percent, warning.last_reason, warning.attempts) == (50, Reason.HOST_BUSY, 0)


async def test_an_urgent_report_finds_a_place_at_a_host_that_is_full_in_the_normal_lane(
    house: House, held: AsyncExitStack
) -> None:
    """Only who has as little time left holds up an urgent report."""
    assert house.places is not None
    urgent = dataclasses.replace(succeeded(), queue=URGENT)
    async with held:
        await hold(held, house.places)
        async with AsyncExitStack() as first:
            await hold(first, house.places, lane="urgent")
            with pytest.raises(BusyError):
                await house.custody().handle(urgent)
        await house.custody().handle(urgent)
    assert house.publisher.types == ["conversion.stored"]


@pytest.mark.parametrize("reason", PUT_OFFS)
def test_being_put_off_is_short_and_never_the_end(house: House, reason: Reason) -> None:
    """30 s at first, 2 min for who has waited for long, less before a mark; no report ends for want of a place."""
    custody, often = house.custody(), dataclasses.replace(succeeded(), attempts=9)

    def step(*, waited: timedelta, now_before_end: timedelta = timedelta(days=14)) -> float | None:
        house.now = DEADLINE - now_before_end
        message = dataclasses.replace(often, first_seen=house.now - waited)
        chosen = custody.next_step(message, reason)
        return chosen.seconds if chosen else None

    assert step(waited=timedelta()) == 30
    assert step(waited=timedelta(minutes=9)) == 30
    assert step(waited=timedelta(minutes=10)) == 120
    assert step(waited=timedelta(days=3)) == 120
    assert step(waited=timedelta(days=3), now_before_end=timedelta(seconds=40)) == 30
    assert step(waited=timedelta(days=3), now_before_end=timedelta()) == 120
    assert step(waited=timedelta(days=3), now_before_end=timedelta(days=-9)) == 120
    assert custody.next_step(often, Reason.TIMED_OUT) is None, "an attempt that failed past the deadline was the last"


def test_the_lane_is_that_of_the_moment_when_it_comes_back(house: House) -> None:
    """A delay that ends past 80 % leads into the urgent queue; what is no report stays where it is."""
    custody, urgent_from = house.custody(), NOW + (DEADLINE - NOW) * 0.8
    house.now = urgent_from - timedelta(seconds=30)
    assert custody.lane(succeeded(), 29.0) == DOWNLOADER
    assert custody.lane(succeeded(), 30.0) == URGENT
    assert custody.lane(dataclasses.replace(succeeded(), body=b"{", queue="any"), 30.0) == "any"
