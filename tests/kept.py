"""Stored tasks, made without a downloader: what audit and adoption are tried on.

Responsible for: audio, manifests and markers as custody would have left them, on any storage. It must not assert
anything.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import msgspec

from downloader.manifest import Manifest, Replacement, write
from downloader.names import Names, names_of
from downloader.storage import Storage
from downloader.wav import Walker
from shared import events
from shared.events import ConversionStored, Evidence, FileReplaced
from shared.vendors import Vendor
from simulator.wavs import wav

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STORED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def audio(seed: int = 0) -> bytes:
    """Return a whole, short WAV file; every seed is another one."""
    return _audio()[:-8] + seed.to_bytes(8, "little")


@cache
def _audio() -> bytes:
    return b"".join(wav(duration_s=0.01).blocks())


def manifest_of(storage: Storage, task_id: str, content: bytes, *, vendor: Vendor = Vendor.APIBOX) -> Manifest:
    """Return the manifest that custody would make."""
    walker, digest = Walker(), hashlib.sha256(content).hexdigest()
    walker.feed(content)
    key = names_of(vendor, task_id).audio(digest)
    return Manifest(
        vendor=vendor,
        task_id=task_id,
        audio=key,
        uri=storage.uri(key),
        size_bytes=len(content),
        sha256=digest,
        format=walker.finish(body_proven_complete=True).format,
        evidence=Evidence(trust=("token",), transport="content_length"),
        warnings=(),
        link=f"https://cdn.example.com/{hashlib.sha256(task_id.encode()).hexdigest()}.wav",
        link_identity=events.digest(task_id),
        received_at=STORED_AT,
        deadline=STORED_AT + timedelta(days=15),
        stored_at=STORED_AT,
        event_id=events.event_id(vendor, task_id, ConversionStored.TYPE),
        traceparent=TRACEPARENT,
    )


def replaced(storage: Storage, current: Manifest, content: bytes) -> Manifest:
    """Return the manifest of the next revision."""
    made = manifest_of(storage, current.task_id, content, vendor=current.vendor)
    number = str(current.revision + 1)
    return msgspec.structs.replace(
        made,
        revision=current.revision + 1,
        event_id=events.event_id(current.vendor, current.task_id, FileReplaced.TYPE, number, made.sha256),
        replacement=Replacement(
            previous_sha256=current.sha256, link=None, link_identity=None, explanation="the wrong song"
        ),
    )


@dataclass(frozen=True)
class Kept:
    """A storage to keep tasks in.

    Attributes:
        staging: a folder of its own.
    """

    storage: Storage
    staging: Path

    async def put(self, key: str, content: bytes) -> None:
        """Keep a file as the downloader does."""
        self.staging.mkdir(exist_ok=True)
        path = self.staging / "staged.part"
        path.write_bytes(content)
        path.chmod(0o600)
        await self.storage.keep(path, key)
        path.unlink()  # it may be one file with what is kept: whoever wrote it again would write there

    async def store(
        self, task_id: str, content: bytes | None = None, *, vendor: Vendor = Vendor.APIBOX, told: bool = True
    ) -> Names:
        """Store a task as custody does; return its names."""
        names = names_of(vendor, task_id)
        manifest = manifest_of(self.storage, task_id, audio() if content is None else content, vendor=vendor)
        await self.put(manifest.audio, audio() if content is None else content)
        await self.storage.create(names.manifest, write(manifest))
        if told:
            await self.storage.create(names.announced, f"{manifest.event_id}\n".encode())
        return names

    async def manifest(self, names: Names) -> Manifest:
        """Return the manifest of a task."""
        content = await self.storage.read(names.manifest)
        assert content is not None
        return msgspec.json.decode(content, type=Manifest)

    async def replace(self, names: Names, content: bytes) -> Manifest:
        """Replace a file as a person does; return the new manifest."""
        current = await self.manifest(names)
        new = replaced(self.storage, current, content)
        await self.put(new.audio, content)
        await self.storage.create(names.revision(current.revision), write(current))
        await self.storage.create(names.revision(new.revision), write(new))
        await self.storage.replace(names.manifest, write(new))
        await self.storage.create(names.replacement_announced(new.revision), f"{new.event_id}\n".encode())
        return new
