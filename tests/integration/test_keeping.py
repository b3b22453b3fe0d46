"""The downloader and its room: refusing in time, recovering by itself, and letting files go, over a real queue."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from downloader.app import Downloader
from downloader.names import names_of
from downloader.settings import DownloaderSettings
from shared.errors import Reason, RetryableError
from shared.events import ConversionStored, Event, FileExpired, ReportSucceeded
from shared.messaging.topology import DOWNLOADER, NOTIFIER
from shared.operations import serving
from shared.vendors import Vendor
from simulator.wavs import wav
from tests.contract.storages import files
from tests.faults.surroundings import FILLER, filled, small_disk
from tests.integration.embedded_house import EmbeddedHouse, embedded_house, eventually, until
from tests.log_capture import captured_logs

CONTENT = b"".join(wav(duration_s=6).blocks())
FULL = "wavekeep_test_message_failures_total"


@pytest.fixture
async def server() -> AsyncIterator[str]:
    """The address of a file server; `/chunked/…` does not tell how much comes."""

    async def get(request: web.Request) -> web.StreamResponse:
        if request.match_info["how"] == "told":
            return web.Response(body=CONTENT, content_type="audio/wav")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(CONTENT)
        return response

    app = web.Application()
    app.router.add_get("/{how}/{name}", get)
    async with serving(app, "127.0.0.1", 0, shutdown_timeout_s=0.1) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[EmbeddedHouse]:
    """A broker in a folder of its own."""
    async with embedded_house(tmp_path) as house:
        yield house


def downloader(house: EmbeddedHouse, *, every_s: float = 3_600, **settings: Any) -> Downloader:
    """Return a downloader on this broker that keeps house every so often."""
    return Downloader(
        DownloaderSettings(
            data_dir=house.folder,
            download_allow_addresses=("127.0.0.0/8",),
            download_max_bytes=settings.pop("download_max_bytes", len(CONTENT)),
            **settings,
        ),
        house.broker,
        house.registry,
        clock=house.clock,
        keep_house_every_s=every_s,
    )


def report(house: EmbeddedHouse, url: str, task_id: str) -> ReportSucceeded:
    """Return a report of a file."""
    return ReportSucceeded(
        vendor=Vendor.APIBOX,
        task_id=task_id,
        url=url,
        code=200,
        message="success",
        received_at=house.clock(),
        deadline=house.clock() + timedelta(days=15),
        trust=("token",),
    )


async def refused(house: EmbeddedHouse, times: int) -> None:
    """Return when so many attempts were refused for want of room."""
    await until(lambda: house.count(FULL, reason="storage_full") >= times)


@pytest.mark.parametrize("how", ["told", "chunked"])
async def test_a_spent_quota_is_waited_out(house: EmbeddedHouse, server: str, how: str) -> None:
    """Beyond the quota nothing is fetched; what is kept is counted at the next start, and room made is room."""
    quota = {"storage_quota_bytes": len(CONTENT) + 10}
    async with house.hearing(NOTIFIER) as heard:
        async with house.running(downloader(house, **quota)):
            await house.publish(report(house, f"{server}/{how}/1", "task-1"))
            await until(lambda: len(heard) == 1)
            assert house.count("wavekeep_downloader_kept_bytes") == len(CONTENT)
        with captured_logs() as lines:
            house.registry = type(house.registry)()
            async with house.running(downloader(house, **quota)):
                await until(lambda: house.count("wavekeep_downloader_kept_bytes") == len(CONTENT))
                await house.publish(report(house, f"{server}/{how}/2", "task-2"))
                await until(lambda: any(line.get("reason") == "storage_full" for line in lines))
                assert files(house.folder / "staging") == set()
        told = [line["detail"] for line in lines if line.get("reason") == "storage_full" and "detail" in line]
        assert "WAVEKEEP_STORAGE_QUOTA_BYTES" in told[0]
        before_its_first_byte = f"{len(CONTENT)} under way" in told[0]
        assert before_its_first_byte == (how == "told")
        house.clock.ahead += timedelta(seconds=10)
        house.registry = type(house.registry)()
        async with house.running(downloader(house, storage_quota_bytes=2 * len(CONTENT))):
            await until(lambda: len(heard) == 2)
    assert all(isinstance(event.data, ConversionStored) for event in heard)


@pytest.mark.parametrize("how", ["told", "chunked"])
async def test_the_reserve_leaves_room_for_the_queue(tmp_path: Path, server: str, how: str) -> None:
    """On a disk that files would fill, downloads are refused, and the queue beside them goes on committing reports."""
    with small_disk(tmp_path / "data", "64m") as disk:
        async with embedded_house(disk) as house, house.hearing(NOTIFIER) as heard:
            settings = {"storage_reserve_bytes": 4 * 1024 * 1024}
            async with house.running(downloader(house, **settings)):
                with filled(disk, leave_bytes=4 * 1024 * 1024 - 50_000):
                    await house.publish(report(house, f"{server}/{how}/0", "task-0"))
                    await refused(house, 1)
                    for number in range(1, 20):
                        await house.publish(report(house, f"{server}/{how}/{number}", f"task-{number}-{'x' * 20_000}"))
                    await refused(house, 20)
                    assert {path.name for path in disk.rglob("*.wav")} == set()
                    assert list((disk / "staging").iterdir()) == []
                assert not (disk / FILLER).exists()
                house.clock.ahead += timedelta(minutes=1)
                await until(lambda: len(heard) == 20)
    assert all(isinstance(event.data, ConversionStored) for event in heard)


async def test_free_space_is_told(house: EmbeddedHouse, server: str) -> None:
    """An alert can compare what is free with what stays free, from the start on."""
    async with house.running(downloader(house, storage_reserve_bytes=12_345)):
        for disk in ("staging", "storage"):
            await until(partial(free_is_told, house, disk))
            assert house.count("wavekeep_downloader_disk_reserve_bytes", disk=disk) == 12_345


def free_is_told(house: EmbeddedHouse, disk: str) -> bool:
    """Tell whether a disk was looked at."""
    return house.count("wavekeep_downloader_disk_free_bytes", disk=disk) > 12_345


async def test_an_expired_file_is_told_once_and_never_fetched_again(house: EmbeddedHouse, server: str) -> None:
    """Named for a day, told, deleted; a late callback then ends silently, and further rounds tell nothing."""
    rules = {"retention_mode": "delete", "retention_max_age_days": 30}
    names = names_of("apibox", "task-1")
    link = f"{server}/told/1"
    async with house.hearing(NOTIFIER) as heard:
        async with house.running(downloader(house, every_s=0.05, **rules)):
            first = report(house, link, "task-1")
            await house.publish(first)
            await until(lambda: len(heard) == 1)
            for days in (31, 32):
                house.clock.ahead = timedelta(days=days)
                await a_round(house)
            await until(lambda: len(heard) == 2)
            await house.publish(first)
            await eventually(lambda: drained(house))
            await a_round(house)
        await asyncio.wait_for(eventually(lambda: drained(house)), 10)
    assert [type(event.data) for event in heard] == [ConversionStored, FileExpired]
    kept = files(house.folder / "files")
    assert {names.manifest, names.announced, names.expired} <= kept
    assert [key for key in kept if key.endswith(".wav")] == []


async def a_round(house: EmbeddedHouse) -> None:
    """Return once a whole round was done from here on."""
    name = "wavekeep_downloader_housekeeping_rounds_total"
    done = house.count(name, outcome="done")
    await until(lambda: house.count(name, outcome="done") >= done + 2)


def was_counted(house: EmbeddedHouse, outcome: str) -> bool:
    """Tell whether one round ended so."""
    return house.count("wavekeep_downloader_housekeeping_rounds_total", outcome=outcome) == 1


def has_heard(heard: list[Event]) -> bool:
    """Tell whether one event came."""
    return len(heard) == 1


async def drained(house: EmbeddedHouse) -> bool:
    """Tell whether the downloader has nothing left to do."""
    return (await house.broker.depths())[DOWNLOADER] == 0


async def test_housekeeping_that_fails_does_not_stop_the_service(
    house: EmbeddedHouse, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that cannot be listed, or a fault of ours, is counted and told; files are taken all the same."""
    for error, outcome in ((OSError("gone"), "crashed"), (None, "failed")):
        (house.folder / outcome).mkdir()
        house.registry = type(house.registry)()
        service = downloader(house, storage_url=(house.folder / outcome).as_uri())

        async def fail(error: Exception | None = error) -> None:
            raise error or RetryableError(Reason.STORAGE_FAILED, "a hiccup")

        monkeypatch.setattr(service._housekeeping, "round", fail)
        async with house.hearing(NOTIFIER) as heard, house.running(service):
            await until(partial(was_counted, house, outcome))
            await house.publish(report(house, f"{server}/told/1", f"task-{outcome}"))
            await until(partial(has_heard, heard))
