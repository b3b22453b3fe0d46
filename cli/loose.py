"""What is there of a task that is neither stored nor rejected: audio without a manifest, a download that was cut.

Responsible for: finding it, its name, and what to do about it. It must not change anything, nor lock what others need.
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from downloader.holdings import Holding
from downloader.names import Names
from downloader.partial import left_of
from downloader.storage import Entry, translating


async def partial_downloads(folder: Path, names: Names) -> list[dict[str, Any]]:
    """Return what of a task waits in the staging folder of this machine for its next attempt, or is being written.

    Raises:
        RetryableError: the disk fails.
    """
    with translating():
        found = await asyncio.to_thread(left_of, folder, names.stem)
    return [
        {
            "path": str(path),
            "size_bytes": status.st_size,
            "modified_at": datetime.fromtimestamp(status.st_mtime, UTC),
            "whole": whole,
        }
        for path, status, whole in found
    ]


def loose_ends(
    names: Names, subject: str, objects: list[Entry], partials: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Return the state of a task without manifest and rejection, and what to do; None where nothing is there of it."""
    if not objects and not partials:
        return None
    vendor, _, task_id = subject.partition("/")
    state, advice = "begun", "Nothing: the next attempt at its file goes on from here."
    if any(each["whole"] for each in partials):
        advice = "Nothing: its file is here whole, and is stored by the next attempt without being fetched again."
    elif Holding(names.stem, {entry.key: entry for entry in objects}).audio:
        state = "orphan"
        advice = f"No manifest names its audio. Once that is an hour old: wavekeep audit --adopt {subject}"
    elif not partials:
        advice = "Nothing: only what was told of it is here. Its report still waits, or is parked."
    return {"state": state, "vendor": vendor, "task_id": task_id, "to_do": advice}
