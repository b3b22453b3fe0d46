"""The documentation and the code say the same.

Responsible for: failing when a setting, a metric or an event changed and its page did not.
"""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from shared.errors import Reason
from shared.events import EVENTS_EXCHANGE, MODELS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    """The module that writes the made parts of the documentation."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_made_documentation_is_up_to_date(builder: ModuleType) -> None:
    """Every setting, metric and event is documented as the code has it (else: make docs)."""
    behind = [path.name for path, content in builder.build().items() if path.read_text("utf-8") != content]
    assert behind == []


def test_every_public_event_is_told() -> None:
    """A subscriber finds each type in docs/events.md."""
    page = (ROOT / "docs" / "events.md").read_text("utf-8")
    for name, model in MODELS.items():
        wanted = name if model.EXCHANGE == EVENTS_EXCHANGE else name.removeprefix("wavekeep.").rpartition(".")[0]
        assert f"`{wanted}`" in page, name


def test_every_reason_of_a_rejection_is_told() -> None:
    """A reader of conversion.rejected finds its reason in docs/events.md."""
    page = (ROOT / "docs" / "events.md").read_text("utf-8")
    ours = [reason for reason in Reason if not reason.startswith(("destination_", "message_", "publish_", "broker_"))]
    missing = [reason for reason in ours if f"`{reason}`" not in page]
    assert set(missing) <= {Reason.NOT_ROUTABLE, Reason.DELIVERY_LIMIT, Reason.UNEXPECTED}


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")), ids=lambda p: p.name
)
def test_links_and_paths_exist(page: Path) -> None:
    """What a page points at is there: files, decision records, tests and modules."""
    text = page.read_text("utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in filter(None, links):
        assert (page.parent / link).exists(), link
    for path in re.findall(
        r"`((?:tests|shared|docs|ingress|downloader|notifier)/[\w/.-]+\.(?:py|md|toml|yaml))`", text
    ):
        assert (ROOT / path).exists(), path
