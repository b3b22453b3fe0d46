"""The service as the container runs it: no rights, a root file system that cannot be written, and no shell.

Responsible for: trying that with the kernel's own means, as there need be no Docker engine.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from simulator.rabbitmq_local import free_ports

ROOT = Path(__file__).parents[2]
_START_WITHIN_S = 30.0
_INSIDE = """
import ctypes, os, pathlib, subprocess, sys
data, shells = sys.argv[1], sys.argv[2].split(":")
def mount(*words):
    subprocess.run(["mount", *words], check=True)
mount("--make-rprivate", "/")
mount("--bind", data, data)
mount("-t", "tmpfs", "-o", "size=64m,mode=1777", "tmpfs", "/tmp" if not data.startswith("/tmp/") else "/var/tmp")
for shell in shells:
    mount("--bind", "/dev/null", shell)
for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
    place = line.split()[1].encode().decode("unicode_escape")
    if place not in (data, "/tmp", "/var/tmp") and not place.startswith(("/proc", "/dev", "/sys")):
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=False, stderr=subprocess.DEVNULL)
libc = ctypes.CDLL(None, use_errno=True)
for capability in range(64):
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
_PROBE = """
import pathlib, subprocess
def refused(what):
    try:
        what()
    except OSError:
        return True
    return False
caps = [line for line in open("/proc/self/status") if line.startswith(("CapEff", "NoNewPrivs"))]
print(refused(lambda: pathlib.Path("/etc/planted").write_text("x")), refused(lambda: pathlib.Path("/planted").touch()),
      refused(lambda: subprocess.run(["/bin/sh", "-c", "true"])), *(line.split()[1] for line in caps))
"""


def confined(data: Path, *arguments: str) -> list[str]:
    """Return the command that runs Python so; skip where this machine does not let us."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        pytest.skip("A file system of its own needs root and the package util-linux.")
    if subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("No mount namespace can be made on this machine.")
    shells = {str(Path(found).resolve()) for name in ("sh", "bash", "dash") if (found := shutil.which(name))}
    return [unshare, "-m", sys.executable, "-c", _INSIDE, str(data), ":".join(sorted(shells)), *arguments]


def test_the_confinement_confines(tmp_path: Path) -> None:
    """What the next test relies on is so: nothing can be written, no shell runs, no capability is left."""
    done = subprocess.run(confined(tmp_path, "-c", _PROBE), capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["True", "True", "True", "0000000000000000", "1"], done.stderr


def test_all_of_it_runs_confined_and_is_found_healthy(tmp_path: Path) -> None:
    """The whole product starts, is ready, and its health check passes, with nothing but its data folder to write to."""
    ops_port, ingress_port = free_ports(2)
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "WAVEKEEP_DATA_DIR": str(tmp_path / "data"),
        "WAVEKEEP_OPS_PORT": str(ops_port),
        "WAVEKEEP_INGRESS_PORT": str(ingress_port),
        "WAVEKEEP_SAMPLE_FILE": "false",
    }
    (tmp_path / "data").mkdir()
    with (tmp_path / "output").open("wb") as output:
        command = confined(tmp_path / "data", "-m", "standalone")
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _START_WITHIN_S
        while not _ready(ops_port):
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.05)
        check = confined(tmp_path / "data", "-m", "shared.health")
        assert subprocess.run(check, env=environ, capture_output=True, timeout=60, check=False).returncode == 0
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 0


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
