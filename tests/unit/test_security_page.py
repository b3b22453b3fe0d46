"""docs/security.md names for each threat a test that is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/.-]+\.py)::(\w+)`", PAGE)))


@cache
def named_in(path: str) -> frozenset[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_named_test_is_there(path: str, name: str) -> None:
    """A test that was renamed or removed takes its row with it."""
    assert (ROOT / path).is_file()
    assert name.startswith("test_")
    assert name in named_in(path)


def test_every_threat_names_a_test() -> None:
    """No row of a table of threats is without proof."""
    tables = re.findall(r"^\| threat \| countered by \| test \|\n\| --- .*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [line for table in tables for line in table.splitlines()]
    assert len(tables) == 4
    assert len(rows) > 50
    assert [row for row in rows if row.count(" | ") != 2 or "::test_" not in row.rpartition(" | ")[2]] == []


def test_the_rows_of_a_link_are_all_there() -> None:
    """The threats of a file's URL are lettered from A to I, in order."""
    assert re.findall(r"^\| \*\*([A-Z])\.\*\*", PAGE, re.MULTILINE) == list("ABCDEFGHI")
