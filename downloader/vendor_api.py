"""Asking a vendor about a task.

Responsible for: the request with its key, its bounds (time, size, rate), and kie's newer form as the second try. It
never raises because of a vendor: a vendor that is down, slow or odd, and a spent budget, only mean that there is no
answer now. It must not judge the answer (`downloader.record`), nor fetch what it links to.

The key goes to the configured base and nowhere else: no redirect is followed, no proxy is taken from the environment.
No word of a vendor's is logged, because it may quote the key.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp
import structlog

from downloader.account import Account
from downloader.budget import Budget
from downloader.metrics import DownloaderMetrics
from downloader.record import Answer, Outcome, read
from shared.operations import product_version
from shared.vendors import Vendor

log = structlog.get_logger()

ANSWER_WITHIN_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 64 * 1024
ASK_AGAIN_AFTER_S: Final = 30.0
"""The vendors want to be asked about one task no more often than this; until then the latest answer holds."""
WORTH_WAITING_S: Final = 8.0
"""An answer without a link that holds no longer than this is waited out: who comes back by the ladder's rung of 30 s,
less its jitter, wants a new one."""

_RECORD_INFO: Final = "/api/v1/wav/record-info"
_JOB_RECORD: Final = "/api/v1/jobs/recordInfo"
_FORMS: Final[Mapping[Vendor, tuple[str, ...]]] = {
    Vendor.APIBOX: (_RECORD_INFO,),
    Vendor.KIE: (_RECORD_INFO, _JOB_RECORD),
    Vendor.SUNOAPI: (_RECORD_INFO,),
}
"""Where to ask, in order; the next one only where a vendor does not know the task."""

_UNEXPECTED: Final = frozenset({Outcome.FAILED, Outcome.REFUSED, Outcome.MALFORMED})
"""Outcomes that time does not mend."""


class VendorApi:
    """The client. Building it touches no network; it is used within its context.

    Args:
        accounts: of the vendors that can be asked.
        metrics: counts the questions.
        monotonic: returns seconds of a clock that never steps.
        answer_within_s: for one request, from the name to the end of the body.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        accounts: Mapping[Vendor, Account],
        *,
        metrics: DownloaderMetrics,
        monotonic: Callable[[], float] = time.monotonic,
        answer_within_s: float = ANSWER_WITHIN_S,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._accounts = accounts
        self._metrics = metrics
        self._monotonic = monotonic
        self._answer_within_s = answer_within_s
        self._sleep = sleep
        self._budgets = {vendor: Budget(account.per_10_s, monotonic=monotonic) for vendor, account in accounts.items()}
        self._latest: dict[tuple[Vendor, str], tuple[float, Answer]] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        for vendor, account in self._accounts.items():
            if not account.base.startswith("https://"):
                log.warning("vendor_api.unencrypted", vendor=vendor, base=account.base)
        self._session = aiohttp.ClientSession(
            headers={
                "User-Agent": f"wavekeep/{product_version()}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._answer_within_s),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, vendor: Vendor, task_id: str) -> Answer | None:
        """Ask about a task; None where no key is configured. Takes half a minute at most. Safe to cancel."""
        account = self._accounts.get(vendor)
        if account is None:
            return None
        latest, holds_s = self._remembered(vendor, task_id)
        if latest is not None:
            if latest.outcome is Outcome.READY or holds_s > WORTH_WAITING_S:
                return latest
            await self._sleep(holds_s)
        for path in _FORMS[vendor]:
            answer = await self._request(vendor, account, path, task_id)
            if answer.outcome is not Outcome.UNKNOWN:
                break
        if answer.outcome is not Outcome.HELD_BACK:
            self._latest[vendor, task_id] = (self._monotonic(), answer)
        self._metrics.questions.labels(str(vendor), str(answer.outcome)).inc()
        tell = log.warning if answer.outcome in _UNEXPECTED else log.info
        tell("vendor.asked", vendor=vendor, outcome=answer.outcome, code=answer.code)
        return answer

    def _remembered(self, vendor: Vendor, task_id: str) -> tuple[Answer | None, float]:
        """Return the latest answer about a task and how long it still holds; forget all that no longer do."""
        now = self._monotonic()
        self._latest = {task: told for task, told in self._latest.items() if now - told[0] < ASK_AGAIN_AFTER_S}
        asked_at, answer = self._latest.get((vendor, task_id), (now, None))
        return answer, asked_at + ASK_AGAIN_AFTER_S - now

    async def _request(self, vendor: Vendor, account: Account, path: str, task_id: str) -> Answer:
        if self._session is None:
            raise RuntimeError("the client was not started")
        budget = self._budgets[vendor]
        if not budget.take():
            return Answer(Outcome.HELD_BACK)
        try:
            async with self._session.get(
                f"{account.base}{path}",
                params={"taskId": task_id},
                headers={"Authorization": f"Bearer {account.key.get_secret_value()}"},
                allow_redirects=False,
            ) as response:
                body = await _read_bounded(response)
        except (aiohttp.ClientError, OSError, RuntimeError):  # RuntimeError: the line was lost before we read
            return Answer(Outcome.UNAVAILABLE)
        answer = Answer(Outcome.MALFORMED) if body is None else read(response.status, body, task_id=task_id)
        if answer.outcome is Outcome.THROTTLED:
            budget.halve()
        return answer


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the body; None where it is larger than any answer."""
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            return None
    return bytes(body)
