"""What the folder promises beyond the port: rights, links, full disks, other devices, dead and living writers."""

import asyncio
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from downloader import storage_folder
from downloader.names import names_of
from downloader.staging import Staging
from downloader.storage import sweep
from downloader.storage_folder import FolderStorage
from shared.errors import Reason, RetryableError, StartError
from tests.contract.storages import (
    SMALL_BYTES,
    FolderKit,
    files,
    other_device,
    other_process,
    said,
    small_place,
    staged,
    without_rights,
)

AUDIO = "apibox/ab/task.wav"
HOLD = "with storage._temporary() as (file, path):\n    print('holding', flush=True)\n    input()\n"


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[FolderKit]:
    """A folder that is not there yet."""
    with ThreadPoolExecutor(4) as executor:
        yield FolderKit(tmp_path / "files", executor)


class Forgetful(FolderStorage):
    """A storage whose conditional create always succeeds."""

    async def create(self, key: str, content: bytes) -> bool:
        """Claim success."""
        await super().create(key, content)
        return True


async def test_a_storage_without_conditional_create_is_refused(kit: FolderKit) -> None:
    """Two downloaders that could both believe they stored a task never start; the sentence says what to do."""
    with pytest.raises(StartError, match="WAVEKEEP_STORAGE_SINGLE_WRITER=true"):
        await Forgetful(kit.root, executor=kit.executor).start()
    await Forgetful(kit.root, executor=kit.executor, single_writer=True).start()
    assert kit.listing() == set()


async def test_a_folder_that_is_no_longer_the_one_that_was_started_does_not_answer(kit: FolderKit) -> None:
    """A disk that was unmounted leaves an empty folder, which would take files and lose them with the next mount."""
    storage = kit.storage()
    await storage.start()
    await storage.ask()
    kit.root.rename(kit.root.with_name("elsewhere"))
    kit.root.mkdir()
    with pytest.raises(RetryableError) as caught:
        await storage.ask()
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert kit.listing() == set()


async def test_a_folder_without_rights_is_refused(tmp_path: Path, kit: FolderKit) -> None:
    """A place that cannot be written is told at start, in a sentence that names it and the setting."""
    with without_rights(tmp_path), pytest.raises(StartError) as caught:
        await kit.storage().start()
    assert str(kit.root) in str(caught.value)
    assert "Permission denied" in str(caught.value)
    assert "WAVEKEEP_STORAGE_URL" in str(caught.value)


async def test_a_file_in_the_place_of_the_folder_is_refused(kit: FolderKit) -> None:
    """A mistaken path is told at start, not at the first conversion."""
    kit.root.write_text("not a folder")
    with pytest.raises(StartError, match="Files cannot be kept in"):
        await kit.storage().start()


