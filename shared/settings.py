"""Settings: read once from the environment, all problems told at once.

Responsible for: the settings that every service has, and the way settings are read and refused. Each service defines
its own in its own `settings` module. Catalogue: `docs/configuration.md`, held against the code by a test. It must not
read the environment on import, and no secret may show in an error.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import StartError

PREFIX = "WAVEKEEP_"


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _storage(value: str) -> str:
    if urlsplit(value).scheme != "file" or not urlsplit(value).path.startswith("/"):
        raise ValueError("must be a folder as file:///absolute/path; object stores are not supported yet")
    return value


def _broker(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme == "embedded" and parts.path.startswith("/") and not parts.netloc:
        return value
    if parts.scheme in {"amqp", "amqps"} and parts.hostname:
        return value
    raise ValueError("must be embedded:///absolute/path, amqp://… or amqps://…")


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Comma-separated."""

Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]
"""Comma-separated, so that two are valid while rotating."""

Port = Annotated[int, Field(ge=0, le=65_535)]
"""0 takes a free one, and says which."""


class ServiceSettings(BaseSettings):
    """What every service needs to know."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    data_dir: Path = Field(
        default=Path("data"), description="Folder of this process: the embedded queue, staging, standalone's secrets."
    )
    broker_url: Annotated[SecretStr, AfterValidator(lambda s: SecretStr(_broker(s.get_secret_value())))] | None = Field(
        default=None,
        description="`embedded:///PATH` (default: `queue.sqlite3` in the data folder), `amqp://…` or `amqps://…`.",
    )
    declare_topology: bool = Field(
        default=True,
        description="Create missing exchanges and queues. Off: wait until `wavekeep topology apply` was run.",
    )
    publish_timeout_s: float = Field(
        default=5.0, gt=0, le=10, description="Seconds a publish may take to be confirmed."
    )
    notify_config: Path | None = Field(
        default=None,
        description="TOML file of the notifier's destinations; the topology has a queue for each. Default: one `log`.",
    )
    ops_host: str = Field(default="127.0.0.1", description="Address of `/livez /readyz /metrics /version`.")
    ops_port: Port = Field(default=9100, description="Port of the operations server; 0 takes a free one.")
    grace_time_s: float = Field(
        default=25.0, ge=0, description="Seconds that work in hand may still take after SIGTERM."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`json`, `console`, or `auto`: columns on a terminal, JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")

    @property
    def embedded_path(self) -> Path | None:
        """The queue file of the embedded broker; None where the broker is RabbitMQ."""
        url = self.broker_url.get_secret_value() if self.broker_url else ""
        if not url:
            return self.data_dir.absolute() / "queue.sqlite3"
        parts = urlsplit(url)
        if parts.scheme != "embedded":
            return None
        path = Path(parts.path)
        return path / "queue.sqlite3" if path.is_dir() else path

    @model_validator(mode="after")
    def _check_notify_config(self) -> Self:
        if self.notify_config is not None and not self.notify_config.is_file():
            raise ValueError(f"{PREFIX}NOTIFY_CONFIG: there is no file {self.notify_config}")
        return self


S = TypeVar("S", bound=ServiceSettings)


def load(model: type[S], **overrides: Any) -> S:
    """Read the settings of a service from the environment.

    Raises:
        StartError: naming every variable that is wrong and why, without any value.
    """
    try:
        return model(**overrides)
    except ValidationError as error:
        lines = [_told(problem) for problem in error.errors(include_input=False, include_url=False)]
        raise StartError("These settings must be corrected:\n" + "\n".join(f"  {line}" for line in lines)) from None


def networks(values: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Read networks or single addresses; ValueError names the one that is neither."""
    return tuple(ipaddress.ip_network(value, strict=False) for value in values)


def _told(problem: Mapping[str, Any]) -> str:
    where = problem["loc"][0] if problem["loc"] else ""
    what = str(problem["msg"]).removeprefix("Value error, ")
    return f"{PREFIX}{str(where).upper()}: {what}" if where else what
