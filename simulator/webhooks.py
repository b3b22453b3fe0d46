"""A receiver of webhooks, for tests and the demo.

Responsible for: recording every delivery as it came, byte for byte, and answering as told. It must not verify
signatures: whoever reads the record does, with a library of another hand.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from aiohttp import web

from simulator.conversions import utc_now
from simulator.ledger import Delivery, Ledger
from simulator.plan import WebhookManner
from simulator.wire import answer, read


class Webhooks:
    """Receives deliveries under any name.

    Args:
        ledger: keeps the deliveries.
        clock: returns the present, aware.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._sleep = sleep
        self._manners: dict[str, WebhookManner] = {}
        self._left: dict[str, int | None] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return what this serves."""
        return [
            web.post("/webhooks/{name}", self.receive),
            web.get("/control/webhooks/{name}", self.show),
            web.post("/control/webhooks/{name}", self.tell),
        ]

    def forget(self) -> None:
        """Answer 200 everywhere again."""
        self._manners.clear()
        self._left.clear()

    async def receive(self, request: web.Request) -> web.Response:
        """Record one delivery and answer it as told."""
        name = request.match_info["name"]
        content = await request.read()
        delivery = Delivery(
            received_at=self._clock(),
            webhook_id=request.headers.get("webhook-id"),
            webhook_timestamp=request.headers.get("webhook-timestamp"),
            webhook_signature=request.headers.get("webhook-signature"),
            headers={key.lower(): value for key, value in request.headers.items()},
            body=content.decode("utf-8", "replace"),
            body_base64=content,
        )
        self._ledger.deliveries.setdefault(name, []).append(delivery)
        manner = self._next(name)
        if manner.delay_s:
            await self._sleep(manner.delay_s)
        if manner.hang:
            await asyncio.Event().wait()
        delivery.status = manner.status
        told = {"Retry-After": manner.retry_after, "Location": manner.location}
        return web.Response(status=manner.status, headers={key: value for key, value in told.items() if value})

    async def show(self, request: web.Request) -> web.Response:
        """List the deliveries under a name, oldest first."""
        return answer({"deliveries": self._ledger.deliveries.get(request.match_info["name"], [])})

    async def tell(self, request: web.Request) -> web.Response:
        """Say how the next deliveries under a name are answered."""
        name = request.match_info["name"]
        manner = await read(request, WebhookManner)
        self._manners[name] = manner
        self._left[name] = manner.times
        return answer(manner)

    def _next(self, name: str) -> WebhookManner:
        left = self._left.get(name)
        if left == 0 or name not in self._manners:
            return WebhookManner()
        if left is not None:
            self._left[name] = left - 1
        return self._manners[name]
