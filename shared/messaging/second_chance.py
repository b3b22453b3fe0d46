"""A second chance for what the broker itself took out of circulation.

Responsible for: looking now and then for messages that a queue's delivery limit parked, telling them, and sending each
back once, an hour later: the process may have died of something else, lack of memory say. It must not touch what a
consumer parked with a reason: a person decides about that.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import structlog
from prometheus_client import Gauge

from shared import tasks
from shared.clock import Clock, system_clock
from shared.errors import BrokerError, Reason
from shared.messaging.port import Broker, Kept
from shared.messaging.topology import parked_queue

log = structlog.get_logger()

AFTER: Final = timedelta(hours=1)
LOOK_EVERY_S: Final = 300.0
LOOK_THROUGH: Final = 2_000
"""Parked messages that one look goes through."""


class SecondChances:
    """Looks after the crash loops of one service.

    Args:
        service: whose parked queue it is, for example `wavekeep.downloader`.
        crash_loops: told how many of them are parked.
        after: how long a message stays parked before it is sent back.
    """

    def __init__(
        self,
        broker: Broker,
        service: str,
        *,
        crash_loops: Gauge,
        clock: Clock = system_clock,
        after: timedelta = AFTER,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._broker = broker
        self._queue = parked_queue(service)
        self._crash_loops = crash_loops
        self._clock = clock
        self._after = after
        self._look_every_s = look_every_s
        self._noticed: dict[str, datetime] = {}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Look again and again while the context is open."""
        looking = asyncio.create_task(self._run(), name=f"second chances {self._queue}")
        try:
            yield
        finally:
            await tasks.end(looking)

    async def look(self) -> None:
        """Look once: tell what is new, send back what has waited.

        Raises:
            BrokerError: the queue cannot be looked at now.
        """
        kept = [message async for message in self._broker.kept(self._queue, limit=LOOK_THROUGH)]
        found = [message for message in kept if message.reason is Reason.DELIVERY_LIMIT]
        self._crash_loops.set(len(found))
        now = self._clock()
        for message in found:
            if message.id not in self._noticed:
                log.error(
                    "message.parked",
                    queue=message.queue,
                    event_id=message.event_id,
                    reason=Reason.DELIVERY_LIMIT,
                    detail="handling it ended the process again and again",
                    sent_back_by_itself=not message.second_chance,
                )
        self._noticed = {message.id: self._since(message, now) for message in found}
        due = [m.id for m in found if not m.second_chance and now - self._noticed[m.id] >= self._after]
        if due:
            count = await self._broker.replay(self._queue, due, second_chance=True)
            log.warning("messages.second_chance", queue=self._queue, count=count)

    def _since(self, message: Kept, now: datetime) -> datetime:
        """Return when it was parked; where the broker does not say, when it was noticed."""
        return message.parked_at or self._noticed.get(message.id, now)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except BrokerError as error:  # readiness and its own alarm tell that; the next look is soon enough
                log.info("second_chance.put_off", queue=self._queue, reason=error.reason)
            except Exception:
                log.exception("second_chance.failed", queue=self._queue)
            await asyncio.sleep(self._look_every_s)
