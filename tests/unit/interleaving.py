"""Every interleaving of several actors over one storage, also with a crash of one of them at any step.

Responsible for: a storage and a publisher in memory whose every call first gives the turn away, and a walk over all
the orders in which turns can be taken. No clock, no threads, no event loop: an actor is a coroutine that is resumed by
hand, so that every walk is the same. It must not know what the actors do.

What an actor does next depends on nothing but what it was answered so far. So two orders that leave the same objects
and the same answers behind go on alike, and only one of them is walked on: this makes *all* orders affordable.
"""

import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from downloader.storage import Entry
from shared import events
from shared.errors import Reason, RetryableError
from shared.events import Event
from tests.unit.custody_fakes import NOW, MemoryStorage, Steps

T = TypeVar("T")

CRASH: Final = "crash of "

Running = Coroutine[Any, Any, object]
Actor = Callable[["World"], Running]


class _Turn:
    """Gives the turn away."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@dataclass
class World:
    """What the actors share, and the memory of what each was answered.

    Attributes:
        staged: contents of staged files, by path.
        acting: whose turn it is.
        answers: what each actor was answered since it was started.
        results: what each actor that ended returned or raised.
    """

    objects: dict[str, bytes]
    staged: dict[Path, bytes] = field(default_factory=dict)
    told: list[Event] = field(default_factory=list)
    acting: str = ""
    answers: dict[str, list[object]] = field(default_factory=dict)
    results: dict[str, object] = field(default_factory=dict)

    def answer(self, found: object) -> None:
        """Note what the actor whose turn it is was answered."""
        self.answers[self.acting].append(found)

    @property
    def storage(self) -> "TurnStorage":
        """The storage of all."""
        return TurnStorage(self)

    @property
    def publisher(self) -> "TurnPublisher":
        """The publisher of all."""
        return TurnPublisher(self)


class TurnStorage(MemoryStorage):
    """The storage in a dictionary; each call gives the turn away, then is done at once."""

    def __init__(self, world: World) -> None:
        super().__init__(Steps(), world.objects)
        self._world = world

    async def keep(self, staged: Path, key: str) -> None:
        """See the port."""
        await _Turn()
        self.objects[key] = self._world.staged[staged]
        self._world.answer(None)

    async def create(self, key: str, content: bytes) -> bool:
        """See the port."""
        return await self._turn(partial(MemoryStorage.create, self, key, content))

    async def replace(self, key: str, content: bytes) -> None:
        """See the port."""
        await self._turn(partial(MemoryStorage.replace, self, key, content))

    async def read(self, key: str) -> bytes | None:
        """See the port."""
        return await self._turn(partial(MemoryStorage.read, self, key))

    async def exists(self, key: str) -> bool:
        """See the port."""
        return await self._turn(partial(MemoryStorage.exists, self, key))

    async def delete(self, key: str) -> None:
        """See the port."""
        await self._turn(partial(MemoryStorage.delete, self, key))

    async def digest(self, key: str) -> tuple[int, str]:
        """See the port."""
        await _Turn()
        content = self.objects.get(key)
        found = None if content is None else (len(content), hashlib.sha256(content).hexdigest())
        self._world.answer(found)
        if found is None:
            raise RetryableError(Reason.STORAGE_FAILED, "it is not there")
        return found

    def listed(self, stem: str) -> dict[str, Entry]:
        """Return the listing of a task, by what follows its stem, at once."""
        return {
            key.removeprefix(stem): Entry(key, len(content), NOW)
            for key, content in self.objects.items()
            if key.startswith(f"{stem}.")
        }

    async def _turn(self, call: Callable[[], Awaitable[T]]) -> T:
        await _Turn()
        found = await call()
        self._world.answer(found)
        return found


class TurnPublisher:
    """Confirms everything; each publish gives the turn away before."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """See the port."""
        await _Turn()
        assert exchange
        assert routing_key
        event = events.decode(body)
        assert event.id == event_id
        self._world.told.append(event)
        self._world.answer(None)


@dataclass
class Walk:
    """What a walk came to.

    Attributes:
        states: how many different ones there were.
        ends: how many orders ended differently.
    """

    states: int = 0
    ends: int = 0


def walk(
    make: Callable[[], World],
    actors: Mapping[str, Actor],
    *,
    always: Callable[[World], None],
    at_the_end: Callable[[World], None],
    crashes: int = 0,
) -> Walk:
    """Walk all orders.

    Args:
        make: makes the world anew.
        actors: start one actor each; a crashed one is started again, at any later turn.
        always: asserts what holds in every state.
        at_the_end: asserts what holds once all have ended; may use the world up.
        crashes: how many there may be, at any step, in one order.
    """
    found, seen = Walk(), set[object]()
    pending: list[tuple[str, ...]] = [()]
    while pending:
        order = pending.pop()
        world = make()
        alive = {name: _started(world, name, actor) for name, actor in actors.items()}
        for step in order:
            _take(world, alive, actors, step)
        while (state := _state(world, alive, order)) not in seen:
            seen.add(state)
            found.states += 1
            try:
                always(world)
                if not alive:
                    found.ends += 1
                    at_the_end(world)
            except AssertionError as error:
                error.add_note(f"in the order {', '.join(order)}")
                raise
            steps = list(alive)
            if sum(step.startswith(CRASH) for step in order) < crashes:
                steps += [f"{CRASH}{name}" for name in alive if world.answers[name]]
            if not steps:
                break
            pending += [(*order, step) for step in steps[1:]]
            order = (*order, steps[0])
            _take(world, alive, actors, steps[0])
    return found


def run(world: World, name: str, actor: Actor) -> object:
    """Let one actor do all of its work alone; return what it returned, or the exception it ended with."""
    world.results.pop(name, None)
    running = _started(world, name, actor)
    while name not in world.results:
        _resume(world, name, running)
    return world.results.pop(name)


def _take(world: World, alive: dict[str, Running], actors: Mapping[str, Actor], step: str) -> None:
    name = step.removeprefix(CRASH)
    if step != name:
        alive[name].close()
        alive[name] = _started(world, name, actors[name])
    else:
        _resume(world, name, alive[name])
        if name in world.results:
            del alive[name]


def _started(world: World, name: str, actor: Actor) -> Running:
    world.answers[name] = []
    running = actor(world)
    _resume(world, name, running)
    return running


def _resume(world: World, name: str, running: Running) -> None:
    world.acting = name
    try:
        running.send(None)
    except StopIteration as end:
        world.results[name] = end.value
    except Exception as error:  # noqa: BLE001 - what an actor ends with is judged by who walks
        world.results[name] = error


def _state(world: World, alive: Mapping[str, object], order: tuple[str, ...]) -> object:
    answers = tuple((name, name in alive, tuple(map(repr, found))) for name, found in world.answers.items())
    crashed = sum(step.startswith(CRASH) for step in order)
    told = tuple(sorted({event.id for event in world.told}))
    return frozenset(world.objects.items()), answers, told, crashed
