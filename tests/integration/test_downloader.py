"""The downloader as a service: over a real queue, against a real file server on loopback, into a real folder."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from downloader.app import Downloader
from downloader.names import names_of
from downloader.settings import DownloaderSettings
from shared.errors import Reason, StartError
from shared.events import ConversionAtRisk, ConversionRejected, ConversionStored, Event, ReportFailed, ReportSucceeded
from shared.messaging.topology import DOWNLOADER, NOTIFIER
from shared.operations import serving
from shared.vendors import Vendor
from simulator.wavs import Flavour, wav
from tests.contract.storages import files
from tests.integration.embedded_house import Clock, EmbeddedHouse, embedded_house, eventually, until
from tests.log_capture import captured_logs

PARKED = f"{DOWNLOADER}.parked"


class FileServer:
    """Serves a WAV of any flavour under its name, and can be told to hold or refuse."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.status = 200
        self.open = asyncio.Event()
        self.open.set()
        self.in_progress = 0
        self.most_in_progress = 0

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        name = request.match_info["name"]
        self.asked.append(name)
        self.in_progress += 1
        self.most_in_progress = max(self.most_in_progress, self.in_progress)
        try:
            await self.open.wait()
            if self.status != 200:
                return web.Response(status=self.status)
            return web.Response(body=content(name), content_type="audio/wav")
        finally:
            self.in_progress -= 1

    def url(self, name: str) -> str:
        """Return the link of a file."""
        return f"http://127.0.0.1:{self.port}/{name}?Signature=k3y"


def content(name: str) -> bytes:
    """Return the bytes of a file by its name: a flavour, a dash, a seed."""
    flavour, _, seed = name.partition("-")
    return b"".join(wav(duration_s=0.2, seed=int(seed or 0), flavour=flavour).blocks())


@pytest.fixture
async def server() -> AsyncIterator[FileServer]:
    """A file server on a free port."""
    server = FileServer()
    app = web.Application()
    app.router.add_get("/{name}", server.get)
    async with serving(app, "127.0.0.1", 0, shutdown_timeout_s=0.1) as server.port:
        yield server


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[EmbeddedHouse]:
    """A broker in a folder of its own."""
    async with embedded_house(tmp_path) as house:
        yield house


def downloader(house: EmbeddedHouse, *, opened: bool = True, **settings: Any) -> Downloader:
    """Return a downloader on this broker, the loopback network opened unless told otherwise."""
    openings: dict[str, Any] = {"download_allow_addresses": ("127.0.0.0/8",)} if opened else {}
    return Downloader(
        DownloaderSettings(data_dir=house.folder, **openings, **settings),
        house.broker,
        house.registry,
        clock=house.clock,
    )


def report(url: str, task_id: str = "task-1", *, clock: Clock, age: timedelta = timedelta()) -> ReportSucceeded:
    """Return a report of a file, first received a while ago."""
    received_at = clock() - age
    return ReportSucceeded(
        vendor=Vendor.APIBOX,
        task_id=task_id,
        url=url,
        code=200,
        message="success",
        received_at=received_at,
        deadline=received_at + timedelta(days=15),
        trust=("token",),
    )


async def test_reports_become_files(house: EmbeddedHouse, server: FileServer) -> None:
    """Each file is kept byte for byte, with its manifest and its marker, and nothing else is left anywhere."""
    flavours = [Flavour.PCM16, Flavour.PCM24, Flavour.FLOAT32, Flavour.RF64, Flavour.WITH_LIST, Flavour.ODD]
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        for flavour in flavours:
            for _ in range(2):
                await house.publish(report(server.url(flavour), f"task-{flavour}", clock=house.clock))
        await until(lambda: len(heard) == len(flavours))
        await eventually(lambda: drained(house))
    expected = set()
    for event in heard:
        assert isinstance(event.data, ConversionStored)
        names = names_of("apibox", event.data.task_id)
        audio = names.audio(event.data.sha256)
        expected |= {audio, names.manifest, names.announced}
        assert (house.folder / "files" / audio).read_bytes() == content(event.data.task_id.removeprefix("task-"))
        assert event.data.uri == (house.folder / "files" / audio).as_uri()
    assert files(house.folder / "files") == expected
    assert files(house.folder / "staging") == set()
    assert len(heard) == len(flavours) == len(server.asked)


