"""Making conversions out of plans.

Responsible for: task ids, names of files, seeds and signed links, all from one random source, so that a run can be
repeated by its seed. It must not send or serve anything.
"""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

from shared.vendors import RETENTION_DAYS, Vendor
from simulator.bodies import size_of
from simulator.ledger import Conversion, Ledger, ServedFile
from simulator.plan import DEFAULT_SIZE_BYTES, FilePlan, Plan
from simulator.settings import Settings


def utc_now() -> datetime:
    """Return the present, aware."""
    return datetime.now(UTC)


class Conversions:
    """Makes conversions and their links.

    Args:
        settings: where callbacks go by default, and the seed.
        ledger: takes every conversion in.
        clock: returns the present, aware.
    """

    def __init__(self, settings: Settings, ledger: Ledger, clock: Callable[[], datetime] = utc_now) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._random = random.Random(settings.seed)
        self.base_url = settings.public_url

    def make(self, plan: Plan, *, callback_url: str | None = None, source: tuple[str, str] | None = None) -> Conversion:
        """Make one conversion and enter it in the ledger; nothing is sent yet.

        Args:
            plan: what it does.
            callback_url: where it calls back, if not where the plan or the settings say.
            source: music task and track, where it was submitted through the vendor's API.

        Raises:
            ValueError: it has no address to call back, its task id is taken, or a file cannot be as planned.
        """
        target = self.check(plan, callback_url=callback_url)
        conversion = Conversion(
            vendor=plan.vendor,
            task_id=plan.task_id or self._hex(32),
            plan=plan,
            created_at=self._clock(),
            callback_url=target,
            files=[self._file(plan.vendor, file) for file in plan.files],
            source=source,
        )
        self._ledger.add(conversion)
        return conversion

    def check(self, plan: Plan, *, callback_url: str | None = None) -> str | None:
        """Return where a plan would call back, without making anything.

        Raises:
            ValueError: as `make`.
        """
        for file in plan.files:
            size_of(_settled(file, seed=0))
        target = callback_url or plan.callback_url or self._settings.callback_urls.get(plan.vendor)
        if target is None and plan.steps:
            raise ValueError(f"no callback_url is given or configured for {plan.vendor}")
        if plan.task_id is not None and (plan.vendor, plan.task_id) in self._ledger.conversions:
            raise ValueError(f"{plan.vendor} has a task {plan.task_id[:80]!r} already")
        return target

    def link(self, file: ServedFile, *, fresh: bool = False) -> str:
        """Return the latest link to a file, or one signed anew."""
        if fresh or not file.links:
            signature = self._hex(40)
            expires = int(file.expires_at.timestamp())
            file.links[signature] = f"{self.base_url}/files/{file.name}?Expires={expires}&Signature={signature}"
        return next(reversed(file.links.values()))

    def _file(self, vendor: Vendor, plan: FilePlan) -> ServedFile:
        seed = plan.seed if plan.seed is not None else self._random.getrandbits(32)
        lives = timedelta(days=RETENTION_DAYS[vendor])
        if plan.link_expires_s is not None:
            lives = timedelta(seconds=plan.link_expires_s)
        prefix = "My Song_Lead Vocal " if plan.spaced_name else ""
        needs_agent = plan.requires_user_agent
        settled = _settled(plan, seed)
        file = ServedFile(
            name=f"{prefix}{self._hex(16)}.wav",
            plan=settled,
            size_bytes=size_of(settled),
            requires_user_agent=vendor is Vendor.KIE if needs_agent is None else needs_agent,
            expires_at=self._clock() + lives,
        )
        self.link(file)
        return file

    def _hex(self, digits: int) -> str:
        return f"{self._random.getrandbits(4 * digits):0{digits}x}"


def _settled(plan: FilePlan, seed: int) -> FilePlan:
    """Return the plan with nothing left open."""
    default_size = DEFAULT_SIZE_BYTES if plan.duration_s is None else None
    return msgspec.structs.replace(plan, seed=seed, size_bytes=plan.size_bytes or default_size)
