"""Fairness: the bounds of hosts and of large files, who is waited for and who is not, and the urgent lane."""

import asyncio
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from downloader.fairness import Place, Places, queue_for
from downloader.fetch import Head
from downloader.metrics import LANES, DownloaderMetrics
from shared.errors import BusyError, Reason
from shared.events import ConversionAtRisk
from shared.messaging.topology import DOWNLOADER, URGENT
from tests.unit.custody_fakes import DEADLINE, LINK, NOW, House, succeeded

LARGE = 1_000
HOST, OTHER_HOST = "cdn.example.com", "files.example.org"


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


def build(
    *, per_host: int = 2, large: int = 1, patience_s: float = 60.0, registry: CollectorRegistry | None = None
) -> Places:
    """Return places; whoever waits does so for long, unless told otherwise."""
    metrics = DownloaderMetrics(registry or CollectorRegistry())
    return Places(per_host=per_host, large=large, large_bytes=LARGE, metrics=metrics, patience_s=patience_s)


def head(size_bytes: int | None, *, offset: int = 0) -> Head:
    """Return what an answer says first."""
    return Head(LINK, offset, None, (), None, size_bytes=size_bytes)


@pytest.fixture
async def held() -> AsyncExitStack:
    """What is held until the end of a test."""
    return AsyncExitStack()


async def hold(held: AsyncExitStack, places: Places, host: str = HOST, task: str = "") -> Place:
    """Take a place of the normal lane until the stack is left."""
    return await held.enter_async_context(places.take(host, task, "normal"))


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


async def test_a_host_that_gives_back_places_is_waited_for_in_order() -> None:
    """Who came first is served first: first tries of a healthy host keep their order."""
    places, served = build(per_host=1), list[int]()
    leave = asyncio.Event()

    async def download(number: int) -> None:
        async with places.take(HOST, str(number), "normal"):
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


async def test_the_urgent_lane_is_bounded_by_its_own_places_alone(held: AsyncExitStack) -> None:
    """What has little time left is held up by no bound, and takes nothing from the normal lane."""
    registry = CollectorRegistry()
    places = build(per_host=1, large=1, patience_s=0.0, registry=registry)
    async with held:
        for number in range(3):
            places.expect(HOST, str(number), "urgent")
            place = await held.enter_async_context(places.take(HOST, str(number), "urgent"))
            place.watch(Gone()).begin(head(LARGE + 1))
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


async def test_who_is_put_off_is_told_at_risk_all_the_same(house: House, held: AsyncExitStack) -> None:
    """Waiting for a place ends no duty to warn; the attempts told are those that were made."""
    assert house.places is not None
    house.now = NOW + (DEADLINE - NOW) * 0.6
    async with held:
        await hold(held, house.places)
        with pytest.raises(BusyError):
            await house.custody().handle(succeeded())
    (warning,) = [event.data for event in house.publisher.told]
    assert isinstance(warning, ConversionAtRisk)
    assert (warning.threshold_percent, warning.last_reason, warning.attempts) == (50, Reason.HOST_BUSY, 0)


async def test_an_urgent_report_finds_a_place_at_a_full_host(house: House, held: AsyncExitStack) -> None:
    """In the urgent lane a slow host holds nobody up."""
    assert house.places is not None
    async with held:
        await hold(held, house.places)
        await house.custody().handle(dataclasses.replace(succeeded(), queue=URGENT))
    assert house.publisher.types == ["conversion.stored"]


def test_being_put_off_is_short_and_ends_at_the_deadline(house: House) -> None:
    """30 s at first, 2 min for who has waited for long, less before a mark; past the deadline it is over."""
    custody, often = house.custody(), dataclasses.replace(succeeded(), attempts=9)

    def step(*, waited: timedelta, now_before_end: timedelta = timedelta(days=14)) -> float | None:
        house.now = DEADLINE - now_before_end
        message = dataclasses.replace(often, first_seen=house.now - waited)
        chosen = custody.next_step(message, Reason.LARGE_BUSY)
        return chosen.seconds if chosen else None

    assert step(waited=timedelta()) == 30
    assert step(waited=timedelta(minutes=9)) == 30
    assert step(waited=timedelta(minutes=10)) == 120
    assert step(waited=timedelta(days=3)) == 120
    assert step(waited=timedelta(days=3), now_before_end=timedelta(seconds=40)) == 30
    assert step(waited=timedelta(days=3), now_before_end=timedelta()) is None


def test_the_lane_is_that_of_the_moment_when_it_comes_back(house: House) -> None:
    """A delay that ends past 80 % leads into the urgent queue; what is no report stays where it is."""
    custody, urgent_from = house.custody(), NOW + (DEADLINE - NOW) * 0.8
    house.now = urgent_from - timedelta(seconds=30)
    assert custody.lane(succeeded(), 29.0) == DOWNLOADER
    assert custody.lane(succeeded(), 30.0) == URGENT
    assert custody.lane(dataclasses.replace(succeeded(), body=b"{", queue="any"), 30.0) == "any"
