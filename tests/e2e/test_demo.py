"""The demo works: whoever tries it first sees everything end as it must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("broker", ["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def test_the_demo_ends_with_0_and_keeps_files_to_listen_to(tmp_path: Path, broker: str) -> None:
    """`make demo` is the first thing a newcomer runs, and needs nothing but our own files."""
    demo = subprocess.run(
        [sys.executable, "-m", "simulator.demo", "--json", "--broker", broker],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "" if broker == "embedded" else os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    result = json.loads(demo.stdout)
    assert result["ok"]
    assert result["problems"] == []
    assert {each["outcome"] for each in result["conversions"]} == {"stored", "rejected", "none"}
    kept = [Path(each["file"]["path"]) for each in result["conversions"] if each["file"]]
    assert set(kept) == set((tmp_path / "data" / "demo" / "files").rglob("*.wav"))


def test_a_folder_that_is_not_the_demos_is_never_replaced(tmp_path: Path) -> None:
    """What stands at `data/demo` by another hand is left alone."""
    precious = tmp_path / "data" / "demo" / "precious.wav"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"mine")
    demo = subprocess.run(
        [sys.executable, "-m", "simulator.demo"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert demo.returncode == 1
    assert "move it away" in demo.stderr
    assert precious.read_bytes() == b"mine"
