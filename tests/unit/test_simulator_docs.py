"""The simulator's page tells everything that can be asked of it."""

from pathlib import Path

import pytest

from simulator.__main__ import main
from simulator.plan import Expect, Fault, FilePlan, Load, Plan, Shape, Sign, Step, Strict, VendorManner, WebhookManner

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()


def test_every_option_is_documented() -> None:
    """Each option stands on the page, with its variable."""
    names = {str(option.name) for option in main.params}
    told = {name for name in names if f"`--{name.replace('_', '-')}" in PAGE and f"`SIMULATOR_{name.upper()}`" in PAGE}
    assert told == names


@pytest.mark.parametrize("model", [Plan, Step, FilePlan, Fault, Expect, Load, VendorManner, WebhookManner])
def test_every_field_is_documented(model: type[Strict]) -> None:
    """Each field of what the control interface takes stands on the page."""
    assert [name for name in model.__struct_fields__ if f"`{name}`" not in PAGE and f'"{name}"' not in PAGE] == []


@pytest.mark.parametrize("word", [*Shape, *Sign])
def test_every_word_is_documented(word: str) -> None:
    """Each shape and each way to sign stands on the page."""
    assert f"`{word}`" in PAGE
