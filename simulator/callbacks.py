"""Calling back the way the vendors do.

Responsible for: running a conversion's steps, with copies and order as planned, and for each copy the vendor's habit:
a POST of JSON, 15 s to answer, exactly 200 expected, three retries after 1, 5 and 15 minutes, then silence for good.
Every attempt and its answer goes into the ledger. It must not judge what the receiver does with a callback.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import aiohttp
import structlog

from simulator.conversions import Conversions, utc_now
from simulator.ledger import Attempt, Conversion
from simulator.payloads import USUAL_FAILURE, USUAL_SHAPE, Said, body, signed_headers
from simulator.plan import Step
from simulator.settings import Settings

RETRY_INTERVALS_S = (60.0, 300.0, 900.0)

_log = structlog.get_logger("simulator")


class Caller:
    """Sends callbacks; one task a conversion.

    Args:
        settings: time-out, scale of the intervals, signing key.
        conversions: gives out links.
        clock: returns the present, aware.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        settings: Settings,
        conversions: Conversions,
        *,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._conversions = conversions
        self._clock = clock
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.pending = 0

    async def start(self) -> None:
        """Open the connections' pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1_000),
            timeout=aiohttp.ClientTimeout(total=self._settings.callback_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def stop(self) -> None:
        """Drop what is still to be sent, and close every connection."""
        await self.drop()
        if self._session is not None:
            await self._session.close()

    async def drop(self) -> None:
        """Send nothing more of what was begun."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.pending = 0

    def call(self, conversion: Conversion) -> None:
        """Begin the steps of a conversion in the background."""
        self.pending += sum(step.copies or conversion.plan.copies for step in conversion.plan.steps)
        task = asyncio.create_task(self._run(conversion))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("conversion.crashed", exc_info=error)

    async def _run(self, conversion: Conversion) -> None:
        plan = conversion.plan
        await self._wait(plan.delay_s)
        answered: list[asyncio.Event] = []
        async with asyncio.TaskGroup() as copies:
            for index, step in enumerate(plan.steps):
                if step.after_answer:
                    await asyncio.gather(*(event.wait() for event in answered))
                await self._wait(step.delay_s)
                conversion.steps_begun = index + 1
                conversion.completed_at = self._clock()
                answered = [asyncio.Event() for _ in range(step.copies or plan.copies)]
                file = conversion.files[step.file]
                url = self._conversions.link(file, fresh=step.fresh_link) if step.outcome == "succeeded" else None
                for copy, event in enumerate(answered):
                    copies.create_task(self._deliver(conversion, index, copy, url, event))
        conversion.completed_at = conversion.completed_at or self._clock()
        conversion.finished = True

    async def _deliver(
        self, conversion: Conversion, index: int, copy: int, url: str | None, answered: asyncio.Event
    ) -> None:
        step = conversion.plan.steps[index]
        said = _said(conversion, step, url)
        shape = step.shape or conversion.plan.shape or USUAL_SHAPE[conversion.vendor]
        sign = step.sign or conversion.plan.sign
        content = body(shape, said)
        key = self._settings.hmac_key if conversion.vendor == "kie" else None
        headers: dict[str, str] = {}
        for number in range(1, len(RETRY_INTERVALS_S) + 2):
            if number > 1:
                await self._sleep(RETRY_INTERVALS_S[number - 2] * self._settings.retry_scale)
            now = self._clock()
            if number == 1 or step.sign_retries_anew:
                headers = signed_headers(sign, key, conversion.task_id, now.timestamp())
            attempt = Attempt(
                step=index,
                copy=copy,
                attempt=number,
                outcome=step.outcome,
                shape=shape,
                code=said.code,
                url=url,
                sign=sign,
                body_sha256=hashlib.sha256(content).hexdigest(),
                sent_at=now,
            )
            conversion.callbacks.append(attempt)
            await self._post(attempt, conversion.callback_url or "", content, headers)
            answered.set()
            if attempt.status == 200:
                break
        else:
            conversion.given_up = True
        self.pending -= 1

    async def _post(self, attempt: Attempt, url: str, content: bytes, headers: dict[str, str]) -> None:
        """Send one POST and enter its answer. A connection that never came about is `refused`."""
        assert self._session is not None
        started = time.monotonic()
        all_headers = {"Content-Type": "application/json", **headers}
        try:
            async with self._session.post(url, data=content, headers=all_headers, allow_redirects=False) as response:
                attempt.status = response.status
                attempt.answered_ms = round((time.monotonic() - started) * 1_000, 3)
                await response.content.read(65_536)
        except TimeoutError:
            attempt.error = "timed_out"
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL):
            attempt.error = "refused"
        except (aiohttp.ClientError, OSError):
            attempt.error = "disconnected"

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)


def _said(conversion: Conversion, step: Step, url: str | None) -> Said:
    """Return what a step says; the vendor's usual code and text where it names none."""
    code, message = (200, "success") if step.outcome == "succeeded" else USUAL_FAILURE[conversion.vendor]
    return Said(
        task_id=conversion.task_id,
        code=code if step.code is None else step.code,
        message=message if step.message is None else step.message,
        url=url,
        at=conversion.completed_at or conversion.created_at,
    )
