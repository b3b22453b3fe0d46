"""The storage port: one suite for every storage."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from downloader.storage import Storage
from shared.errors import Reason, RetryableError
from tests.contract.storages import Kit, other_process, said, staged, tell

KEY = "apibox/ab/task.json"


@pytest.fixture
async def storage(kit: Kit) -> Storage:
    """A started storage."""
    storage = kit.storage()
    await storage.start()
    return storage


async def test_starting_leaves_nothing_and_can_be_repeated(kit: Kit) -> None:
    """The probe proves the place by real writes and is gone afterwards, however often a service starts."""
    for _ in range(2):
        await kit.storage().start()
    assert kit.listing() == set()


async def test_storages_that_start_at_once_all_start(kit: Kit) -> None:
    """Services of one place that start together do not take each other's probes for a broken storage."""
    await asyncio.gather(*(kit.storage().start() for _ in range(4)))
    assert kit.listing() == set()


async def test_creating_is_conditional(storage: Storage) -> None:
    """The second creator of a key is told so, and changes nothing."""
    assert await storage.create(KEY, b"first")
    assert not await storage.create(KEY, b"second")
    assert await storage.read(KEY) == b"first"


async def test_of_concurrent_creators_exactly_one_wins(kit: Kit, storage: Storage) -> None:
    """A task has a single writer, whichever of many attempts comes first; what is kept is the winner's."""
    other = kit.storage()
    contents = [b"%d" % number * 1_000 for number in range(10)]
    won = await asyncio.gather(
        *((storage if number % 2 else other).create(KEY, content) for number, content in enumerate(contents))
    )
    assert won.count(True) == 1
    assert await storage.read(KEY) == contents[won.index(True)]


async def test_of_two_processes_exactly_one_creates(kit: Kit, storage: Storage) -> None:
    """The single writer holds across processes too."""
    code = kit.opener() + (
        "import asyncio, sys\n"
        "print('ready', flush=True)\n"
        "name = sys.stdin.readline().strip().encode()\n"
        "async def create(): return [await storage.create(f'kie/00/{n}.json', name) for n in range(100)]\n"
        "print(''.join('01'[won] for won in asyncio.run(create())), flush=True)\n"
    )
    with other_process(code) as one, other_process(code) as two:
        for process in (one, two):
            assert await said(process) == "ready"
        tell(one, "one")
        tell(two, "two")
        wins = list(zip(await said(one), await said(two), strict=True))
    assert len(wins) == 100
    for number, pair in enumerate(wins):
        assert pair in {("1", "0"), ("0", "1")}
        assert await storage.read(f"kie/00/{number}.json") == (b"one" if pair == ("1", "0") else b"two")


async def test_replacing_puts_the_new_object_there(kit: Kit, storage: Storage) -> None:
    """An object is put under its key whatever was there, by any writer, and nothing else is left."""
    await storage.replace(KEY, b"first")
    await kit.storage().replace(KEY, b"second, and longer")
    await storage.replace(KEY, b"third")
    assert await storage.read(KEY) == b"third"
    assert not await storage.create(KEY, b"fourth")
    assert kit.listing() == {KEY}


async def test_whoever_reads_while_it_is_replaced_reads_one_whole(kit: Kit, storage: Storage) -> None:
    """No reader ever sees nothing, a part, or a mixture."""
    contents = [bytes([letter]) * 300_000 for letter in b"abcdefgh"]
    await storage.replace(KEY, contents[0])
    other = kit.storage()

    async def write() -> None:
        for content in contents * 3:
            await storage.replace(KEY, content)

    writing = asyncio.create_task(write())
    seen = 0
    while not writing.done():
        assert await other.read(KEY) in contents
        seen += 1
    await writing
    assert seen
    assert await other.read(KEY) == contents[-1]


async def test_keeping_takes_the_whole_file(kit: Kit, storage: Storage, tmp_path: Path) -> None:
    """What was staged is under its key, and its digest can be read again; the staged one stays, untouched."""
    content = b"audio" * 100_000
    path = staged(tmp_path / "staging", content)
    await storage.keep(path, "apibox/ab/task.wav")
    assert await storage.read("apibox/ab/task.wav") == content
    assert await storage.digest("apibox/ab/task.wav") == (len(content), hashlib.sha256(content).hexdigest())
    assert [each.read_bytes() for each in path.parent.iterdir()] == [content]
    assert kit.listing() == {"apibox/ab/task.wav"}


async def test_asking_whether_it_answers_leaves_nothing(kit: Kit, storage: Storage) -> None:
    """It is asked every few seconds."""
    await storage.ask()
    assert kit.listing() == set()


async def test_keeping_again_is_harmless(kit: Kit, storage: Storage, tmp_path: Path) -> None:
    """A repetition finds its own audio there, and keeps it; so does one from another copy; nothing else is left."""
    path = staged(tmp_path / "staging")
    for _ in range(2):
        await storage.keep(path, "apibox/ab/task.wav")
    path.unlink()
    await storage.keep(staged(tmp_path / "staging"), "apibox/ab/task.wav")
    assert await storage.read("apibox/ab/task.wav") == b"audio"
    assert kit.listing() == {"apibox/ab/task.wav"}


