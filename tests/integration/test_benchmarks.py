"""The benchmarks run, and leave nothing behind; what they measure is not judged here."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_audit_is_measured_beside_plain_reading(tmp_path: Path) -> None:
    """Every program reads every file, cold and warm; each cost has its figure; the folder is empty afterwards."""
    sizes = ("--small-files", "5", "--small-kib", "16", "--large-files", "2", "--large-kib", "512")
    linear = ("--linear-files", "3", "6", "--linear-kib", "4")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.audit", *sizes, *linear, "--times", "1", "--json", "--folder", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    ours = [row for row in told["rows"] if row["program"] == "wavekeep audit"]
    assert [(row["files"], row["cache"]) for row in ours] == [
        (files, cache) for files in ("5 x 0.015625 MiB", "2 x 0.5 MiB") for cache in ("cold", "warm")
    ]
    assert all(row["speed"] == 1.0 for row in told["rows"] if row["program"] == "plain reading")
    assert set(told["cpu_ms_a_file"]) == {"3", "6"}
    assert list(tmp_path.iterdir()) == []
