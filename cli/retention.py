"""`wavekeep retention`: what would go by the rules of retention, and when.

Responsible for: showing it. It deletes nothing and records nothing: only the downloader does, by the same decisions.
"""

import heapq
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import click

from cli.output import as_json, print_json, print_table
from cli.session import finish, settings
from cli.settings import CliSettings
from downloader.retention import Plan, Record, Rules, Survey, eligible, read_record
from downloader.shelves import Task, tasks
from downloader.storage import Storage
from downloader.storage_factory import build_storage
from shared.clock import system_clock


@dataclass(frozen=True)
class Going:
    """A task whose files would go."""

    manifest: str
    rule: str
    kept_since: datetime
    size_bytes: int


@dataclass(frozen=True)
class Report:
    """What the rules name now.

    Attributes:
        since: of the oldest plan on record by these rules; None where no downloader has made one yet.
        oldest: the first that would go.
    """

    mode: str
    rules: Rules
    plan: Plan
    since: datetime | None
    files: int
    size_bytes: int
    oldest: list[Going]


@click.command()
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="Tasks shown, oldest first.")
@as_json
def retention(limit: int, *, json_output: bool) -> None:
    """Show what would go by age and by size (WAVEKEEP_RETENTION_…). Nothing is deleted."""
    found = settings()
    if found.retention_max_age_days is None and found.retention_max_bytes is None:
        raise click.ClickException(
            "No rule is set, so no file would ever go: set WAVEKEEP_RETENTION_MAX_AGE_DAYS or"
            " WAVEKEEP_RETENTION_MAX_BYTES for this command, to see what it would name."
        )
    report = finish(lambda: _report(found, limit))
    if json_output:
        print_json(report)
        return
    print_table(
        ("manifest", "rule", "kept since", "bytes"),
        [(each.manifest, each.rule, f"{each.kept_since:%Y-%m-%d %H:%M}", each.size_bytes) for each in report.oldest],
        empty="Nothing is named.",
    )
    click.echo(f"{report.files} tasks, {report.size_bytes} bytes. {_when(report)}")


def _when(report: Report) -> str:
    if report.mode == "off":
        return "WAVEKEEP_RETENTION_MODE is off: nothing goes."
    if report.mode == "report":
        return "WAVEKEEP_RETENTION_MODE=report: nothing goes."
    if report.since is None:
        return "No downloader has named them by these rules yet: they go a day after one has."
    return f"These rules name since {report.since:%Y-%m-%d %H:%M} UTC; what was named for a day goes."


async def _report(found: CliSettings, limit: int) -> Report:
    rules = Rules(max_age_days=found.retention_max_age_days, max_bytes=found.retention_max_bytes)
    with ThreadPoolExecutor(4) as executor:
        storage = build_storage(found, executor=executor)
        survey = Survey()
        async for task in tasks(storage):
            survey.add(task)
        plan = survey.plan(rules, system_clock())
        record = await read_record(storage, rules)
        named = [going async for going in _named(storage, plan)]
    return Report(
        mode=found.retention_mode,
        rules=rules,
        plan=plan,
        since=_since(record),
        files=len(named),
        size_bytes=sum(going.size_bytes for going in named),
        oldest=heapq.nsmallest(limit, named, key=lambda going: going.kept_since),
    )


async def _named(storage: Storage, plan: Plan) -> AsyncIterator[Going]:
    async for task in tasks(storage):
        going = _going(task, plan)
        if going is not None:
            yield going


def _going(task: Task, plan: Plan) -> Going | None:
    if task.manifest is None or not eligible(task):
        return None
    rule = plan.rule(task.manifest.modified_at)
    return rule and Going(task.manifest.key, rule, task.manifest.modified_at, task.size_bytes)


def _since(record: Record) -> datetime | None:
    return min((plan.made_at for plan in record.plans), default=None)
