"""Retention: which files go, and when.

Responsible for: the plan, its record in storage, and acting on what was named a day before. It must not delete by
itself: `downloader.expiry` keeps the order.

A plan is one moment: what has been kept since before it goes. So its record is small, whatever it names. Each round
adds its moment to the record; what goes is what every plan of the last day named, one at least a day old among them:
a wrong setting names first, and can be corrected. Other rules begin a new record. Two replicas may do a round at the
same time: whichever record stays, it only names less.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec
import structlog

from downloader.expiry import Expiring
from downloader.keeping_metrics import RULES, KeepingMetrics, Rule
from downloader.shelves import Task
from downloader.storage import Storage
from shared.clock import Clock
from shared.errors import PermanentError

log = structlog.get_logger()

Mode = Literal["off", "report", "delete"]

RECORD: Final = ".retention.json"
NOTICE: Final = timedelta(hours=24)
LEAST_AGE: Final = timedelta(days=16)
"""Longer than any vendor keeps a file, calls back, or is asked about it."""

_STEP_S: Final = 3_600


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What lets files go; either or both.

    Attributes:
        max_age_days: kept for as long.
        max_bytes: kept at most; the oldest go first.
    """

    max_age_days: int | None
    max_bytes: int | None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What was kept since before `age` or `size` is named to go; null where that rule names nothing."""

    made_at: datetime
    age: datetime | None
    size: datetime | None

    @property
    def cutoff(self) -> datetime | None:
        """The later of both."""
        return max((moment for moment in (self.age, self.size) if moment is not None), default=None)

    def rule(self, kept_since: datetime) -> Rule | None:
        """Return the rule that names what is kept since then."""
        if self.age is not None and kept_since <= self.age:
            return "age"
        return "size" if self.size is not None and kept_since <= self.size else None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The plans that were made by these rules, oldest first."""

    version: Literal[1] = 1
    rules: Rules
    plans: tuple[Plan, ...] = ()

    def due(self, now: datetime) -> Plan | None:
        """Return what every plan of the last day named; None where none is a day old."""
        made_at = max((plan.made_at for plan in self.plans if plan.made_at <= now - NOTICE), default=None)
        if made_at is None:
            return None
        plans = [plan for plan in self.plans if plan.made_at >= made_at]
        return Plan(
            made_at=made_at,
            age=_earliest(plan.age for plan in plans),
            size=_earliest(plan.size for plan in plans),
        )

    def with_plan(self, plan: Plan) -> "Record":
        """Return the record with one more plan, without those that no longer count."""
        keep_from = max((p.made_at for p in self.plans if p.made_at <= plan.made_at - NOTICE), default=None)
        kept = (p for p in self.plans if keep_from is None or p.made_at >= keep_from)
        return msgspec.structs.replace(self, plans=(*kept, plan))


class Survey:
    """What a whole listing says about the age and size of what is kept. Memory grows with the hours, not the files."""

    def __init__(self) -> None:
        self._files: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()
        self._staying_bytes = 0

    def add(self, task: Task) -> None:
        """Take note of a task."""
        if task.manifest is None or not eligible(task):
            self._staying_bytes += task.size_bytes
            return
        step = math.ceil(task.manifest.modified_at.timestamp() / _STEP_S)
        self._files[step] += 1
        self._bytes[step] += task.size_bytes

    def plan(self, rules: Rules, now: datetime) -> Plan:
        """Return what these rules name now; by size, whole hours of files go."""
        age = None if rules.max_age_days is None else now - max(timedelta(days=rules.max_age_days), LEAST_AGE)
        size = None
        if rules.max_bytes is not None:
            excess = self._staying_bytes + self._bytes.total() - rules.max_bytes
            for step in sorted(self._files):
                moment = _moment(step)
                if excess <= 0 or moment > now - LEAST_AGE:
                    break
                size = moment
                excess -= self._bytes[step]
        return Plan(made_at=now, age=age, size=size)

    def named(self, plan: Plan) -> Mapping[Rule, tuple[int, int]]:
        """Return how many tasks each rule of a plan names, and how many bytes, up to its last whole hour."""
        found: dict[Rule, tuple[int, int]] = dict.fromkeys(RULES, (0, 0))
        for step, count in self._files.items():
            if rule := plan.rule(_moment(step)):
                files, size_bytes = found[rule]
                found[rule] = (files + count, size_bytes + self._bytes[step])
        return found


