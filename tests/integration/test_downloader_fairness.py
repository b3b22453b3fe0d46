"""Fairness over real sockets: neither huge files, nor a host or vendor that drips, hold up those who could go on.

One machine, several hosts: 127.0.0.1, 127.0.0.2, … are all loopback.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from downloader.app import Downloader
from downloader.settings import DownloaderSettings
from shared import events
from shared.errors import Reason
from shared.events import ConversionAtRisk, ConversionRejected, ConversionStored, Event, ReportSucceeded
from shared.messaging.topology import DOWNLOADER, NOTIFIER, URGENT, private_exchange
from shared.operations import serving
from shared.vendors import Vendor
from simulator.wavs import wav
from tests.integration.embedded_house import EmbeddedHouse, embedded_house, until

LARGE = 200_000
FAST, SLOW, OTHER_SLOW = "127.0.0.1", "127.0.0.2", "127.0.0.3"
TEN_SLOW = [f"127.0.1.{number}" for number in range(1, 11)]
SMALL_FILE = b"".join(wav(duration_s=0.1).blocks())
HUGE_FILE = b"".join(wav(duration_s=3.0).blocks())
assert len(SMALL_FILE) < LARGE < len(HUGE_FILE)


class Server:
    """Serves small files at once; huge ones, and whatever begins with `drip`, begin and wait until they may go on.

    Attributes:
        asked: for what, in order.
        begun: how many of those that wait are under way, and still listened to.
        go_on: set, everything is served whole.
        refuses: answers everything with 503.
    """

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.begun = 0
        self.go_on = asyncio.Event()
        self.refuses = False

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        name = request.match_info["name"]
        self.asked.append(name)
        if self.refuses:
            return web.Response(status=503)
        content = HUGE_FILE if name.startswith("huge") else SMALL_FILE
        if not name.startswith(("huge", "drip")):
            return web.Response(body=content)
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(content[:100])
        self.begun += 1
        while not self.go_on.is_set() and (line := request.transport) is not None and not line.is_closing():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.go_on.wait(), 0.02)
        self.begun -= 1
        with contextlib.suppress(ConnectionError):
            await response.write(content[100:])
        return response

    def url(self, host: str, name: str) -> str:
        """Return the link of a file."""
        return f"http://{host}:{self.port}/{name}"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A file server on every loopback address."""
    server = Server()
    app = web.Application()
    app.router.add_get("/{name}", server.get)
    async with serving(app, "0.0.0.0", 0, shutdown_timeout_s=0.1) as server.port:
        yield server
        server.go_on.set()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[EmbeddedHouse]:
    """A broker in a folder of its own."""
    async with embedded_house(tmp_path) as house:
        yield house


def downloader(house: EmbeddedHouse, **settings: Any) -> Downloader:
    """Return a downloader with four places, that loopback is open to."""
    given: dict[str, Any] = {"download_concurrency": 4, "download_large_bytes": LARGE} | settings
    return Downloader(
        DownloaderSettings(data_dir=house.folder, download_allow_addresses=("127.0.0.0/8",), **given),
        house.broker,
        house.registry,
        clock=house.clock,
    )


def report(
    house: EmbeddedHouse,
    server: Server,
    host: str,
    name: str,
    *,
    vendor: Vendor = Vendor.APIBOX,
    age: timedelta = timedelta(),
) -> ReportSucceeded:
    """Return the report of a file, first received a while ago."""
    received_at = house.clock() - age
    return ReportSucceeded(
        vendor=vendor,
        task_id=name,
        url=server.url(host, name),
        code=200,
        message="success",
        received_at=received_at,
        deadline=received_at + timedelta(days=15),
        trust=("token",),
    )


async def publish(house: EmbeddedHouse, server: Server, host: str, name: str, **rest: Any) -> None:
    """Report a file."""
    await house.publish(report(house, server, host, name, **rest))


async def publish_urgent(house: EmbeddedHouse, server: Server, host: str, name: str, **rest: Any) -> None:
    """Report a file into the urgent lane, as if it had been put off into it."""
    event = events.make(report(house, server, host, name, **rest), time=house.clock())
    await house.broker.publish(private_exchange(DOWNLOADER), URGENT, events.encode(event), event_id=event.id)


def stored(heard: list[Event], beginning: str) -> list[str]:
    """Return the tasks that were told as stored, of those whose names begin so."""
    tasks = [event.data.task_id for event in heard if isinstance(event.data, ConversionStored)]
    return [task for task in tasks if task.startswith(beginning)]


