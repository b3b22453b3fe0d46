"""`wavekeep replace` and `show`: a person overrules what is kept, beside a running broker."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import structlog
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry

from cli import replace as replace_command
from downloader.app import Downloader
from downloader.manifest import Manifest, read_manifest
from downloader.names import Names, names_of
from downloader.settings import DownloaderSettings
from downloader.storage_folder import FolderStorage
from shared import events
from shared.errors import BrokerError, Reason
from shared.events import Event, FileReplaced
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.port import Message, Subscription
from shared.messaging.topology import DOWNLOADER, NOTIFIER
from simulator.wavs import Flavour, wav
from tests.contract.brokers import metrics
from tests.contract.storages import files
from tests.integration.cli_house import SECRET, TOPOLOGY, Place, embedded_place, succeeded
from tests.integration.embedded_house import eventually, until
from tests.integration.raw_server import sending, serving
from tests.integration.test_standalone import line_to_try, started

OLD = b"".join(wav(duration_s=0.1).blocks())
NEW = b"".join(wav(duration_s=0.1, seed=7).blocks())
OTHER = b"".join(wav(duration_s=0.1, seed=8).blocks())
TASK = "task-1"
NAMES: Names = names_of("apibox", TASK)


def answering(content: bytes) -> bytes:
    """Return a whole HTTP answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content


def sha256(content: bytes) -> str:
    """Return the digest in hex."""
    return hashlib.sha256(content).hexdigest()


