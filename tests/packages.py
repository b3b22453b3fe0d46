"""Programs of the distribution that some tests need beside us.

Responsible for: finding one, and installing its package where this machine lets us, without starting any service. It
must not run the program.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

_INSTALL_TIMEOUT_S = 100.0
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = "#!/bin/sh\nexit 101\n"
"""What keeps a package's own service from being started while it is installed."""


def require(program: str, package: str) -> str:
    """Return the path of a program, installed now if need be (as root, on Debian); else the test is skipped."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    if found := shutil.which(program, path=path):
        return found
    apt_get = shutil.which("apt-get")
    if apt_get and os.geteuid() == 0:
        _install(apt_get, package)
        if found := shutil.which(program, path=path):
            return found
    pytest.skip(f"There is no {program} here: install the package {package}.")


def _install(apt_get: str, package: str) -> None:
    ours = not _POLICY.exists()
    if ours:
        _POLICY.write_text(_POLICY_TEXT)
        _POLICY.chmod(0o755)
    try:
        for arguments in (("update",), ("install", "-y", "--no-install-recommends", package)):
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    [apt_get, "-q", "-o", "DPkg::Lock::Timeout=60", *arguments],
                    env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=_INSTALL_TIMEOUT_S,
                    check=False,
                )
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)
