"""Folders full of stored tasks, as the downloader leaves them.

Responsible for: making them quickly, and bringing their files into the page cache or out of it. It must not measure.
"""

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from downloader.manifest import Manifest, write
from downloader.names import names_of
from shared import events
from shared.events import ConversionStored, Evidence, Format
from shared.vendors import Vendor

_BLOCK_BYTES = 1024 * 1024
_STORED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
_FORMAT = Format(
    container="RIFF", codec="pcm", sample_rate_hz=48_000, channels=2, bits_per_sample=24, frames=1, duration_s=1.0
)


def fill(folder: Path, *, files: int, size_bytes: int) -> None:
    """Keep so many tasks in a folder: audio, manifest and marker of each. No two files are alike."""
    content = bytearray(os.urandom(size_bytes))
    for number in range(files):
        content[:8] = number.to_bytes(8, "little")
        _keep(folder, f"task-{number}", content)


def evict(folder: Path) -> None:
    """Have every file read from the disk the next time; folders and inodes stay in memory."""
    for path in _files(folder):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)  # what is not written yet cannot go
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def warm(folder: Path) -> None:
    """Have no file read from the disk the next time."""
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(_BLOCK_BYTES):
                pass


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _keep(folder: Path, task_id: str, content: bytearray) -> None:
    names, digest = names_of(Vendor.APIBOX, task_id), hashlib.sha256(content).hexdigest()
    manifest = Manifest(
        vendor=Vendor.APIBOX,
        task_id=task_id,
        audio=names.audio(digest),
        uri=(folder / names.audio(digest)).as_uri(),
        size_bytes=len(content),
        sha256=digest,
        format=_FORMAT,
        evidence=Evidence(trust=("token",), transport="content_length"),
        warnings=(),
        link=f"https://cdn.example.com/{digest}.wav",
        link_identity=events.digest(task_id),
        received_at=_STORED_AT,
        deadline=_STORED_AT + timedelta(days=15),
        stored_at=_STORED_AT,
        event_id=events.event_id(Vendor.APIBOX, task_id, ConversionStored.TYPE),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    (folder / names.manifest).parent.mkdir(parents=True, exist_ok=True)
    (folder / manifest.audio).write_bytes(content)
    (folder / names.manifest).write_bytes(write(manifest))
    (folder / names.announced).write_text(f"{manifest.event_id}\n")
