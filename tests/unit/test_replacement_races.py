"""A person who replaces a file and retention that lets it go, in every order of their steps, and with every crash."""

import hashlib
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import pytest
from prometheus_client import CollectorRegistry

from downloader import manifest as records
from downloader.attempt import Proof
from downloader.expiry import Expiring
from downloader.fetch import Sink
from downloader.keeping_metrics import KeepingMetrics
from downloader.manifest import Manifest, read_manifest
from downloader.replacement import Origin, RefusedError, Replaced, Replacing
from downloader.shelves import Task
from downloader.staging import Staging
from downloader.tombstone import Expiry, read_expiry, read_revision
from downloader.wav import Judgement
from shared.events import FileExpired, FileReplaced
from tests.kept import audio, manifest_of, replaced
from tests.unit.custody_fakes import NAMES
from tests.unit.interleaving import World, run, walk

A, B, C = (audio(seed) for seed in range(3))
LATER = manifest_of(World({}).storage, "task-1", A).deadline + timedelta(days=40)
STAGED = Path("staged.part")
METRICS = KeepingMetrics(CollectorRegistry())


STORIES: dict[str, bytes] = {
    "another file": B,
    "going back": A,
    "broken off": A,
    "told": A,
    "gone": A,
    "older layout": A,
    "brought back before": A,
    "damaged": A,
    "missing": A,
}
"""What is kept, and what the person brings."""


class FakeAttempt:
    """A staged file."""

    path = STAGED

    def __init__(self, content: bytes) -> None:
        self.size_bytes = len(content)


class FakeStaging:
    """Proves whatever it is given, at once."""

    def __init__(self, world: World, content: bytes) -> None:
        self._world, self._content = world, content

    def attempt(self) -> "FakeStaging":
        """Lend an attempt."""
        return self

    async def __aenter__(self) -> FakeAttempt:
        self._world.staged[STAGED] = self._content
        return FakeAttempt(self._content)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing."""

    async def prove(self, _attempt: FakeAttempt, *, body_proven_complete: bool) -> Proof:
        """Find it whole."""
        assert not body_proven_complete
        judgement = Judgement(manifest_of(World({}).storage, "task-1", self._content).format, ())
        return Proof(judgement, hashlib.sha256(self._content).hexdigest(), (), ())


async def brought(_sink: Sink) -> Origin:
    """Bring a file of this machine."""
    return Origin("local_file")


def person(content: bytes) -> Callable[[World], Coroutine[Any, Any, Replaced]]:
    """Return the command of a person who brings this file."""

    def act(world: World) -> Coroutine[Any, Any, Replaced]:
        replacing = Replacing(
            staging=cast("Staging", FakeStaging(world, content)),
            storage=world.storage,
            publisher=world.publisher,
            clock=lambda: LATER,
        )
        return replacing.replace("apibox", "task-1", brought, explanation=None)

    return act


def retention(world: World, rule: Literal["age"] | None = "age") -> Coroutine[Any, Any, int]:
    """Return a round's look at the task, by a listing of this moment."""
    expiring = Expiring(
        storage=world.storage,
        publisher=world.publisher,
        metrics=METRICS,
        clock=lambda: LATER,
    )
    return expiring.expire(Task(NAMES, world.storage.listed(NAMES.stem)), rule)


def finishing(world: World) -> Coroutine[Any, Any, int]:
    """Return the look of a round whose rules name nothing."""
    return retention(world, None)


def beginning(story: str) -> dict[str, bytes]:
    """Return what is kept of the task as a story begins."""
    world = World({})
    storage = world.storage
    first = manifest_of(storage, "task-1", A)
    world.objects |= {first.audio: A, NAMES.manifest: records.write(first), NAMES.announced: b""}
    if story == "going back":
        second = replaced(storage, first, B)
        world.objects |= {
            second.audio: B,
            NAMES.revision(1): records.write(first),
            NAMES.revision(2): records.write(second),
            NAMES.manifest: records.write(second),
            NAMES.replacement_announced(2): b"",
        }
    if story == "older layout":
        run(world, "retention", retention)
        tombstone = world.objects.pop(NAMES.revision(2))
        del world.objects[NAMES.gone(1)]
        world.objects |= {NAMES.expired: tombstone, first.audio: A}
    elif story in {"broken off", "told", "gone", "brought back before"}:
        run(world, "retention", retention)
        if story == "broken off":
            del world.objects[NAMES.expired], world.objects[NAMES.expiry_announced]
        if story in {"broken off", "told"}:
            world.objects |= {first.audio: A}
            del world.objects[NAMES.gone(1)]
        if story == "brought back before":
            run(world, "person", person(A))
            run(world, "person", person(B))
    if story == "damaged":
        world.objects[first.audio] = C
    if story == "missing":
        del world.objects[first.audio]
    return world.objects


