"""`wavekeep unrecognised`: authentic callbacks of no known shape.

Responsible for: looking at them, having them read again by this version, and throwing them away when a person says
so. How a body is read is the ingress's.
"""

from collections.abc import Sequence
from datetime import timedelta

import click

from cli import waiting
from cli.chosen import Choice, filtering, naming
from cli.output import as_json
from cli.parked import limit_option, yes_option
from cli.session import settings
from ingress.report import read_again
from shared import events
from shared.errors import PermanentError
from shared.events import Event, ReportUnrecognised
from shared.messaging.port import Broker, Kept, Progress
from shared.messaging.topology import UNRECOGNISED


@click.group()
def unrecognised() -> None:
    """Callbacks of no known shape: look at them, read them again, or throw them away."""


@unrecognised.command("list")
@filtering(reasons=False)
@limit_option
@as_json
def list_unrecognised(limit: int, vendor: str | None, older_than: timedelta | None, *, json_output: bool) -> None:
    """List unrecognised callbacks, oldest first. Nothing is moved."""
    choice = Choice(everything=True, vendor=vendor, older_than=older_than)
    waiting.list_messages(UNRECOGNISED, choice, limit, json_output=json_output)


@unrecognised.command("show")
@click.argument("id", metavar="ID")
def show_unrecognised(id: str) -> None:  # noqa: A002 - the name of the argument in the help
    """Show one unrecognised callback whole (JSON). It may hold a link that opens the file."""
    waiting.show_message(UNRECOGNISED, id)


@unrecognised.command()
@naming()
@filtering(reasons=False)
@as_json
def replay(
    ids: tuple[str, ...],
    vendor: str | None,
    older_than: timedelta | None,
    *,
    everything: bool,
    json_output: bool,
) -> None:
    """Read callbacks again with this version; what it recognises goes on as the report it is, the rest stays.

    A success without a link goes on too where the environment has the vendor's API key: the downloader asks for it.
    """
    found = settings()
    retention, askable = found.retention(), found.askable()

    async def read_all(opened: Broker, all_kept: Sequence[Kept], progress: Progress) -> int:
        reports: dict[str, Event] = {}
        for kept in all_kept:
            try:
                event = events.decode(kept.body)
            except PermanentError:
                continue
            if isinstance(event.data, ReportUnrecognised):
                vendor_of = event.data.vendor
                report = read_again(event.data, retention=retention[vendor_of], askable=vendor_of in askable)
                if report is not None:
                    reports[kept.id] = events.make(report, time=report.received_at, traceparent=event.traceparent)
        progress(len(all_kept) - len(reports))

        async def publish(kept: Kept) -> None:
            event = reports[kept.id]
            body = events.encode(event)
            await opened.publish(event.data.EXCHANGE, event.routing_key, body, event_id=event.id)
            progress(1)

        return await opened.take(UNRECOGNISED, list(reports), publish)

    choice = Choice(ids=ids, everything=everything, vendor=vendor, older_than=older_than)
    waiting.move_messages(
        UNRECOGNISED, choice, read_all, doing="Reading again", done="replayed", json_output=json_output
    )


@unrecognised.command("purge")
@naming()
@filtering(reasons=False)
@yes_option
@as_json
def purge_unrecognised(
    ids: tuple[str, ...],
    vendor: str | None,
    older_than: timedelta | None,
    *,
    everything: bool,
    yes: bool,
    json_output: bool,
) -> None:
    """Throw unrecognised callbacks away, for good."""
    choice = Choice(ids=ids, everything=everything, vendor=vendor, older_than=older_than)
    waiting.purge_messages(UNRECOGNISED, choice, yes=yes, json_output=json_output)
