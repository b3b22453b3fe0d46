"""Reading a whole file of a local disk for its digest.

Responsible for: the speed of the disk, in bounded memory, and leaving the page cache as it was found. It must not know
whose file it is.
"""

import errno
import hashlib
import os
import threading
from typing import Final

_BLOCK_BYTES: Final = 512 * 1024
"""Each costs two turns at the interpreter's lock; more than a core's own cache holds costs as well."""

_thread = threading.local()


def digest_of(file: int) -> tuple[int, str]:
    """Read an open file from its beginning to its end; return its size in bytes and its SHA-256 in hex. Blocking.

    What the page cache held of it before stays there, as somebody uses it; what only this reading brought there goes,
    so that reading everything that is kept does not drive out everything else.

    Raises:
        OSError: it cannot be read.
    """
    block, found, size_bytes = _block(), hashlib.sha256(), 0
    cached = _is_cached(file)
    # twice the kernel's own read-ahead; asking for ranges (WILLNEED) took half as long again, see docs/adr/0014
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while length := os.readv(file, [block]):
        found.update(block[:length])
        size_bytes += length
    if not cached:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    return size_bytes, found.hexdigest()


def _block() -> memoryview:
    """Return this thread's own buffer."""
    if not hasattr(_thread, "block"):
        _thread.block = memoryview(bytearray(_BLOCK_BYTES))
    block: memoryview = _thread.block
    return block


def _is_cached(file: int) -> bool:
    """Tell whether the page cache has the beginning of a file; False where the file system cannot tell."""
    try:
        return os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT) == 1
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP}:
            return False
        raise
