"""Programs of the distribution that some tests need beside us.

Responsible for: finding one, and installing its package where this machine lets us, without starting any service. It
must not run the program.
"""

import os
import shutil

import pytest

from simulator.debian import install, installer


def require(program: str, package: str) -> str:
    """Return the path of a program, installed now if need be (as root, on Debian); else the test is skipped."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    if found := shutil.which(program, path=path):
        return found
    failure = install(package, apt_get=apt_get) if (apt_get := installer(path)) else ""
    if found := shutil.which(program, path=path):
        return found
    pytest.skip(f"There is no {program} here: install the package {package}. {failure}".rstrip())
