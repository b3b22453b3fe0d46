"""Reading a whole file again: its digest, and the page cache that is left as it was found."""

import ctypes
import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from downloader.reading import digest_of

CONTENT = os.urandom(3 * 1024 * 1024 + 17)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """An open file that is on the disk."""
    path = tmp_path / "audio.wav"
    path.write_bytes(CONTENT)
    opened = os.open(path, os.O_RDWR)
    os.fsync(opened)
    yield opened
    os.close(opened)


def cached_pages(file: int) -> int:
    """Return how many pages of a file are in the page cache; brings none there."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = -(-len(CONTENT) // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    with mmap.mmap(file, len(CONTENT)) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        try:
            address = ctypes.c_void_p(ctypes.addressof(view))
            assert libc.mincore(address, ctypes.c_size_t(len(CONTENT)), states) == 0, os.strerror(ctypes.get_errno())
        finally:
            del view
    return sum(state & 1 for state in states)


def evict(file: int) -> None:
    """Drive a file out of the page cache, where its file system has one."""
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(file):
        pytest.skip("what is in temporary folders here is nowhere but in memory")


def test_the_digest_is_that_of_the_whole_file(file: int, tmp_path: Path) -> None:
    """Every byte is read, once, whatever the size."""
    assert digest_of(file) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    empty = os.open(tmp_path / "empty", os.O_RDONLY | os.O_CREAT)
    try:
        assert digest_of(empty) == (0, hashlib.sha256(b"").hexdigest())
    finally:
        os.close(empty)


def test_what_was_not_in_the_page_cache_does_not_stay_there(file: int) -> None:
    """Reading everything that is kept drives nothing else out of memory."""
    evict(file)
    digest_of(file)
    assert cached_pages(file) == 0


def test_what_was_in_the_page_cache_stays_there(file: int) -> None:
    """What somebody uses is as quick for them after an audit as before."""
    evict(file)
    assert os.pread(file, len(CONTENT), 0) == CONTENT
    before = cached_pages(file)
    assert before > 0
    digest_of(file)
    assert cached_pages(file) == before