async def test_only_the_owner_may_read(kit: FolderKit, tmp_path: Path) -> None:
    """Folders are 0700 and files 0600, whatever the umask says."""
    before = os.umask(0)
    try:
        storage = kit.storage()
        await storage.start()
        await storage.create("apibox/ab/task.json", b"{}")
        await storage.keep(staged(tmp_path / "staging"), AUDIO)
        with other_device() as foreign:
            await storage.keep(staged(foreign, b"other"), "kie/cd/task.wav")
    finally:
        os.umask(before)
    for path in (kit.root, *kit.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_staging_on_another_device_works(kit: FolderKit) -> None:
    """Where the file cannot have another name it is copied, whole or not at all; the staged one outlives the proof."""
    content = os.urandom(3_000_000)
    storage = kit.storage()
    await storage.start()
    with other_device() as foreign:
        assert foreign.stat().st_dev != kit.root.stat().st_dev
        path = staged(foreign, content)
        await storage.keep(path, AUDIO)
        assert path.read_bytes() == content
    assert await storage.read(AUDIO) == content
    assert kit.listing() == {AUDIO}


async def test_on_one_disk_nothing_is_copied(kit: FolderKit, tmp_path: Path) -> None:
    """The staged file gets another name, so that it takes no more room, and outlives the proof all the same."""
    storage = kit.storage()
    await storage.start()
    path = staged(tmp_path / "staging", b"audio")
    await storage.keep(path, AUDIO)
    assert path.samefile(kit.root / AUDIO)
    path.unlink()
    assert await storage.read(AUDIO) == b"audio"


@pytest.mark.parametrize("locked", [True, False], ids=["locked by its attempt", "locked by nobody"])
async def test_a_start_meanwhile_leaves_a_file_that_is_being_kept(
    kit: FolderKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, locked: bool
) -> None:
    """Its temporary name is a living writer's to whoever sweeps; what a dead one left there is swept."""
    await kit.storage().start()
    path = staged(tmp_path / "staging", b"audio")
    rename, swept = os.rename, []

    def swept_before(source: Path, name: str, **named: int) -> None:
        swept.append(sweep(kit.root / ".tmp"))
        rename(source, name, **named)

    monkeypatch.setattr(os, "rename", swept_before)
    with path.open("rb") as file:
        if locked:
            fcntl.flock(file, fcntl.LOCK_EX)
        await FolderStorage(kit.root, executor=None).keep(path, AUDIO)
    assert swept == [0]
    (kit.root / ".tmp" / "dead").hardlink_to(path)
    assert sweep(kit.root / ".tmp") == 1
    assert kit.listing() == {AUDIO}


async def test_a_full_disk_is_told_and_nothing_is_left(kit: FolderKit) -> None:
    """No half object and no temporary file stays behind; the failure is worth another try, under its own reason."""
    with other_device() as foreign, ExitStack() as stack:
        path = staged(foreign, bytes(2 * SMALL_BYTES))
        stack.enter_context(small_place(kit.root))
        await (storage := kit.storage()).start()
        for attempt in (
            storage.create("apibox/ab/task.json", b"x" * 2 * SMALL_BYTES),
            storage.replace("apibox/ab/task.json", b"x" * 2 * SMALL_BYTES),
            storage.keep(path, AUDIO),
        ):
            with pytest.raises(RetryableError) as caught:
                await attempt
            assert caught.value.reason is Reason.STORAGE_FULL
        assert kit.listing() == set()
        assert path.exists()
        assert await storage.create("apibox/ab/task.json", b"small")


async def test_a_full_disk_is_told_while_staging(tmp_path: Path, kit: FolderKit) -> None:
    """An attempt that outgrows the staging disk fails as worth another try and gives the room back."""
    staging = Staging(tmp_path / "staging", executor=kit.executor)
    with small_place(tmp_path / "staging"):
        await staging.start()
        with pytest.raises(RetryableError) as caught:
            async with staging.attempt() as attempt:
                attempt.write(b"RIFF\xff\xff\xff\x7fWAVEJUNK\xf0\xff\xff\x7f" + bytes(2 * SMALL_BYTES))
        assert caught.value.reason is Reason.STORAGE_FULL
        assert files(tmp_path / "staging") == set()


@pytest.mark.parametrize("link", ["apibox", "apibox/ab"])
async def test_a_linked_folder_is_not_followed(kit: FolderKit, tmp_path: Path, link: str) -> None:
    """Whoever can plant a link in the storage cannot make us write or read outside of it."""
    storage = kit.storage()
    await storage.start()
    outside = tmp_path / "outside"
    (outside / "ab").mkdir(parents=True)
    (outside / "task.wav").write_bytes(b"theirs")
    (kit.root / link).parent.mkdir(exist_ok=True)
    (kit.root / link).symlink_to(outside)
    for attempt in (
        storage.create(AUDIO, b"x"),
        storage.replace(AUDIO, b"x"),
        storage.keep(staged(tmp_path / "staging"), AUDIO),
        storage.read(AUDIO),
        storage.exists(AUDIO),
        storage.delete(AUDIO),
    ):
        with pytest.raises(RetryableError) as caught:
            await attempt
        assert caught.value.reason is Reason.STORAGE_FAILED
    assert files(outside) == {"task.wav"}


async def test_a_link_in_the_place_of_a_file_is_not_followed(kit: FolderKit, tmp_path: Path) -> None:
    """A planted link is neither read nor written through: the key counts as taken, or is replaced itself."""
    storage = kit.storage()
    await storage.start()
    outside = tmp_path / "outside.txt"
    outside.write_text("theirs")
    await storage.create("apibox/ab/other.json", b"{}")
    (kit.root / AUDIO).symlink_to(outside)
    assert not await storage.create(AUDIO, b"ours")
    with pytest.raises(RetryableError):
        await storage.read(AUDIO)
    with pytest.raises(RetryableError):
        await storage.digest(AUDIO)
    await storage.keep(staged(tmp_path / "staging"), AUDIO)
    assert await storage.read(AUDIO) == b"audio"
    (kit.root / AUDIO).unlink()
    (kit.root / AUDIO).symlink_to(outside)
    await storage.replace(AUDIO, b"ours")
    assert await storage.read(AUDIO) == b"ours"
    assert outside.read_text() == "theirs"


async def test_the_same_name_in_other_case_is_another_object(kit: FolderKit, tmp_path: Path) -> None:
    """Neither the conditional create nor keeping a file takes a name in other case for the same one."""
    storage = kit.storage()
    await storage.start()
    assert await storage.create("kie/ab/task.json", b"lower")
    assert await storage.create("kie/ab/TASK.json", b"upper")
    assert (await storage.read("kie/ab/task.json"), await storage.read("kie/ab/TASK.json")) == (b"lower", b"upper")
    await storage.keep(staged(tmp_path / "staging", b"one"), "kie/ab/task.wav")
    await storage.keep(staged(tmp_path / "staging", b"two"), "kie/ab/TASK.wav")
    assert (await storage.read("kie/ab/task.wav"), await storage.read("kie/ab/TASK.wav")) == (b"one", b"two")


@pytest.mark.parametrize(
    "task_id", ["../../outside", "..", "/etc/passwd", "a/b", ".tmp", "a\0b", "~", "C:\\x", "x" * 10_000]
)
async def test_a_task_id_that_is_a_path_stays_in_its_folder(kit: FolderKit, tmp_path: Path, task_id: str) -> None:
    """Whatever a vendor calls a task, its objects lie two folders below the root and nowhere else."""
    storage = kit.storage()
    await storage.start()
    path = staged(tmp_path / "staging")
    before = files(tmp_path)
    names = names_of("kie", task_id)
    assert await storage.create(names.manifest, b"{}")
    await storage.keep(path, names.audio("0" * 64))
    assert len(kit.listing()) == 2
    assert all(key.startswith("kie/") and key.count("/") == 2 for key in kit.listing())
    assert {path for path in files(tmp_path) - before if not path.startswith("files/kie/")} == set()


async def test_what_a_killed_writer_left_is_swept(kit: FolderKit) -> None:
    """The temporary file of a dead process is gone after the next start; that of a living one is left alone."""
    await kit.storage().start()
    with other_process(kit.opener() + HOLD) as dead, other_process(kit.opener() + HOLD) as living:
        assert [await said(dead), await said(living)] == ["holding", "holding"]
        assert len(kit.listing()) == 2
        dead.kill()
        dead.wait()
        await kit.storage().start()
        assert len(kit.listing()) == 1
        living.kill()
        living.wait()
        await kit.storage().start()
        assert kit.listing() == set()


async def test_what_a_killed_attempt_left_is_swept(tmp_path: Path, kit: FolderKit) -> None:
    """Staging, too, knows dead attempts from living ones, and counts what it removes."""
    folder = tmp_path / "staging"
    await Staging(folder, executor=kit.executor).start()
    hold = "import sys\nfrom pathlib import Path\nfrom downloader.attempt import Attempt\n"
    codes = [
        hold + f"attempt = Attempt(Path({str(folder)!r}) / '{n}.part')\nprint('holding', flush=True)\ninput()"
        for n in "ab"
    ]
    with other_process(codes[0]) as dead, other_process(codes[1]) as living:
        assert [await said(dead), await said(living)] == ["holding", "holding"]
        dead.kill()
        dead.wait()
        assert await Staging(folder, executor=kit.executor).start() == 1
        assert files(folder) == {"b.part"}


def test_a_file_that_goes_while_sweeping_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living writer that ends at this very moment does not keep another process from starting."""
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([tmp_path / "gone"]))
    assert sweep(tmp_path) == 0


async def test_a_folder_of_any_size_is_listed_in_bounded_memory(
    kit: FolderKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of more names than are held at once is told whole, each name once and in order."""
    held: list[int] = []
    next_names = storage_folder._next_names

    def seen(opened: int, last: str) -> tuple[list[str], bool]:
        names, more = next_names(opened, last)
        held.append(len(names))
        return names, more

    monkeypatch.setattr(storage_folder, "_NAMES", 10)
    monkeypatch.setattr(storage_folder, "_next_names", seen)
    storage = kit.storage()
    folder = kit.root / "kie/ab"
    folder.mkdir(parents=True)
    for count in (10, 11, 20, 21, 57):
        for number in range(count):
            (folder / f"{number * 7919 % 1_000:03}.json").touch()
        keys = [entry.key async for entry in storage.list("kie/ab")]
        assert keys == sorted(kit.listing())
        assert len(keys) == count
        assert max(held) <= 10


async def test_a_listing_takes_no_thread_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a disk is slow to tell what is there, files are read and kept as ever, and the other way round."""
    free = threading.Event()
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: free.wait(30) and scandir(folder))
    with ThreadPoolExecutor(1) as executor:
        storage = FolderStorage(tmp_path / "files", executor=executor)
        (tmp_path / "files" / ".tmp").mkdir(parents=True)
        await storage.create("kie/ab/task.json", b"{}")

        async def listed() -> list[str]:
            return [entry.key async for entry in storage.list("kie")]

        listings = [asyncio.create_task(listed()) for _ in range(3)]
        async with asyncio.timeout(20):
            assert await storage.read("kie/ab/task.json") == b"{}"
        assert not any(listing.done() for listing in listings)
        free.set()
        busy = threading.Event()
        executor.submit(busy.wait, 30)
        try:
            async with asyncio.timeout(20):
                assert await asyncio.gather(*listings) == [["kie/ab/task.json"]] * 3
        finally:
            busy.set()
