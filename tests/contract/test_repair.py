"""Replacing a file by the bytes it had: a damaged one is whole again, on every kind of storage."""

from pathlib import Path

import pytest

from downloader.names import Names, names_of
from downloader.replacement import Replaced, Replacing, from_file
from downloader.staging import Staging
from shared.clock import system_clock
from tests.contract.storages import FolderKit, Kit, ObjectKit
from tests.kept import Kept, audio
from tests.unit.custody_fakes import FakePublisher, Steps

WHOLE = audio()
DAMAGE = {"flipped": WHOLE[:-1] + b"\xaa", "cut": WHOLE[:-100], "empty": b"", "missing": None}


class Place:
    """One stored task, and a person beside it."""

    def __init__(self, kit: Kit, folder: Path) -> None:
        assert isinstance(kit, FolderKit | ObjectKit)
        self.kit = kit
        self.storage = kit.storage()
        self.kept = Kept(self.storage, folder / "brought")
        self.publisher = FakePublisher(Steps())
        self.names: Names = names_of("apibox", "one")
        self._staging = Staging(folder / "staging", executor=kit.executor)
        self._given = folder / "given.wav"
        (folder / "staging").mkdir()

    async def replace(self, content: bytes) -> Replaced:
        """Bring a file."""
        self._given.write_bytes(content)
        replacing = Replacing(staging=self._staging, storage=self.storage, publisher=self.publisher, clock=system_clock)
        return await replacing.replace("apibox", "one", from_file(self._given, max_bytes=10**6), explanation=None)


@pytest.fixture
async def place(kit: Kit, tmp_path: Path) -> Place:
    """A task that is stored and told."""
    found = Place(kit, tmp_path)
    await found.storage.start()
    await found.kept.store("one", WHOLE)
    return found


@pytest.mark.parametrize("damage", DAMAGE)
async def test_the_same_bytes_repair_it(place: Place, damage: str) -> None:
    """The proven bytes are under the same name again, in the same revision, and nobody is told a replacement."""
    manifest = await place.kept.manifest(place.names)
    before, content = place.kit.listing(), DAMAGE[damage]
    if content is None:
        await place.storage.delete(manifest.audio)
    else:
        await place.kept.put(manifest.audio, content)
    done = await place.replace(WHOLE)
    assert (done.outcome, done.manifest) == ("repaired", manifest)
    assert await place.storage.digest(manifest.audio) == (manifest.size_bytes, manifest.sha256)
    assert await place.kept.manifest(place.names) == manifest
    assert place.kit.listing() == before
    assert place.publisher.told == []
    assert (await place.replace(WHOLE)).outcome == "unchanged"


async def test_other_bytes_do_not_repair(place: Place) -> None:
    """What is damaged is replaced by another file as ever, and stays as it is."""
    manifest = await place.kept.manifest(place.names)
    await place.kept.put(manifest.audio, WHOLE[:-100])
    done = await place.replace(audio(1))
    assert (done.outcome, done.manifest.revision) == ("replaced", 2)
    assert await place.storage.digest(manifest.audio) != (manifest.size_bytes, manifest.sha256)


async def test_going_back_repairs_what_it_goes_back_to(place: Place) -> None:
    """An earlier revision whose file is damaged is whole again once its bytes have the place once more."""
    manifest = await place.kept.manifest(place.names)
    await place.replace(audio(1))
    await place.kept.put(manifest.audio, WHOLE[:-1] + b"\xaa")
    done = await place.replace(WHOLE)
    assert (done.outcome, done.manifest.revision, done.manifest.audio) == ("replaced", 3, manifest.audio)
    assert await place.storage.digest(manifest.audio) == (manifest.size_bytes, manifest.sha256)
