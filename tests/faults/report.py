"""What a run of fault tests saw: one row a test.

Responsible for: collecting rows and laying them out. It must not judge, and must not print: the session's end does.
"""

from io import StringIO
from typing import NamedTuple

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from tests.faults.core import Verdict

LAST_NUMBER = 25
"""Of the list of faults; the one for SIGTERM is called `+`."""


class Row(NamedTuple):
    """One fault and what came of it."""

    number: str
    name: str
    times_injected: int
    verdict: Verdict


_ROWS: list[Row] = []


def record(row: int | str, name: str, times_injected: int, verdict: Verdict) -> None:
    """Add what came of a fault; `row` is its number in the list of faults."""
    _ROWS.append(Row(str(row), name, times_injected, verdict))


def handed_on() -> str:
    """Return what was recorded here, as text for another process."""
    return msgspec.json.encode(_ROWS).decode()


def take_over(rows_of_another: str) -> None:
    """Add what was recorded in another process."""
    _ROWS.extend(msgspec.json.decode(rows_of_another, type=list[Row]))


def rows() -> list[Row]:
    """Return what was recorded, by number."""
    return sorted(_ROWS, key=lambda row: (not row.number.isdigit(), row.number.rjust(4), row.name))


def broken(row: Row) -> bool:
    """Tell whether something was lost or doubled, which must never be."""
    return bool(row.verdict.lost or row.verdict.doubled)


def not_injected(found: list[Row]) -> list[str]:
    """Return the numbers of the list of faults that no row is about, in order."""
    there = {row.number for row in found}
    return [number for number in (*map(str, range(1, LAST_NUMBER + 1)), "+") if number not in there]


def table(found: list[Row], *, width: int = 110) -> str:
    """Lay rows out as text."""
    laid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    laid.add_column("#", justify="right")
    laid.add_column("fault", overflow="fold")
    for title in ("injected", "acknowledged", "lost", "doubled", "recovery"):
        laid.add_column(title, justify="right")
    for row in found:
        verdict = row.verdict
        counts = (row.times_injected, len(verdict.acknowledged), len(verdict.lost), len(verdict.doubled))
        laid.add_row(row.number, row.name, *map(str, counts), f"{verdict.recovery_s:.1f} s")
    text = StringIO()
    Console(file=text, width=width, color_system=None).print(laid)
    return text.getvalue().rstrip()
