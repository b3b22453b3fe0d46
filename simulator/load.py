"""A steady load: so many conversions a second, for so long.

Responsible for: making them at their times, however late the loop is, and telling how far it has come. It must not wait
for answers: a slow receiver must not slow the load down (that would hide its slowness).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from simulator.bodies import sha256_of
from simulator.callbacks import Caller
from simulator.conversions import Conversions
from simulator.plan import FilePlan, Load, Plan

_TICK_S = 0.005

_log = structlog.get_logger("simulator")


class Progress(msgspec.Struct, kw_only=True):
    """How far the loads have come.

    Attributes:
        planned: conversions of all loads so far.
        made: of them.
        latest_s: the most that one conversion was made after its time.
    """

    planned: int = 0
    made: int = 0
    latest_s: float = 0.0

    @property
    def to_make(self) -> int:
        """How many are still to come."""
        return self.planned - self.made


class Loads:
    """Runs loads in the background.

    Args:
        conversions: makes each conversion.
        caller: calls it back.
        seed: of the mix of vendors and the contents; None means random.
        monotonic: returns seconds of a clock that never steps.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        conversions: Conversions,
        caller: Caller,
        *,
        seed: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._conversions = conversions
        self._caller = caller
        self._random = random.Random(seed)
        self._monotonic = monotonic
        self._sleep = sleep
        self._tasks: set[asyncio.Task[None]] = set()
        self.progress = Progress()

    def begin(self, load: Load) -> int:
        """Begin a load, and return how many conversions it makes.

        Raises:
            ValueError: a vendor has no address to call back, or there can be no such file.
        """
        plans = self._plans(load)
        for vendor_plans in plans:
            self._conversions.check(vendor_plans[0], callback_url=load.callback_url)
        self.progress.planned += load.conversions
        task = asyncio.create_task(self._run(load, plans))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return load.conversions

    async def drop(self) -> None:
        """Make nothing more, and count from nothing again."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.progress = Progress()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("load.crashed", exc_info=error)

    def _plans(self, load: Load) -> list[list[Plan]]:
        """Return for each vendor one plan a content; conversions share them."""
        seeds = [self._random.getrandbits(32) for _ in range(load.distinct_files)]
        return [
            [
                Plan(
                    vendor=vendor,
                    copies=load.copies,
                    files=(FilePlan(flavour=load.flavour, size_bytes=load.size_bytes, seed=seed),),
                )
                for seed in seeds
            ]
            for vendor, weight in load.vendors.items()
            if weight
        ]

    async def _run(self, load: Load, plans: list[list[Plan]]) -> None:
        await asyncio.to_thread(_warm, plans)
        weights = [weight for weight in load.vendors.values() if weight]
        started = self._monotonic()
        for number in range(load.conversions):
            due = started + number / load.rate_per_s
            while (early_s := due - self._monotonic()) > 0:
                await self._sleep(max(early_s, _TICK_S))
            self.progress.latest_s = max(self.progress.latest_s, -early_s)
            (vendor_plans,) = self._random.choices(plans, weights)
            plan = self._random.choice(vendor_plans)
            self._caller.call(self._conversions.make(plan, callback_url=load.callback_url))
            self.progress.made += 1
            if not number % 20:
                await self._sleep(0)


def _warm(plans: list[list[Plan]]) -> None:
    """Make each content once beforehand, so that no request has to wait for it."""
    for plan in plans[0]:
        sha256_of(plan.files[0])