async def drained(house: EmbeddedHouse) -> bool:
    """Tell whether the downloader has nothing left to do."""
    return (await house.broker.depths())[DOWNLOADER] == 0


async def test_no_more_downloads_at_once_than_set(house: EmbeddedHouse, server: FileServer) -> None:
    """The concurrency setting bounds what is asked of the network, memory and disk at once."""
    server.open.clear()
    async with (
        house.hearing(NOTIFIER) as heard,
        house.running(downloader(house, download_concurrency=2, download_per_host=2)),
    ):
        for number in range(6):
            await house.publish(report(server.url(f"pcm16-{number}"), f"task-{number}", clock=house.clock))
        await until(lambda: server.in_progress == 2)
        assert house.count("wavekeep_downloader_attempts_in_progress") == 2
        server.open.set()
        await until(lambda: len(heard) == 6)
    assert server.most_in_progress == 2


async def test_a_dead_link_waits_and_heals(house: EmbeddedHouse, server: FileServer) -> None:
    """A passing failure goes up the ladder unannounced; the next attempt stores the file."""
    server.status = 503
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        await house.publish(report(server.url("pcm16"), clock=house.clock))
        await until(lambda: house.count("wavekeep_test_messages_total", queue=DOWNLOADER, outcome="retried") == 1)
        assert house.count("wavekeep_test_message_failures_total", reason="http_failed") == 1
        assert not heard
        server.status = 200
        house.clock.ahead += timedelta(seconds=6)
        await until(lambda: heard)
    assert isinstance(heard[0].data, ConversionStored)
    assert len(server.asked) == 2


async def test_every_line_about_a_task_bears_its_subject(house: EmbeddedHouse, server: FileServer) -> None:
    """From the retry to the last settlement, one search for the subject finds all that was logged of it."""
    server.status = 503
    with captured_logs() as lines:
        async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
            await house.publish(report(server.url("pcm16"), "followed", clock=house.clock))
            await until(lambda: house.count("wavekeep_test_messages_total", queue=DOWNLOADER, outcome="retried") == 1)
            server.status = 200
            house.clock.ahead += timedelta(seconds=6)
            await until(lambda: heard)
            await eventually(lambda: drained(house))
    told = [line for line in lines if line.get("queue") == DOWNLOADER and str(line["event"]).startswith("message.")]
    assert {line["event"] for line in told} == {"message.retry_scheduled", "message.settled"}
    assert {line.get("subject") for line in told} == {"apibox/followed"}
    assert len({str(line.get("traceparent")).split("-")[1] for line in told}) == 1


async def test_a_late_failure_warns(house: EmbeddedHouse, server: FileServer) -> None:
    """People hear that a file is at risk while there is still time to help."""
    server.status = 404
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        await house.publish(report(server.url("pcm16"), clock=house.clock, age=timedelta(days=8)))
        await until(lambda: heard)
    assert isinstance(heard[0].data, ConversionAtRisk)
    assert (heard[0].data.threshold_percent, heard[0].data.last_reason) == (50, Reason.LINK_EXPIRED)


async def test_trying_ends_at_the_deadline(house: EmbeddedHouse, server: FileServer) -> None:
    """Past the deadline a failing report is rejected with the last reason and parked for a person."""
    server.status = 404
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        await house.publish(report(server.url("pcm16"), clock=house.clock, age=timedelta(days=16)))
        await eventually(lambda: has_parked(house, Reason.LINK_EXPIRED))
        await until(lambda: rejections(heard))
    assert [rejection.reason for rejection in rejections(heard)] == [Reason.LINK_EXPIRED]


