"""Fairness: the bounds of vendors, hosts and large files, who is waited for and who is not, and the urgent lane."""

import asyncio
import contextlib
from contextlib import AsyncExitStack

import pytest
from prometheus_client import CollectorRegistry

from downloader.fairness import queue_for
from downloader.fetch import Head
from downloader.metrics import LANES
from shared.errors import BusyError, Reason
from shared.messaging.topology import DOWNLOADER, URGENT
from shared.vendors import Vendor
from tests.unit.custody_fakes import DEADLINE, LINK, NOW
from tests.unit.places import HOST, LARGE, OTHER_HOST, build, hold


class Gone:
    """A sink that notes what reaches it."""

    def __init__(self) -> None:
        self.begun: list[Head] = []
        self.size_bytes = 0

    def held(self, _link: str) -> None:
        """Hold nothing yet."""

    def begin(self, head: Head) -> None:
        """Note it."""
        self.begun.append(head)

    def write(self, block: bytes) -> None:
        """Count it."""
        self.size_bytes += len(block)


class Time:
    """The loop's clock, which stands still but for what a test lets pass by."""

    def __init__(self) -> None:
        self._seconds = 1_000.0

    def __call__(self) -> float:
        """Return seconds."""
        return self._seconds

    async def pass_by(self, seconds: float) -> None:
        """Let everybody go as far as they can, time pass, and whoever waited for it go on."""
        for passed in (0.0, seconds):
            self._seconds += passed
            for _ in range(10):
                await asyncio.sleep(0)


@pytest.fixture
async def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Time that passes when told so."""
    time = Time()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", time)
    return time


def head(size_bytes: int | None, *, offset: int = 0) -> Head:
    """Return what an answer says first."""
    return Head(LINK, offset, None, (), None, size_bytes=size_bytes)


@pytest.fixture
async def held() -> AsyncExitStack:
    """What is held until the end of a test."""
    return AsyncExitStack()


@pytest.mark.parametrize(
    ("share", "queue"), [(0.0, DOWNLOADER), (0.7999, DOWNLOADER), (0.8, URGENT), (1.0, URGENT), (2.0, URGENT)]
)
def test_past_four_fifths_of_its_time_a_report_is_urgent(share: float, queue: str) -> None:
    """The lane follows from the time alone, also after the deadline."""
    assert queue_for(NOW, DEADLINE, NOW + (DEADLINE - NOW) * share) == queue


async def test_one_host_has_no_more_places_than_its_bound(held: AsyncExitStack) -> None:
    """With its places taken a host is refused, and every other one is not."""
    places = build(per_host=2, patience_s=0.01)
    async with held:
        await hold(held, places)
        await hold(held, places)
        with pytest.raises(BusyError) as caught:
            await hold(held, places)
        await hold(held, places, OTHER_HOST)
        assert (caught.value.reason, caught.value.counted) == (Reason.HOST_BUSY, False)
    async with AsyncExitStack() as later:
        await hold(later, places)


async def test_one_vendor_has_no_more_places_than_its_bound(held: AsyncExitStack) -> None:
    """However many hosts its files are on: with its places taken a vendor is refused, and no other one is."""
    places = build(per_vendor=2, patience_s=0.01)
    async with held:
        for number in range(2):
            await hold(held, places, f"{number}.{HOST}")
        with pytest.raises(BusyError) as caught:
            await hold(held, places, OTHER_HOST)
        await hold(held, places, OTHER_HOST, vendor=Vendor.KIE)
        await hold(held, places, OTHER_HOST, lane="urgent")
        assert (caught.value.reason, caught.value.counted) == (Reason.VENDOR_BUSY, False)
    async with AsyncExitStack() as later:
        await hold(later, places)


async def test_who_waits_at_a_host_in_vain_keeps_no_place_of_its_vendor(held: AsyncExitStack) -> None:
    """Refused by its host, a report gives back what it had of its vendor's places."""
    places = build(per_vendor=2, per_host=1, patience_s=0.01)
    async with held:
        await hold(held, places)
        with pytest.raises(BusyError) as caught:
            await hold(held, places)
        assert caught.value.reason is Reason.HOST_BUSY
        await hold(held, places, OTHER_HOST)


