"""An object store to keep files in: Amazon S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.

Responsible for: conditional creation, uploads in parts, and bounding every call in time and memory. It must not know
what a manifest is, nor how a store's failures read: `downloader.storage_failure` does.

It is imported only where such a store is configured, as its library is large.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError

from downloader.storage import Entry, Storage, translating
from downloader.storage_failure import StoreError, advice, failure
from downloader.storage_store import Store
from shared.errors import RetryableError, StartError

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, PutMode, UpdateVersion

T = TypeVar("T")

PART_BYTES = 5 * 1024 * 1024
"""The least that S3 takes, so that memory is least; its 10,000 parts are 50 GB."""
PARTS_AT_ONCE = 2

_BLOCK_BYTES = 1024 * 1024
_RANGE_BYTES = 4 * 1024 * 1024
_PROBES = ".probe"
_PROBES_KEPT = timedelta(days=1)
_PAGE = 1_000
_WRITER = "writer"
_ROUNDS = 5
_CALL_TIMEOUT_S = 60.0
_TYPES = {".wav": "audio/wav", ".json": "application/json"}


class ObjectStorage:
    """A bucket, or a prefix in it.

    Args:
        store: of the library, at that prefix.
        address: `SCHEME://BUCKET/PREFIX`, as others know it.
        executor: runs what blocks.
        single_writer: start although the store cannot create conditionally; then a key is looked for before.
        transfer_timeout_s: for putting or reading again one whole file.
    """

    local = False

    def __init__(
        self, store: Store, address: str, *, executor: Executor, single_writer: bool, transfer_timeout_s: float
    ) -> None:
        self._store = store
        self._address = address
        self._executor = executor
        self._single_writer = single_writer
        self._transfer_timeout_s = transfer_timeout_s

    async def start(self) -> None:
        """See the port. Also proves the rights to read, to list and to delete, and that absence is told as absence."""
        probe = f"{_PROBES}/{uuid.uuid4().hex}"
        try:
            await self._sweep_probes()
            absent = not await self.exists(probe)
            won = [await self.create(probe, b"probe"), await self.create(probe, b"probe")]
            read = await self.read(probe)
            await self.delete(probe)
        except RetryableError as error:
            raise StartError(advice(error, self._address)) from error
        if not absent or read != b"probe":
            raise StartError(f"{self._address} does not give back what was put there. Use another storage.")
        if won != [True, False]:
            raise StartError(
                f"{self._address} cannot create an object conditionally, so two downloaders could both believe they"
                " stored a task. Use another storage, or set WAVEKEEP_STORAGE_SINGLE_WRITER=true and run one downloader"
                " only."
            )

    async def ask(self) -> None:
        """See the port. Whether it would take an object is not tried: that costs."""
        await self.exists(f"{_PROBES}/asked")

    async def keep(self, staged: Path, key: str) -> None:
        """See the port; the staged file stays. In parts, of which few are in memory; an upload that fails is aborted.

        A store may have completed an upload although its answer never came: what is there in full size counts as kept,
        and whoever reads it again knows.
        """
        with translating():
            size_bytes = (await self._off_loop(staged.stat)).st_size
        try:
            async with _bounded(self._transfer_timeout_s):
                await self._upload(staged, key)
        except StoreError:
            if await self._size_bytes(key) != size_bytes:
                raise

    async def create(self, key: str, content: bytes) -> bool:
        """See the port. Who won is told by a name in the object: an answer may get lost, and its repetition refused."""
        if self._single_writer and await self.exists(key):
            return False
        writer = uuid.uuid4().hex
        for _ in range(_ROUNDS):
            if await self._put(key, content, mode="create", writer=writer):
                return True
            winner = await self._writer(key)
            if winner is not None:
                return winner == writer
        raise StoreError("the object store says again and again that a key is taken which is not there")

    async def replace(self, key: str, content: bytes) -> None:
        """See the port. Against the version that is there, so that a request which comes late undoes nothing."""
        for _ in range(_ROUNDS):
            there = await self._head(key)
            mode: PutMode = "create" if there is None else _version(there)
            if await self._put(key, content, mode=mode, writer=uuid.uuid4().hex):
                return
        raise StoreError("others replace the object all the time")

    async def read(self, key: str) -> bytes | None:
        """See the port."""

        async def get() -> bytes:
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

        return await self._if_there(get())

    async def exists(self, key: str) -> bool:
        """See the port."""
        return await self._head(key) is not None

    async def delete(self, key: str) -> None:
        """See the port."""
        await self._if_there(obstore.delete_async(self._store, key))

    async def digest(self, key: str) -> tuple[int, str]:
        """See the port. Range by range, each of the same version, the next one on its way while one is hashed."""
        there = await self._head(key)
        if there is None:
            raise StoreError("the object is not there")
        found, size_bytes, block = hashlib.sha256(), there["size"], b""
        async with _bounded(self._transfer_timeout_s):
            for start in range(0, size_bytes, _RANGE_BYTES):
                hashing = self._off_loop(partial(found.update, block))
                block, _ = await asyncio.gather(self._range(key, start, there), hashing)
            await self._off_loop(partial(found.update, block))
        return size_bytes, found.hexdigest()

    async def together(self, work: Callable[[Storage], Coroutine[Any, Any, T]]) -> T:
        """See the port."""
        return await work(self)

    async def list(self, prefix: str = "") -> AsyncIterator[Entry]:
        """See the port. A page at a time, in no thread of ours. Stores list in the order of keys; that is checked."""
        last = ""
        async for entry in self._entries(prefix):
            if entry.key < last:
                raise StoreError("the object store does not list in the order of keys")
            last = entry.key
            if not entry.key.startswith("."):
                yield entry

    def uri(self, key: str) -> str:
        """See the port."""
        return f"{self._address}/{key}"

    async def _upload(self, staged: Path, key: str) -> None:
        with await self._off_loop(partial(_open, staged)) as file:
            async with obstore.open_writer_async(
                self._store, key, attributes=_attributes(key), buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            ) as writer:
                while block := await self._off_loop(partial(_read, file)):
                    await writer.write(block)

    async def _put(self, key: str, content: bytes, *, mode: "PutMode", writer: str) -> bool:
        """Put a small object; False where the condition was refused."""
        attributes = _attributes(key) | {_WRITER: writer}
        try:
            async with _bounded():
                await obstore.put_async(self._store, key, content, mode=mode, attributes=attributes)
        except StoreError as error:
            if error.taken:
                return False
            raise
        return True

    async def _writer(self, key: str) -> str | None:
        """Return who made an object, empty where that is not written on it; None where there is none."""

        async def get() -> str:
            found = await obstore.get_async(self._store, key, options={"head": True})
            return found.attributes.get(_WRITER, "")

        return await self._if_there(get())

    async def _head(self, key: str) -> "ObjectMeta | None":
        return await self._if_there(obstore.head_async(self._store, key))

    async def _size_bytes(self, key: str) -> int | None:
        """Return the size of what is there; None where that is nothing, or cannot be known."""
        try:
            there = await self._head(key)
        except StoreError:
            return None
        return there["size"] if there else None

    async def _range(self, key: str, start: int, there: "ObjectMeta") -> bytes:
        end = min(start + _RANGE_BYTES, there["size"])
        # by its tag alone: a version by its name is another right to ask for
        options: GetOptions = {"range": (start, end)}
        if there["e_tag"]:
            options["if_match"] = there["e_tag"]
        found = await obstore.get_async(self._store, key, options=options)
        return bytes(await found.bytes_async())

    async def _entries(self, prefix: str) -> AsyncIterator[Entry]:
        pages = obstore.list(self._store, prefix or None, chunk_size=_PAGE)
        while True:
            try:
                async with _bounded():
                    page = await anext(pages)
            except StopAsyncIteration:
                return
            for found in page:
                yield Entry(found["path"], found["size"], found["last_modified"].astimezone(UTC))

    async def _sweep_probes(self) -> None:
        """Remove the probes of those that were killed while they started."""
        old = datetime.now(UTC) - _PROBES_KEPT
        async for entry in self._entries(_PROBES):
            if entry.modified_at < old:
                await self.delete(entry.key)

    async def _if_there(self, call: Awaitable[T]) -> T | None:
        """Return what a call returns; None where the object is not there."""
        try:
            async with _bounded():
                return await call
        except StoreError as error:
            if error.missing:
                return None
            raise

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


@asynccontextmanager
async def _bounded(timeout_s: float = _CALL_TIMEOUT_S) -> AsyncGenerator[None, None]:
    """Bound calls in time, and turn what the library raises into our words."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (BaseError, OSError, ValueError) as error:
        raise failure(error) from error


def _attributes(key: str) -> dict[str, str]:
    return {"Content-Type": _TYPES.get(Path(key).suffix, "text/plain")}


def _version(there: "ObjectMeta") -> "UpdateVersion":
    """Return what tells this version from others; each kind of store goes by another part."""
    version: UpdateVersion = {}
    if there["e_tag"]:
        version["e_tag"] = there["e_tag"]
    if there["version"]:
        version["version"] = there["version"]
    return version


def _open(path: Path) -> BufferedReader:
    with translating():
        return path.open("rb")


def _read(file: BufferedReader) -> bytes:
    with translating():
        return file.read(_BLOCK_BYTES)
