"""Room for files: reserve and quota refuse in time, in words, and no longer than needed."""

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry

from downloader.answer import Known
from downloader.fetch import Head
from downloader.keeping_metrics import KeepingMetrics
from downloader.space import LOOK_EVERY_BYTES, Space
from downloader.staging import Staging
from shared.errors import Reason, RetryableError
from simulator.wavs import wav

MIB = 1024 * 1024
CONTENT = b"".join(wav(duration_s=0.5).blocks())


class Usage(NamedTuple):
    """What a disk of 1,000 MiB says of itself."""

    f_bavail: int
    f_blocks: int = 1_000
    f_frsize: int = MIB


class Disks:
    """Free bytes of folders, as a test has them."""

    def __init__(self) -> None:
        self.free_mib: dict[str, int] = {"staging": 500, "files": 500}

    def statvfs(self, folder: Path) -> Usage:
        """Tell what is free."""
        return Usage(self.free_mib[folder.name])


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disks:
    """Two folders whose disks say what the test wants."""
    disks = Disks()
    for name in disks.free_mib:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "statvfs", disks.statvfs)
    return disks


@pytest.fixture
def executor() -> Iterator[Executor]:
    """Threads for what blocks."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


def space(tmp_path: Path, registry: CollectorRegistry | None = None, **changes: Any) -> Space:
    """Return the room of one process."""
    return Space(
        **{
            "staging": tmp_path / "staging",
            "storage": tmp_path / "files",
            "reserve_bytes": None,
            "quota_bytes": None,
            "metrics": KeepingMetrics(registry or CollectorRegistry()),
            **changes,
        }
    )


def refusal(ask: Any, *arguments: Any, **named: Any) -> str:
    """Return the words in which something is refused."""
    with pytest.raises(RetryableError) as caught:
        ask(*arguments, **named)
    assert caught.value.reason is Reason.STORAGE_FULL
    return caught.value.detail


@pytest.mark.parametrize(("reserve_bytes", "stays_mib"), [(None, 50), (200 * MIB, 200), (0, 0)])
def test_the_reserve_stays_free(tmp_path: Path, disks: Disks, reserve_bytes: int | None, stays_mib: int) -> None:
    """Nothing is begun once only the reserve is left: by default 5 % of a small disk, else as set, 0 for none."""
    found = space(tmp_path, reserve_bytes=reserve_bytes)
    disks.free_mib["staging"] = stays_mib
    found.enter().close()
    if stays_mib:
        disks.free_mib["staging"] = stays_mib - 1
        detail = refusal(found.enter)
        assert "WAVEKEEP_STORAGE_RESERVE_BYTES" in detail
        assert str((stays_mib - 1) * MIB) in detail
        disks.free_mib["staging"] = stays_mib
        found.enter().close()


def test_the_default_reserve_is_bounded(tmp_path: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large disk keeps 1 GiB free, not a twentieth of itself."""
    monkeypatch.setattr(os, "statvfs", lambda _: Usage(disks.free_mib["staging"] * 1_000, 1_000_000))
    registry = CollectorRegistry()
    space(tmp_path, registry).look()
    for disk in ("staging", "storage"):
        assert registry.get_sample_value("wavekeep_downloader_disk_reserve_bytes", {"disk": disk}) == 1024**3


def test_a_file_that_will_not_fit_is_refused_before_its_first_byte(tmp_path: Path, disks: Disks) -> None:
    """What a server announces is held against the disk, less what an earlier attempt left there."""
    disks.free_mib["staging"] = 150
    refusal(space(tmp_path).enter().announce, 101 * MIB, there_bytes=0)
    space(tmp_path).enter().announce(101 * MIB, there_bytes=MIB)
    space(tmp_path).enter().announce(None, there_bytes=0)


