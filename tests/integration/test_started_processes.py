"""Processes that tests and the demo start: none outlives whoever started it."""

import subprocess
import sys
import time
from pathlib import Path

_STARTS_ONE = """
import sys, time
from pathlib import Path
from simulator.processes import Process
folder = Path(sys.argv[1])
(folder / "sleeper.py").write_text("import time; time.sleep(600)")
process = Process("sleeper", environ={"PYTHONPATH": str(folder)}, log=folder / "log", ready_url="http://127.0.0.1:9/")
process.start()
print(process.pid, flush=True)
time.sleep(600)
"""


def test_a_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Where the starter is killed at once, and can clear up nothing, what it started is gone all the same."""
    starter = subprocess.Popen([sys.executable, "-c", _STARTS_ONE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert starter.stdout is not None
        started = Path(f"/proc/{int(starter.stdout.readline())}")
        assert started.exists()
    finally:
        starter.kill()
        starter.communicate()
    deadline = time.monotonic() + 10
    while started.exists() and "State:\tZ" not in (started / "status").read_text():
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)
