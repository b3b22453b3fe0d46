"""The audit and adoption among fakes: what is found, what is no finding, what is brought back to order."""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from downloader.adoption import Adopted, Adoption
from downloader.audit import Audited, Auditor
from downloader.findings import Finding, Kind
from downloader.holdings import Selection, holdings
from downloader.manifest import Rejection, write
from downloader.names import names_of
from downloader.tombstone import Expiry, write_expiry
from shared import events
from shared.errors import Reason, RetryableError
from shared.vendors import Vendor
from tests.kept import STORED_AT, Kept, audio, manifest_of, replaced
from tests.unit.custody_fakes import NOW, FakePublisher, MemoryStorage, Steps

ODD = "../a task/ü"


class House:
    """Kept tasks in memory, and the time."""

    def __init__(self, folder: Path) -> None:
        self.steps = Steps()
        self.storage = MemoryStorage(self.steps)
        self.publisher = FakePublisher(self.steps)
        self.kept = Kept(self.storage, folder / "staging")
        self.now = NOW + timedelta(days=1)  # everything is a day old

    @property
    def objects(self) -> dict[str, bytes]:
        """What is kept."""
        return self.storage.objects

    async def audit(self, selection: Selection | None = None, **how: Any) -> list[Audited]:
        """Audit; return what was seen of each task."""
        seen: list[Audited] = []

        async def see(audited: Audited) -> None:
            seen.append(audited)

        await Auditor(self.storage, clock=lambda: self.now).audit(selection or Selection(), seen=see, **how)
        return seen

    async def findings(self, selection: Selection | None = None) -> list[Finding]:
        """Audit; return what was found."""
        return [finding for audited in await self.audit(selection) for finding in audited.findings]

    async def adopt(self, *, dry: bool = False) -> list[Adopted]:
        """Audit and adopt; return what was done."""
        adoption = Adoption(storage=self.storage, publisher=None if dry else self.publisher)
        return [each for audited in await self.audit() for each in await adoption.adopt(audited)]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """An empty house."""
    return House(tmp_path)


def flip(content: bytes) -> bytes:
    """Return it with one bit flipped, in the middle."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def named(*tasks: str) -> Selection:
    """Select tasks by id."""
    return Selection(named=tuple((Vendor.APIBOX, task) for task in tasks))


async def test_what_is_whole_is_not_found(house: House) -> None:
    """Whole files, replaced ones and odd ids among them, are no finding, and each is read once."""
    await house.kept.store("one")
    names = await house.kept.store(ODD, vendor=Vendor.KIE)
    await house.kept.replace(names, audio(1))
    seen = await house.audit()
    assert [each.findings for each in seen] == [[], []]
    assert sorted(each.task_id for each in seen) == [ODD, "one"]
    assert sum(each.files for each in seen) == 3
    assert sum(each.size_bytes for each in seen) == 3 * len(audio())


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (flip, Kind.DIGEST_DIFFERS),
        (lambda content: content[:-2], Kind.SIZE_DIFFERS),
        (lambda content: content + b"\0", Kind.SIZE_DIFFERS),
        (None, Kind.MISSING),
    ],
)
async def test_damaged_audio(house: House, change: Callable[[bytes], bytes] | None, kind: Kind) -> None:
    """Damage is found under its word, with what was expected and what is there, and nothing is changed."""
    names = await house.kept.store("one")
    await house.kept.store("two")
    manifest = await house.kept.manifest(names)
    there = None if change is None else change(house.objects[manifest.audio])
    if there is None:
        del house.objects[manifest.audio]
    else:
        house.objects[manifest.audio] = there
    before = dict(house.objects)
    (found,) = await house.findings()
    assert house.objects == before
    assert (found.kind, found.is_damage, found.task_id, found.revision) == (kind, True, "one", 1)
    assert (found.expected_sha256, found.expected_size_bytes) == (manifest.sha256, manifest.size_bytes)
    assert found.found_size_bytes == (None if there is None else len(there))
    assert found.found_sha256 == (None if there is None else hashlib.sha256(there).hexdigest())
    assert found.announcement().uri == manifest.uri


async def test_earlier_revisions_are_read_too(house: House) -> None:
    """A replaced file is kept for ever, so its damage counts, under its own revision."""
    names = await house.kept.store("one")
    first = await house.kept.manifest(names)
    await house.kept.replace(names, audio(1))
    house.objects[first.audio] = flip(house.objects[first.audio])
    (found,) = await house.findings()
    assert (found.kind, found.revision, found.key) == (Kind.DIGEST_DIFFERS, 1, first.audio)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b""])
async def test_unreadable_manifests(house: House, content: bytes) -> None:
    """A manifest that makes no sense is damage, and its audio no orphan: it may well be named there."""
    names = await house.kept.store("one")
    house.objects[names.manifest] = content
    (found,) = await house.findings()
    assert (found.kind, found.key, found.task_id, found.revision) == (Kind.UNREADABLE, names.manifest, "one", None)
    assert found.found_sha256 == hashlib.sha256(content).hexdigest()
    assert await house.adopt() == []


@pytest.mark.parametrize("changes", [{"task_id": "other"}, {"audio": "apibox/00/other.wav"}, {"sha256": "0" * 64}])
async def test_manifests_that_speak_of_something_else(house: House, changes: dict[str, str]) -> None:
    """A manifest that was changed, or put in another's place, is not believed."""
    names = await house.kept.store("one")
    manifest = msgspec.structs.replace(await house.kept.manifest(names), **changes)
    house.objects[names.manifest] = write(manifest)
    (found,) = await house.findings()
    assert (found.kind, found.key) == (Kind.UNREADABLE, names.manifest)


