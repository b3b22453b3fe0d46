"""What is kept of each task, read from the listing of a storage.

Responsible for: which objects belong to one task, and choosing tasks: all, named ones, or a share drawn at random. It
must not read what the objects hold, nor judge it.

The listing is taken shard by shard, so that memory does not grow with the number of tasks.
"""

import asyncio
import heapq
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from downloader.names import Names, names_of
from downloader.storage import Entry, Storage
from shared.vendors import Vendor

_KEY = re.compile(r"([a-z]+/[0-9a-f]{2}/[A-Za-z0-9_-]{1,64})\..+")
_REVISION = re.compile(r"\.v([1-9][0-9]{0,8})\.json")
_AUDIO = re.compile(r"\.[0-9a-f]{12}(?:\.v[1-9][0-9]{0,8})?\.wav")
_SHARDS = tuple(f"{number:02x}" for number in range(256))
_SHELVES_AT_ONCE = 16


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


async def holdings(storage: Storage, selection: Selection) -> AsyncIterator[Holding]:
    """Yield the tasks that are meant; shelf by shelf, the shelves in random order.

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
    async for holding in _listed(storage, shelves):
        stem = holding.stem
        meant = stem in drawn if drawn is not None else _rank(stem, selection.seed) < selection.share
        if meant and (not ids or stem in ids):
            yield holding


async def _draw(storage: Storage, shelves: Sequence[str], selection: Selection, count: int) -> set[str]:
    """Return the stems of so many tasks. Memory grows with their number alone."""
    lowest: list[tuple[float, str]] = []
    ids = selection.ids
    async for holding in _listed(storage, shelves):
        stem, rank = holding.stem, _rank(holding.stem, selection.seed)
        if rank < selection.share and (not ids or stem in ids):
            heapq.heappush(lowest, (-rank, stem))
            if len(lowest) > count:
                heapq.heappop(lowest)
    return {stem for _, stem in lowest}


async def _listed(storage: Storage, shelves: Sequence[str]) -> AsyncIterator[Holding]:
    for start in range(0, len(shelves), _SHELVES_AT_ONCE):
        now = shelves[start : start + _SHELVES_AT_ONCE]
        for found in await asyncio.gather(*(_on(storage, shelf) for shelf in now)):
            for holding in found:
                yield holding


async def _on(storage: Storage, shelf: str) -> list[Holding]:
    found: dict[str, Holding] = {}
    async for entry in storage.list(shelf):
        if match := _KEY.fullmatch(entry.key):
            found.setdefault(match[1], Holding(match[1])).entries[entry.key] = entry
    return list(found.values())


def _shelf(stem: str) -> str:
    return stem.rpartition("/")[0]


def _rank(stem: str, seed: int) -> float:
    """Return a number between 0 and 1 that is random, but always the same for a task and a seed."""
    return int.from_bytes(blake2b(f"{seed}:{stem}".encode(), digest_size=8).digest(), "big") / 2**64