async def test_a_vendor_that_gives_back_places_is_waited_for_in_order() -> None:
    """Who came first is served first, whatever host its file is on: so first tries keep their order."""
    places, served = build(per_vendor=1), list[int]()
    leave = asyncio.Event()

    async def download(number: int) -> None:
        async with AsyncExitStack() as held:
            await hold(held, places, f"{number % 3}.{HOST}")
            served.append(number)
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(7):
            group.create_task(download(number))
        await asyncio.sleep(0)
        assert served == [0]
        leave.set()
    assert served == [0, 1, 2, 3, 4, 5, 6]


async def test_a_vendor_that_does_not_move_is_not_waited_for_again(held: AsyncExitStack, time: Time) -> None:
    """One waits a moment; from then on nobody does, until a place is given back."""
    places, first = build(per_vendor=1, patience_s=5.0), AsyncExitStack()
    await hold(first, places)
    waiting = asyncio.create_task(hold(held, places, OTHER_HOST))
    await time.pass_by(4.9)
    assert not waiting.done()
    await time.pass_by(0.2)
    assert waiting.done()
    with pytest.raises(BusyError):
        await waiting
    for _ in range(100):
        with pytest.raises(BusyError) as caught:
            await hold(held, places, OTHER_HOST)
        assert caught.value.reason is Reason.VENDOR_BUSY
    await first.aclose()
    async with held:
        await hold(held, places, OTHER_HOST)


@pytest.mark.parametrize("full", ["vendor", "host"])
@pytest.mark.parametrize(("took_s", "waited_s"), [(0.5, 2.0), (12.0, 12.0), (90.0, 30.0)])
async def test_who_is_slow_is_waited_for_as_long_as_it_takes(
    held: AsyncExitStack, time: Time, full: str, took_s: float, waited_s: float
) -> None:
    """By its own pace, up to a bound: so a slow host, or a house with one vendor, keeps its order and loses no time."""
    places = build(
        per_vendor=2 if full == "vendor" else 9,
        per_host=2 if full == "host" else 9,
        patience_s=2.0,
        longest_patience_s=30.0,
    )
    async with held:
        await hold(held, places)
        async with AsyncExitStack() as first:
            await hold(first, places)
            await time.pass_by(took_s)
        await hold(held, places)
        waiting = asyncio.create_task(hold(held, places))
        await time.pass_by(waited_s - 0.1)
        assert not waiting.done()
        await time.pass_by(0.2)
        assert waiting.done()
        with pytest.raises(BusyError):
            await waiting


async def test_how_long_a_failure_took_tells_no_pace(held: AsyncExitStack, time: Time) -> None:
    """A host that hangs until it is cut off is not waited for the longer."""
    places = build(patience_s=2.0)
    async with held:
        await hold(held, places)
        with contextlib.suppress(ConnectionError):
            async with AsyncExitStack() as first:
                await hold(first, places)
                await time.pass_by(30.0)
                raise ConnectionError
        await hold(held, places)
        waiting = asyncio.create_task(hold(held, places))
        await time.pass_by(2.1)
        assert waiting.done()
        with pytest.raises(BusyError):
            await waiting


async def test_a_host_that_gives_back_places_is_waited_for_in_order() -> None:
    """Who came first is served first: first tries of a healthy host keep their order."""
    places, served = build(per_host=1), list[int]()
    leave = asyncio.Event()

    async def download(number: int) -> None:
        async with places.of_vendor(Vendor.KIE, "normal"), places.take(Vendor.KIE, HOST, str(number), "normal"):
            served.append(number)
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(download(number))
        await asyncio.sleep(0)
        assert served == [0]
        leave.set()
    assert served == [0, 1, 2, 3, 4]


async def test_a_host_that_does_not_move_is_not_waited_for_again(held: AsyncExitStack) -> None:
    """One waits a moment; from then on nobody does, until a place is given back."""
    places, first = build(per_host=1, patience_s=0.05), AsyncExitStack()
    await hold(first, places)
    places.expect(HOST, "", "normal")
    with pytest.raises(BusyError):
        await hold(held, places)
    for _ in range(100):
        with pytest.raises(BusyError):
            places.expect(HOST, "", "normal")
        async with asyncio.timeout(0.04):
            with pytest.raises(BusyError):
                await hold(held, places)
    places.expect(OTHER_HOST, "", "normal")
    await first.aclose()
    async with held:
        places.expect(HOST, "", "normal")
        await hold(held, places)


