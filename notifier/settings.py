"""The notifier's settings: the environment, and the file of destinations.

Responsible for: reading and refusing them, all problems at once. It must not deliver anything.
"""

import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from shared.errors import StartError
from shared.settings import Port, ServiceSettings

DEFAULT_EVENTS = ("conversion.*", "file.*", "report.unrecognised")
"""What people are told: end states, conflicts, risk and unrecognised callbacks; never raw reports."""

RESERVED_NAMES = frozenset({"parked", "delay", "private", "return"})

_EVENT_PATTERN = re.compile(r"(conversion|file)\.(\*|[a-z_]+)|report\.unrecognised|\*")


_UNITS = {"": "hours", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if (match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)", value.strip())) is None:
        raise ValueError("must be a number with s, m, h or d, for example 72h")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


class NotifierSettings(ServiceSettings):
    """What the notifier needs to know."""

    ops_port: Port = Field(default=9103, description="Port of the operations server; 0 takes a free one.")
    notify_give_up_after: Annotated[timedelta, BeforeValidator(_duration), Field(gt=timedelta())] = Field(
        default=timedelta(hours=72),
        description="How long a failing delivery is tried before it is parked: `72h`, `90m`; a bare number is hours.",
    )


class _Destination(BaseModel):
    """One place the notifier delivers to."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    events: tuple[str, ...] = DEFAULT_EVENTS
    concurrency: Annotated[int, Field(ge=1, le=100)] = 4

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name in RESERVED_NAMES:
            raise ValueError(f"{name!r} is the name of one of our own queues")
        return name

    @field_validator("events")
    @classmethod
    def _check_events(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not _EVENT_PATTERN.fullmatch(pattern):
                raise ValueError(f"{pattern!r} is no event: say for example conversion.stored, conversion.* or *")
        return patterns

    def wants(self, routing_key: str) -> bool:
        """Tell whether an event is for this destination."""
        family = routing_key.partition(".")[0]
        return any(pattern in {"*", routing_key, f"{family}.*"} for pattern in self.events)


class LogDestination(_Destination):
    """Writes each event as a line of the log."""

    type: Literal["log"]


class WebhookDestination(_Destination):
    """Posts each event, signed by Standard Webhooks.

    Attributes:
        secret: `whsec_` and base64, as receivers' libraries expect it; `secret_file` names a file that holds it.
    """

    type: Literal["webhook"]
    url: Annotated[SecretStr, Field()]
    secret: SecretStr | None = None
    secret_file: Path | None = None
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 15.0

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        if not re.match(r"https?://[^/]", url.get_secret_value()):
            raise ValueError("must be http:// or https://")
        return url


Destination = LogDestination | WebhookDestination

_DESTINATIONS: TypeAdapter[tuple[Annotated[Destination, Field(discriminator="type")], ...]] = TypeAdapter(
    tuple[Annotated[Destination, Field(discriminator="type")], ...]
)


def load_destinations(path: Path | None) -> tuple[Destination, ...]:
    """Read the destinations; without a file there is one, `log`.

    Raises:
        StartError: the file cannot be read, or says something we do not take; without any value of it.
    """
    if path is None:
        return (LogDestination(name="log", type="log"),)
    try:
        document: Mapping[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"The destinations in {path} cannot be read: {error}") from error
    if unknown := sorted(set(document) - {"destination"}):
        raise StartError(f"{path}: only [[destination]] tables are read, not {', '.join(unknown)}")
    try:
        found = _DESTINATIONS.validate_python(tuple(document.get("destination", ())))
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        lines = [f"  destination {_place(problem['loc'])}: {problem['msg']}" for problem in problems]
        raise StartError(f"{path} must be corrected:\n" + "\n".join(lines)) from None
    names = [destination.name for destination in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StartError(f"{path}: two destinations are called {', '.join(twice)}")
    return found


def _place(location: tuple[int | str, ...]) -> str:
    number, *rest = location
    fields = [str(part) for part in rest if part not in {"log", "webhook"}]
    return f"{int(number) + 1}" + (f", {'.'.join(fields)}" if fields else "")
