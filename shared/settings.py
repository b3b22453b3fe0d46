"""Settings: read once from the environment, all problems told at once.

Responsible for: the settings that every service has, and the way settings are read and refused. Each service defines
its own in its own `settings` module. Catalogue: `docs/configuration.md`, held against the code by a test. It must not
read the environment on import, and no secret may show in an error.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from shared.errors import StartError

PREFIX = "WAVEKEEP_"
LARGEST_SECRET_BYTES = 64 * 1024


def split(value: Any) -> Any:
    """Split a text at its commas; leave everything else as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def broker_urls(value: str) -> tuple[str, ...]:
    """Split what names a broker into its URLs: several are the nodes of one cluster, separated by commas or lines.

    A comma elsewhere, in a password say, separates nothing.
    """
    return tuple(re.split(r"\s*[,\n]\s*(?=amqps?://)", value.strip()))


def _broker(value: str) -> str:
    urls = broker_urls(value)
    for url in urls:
        _broker_url(url, several=len(urls) > 1)
    return value


def _broker_url(value: str, *, several: bool) -> None:
    if re.search(r"[\r\n\t]", value):
        raise ValueError("must not be broken by a line's end or a tab")  # urlsplit would leave it out unseen
    parts = urlsplit(value)
    if not several and parts.scheme == "embedded" and parts.path.startswith("/") and not parts.netloc:
        return
    try:
        whole = parts.scheme in {"amqp", "amqps"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # its text would show what stands where the port should: often the rest of a password that holds a slash
        raise ValueError("has no port where one should be; write / in a password as %2F") from None
    if not whole:
        raise ValueError("must be embedded:///absolute/path, or one or more of amqp://… and amqps://…")


def existing_file(value: Path) -> Path:
    """Refuse a path where there is no file, without showing it."""
    if not value.is_file():
        raise ValueError("must name a file that is there")
    return value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)]
"""Comma-separated."""

Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split)]
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
        description="`embedded:///PATH` (default: `queue.sqlite3` in the data folder), `amqp://…` or `amqps://…`;"
        " several of these, comma-separated, are nodes of one cluster, tried in turn.",
    )
    declare_topology: bool = Field(
        default=True,
        description="Create missing exchanges and queues. Off: wait until `wavekeep topology apply` was run.",
    )
    publish_timeout_s: float = Field(
        default=5.0, gt=0, le=10, description="Seconds a publish may take to be confirmed."
    )
    ops_host: str = Field(default="127.0.0.1", description="Address of `/livez /readyz /metrics /version`.")
    ops_port: Port = Field(default=9100, description="Port of the operations server; 0 takes a free one.")
    grace_time_s: float = Field(
        default=25.0, ge=0, description="Seconds that work in hand may still take after SIGTERM."
    )
    brake_after: int = Field(
        default=20,
        ge=1,
        description="Messages parked within a minute for causes of ours, or of one host, until the brake engages.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`json`, `console`, or `auto`: columns on a terminal, JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment, and before it the files that it names for secrets."""
        return init_settings, _SecretFiles(settings_cls), env_settings

    @field_validator("*", mode="before")
    @classmethod
    def _check_secret_file(cls, value: Any) -> Any:
        if not isinstance(value, _Unread):
            return value
        raise ValueError(value.problem)

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


@dataclass(frozen=True, slots=True)
class _Unread:
    """In the place of a secret that could not be read, so that this is told with all other problems."""

    problem: str


class _SecretFiles(EnvSettingsSource):
    """The secrets in the files that variables `NAME_FILE` name, as container platforms mount them."""

    def __call__(self) -> dict[str, Any]:
        """Return what was read, by setting; no content of a file is ever in a problem."""
        found: dict[str, Any] = {}
        for name in secret_settings(self.settings_cls):
            variable = f"{PREFIX}{name}"
            path = self.env_vars.get(f"{variable}_file".lower())
            if not path:
                continue
            if self.env_vars.get(variable.lower()):
                found[name] = _Unread(f"give this or {variable.upper()}, not both")
                continue
            try:
                text = _secret_in(Path(path))
            except ValueError as error:
                found[name] = _Unread(str(error))
                continue
            several = get_origin(self.settings_cls.model_fields[name].annotation) is tuple
            found[name] = text.replace("\r\n", "\n").replace("\n", ",") if several else text
        return found


def secret_settings(model: type[BaseSettings]) -> tuple[str, ...]:
    """Return the names of the settings that hold secrets: each may be given in a file by `NAME_FILE`."""
    return tuple(name for name, field in model.model_fields.items() if _is_secret(field.annotation))


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))


def _secret_in(path: Path) -> str:
    """Return what a file says, without its last line's end.

    Raises:
        ValueError: it says nothing, or cannot be read; without the path or anything of its content.
    """
    try:
        with existing_file(path).open("rb") as file:  # anything else, a pipe say, might never end
            content = file.read(LARGEST_SECRET_BYTES + 1)
    except OSError as error:
        raise ValueError(f"must name a file that can be read ({error.strerror})") from None
    if len(content) > LARGEST_SECRET_BYTES:
        raise ValueError(f"must name a file of at most {LARGEST_SECRET_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError("must name a file that holds text in UTF-8") from None
    if not text.strip(", \t\r\n"):
        raise ValueError("must name a file that holds something")
    return re.sub(r"\r?\n\Z", "", text)


S = TypeVar("S", bound=ServiceSettings)


def load(model: type[S], **overrides: Any) -> S:
    """Read the settings of a service from the environment.

    Raises:
        StartError: naming every variable that is wrong and why, without any value.
    """
    try:
        return model(**overrides)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _problems(model, overrides, error))
        raise StartError(f"These settings must be corrected:\n{lines}") from None


def _problems(model: type[S], overrides: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Tell everything that is wrong, also between settings.

    Relations are checked only once every single setting is right: so they are checked again with defaults in the place
    of those that are wrong, leaving out what then concerns these.
    """
    problems = error.errors(include_input=False, include_url=False)
    wrong = {str(problem["loc"][0]) for problem in problems if problem["loc"]} & set(model.model_fields)
    lines = list(dict.fromkeys(_told(problem) for problem in problems))
    if wrong:
        defaults = {name: model.model_fields[name].get_default(call_default_factory=True) for name in wrong}
        try:
            model(**{**overrides, **defaults})
        except ValidationError as further:
            names = tuple(f"{PREFIX}{name.upper()}" for name in wrong)
            told = [_told(problem) for problem in further.errors(include_input=False, include_url=False)]
            lines += [line for line in told if not any(name in line for name in names)]
    return lines


def _told(problem: Mapping[str, Any]) -> str:
    where = problem["loc"][0] if problem["loc"] else ""
    what = str(problem["msg"]).removeprefix("Value error, ")
    return f"{_variable(str(where))}: {what}" if where else what


def _variable(setting: str) -> str:
    """Return the variable that gives a setting: where its value is in a file, the one that names it."""
    variable = f"{PREFIX}{setting.upper()}"
    given = {name.upper() for name, value in os.environ.items() if value}
    return f"{variable}_FILE" if f"{variable}_FILE" in given else variable