async def test_who_stops_waiting_takes_no_place_along(held: AsyncExitStack) -> None:
    """A waiter that is cancelled leaves the next place to others."""
    places, first = build(per_host=1), AsyncExitStack()
    await hold(first, places)
    waiting = asyncio.create_task(hold(held, places))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    await first.aclose()
    async with held, asyncio.timeout(5):
        await hold(held, places)


async def test_the_urgent_lane_has_bounds_of_its_own(held: AsyncExitStack) -> None:
    """One host that hangs holds not all of it; it takes nothing from the normal lane, and large files are as others."""
    registry = CollectorRegistry()
    places = build(per_host=2, large=1, patience_s=0.0, registry=registry)
    async with held:
        for number in range(2):
            places.expect(HOST, str(number), "urgent")
            place = await hold(held, places, task=str(number), lane="urgent")
            place.watch(Gone()).begin(head(LARGE + 1))
        with pytest.raises(BusyError) as caught:
            places.expect(HOST, "2", "urgent")
        assert caught.value.reason is Reason.HOST_BUSY
        with pytest.raises(BusyError):
            await hold(held, places, lane="urgent")
        places.expect(OTHER_HOST, "3", "urgent")
        await hold(held, places, OTHER_HOST, lane="urgent")
        places.expect(HOST, "normal", "normal")
        (await hold(held, places, task="normal")).watch(Gone()).begin(head(LARGE + 1))
        taken = {lane: registry.get_sample_value("wavekeep_downloader_places_taken", {"lane": lane}) for lane in LANES}
    assert taken == {"urgent": 3, "normal": 1}


async def test_a_large_file_without_a_place_is_put_off_before_its_bytes(held: AsyncExitStack) -> None:
    """Its size is in the answer's head; small files are not concerned, and its task is known to be large then."""
    places, refused = build(per_host=9, large=1), Gone()
    first = AsyncExitStack()
    (await hold(first, places, task="one")).watch(Gone()).begin(head(LARGE + 1))
    async with held:
        for size_bytes in (None, 0, LARGE):
            (await hold(held, places, task="small")).watch(Gone()).begin(head(size_bytes))
        with pytest.raises(BusyError) as caught:
            (await hold(held, places, task="two")).watch(refused).begin(head(LARGE + 1))
        assert (caught.value.reason, refused.begun) == (Reason.LARGE_BUSY, [])
        with pytest.raises(BusyError):
            places.expect(HOST, "two", "normal")
        places.expect(HOST, "small", "normal")
        await first.aclose()
        places.expect(HOST, "two", "normal")
        (await hold(held, places, task="two")).watch(refused).begin(head(LARGE + 1))
        assert len(refused.begun) == 1


async def test_a_second_link_of_one_download_needs_no_second_place(held: AsyncExitStack) -> None:
    """A fresh link begins the same file anew."""
    async with held:
        sink = (await hold(held, build(large=1))).watch(Gone())
        sink.begin(head(LARGE + 1))
        sink.begin(head(LARGE + 1))


@pytest.mark.parametrize("offset", [0, LARGE - 1])
async def test_a_file_of_unknown_size_counts_once_it_is_past_the_bound(held: AsyncExitStack, offset: int) -> None:
    """It is not stopped, but whoever comes next finds its place taken."""
    places, sinks = build(per_host=9, large=1), (Gone(), Gone())
    async with held:
        for sink in sinks:
            watched = (await hold(held, places, task="unknown")).watch(sink)
            watched.begin(head(None, offset=offset))
            for _ in range(3):
                watched.write(bytes(LARGE // 2))
        with pytest.raises(BusyError):
            (await hold(held, places, task="two")).watch(Gone()).begin(head(LARGE + 1))
    assert [sink.size_bytes for sink in sinks] == [LARGE // 2 * 3] * 2
