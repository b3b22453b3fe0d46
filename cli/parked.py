"""`wavekeep parked`: messages that a service gave up.

Responsible for: looking at them, sending them back, and throwing them away when a person says so. Nothing here
happens by time.
"""

from collections.abc import Sequence
from datetime import timedelta

import click

from cli import waiting
from cli.chosen import Choice, filtering, naming
from cli.output import as_json
from shared.messaging.port import Broker, Kept, Progress
from shared.messaging.topology import DOWNLOADER, NOTIFIER, parked_queue

SERVICES = {"downloader": parked_queue(DOWNLOADER), "notifier": parked_queue(NOTIFIER)}

service_option = click.option(
    "--service",
    type=click.Choice(list(SERVICES)),
    default="downloader",
    show_default=True,
    help="Whose parked messages.",
)
limit_option = click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Show at most so many."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def parked() -> None:
    """Messages that were given up: look at them, send them back, or throw them away."""


@parked.command("list")
@service_option
@filtering(reasons=True)
@limit_option
@as_json
def list_parked(
    service: str,
    limit: int,
    reason: str | None,
    vendor: str | None,
    older_than: timedelta | None,
    *,
    json_output: bool,
) -> None:
    """List parked messages, oldest first. Nothing is moved."""
    choice = Choice(everything=True, reason=reason, vendor=vendor, older_than=older_than)
    waiting.list_messages(SERVICES[service], choice, limit, json_output=json_output)


@parked.command("show")
@service_option
@click.argument("id", metavar="ID")
def show_parked(service: str, id: str) -> None:  # noqa: A002 - the name of the argument in the help
    """Show one parked message whole (JSON), its event included. It may hold a link that opens the file."""
    waiting.show_message(SERVICES[service], id)


@parked.command()
@service_option
@naming()
@filtering(reasons=True)
@as_json
def replay(
    service: str,
    ids: tuple[str, ...],
    reason: str | None,
    vendor: str | None,
    older_than: timedelta | None,
    *,
    everything: bool,
    json_output: bool,
) -> None:
    """Send parked messages back to the queues they came from, as if new."""
    queue = SERVICES[service]
    choice = Choice(ids=ids, everything=everything, reason=reason, vendor=vendor, older_than=older_than)

    async def send_back(opened: Broker, found: Sequence[Kept], progress: Progress) -> int:
        return await opened.replay(queue, [kept.id for kept in found], progress=progress)

    waiting.move_messages(queue, choice, send_back, doing="Replaying", done="replayed", json_output=json_output)


@parked.command()
@service_option
@naming()
@filtering(reasons=True)
@yes_option
@as_json
def purge(
    service: str,
    ids: tuple[str, ...],
    reason: str | None,
    vendor: str | None,
    older_than: timedelta | None,
    *,
    everything: bool,
    yes: bool,
    json_output: bool,
) -> None:
    """Throw parked messages away, for good."""
    queue = SERVICES[service]
    choice = Choice(ids=ids, everything=everything, reason=reason, vendor=vendor, older_than=older_than)
    waiting.purge_messages(queue, choice, yes=yes, json_output=json_output)
