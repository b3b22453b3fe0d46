"""The command line as a whole: every command is there, and each loads only what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.__main__ import main

ROOT = Path(__file__).parents[2]


def test_every_command_is_there() -> None:
    """What the help lists can be asked for help itself, and nothing is listed that is not there."""
    listed = main.list_commands(main.make_context("wavekeep", [], resilient_parsing=True))
    assert len(listed) == 11
    for name in listed:
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert f"{name} [OPTIONS]" in result.output


def test_an_unknown_command_is_told() -> None:
    """A slip of the pen is a sentence, not a failed import."""
    result = CliRunner().invoke(main, ["adit"])
    assert result.exit_code == 2
    assert "No such command" in result.output


@pytest.mark.parametrize("library", ["aio_pika", "aiohttp", "standalone", "obstore"])
def test_an_audit_of_a_folder_loads_no_client(library: str) -> None:
    """Who only reads files again does not wait for libraries that speak to others."""
    code = f"import sys, cli.__main__, cli.audit; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
