"""Files that are measured before they are kept: real workers, real files, and never a file less for it."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from downloader.app import Downloader
from downloader.manifest import Manifest, read_manifest
from downloader.names import names_of
from downloader.settings import DownloaderSettings
from shared.errors import StartError
from shared.events import ConversionStored, ReportSucceeded
from shared.messaging.topology import NOTIFIER
from shared.operations import serving
from shared.vendors import Vendor
from simulator.wavs import wav
from tests.integration.embedded_house import EmbeddedHouse, embedded_house, until

TASK = "task-1"
NAMES = names_of(Vendor.KIE, TASK)


@pytest.fixture
async def link() -> AsyncIterator[str]:
    """The link of a file on a server of the test's own."""

    async def get(_: web.Request) -> web.Response:
        return web.Response(body=b"".join(wav(duration_s=2).blocks()), content_type="audio/wav")

    app = web.Application()
    app.router.add_get("/song.wav", get)
    async with serving(app, "127.0.0.1", 0, shutdown_timeout_s=0.1) as port:
        yield f"http://127.0.0.1:{port}/song.wav"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[EmbeddedHouse]:
    """A broker in a folder of its own."""
    async with embedded_house(tmp_path) as house:
        yield house


def downloader(house: EmbeddedHouse, **settings: Any) -> Downloader:
    """Return a downloader on this broker."""
    return Downloader(
        DownloaderSettings(data_dir=house.folder, download_allow_addresses=("127.0.0.0/8",), **settings),
        house.broker,
        house.registry,
        clock=house.clock,
    )


async def stored(house: EmbeddedHouse, link: str, **settings: Any) -> tuple[Manifest, ConversionStored]:
    """Have one file taken into custody; return its manifest and what was told of it."""
    now = house.clock()
    async with house.hearing(NOTIFIER) as heard, house.running(downloader(house, **settings)):
        await house.publish(
            ReportSucceeded(
                vendor=Vendor.KIE,
                task_id=TASK,
                url=link,
                code=200,
                message="success",
                received_at=now,
                deadline=now + timedelta(days=14),
                trust=("token",),
            )
        )
        await until(lambda: len(heard) == 1)
        await until(lambda: not list((house.folder / "staging").iterdir()))
    (event,) = heard
    assert isinstance(event.data, ConversionStored)
    return read_manifest((house.folder / "files" / NAMES.manifest).read_bytes()), event.data


async def test_figures_picture_and_peaks_are_kept_with_the_file(house: EmbeddedHouse, link: str) -> None:
    """What was measured stands in manifest and event; the picture and the peaks lie beside the audio."""
    manifest, told = await stored(house, link, quality=True, waveform=True)
    assert manifest.quality is not None
    assert manifest.quality.status == "measured"
    assert manifest.quality.second_opinion == "agrees"
    assert told.quality == msgspec.json.decode(msgspec.json.encode(manifest.quality))
    assert (manifest.waveform, manifest.peaks) == (NAMES.waveform(manifest.sha256), NAMES.peaks(manifest.sha256))
    files = house.folder / "files"
    assert (files / str(manifest.waveform)).read_bytes().startswith(b"\x89PNG")
    for key in (manifest.audio, manifest.waveform, manifest.peaks):
        assert (files / str(key)).stat().st_mode & 0o777 == 0o600
    peaks = msgspec.json.decode((files / str(manifest.peaks)).read_bytes())
    assert peaks["version"] == 2
    assert len(peaks["data"]) == 2 * peaks["channels"] * peaks["length"]
    assert house.registry.get_sample_value("wavekeep_downloader_quality_runs_total", {"outcome": "measured"}) == 1


async def test_a_failed_run_costs_no_file(house: EmbeddedHouse, link: str) -> None:
    """Where measuring takes too long the file is kept and told all the same, and both say that it is not measured."""
    manifest, told = await stored(house, link, quality=True, waveform=True, quality_timeout_s=0.001)
    assert manifest.quality is not None
    assert (manifest.quality.status, manifest.quality.failure) == ("failed", "timed_out")
    assert (manifest.waveform, manifest.peaks) == (None, None)
    assert told.quality is not None
    assert told.quality["status"] == "failed"
    assert house.registry.get_sample_value("wavekeep_downloader_quality_runs_total", {"outcome": "timed_out"}) == 1


async def test_a_waveform_alone_tells_no_figures(house: EmbeddedHouse, link: str) -> None:
    """Each of the two has its own setting."""
    manifest, told = await stored(house, link, waveform=True)
    assert (manifest.quality, told.quality) == (None, None)
    assert manifest.waveform is not None


async def test_without_the_extra_the_start_says_what_to_install(
    house: EmbeddedHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that cannot be met is refused at once, in a sentence."""
    monkeypatch.setattr("downloader.quality_run.find_spec", lambda _: None)
    with pytest.raises(StartError, match=r"WAVEKEEP_QUALITY cannot be on: .*`make quality`"):
        downloader(house, quality=True)