class Home(Place):
    """A place where one task is stored."""

    @property
    def files(self) -> Path:
        """Where files are kept."""
        return self.data_dir / "files"

    def manifest(self, key: str = NAMES.manifest) -> Manifest:
        """Return a manifest."""
        return read_manifest((self.files / key).read_bytes())

    async def heard(self) -> list[Event]:
        """Take what the notifier was told so far."""
        heard: list[Event] = []
        stop = asyncio.Event()

        async def hear(message: Message) -> None:
            heard.append(events.decode(message.body))

        subscription = Subscription(queue=NOTIFIER, handler=hear, concurrency=10, next_step=lambda *_: None)
        task = asyncio.create_task(self.broker.consume(subscription, stop=stop))
        await until(lambda: self.broker.consuming(NOTIFIER))
        assert isinstance(self.broker, EmbeddedBroker)
        await eventually(lambda: self.emptied(NOTIFIER))
        stop.set()
        await task
        return heard

    async def emptied(self, queue: str) -> bool:
        """Tell whether nothing is in a queue, nor in anybody's hand."""
        assert isinstance(self.broker, EmbeddedBroker)
        return not (await self.broker.depths())[queue]

    def given(self, content: bytes, name: str = "new.wav") -> str:
        """Return the path of a file of the operator's."""
        path = self.data_dir / name
        path.write_bytes(content)
        return str(path)


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """Give the logs back as they were: a command silences them."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


async def run_downloader(home: Home, port: int) -> None:
    """Let a downloader take what waits, until a task is announced."""
    settings = DownloaderSettings(data_dir=home.data_dir, download_allow_addresses=(f"127.0.0.1:{port}",))
    stop = asyncio.Event()
    task = asyncio.create_task(Downloader(settings, home.broker, CollectorRegistry()).run(stop))
    await until((home.files / NAMES.announced).exists)
    await eventually(lambda: home.emptied(DOWNLOADER))
    stop.set()
    await task


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    """A task that is stored and announced, and the broker running."""
    async with embedded_place(tmp_path) as place, serving(sending(answering(OLD))) as server:
        found = Home(place.broker, place.environment, place.data_dir)
        await found.publish(report(server.port))
        await run_downloader(found, server.port)
        assert [event.routing_key for event in await found.heard()] == ["conversion.stored"]
        yield found


def report(port: int, path: str = "old.wav") -> Any:
    """Return the report of the task."""
    data = succeeded(TASK)
    return type(data)(
        **{name: getattr(data, name) for name in data.__struct_fields__ if name != "url"},
        url=f"http://127.0.0.1:{port}/{path}?{SECRET}",
    )


async def test_replacing_by_a_file(home: Home) -> None:
    """The new file has the place, the old one and its manifest are kept whole, and subscribers hear it once."""
    before = (home.files / NAMES.manifest).read_bytes()
    result = await home.json("replace", TASK, "--file", home.given(NEW), "--reason", "the wrong song")
    new = home.manifest()
    assert result["replaced"] is True
    assert result["manifest"]["sha256"] == new.sha256 == sha256(NEW)
    assert (new.revision, new.evidence.trust, new.evidence.transport) == (2, ("operator",), "local_file")
    assert (home.files / NAMES.revision(1)).read_bytes() == before
    assert (home.files / NAMES.revision(2)).read_bytes() == (home.files / NAMES.manifest).read_bytes()
    assert (home.files / new.audio).read_bytes() == NEW
    assert (home.files / home.manifest(NAMES.revision(1)).audio).read_bytes() == OLD
    (told,) = await home.heard()
    assert isinstance(told.data, FileReplaced)
    assert (told.id, told.data.previous_sha256, told.data.explanation) == (new.event_id, sha256(OLD), "the wrong song")
    assert told.data.uri == new.uri
    assert files(home.data_dir / "staging") == set()


async def test_replacing_again_changes_nothing(home: Home) -> None:
    """The same command twice is one replacement, told once."""
    await home.cli("replace", TASK, "--file", home.given(NEW))
    kept = files(home.files)
    assert "Nothing to do" in (await home.cli("replace", TASK, "--file", home.given(NEW))).stdout
    assert (await home.json("replace", TASK, "--file", home.given(NEW)))["replaced"] is False
    assert files(home.files) == kept
    assert len(await home.heard()) == 1


async def test_the_bytes_it_had_repair_it(home: Home) -> None:
    """A damaged file is not said to need nothing: it is whole again, and the person is told so."""
    kept, audio = files(home.files), home.files / home.manifest().audio
    audio.write_bytes(OLD[:-10])
    told = (await home.cli("replace", TASK, "--file", home.given(OLD))).stdout
    assert told.startswith("Repaired: ")
    assert audio.read_bytes() == OLD
    audio.unlink()
    done = await home.json("replace", TASK, "--file", home.given(OLD))
    assert (done["replaced"], done["repaired"], done["manifest"]["revision"]) == (False, True, 1)
    assert audio.read_bytes() == OLD
    assert (await home.json("replace", TASK, "--file", home.given(OLD)))["repaired"] is False
    assert files(home.files) == kept
    assert await home.heard() == []


async def test_going_back_is_told_too(home: Home) -> None:
    """A file that comes back after another one is a fact of its own, under an id of its own."""
    for content in (NEW, OLD, NEW):
        await home.cli("replace", f"apibox/{TASK}", "--file", home.given(content))
    assert home.manifest().revision == 4
    heard = await home.heard()
    assert [event.data.sha256 for event in heard if isinstance(event.data, FileReplaced)] == [
        sha256(NEW),
        sha256(OLD),
        sha256(NEW),
    ]
    assert len({event.id for event in heard}) == 3


async def test_replacing_by_a_link(home: Home) -> None:
    """A link goes past the same fence as any download; its query is kept and told nowhere."""
    async with serving(sending(answering(NEW))) as server:
        url = f"http://127.0.0.1:{server.port}/new.wav?{SECRET}"
        told = (await home.cli("replace", TASK, "--url", url, status=1)).stderr
        assert told.startswith("Error: ")
        assert "_forbidden" in told
        assert server.connections == 0
        home.environment["WAVEKEEP_DOWNLOAD_ALLOW_ADDRESSES"] = f"127.0.0.1:{server.port}"
        await home.cli("replace", TASK, "--url", url)
    new = home.manifest()
    assert (new.sha256, new.evidence.transport) == (sha256(NEW), "content_length")
    (event,) = await home.heard()
    shown = events.encode(event).decode() + (home.files / NAMES.manifest).read_text()
    assert "/new.wav" in shown
    assert SECRET not in shown + told


async def test_what_the_vendor_repeats_stays_known(home: Home) -> None:
    """After a replacement, neither the first link nor the new one contradicts what is kept."""
    first = home.manifest()
    async with serving(sending(answering(NEW))) as server:
        home.environment["WAVEKEEP_DOWNLOAD_ALLOW_ADDRESSES"] = f"127.0.0.1:{server.port}"
        await home.cli("replace", TASK, "--url", f"http://127.0.0.1:{server.port}/new.wav?{SECRET}")
        await home.heard()
        await home.publish(report(server.port, "new.wav"), report(urlsplit(first.link).port or 0))
        await run_downloader(home, server.port)
    assert await home.heard() == []


@pytest.mark.parametrize("flavour", [Flavour.TRUNCATED, Flavour.HTML, Flavour.STREAMING_HEADER])
async def test_what_is_not_whole_replaces_nothing(home: Home, flavour: Flavour) -> None:
    """A person's file is proven like a download; what cannot be proven whole leaves everything as it was."""
    before = files(home.files)
    content = b"".join(wav(duration_s=0.1, seed=7, flavour=flavour).blocks())
    assert (await home.cli("replace", TASK, "--file", home.given(content), status=1)).stderr.startswith("Error: ")
    assert files(home.files) - before <= {NAMES.revision(1)}
    assert home.manifest().sha256 == sha256(OLD)
    assert await home.heard() == []


