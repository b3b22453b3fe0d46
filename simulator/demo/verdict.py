"""Did everything end as it must?

Responsible for: holding what is seen against the simulator's rule (`expected` in its ledger), the script, and the files
on the disk; every deviation is one sentence. It must not show anything.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from simulator.demo.script import REJECTED, STORED
from simulator.demo.watch import LOG, WEBHOOK, View


@dataclass(frozen=True, slots=True)
class Kept:
    """One file in custody."""

    task_id: str
    path: Path
    size_bytes: int
    duration_s: float
    sha256: str


def outcome(view: View) -> str:
    """Return the end state that was told: `stored`, `rejected` or `none`."""
    if view.heard(STORED):
        return "stored"
    return "rejected" if view.heard(REJECTED) else "none"


def kept_file(view: View) -> Kept | None:
    """Return the file the event names; None where none was told."""
    told = view.heard(STORED)
    if told is None:
        return None
    data = told.data
    path = Path(unquote(urlsplit(data["uri"]).path))
    return Kept(data["task_id"], path, data["size_bytes"], data["format"]["duration_s"], data["sha256"])


def problems(views: Sequence[View], files: Path) -> list[str]:
    """Return what is not as it must be, one sentence each; none is the verdict one hopes for."""
    found = [f"{view.act.plan.task_id}: {problem}" for view in views for problem in _of_one(view)]
    return found + list(_of_folder(views, files))


def _of_one(view: View) -> Iterable[str]:
    expected = view.entry["expected"]
    ended = outcome(view)
    if not view.entry["finished"]:
        yield "its callbacks are not over"
    if ended not in expected["allowed"]:
        yield f"it must be {' or '.join(expected['allowed'])}, and is {ended}"
    rejected = view.heard(REJECTED)
    if ended == "rejected" and rejected and expected["reasons"] and rejected.data["reason"] not in expected["reasons"]:
        yield f"rejected for {rejected.data['reason']}, not for {' or '.join(expected['reasons'])}"
    for destination in (LOG, WEBHOOK):
        heard = Counter(view.kinds(destination))
        if heard != Counter(view.act.told):
            yield f"{destination} must hear {_list(view.act.told)}, and heard {_list(heard.elements())}"
    if any(told.signed is False for told in view.told):
        yield "a delivery's signature does not hold"
    if kept := kept_file(view):
        yield from _of_file(kept, view.entry["expected_sha256"])


def _of_file(kept: Kept, served: Sequence[str]) -> Iterable[str]:
    if not kept.path.is_file():
        yield f"there is no file {kept.path}"
        return
    with kept.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != kept.sha256 or kept.path.stat().st_size != kept.size_bytes:
        yield f"{kept.path.name} is not what the event says"
    if digest not in served:
        yield f"{kept.path.name} is not what the vendor served"


def _of_folder(views: Sequence[View], files: Path) -> Iterable[str]:
    told = {kept.path for view in views if (kept := kept_file(view))}
    for path in sorted(set(files.rglob("*.wav")) - told):
        yield f"{path} is a file that nobody was told of"


def _list(kinds: Iterable[str]) -> str:
    return ", ".join(kinds) or "nothing"
