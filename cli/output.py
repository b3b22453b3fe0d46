"""How results are shown: a table for people, JSON for programs.

Responsible for: layout alone.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

_WIDE = 240
"""Columns where nobody looks: a program that reads the table should find each row on one line."""

as_json = click.option("--json", "json_output", is_flag=True, help="Print JSON instead of a table.")


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2)
    sys.stdout.write(text.decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under their columns; where there are none, say so in words."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    if table.row_count:
        Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
    else:
        sys.stdout.write(f"{empty}\n")
