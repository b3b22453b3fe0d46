"""Places to keep files in, for the contract of the storage port: ordinary, small, foreign and closed ones.

Responsible for: making them and taking them away. It must not assert anything.
"""

import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from downloader.storage import Storage
from downloader.storage_folder import FolderStorage
from downloader.storage_object import ObjectStorage
from downloader.storage_store import open_store
from tests.object_store import Bucket

ROOT = Path(__file__).parents[2]
NOBODY = 65_534
SMALL_BYTES = 1024 * 1024
"""What a small place has room for; less than the page cache of any program needs, more than a test writes else."""


class Kit(Protocol):
    """A place, and the ways to open a storage on it."""

    def storage(self) -> Storage:
        """Return one more storage on the same place, as another process would have it."""

    def opener(self) -> str:
        """Return code that makes `storage` in another process."""

    def listing(self) -> set[str]:
        """Return the key of everything there, seen past the storage."""


@dataclass(frozen=True)
class ObjectKit:
    """A bucket on an S3 server; its endpoint and credentials are in the environment."""

    bucket: Bucket
    executor: Executor
    single_writer: bool = False
    transfer_timeout_s: float = 60.0

    def storage(self) -> Storage:
        """Return one more storage on the same place, as another process would have it."""
        return ObjectStorage(
            open_store(self.bucket.address),
            self.bucket.address,
            executor=self.executor,
            single_writer=self.single_writer,
            transfer_timeout_s=self.transfer_timeout_s,
        )

    def opener(self) -> str:
        """Return code that makes `storage` in another process."""
        return (
            "from concurrent.futures import ThreadPoolExecutor\n"
            "from downloader.storage_object import ObjectStorage\n"
            "from downloader.storage_store import open_store\n"
            f"address = {self.bucket.address!r}\n"
            "storage = ObjectStorage(open_store(address), address, executor=ThreadPoolExecutor(4),"
            " single_writer=False, transfer_timeout_s=120)\n"
        )

    def listing(self) -> set[str]:
        """Return the key of everything there, and of what was begun and not ended."""
        return {*self.bucket.sizes(), *(f"upload of {key}" for key in self.bucket.uploads())}


@dataclass(frozen=True)
class FolderKit:
    """A folder and the ways to open a storage on it."""

    root: Path
    executor: Executor

    def storage(self) -> Storage:
        """Return one more storage on the same place, as another process would have it."""
        return FolderStorage(self.root, executor=self.executor)

    def opener(self) -> str:
        """Return code that makes `storage` in another process."""
        return (
            "from concurrent.futures import ThreadPoolExecutor\n"
            "from pathlib import Path\n"
            "from downloader.storage_folder import FolderStorage\n"
            f"storage = FolderStorage(Path({str(self.root)!r}), executor=ThreadPoolExecutor(4))\n"
        )

    def listing(self) -> set[str]:
        """Return the name of every file there, relative."""
        return files(self.root)


def files(folder: Path) -> set[str]:
    """Return the relative names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def staged(folder: Path, content: bytes = b"audio") -> Path:
    """Return a staged file, of its own: what is kept of an earlier one may be the same file as that."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{sha256(content).hexdigest()[:8]}.part"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


@contextmanager
def other_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run code in another process with its standard streams at hand; gone afterwards."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def said(process: subprocess.Popen[str], *, within_s: float = 20) -> str:
    """Return the next line a process says."""
    assert process.stdout is not None
    async with asyncio.timeout(within_s):
        return (await asyncio.to_thread(process.stdout.readline)).strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Say a line to a process."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


@contextmanager
def other_device() -> Iterator[Path]:
    """Lend a folder on another device than temporary folders are on."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@contextmanager
def small_place(folder: Path) -> Iterator[None]:
    """Let a folder have room for `SMALL_BYTES`: a small disk of its own, or a limit on files where none can be made."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() == 0 and shutil.which("mount") and subprocess.run(mount, check=False).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Let this process have no right to write into a folder, even where it is the superuser's."""
    user = os.geteuid()
    folder.chmod(0o500)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o700)
