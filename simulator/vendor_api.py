"""The vendors' API: submit a conversion, ask about one.

Responsible for: `/{vendor}/api/v1/...` with its key, its codes (most of them under HTTP 200) and its limit of requests,
spelt as each vendor does. It must not call back or serve files itself.
Source: the vendors' pages on WAV generation and record-info.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from shared.vendors import Vendor
from simulator.callbacks import Caller
from simulator.conversions import Conversions
from simulator.ledger import Conversion, Ledger
from simulator.plan import Plan, VendorManner
from simulator.record import State, job, record, state_of
from simulator.settings import Settings
from simulator.wire import answer, read

_VENDORS = "|".join(Vendor)
_NO_CREDITS = {Vendor.APIBOX: 429, Vendor.KIE: 402, Vendor.SUNOAPI: 429}
_TOO_FAST = {Vendor.APIBOX: (200, 430), Vendor.KIE: (429, 429), Vendor.SUNOAPI: (200, 430)}
"""HTTP status and code of an account that asks too often."""
_TELLS_EXISTING_TASK = frozenset({Vendor.APIBOX, Vendor.KIE})

Handler = Callable[[web.Request, Vendor], Awaitable[web.Response]]
Spelling = Callable[[Conversion, State, str | None], dict[str, Any]]


class _Submission(msgspec.Struct, rename="camel"):
    task_id: str
    audio_id: str
    call_back_url: str


class VendorApi:
    """Answers for all three vendors.

    Args:
        settings: the key and the limit.
        ledger: finds tasks.
        conversions: makes what is submitted.
        caller: calls it back.
        monotonic: returns seconds of a clock that never steps.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        conversions: Conversions,
        caller: Caller,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._conversions = conversions
        self._caller = caller
        self._monotonic = monotonic
        self._sleep = sleep
        self._requests: dict[Vendor, deque[float]] = {vendor: deque() for vendor in Vendor}
        self._manners: dict[Vendor, VendorManner] = {}
        self._submitted: dict[Vendor, int] = dict.fromkeys(Vendor, 0)

    def routes(self) -> list[web.RouteDef]:
        """Return what this serves."""
        base = f"/{{vendor:{_VENDORS}}}/api/v1"
        return [
            web.post(f"{base}/wav/generate", self._guarded(self._submit)),
            web.get(f"{base}/wav/record-info", self._guarded(self._record)),
            web.get("/{vendor:kie}/api/v1/jobs/recordInfo", self._guarded(self._job)),
            web.put(f"/control/vendors/{{vendor:{_VENDORS}}}", self.tell),
        ]

    def forget(self) -> None:
        """Behave, and count credits and requests from nothing again."""
        self._manners.clear()
        self._submitted = dict.fromkeys(Vendor, 0)
        for moments in self._requests.values():
            moments.clear()

    async def tell(self, request: web.Request) -> web.Response:
        """Say how a vendor's API behaves from now on."""
        vendor = Vendor(request.match_info["vendor"])
        manner = await read(request, VendorManner)
        if manner.plan is not None:
            self._conversions.check(manner.plan, callback_url="told at submission")
        self._manners[vendor] = manner
        self._submitted[vendor] = 0
        return answer(manner)

    def _guarded(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Put what is the same for every request in front: manner, key and limit."""

        async def handle(request: web.Request) -> web.Response:
            vendor = Vendor(request.match_info["vendor"])
            manner = self._manners.get(vendor, VendorManner())
            if manner.delay_s:
                await self._sleep(manner.delay_s)
            if manner.http_status is not None:
                return web.Response(status=manner.http_status)
            if manner.fail_code is not None:
                return _coded(manner.fail_code, "Maintenance" if manner.fail_code == 455 else "Error")
            if request.headers.get("Authorization") != f"Bearer {self._settings.api_key}":
                return _coded(401, "Unauthorized")
            if self._too_fast(vendor):
                status, code = _TOO_FAST[vendor]
                return _coded(code, "Your call frequency is too high. Please try again later.", status=status)
            return await handler(request, vendor)

        return handle

    def _too_fast(self, vendor: Vendor) -> bool:
        now, moments = self._monotonic(), self._requests[vendor]
        while moments and now - moments[0] >= self._settings.rate_window_s:
            moments.popleft()
        if len(moments) >= self._settings.rate_limit:
            return True
        moments.append(now)
        return False

    async def _submit(self, request: web.Request, vendor: Vendor) -> web.Response:
        try:
            wanted = await read(request, _Submission)
        except msgspec.DecodeError:
            return _coded(400, "taskId, audioId and callBackUrl are required")
        if not (wanted.task_id and wanted.audio_id and wanted.call_back_url):
            return _coded(400, "taskId, audioId and callBackUrl must not be empty")
        source = (wanted.task_id, wanted.audio_id)
        existing = self._ledger.sources.get((vendor, *source))
        if existing is not None:
            data = {"taskId": existing.task_id} if vendor in _TELLS_EXISTING_TASK else None
            return _coded(409, "A WAV record already exists for this track", data)
        manner = self._manners.get(vendor, VendorManner())
        if manner.credits is not None and self._submitted[vendor] >= manner.credits:
            return _coded(_NO_CREDITS[vendor], "Insufficient credits")
        plan = msgspec.structs.replace(manner.plan or Plan(vendor=vendor), vendor=vendor, task_id=None)
        conversion = self._conversions.make(plan, callback_url=wanted.call_back_url, source=source)
        self._submitted[vendor] += 1
        self._caller.call(conversion)
        return _coded(200, "success", {"taskId": conversion.task_id})

    async def _record(self, request: web.Request, vendor: Vendor) -> web.Response:
        return self._tell_state(request, vendor, record)

    async def _job(self, request: web.Request, vendor: Vendor) -> web.Response:
        return self._tell_state(request, vendor, job)

    def _tell_state(self, request: web.Request, vendor: Vendor, spelling: Spelling) -> web.Response:
        conversion = self._ledger.conversions.get((vendor, request.query.get("taskId", "")))
        state = state_of(conversion) if conversion is not None else None
        if conversion is None or state is None:
            return _coded(404, "Task not found")
        url = self._conversions.link(state.file) if state.file is not None else None
        return _coded(200, "success", spelling(conversion, state, url))


def _coded(code: int, message: str, data: dict[str, Any] | None = None, *, status: int = 200) -> web.Response:
    return answer({"code": code, "msg": message, "data": data}, status)