def latest(world: World) -> Manifest:
    """Return the latest manifest that was committed."""
    found = [read_manifest(world.objects[NAMES.manifest]), *(each for _, each in chain(world))]
    return max((each for each in found if isinstance(each, Manifest)), key=lambda each: each.revision)


def chain(world: World) -> list[tuple[int, Manifest | Expiry]]:
    """Return what stands among the revisions, by number."""
    numbers = (number for number in range(1, 20) if NAMES.revision(number) in world.objects)
    return [(number, read_revision(world.objects[NAMES.revision(number)])) for number in numbers]


def unnamed(world: World) -> set[str]:
    """Return the keys of all audio that no manifest names."""
    named = {each.audio for _, each in chain(world) if isinstance(each, Manifest)}
    named.add(read_manifest(world.objects[NAMES.manifest]).audio)
    return {key for key in world.objects if key.endswith(".wav")} - named


def whole_or_told(world: World) -> None:
    """Assert: whatever the current manifest names is whole, or a tombstone speaks of that revision."""
    tombstones = [each for _, each in chain(world) if isinstance(each, Expiry)]
    if NAMES.expired in world.objects:
        tombstones.append(read_expiry(world.objects[NAMES.expired]))
    expired = max((each.revision for each in tombstones), default=0)
    for manifest in (read_manifest(world.objects[NAMES.manifest]), latest(world)):
        content = world.objects.get(manifest.audio, b"")
        assert manifest.revision <= expired or hashlib.sha256(content).hexdigest() == manifest.sha256


def one_winner(world: World) -> None:
    """Assert: of a revision, either a person's file follows or a tombstone, and only that was told."""
    following = dict(chain(world))
    for event in world.told:
        if isinstance(event.data, FileReplaced):
            assert isinstance(following[event.data.revision], Manifest)
        if isinstance(event.data, FileExpired):
            after = following.get(event.data.revision + 1)
            assert isinstance(after, Expiry) or read_expiry(world.objects[NAMES.expired]).event_id == event.id
    ids = {(event.data.TYPE, event.id): event.data for event in world.told}
    assert all(ids[event.data.TYPE, event.id] == event.data for event in world.told), "told in two ways"


def always(world: World) -> None:
    """Assert what holds in every state."""
    whole_or_told(world)
    one_winner(world)


def the_person_gets_it(content: bytes, *, tidy: bool) -> Callable[[World], None]:
    """Return what asserts, at the end: whoever lost was told so, left nothing if it lived, and can do it again."""

    def check(world: World) -> None:
        result = world.results["person"]
        new = latest(world)
        if isinstance(result, RefusedError):
            assert "Retention has just let the file" in str(result)
            assert any(isinstance(each, Expiry) for _, each in chain(world))
            assert not tidy or not unnamed(world)
            result = run(world, "person", person(content))
            always(world)
        elif isinstance(result, Replaced) and chain(world) and isinstance(chain(world)[-1][1], Expiry):
            run(world, "retention", finishing)  # it was due: it goes after it was whole again, and that is told
            assert not any(key.endswith(".wav") for key in world.objects)
            always(world)
            result = run(world, "person", person(content))
        assert isinstance(result, Replaced), result
        new = latest(world)
        assert world.objects[new.audio] == content
        run(world, "retention", finishing)
        always(world)
        assert read_manifest(world.objects[NAMES.manifest]) == new
        assert world.objects[new.audio] == content
        done = run(world, "person", person(content))
        assert isinstance(done, Replaced)
        assert done.outcome == "unchanged"

    return check


@pytest.mark.parametrize("crashes", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("story", STORIES)
def test_either_wins_in_every_order(story: str, crashes: int) -> None:
    """Never does a file go that the current manifest names, unless its tombstone is there; never do both win.

    Whoever lost says so, and a person who repeats the command gets the file kept.
    """
    content, kept = STORIES[story], beginning(story)
    found = walk(
        lambda: World(dict(kept)),
        {"person": person(content), "retention": retention},
        always=one_winner if story in {"damaged", "missing"} else always,
        at_the_end=the_person_gets_it(content, tidy=not crashes),
        crashes=crashes,
    )
    assert found.states > 100
    assert found.ends > 1