def outcomes(house: EmbeddedHouse, outcome: str, queue: str = DOWNLOADER) -> float:
    """Return how many messages of a queue ended so."""
    return house.count("wavekeep_test_messages_total", queue=queue, outcome=outcome)


async def ahead_until(house: EmbeddedHouse, condition: Callable[[], bool]) -> None:
    """Let the longest time of being put off pass by, again and again, until the condition holds."""

    def handled() -> float:
        return sum(
            outcomes(house, outcome, queue) for outcome in ("acked", "put_off") for queue in (DOWNLOADER, URGENT)
        )

    while not condition():
        before = handled()
        house.clock.ahead += timedelta(seconds=121)
        await until(lambda: condition() or handled() > before)  # noqa: B023 - awaited before it changes


async def test_a_few_huge_slow_files_do_not_starve_many_small_ones(house: EmbeddedHouse, server: Server) -> None:
    """With huge ones first in the queue, all the small ones are stored while huge ones still run."""
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        for number in range(3):
            await publish(house, server, SLOW, f"huge-{number}")
        for number in range(30):
            await publish(house, server, FAST, f"small-{number}")
        await until(lambda: len(stored(heard, "small")) == 30)
        await until(lambda: server.begun == 2)  # half of four places
        assert house.count("wavekeep_downloader_places_taken", lane="normal") == 2
        assert house.count("wavekeep_downloader_put_offs_total", reason="large_busy") >= 1
        server.go_on.set()
        house.clock.ahead += timedelta(seconds=31)
        await until(lambda: len(stored(heard, "huge")) == 3)
    assert house.count("wavekeep_test_message_failures_total", reason="large_busy") == 0


async def test_a_host_that_drips_does_not_starve_another_vendor(house: EmbeddedHouse, server: Server) -> None:
    """200 messages of a host that hangs are ahead in the queue, and the one behind them is stored all the same."""
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        for number in range(200):
            await publish(house, server, SLOW, f"drip-{number}")
        await publish(house, server, FAST, "other")
        await until(lambda: stored(heard, "other"))
        assert server.begun == 3, "all places but one"
        assert len(server.asked) == 4, "who is put off asks for nothing"
        server.go_on.set()
        await ahead_until(house, lambda: len(stored(heard, "drip")) == 200)
    assert not [event for event in heard if isinstance(event.data, ConversionRejected)]


async def test_a_vendor_whose_hosts_all_drip_does_not_starve_another_one(house: EmbeddedHouse, server: Server) -> None:
    """200 reports of one vendor, on ten hosts that hang, are ahead of ten of one that was never heard of before."""
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        for number in range(200):
            await publish(house, server, TEN_SLOW[number % 10], f"drip-{number}")
        for number in range(10):
            await publish(house, server, FAST, f"other-{number}", vendor=Vendor.KIE)
        await until(lambda: len(stored(heard, "other")) == 10)
        assert server.begun == 4, "one vendor alone has as many places as there are downloads at once"
        assert len(server.asked) == 14, "who is put off asks for nothing"
        assert house.count("wavekeep_downloader_put_offs_total", reason="vendor_busy") >= 190
        server.go_on.set()
        await ahead_until(house, lambda: len(stored(heard, "drip")) == 200)
    assert not [event for event in heard if isinstance(event.data, ConversionRejected)]
    assert house.count("wavekeep_test_message_failures_total", reason="vendor_busy") == 0


async def test_one_vendor_alone_loses_nothing_by_its_bound(house: EmbeddedHouse, server: Server) -> None:
    """It has every download there is, goes on in order as places come free, and none of its reports is put off."""
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        for number in range(6):
            await publish(house, server, TEN_SLOW[number], f"drip-{number}")
        await until(lambda: server.begun == 4)
        server.go_on.set()
        for number in range(60):
            await publish(house, server, TEN_SLOW[number % 10], f"small-{number}")
        await until(lambda: len(stored(heard, "")) == 66)
    assert outcomes(house, "put_off") == 0
    asked = [int(name.removeprefix("small-")) for name in server.asked if name.startswith("small")]
    assert all(abs(number - place) <= 5 for place, number in enumerate(asked)), asked


