"""The control interface: whoever tests drives the vendor with it.

Responsible for: `/control/...` over HTTP and JSON: make conversions, begin a load, read and reset the ledger, ask what
is still to come. It must not be reachable by anyone else: it has no key, so the simulator listens on loopback.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

from shared.vendors import Vendor
from simulator.bodies import sha256_of
from simulator.callbacks import Caller
from simulator.conversions import Conversions
from simulator.ledger import Conversion, Ledger, export
from simulator.load import Loads
from simulator.plan import Load, Plan
from simulator.wire import answer, read


class Control:
    """Drives everything else.

    Args:
        ledger: what is read and reset.
        conversions: makes what is planned.
        caller: calls it back.
        loads: runs loads.
        forget: makes the rest behave again, at a reset.
    """

    def __init__(
        self, ledger: Ledger, conversions: Conversions, caller: Caller, loads: Loads, forget: Callable[[], None]
    ) -> None:
        self._ledger = ledger
        self._conversions = conversions
        self._caller = caller
        self._loads = loads
        self._forget = forget

    def routes(self) -> list[web.RouteDef]:
        """Return what this serves."""
        return [
            web.get("/control/health", self.health),
            web.post("/control/conversions", self.create),
            web.get("/control/ledger", self.ledger),
            web.delete("/control/ledger", self.reset),
            web.get("/control/pending", self.pending),
            web.post("/control/load", self.load),
        ]

    async def health(self, _: web.Request) -> web.Response:
        """Say that the simulator answers."""
        return answer({"status": "ok"})

    async def create(self, request: web.Request) -> web.Response:
        """Make the conversions of one plan or a list of plans, and begin to call them back."""
        wanted = await read(request, Plan | list[Plan])  # type: ignore[arg-type]  # a union is no class, but a type
        plans: list[Plan] = wanted if isinstance(wanted, list) else [wanted]
        named = [(plan.vendor, plan.task_id) for plan in plans if plan.task_id is not None]
        if len(named) != len(set(named)):
            raise ValueError("two plans name the same task")
        for plan in plans:
            self._conversions.check(plan)
        made = [self._conversions.make(plan) for plan in plans]
        for conversion in made:
            self._caller.call(conversion)
        return answer(
            {"task_ids": [each.task_id for each in made], "conversions": [_brief(each) for each in made]}, 201
        )

    async def ledger(self, request: web.Request) -> web.Response:
        """Show the whole ledger or the part asked for; digests take time, and can be left out."""
        vendor = Vendor(request.query["vendor"]) if "vendor" in request.query else None
        found = self._ledger.select(vendor=vendor, task_id=request.query.get("task_id"))
        digests: dict[str, str] = {}
        if request.query.get("digests") != "no":
            files = [file for each in found for file in each.files]
            digests = await asyncio.to_thread(lambda: {file.name: sha256_of(file.plan) for file in files})
        return answer({"conversions": export(found, digests), "webhooks": self._ledger.deliveries})

    async def reset(self, _: web.Request) -> web.Response:
        """Drop what is still to be sent, forget everything and behave again."""
        await self._loads.drop()
        await self._caller.drop()
        self._ledger.reset()
        self._forget()
        return web.Response(status=204)

    async def pending(self, _: web.Request) -> web.Response:
        """Say how many callbacks are still to be sent or retried, those of conversions yet to be made included."""
        progress = self._loads.progress
        return answer(
            {
                "pending": self._caller.pending + progress.to_make,
                "callbacks": self._caller.pending,
                "conversions_to_make": progress.to_make,
                "load": progress,
            }
        )

    async def load(self, request: web.Request) -> web.Response:
        """Begin a steady load in the background."""
        return answer({"conversions": self._loads.begin(await read(request, Load))}, 202)


def _brief(conversion: Conversion) -> dict[str, object]:
    links = [link for file in conversion.files for link in file.links.values()]
    return {"vendor": conversion.vendor, "task_id": conversion.task_id, "links": links}
