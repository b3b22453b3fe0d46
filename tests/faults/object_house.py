"""A house that keeps its files in a bucket of a real S3 server, behind a proxy that misbehaves on demand.

Responsible for: telling the services of it, and showing the oracle what is in the bucket as if it were a folder. It
must not judge.
"""

from pathlib import Path

from tests.faults.house import House
from tests.object_store import Bucket, Proxy, environment


class ObjectHouse(House):
    """All services in one process, embedded, with a bucket.

    Args:
        folder: takes everything it writes, and a copy of what is in the bucket.
        bucket: of this house alone.
        proxy: between the services and the server.
    """

    def __init__(self, folder: Path, bucket: Bucket, proxy: Proxy) -> None:
        self._bucket = bucket
        super().__init__(folder, settings={"WAVEKEEP_STORAGE_URL": bucket.address, **environment(proxy.url)})

    def kept(self, pattern: str) -> list[Path]:
        """Return copies of the objects whose names match."""
        there = self._bucket.sizes()
        for path in super().kept("*"):
            if path.is_file() and str(path.relative_to(self.files)) not in there:
                path.unlink()
        for key, size_bytes in there.items():
            copy = self.files / key
            if not copy.is_file() or copy.stat().st_size != size_bytes:
                self._bucket.copy(key, copy)
        return super().kept(pattern)

    def temporaries(self) -> list[Path]:
        """Return the staged files, and a name for each upload that was begun and not ended."""
        return [*super().temporaries(), *(Path("upload") / key for key in self._bucket.uploads())]