async def test_keeping_what_is_not_there_keeps_nothing(kit: Kit, storage: Storage, tmp_path: Path) -> None:
    """A lost staged file fails as worth another try, and leaves no key that looks like a file."""
    with pytest.raises(RetryableError) as caught:
        await storage.keep(tmp_path / "gone.part", "apibox/ab/task.wav")
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert kit.listing() == set()


async def test_what_is_missing_is_told_as_missing(storage: Storage) -> None:
    """Reading and asking tell absence from failure; deleting what is gone is no failure; a digest of it is."""
    assert await storage.read(KEY) is None
    assert not await storage.exists(KEY)
    await storage.delete(KEY)
    with pytest.raises(RetryableError) as caught:
        await storage.digest(KEY)
    assert caught.value.reason is Reason.STORAGE_FAILED


async def test_a_deleted_key_is_free(storage: Storage) -> None:
    """After a deletion nothing is there, and the key can be created anew."""
    await storage.create(KEY, b"first")
    assert await storage.exists(KEY)
    await storage.delete(KEY)
    assert not await storage.exists(KEY)
    assert await storage.create(KEY, b"second")


async def test_an_empty_object_exists(storage: Storage) -> None:
    """An object of no bytes is told apart from none."""
    assert await storage.create(KEY, b"")
    assert await storage.exists(KEY)
    assert await storage.read(KEY) == b""


async def test_who_replaces_while_others_do_replaces_too(kit: Kit, storage: Storage) -> None:
    """Several that replace one object at once all succeed, and what is there at the end is whole and one of theirs."""
    contents = [bytes([letter]) * 100_000 for letter in b"abcd"]
    await asyncio.gather(*(kit.storage().replace(KEY, content) for content in contents))
    assert await storage.read(KEY) in contents


async def test_listing_tells_every_object_once(storage: Storage, tmp_path: Path) -> None:
    """Key, size and time of everything kept are told, each once, and nothing of the storage's own."""
    before = datetime.now(UTC) - timedelta(seconds=2)
    await storage.keep(staged(tmp_path / "staging", b"audio"), "apibox/ab/task.wav")
    for key in ("apibox/ab/task.json", "apibox/abc/task.json", "kie/ab/task.json"):
        await storage.create(key, b"{}")
    found = [entry async for entry in storage.list()]
    assert {entry.key: entry.size_bytes for entry in found} == {
        "apibox/ab/task.wav": 5,
        "apibox/ab/task.json": 2,
        "apibox/abc/task.json": 2,
        "kie/ab/task.json": 2,
    }
    assert len(found) == 4
    assert all(before < entry.modified_at <= datetime.now(UTC) + timedelta(seconds=1) for entry in found)


async def test_listing_begins_at_whole_parts_of_a_path(storage: Storage) -> None:
    """What is asked for below a folder is not mixed with a folder of a longer name; nothing there is no failure."""
    for key in ("apibox/ab/task.json", "apibox/abc/task.json", "kie/ab/task.json"):
        await storage.create(key, b"{}")
    assert [entry.key async for entry in storage.list("apibox/ab")] == ["apibox/ab/task.json"]
    assert {entry.key async for entry in storage.list("apibox")} == {"apibox/ab/task.json", "apibox/abc/task.json"}
    assert [entry.key async for entry in storage.list("sunoapi")] == []


async def test_listing_goes_beyond_one_page(storage: Storage) -> None:
    """More than the thousand objects that a store tells at once are told, each once."""
    keys = [f"kie/{number % 7:02}/{number}.json" for number in range(1_050)]
    for first in range(0, len(keys), 50):
        await asyncio.gather(*(storage.create(key, b"{}") for key in keys[first : first + 50]))
    assert sorted([entry.key async for entry in storage.list()]) == sorted(keys)


async def test_listing_tells_a_folder_in_the_order_of_keys(storage: Storage) -> None:
    """What belongs together comes together, so that whoever groups a listing must not hold all of it."""
    keys = [f"kie/ab/{name}" for name in ("a.json", "a-b.wav", "a.wav", "A.json", "a_.json", "a0.v1.json", "a.0.wav")]
    await asyncio.gather(*(storage.create(key, b"{}") for key in keys))
    assert [entry.key async for entry in storage.list("kie/ab")] == sorted(keys)


async def test_work_that_is_done_together(storage: Storage) -> None:
    """Work of many calls sees and does what each call alone would, and hands back what it returns or raises."""
    await storage.create(KEY, b"first")

    async def work(same: Storage) -> tuple[bytes | None, bool, tuple[int, str], list[str]]:
        created = await same.create("kie/ab/task.json", b"second")
        listed = sorted([entry.key async for entry in same.list()])
        return await same.read(KEY), created, await same.digest(KEY), listed

    keys = [KEY, "kie/ab/task.json"]
    assert await storage.together(work) == (b"first", True, (5, hashlib.sha256(b"first").hexdigest()), keys)
    assert await storage.read("kie/ab/task.json") == b"second"

    async def fail(same: Storage) -> None:
        await same.digest("kie/ab/nothing.wav")

    with pytest.raises(RetryableError) as caught:
        await storage.together(fail)
    assert caught.value.reason is Reason.STORAGE_FAILED


async def test_an_address_names_the_object_alone(storage: Storage) -> None:
    """What a manifest calls its audio holds neither credentials nor a query, and ends with the key."""
    uri = storage.uri(KEY)
    assert urlsplit(uri).scheme in {"file", "s3"}
    assert uri.endswith(f"/{KEY}")
    assert not set(uri) & set("@?#")