async def test_what_the_storage_does_not_give_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there and cannot be read twice is damage; where even that cannot be told, the audit itself fails."""
    names = await house.kept.store("one")

    async def refuse(_: object, key: str) -> tuple[int, str]:
        raise RetryableError(Reason.STORAGE_FAILED, "Input/output error")

    monkeypatch.setattr(MemoryStorage, "digest", refuse)
    (found,) = await house.findings()
    assert (found.kind, found.detail, found.found_sha256) == (Kind.UNREADABLE, "Input/output error", None)
    monkeypatch.setattr(MemoryStorage, "exists", refuse)
    with pytest.raises(RetryableError):
        await house.audit(named("one"))
    assert names.manifest in house.objects


async def test_a_manifest_that_is_gone(house: House) -> None:
    """The manifest of a task that was told must be there: a marker or a revision is enough to miss it."""
    names = await house.kept.store("one")
    del house.objects[names.manifest]
    found = {finding.kind: finding for finding in await house.findings()}
    assert set(found) == {Kind.MISSING, Kind.ORPHAN}
    assert (found[Kind.MISSING].key, found[Kind.MISSING].revision) == (names.manifest, None)


@pytest.mark.parametrize("layout", ["among the revisions", "beside them"])
async def test_what_retention_let_go(house: House, layout: str) -> None:
    """After a tombstone the audio may be missing, of all revisions it speaks for; a later one's may not.

    It may stand where the next revision would, or beside them, as it did at first.
    """
    names = await house.kept.store("one")
    second = await house.kept.replace(names, audio(1))
    record = write_expiry(tombstone("one", revision=2))
    house.objects[names.revision(3) if layout == "among the revisions" else names.expired] = record
    for key in [key for key in house.objects if key.endswith(".wav")]:
        del house.objects[key]
    assert await house.findings() == []
    number = 4 if layout == "among the revisions" else 3
    key = names.audio("f" * 64, revision=number)
    new = msgspec.structs.replace(second, revision=number, audio=key, sha256="f" * 64)
    house.objects.update({names.revision(number): write(new), names.manifest: write(new)})
    (found,) = (each for each in await house.findings() if each.is_damage)
    assert (found.kind, found.revision, found.key) == (Kind.MISSING, number, key)


async def test_what_came_back(house: House) -> None:
    """Audio that retention had deleted and that is there again is listed, and is no damage; a later file is none."""
    names = await house.kept.store("one")
    house.objects[names.revision(2)] = write_expiry(tombstone("one", revision=1))
    assert await house.findings() == []
    house.objects[names.gone(1)] = b""
    (found,) = await house.findings()
    assert (found.kind, found.is_damage, found.revision) == (Kind.CAME_BACK, False, 1)
    first = await house.kept.manifest(names)
    third = msgspec.structs.replace(replaced(house.storage, first, audio(1)), revision=3)
    house.objects.update({names.revision(3): write(third), names.manifest: write(third), third.audio: audio(1)})
    house.objects.update({names.revision(1): write(first), names.replacement_announced(3): b""})
    assert await house.findings() == []


async def test_a_tombstone_of_something_else(house: House) -> None:
    """A tombstone excuses nothing where it stands at a number, or beside a task, that it does not speak of."""
    names = await house.kept.store("one")
    for content in (tombstone("two", revision=1), tombstone("one", revision=2)):
        house.objects[names.revision(2)] = write_expiry(content)
        (found,) = await house.findings()
        assert (found.kind, found.key) == (Kind.UNREADABLE, names.revision(2))


def tombstone(task_id: str, *, revision: int) -> Expiry:
    """Return the tombstone of a revision."""
    return Expiry(
        vendor=Vendor.APIBOX,
        task_id=task_id,
        revision=revision,
        uri="memory:///x",
        size_bytes=1,
        sha256="0" * 64,
        rule="age",
        expired_at=NOW,
        event_id="an-id",
    )


@pytest.mark.parametrize(("old", "kinds"), [(timedelta(minutes=59), []), (timedelta(minutes=61), [Kind.UNTOLD])])
async def test_untold(house: House, old: timedelta, kinds: list[Kind]) -> None:
    """A manifest without its marker is found once nobody can be at it any more; it is no damage."""
    await house.kept.store("one", told=False)
    house.now = NOW + old
    found = await house.findings()
    assert [finding.kind for finding in found] == kinds
    assert not any(finding.is_damage for finding in found)


@pytest.mark.parametrize(("old", "kinds"), [(timedelta(minutes=59), []), (timedelta(minutes=61), [Kind.ORPHAN])])
async def test_orphans(house: House, old: timedelta, kinds: list[Kind]) -> None:
    """Audio that no manifest names is found once nobody can be about to; it is no damage."""
    await house.kept.put(manifest_of(house.storage, "one", audio()).audio, audio())
    await house.kept.store("two")
    await house.kept.put(names_of("apibox", "two").audio("0" * 64), b"what a loser left")
    house.now = NOW + old
    found = await house.findings()
    assert [finding.kind for finding in found] == kinds * 2
    assert not any(finding.is_damage for finding in found)


async def test_selections(house: House) -> None:
    """Vendors, names, shares and counts mean what they say; the same seed draws the same tasks."""
    for number in range(200):
        await house.kept.store(f"t{number}", vendor=Vendor.KIE if number % 2 else Vendor.APIBOX)

    async def drawn(**how: Any) -> list[str]:
        return sorted([each.stem async for each in holdings(house.storage, Selection(**how))])

    assert len(await drawn()) == 200
    assert len(await drawn(vendors=(Vendor.KIE,))) == 100
    assert await drawn(named=((Vendor.KIE, "t1"), (Vendor.KIE, "t2"))) == [names_of("kie", "t1").stem]
    assert len(await drawn(count=7, seed=1)) == 7
    assert await drawn(count=7, seed=1) == await drawn(count=7, seed=1) != await drawn(count=7, seed=2)
    share = await drawn(share=0.25, seed=1)
    assert 25 < len(share) < 80
    assert share == await drawn(share=0.25, seed=1) != await drawn(share=0.25, seed=2)
    assert await drawn(count=300) == await drawn()


async def test_a_budget(house: House) -> None:
    """No task is begun once there was enough; what was begun is finished."""
    for number in range(30):
        await house.kept.store(f"t{number}")
    seen: list[Audited] = []

    async def see(audited: Audited) -> None:
        seen.append(audited)

    auditor = Auditor(house.storage, clock=lambda: house.now)
    assert not await auditor.audit(Selection(), seen=see, enough=lambda: len(seen) >= 10)
    assert 10 <= len(seen) < 20
    assert await auditor.audit(Selection(), seen=see)


async def test_a_budget_ends_a_handful_too(house: House) -> None:
    """Where tasks are taken by the handful, none is begun either once there was enough."""
    house.storage.local = True
    for number in range(40):
        await house.kept.store(f"t{number}")
    seen: list[Audited] = []
    asked = 0

    def enough() -> bool:
        nonlocal asked
        asked += 1
        return asked > 10

    async def see(audited: Audited) -> None:
        seen.append(audited)

    auditor = Auditor(house.storage, clock=lambda: house.now)
    assert not await auditor.audit(Selection(), seen=see, enough=enough)
    assert len(seen) == 10
    seen.clear()
    assert await auditor.audit(Selection(), seen=see)
    assert sorted(each.task_id for each in seen) == sorted(f"t{number}" for number in range(40))


async def test_the_same_damage_has_the_same_id(house: House) -> None:
    """However often it is found; and other damage has another."""
    names = await house.kept.store("one")
    key = (await house.kept.manifest(names)).audio
    whole, ids = house.objects[key], []
    for content in (flip(whole), flip(whole), whole[:-2]):
        house.objects[key] = content
        house.now += timedelta(hours=1)
        (found,) = await house.findings()
        ids.append(events.make(found.announcement(), time=found.found_at).id)
    assert ids[0] == ids[1] != ids[2]


# adoption


@pytest.mark.parametrize("task_id", ["one", ODD])
async def test_an_orphan_gets_its_manifest(house: House, task_id: str) -> None:
    """Whole audio with the digest of its name is adopted and told under the id it always had; once."""
    names, content = names_of("apibox", task_id), audio()
    key = manifest_of(house.storage, task_id, content).audio
    await house.kept.put(key, content)
    rejection = Rejection(
        vendor=Vendor.APIBOX,
        task_id=task_id,
        reason=Reason.STORAGE_FAILED,
        detail="no luck",
        code=None,
        rejected_at=STORED_AT,
    )
    await house.storage.create(names.rejected, write(rejection))
    shown = await house.adopt(dry=True)
    assert names.manifest not in house.objects
    assert [each.step for each in shown] == ["manifest_made", "told"]
    assert await house.adopt() == shown
    manifest = await house.kept.manifest(names)
    assert (manifest.task_id, manifest.sha256) == (task_id, hashlib.sha256(content).hexdigest())
    assert (manifest.evidence.trust, manifest.evidence.transport) == (("operator",), "local_file")
    (event,) = house.publisher.told
    assert event.id == events.event_id("apibox", task_id, "wavekeep.conversion.stored.v1")
    assert house.objects[names.announced] == f"{event.id}\n".encode()
    assert await house.adopt() == []
    assert await house.findings() == []


@pytest.mark.parametrize(
    ("content", "key_of", "why"),
    [
        (flip(audio()), audio(), "SHA-256"),
        (audio()[:-20], audio()[:-20], "wav_truncated"),
        (b"<html>", b"<html>", "not_wav"),
    ],
)
async def test_what_is_not_whole_is_not_adopted(house: House, content: bytes, key_of: bytes, why: str) -> None:
    """A name that does not fit, or a structure that does not, is refused in words, and left as it is."""
    names = names_of("apibox", "one")
    await house.kept.put(names.audio(hashlib.sha256(key_of).hexdigest()), content)
    before = dict(house.objects)
    (refused,) = await house.adopt()
    assert refused.refused is not None
    assert why in refused.refused
    assert house.objects == before
    assert house.publisher.told == []


async def test_of_several_orphans_none_is_chosen(house: House) -> None:
    """Which of two is the right one, only a person can tell."""
    for seed in (1, 2):
        await house.kept.put(manifest_of(house.storage, "one", audio(seed)).audio, audio(seed))
    (refused,) = await house.adopt()
    assert refused.refused is not None
    assert "2 files" in refused.refused


async def test_an_unknown_id_is_asked_for(house: House) -> None:
    """Where the keys hold a digest of the id alone, whoever knows the id can name it."""
    await house.kept.put(manifest_of(house.storage, ODD, audio()).audio, audio())
    (refused,) = await house.adopt()
    assert refused.refused is not None
    (audited,) = await house.audit(named(ODD))
    adoption = Adoption(storage=house.storage, publisher=house.publisher)
    assert [each.refused for each in await adoption.adopt(audited)] == [None, None]
    assert (await house.kept.manifest(names_of("apibox", ODD))).task_id == ODD


async def test_the_latest_revision_is_put_back(house: House) -> None:
    """Where the manifest is gone, its latest revision is the manifest; nothing is told again."""
    names = await house.kept.store("one")
    new = await house.kept.replace(names, audio(1))
    del house.objects[names.manifest]
    assert [each.step for each in await house.adopt()] == ["manifest_restored"]
    assert await house.kept.manifest(names) == new
    assert house.publisher.told == []
    assert await house.findings() == []


async def test_a_replacement_that_broke_off_is_finished(house: House) -> None:
    """What a person committed is put in its place, and told once."""
    names = await house.kept.store("one")
    old = house.objects[names.manifest]
    new = await house.kept.replace(names, audio(1))
    house.objects[names.manifest] = old
    del house.objects[names.replacement_announced(2)]
    assert [each.step for each in await house.adopt()] == ["replacement_finished", "told"]
    assert await house.kept.manifest(names) == new
    assert [event.id for event in house.publisher.told] == [new.event_id]


async def test_what_was_never_told_is_told(house: House) -> None:
    """A manifest without its marker is told and marked; a refusing broker leaves it for the next time."""
    names = await house.kept.store("one", told=False)
    house.publisher.refuses = {1}
    with pytest.raises(RetryableError):
        await house.adopt()
    assert names.announced not in house.objects
    assert [each.step for each in await house.adopt()] == ["told"]
    assert [event.id for event in house.publisher.told] == [(await house.kept.manifest(names)).event_id]


async def test_what_is_damaged_is_not_told_as_stored(house: House) -> None:
    """Nobody hears that a file is in custody that is not what was proven."""
    names = await house.kept.store("one", told=False)
    key = (await house.kept.manifest(names)).audio
    house.objects[key] = flip(house.objects[key])
    (refused,) = await house.adopt()
    assert refused.refused is not None
    assert house.publisher.told == []


async def test_whoever_was_faster_wins(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that a service makes meanwhile stays, and is the service's to tell."""
    names = names_of("apibox", "one")
    await house.kept.put(manifest_of(house.storage, "one", audio()).audio, audio())
    create = MemoryStorage.create

    async def create_late(storage: MemoryStorage, key: str, content: bytes) -> bool:
        storage.objects.setdefault(key, b"the service's")
        return await create(storage, key, content)

    monkeypatch.setattr(MemoryStorage, "create", create_late)
    assert await house.adopt() == []
    assert house.objects[names.manifest] == b"the service's"
    assert house.publisher.told == []


async def test_tasks_are_read_side_by_side(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several at once, but no more than the bound."""
    for number in range(12):
        await house.kept.store(f"t{number}")
    digest, now, most = MemoryStorage.digest, 0, 0

    async def counted(storage: MemoryStorage, key: str) -> tuple[int, str]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return await digest(storage, key)

    monkeypatch.setattr(MemoryStorage, "digest", counted)
    await house.audit()
    assert 1 < most <= 4