@pytest.mark.parametrize(
    ("flavour", "settings", "reason"),
    [
        (Flavour.ALAW, {}, Reason.WAV_UNSUPPORTED),
        (Flavour.SECOND_FILE, {}, Reason.WAV_INVALID),
        (Flavour.PCM16, {"download_max_bytes": 1_000}, Reason.TOO_LARGE),
    ],
)
async def test_what_cannot_get_better_is_parked_and_told(
    house: EmbeddedHouse, server: FileServer, flavour: str, settings: dict[str, Any], reason: Reason
) -> None:
    """A file that no repetition can mend is rejected at once, with the reason, and leaves no audio."""
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, **settings)):
        await house.publish(report(server.url(flavour), clock=house.clock))
        await eventually(lambda: has_parked(house, reason))
        await until(lambda: heard)
    assert [rejection.reason for rejection in rejections(heard)] == [reason]
    assert not [name for name in files(house.folder / "files") if name.endswith(".wav")]
    assert files(house.folder / "staging") == set()


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("http://127.0.0.1:{port}/pcm16", Reason.ADDRESS_FORBIDDEN),
        ("https://127.0.0.1/pcm16", Reason.ADDRESS_FORBIDDEN),
        ("http://localhost:{port}/pcm16", Reason.ADDRESS_FORBIDDEN),
        ("ftp://127.0.0.1:{port}/pcm16", Reason.SCHEME_FORBIDDEN),
        ("https://localhost/pcm16", Reason.ADDRESS_FORBIDDEN),
    ],
)
async def test_without_an_opening_nothing_private_is_asked(
    house: EmbeddedHouse, server: FileServer, link: str, reason: Reason
) -> None:
    """As installed, a callback cannot make the downloader talk to its own machine; people are told."""
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, opened=False)):
        await house.publish(report(link.format(port=server.port), clock=house.clock))
        await eventually(lambda: has_parked(house, reason))
        await until(lambda: heard)
    assert [rejection.reason for rejection in rejections(heard)] == [reason]
    assert server.asked == []


async def test_a_vendors_failure_needs_no_file(house: EmbeddedHouse, server: FileServer) -> None:
    """A failure goes from the private exchange to the public one without touching the network."""
    failure = ReportFailed(
        vendor=Vendor.KIE,
        task_id="task-1",
        code=451,
        message="no",
        received_at=house.clock(),
        deadline=house.clock() + timedelta(days=14),
        trust=("signature",),
    )
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        await house.publish(failure)
        await until(lambda: heard)
    assert [(rejection.reason, rejection.code) for rejection in rejections(heard)] == [(Reason.VENDOR_FAILED, 451)]
    assert server.asked == []


async def test_a_death_in_the_middle_is_made_good(tmp_path: Path, server: FileServer) -> None:
    """What was in hand when the process died is fetched by the next one, and nothing of the first is left."""
    server.open.clear()
    async with embedded_house(tmp_path) as first, first.dying(downloader(first)):
        await first.publish(report(server.url("pcm16"), clock=first.clock))
        await until(lambda: server.in_progress == 1)
    server.open.set()
    async with embedded_house(tmp_path) as house, house.hearing(NOTIFIER) as heard, house.running(downloader(house)):
        await until(lambda: heard)
    assert len(files(tmp_path / "files")) == 3
    assert files(tmp_path / "staging") == set()


async def test_a_storage_that_cannot_be_used_ends_the_start(house: EmbeddedHouse) -> None:
    """A downloader that could keep nothing takes no report."""
    (house.folder / "files").write_text("in the way")
    with pytest.raises(StartError, match="Files cannot be kept"):
        await downloader(house).run(asyncio.Event())
    assert not house.broker.consuming(DOWNLOADER)


async def has_parked(house: EmbeddedHouse, reason: Reason) -> bool:
    """Tell whether exactly one report is parked, with this reason."""
    return [kept.reason for kept in await house.parked(PARKED)] == [reason]


def rejections(heard: list[Event]) -> list[ConversionRejected]:
    """Return the rejections among what was heard."""
    return [event.data for event in heard if isinstance(event.data, ConversionRejected)]