async def test_in_the_urgent_lane_a_host_that_hangs_holds_up_no_other_one(house: EmbeddedHouse, server: Server) -> None:
    """One host has all urgent places but one, however many of its reports are there; and none of them is given up."""
    late = timedelta(days=13)
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        for number in range(20):
            await publish_urgent(house, server, SLOW, f"drip-{number}", age=late)
        for number in range(20):
            await publish_urgent(house, server, SLOW, f"drip-last-{number}", age=timedelta(days=16))
        for number in range(5):
            await publish_urgent(house, server, FAST, f"other-{number}", age=late)
        await until(lambda: len(stored(heard, "other")) == 5)
        assert server.begun == 2, "all places but one"
        assert len(server.asked) == 7, "who is put off asks for nothing"
        await until(lambda: outcomes(house, "put_off", URGENT) >= 38)
        server.go_on.set()
        await ahead_until(house, lambda: len(stored(heard, "drip")) == 40)
    assert outcomes(house, "acked", URGENT) == 45
    assert not [event for event in heard if isinstance(event.data, ConversionRejected)]
    warned = {
        event.data.task_id
        for event in heard
        if isinstance(event.data, ConversionAtRisk) and event.data.threshold_percent == 80
    }
    assert len(warned) == 38, "who waits at a mark is told all the same"


async def test_with_one_urgent_place_another_vendor_s_is_not_held_up(house: EmbeddedHouse, server: Server) -> None:
    """There is one place beyond those that one vendor can have, however few those are; in the normal lane too."""
    settings = {"download_concurrency": 1, "download_urgent_concurrency": 1}
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, **settings)):
        for number in range(3):
            await publish(house, server, SLOW, f"drip-{number}")
            await publish_urgent(house, server, SLOW, f"drip-late-{number}", age=timedelta(days=13))
        await publish(house, server, FAST, "other", vendor=Vendor.KIE)
        await publish_urgent(house, server, FAST, "other-late", age=timedelta(days=13), vendor=Vendor.KIE)
        await until(lambda: len(stored(heard, "other")) == 2)
        assert server.begun == 2


async def test_what_has_little_time_left_needs_no_normal_place(house: EmbeddedHouse, server: Server) -> None:
    """With every normal place taken, a retry past 80 % of its time is handled in places of its own, and was told."""
    server.refuses = True
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        await publish(house, server, FAST, "late", age=timedelta(days=13))
        await until(lambda: outcomes(house, "retried") == 1)
        server.refuses = False
        for host in (SLOW, OTHER_SLOW):
            await publish(house, server, host, f"drip-1-{host}")
            await publish(house, server, host, f"drip-2-{host}")
        await until(lambda: server.begun == 4)
        house.clock.ahead += timedelta(seconds=6)
        await until(lambda: stored(heard, "late"))
        assert server.begun == 4
    assert outcomes(house, "acked", URGENT) == 1
    warnings = [event.data for event in heard if isinstance(event.data, ConversionAtRisk)]
    assert [warning.threshold_percent for warning in warnings] == [50, 80]


async def test_what_has_little_time_left_goes_past_a_full_host(house: EmbeddedHouse, server: Server) -> None:
    """An urgent report that finds no place in the normal lane is handed on at once, and tried beyond the bound."""
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        for number in range(3):
            await publish(house, server, SLOW, f"drip-{number}")
        await until(lambda: server.begun == 3)
        await publish(house, server, SLOW, "late", age=timedelta(days=13))
        await until(lambda: stored(heard, "late"))
        assert server.begun == 3
    assert outcomes(house, "forwarded") == 1
    assert outcomes(house, "acked", URGENT) == 1
    warnings = [event.data for event in heard if isinstance(event.data, ConversionAtRisk)]
    assert {warning.last_reason for warning in warnings} == {Reason.HOST_BUSY}


async def test_a_busy_host_costs_no_last_attempt(house: EmbeddedHouse, server: Server) -> None:
    """A report that comes to its deadline behind a full host gets its attempt before it is given up."""
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        for number in range(3):
            await publish(house, server, SLOW, f"drip-{number}")
        await until(lambda: server.begun == 3)
        await publish(house, server, SLOW, "last", age=timedelta(days=16))
        await until(lambda: stored(heard, "last"))


async def test_ready_means_that_both_queues_are_consumed(house: EmbeddedHouse, server: Server) -> None:
    """A downloader whose urgent lane does not work is not ready."""
    service = downloader(house)
    async with house.running(service):
        assert service.checks() == {"downloader": True, "storage": True}
        house.broker._consuming.pop(URGENT)
        assert service.checks() == {"downloader": False, "storage": True}
