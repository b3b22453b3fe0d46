"""`wavekeep audit`: whether what is kept is still what was proven.

Responsible for: the options, the progress bar, the result, and telling damage. What is found is decided in
`downloader.audit`, what can be brought back to order in `downloader.adoption`.
"""

import re
import secrets
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from cli.output import as_json, print_json, print_table
from cli.session import broker, finish, settings
from downloader.adoption import Adopted, Adoption
from downloader.audit import TASKS_AT_ONCE, Audited, Auditor
from downloader.findings import Finding
from downloader.holdings import Selection, holdings
from downloader.settings import DownloaderSettings
from downloader.storage import Storage
from downloader.storage_factory import build_storage
from shared import events
from shared.clock import system_clock
from shared.errors import WavekeepError
from shared.messaging.port import Publisher
from shared.vendors import Vendor

DAMAGE_STATUS = 1
ERROR_STATUS = 2

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(slots=True)
class Report:
    """What an audit came to.

    Attributes:
        complete: every task that was meant was read.
        untold: damage that the broker did not take, by key.
    """

    seed: int
    complete: bool = True
    tasks: int = 0
    files: int = 0
    size_bytes: int = 0
    duration_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    adopted: list[Adopted] = field(default_factory=list)
    untold: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing that was read is damaged."""
        return not any(finding.is_damage for finding in self.findings)

    def add(self, seen: Audited) -> None:
        """Count one task."""
        self.tasks += 1
        self.files += seen.files
        self.size_bytes += seen.size_bytes
        self.findings += seen.findings


class _NotDoneError(click.ClickException):
    """The audit could not be done, which says nothing about the files."""

    exit_code = ERROR_STATUS


def _share(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[float, int | None]:
    """Read `5%` or `200`; return the share and the count."""
    if value is None:
        return 1.0, None
    if percent := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)%", value):
        share = float(percent[1]) / 100
        if 0 < share <= 1:
            return share, None
    elif re.fullmatch(r"[1-9][0-9]{0,8}", value):
        return 1.0, int(value)
    raise click.BadParameter(f"{value!r} is no sample: write 5% or 200.")


def _span(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time: write 90s, 10m, 2h or 1d.")
    return float(int(found[1]) * _UNITS[found[2]])


@click.command()
@click.argument("tasks", nargs=-1, metavar="[TASK]...")
@click.option("--vendor", type=click.Choice([str(v) for v in Vendor]), help="Only this vendor's tasks.")
@click.option("--sample", callback=_share, metavar="5%|200", help="Only so many of the tasks, drawn at random.")
@click.option("--for", "budget_s", callback=_span, metavar="TIME", help="Begin no further task after 90s, 10m, 2h, 1d.")
@click.option("--seed", type=click.IntRange(0), help="Of what is random: the same one draws the same tasks.")
@click.option("--no-tell", is_flag=True, help="Publish no file.damaged; needs no broker.")
@click.option("--adopt", is_flag=True, help="Bring loose ends back to order, where that can be proven.")
@click.option("--dry-run", is_flag=True, help="With --adopt: only say what would be done.")
@as_json
def audit(
    tasks: tuple[str, ...],
    vendor: str | None,
    sample: tuple[float, int | None],
    budget_s: float | None,
    seed: int | None,
    *,
    no_tell: bool,
    adopt: bool,
    dry_run: bool,
    json_output: bool,
) -> None:
    """Read kept files again, and hold them against their manifests: all, or those of TASK (ID, or VENDOR/ID).

    Earlier revisions are read too. Damage is told as file.damaged, and nothing damaged is changed. Tasks are read in
    random order. Status 0: what was read is whole; 1: something is damaged; 2: the audit could not be done.
    """
    if dry_run and not adopt:
        raise click.UsageError("--dry-run says what --adopt would do: give both.")
    if adopt and no_tell and not dry_run:
        raise click.UsageError("--adopt tells what it adopts, so it cannot go with --no-tell.")
    drawn = secrets.randbelow(2**32) if seed is None else seed
    selection = _selection(tasks, vendor, sample, drawn)
    try:
        report = finish(
            lambda: _audit(selection, budget_s, tell=not no_tell, adopt=adopt, dry_run=dry_run, quiet=json_output)
        )
    except click.ClickException as error:
        raise _NotDoneError(error.message) from error
    if json_output:
        print_json(_facts(report))
    else:
        _show(report, dry_run=dry_run)
    if report.untold:
        first = next(iter(report.untold.values()))
        click.echo(f"{len(report.untold)} found damaged could not be told ({first}); repeat the command.", err=True)
    if not report.whole:
        raise SystemExit(DAMAGE_STATUS)


def _selection(tasks: tuple[str, ...], vendor: str | None, sample: tuple[float, int | None], seed: int) -> Selection:
    vendors = tuple(Vendor) if vendor is None else (Vendor(vendor),)
    named: list[tuple[Vendor, str]] = []
    for task in tasks:
        prefix, _, rest = task.partition("/")
        if vendor is None and prefix in set(Vendor):
            named.append((Vendor(prefix), rest))
        else:
            named += [(each, task) for each in vendors]
    share, count = sample
    return Selection(vendors=vendors, named=tuple(named), share=share, count=count, seed=seed)


async def _audit(
    selection: Selection, budget_s: float | None, *, tell: bool, adopt: bool, dry_run: bool, quiet: bool
) -> Report:
    found = settings()
    _require_folder(found)
    report, started = Report(selection.seed), time.monotonic()
    async with AsyncExitStack() as stack:
        publisher = None if not tell else await stack.enter_async_context(broker())
        executor = stack.enter_context(ThreadPoolExecutor(TASKS_AT_ONCE, thread_name_prefix="audit"))
        storage = build_storage(found, executor=executor)
        adoption = Adoption(storage=storage, publisher=None if dry_run else publisher) if adopt else None
        visible = not quiet and sys.stderr.isatty()
        total = await _total(storage, selection) if visible and budget_s is None else None
        advance = stack.enter_context(_bar(total, visible=visible))

        async def seen(audited: Audited) -> None:
            report.add(audited)
            if publisher is not None:
                await _tell(publisher, audited, report)
            if adoption is not None:
                report.adopted += await adoption.adopt(audited)
            advance(audited.size_bytes)

        def enough() -> bool:
            return budget_s is not None and time.monotonic() - started >= budget_s

        report.complete = await Auditor(storage, clock=system_clock).audit(selection, seen=seen, enough=enough)
    report.duration_s = time.monotonic() - started
    if selection.named and not report.tasks and report.complete:
        raise click.ClickException(f"Nothing is kept of a task {', '.join(sorted({t for _, t in selection.named}))}.")
    return report


async def _tell(publisher: Publisher, audited: Audited, report: Report) -> None:
    """Tell the damage of one task; what the broker does not take is told at the end to whoever asked."""
    traceparent = next((manifest.traceparent for manifest in audited.manifests.values()), None)
    for finding in audited.findings:
        if finding.is_damage:
            event = events.make(finding.announcement(), time=finding.found_at, traceparent=traceparent)
            body = events.encode(event)
            try:
                await publisher.publish(event.data.EXCHANGE, event.routing_key, body, event_id=event.id)
            except WavekeepError as error:
                report.untold[finding.key] = str(error)


async def _total(storage: Storage, selection: Selection) -> int:
    """Return the size of all audio that is meant, in bytes."""
    total = 0
    async for holding in holdings(storage, selection):
        total += sum(entry.size_bytes for entry in holding.audio)
    return total


def _require_folder(found: DownloaderSettings) -> None:
    """An audit of a folder that is not there would find everything whole."""
    if found.object_store is None and not found.storage_folder.is_dir():
        raise click.ClickException(
            f"There is no folder {found.storage_folder} to audit. Set WAVEKEEP_STORAGE_URL or WAVEKEEP_DATA_DIR as the"
            " services have it."
        )


@contextmanager
def _bar(total: int | None, *, visible: bool) -> Generator[Callable[[int], None], None, None]:
    columns = (
        TextColumn("Reading"),
        BarColumn(),
        TextColumn("{task.fields[read]}"),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not visible) as bar:
        task, done = bar.add_task("", total=total, read=""), 0

        def advance(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            bar.update(task, completed=done, read=decimal(done))

        yield advance


def _facts(report: Report) -> dict[str, Any]:
    return {
        "whole": report.whole,
        "complete": report.complete,
        "tasks": report.tasks,
        "files": report.files,
        "size_bytes": report.size_bytes,
        "duration_s": round(report.duration_s, 3),
        "seed": report.seed,
        "findings": [_finding(finding) for finding in report.findings],
        "adopted": [asdict(adopted) for adopted in report.adopted],
        "untold": len(report.untold),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    facts = asdict(finding)
    return {"finding": facts.pop("kind"), "damage": finding.is_damage} | facts


def _show(report: Report, *, dry_run: bool) -> None:
    if report.findings:
        columns = ("finding", "task", "revision", "where", "expected", "found")
        print_table(columns, (_row(finding) for finding in report.findings), empty="")
        click.echo()
    if report.adopted:
        rows = [(a.step, f"{a.vendor}/{a.task_id}", a.key, a.refused or "done") for a in report.adopted]
        print_table(("would be" if dry_run else "adoption", "task", "key", "outcome"), rows, empty="")
        click.echo()
    damaged = sum(finding.is_damage for finding in report.findings)
    rate = decimal(int(report.size_bytes / max(report.duration_s, 0.001)))
    verdict = f"{damaged} damaged, see docs/operations.md: Audit" if damaged else "all whole"
    if not report.tasks:
        verdict = "nothing is kept there: is it the right place, and mounted?"
    left = "" if report.complete else " The time was over before all were read."
    click.echo(
        f"{report.files} files ({decimal(report.size_bytes)}) of {report.tasks} tasks read in {report.duration_s:.1f} s"
        f" ({rate}/s): {verdict}.{left}"
    )


def _row(finding: Finding) -> tuple[object, ...]:
    return (
        finding.kind,
        f"{finding.vendor}/{finding.task_id}",
        finding.revision,
        finding.uri,
        _content(finding.expected_size_bytes, finding.expected_sha256),
        finding.detail or _content(finding.found_size_bytes, finding.found_sha256),
    )


def _content(size_bytes: int | None, digest: str | None) -> str | None:
    parts = [f"{size_bytes} bytes" if size_bytes is not None else "", f"{digest[:12]}…" if digest else ""]
    return ", ".join(filter(None, parts)) or None
