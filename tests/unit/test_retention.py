"""Retention: what the rules name, and that nothing goes which was not named for a day."""

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from downloader.names import Names
from downloader.retention import LEAST_AGE, NOTICE, Plan, Record, Rules, Survey, eligible
from downloader.settings import DownloaderSettings
from downloader.shelves import Task
from downloader.storage import Entry
from tests.unit.custody_fakes import NOW

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
STEM = "apibox/ab/task"
AUDIO = ".0123456789ab.wav"
BY_AGE = Rules(max_age_days=30, max_bytes=None)


def task(*, age: timedelta, size_bytes: int = 100, endings: tuple[str, ...] = (".json", AUDIO, ".announced")) -> Task:
    """Return a task that was kept so long ago."""
    entries = {ending: Entry(f"{STEM}{ending}", size_bytes if ending == AUDIO else 7, NOW - age) for ending in endings}
    return Task(Names(STEM), entries)


def survey(*tasks: Task) -> Survey:
    """Return a survey of these."""
    survey = Survey()
    for each in tasks:
        survey.add(each)
    return survey


def by_size(max_bytes: int) -> Rules:
    """Return rules that only bound the size."""
    return Rules(max_age_days=None, max_bytes=max_bytes)


def plan(*, made: timedelta, age: timedelta | None = None, size: timedelta | None = None) -> Plan:
    """Return a plan made so long ago, naming what was kept since so long ago."""
    return Plan(made_at=NOW - made, age=None if age is None else NOW - age, size=None if size is None else NOW - size)


def test_age_names_what_is_older() -> None:
    """A file is named from the day its age is reached, and not before."""
    found = survey(task(age=31 * DAY), task(age=29 * DAY)).plan(BY_AGE, NOW)
    assert found.rule(NOW - 30 * DAY) == "age"
    assert found.rule(NOW - 30 * DAY + HOUR) is None
    assert survey(task(age=31 * DAY, size_bytes=5), task(age=29 * DAY)).named(found) == {"age": (1, 5), "size": (0, 0)}


def test_no_age_is_below_what_vendors_keep() -> None:
    """Whatever the rules say, no file goes while its vendor may still come back to it."""
    found = survey(task(age=DAY)).plan(Rules(max_age_days=1, max_bytes=None), NOW)
    assert found.age == NOW - LEAST_AGE
    young = survey(task(age=LEAST_AGE - 2 * HOUR), task(age=DAY)).plan(by_size(1), NOW)
    assert young.size is None


def test_size_names_the_oldest_first_and_no_more_than_needed() -> None:
    """The oldest go until the rest fits; records count as nothing."""
    tasks = [task(age=days * DAY) for days in (20, 50, 30, 40)]
    found = survey(*tasks).plan(by_size(250), NOW)
    assert [found.rule(NOW - days * DAY) for days in (50, 40, 30, 20)] == ["size", "size", None, None]
    assert survey(*tasks).plan(by_size(400), NOW).cutoff is None


def test_what_may_not_go_still_takes_room() -> None:
    """What is not announced counts against the limit, and is not what goes for it."""
    unannounced = task(age=90 * DAY, size_bytes=300, endings=(".json", AUDIO))
    found = survey(unannounced, task(age=50 * DAY), task(age=40 * DAY)).plan(by_size(400), NOW)
    assert found.rule(NOW - 50 * DAY) == "size"
    assert found.rule(NOW - 40 * DAY) is None


def test_age_goes_before_size() -> None:
    """Where both rules name a file, it is told as too old."""
    found = survey(task(age=50 * DAY)).plan(Rules(max_age_days=30, max_bytes=1), NOW)
    assert found.rule(NOW - 50 * DAY) == "age"


@pytest.mark.parametrize(
    "endings",
    [
        (".json", AUDIO),
        (AUDIO, ".announced"),
        (".json", ".announced"),
        (".json", AUDIO, ".announced", ".v1.json", ".v2.json"),
        (".json", AUDIO, ".announced", ".v1.json", ".v2.json", ".v2.announced", ".v10.json"),
    ],
    ids=["unannounced", "no manifest", "no audio", "being replaced", "being replaced again"],
)
def test_what_never_goes(endings: tuple[str, ...]) -> None:
    """Neither what was not announced, nor an orphan, nor what a person is replacing is named."""
    assert not eligible(task(age=90 * DAY, endings=endings))


def test_a_finished_replacement_may_go() -> None:
    """Once the replacement was told, the task is like any other."""
    assert eligible(task(age=90 * DAY, endings=(".json", AUDIO, ".announced", ".v1.json", ".v2.json", ".v2.announced")))


def test_nothing_is_due_before_a_plan_is_a_day_old() -> None:
    """However often a rule is told within a day, nothing goes."""
    record = Record(rules=BY_AGE)
    for hours in range(23, -1, -1):
        record = record.with_plan(plan(made=hours * HOUR, age=30 * DAY))
    assert record.due(NOW) is None


def test_due_is_what_every_plan_of_the_day_named() -> None:
    """A setting that was wrong for an hour, or put right an hour ago, lets nothing go that others would keep."""
    right, wrong = 30 * DAY, 2 * DAY
    for ages in ((right, wrong, right), (wrong, right, wrong), (wrong, wrong, right), (right, wrong, wrong)):
        record = Record(rules=BY_AGE)
        for made, age in zip((NOTICE, 12 * HOUR, HOUR), ages, strict=True):
            record = record.with_plan(plan(made=made, age=age))
        due = record.due(NOW)
        assert due is not None
        assert due.age == NOW - right


def test_a_plan_that_names_nothing_stops_what_others_named() -> None:
    """Where the size was within its limit at any time of the day, nothing goes for it."""
    record = Record(rules=by_size(1))
    record = record.with_plan(plan(made=25 * HOUR, size=40 * DAY)).with_plan(plan(made=2 * HOUR))
    due = record.with_plan(plan(made=HOUR, size=40 * DAY)).due(NOW)
    assert due is not None
    assert due.cutoff is None


def test_the_record_stays_small() -> None:
    """Plans that can no longer count are dropped; the one a day old stays, however long ago it was made."""
    record = Record(rules=BY_AGE)
    for hours in range(200, -1, -1):
        record = record.with_plan(plan(made=hours * HOUR, age=30 * DAY))
    assert len(record.plans) == 25
    alone = Record(rules=BY_AGE).with_plan(plan(made=90 * DAY, age=100 * DAY))
    due = alone.with_plan(plan(made=timedelta(), age=30 * DAY)).due(NOW)
    assert due is not None
    assert due.age == NOW - 100 * DAY


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"retention_mode": "report"}, "RETENTION_MAX_AGE_DAYS"),
        ({"retention_mode": "delete"}, "RETENTION_MAX_BYTES"),
        ({"retention_max_age_days": 3}, "retention_max_age_days"),
        ({"storage_quota_bytes": 10}, "DOWNLOAD_MAX_BYTES"),
        (
            {"retention_mode": "report", "retention_max_bytes": 2**40, "storage_quota_bytes": 2**39},
            "STORAGE_QUOTA_BYTES",
        ),
    ],
)
def test_settings_that_cannot_mean_what_they_say(settings: dict[str, Any], named: str) -> None:
    """A rule that would never let anything go, or too much, is refused at start."""
    with pytest.raises(ValidationError, match=named):
        DownloaderSettings(**settings)
