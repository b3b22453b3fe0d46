"""What is kept of each task, read from the listing of a storage.

Responsible for: which objects belong to one task, and choosing tasks: all, named ones, or a share drawn at random. It
must not read what the objects hold, nor judge it.

The listing is taken shelf by shelf, and comes in the order of keys, so that the objects of one task come together:
memory does not grow with the number of tasks, however large a shelf is.
"""

import asyncio
import heapq
import random
import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b

from downloader.names import Names, names_of
from downloader.storage import Entry, Storage
from shared.vendors import Vendor

_KEY = re.compile(r"([a-z]+/[0-9a-f]{2}/[A-Za-z0-9_-]{1,64})\..+")
_REVISION = re.compile(r"\.v([1-9][0-9]{0,8})\.json")
_AUDIO = re.compile(r"\.[0-9a-f]{12}(?:\.v[1-9][0-9]{0,8})?\.wav")
_SHARDS = tuple(f"{number:02x}" for number in range(256))
_AHEAD = 16
"""Shelves begun before they are needed, where each waits for the answer of another machine."""
_LOCAL_AHEAD = 2
_HANDFUL = 64
"""Tasks that are taken from a shelf at once; of each shelf that is begun, one handful is held."""


@dataclass(frozen=True, slots=True)
class Holding:
    """The objects of one task.

    Attributes:
        stem: what their keys begin with, see `downloader.names`.
        entries: by key.
    """

    stem: str
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def names(self) -> Names:
        """What the task's objects are called."""
        return Names(self.stem)

    @property
    def vendor(self) -> Vendor:
        """Whose task it is."""
        return Vendor(self.stem.partition("/")[0])

    @property
    def revisions(self) -> Mapping[int, str]:
        """The keys of the kept revisions and tombstones, by number, oldest first."""
        rests = ((key, _REVISION.fullmatch(key, len(self.stem))) for key in self.entries)
        return dict(sorted((int(match[1]), key) for key, match in rests if match))

    @property
    def audio(self) -> tuple[Entry, ...]:
        """All audio, whoever names it."""
        return tuple(self.entries[key] for key in sorted(self.entries) if _AUDIO.fullmatch(key, len(self.stem)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tasks are meant; every part that is given must hold.

    Attributes:
        vendors: whose.
        named: (vendor, task id) of those that a person named; empty: all.
        share: of them, between 0 and 1, drawn at random.
        count: that many of them, drawn at random; None: all.
        seed: of what is random. The same seed draws the same tasks, as long as the same are kept.
    """

    vendors: tuple[Vendor, ...] = tuple(Vendor)
    named: tuple[tuple[Vendor, str], ...] = ()
    share: float = 1.0
    count: int | None = None
    seed: int = 0

    @property
    def ids(self) -> Mapping[str, str]:
        """The ids of the named tasks, by their stems."""
        return {names_of(vendor, task_id).stem: task_id for vendor, task_id in self.named}


async def holdings(storage: Storage, selection: Selection) -> AsyncGenerator[Holding, None]:
    """Yield the tasks that are meant; shelf by shelf, the shelves in random order. To be closed where not exhausted.

    Raises:
        RetryableError: the storage cannot be listed.
    """
    ids = selection.ids
    if ids:
        shelves = sorted({_shelf(stem) for stem in ids})
    else:
        shelves = [f"{vendor}/{shard}" for vendor in selection.vendors for shard in _SHARDS]
    random.Random(selection.seed).shuffle(shelves)  # noqa: S311 - no secret
    drawn = None
    if selection.count is not None:
        drawn = await _draw(storage, shelves, selection, selection.count)
        hit = {_shelf(stem) for stem in drawn}
        shelves = [shelf for shelf in shelves if shelf in hit]
    async with aclosing(_listed(storage, shelves)) as listed:
        async for holding in listed:
            stem = holding.stem
            meant = stem in drawn if drawn is not None else _rank(stem, selection.seed) < selection.share
            if meant and (not ids or stem in ids):
                yield holding


async def _draw(storage: Storage, shelves: Sequence[str], selection: Selection, count: int) -> set[str]:
    """Return the stems of so many tasks. Memory grows with their number alone."""
    lowest: list[tuple[float, str]] = []
    ids = selection.ids
    async with aclosing(_listed(storage, shelves)) as listed:
        async for holding in listed:
            stem, rank = holding.stem, _rank(holding.stem, selection.seed)
            if rank < selection.share and (not ids or stem in ids):
                heapq.heappush(lowest, (-rank, stem))
                if len(lowest) > count:
                    heapq.heappop(lowest)
    return {stem for _, stem in lowest}


async def _listed(storage: Storage, shelves: Sequence[str]) -> AsyncGenerator[Holding, None]:
    """Yield the tasks of all shelves, each as soon as all its objects are told, while the next shelves are begun."""
    ahead, waiting = _LOCAL_AHEAD if storage.local else _AHEAD, deque(shelves)
    begun: deque[_Shelf] = deque()
    try:
        while waiting or begun:
            while waiting and len(begun) < ahead:
                begun.append(_Shelf(storage, waiting.popleft()))
            while handful := await begun[0].next_handful():
                for holding in handful:
                    yield holding
            begun.popleft()
    finally:
        for shelf in begun:
            await shelf.close()


class _Shelf:
    """The listing of a shelf, of which one handful is always on its way."""

    def __init__(self, storage: Storage, shelf: str) -> None:
        self._handfuls = _handfuls(storage, shelf)
        self._coming = self._begin()

    def _begin(self) -> asyncio.Task[list[Holding]]:
        return asyncio.create_task(anext(self._handfuls, []))

    async def next_handful(self) -> list[Holding]:
        """Return the next tasks; none once all were."""
        handful = await self._coming
        if handful:
            self._coming = self._begin()
        return handful

    async def close(self) -> None:
        """Leave the rest."""
        self._coming.cancel()
        await asyncio.wait([self._coming])
        if not self._coming.cancelled():
            self._coming.exception()  # nobody waits for it any more
        await self._handfuls.aclose()


async def _handfuls(storage: Storage, shelf: str) -> AsyncGenerator[list[Holding], None]:
    handful: list[Holding] = []
    async for entry in storage.list(shelf):
        match = _KEY.fullmatch(entry.key)
        if not match:
            continue
        if not handful or handful[-1].stem != match[1]:
            if len(handful) == _HANDFUL:
                yield handful
                handful = []
            handful.append(Holding(match[1]))
        handful[-1].entries[entry.key] = entry
    if handful:
        yield handful


def _shelf(stem: str) -> str:
    return stem.rpartition("/")[0]


def _rank(stem: str, seed: int) -> float:
    """Return a number between 0 and 1 that is random, but always the same for a task and a seed."""
    return int.from_bytes(blake2b(f"{seed}:{stem}".encode(), digest_size=8).digest(), "big") / 2**64