async def test_what_was_not_announced_is_not_replaced(home: Home) -> None:
    """The stored event is never told with the content of a later file."""
    (home.files / NAMES.announced).unlink()
    told = (await home.cli("replace", TASK, "--file", home.given(NEW), status=1)).stderr
    assert "not announced yet" in told
    assert home.manifest().sha256 == sha256(OLD)


@pytest.mark.parametrize("fails", ["replace", "publish", "marker"])
async def test_a_crash_is_finished_by_the_next_command(home: Home, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Wherever a replacement was cut off after its commit, the next one finishes it first, and it is told under its id.

    The old manifest is whole until then, or the new one is.
    """
    crash = BrokerError(Reason.BROKER_UNAVAILABLE, "gone")

    async def refuse(*_: object, **__: object) -> None:
        raise crash

    create = FolderStorage.create

    async def create_no_marker(storage: FolderStorage, key: str, content: bytes) -> bool:
        if key == NAMES.replacement_announced(2):
            raise crash
        return await create(storage, key, content)

    with monkeypatch.context() as patch:
        if fails == "replace":
            patch.setattr(FolderStorage, "replace", refuse)
        elif fails == "publish":
            patch.setattr(EmbeddedBroker, "publish", refuse)
        else:
            patch.setattr(FolderStorage, "create", create_no_marker)
        await home.cli("replace", TASK, "--file", home.given(NEW), status=1)
    assert home.manifest().sha256 == (sha256(OLD) if fails == "replace" else sha256(NEW))
    await home.cli("replace", TASK, "--file", home.given(OTHER))
    assert home.manifest(NAMES.revision(2)).sha256 == sha256(NEW)
    assert (home.manifest().revision, home.manifest().sha256) == (3, sha256(OTHER))
    heard = {event.id: event.data for event in await home.heard()}
    assert [data.sha256 for data in heard.values() if isinstance(data, FileReplaced)] == [sha256(NEW), sha256(OTHER)]


async def test_of_two_people_one_wins(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was slower is told, and no revision is lost."""
    keep = FolderStorage.keep
    beaten = False

    async def keep_late(storage: FolderStorage, staged: Path, key: str) -> None:
        nonlocal beaten
        await keep(storage, staged, key)
        if not beaten:
            beaten = True
            await home.cli("replace", TASK, "--file", home.given(OTHER, "other.wav"))

    monkeypatch.setattr(FolderStorage, "keep", keep_late)
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    # two commands in one process would share its standard streams, so the first one is called without
    with pytest.raises(click.ClickException, match="Somebody else has just replaced"):
        await replace_command._replace("apibox", TASK, None, Path(home.given(NEW)), None)
    assert (home.manifest().revision, home.manifest().sha256) == (2, sha256(OTHER))
    assert len(await home.heard()) == 1


async def test_showing_revisions(home: Home) -> None:
    """Every revision is seen with what became of it; a task that nobody replaced shows none."""
    (record,) = await home.json("show", TASK)
    assert (record["state"], record["announced"], record["revisions"]) == ("stored", True, [])
    await home.cli("replace", TASK, "--file", home.given(NEW), "--reason", "the wrong song")
    (record,) = await home.json("show", f"apibox/{TASK}")
    assert [(r["revision"], r["sha256"], r["announced"], r["explanation"]) for r in record["revisions"]] == [
        (1, sha256(OLD), True, None),
        (2, sha256(NEW), True, "the wrong song"),
    ]
    table = (await home.cli("show", TASK)).stdout
    assert "the wrong song" in table
    assert sha256(OLD) in table


async def test_a_damaged_record_is_told(home: Home) -> None:
    """A manifest that cannot be read is named in one sentence."""
    (home.files / NAMES.manifest).write_text("{")
    for words in (("show", TASK), ("replace", f"apibox/{TASK}", "--file", home.given(NEW))):
        told = (await home.cli(*words, status=1)).stderr
        assert "record" in told
        assert "cannot be read" in told


async def test_beside_a_running_standalone(tmp_path: Path) -> None:
    """The command works on the data folder of a running process, which then tells what happened."""
    async with started(tmp_path) as run:
        url, body = line_to_try(await run.greeting())
        async with (
            ClientSession() as client,
            client.post(url, data=body, headers={"Content-Type": "application/json"}) as answer,
        ):
            assert answer.status == 200
        await until(lambda: [name for name in files(tmp_path / "files") if name.endswith(".announced")])
        broker = EmbeddedBroker(tmp_path / "queue.sqlite3", TOPOLOGY, metrics=metrics(), owner=False)
        await broker.start()
        home = Home(broker, {}, tmp_path)
        await home.cli("replace", json.loads(body)["data"]["task_id"], "--file", home.given(NEW))
        for queue in (NOTIFIER, f"{NOTIFIER}.log"):
            await eventually(partial(home.emptied, queue))
        await broker.close()
        status, log = await run.end()
    assert status == 0
    assert "wavekeep.file.replaced.v1" in log
