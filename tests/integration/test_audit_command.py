"""`wavekeep audit`: on real files and on a real S3 server, beside a running broker."""

import asyncio
import json
import os
import pty
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import ClientSession

from downloader.names import names_of
from downloader.storage_folder import FolderStorage
from downloader.storage_object import ObjectStorage
from downloader.storage_store import open_store
from shared.errors import BrokerError, Reason
from shared.events import ConversionStored, Event, FileDamaged
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.topology import NOTIFIER
from tests.contract.brokers import metrics
from tests.contract.storages import ROOT, files
from tests.integration.cli_house import TOPOLOGY, embedded_place
from tests.integration.embedded_house import eventually, until
from tests.integration.test_cli_replace import Home
from tests.integration.test_standalone import line_to_try, started
from tests.kept import Kept, audio, manifest_of
from tests.object_store import environment, running_server

MANY = 1_000
_TWO_HOURS_S = 7_200


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """Give the logs back as they were: a command silences them."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    """A broker that runs, and nothing kept."""
    async with embedded_place(tmp_path) as place:
        found = Home(place.broker, place.environment, place.data_dir)
        (tmp_path / "files" / ".tmp").mkdir(parents=True)
        yield found


@pytest.fixture
def kept(home: Home) -> Iterator[Kept]:
    """Where tasks are kept."""
    with ThreadPoolExecutor(4) as executor:
        yield Kept(FolderStorage(home.files, executor=executor), home.data_dir / "staged")


def flip_a_bit(path: Path, rng: random.Random) -> None:
    """Flip one bit of a file, anywhere; its times stay."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def grow_old(folder: Path) -> None:
    """Make everything two hours old."""
    then = time.time() - _TWO_HOURS_S
    for name in files(folder):
        os.utime(folder / name, (then, then))


def damaged(heard: list[Event]) -> list[FileDamaged]:
    """Return what was told of damage."""
    return [event.data for event in heard if isinstance(event.data, FileDamaged)]