def test_attempts_at_once_share_the_room(tmp_path: Path, disks: Disks) -> None:
    """What one attempt is about to take is not promised to another; what it gives back is."""
    found = space(tmp_path)
    disks.free_mib["staging"] = 150
    first, second = found.enter(), found.enter()
    first.announce(60 * MIB, there_bytes=0)
    refusal(second.announce, 60 * MIB, there_bytes=0)
    second.close()
    first.take(60 * MIB)
    disks.free_mib["staging"] = 90
    found.enter().announce(40 * MIB, there_bytes=0)
    first.close()
    first.close()


def test_the_disk_is_looked_at_while_writing(tmp_path: Path, disks: Disks) -> None:
    """A file of unknown length stops at the reserve, wherever the disk went meanwhile; not for every block."""
    room = space(tmp_path).enter()
    room.announce(None, there_bytes=0)
    disks.free_mib["staging"] = 49
    room.take(LOOK_EVERY_BYTES - 1)
    refusal(room.take, LOOK_EVERY_BYTES)


def test_both_disks_are_looked_at(tmp_path: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where storage is on a disk of its own, a file must fit there too, whole; where there is none, it does not."""
    monkeypatch.setattr(Path, "stat", lambda self: os.stat_result((0, 0, hash(self.name), *range(7))))
    disks.free_mib["files"] = 100
    room = space(tmp_path).enter()
    assert "storage" in refusal(room.announce, 60 * MIB, there_bytes=50 * MIB)
    space(tmp_path, storage=None).enter().announce(60 * MIB, there_bytes=0)


@pytest.mark.usefixtures("disks")
def test_the_quota(tmp_path: Path) -> None:
    """What is kept and what is under way stay within the quota; deleting makes room, keeping takes it."""
    registry = CollectorRegistry()
    found = space(tmp_path, registry, quota_bytes=1_000)
    found.counted(400)
    first = found.enter()
    first.announce(600, there_bytes=0)
    assert "WAVEKEEP_STORAGE_QUOTA_BYTES" in refusal(found.enter().announce, 1, there_bytes=0)
    first.take(600)
    first.kept("kie/00/a.wav")
    first.close()
    assert registry.get_sample_value("wavekeep_downloader_kept_bytes") == 1_000
    refusal(found.enter)
    found.freed(1)
    found.enter().close()
    assert registry.get_sample_value("wavekeep_downloader_kept_bytes") == 999


class Count:
    """The quota's count of one process, and a storage beside it that says what is really there."""

    def __init__(self, folder: Path) -> None:
        self._registry = CollectorRegistry()
        self.space = space(folder, self._registry)
        self.there: dict[str, int] = {}

    def keep(self, key: str, size_bytes: int) -> None:
        """Keep a file, as custody does."""
        room = self.space.enter()
        room.take(size_bytes)
        held, self.there[key] = key in self.there, size_bytes
        room.kept(key, held=held)

    def draw(self, key: str, size_bytes: int) -> None:
        """Keep a picture, as custody does."""
        held, self.there[key] = key in self.there, size_bytes
        self.space.added(key, size_bytes, held=held)

    def delete(self, key: str) -> None:
        """Delete what was kept, as the loser of a race does."""
        del self.there[key]
        self.space.removed(key)

    def list(self, *keys: str) -> int:
        """Look at these keys, as a round does; return what it counts."""
        return sum(self.there[key] for key in keys if key in self.there and not self.space.is_own(key))

    def round(self) -> None:
        """Do a round in which nothing happens meanwhile."""
        with self.space.counting():
            self.space.counted(self.list(*self.there))

    @property
    def kept_bytes(self) -> float | None:
        """What the metric says."""
        return self._registry.get_sample_value("wavekeep_downloader_kept_bytes")

    @property
    def right(self) -> bool:
        """Whether that is so."""
        return self.kept_bytes == sum(self.there.values())


@pytest.mark.usefixtures("disks")
def test_the_same_key_is_one_file(tmp_path: Path) -> None:
    """What is kept again, by a redelivery perhaps, is counted once, also where it was there before the last count."""
    count = Count(tmp_path)
    for _ in range(2):
        count.keep("a.wav", 70)
        assert count.right
        count.draw("a.png", 5)
        assert count.right
    for _ in range(4):
        count.round()
        count.keep("a.wav", 70)
        count.draw("a.png", 5)
        assert count.right


@pytest.mark.usefixtures("disks")
def test_what_a_loser_deletes_is_counted_no_more(tmp_path: Path) -> None:
    """Its file and its pictures, whether a count was done in between or not; and it may come again."""
    count = Count(tmp_path)
    for rounds in range(2):
        count.keep("a.wav", 70)
        count.draw("a.png", 5)
        for _ in range(rounds):
            count.round()
        count.delete("a.wav")
        count.delete("a.png")
        assert count.kept_bytes == 0
        count.keep("a.wav", 70)
        assert count.right
        count.delete("a.wav")


@pytest.mark.usefixtures("disks")
def test_counting_misses_nothing_that_happens_meanwhile(tmp_path: Path) -> None:
    """What is kept or deleted while others are counted is neither forgotten nor counted twice, however it is listed."""
    count = Count(tmp_path)
    count.there["old.wav"] = 1_000
    count.keep("early.wav", 10)
    count.keep("gone.wav", 20)
    with count.space.counting():
        listed = count.list("old.wav", "early.wav", "gone.wav")
        count.keep("meanwhile.wav", 40)
        count.delete("gone.wav")
        assert count.space.is_own("gone.wav"), "a page of the listing from before may tell it still"
        count.keep("brief.wav", 80)
        count.delete("brief.wav")
        listed += count.list("meanwhile.wav", "brief.wav", "gone.wav")
        count.space.counted(listed)
    assert count.kept_bytes == 1_050
    assert count.right
    count.round()
    assert count.right


@pytest.mark.usefixtures("disks")
def test_what_others_do_is_seen_by_the_next_count(tmp_path: Path) -> None:
    """A replica's file counts from the next round on; what a person took away of ours, from the third at the latest."""
    count = Count(tmp_path)
    count.there["another.wav"] = 500
    count.keep("a.wav", 70)
    assert count.kept_bytes == 70
    count.round()
    assert count.right
    del count.there["a.wav"]
    for _ in range(2):
        count.round()
    assert count.right


@pytest.mark.usefixtures("disks")
def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files come between two counts, the count is right; only the latest are known by their keys."""
    monkeypatch.setattr("downloader.space.REMEMBERED", 10)
    count = Count(tmp_path)
    for number in range(100):
        count.keep(f"{number}.wav", 1)
    assert count.right
    assert 10 <= sum(count.space.is_own(key) for key in count.there) <= 22
    count.round()
    assert count.right


async def test_a_refused_attempt_leaves_nothing(tmp_path: Path, disks: Disks, executor: Executor) -> None:
    """Whether refused at its beginning or in its middle, no file and no claim on the room is left."""
    found = space(tmp_path)
    staging = Staging(tmp_path / "staging", executor=executor, space=found)
    head = Head("https://cdn.example.com/a.wav", 0, Known(validator='"tag"'), (), None, size_bytes=900 * MIB)
    for task in ("apibox/1", None):
        with pytest.raises(RetryableError):
            async with staging.attempt(task) as attempt:
                attempt.begin(head)
        disks.free_mib["staging"] = 10
        with pytest.raises(RetryableError):
            async with staging.attempt(task):
                raise AssertionError("there is no room")
        disks.free_mib["staging"] = 500
        assert list((tmp_path / "staging").iterdir()) == []
    async with staging.attempt() as attempt:
        attempt.write(CONTENT)
        attempt.kept("kie/00/a.wav")
    disks.free_mib["staging"] = 51
    found.enter().announce(MIB, there_bytes=0)
