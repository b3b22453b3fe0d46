"""Messages that wait for a person: looking at them and moving them, whichever queue they are in.

Responsible for: one pass over a queue for each thing that is done, a progress bar, and the result in words or JSON.
It must not know what a parked message or an unrecognised callback means.
"""

import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress as Bar

from cli.chosen import Choice, event_of, subject_of, waiting_since
from cli.output import print_json, print_table
from cli.session import broker, finish
from shared.clock import system_clock
from shared.messaging.port import Broker, Kept, Progress

LOOK_AT_MOST = 50_000
"""Of the oldest messages; what one command chooses from."""

_BAR_FROM = 100
_LONG_AGO = datetime.min.replace(tzinfo=UTC)

Work = Callable[[Broker, Sequence[Kept], Progress], Awaitable[int]]


def list_messages(queue: str, choice: Choice, limit: int, *, json_output: bool) -> None:
    """Show the oldest messages that are meant. Nothing is moved."""

    async def look() -> list[Kept]:
        async with broker() as opened:
            found, _ = await _chosen(opened, queue, choice)
            return found[:limit]

    found = finish(look)
    if json_output:
        print_json([_facts(kept) for kept in found])
        return
    print_table(
        ("id", "subject", "reason", "attempts", "waits since"),
        ((k.id, subject_of(k), k.reason, k.attempts, _moment(k)) for k in found),
        empty="Nothing waits here.",
    )


def show_message(queue: str, wanted: str) -> None:
    """Show one message whole."""

    async def look() -> Kept | None:
        async with broker() as opened:
            return next(iter((await _chosen(opened, queue, Choice(ids=(wanted,))))[0]), None)

    found = finish(look)
    if found is None:
        raise click.ClickException(f"No message {wanted} waits in {queue}.")
    print_json(_facts(found) | {"event": event_of(found)})


def move_messages(queue: str, choice: Choice, work: Work, *, doing: str, done: str, json_output: bool) -> None:
    """Do the work with every message that is meant, and tell how many it was done with and how many are left.

    Args:
        work: returns with how many it was done; tells its progress.
        doing: in words for the bar, for example `Replaying`.
        done: the word for it in the result, for example `replayed`.
    """
    if choice.is_open:
        raise click.UsageError("Name the messages by id, or choose with --all or another option.")

    async def run() -> tuple[int, int, list[str]]:
        async with broker() as opened:
            found, waiting = await _chosen(opened, queue, choice)
            with _bar(doing, len(found)) as progress:
                count = await work(opened, found, progress)
            known = {kept.id for kept in found}
            return count, waiting - count, [name for name in choice.ids if name not in known]

    count, left, unknown = finish(run)
    if json_output:
        print_json({done: count, "left": left})
    else:
        click.echo(f"{count} {done}, {left} left.")
    if unknown:
        raise click.ClickException(f"No message {', '.join(unknown)} waits in {queue}, or not as chosen.")


def purge_messages(queue: str, choice: Choice, *, yes: bool, json_output: bool) -> None:
    """Throw away every message that is meant, after asking, unless the answer was given."""
    if not yes and not choice.is_open:
        what = f"{len(choice.ids)} messages" if choice.ids else f"all {choice}".rstrip()
        click.confirm(f"Throw away {what}? They cannot be had back", abort=True, err=True)

    async def purge(opened: Broker, found: Sequence[Kept], progress: Progress) -> int:
        async def forget(_: Kept) -> None:
            progress(1)

        return await opened.take(queue, [kept.id for kept in found], forget)

    move_messages(queue, choice, purge, doing="Purging", done="purged", json_output=json_output)


async def _chosen(opened: Broker, queue: str, choice: Choice) -> tuple[list[Kept], int]:
    """Return the messages that are meant, oldest first, and how many wait in all."""
    now, count = system_clock(), 0
    found: list[Kept] = []
    async for kept in opened.kept(queue, limit=LOOK_AT_MOST):
        count += 1
        if choice.holds(kept, now=now):
            found.append(kept)
    # a broker may put what somebody looked at to the end
    return sorted(found, key=lambda kept: waiting_since(kept) or _LONG_AGO), count


@contextmanager
def _bar(doing: str, total: int) -> Generator[Progress, None, None]:
    """Lend a progress bar: on a terminal, and where there is enough to wait for."""
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=total < _BAR_FROM or not sys.stderr.isatty()) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda more: bar.advance(task, more)


def _facts(kept: Kept) -> dict[str, Any]:
    facts = msgspec.structs.asdict(kept)
    del facts["body"]
    return {"subject": subject_of(kept), "waits_since": waiting_since(kept)} | facts


def _moment(kept: Kept) -> str | None:
    since = waiting_since(kept)
    return None if since is None else f"{since:%Y-%m-%d %H:%M:%S}Z"
