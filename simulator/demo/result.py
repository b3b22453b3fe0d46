"""What is printed at the end: what became of each conversion, the files, and whether all is as it must be.

Responsible for: a table, a list and a sentence, or the same as data. It must not judge.
"""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.demo.screen import WIDTH
from simulator.demo.verdict import Kept, kept_file, outcome
from simulator.demo.watch import LOG, WEBHOOK, View
from simulator.demo.words import BAD, FAINT, GOOD, answered, megabytes, short, state

_PLAYERS = ("aplay", "afplay", "paplay", "pw-play", "ffplay", "play")
_DIGEST_DIGITS = 10


def show_result(console: Console, views: Sequence[View], problems: Sequence[str], *, folder: Path, kept: bool) -> None:
    """Print everything."""
    console.print(_table(views, min(WIDTH, console.width)))
    if not problems:
        console.print(Text(f"told: heard once by each destination, {LOG} and {WEBHOOK}; the signatures hold", FAINT))
    files = [file for view in views if (file := kept_file(view))]
    _show_files(console, files, folder=folder, kept=kept)
    _show_verdict(console, len(views), problems, logs=folder / "logs", kept=kept)


def as_data(views: Sequence[View], problems: Sequence[str], *, broker: str, seconds: float) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "broker": broker,
        "seconds": round(seconds, 1),
        "ok": not problems,
        "problems": list(problems),
        "conversions": [_data(view) for view in views],
    }


def _table(views: Sequence[View], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), width=width, show_edge=False, header_style="bold")
    table.add_column("task", ratio=1)
    table.add_column("vendor", width=7)
    table.add_column("answered", width=8)
    table.add_column("outcome", width=15)
    table.add_column("file, SHA-256", width=15)
    table.add_column("told", width=12)
    for view in views:
        table.add_row(
            Text.assemble(view.entry["task_id"], "\n", (view.act.story, FAINT)),
            view.entry["vendor"],
            answered(view).replace(" in ", "\n"),
            _outcome(view),
            _file(kept_file(view)),
            _told(view),
        )
    return table


def _outcome(view: View) -> Text:
    words, style = state(view)
    first, _, rest = words.partition(": ") if ": " in words else words.partition(", ")
    return Text.assemble((first, f"bold {style}"), *(("\n", (rest, FAINT)) if rest else ()))


def _file(kept: Kept | None) -> Text:
    if kept is None:
        return Text()
    size = f"{megabytes(kept.size_bytes)} MB {kept.duration_s:.1f} s"
    return Text.assemble(size, "\n", (kept.sha256[:_DIGEST_DIGITS], FAINT))


def _told(view: View) -> Text:
    """Say what was heard; by whom only where not everybody heard it."""
    heard = {destination: view.kinds(destination) for destination in (LOG, WEBHOOK)}
    if sorted(heard[LOG]) == sorted(heard[WEBHOOK]):
        return Text("\n".join(map(short, heard[WEBHOOK])) or "nothing", "" if heard[WEBHOOK] else FAINT)
    return Text("\n".join(f"{name}: {', '.join(map(short, kinds))}" for name, kinds in heard.items()), BAD)


def _show_files(console: Console, files: Sequence[Kept], *, folder: Path, kept: bool) -> None:
    console.print(Text(f"\n{len(files)} files in custody, each as the vendor served it, byte for byte", "bold"))
    for file in files:
        console.print(f"  {shown(file.path)}", highlight=False, soft_wrap=True)
    if not kept:
        console.print(Text("They are removed now; --keep, the default, leaves them.", FAINT))
    elif files:
        player = next((name for name in _PLAYERS if shutil.which(name)), "aplay")
        console.print(
            Text.assemble("\nListen: ", (f"{player} {shlex.quote(shown(files[0].path))}", "bold")), soft_wrap=True
        )
        console.print(Text(f"Any player will do. The next demo replaces {shown(folder)}.", FAINT))


def _show_verdict(console: Console, count: int, problems: Sequence[str], *, logs: Path, kept: bool) -> None:
    console.print()
    if not problems:
        console.print(Text(f"All {count} conversions ended as they must.", f"bold {GOOD}"))
        return
    console.print(Text(f"{len(problems)} things are not as they must be:", "bold red"))
    for problem in problems:
        console.print(Text(f"  {problem}"), soft_wrap=True)
    if kept:
        console.print(Text(f"Logs: {shown(logs)}", FAINT))


def shown(path: Path) -> str:
    """Return a path as it is shortest from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _data(view: View) -> Mapping[str, Any]:
    file = kept_file(view)
    return {
        "vendor": view.entry["vendor"],
        "task_id": view.entry["task_id"],
        "story": view.act.story,
        "answers": [
            {"status": callback["status"], "answered_ms": callback["answered_ms"]} for callback in view.callbacks
        ],
        "outcome": outcome(view),
        "expected": view.entry["expected"],
        "file": {
            "path": str(file.path),
            "size_bytes": file.size_bytes,
            "duration_s": file.duration_s,
            "sha256": file.sha256,
        }
        if file
        else None,
        "told": [
            {"destination": told.destination, "event": told.kind, "id": told.event_id, "signed": told.signed}
            for told in view.told
        ],
    }
