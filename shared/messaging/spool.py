"""The spool's disk: an embedded queue that may be full, fail or be away, and says so.

Responsible for: when the spool takes messages and when it does not, the room that stays free beside it, and what it
holds, whether it takes or not. It must not decide what is spooled, nor when it is moved on: that is
`shared.messaging.spooled`.

Full and failed are two things. On a full disk the file stays open: what it holds is read and moved on, and forgotten
on disk as soon as that is possible. After any other error the file is closed, and opened anew: a sync that succeeds
after one that failed proves nothing about what was written between. Either way nothing is taken until a row was
committed and read again. The file is never replaced or deleted.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import structlog

from shared.errors import BrokerError, InUseError, Reason, StartError
from shared.events import INTAKE_EXCHANGE
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.port import Kept
from shared.messaging.table import FIRST, Position
from shared.messaging.topology import Binding, Topology, kept_queue
from shared.metrics import SpoolMetrics

log = structlog.get_logger()

T = TypeVar("T")

SPOOL = "wavekeep.spool"
PROBE = "wavekeep.spool.probe"

SPOOL_TIMEOUT_S = 3.0
"""What the spool's disk may take for a commit, after the broker has taken its own time."""

DEFAULT_RESERVE_BYTES: Final = 64 * 1024**2
DEFAULT_RESERVE_SHARE: Final = 0.05
"""Of the disk: what the default reserve takes at most, so that a small disk is of use."""

_LOOK_EVERY_S = 1.0
_COPIES = 2
"""A row is written to the file's log, and from there to the file."""
_ROW_BYTES = 4_096
"""Of a row beside its body, at most."""
_PAGE = 100


def spool_topology() -> Topology:
    """Return the spool's own: one queue for whatever comes in, one for probing the disk."""
    return Topology(
        exchanges=(INTAKE_EXCHANGE, PROBE),
        queues=(kept_queue(SPOOL), kept_queue(PROBE)),
        bindings=(Binding(INTAKE_EXCHANGE, "#", SPOOL), Binding(PROBE, "#", PROBE)),
    )


