"""Reading holdings from a listing: what belongs to one task, and how much is held meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from downloader.holdings import Selection, holdings
from downloader.storage import Entry
from shared.vendors import Vendor
from tests.unit.custody_fakes import NOW, MemoryStorage, Steps

TASKS = 20_000
ENDINGS = ("0123456789ab.wav", "announced", "json")
HELD_AT_MOST = 1_000


class VastStorage(MemoryStorage):
    """One vendor's shelf of very many tasks; counts how many of their objects were told."""

    told = 0

    async def list(self, prefix: str = "") -> AsyncIterator[Entry]:
        """Tell what would be there."""
        if prefix == "kie/00":
            for number in range(TASKS):
                for ending in ENDINGS:
                    self.told += 1
                    yield Entry(f"{prefix}/t{number:06}.{ending}", 1, NOW)


@pytest.mark.parametrize("local", [True, False])
async def test_memory_does_not_grow_with_a_shelf(*, local: bool) -> None:
    """No more is taken from a listing than a few handfuls beyond what was asked for, however much there is."""
    storage = VastStorage(Steps(), local=local)
    passed = 0
    async with aclosing(holdings(storage, Selection(vendors=(Vendor.KIE,)))) as found:
        async for holding in found:
            passed += len(holding.entries)
            assert len(holding.entries) == len(ENDINGS)
            assert storage.told - passed < HELD_AT_MOST
    assert passed == TASKS * len(ENDINGS)


async def test_who_stops_leaves_nothing_running() -> None:
    """A listing that is not needed to its end is given up at once, also the part that was on its way."""
    storage = VastStorage(Steps())
    before = asyncio.all_tasks()
    async with aclosing(holdings(storage, Selection())) as found:
        assert (await anext(found)).vendor == Vendor.KIE
    assert asyncio.all_tasks() == before
    assert storage.told < HELD_AT_MOST


async def test_names_that_begin_alike_are_kept_apart() -> None:
    """Each task has its own objects and all of them, whatever comes before or after it in the order of keys."""
    storage = MemoryStorage(Steps())
    stems = [f"kie/00/{name}" for name in ("a", "a-b", "a_b", "a0", "A", "aa", "-a", "_a")]
    for stem in stems:
        for ending in (*ENDINGS, "v1.json", "rejected.json"):
            storage.objects[f"{stem}.{ending}"] = b"{}"
    storage.objects["kie/00/no task"] = b""
    found = {holding.stem: set(holding.entries) async for holding in holdings(storage, Selection())}
    assert set(found) == set(stems)
    assert set().union(*found.values()) == set(storage.objects) - {"kie/00/no task"}
    assert all(key.startswith(f"{stem}.") for stem, keys in found.items() for key in keys)
