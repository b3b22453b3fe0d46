"""What a listing tells of one task to those who keep the house.

Responsible for: which of its objects are bodies and which are records, and how far it came. It must not read what the
objects hold, nor judge it.
"""

import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from downloader.holdings import Selection, holdings
from downloader.names import Names
from downloader.storage import Entry, Storage

_BODY: Final = re.compile(r"\.[0-9a-f]{12}\.(?:(?:v\d+\.)?wav|png|peaks\.json)")
_REVISION: Final = re.compile(r"\.v(\d+)\.json")
_GONE: Final = re.compile(r"\.v\d+\.gone")


@dataclass(frozen=True, slots=True)
class Task:
    """What is there of one task.

    Attributes:
        entries: by what follows the stem in their keys, `.json` for the manifest.
    """

    names: Names
    entries: Mapping[str, Entry]

    @property
    def manifest(self) -> Entry | None:
        """The manifest."""
        return self.entries.get(".json")

    @property
    def announced(self) -> bool:
        """Whether `conversion.stored` was confirmed."""
        return ".announced" in self.entries

    @property
    def expired(self) -> bool:
        """Whether there is a tombstone: the bodies may go, or an earlier revision's went."""
        return ".expired" in self.entries

    @property
    def gone(self) -> bool:
        """Whether retention once deleted all there was: what is there since came back, or is a later revision."""
        return any(_GONE.fullmatch(ending) for ending in self.entries)

    @property
    def bodies(self) -> tuple[Entry, ...]:
        """Audio, pictures and peaks: all that is more than a record."""
        return tuple(entry for ending, entry in self.entries.items() if _BODY.fullmatch(ending))

    @property
    def size_bytes(self) -> int:
        """The size of these."""
        return sum(entry.size_bytes for entry in self.bodies)

    @property
    def records(self) -> tuple[str, ...]:
        """The keys of the manifest, and of its revisions and tombstones."""
        return tuple(
            entry.key for ending, entry in self.entries.items() if ending == ".json" or _REVISION.fullmatch(ending)
        )

    @property
    def unsettled(self) -> bool:
        """Whether what follows a revision is begun and not told yet: a person's file, or a tombstone.

        A tombstone has no such marker; whoever has to know which it is reads it.
        """
        numbers = (int(found[1]) for ending in self.entries if (found := _REVISION.fullmatch(ending)))
        latest = max(numbers, default=1)
        return latest > 1 and f".v{latest}.announced" not in self.entries


async def tasks(storage: Storage) -> AsyncGenerator[Task, None]:
    """Yield every task, in no promised order. Memory does not grow with their number. To be closed where not exhausted.

    Raises:
        RetryableError: the storage cannot be listed.
    """
    async with aclosing(holdings(storage, Selection())) as found:
        async for holding in found:
            yield _task(holding.names, holding.entries.values())


async def find(storage: Storage, names: Names) -> Task:
    """Return what is there of one task now.

    Raises:
        RetryableError: the storage cannot be listed.
    """
    shelf = names.stem.rpartition("/")[0]
    return _task(names, [entry async for entry in storage.list(shelf) if entry.key.startswith(f"{names.stem}.")])


def _task(names: Names, entries: Iterable[Entry]) -> Task:
    return Task(names, {entry.key.removeprefix(names.stem): entry for entry in entries})
