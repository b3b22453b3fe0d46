"""The notifier's settings: the environment, and the file of destinations.

Responsible for: reading and refusing them, all problems at once. It must not deliver anything.
"""

import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from shared.errors import StartError
from shared.events import EVENTS_EXCHANGE, MODELS, routing_key
from shared.settings import Port, ServiceSettings, existing_file

DEFAULT_EVENTS = ("conversion.*", "file.*", "report.unrecognised")
"""What people are told: end states, conflicts, risk and unrecognised callbacks; never raw reports."""

RESERVED_NAMES = frozenset({"parked", "delay", "private", "return"})

EVENT_NAMES = frozenset(
    {
        *(routing_key(name) for name, model in MODELS.items() if model.EXCHANGE == EVENTS_EXCHANGE),
        *("conversion.overdue", "file.damaged", "file.expired"),  # reserved: to be told by later versions
        *("report.unrecognised", "conversion.*", "file.*", "*"),
    }
)
"""What a destination may ask for."""

_ODD = re.compile(r"[\s#]")

_UNITS = {"": "hours", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if (match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)", value.strip())) is None:
        raise ValueError("must be a number with s, m, h or d, for example 72h")
    try:
        return timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        raise ValueError("is longer than any clock counts") from None


class NotifierSettings(ServiceSettings):
    """What the notifier needs to know."""

    ops_port: Port = Field(default=9103, description="Port of the operations server; 0 takes a free one.")
    notify_config: Annotated[Path, AfterValidator(existing_file)] | None = Field(
        default=None,
        description="TOML file of the destinations; each has a queue of its own. Default: one `log`.",
    )
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
            if pattern not in EVENT_NAMES:
                raise ValueError(f"{pattern!r} is no event; there are {', '.join(sorted(EVENT_NAMES))}")
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
        if not _is_url(url.get_secret_value()):
            raise ValueError("must be http:// or https://, with a host, and neither blanks nor a fragment")
        return url

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        if self.secret is not None and self.secret_file is not None:
            raise ValueError("give secret or secret_file, not both")
        return self


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
    tables = document.get("destination", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise StartError(f"{path}: write each destination as a table of its own, under [[destination]]")
    problems = [f"only [[destination]] tables are read, not {name}" for name in sorted(set(document) - {"destination"})]
    found: tuple[Destination, ...] = ()
    try:
        found = _DESTINATIONS.validate_python(tuple(tables))
    except ValidationError as error:
        problems += map(_told, error.errors(include_input=False, include_url=False))
    names = [str(table.get("name")) for table in tables if "name" in table]
    problems += [f"two destinations are called {name}" for name in sorted({n for n in names if names.count(n) > 1})]
    if problems:
        raise StartError(f"{path} must be corrected:\n" + "\n".join(f"  {problem}" for problem in problems))
    return found


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and not _ODD.search(text)
    except ValueError:
        return False


def _told(problem: Mapping[str, Any]) -> str:
    number, *rest = problem["loc"]
    place = [f"destination {number + 1}", *(str(part) for part in rest if part not in {"log", "webhook"})]
    return f"{', '.join(place)}: {str(problem['msg']).removeprefix('Value error, ')}"
