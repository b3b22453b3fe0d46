"""Receivers of webhooks on loopback, and events to send them.

Responsible for: taking deliveries as they come and answering as told. It must not verify anything: tests do.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from aiohttp import web

from shared import events
from shared.errors import Reason
from shared.events import ConversionRejected, Event, ReportUnrecognised
from shared.operations import serving
from shared.vendors import Vendor

HANG = 0
"""As a status: no answer at all."""

REDIRECT = 307


class Receiver:
    """Keeps what it is sent; answers each with the next status, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses or (200,))
        self.port = 0
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []

    async def take(self, request: web.Request) -> web.Response:
        """Take one delivery."""
        self.taken.append((dict(request.headers), await request.read()))
        self.paths.append(request.path_qs)
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        if status == HANG:
            await asyncio.Event().wait()
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == REDIRECT else {})

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        """The webhook ids in order."""
        return [headers["webhook-id"] for headers, _ in self.taken]


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    """Run a receiver on a free port."""
    receiver = Receiver(*statuses)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.take)
    async with serving(app, "127.0.0.1", 0, shutdown_timeout_s=0.05) as receiver.port:
        yield receiver


def rejected(task_id: str = "task-1") -> ConversionRejected:
    """Return something worth telling."""
    return ConversionRejected(
        vendor=Vendor.APIBOX,
        task_id=task_id,
        reason=Reason.VENDOR_FAILED,
        detail="no luck",
        code=500,
        rejected_at=datetime(2026, 3, 1, tzinfo=UTC),
    )


def unrecognised(body: str) -> ReportUnrecognised:
    """Return an authentic callback that nobody could read."""
    return ReportUnrecognised(
        vendor=Vendor.KIE,
        task_id=None,
        explanation="no task id",
        body=body,
        received_at=datetime(2026, 3, 1, tzinfo=UTC),
        trust=("token",),
        body_sha256="0" * 64,
    )


def event(task_id: str = "task-1") -> Event:
    """Return an event as it is delivered."""
    return events.make(rejected(task_id), time=datetime.now(UTC))
