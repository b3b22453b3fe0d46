"""The operator's command line beside running brokers: parked messages, unrecognised callbacks, topology, help."""

import asyncio
import json
import os
import re
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aio_pika
import click
import pytest
import structlog

from cli import session, waiting
from cli.__main__ import main
from shared import events
from shared.errors import PermanentError, Reason
from shared.events import ReportFailed, ReportLinkless, ReportSucceeded
from shared.messaging.port import Message
from shared.messaging.topology import UNRECOGNISED
from shared.vendors import Vendor
from simulator.rabbitmq_node import any_broker
from tests.integration.cli_house import (
    PARKED,
    SECRET,
    TOPOLOGY,
    Place,
    embedded_place,
    lines,
    rabbitmq_place,
    succeeded,
    unread,
)
from tests.integration.embedded_house import until

ROOT = Path(__file__).parents[2]
BOTH = ["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
THEN = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
NEW_SHAPE = {"code": 200, "data": {"task_id": "task-9", "audioWavUrl": f"https://cdn.example.com/9.wav?{SECRET}"}}
STILL_UNKNOWN = {"hello": "world"}


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run without settings of the machine, and give the logs back as they were: a command silences them."""
    for name in [name for name in os.environ if name.startswith("WAVEKEEP_") and "TEST" not in name]:
        monkeypatch.delenv(name)
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="module")
def node_url() -> Iterator[str]:
    """A node of this module's own, because the names on it are the product's; or the one that was given."""
    with any_broker() as url:
        yield url


@pytest.fixture
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """A running broker, of the kind that is asked for; embedded unless told otherwise."""
    if getattr(request, "param", "embedded") == "embedded":
        async with embedded_place(tmp_path) as found:
            yield found
    else:
        async with rabbitmq_place(request.getfixturevalue("node_url"), tmp_path) as found:
            yield found


def commands(group: click.Group = main, *before: str) -> Iterator[tuple[str, ...]]:
    """Return the words of every command and group."""
    yield before
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        else:
            yield (*before, name)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
async def test_help(words: tuple[str, ...], tmp_path: Path) -> None:
    """Every command explains itself, also where nothing runs, and touches nothing."""
    async with embedded_place(tmp_path / "elsewhere") as place:
        place.environment["WAVEKEEP_DATA_DIR"] = str(tmp_path / "none")
        shown = (await place.cli(*words, "--help")).stdout
    assert "Usage:" in shown
    assert not (tmp_path / "none").exists()


async def test_the_installed_command_runs(tmp_path: Path) -> None:
    """The command works as a process of its own, and without a queue says in one sentence what to do."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "parked", "list"),
        cwd=ROOT,
        env={"WAVEKEEP_DATA_DIR": str(tmp_path / "none")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, told = (text.decode() for text in await process.communicate())
    assert (process.returncode, out) == (1, "")
    assert told.startswith("Error: There is no queue at ")
    assert len(lines(told)) == 1


@pytest.mark.parametrize("place", BOTH, indirect=True)
async def test_listing_moves_nothing(place: Place) -> None:
    """Looking, as a table or as JSON, shows what waits without its body, and leaves all as it was."""
    parked = await place.park(
        (succeeded("one"), Reason.NOT_WAV), (succeeded("two", vendor=Vendor.KIE), Reason.TOO_LARGE)
    )
    table = (await place.cli("parked", "list")).stdout
    assert [word in table for word in ("apibox/one", "kie/two", "not_wav", "too_large")] == [True] * 4
    found = await place.json("parked", "list")
    assert [(f["id"], f["subject"], f["reason"]) for f in found] == [
        (parked[0].id, "apibox/one", "not_wav"),
        (parked[1].id, "kie/two", "too_large"),
    ]
    assert SECRET not in table + json.dumps(found)
    assert await place.json("parked", "list", "--limit", "1") == found[:1]
    assert await place.json("parked", "list", "--service", "notifier") == []
    assert {kept.id: kept for kept in await place.kept(PARKED)} == {kept.id: kept for kept in parked}


@pytest.mark.parametrize("place", BOTH, indirect=True)
async def test_showing_one(place: Place) -> None:
    """One message can be seen whole, on purpose; one that is not there is told so."""
    (parked,) = await place.park((succeeded("one"), Reason.NOT_WAV))
    shown = json.loads((await place.cli("parked", "show", parked.id)).stdout)
    assert shown["event"]["data"]["url"].endswith(SECRET)
    assert shown["queue"] == "wavekeep.downloader"
    told = (await place.cli("parked", "show", "no-such", status=1)).stderr
    assert told == f"Error: No message no-such waits in {PARKED}.\n"


@pytest.mark.parametrize("place", BOTH, indirect=True)
async def test_replaying_by_id(place: Place) -> None:
    """What is named goes back to its queue, and nothing else; an id that is not there is told, with status 1."""
    first, second = await place.park((succeeded("one"), Reason.NOT_WAV), (succeeded("two"), Reason.NOT_WAV))
    assert await place.json("parked", "replay", first.id) == {"replayed": 1, "left": 1}
    assert await place.waiting(1) == ["apibox/one"]
    assert [kept.id for kept in await place.kept(PARKED)] == [second.id]
    result = await place.cli("parked", "replay", first.id, second.id, status=1)
    assert result.stdout == "1 replayed, 0 left.\n"
    assert result.stderr.startswith(f"Error: No message {first.id} waits in")


@pytest.mark.parametrize("place", BOTH, indirect=True)
async def test_choosing(place: Place) -> None:
    """Reason, vendor and age choose, each and together, for listing, replaying and purging alike."""
    await place.park(
        (succeeded("one"), Reason.NOT_WAV),
        (succeeded("two", vendor=Vendor.KIE), Reason.NOT_WAV),
        (succeeded("three", vendor=Vendor.KIE), Reason.TOO_LARGE),
    )

    async def subjects(*options: str) -> list[str]:
        return [found["subject"] for found in await place.json("parked", "list", *options)]

    assert await subjects("--reason", "not_wav") == ["apibox/one", "kie/two"]
    assert await subjects("--vendor", "kie") == ["kie/two", "kie/three"]
    assert await subjects("--vendor", "kie", "--reason", "not_wav") == ["kie/two"]
    assert await subjects("--older-than", "2h") == []
    assert len(await subjects("--older-than", "0s")) == 3
    assert await place.json("parked", "replay", "--older-than", "1d") == {"replayed": 0, "left": 3}
    chosen = ("--vendor", "kie", "--reason", "too_large")
    assert await place.json("parked", "purge", "--yes", *chosen) == {"purged": 1, "left": 2}
    assert await place.json("parked", "replay", "--vendor", "kie") == {"replayed": 1, "left": 1}
    assert await place.waiting(1) == ["kie/two"]
    assert await subjects() == ["apibox/one"]


@pytest.mark.parametrize("place", BOTH, indirect=True)
async def test_purging_asks(place: Place) -> None:
    """Nothing is thrown away without a yes, and without a choice there is not even a question."""
    await place.park((succeeded("one"), Reason.NOT_WAV))
    assert "Throw away all?" in (await place.cli("parked", "purge", "--all", status=1, typed="n\n")).stderr
    told = (await place.cli("parked", "purge", "--yes", status=2)).stderr
    assert "Name the messages by id, or choose with --all or another option." in told
    assert len(await place.kept(PARKED)) == 1
    assert (await place.cli("parked", "purge", "--all", typed="y\n")).stdout == "1 purged, 0 left.\n"
    assert await place.kept(PARKED) == []


@pytest.mark.parametrize("place", BOTH, indirect=True)
async def test_many_at_once(place: Place) -> None:
    """A thousand parked messages go back in one pass, each once."""
    subjects = [f"task-{number}" for number in range(1_000)]
    await asyncio.gather(*(place.publish(succeeded(subject)) for subject in subjects))

    async def refuse(message: Message) -> None:
        raise PermanentError(Reason.NOT_WAV, message.event_id)

    async with place.consuming(refuse):
        await place.until_kept(PARKED, 1_000)
    assert await place.json("parked", "replay", "--all") == {"replayed": 1_000, "left": 0}
    assert await place.waiting(1_000) == sorted(f"apibox/{subject}" for subject in subjects)


@pytest.mark.parametrize("place", BOTH, indirect=True)
async def test_reading_again(place: Place) -> None:
    """What this version recognises becomes the report it always was; the rest stays and is counted."""
    failure = {"code": 501, "msg": "no luck", "data": {"task_id": "task-8"}}
    bodies = (NEW_SHAPE, STILL_UNKNOWN, failure)
    await place.publish(*(unread(body, at=THEN) for body in bodies))
    await place.until_kept(UNRECOGNISED, 3)
    assert await place.json("unrecognised", "replay", "--all") == {"replayed": 2, "left": 1}
    seen: list[events.Event] = []

    async def see(message: Message) -> None:
        seen.append(events.decode(message.body))

    async with place.consuming(see), asyncio.timeout(20):
        while len(seen) < 2:  # noqa: ASYNC110 - a queue has no event of its own
            await asyncio.sleep(0.02)
    reports = {event.data.TYPE: event.data for event in seen if isinstance(event.data, ReportSucceeded | ReportFailed)}
    assert set(reports) == {ReportSucceeded.TYPE, ReportFailed.TYPE}
    for report in reports.values():
        assert (report.received_at, report.deadline) == (THEN, THEN + timedelta(days=14))
        assert (report.trust, report.origin) == (("token", "signature"), "callback")
    (left,) = await place.kept()
    assert "hello" in left.body.decode()
    assert await place.json("unrecognised", "replay", "--all") == {"replayed": 0, "left": 1}


async def test_a_link_that_was_missing_is_asked_for_once_a_key_is_there(place: Place) -> None:
    """A success without a link stays while nobody can be asked, and goes on to be asked for when its vendor can."""
    await place.publish(unread({"code": 200, "data": {"task_id": "task-7"}}, at=THEN))
    assert await place.json("unrecognised", "replay", "--all") == {"replayed": 0, "left": 1}
    place.environment["WAVEKEEP_APIBOX_API_KEY"] = "key-of-another"
    assert await place.json("unrecognised", "replay", "--all") == {"replayed": 0, "left": 1}
    place.environment["WAVEKEEP_KIE_API_KEY"] = "key"
    assert await place.json("unrecognised", "replay", "--all") == {"replayed": 1, "left": 0}
    seen: list[events.Data] = []

    async def see(message: Message) -> None:
        seen.append(events.decode(message.body).data)

    async with place.consuming(see):
        await until(lambda: seen)
    (report,) = seen
    assert isinstance(report, ReportLinkless)
    assert (report.task_id, report.trust, report.origin) == ("task-7", ("token", "signature"), "callback")
    assert (report.received_at, report.deadline) == (THEN, THEN + timedelta(days=14))


async def test_looking_at_unrecognised_callbacks(place: Place) -> None:
    """They are listed with their age, shown whole on purpose, chosen by vendor and age, and purged when told."""
    await place.publish(unread(STILL_UNKNOWN, at=THEN), unread(NEW_SHAPE, vendor=Vendor.APIBOX, at=datetime.now(UTC)))
    (old,) = await place.json("unrecognised", "list", "--older-than", "1d")
    assert old["subject"] == "kie"
    assert "kie" in (await place.cli("unrecognised", "list")).stdout
    assert "hello" in (await place.cli("unrecognised", "show", old["id"])).stdout
    assert await place.json("unrecognised", "replay", "--vendor", "kie") == {"replayed": 0, "left": 2}
    assert await place.json("unrecognised", "purge", "--yes", "--older-than", "1d") == {"purged": 1, "left": 1}
    assert len(await place.kept()) == 1


async def test_a_failure_while_reading_again_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published first, removed last: what could not be published is still there, and the command says so."""
    await place.publish(unread(NEW_SHAPE, at=THEN))
    with sqlite3.connect(place.data_dir / "queue.sqlite3") as db:
        db.execute("DELETE FROM queue WHERE name = 'wavekeep.downloader'")
    db.close()
    monkeypatch.setattr("shared.messaging.table.declare", lambda *_: None)
    told = (await place.cli("unrecognised", "replay", "--all", status=1)).stderr
    assert told.startswith("Error: not_routable")
    assert len(await place.kept()) == 1


@pytest.mark.rabbitmq
async def test_topology_on_rabbitmq(node_url: str, tmp_path: Path) -> None:
    """The definition is shown without a broker, checked without rights, and applied once; the second time is quiet."""
    place = Place(None, {"WAVEKEEP_BROKER_URL": node_url}, tmp_path)  # type: ignore[arg-type]
    await place.cli("topology", "apply")
    names = {queue.name for queue in TOPOLOGY.queues}
    assert {queue["name"] for queue in (await place.json("topology", "show"))["queues"]} == names
    config = tmp_path / "destinations.toml"
    config.write_text('[[destination]]\nname = "never-declared"\ntype = "log"\n')
    place.environment["WAVEKEEP_NOTIFY_CONFIG"] = str(config)
    new = ["wavekeep.notifier.never-declared"]
    assert await place.json("topology", "check", status=1) == {"missing": new}
    assert await place.json("topology", "apply") == {"created": new}
    assert await place.json("topology", "check") == {"missing": []}
    assert (await place.cli("topology", "apply")).stdout == "Every queue was there already.\n"
    assert (await place.cli("topology", "check")).stdout == "Every queue is there.\n"
    async with await aio_pika.connect(node_url) as connection, connection.channel() as channel:
        await channel.queue_delete(new[0])


async def test_topology_of_the_embedded_queue(place: Place) -> None:
    """Where the queue declares itself, the command says so instead of failing oddly; the definition is still shown."""
    assert "wavekeep.downloader.parked" in (await place.cli("topology", "show")).stdout
    for command in ("check", "apply"):
        told = (await place.cli("topology", command, status=1)).stderr
        assert "declares its topology by itself" in told


async def test_events_are_printed(place: Place) -> None:
    """A subscriber gets the AsyncAPI document of this very version."""
    document = json.loads((await place.cli("events")).stdout)
    assert "FileReplaced" in document["channels"]


async def test_status_without_services(place: Place) -> None:
    """Where no service answers, the status is 1 and the output still parses."""
    assert (
        await place.cli("status", "--port", "1", status=1)
    ).stdout == "No service answers on port 1; --port asks others.\n"
    assert await place.json("status", "--port", "1", status=1) == {"1": None}


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (("parked", "list", "--older-than", "soon"), 2, "'soon' is no age: write 90s, 15m, 2h or 3d."),
        (("parked", "list", "--reason", "nonsense"), 2, "'nonsense' is not one of"),
        (("parked", "replay"), 2, "Name the messages by id"),
        (("unrecognised", "replay"), 2, "Name the messages by id"),
        (("show", "no-such"), 1, "Nothing is kept of a task no-such."),
        (("replace", "no-such"), 2, "Say where the new file is: --url URL or --file PATH."),
        (("replace", "no-such", "--url", "https://x/", "--file", __file__), 2, "Say where the new file is"),
        (("replace", "no-such", "--file", __file__), 1, "No file is stored of a task no-such"),
        (("replace", "no-such", "--file", "/none.wav"), 2, "'/none.wav' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_mistakes_are_sentences(place: Place, words: tuple[str, ...], status: int, sentence: str) -> None:
    """What cannot be done is said in one sentence, with the status for it, and nothing on standard output."""
    result = await place.cli(*words, status=status)
    assert sentence in result.stderr
    assert result.stdout == ""


async def test_wrong_settings_are_named(place: Place) -> None:
    """A setting that is wrong is named, its value is not."""
    place.environment["WAVEKEEP_BROKER_URL"] = "nonsense://hidden"
    told = (await place.cli("parked", "list", status=1)).stderr
    assert "WAVEKEEP_BROKER_URL" in told
    assert "hidden" not in told


async def test_a_broker_that_is_not_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A RabbitMQ that does not answer is told within bounds, with what to look at."""
    monkeypatch.setattr(session, "_CONNECT_WITHIN_S", 0.5)
    place.environment["WAVEKEEP_BROKER_URL"] = "amqp://guest:s3cret@127.0.0.1:1/"
    told = (await place.cli("parked", "list", status=1)).stderr
    assert "The broker could not be used within" in told
    assert "s3cret" not in told
    told = (await place.cli("topology", "check", status=1)).stderr
    assert told.startswith("Error: broker_unavailable")


def test_the_bound_on_looking_fits_the_brokers() -> None:
    """One look never asks for more messages than a RabbitMQ consumer may hold."""
    assert waiting.LOOK_AT_MOST <= 65_535


def test_every_reason_has_its_remedy() -> None:
    """Whoever finds a parked message finds its reason in docs/operations.md."""
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert [str(reason) for reason in Reason if f"`{reason}`" not in page] == []


def test_every_documented_command_is_there() -> None:
    """No page tells a tired person to type what does not exist."""
    known = {words[:2] for words in commands()} | {words[:1] for words in commands()}
    for page in (ROOT / "docs").glob("*.md"):
        for line in re.findall(r"^wavekeep (.*)$|`wavekeep ([^`]*)`", page.read_text("utf-8"), re.MULTILINE):
            words = re.match(r"[a-z ]*", "".join(line))
            assert words is not None
            assert tuple(words[0].split()[:2]) in known, "".join(line)
