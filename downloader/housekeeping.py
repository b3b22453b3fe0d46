"""Housekeeping: what is done with files now and then, in one listing of the storage.

Responsible for: when it is done, and that a storage or broker that fails for a while is told and waited out, while the
service goes on. What is done is decided by `downloader.space`, `downloader.janitor` and `downloader.retention`.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Final

import structlog

from downloader.janitor import Found, Janitor
from downloader.metrics import DownloaderMetrics
from downloader.retention import Retention
from downloader.shelves import tasks
from downloader.space import Space
from downloader.storage import Storage
from shared.clock import Clock
from shared.errors import BrokerError, Reason, RetryableError
from shared.tasks import end

log = structlog.get_logger()

EVERY_S: Final = 3_600.0
AGAIN_AFTER_S: Final = 300.0
LOOK_EVERY_S: Final = 15.0

_JITTER: Final = 0.2


class Housekeeping:
    """Keeps the house in order while the service runs.

    Args:
        executor: runs what blocks.
        every_s: from one round to the next, about.
        look_every_s: from one look at disks and storage to the next, and how long the storage may take to answer.

    Attributes:
        storage_answers: whether storage and staging could be asked when they were last looked at, up to 15 s ago.
    """

    def __init__(
        self,
        *,
        space: Space,
        janitor: Janitor,
        retention: Retention,
        storage: Storage,
        executor: Executor,
        metrics: DownloaderMetrics,
        clock: Clock,
        every_s: float = EVERY_S,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._space = space
        self._janitor = janitor
        self._retention = retention
        self._storage = storage
        self._executor = executor
        self._metrics = metrics
        self._clock = clock
        self._every_s = every_s
        self._look_every_s = look_every_s
        self._asking: asyncio.Task[bool] | None = None
        self.storage_answers = True

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Do rounds while the context is open, the first one at once; staging and storage have been started."""
        working = {
            asyncio.create_task(self._again_and_again(self._rounds), name="housekeeping"),
            asyncio.create_task(self._again_and_again(self.look), name="free space"),
        }
        try:
            yield
        finally:
            await end(*working, *([self._asking] if self._asking else ()))

    async def round(self) -> None:
        """Do one round: sweep, list, count, tell orphans, let go what is due, record the plan.

        Safe to cancel and to repeat; several replicas may do one at the same time.

        Raises:
            RetryableError: storage or broker failed; the next round begins anew.
        """
        now = self._clock()
        loop = asyncio.get_running_loop()
        self._metrics.swept.inc(await loop.run_in_executor(self._executor, self._janitor.sweep))
        await self._janitor.sweep_uploads()
        found = Found()
        with self._space.counting():
            await self._look_at_all(found, now)
        self._janitor.tell(found)
        await self._retention.end()
        self._metrics.keeping.last_round.set(self._clock().timestamp())

    async def _look_at_all(self, found: Found, now: datetime) -> None:
        kept_bytes = 0
        await self._retention.begin()
        async with aclosing(tasks(self._storage)) as found_tasks:
            async for task in found_tasks:
                gone_bytes = 0
                try:
                    await self._janitor.look(task, found, now=now)
                    gone_bytes = await self._retention.look(task)
                except BrokerError:
                    raise
                except RetryableError as error:  # one object that cannot be read must not end the rounds of all others
                    log.warning(
                        "housekeeping.task_failed", task=task.names.stem, reason=error.reason, detail=error.detail
                    )
                self._space.freed(gone_bytes)
                kept_bytes += (
                    sum(entry.size_bytes for entry in task.bodies if not self._space.is_own(entry.key)) - gone_bytes
                )
        self._space.counted(kept_bytes)

    async def _rounds(self) -> float:
        """Do a round, and return how long to wait for the next one."""
        rounds = self._metrics.keeping.rounds
        try:
            await self.round()
        except RetryableError as error:
            rounds.labels("failed").inc()
            log.warning("housekeeping.failed", reason=error.reason, detail=error.detail)
            return AGAIN_AFTER_S
        except Exception:
            rounds.labels("crashed").inc()
            raise
        rounds.labels("done").inc()
        # replicas that started together should not go on listing together
        return self._every_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret

    async def look(self) -> float:
        """Look at what is free, and whether the storage answers; return when to look again, in seconds.

        One that hangs is asked once: each question more would take one more thread.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="storage")
        await asyncio.wait({self._asking}, timeout=self._look_every_s)
        if not self._asking.done():
            log.warning("storage.unreachable", detail="it does not answer")
            self.storage_answers = False
            return 0.0
        asked, self._asking = self._asking, None
        self.storage_answers = False  # also where a fault of ours is raised now
        self.storage_answers = asked.result()
        return self._look_every_s

    async def _ask(self) -> bool:
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._space.look)
            await self._storage.ask()
        except RetryableError as error:  # the next attempt at a file tells the same
            if error.reason is Reason.STORAGE_FULL:  # it answers, and has alarms of its own
                return True
            log.warning("storage.unreachable", reason=error.reason, detail=error.detail)
            return False
        return True

    async def _again_and_again(self, work: Callable[[], Awaitable[float]]) -> None:
        while True:
            try:
                wait_s = await work()
            except Exception:
                log.exception("housekeeping.crashed")
                wait_s = self._every_s
            await asyncio.sleep(wait_s)