async def test_one_bit_among_a_thousand_files(home: Home, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single flipped bit is found, it alone, wherever it is; told once under one id; and left as it is."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # a power cut is not what is tried here
        for number in range(MANY):
            await kept.store(f"task-{number}", audio(number))
    report = await home.json("audit")
    assert (report["whole"], report["complete"], report["findings"]) == (True, True, [])
    assert (report["tasks"], report["files"], report["size_bytes"]) == (MANY, MANY, MANY * len(audio()))
    manifest = await kept.manifest(names_of("apibox", "task-617"))
    flip_a_bit(home.files / manifest.audio, random.Random(5))
    before = (home.files / manifest.audio).read_bytes()
    for _ in range(2):
        report = await home.json("audit", status=1)
        (found,) = report["findings"]
        assert (found["finding"], found["task_id"], found["key"]) == ("digest_differs", "task-617", manifest.audio)
        assert (found["damage"], report["whole"], report["files"]) == (True, False, MANY)
    assert (home.files / manifest.audio).read_bytes() == before
    heard = await home.heard()
    assert {(data.task_id, data.finding, data.expected_sha256) for data in damaged(heard)} == {
        ("task-617", "digest_differs", manifest.sha256)
    }
    assert (len(heard), len({event.id for event in heard})) == (2, 1)
    sampled = await home.json("audit", "--sample", "20", "--seed", "7", "--no-tell")
    assert (sampled["tasks"], sampled["seed"]) == (20, 7)


async def test_a_bit_in_a_manifest(home: Home, kept: Kept) -> None:
    """Wherever it is flipped, nothing that follows is wrong in silence: the digest, the size or the record tells."""
    names = await kept.store("one")
    path = home.files / names.manifest
    whole = path.read_bytes()
    for word in (b'"sha256": "', b'"size_bytes": ', b'"audio": "', b'"vendor": "', b'"revision": '):
        changed = bytearray(whole)
        changed[whole.index(word) + len(word)] ^= 2
        path.write_bytes(changed)
        report = await home.json("audit", "--no-tell", status=1)
        assert report["findings"], word


async def test_what_is_said(home: Home, kept: Kept) -> None:
    """People read a table and one line; a program reads nothing but JSON; the bar goes to neither."""
    names = await kept.store("one")
    result = await home.cli("audit", "--no-tell")
    assert "1 files" in result.stdout
    assert "all whole" in result.stdout
    assert result.stderr == ""
    (home.files / (await kept.manifest(names)).audio).unlink()
    result = await home.cli("audit", "one", status=1)
    assert "missing" in result.stdout
    assert "1 damaged" in result.stdout
    result = await home.cli("audit", "apibox/one", "--json", "--no-tell", status=1)
    assert set(json.loads(result.stdout)) == {
        *("whole", "complete", "tasks", "files", "size_bytes", "duration_s", "seed", "findings", "adopted", "untold")
    }
    assert set(json.loads(result.stdout)["findings"][0]) == {
        *("finding", "damage", "vendor", "task_id", "revision", "key", "uri", "expected_sha256"),
        *("expected_size_bytes", "found_sha256", "found_size_bytes", "found_at", "detail"),
    }


@pytest.mark.parametrize(
    "words",
    [
        ("--sample", "0%"),
        ("--sample", "101%"),
        ("--sample", "some"),
        ("--for", "soon"),
        ("--dry-run",),
        ("--adopt", "--no-tell"),
        ("nobody",),
    ],
)
async def test_what_cannot_be_done(home: Home, words: tuple[str, ...]) -> None:
    """What is asked wrongly has a status of its own, so that no script takes it for damage, or for none."""
    await home.cli("audit", *words, status=2)


async def test_a_place_that_is_not_there(home: Home) -> None:
    """An audit of the wrong folder, or without its queue, is an error and finds nothing whole."""
    home.environment["WAVEKEEP_STORAGE_URL"] = (home.data_dir / "elsewhere").as_uri()
    assert "no folder" in (await home.cli("audit", status=2)).stderr
    home.environment["WAVEKEEP_STORAGE_URL"] = home.files.as_uri()
    home.environment["WAVEKEEP_DATA_DIR"] = str(home.data_dir / "elsewhere")
    assert "no queue" in (await home.cli("audit", status=2)).stderr
    await home.cli("audit", "--no-tell")


async def test_damage_that_cannot_be_told(home: Home, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not take it costs no finding, and is told."""
    names = await kept.store("one")
    (home.files / (await kept.manifest(names)).audio).unlink()

    async def refuse(*_: object, **__: object) -> None:
        raise BrokerError(Reason.PUBLISH_TIMED_OUT, "the disk did not take it")

    monkeypatch.setattr(EmbeddedBroker, "publish", refuse)
    result = await home.cli("audit", "--json", status=1)
    assert json.loads(result.stdout)["untold"] == 1
    assert "could not be told" in result.stderr


async def test_a_time_that_is_over(home: Home, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget ends the audit in good order, and says that not everything was read."""
    for number in range(40):
        await kept.store(f"task-{number}")
    digest = FolderStorage.digest

    async def slowly(storage: FolderStorage, key: str) -> tuple[int, str]:
        started = time.monotonic()
        found = await digest(storage, key)
        await until(lambda: time.monotonic() - started > 0.3)
        return found

    monkeypatch.setattr(FolderStorage, "digest", slowly)
    report = await home.json("audit", "--for", "1s", "--no-tell")
    assert report["complete"] is False
    assert 4 <= report["tasks"] < 40
    assert "time was over" in (await home.cli("audit", "--for", "1s", "--no-tell")).stdout


async def test_adopting(home: Home, kept: Kept) -> None:
    """Orphans and untold manifests are brought to order and told, old ones only; then all is well."""
    untold = await kept.store("untold", audio(1), told=False)
    orphan = manifest_of(kept.storage, "orphan", audio(2))
    await kept.put(orphan.audio, audio(2))
    assert (await home.json("audit", "--adopt"))["adopted"] == []
    grow_old(home.files)
    before = files(home.files)
    report = await home.json("audit", "--adopt", "--dry-run")
    steps = {("untold", "told"), ("orphan", "manifest_made"), ("orphan", "told")}
    assert {(each["task_id"], each["step"]) for each in report["adopted"]} == steps
    assert [each["damage"] for each in report["findings"]] == [False, False]
    assert files(home.files) == before
    report = await home.json("audit", "--adopt")
    assert {(each["task_id"], each["step"]) for each in report["adopted"]} == steps
    assert files(home.files) - before == {
        untold.announced,
        names_of("apibox", "orphan").manifest,
        names_of("apibox", "orphan").announced,
    }
    heard = await home.heard()
    assert {event.id for event in heard} == {orphan.event_id, (await kept.manifest(untold)).event_id}
    assert all(isinstance(event.data, ConversionStored) for event in heard)
    report = await home.json("audit", "--adopt")
    assert (report["findings"], report["adopted"], report["whole"]) == ([], [], True)


async def test_on_an_object_store(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in a bucket are read, held against their manifests and adopted as those in a folder."""
    with running_server(tmp_path) as server, ThreadPoolExecutor(4) as executor:
        bucket = server.bucket()
        for name, value in environment(server.url).items():
            monkeypatch.setenv(name, value)
        home.environment["WAVEKEEP_STORAGE_URL"] = bucket.address
        storage = ObjectStorage(
            open_store(bucket.address), bucket.address, executor=executor, single_writer=False, transfer_timeout_s=60.0
        )
        kept = Kept(storage, tmp_path / "staged")
        for number in range(5):
            await kept.store(f"task-{number}", audio(number))
        assert (await home.json("audit"))["files"] == 5
        manifest = await kept.manifest(names_of("apibox", "task-3"))
        await storage.delete(manifest.audio)
        await kept.put(manifest.audio, audio(9))
        await storage.delete((await kept.manifest(names_of("apibox", "task-4"))).audio)
        report = await home.json("audit", status=1)
        found: list[dict[str, Any]] = report["findings"]
        assert sorted((each["task_id"], each["finding"]) for each in found) == [
            ("task-3", "digest_differs"),
            ("task-4", "missing"),
        ]
        assert all(each["uri"].startswith(bucket.address) for each in found)
        assert len(damaged(await home.heard())) == 2


async def test_beside_a_running_standalone(tmp_path: Path) -> None:
    """The command works on the data folder of a running process, which then tells the damage."""
    async with started(tmp_path) as run:
        url, body = line_to_try(await run.greeting())
        async with (
            ClientSession() as client,
            client.post(url, data=body, headers={"Content-Type": "application/json"}) as answer,
        ):
            assert answer.status == 200
        await until(lambda: [name for name in files(tmp_path / "files") if name.endswith(".announced")])
        (audio_path,) = (tmp_path / "files").rglob("*.wav")
        flip_a_bit(audio_path, random.Random(1))
        broker = EmbeddedBroker(tmp_path / "queue.sqlite3", TOPOLOGY, metrics=metrics(), owner=False)
        await broker.start()
        home = Home(broker, {}, tmp_path)
        await home.cli("audit", status=1)
        for queue in (NOTIFIER, f"{NOTIFIER}.log"):
            await eventually(partial(home.emptied, queue))
        await broker.close()
        status, log = await run.end()
    assert status == 0
    assert "wavekeep.file.damaged.v1" in log


async def test_the_bar(home: Home, kept: Kept) -> None:
    """On a terminal a bar tells how much was read and how fast, and leaves the result alone on the screen."""
    for number in range(30):
        await kept.store(f"task-{number}", audio(number))
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "audit", "--no-tell"),
        cwd=ROOT,
        env=os.environ | home.environment | {"TERM": "xterm", "COLUMNS": "100"},
        stdout=asyncio.subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # as Linux tells that the other end is closed
        while block := await asyncio.to_thread(os.read, ours, 65_536):
            shown += block
    os.close(ours)
    printed, _ = await process.communicate()
    assert process.returncode == 0
    assert b"Reading" in shown
    assert b"/s" in shown
    assert b"all whole" in printed
    assert b"Reading" not in printed