class Spool:
    """Messages on local disk, until they are forgotten.

    Args:
        folder: that the file is in; created at start.
        open_file: builds an embedded broker over `spool_topology`; called again after an error of the disk.
        metrics: of the spool.
        max_messages: that it takes.
        max_bytes: of bodies that it takes.
        reserve_bytes: stays free on the disk; None for the default, which is smaller on a small disk.

    Attributes:
        messages: that wait; also while the file is closed, as far as it is known then.
    """

    def __init__(
        self,
        folder: Path,
        open_file: Callable[[], EmbeddedBroker],
        *,
        metrics: SpoolMetrics,
        max_messages: int,
        max_bytes: int,
        reserve_bytes: int | None = None,
    ) -> None:
        self._folder = folder
        self._open_file = open_file
        self._metrics = metrics
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes
        self._file: EmbeddedBroker | None = None
        self._closed: Reason | None = Reason.STORAGE_FAILED  # until it is open
        self._told = ""
        self._room_bytes = 0
        self._bytes = 0
        self._oldest: float | None = None
        self._moved: dict[str, None] = {}
        self._dropping: asyncio.Task[None] | None = None
        self.messages = 0

    async def start(self) -> None:
        """Open the file. Where that fails the spool starts closed, and `tend` tries again: the broker may be well.

        Raises:
            StartError: the folder cannot be created, or another process uses the file: waiting mends neither.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StartError(
                f"The folder {self._folder} of the spool cannot be created ({error}). Set WAVEKEEP_DATA_DIR to one"
                " that can, or WAVEKEEP_SPOOL=false."
            ) from error
        await self._look()
        file = self._open_file()
        try:
            await file.start()
            await self._weigh(file)
        except InUseError:
            raise
        except (StartError, BrokerError) as error:
            await file.close()
            self._fail(Reason.STORAGE_FAILED, str(error))
        else:
            self._file, self._closed = file, None

    async def close(self) -> None:
        """Let go of the file; what waits stays in it. Idempotent."""
        self._let_go()
        if self._dropping is not None:
            await asyncio.wait({self._dropping}, timeout=SPOOL_TIMEOUT_S)

    @property
    def is_open(self) -> bool:
        """Whether the disk is trusted with more."""
        return self._closed is None

    @property
    def takes(self) -> bool:
        """Whether it would take a message now."""
        return self.is_open and not self._lacks(0)

    @property
    def forgets(self) -> bool:
        """Whether nothing that was moved on is still on disk."""
        return not self._moved

    async def keep(self, exchange: str, routing_key: str, body: bytes, event_id: str) -> None:
        """Commit one message.

        Raises:
            BrokerError: `storage_full` or `storage_failed`; after a failure the message may be there all the same.
        """
        file = self._file
        if file is None or self._closed is not None:
            raise BrokerError(self._closed or Reason.STORAGE_FAILED, "the broker does not confirm; the spool is closed")
        if lacking := self._lacks(len(body)):
            raise BrokerError(Reason.STORAGE_FULL, f"the broker does not confirm, and {lacking}")
        self._count(1, len(body))
        self._room_bytes -= _COPIES * (len(body) + _ROW_BYTES)
        try:
            await file.publish(exchange, routing_key, body, event_id=event_id)
        except BrokerError as error:
            full = error.reason == Reason.STORAGE_FULL
            if full:
                self._count(-1, -len(body))
            self._lose(file, error)
            reason = Reason.STORAGE_FULL if full else Reason.STORAGE_FAILED
            raise BrokerError(reason, f"the spool did not take it: {error.detail}") from error
        self._metrics.spooled.inc()
        self._heed(file)

    async def page(self, after: Position = FIRST) -> tuple[list[Kept], Position | None]:
        """Return some of what waits, oldest first, and where to read on; None at the end, or where nothing can be read.

        A file that cannot be read must not keep anybody from the broker: it is told, and read again later.
        """
        if self._file is None:
            return [], None
        try:
            found, following = await _in_time(self._file.page(SPOOL, after, _PAGE))
        except BrokerError as error:
            self._tell_unreadable(error)
            return [], None
        return [kept for kept in found if kept.id not in self._moved], following if found else None

    async def forget(self, moved: Sequence[Kept]) -> None:
        """Forget what was moved on: at once here, and on disk when that can be written.

        What could not be deleted is not given out again, unless the file is opened anew.
        """
        self._moved |= dict.fromkeys(kept.id for kept in moved)
        self._count(-len(moved), -sum(len(kept.body) for kept in moved))
        self._metrics.relayed.inc(len(moved))
        await self._delete()

    async def tend(self) -> None:
        """Take it back into use where the disk works again, and delete what could not be deleted before."""
        if self._file is not None:
            self._heed(self._file)
        try:
            if self._file is None:
                if self._dropping is None or self._dropping.done():
                    await self._reopen()
            elif self._closed is not None and self._lacks(0) is None:
                await self._take_again(self._file)
        except (BrokerError, StartError) as error:
            self._fail(Reason.STORAGE_FAILED, str(error))
        await self._delete()

    async def keep_looking(self) -> None:
        """Look at the room that is left, for ever, about once a second: a disk that hangs holds up this alone."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._look()

    async def show(self) -> None:
        """Tell the metrics; of a file that cannot be read, what was known last."""
        self._metrics.messages.set(self.messages)
        self._metrics.bytes.set(self._bytes)
        self._metrics.open.set(self.is_open)
        if not self.messages:
            self._oldest = None
        elif self._file is not None:
            self._oldest = await _in_time(self._file.oldest(SPOOL)) or self._oldest
        self._metrics.oldest.set(self._oldest or 0)

    def _lacks(self, size: int) -> str | None:
        """Return what a message of this size would not fit into; None where it fits."""
        if self.messages >= self._max_messages or self._bytes + size > self._max_bytes:
            return "the spool is full (WAVEKEEP_SPOOL_MAX_MESSAGES, WAVEKEEP_SPOOL_MAX_BYTES)"
        if self._room_bytes < _COPIES * (size + _ROW_BYTES):
            return "the spool's disk is full but for its reserve (WAVEKEEP_SPOOL_RESERVE_BYTES)"
        return None

    def _count(self, messages: int, size: int) -> None:
        self.messages, self._bytes = self.messages + messages, self._bytes + size
        self._metrics.messages.set(self.messages)

    async def _look(self) -> None:
        """See how much may be written: what is free on the disk and within the file, but for the reserve."""
        try:
            found = await asyncio.to_thread(os.statvfs, self._folder)
            within = 0 if self._file is None else await self._file.unused_bytes()
        except (OSError, BrokerError) as error:  # then it shows in the next commit too, to whoever waits for it
            log.warning("spool.disk_unseen", detail=str(error))
            return
        default = min(DEFAULT_RESERVE_BYTES, int(found.f_blocks * found.f_frsize * DEFAULT_RESERVE_SHARE))
        reserve = default if self._reserve_bytes is None else self._reserve_bytes
        self._room_bytes = found.f_bavail * found.f_frsize + within - reserve

    async def _delete(self) -> None:
        """Delete from disk what was moved on, in small groups: each needs a little room."""
        file = self._file
        while file is not None and file is self._file and self._moved:
            group = list(self._moved)[:_PAGE]
            try:
                await _in_time(file.forget(SPOOL, group))
            except BrokerError as error:
                self._lose(file, error)
                if error.reason == Reason.STORAGE_FULL:
                    await file.fold()
                return
            for message_id in group:
                self._moved.pop(message_id, None)
            self._heed(file)

    async def _reopen(self) -> None:
        """Open the file anew. It takes again once a probe was read; where only room is missing, it still gives out."""
        file = self._open_file()
        closed = None
        try:
            await file.start()
            try:
                await _probe(file)
            except BrokerError as error:
                if error.reason != Reason.STORAGE_FULL:
                    raise
                closed = error
            await self._weigh(file)
        except BaseException:
            await file.close()
            raise
        self._moved.clear()  # another file may lie there now, whose rows have the same ids
        self._file = file
        if closed is None:
            self._reopened()
        else:
            self._fail(Reason.STORAGE_FULL, closed.detail)

    async def _take_again(self, file: EmbeddedBroker) -> None:
        try:
            await _probe(file)
        except BrokerError as error:
            self._lose(file, error)
        else:
            self._reopened()

    async def _weigh(self, file: EmbeddedBroker) -> None:
        """Count what a newly opened file holds; from then on it is counted as it comes and goes."""
        self.messages, self._bytes = await file.weight(SPOOL)

    def _reopened(self) -> None:
        self._closed, self._told = None, ""
        log.warning("spool.reopened", waiting=self.messages)

    def _heed(self, file: EmbeddedBroker) -> None:
        """Trust a disk no more that failed for anybody, though it took what followed."""
        if file.disk_errors:
            self._lose(file, BrokerError(Reason.STORAGE_FAILED, "the disk failed in a commit"))

    def _lose(self, file: EmbeddedBroker, error: BrokerError) -> None:
        """Take no more after an error; keep the file open only where nothing but room was missing."""
        if self._file is not file:
            return
        if error.reason == Reason.STORAGE_FULL:
            self._fail(Reason.STORAGE_FULL, error.detail)
        else:
            self._fail(Reason.STORAGE_FAILED, error.detail)
            self._let_go()

    def _fail(self, reason: Reason, detail: str) -> None:
        """Close it for taking; say so once for each cause."""
        self._closed = reason
        self._metrics.open.set(0)
        self._metrics.failures.labels(str(reason)).inc()
        if detail != self._told:
            self._told = detail
            log.error(
                "spool.closed",
                reason=reason,
                detail=detail,
                waiting=self.messages,
                remedy="make room on, or mend, the disk of WAVEKEEP_DATA_DIR; delete nothing of the spool",
            )

    def _tell_unreadable(self, error: BrokerError) -> None:
        self._metrics.failures.labels(str(Reason.STORAGE_FAILED)).inc()
        log.error("spool.unreadable", detail=error.detail, waiting=self.messages)

    def _let_go(self) -> None:
        """Take the file out of use at once, and close it meanwhile: a disk that hangs must not hold up an answer."""
        file, self._file = self._file, None
        self._closed = self._closed or Reason.STORAGE_FAILED
        self._metrics.open.set(0)
        if file is not None:
            self._dropping = asyncio.create_task(file.close(), name="spool closes")


async def _in_time(asked: Awaitable[T]) -> T:
    """Ask the file, but not for longer than a commit may take: a disk that hangs must not hold up the relay either."""
    try:
        async with asyncio.timeout(SPOOL_TIMEOUT_S):
            return await asked
    except TimeoutError as error:
        raise BrokerError(Reason.STORAGE_FAILED, f"the disk did not answer within {SPOOL_TIMEOUT_S:g} s") from error


async def _probe(file: EmbeddedBroker) -> None:
    """Commit a row, read it again, delete it."""
    await file.publish(PROBE, PROBE, b"probe", event_id="probe")
    found = [kept.id async for kept in file.kept(PROBE)]
    if not found:
        raise BrokerError(Reason.STORAGE_FAILED, "a committed row was not there to be read")
    await file.forget(PROBE, found)
