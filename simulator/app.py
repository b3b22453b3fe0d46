"""The simulator's composition root: one application, one port.

Responsible for: building the parts, introducing them to one another, and the life cycle build → start → stop. It must
not hold any behaviour of its own.
"""

from types import TracebackType
from typing import Self

from aiohttp import web

from simulator.callbacks import Caller
from simulator.control import Control
from simulator.conversions import Conversions
from simulator.files import Files
from simulator.ledger import Ledger
from simulator.load import Loads
from simulator.settings import Settings
from simulator.vendor_api import VendorApi
from simulator.webhooks import Webhooks
from simulator.wire import tell_mistakes

_SHUTDOWN_S = 0.2
"""Whoever is still being starved or dripped at the end is cut off after this."""
_CONTROL_BYTES = 64 * 1024 * 1024
_HEADER_BYTES = 64 * 1024


class Simulator:
    """A vendor on loopback. Building it touches no network.

    Args:
        settings: where it listens and how it calls back.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.ledger = Ledger()
        self._conversions = Conversions(self.settings, self.ledger)
        self._caller = Caller(self.settings, self._conversions)
        self._loads = Loads(self._conversions, self._caller, seed=self.settings.seed)
        vendors = VendorApi(self.settings, self.ledger, self._conversions, self._caller)
        webhooks = Webhooks(self.ledger)

        def forget() -> None:
            vendors.forget()
            webhooks.forget()

        control = Control(self.ledger, self._conversions, self._caller, self._loads, forget)
        app = web.Application(middlewares=[tell_mistakes], client_max_size=_CONTROL_BYTES)
        for part in (control, webhooks, Files(self.ledger), vendors):
            app.add_routes(part.routes())
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=_SHUTDOWN_S,
            max_field_size=_HEADER_BYTES,
            max_line_size=_HEADER_BYTES,
        )
        self.base_url = ""

    async def start(self) -> str:
        """Listen, and return the base URL. A failed start leaves nothing open."""
        try:
            await self._caller.start()
            await self._runner.setup()
            site = web.TCPSite(self._runner, self.settings.host, self.settings.port, backlog=1_024)
            await site.start()
        except BaseException:
            await self.stop()
            raise
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._conversions.base_url = self.settings.public_url or self.base_url
        return self.base_url

    async def stop(self) -> None:
        """Send nothing more, cut every connection, and close the port."""
        await self._loads.drop()
        await self._caller.stop()
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
