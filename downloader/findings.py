"""What an audit can find, in a closed list of words.

Responsible for: the words, and what is told of damage. Pure.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from shared.events import FileDamaged
from shared.vendors import Vendor


class Kind(StrEnum):
    """What can be found. The first four are damage, the others loose ends that nothing kept suffers from."""

    MISSING = "missing"
    SIZE_DIFFERS = "size_differs"
    DIGEST_DIFFERS = "digest_differs"
    UNREADABLE = "unreadable"
    ORPHAN = "orphan"
    UNTOLD = "untold"
    CAME_BACK = "came_back"


DAMAGE = frozenset({Kind.MISSING, Kind.SIZE_DIFFERS, Kind.DIGEST_DIFFERS, Kind.UNREADABLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: `missing`: audio that a manifest names, or the manifest of a task that was told; `orphan`: audio that no
            manifest names; `untold`: a manifest without the marker that its event was confirmed; `came_back`: audio
            that retention had deleted.
        task_id, revision: as in `FileDamaged`.
        key: of the audio, or of the manifest.
        detail: what cannot be read, in words.
    """

    kind: Kind
    vendor: Vendor
    task_id: str
    revision: int | None
    key: str
    uri: str
    expected_sha256: str | None = None
    expected_size_bytes: int | None = None
    found_sha256: str | None = None
    found_size_bytes: int | None = None
    found_at: datetime
    detail: str | None = None

    @property
    def is_damage(self) -> bool:
        """Whether something that was kept is not as it was."""
        return self.kind in DAMAGE

    def announcement(self) -> FileDamaged:
        """Return what `file.damaged` says of damage."""
        assert self.is_damage
        return FileDamaged(
            vendor=self.vendor,
            task_id=self.task_id,
            revision=self.revision,
            uri=self.uri,
            finding=cast("Any", self.kind.value),  # of `DAMAGE`
            expected_sha256=self.expected_sha256,
            expected_size_bytes=self.expected_size_bytes,
            found_sha256=self.found_sha256,
            found_size_bytes=self.found_size_bytes,
            found_at=self.found_at,
        )