def eligible(task: Task) -> bool:
    """Tell whether a task's files may be named: they are there, announced, and nothing is begun that follows them."""
    there = task.manifest is not None and bool(task.bodies)
    return there and task.announced and not task.unsettled


class Retention:
    """Does the rounds of retention over one storage; `begin`, `look` at each task, `end`.

    Args:
        mode: `report` names only.
    """

    def __init__(
        self, *, mode: Mode, rules: Rules, storage: Storage, expiring: Expiring, metrics: KeepingMetrics, clock: Clock
    ) -> None:
        self._mode = mode
        self._rules = rules
        self._storage = storage
        self._expiring = expiring
        self._metrics = metrics
        self._clock = clock
        self._record = Record(rules=rules)
        self._due: Plan | None = None
        self._survey = Survey()

    async def begin(self) -> None:
        """Begin a round.

        Raises:
            RetryableError: the storage fails.
        """
        now = self._clock()
        self._survey = Survey()
        self._record = await read_record(self._storage, self._rules)
        self._due = self._record.due(now) if self._mode == "delete" else None

    async def look(self, task: Task) -> int:
        """Look at a task, let its files go if they are due; return how many bytes went.

        Raises:
            RetryableError: storage or broker failed.
        """
        if self._mode == "off":
            return 0
        gone_bytes = await self._expire(task)
        if not gone_bytes:
            self._survey.add(task)
        return gone_bytes

    async def end(self) -> None:
        """End a round whose listing was whole: record its plan, and tell it.

        Raises:
            RetryableError: the storage fails.
        """
        if self._mode == "off":
            return
        plan = self._survey.plan(self._rules, self._clock())
        self._record = self._record.with_plan(plan)
        await self._storage.replace(RECORD, msgspec.json.format(msgspec.json.encode(self._record), indent=2) + b"\n")
        named = self._survey.named(plan)
        for rule, (files, size_bytes) in named.items():
            self._metrics.named.labels(rule).set(files)
            self._metrics.named_bytes.labels(rule).set(size_bytes)
        log.info(
            "retention.planned",
            mode=self._mode,
            cutoff=None if plan.cutoff is None else plan.cutoff.isoformat(),
            files=sum(files for files, _ in named.values()),
            size_bytes=sum(size_bytes for _, size_bytes in named.values()),
        )

    async def _expire(self, task: Task) -> int:
        if self._mode != "delete" or task.manifest is None or not task.announced:
            return 0
        rule = None if self._due is None else self._due.rule(task.manifest.modified_at)
        if not task.bodies:
            if task.gone or not task.expired:
                return 0
            rule = None  # gone, but not recorded so: by an earlier version, or it ended before it could
        elif rule is None and not (task.expired or task.unsettled):
            return 0
        try:
            return await self._expiring.expire(task, rule)
        except PermanentError as error:
            log.warning("retention.record_unreadable", manifest=task.names.manifest, detail=error.detail)
            return 0


async def read_record(storage: Storage, rules: Rules) -> Record:
    """Return the record of the plans by these rules; an empty one where there is none, or it is of other rules.

    Raises:
        RetryableError: the storage fails.
    """
    content = await storage.read(RECORD)
    if content is None:
        return Record(rules=rules)
    try:
        record = msgspec.json.decode(content, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log.warning("retention.record_begun_anew", detail="it could not be read")
        return Record(rules=rules)
    if record.rules != rules:
        log.warning("retention.record_begun_anew", detail="the rules are others than before")
        return Record(rules=rules)
    return record


def _moment(step: int) -> datetime:
    return datetime.fromtimestamp(step * _STEP_S, UTC)


def _earliest(moments: Iterable[datetime | None]) -> datetime | None:
    """Return the earliest moment; None where one of them names nothing."""
    found = tuple(moments)
    named = [moment for moment in found if moment is not None]
    return min(named) if len(named) == len(found) else None
