"""`wavekeep parked` and `wavekeep unrecognised`: what waits for a person.

Responsible for: looking at it, sending it back, and throwing it away when a person says so. Nothing here happens by
time.
"""

from collections.abc import Callable
from typing import Any

import click
import msgspec
from rich.progress import Progress

from cli.output import as_json, print_json, print_table
from cli.session import broker, finish
from shared.errors import Reason
from shared.messaging.port import Broker, Kept
from shared.messaging.topology import DOWNLOADER, NOTIFIER, UNRECOGNISED, parked_queue

SERVICES = {"downloader": parked_queue(DOWNLOADER), "notifier": parked_queue(NOTIFIER)}

_LOOK_AT_MOST = 100_000
_BATCH = 100

service_option = click.option(
    "--service",
    type=click.Choice(list(SERVICES)),
    default="downloader",
    show_default=True,
    help="Whose parked messages.",
)
ids_argument = click.argument("ids", nargs=-1)
all_option = click.option("--all", "everything", is_flag=True, help="All of them, or all that --reason leaves.")
reason_option = click.option("--reason", type=click.Choice([str(r) for r in Reason]), help="Only those parked for it.")
limit_option = click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Show at most so many."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def parked() -> None:
    """Messages that were given up: look at them, send them back, or throw them away."""


@click.group()
def unrecognised() -> None:
    """Callbacks of no known shape: look at them, or throw them away."""


@parked.command("list")
@service_option
@reason_option
@limit_option
@as_json
def list_parked(service: str, reason: str | None, limit: int, *, json_output: bool) -> None:
    """List parked messages, oldest first. Nothing is moved."""
    _list(SERVICES[service], reason, limit, json_output=json_output)


@unrecognised.command("list")
@limit_option
@as_json
def list_unrecognised(limit: int, *, json_output: bool) -> None:
    """List unrecognised callbacks, oldest first. Nothing is moved."""
    _list(UNRECOGNISED, None, limit, json_output=json_output)


@parked.command("show")
@service_option
@click.argument("id", metavar="ID")
def show_parked(service: str, id: str) -> None:  # noqa: A002 - the name of the argument in the help
    """Show one parked message whole, its event included. It may hold a link that opens the file."""
    _show(SERVICES[service], id)


@unrecognised.command("show")
@click.argument("id", metavar="ID")
def show_unrecognised(id: str) -> None:  # noqa: A002
    """Show one unrecognised callback whole."""
    _show(UNRECOGNISED, id)


@parked.command()
@service_option
@ids_argument
@all_option
@reason_option
def replay(service: str, ids: tuple[str, ...], *, everything: bool, reason: str | None) -> None:
    """Send parked messages back to the queues they came from, as if new."""
    queue = SERVICES[service]

    async def send_back(opened: Broker, chosen: list[str]) -> int:
        return await opened.replay(queue, chosen)

    done = _each(queue, ids, everything=everything, reason=reason, doing="Replaying", work=send_back)
    click.echo(f"{done} replayed.")


@parked.command()
@service_option
@ids_argument
@all_option
@reason_option
@yes_option
def purge(service: str, ids: tuple[str, ...], *, everything: bool, reason: str | None, yes: bool) -> None:
    """Throw parked messages away, for good."""
    _purge(SERVICES[service], ids, everything=everything, reason=reason, yes=yes)


@unrecognised.command("purge")
@ids_argument
@all_option
@yes_option
def purge_unrecognised(ids: tuple[str, ...], *, everything: bool, yes: bool) -> None:
    """Throw unrecognised callbacks away, for good."""
    _purge(UNRECOGNISED, ids, everything=everything, reason=None, yes=yes)


def _list(queue: str, reason: str | None, limit: int, *, json_output: bool) -> None:
    found = finish(lambda: _look(queue, reason, limit))
    if json_output:
        print_json([_facts(kept) for kept in found])
        return
    print_table(
        ("id", "subject", "reason", "attempts", "parked at"),
        ((k.id, _subject(k), k.reason, k.attempts, k.parked_at and f"{k.parked_at:%Y-%m-%d %H:%M:%S}Z") for k in found),
        empty="Nothing waits here.",
    )


def _show(queue: str, wanted: str) -> None:
    found = next((kept for kept in finish(lambda: _look(queue, None, _LOOK_AT_MOST)) if kept.id == wanted), None)
    if found is None:
        raise click.ClickException(f"No message {wanted} waits in {queue}.")
    print_json(_facts(found) | {"event": _event(found)})


def _purge(queue: str, ids: tuple[str, ...], *, everything: bool, reason: str | None, yes: bool) -> None:
    if not yes:
        what = f"{len(ids)} messages" if ids else "all of them" if reason is None else f"all parked for {reason}"
        click.confirm(f"Throw away {what}? They cannot be had back", abort=True)

    async def forget(opened: Broker, chosen: list[str]) -> int:
        return await opened.take(queue, chosen, _nothing)

    done = _each(queue, ids, everything=everything, reason=reason, doing="Purging", work=forget)
    click.echo(f"{done} thrown away.")


async def _nothing(_: Kept) -> None:
    """What purging does with a message."""


def _each(
    queue: str,
    ids: tuple[str, ...],
    *,
    everything: bool,
    reason: str | None,
    doing: str,
    work: Callable[[Broker, list[str]], Any],
) -> int:
    """Do the work with every chosen message, in batches, with a progress bar for people; return how many."""
    if not ids and not everything and reason is None:
        raise click.UsageError("Name the messages by id, or choose with --reason or --all.")

    async def run() -> int:
        done = 0
        async with broker() as opened:
            chosen = list(ids)
            if not chosen:
                chosen = [k.id async for k in opened.kept(queue, limit=_LOOK_AT_MOST) if reason in {None, k.reason}]
            with Progress(transient=True, disable=len(chosen) <= _BATCH) as progress:
                bar = progress.add_task(doing, total=len(chosen))
                for start in range(0, len(chosen), _BATCH):
                    batch = chosen[start : start + _BATCH]
                    done += await work(opened, batch)
                    progress.update(bar, advance=len(batch))
        return done

    return finish(run)


async def _look(queue: str, reason: str | None, limit: int) -> list[Kept]:
    found: list[Kept] = []
    async with broker() as opened:
        async for kept in opened.kept(queue, limit=_LOOK_AT_MOST):
            if reason in {None, kept.reason}:
                found.append(kept)
                if len(found) == limit:
                    break
    return found


def _facts(kept: Kept) -> dict[str, Any]:
    facts = msgspec.structs.asdict(kept)
    del facts["body"]
    return {"subject": _subject(kept)} | facts


def _event(kept: Kept) -> Any:
    try:
        return msgspec.json.decode(kept.body)
    except msgspec.DecodeError:
        return kept.body.decode(errors="replace")


def _subject(kept: Kept) -> str | None:
    event = _event(kept)
    return event.get("subject") if isinstance(event, dict) else None
