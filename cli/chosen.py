"""Which of the messages that wait for a person are meant.

Responsible for: the options that choose, and what they mean. Pure but for reading the options. It must not move
anything.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import click
import msgspec

from shared.errors import Reason
from shared.messaging.port import Kept
from shared.vendors import Vendor

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a person chose; every part that is given must hold."""

    ids: Sequence[str] = ()
    everything: bool = False
    reason: str | None = None
    vendor: str | None = None
    older_than: timedelta | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing was chosen at all."""
        return not self.ids and not self.everything and (self.reason, self.vendor, self.older_than) == (None,) * 3

    def holds(self, kept: Kept, *, now: datetime) -> bool:
        """Tell whether a message is meant. Where its age cannot be told, it counts as young."""
        if self.ids and kept.id not in self.ids:
            return False
        if self.reason is not None and kept.reason != self.reason:
            return False
        if self.vendor is not None and (subject_of(kept) or "").partition("/")[0] != self.vendor:
            return False
        since = waiting_since(kept)
        return self.older_than is None or (since is not None and since <= now - self.older_than)

    def __str__(self) -> str:
        """Say in words what was chosen."""
        parts = [
            self.reason and f"parked for {self.reason}",
            self.vendor and f"of {self.vendor}",
            self.older_than and f"older than {self.older_than}",
        ]
        return " ".join(part for part in parts if part)


def filtering(*, reasons: bool) -> Callable[[F], F]:
    """Give a command the options that choose by what a message is."""
    options = [
        click.option("--vendor", type=click.Choice([str(v) for v in Vendor]), help="Only those of this vendor."),
        click.option(
            "--older-than", callback=_age, metavar="AGE", help="Only those that wait longer: 90s, 15m, 2h, 3d."
        ),
    ]
    if reasons:
        names = [str(r) for r in Reason]
        options.append(
            click.option("--reason", type=click.Choice(names), metavar="REASON", help="Only those parked for it.")
        )
    return _applied(options)


def naming() -> Callable[[F], F]:
    """Give a command the ids of messages, and a way to mean all."""
    return _applied(
        [
            click.argument("ids", nargs=-1),
            click.option("--all", "everything", is_flag=True, help="All, or all that the other options leave."),
        ]
    )


def waiting_since(kept: Kept) -> datetime | None:
    """Return when a message was parked; where the broker did not note that, when its event came to be."""
    if kept.parked_at is not None:
        return kept.parked_at
    event = event_of(kept)
    try:
        return msgspec.convert(event.get("time"), datetime, strict=False) if isinstance(event, dict) else None
    except msgspec.ValidationError:
        return None


def event_of(kept: Kept) -> Any:
    """Return the event a message holds, or its text where it is none."""
    try:
        return msgspec.json.decode(kept.body)
    except msgspec.DecodeError:
        return kept.body.decode(errors="replace")


def subject_of(kept: Kept) -> str | None:
    """Return the subject of the event, `VENDOR/TASK`; None where there is none."""
    event = event_of(kept)
    subject = event.get("subject") if isinstance(event, dict) else None
    return subject if isinstance(subject, str) else None


def _age(_context: click.Context, _option: click.Parameter, value: str | None) -> timedelta | None:
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no age: write 90s, 15m, 2h or 3d.")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def _applied(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply
