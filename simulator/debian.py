"""Packages of the distribution, for what is tried or tested beside us.

Responsible for: installing one where this machine lets us (as root, where `apt-get` is), without starting its service,
and for one of us at a time: test runs of several processes need the same packages at the same moment. It must not run
what it installed.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TIMEOUT_S = 300.0
_LOCK_TIMEOUT_S = 120
_TURN = Path(tempfile.gettempdir()) / "wavekeep-packages.lock"
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = "#!/bin/sh\nexit 101\n"
"""What keeps a package's own service from being started while it is installed."""


def installer(path: str | None = None) -> str | None:
    """Return the `apt-get` to install with; None where nothing can be installed."""
    return shutil.which("apt-get", path=path) if os.geteuid() == 0 else None


def install(package: str, *, apt_get: str) -> str:
    """Install a package, after whoever is at it now; return why not, or nothing. Idempotent."""
    with _turn(), _no_services():
        for arguments in (("update",), ("install", "-y", "--no-install-recommends", package)):
            if failure := _run(apt_get, *arguments):
                return failure
    return ""


@contextmanager
def _turn() -> Iterator[None]:
    file = os.open(_TURN, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


@contextmanager
def _no_services() -> Iterator[None]:
    ours = not _POLICY.exists()
    if ours:
        _POLICY.write_text(_POLICY_TEXT)
        _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)


def _run(apt_get: str, *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - no shell, our own words
            [apt_get, "-q", "-o", f"DPkg::Lock::Timeout={_LOCK_TIMEOUT_S}", *arguments],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"apt-get {arguments[0]} took longer than {_TIMEOUT_S:.0f} s."
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
    return f"apt-get {arguments[0]} failed:\n{tail}" if done.returncode else ""
