"""`wavekeep show` and `wavekeep backup`: what a person is shown of one task, and what is copied while in use."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
import structlog

from downloader.answer import Known
from downloader.names import names_of
from downloader.partial import Partials
from shared.errors import Reason, RetryableError
from shared.messaging.port import Message, Subscription
from shared.messaging.topology import DOWNLOADER
from shared.retry import LADDER
from tests.integration.cli_house import SECRET, embedded_place, succeeded
from tests.integration.test_audit_command import kept
from tests.integration.test_cli_replace import Home
from tests.kept import Kept, audio, manifest_of
from tests.unit.test_partial import whole

__all__ = ["kept"]


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
        (tmp_path / "files" / ".tmp").mkdir(parents=True)
        yield Home(place.broker, place.environment, place.data_dir)


async def test_everything_about_one_task(home: Home, kept: Kept) -> None:
    """Manifest, evidence in words, revisions, objects, what was told, and what is parked: all in one answer."""
    names = await kept.store("one")
    new = await kept.replace(names, audio(1))
    await home.park((succeeded("one"), Reason.TOO_LARGE))
    (record,) = await home.json("show", "one")
    assert (record["state"], record["sha256"], record["revision"]) == ("stored", new.sha256, 2)
    assert record["kept_in"] == kept.storage.uri(names.stem.rpartition("/")[0])
    assert sorted(record["told"]) == ["announced", "v2.announced"]
    assert len([each for each in record["objects"] if each["key"].endswith(".wav")]) == 2
    assert [each["reason"] for each in record["parked"]] == ["too_large"]
    assert "its structure is whole" in record["evidence"]["in_words"]
    assert (record["rejection"], record["expired"]) == (None, None)
    table = (await home.cli("show", "one")).stdout
    for shown in ("secret token", "too_large", new.audio, "the wrong song", "v2.announced"):
        assert shown in table
    assert SECRET not in table


async def test_a_file_that_is_cut_or_missing_is_not_called_whole(home: Home, kept: Kept) -> None:
    """A look is enough to see that; who asks for the task hears it, and what to do."""
    await kept.store("one")
    path = home.files / manifest_of(kept.storage, "one", audio()).audio
    (record,) = await home.json("show", "one")
    assert record["damage"] is None
    path.write_bytes(path.read_bytes()[:-1])
    (record,) = await home.json("show", "one")
    assert record["damage"].startswith(f"Its audio has {len(audio()) - 1} bytes: wavekeep audit apibox/one")
    path.unlink()
    (record,) = await home.json("show", "one")
    assert record["damage"].startswith("Its audio is missing: wavekeep audit apibox/one")


async def test_a_task_of_which_only_a_message_is_there(home: Home) -> None:
    """What was given up before anything was kept is shown too."""
    await home.park((succeeded("one"), Reason.TOO_LARGE))
    (record,) = await home.json("show", "one")
    assert (record["state"], record["vendor"], len(record["parked"])) == ("parked", "apibox", 1)


async def test_a_task_that_waits_is_shown_with_why(home: Home) -> None:
    """Who asks where a file is, of which a callback came, hears that it is tried again, how often it was, and why."""
    await home.publish(succeeded("one"))
    tried = asyncio.Event()

    async def fail(_: Message) -> NoReturn:
        tried.set()
        raise RetryableError(Reason.LINK_EXPIRED, "answered 404")

    stop = asyncio.Event()
    hourly = Subscription(queue=DOWNLOADER, handler=fail, concurrency=1, next_step=lambda *_: LADDER[5])
    consuming = asyncio.create_task(home.broker.consume(hourly, stop=stop))
    await tried.wait()
    stop.set()
    await consuming
    (record,) = await home.json("show", "one")
    assert (record["state"], record["vendor"], record["parked"]) == ("waiting", "apibox", [])
    assert [(each["attempts"], each["last_reason"]) for each in record["waiting"]] == [(1, "link_expired")]
    assert "link_expired" in (await home.cli("show", "one")).stdout


async def test_audio_without_a_manifest(home: Home, kept: Kept) -> None:
    """An orphan is shown with its objects, and with the command that makes a stored file of it, which does."""
    names = await kept.store("one")
    content = (home.files / names.manifest).read_bytes()
    (home.files / names.manifest).unlink()
    (record,) = await home.json("show", "one")
    assert (record["state"], record["vendor"], record["task_id"]) == ("orphan", "apibox", "one")
    assert [each["key"] for each in record["objects"]] == [manifest_of(kept.storage, "one", audio()).audio]
    assert record["told"] == ["announced"]
    assert record["to_do"].endswith("wavekeep audit --adopt apibox/one")
    table = (await home.cli("show", "apibox/one")).stdout
    assert "orphan" in table
    assert ".wav" in table
    (home.files / names.manifest).write_bytes(content)
    assert (await home.json("show", "one"))[0]["state"] == "stored"


async def test_a_task_of_which_a_partial_download_waits(home: Home) -> None:
    """What a cut download left for the next attempt is shown, whether or not anything is parked, and not locked."""
    folder = home.data_dir / "staging"
    folder.mkdir()
    partials = Partials(folder, max_bytes=10**6)
    path = partials.new(names_of("kie", "one").stem)
    path.write_bytes(b"RIFF")
    partials.note(path, identity="0", known=Known(validator='"tag"'), synced_bytes=4)
    partials.new(names_of("kie", "two").stem).write_bytes(b"of another task")
    (record,) = await home.json("show", "one")
    assert (record["state"], record["vendor"], record["objects"]) == ("begun", "kie", [])
    assert [(each["path"], each["size_bytes"], each["whole"]) for each in record["partial"]] == [(str(path), 4, False)]
    await home.park((succeeded("one"), Reason.TOO_LARGE))
    states = {(each["vendor"], each["state"]) for each in await home.json("show", "one")}
    assert states == {("kie", "begun"), ("apibox", "parked")}
    assert str(path) in (await home.cli("show", "kie/one")).stdout
    claimed = partials.claim(names_of("kie", "one").stem)
    assert claimed is not None
    os.close(claimed.file)


async def test_a_whole_file_that_is_not_stored_yet(home: Home) -> None:
    """Whoever looks is told that nothing more is needed of the vendor, and tells it from a cut download."""
    folder = home.data_dir / "staging"
    folder.mkdir()
    whole(Partials(folder, max_bytes=10**6), b"RIFF", task=names_of("kie", "one").stem)
    (record,) = await home.json("show", "one")
    assert (record["state"], [each["whole"] for each in record["partial"]]) == ("begun", [True])
    assert "whole" in record["to_do"]


async def test_without_a_broker(home: Home, kept: Kept) -> None:
    """What is kept is shown also where no broker can be asked; that it could not is seen."""
    await kept.store("one")
    home.environment["WAVEKEEP_STORAGE_URL"] = home.files.as_uri()
    home.environment["WAVEKEEP_DATA_DIR"] = str(home.data_dir / "elsewhere")
    (record,) = await home.json("show", "one")
    assert (record["state"], record["parked"]) == ("stored", None)


async def test_a_copy_of_the_queue(home: Home) -> None:
    """A queue in use is copied whole, for its owner alone, and never over an earlier copy."""
    await home.publish(succeeded("one"), succeeded("two"))
    (home.data_dir / "secrets.toml").write_text("a secret")
    target = home.data_dir / "backup"
    copied = await home.json("backup", str(target))
    assert [Path(each["path"]).name for each in copied] == ["queue.sqlite3", "secrets.toml"]
    assert {path.name: path.stat().st_mode & 0o777 for path in target.iterdir()} == {
        "queue.sqlite3": 0o600,
        "secrets.toml": 0o600,
    }
    with closing(sqlite3.connect(target / "queue.sqlite3")) as db:
        assert db.execute("SELECT count(*) FROM message").fetchone() == (2,)
    assert "is there already" in (await home.cli("backup", str(target), status=1)).stderr
    home.environment["WAVEKEEP_DATA_DIR"] = str(home.data_dir / "elsewhere")
    assert "nothing to back up" in (await home.cli("backup", str(target), status=1)).stderr
