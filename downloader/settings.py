"""The downloader's settings.

Responsible for: where files are kept, what a download may cost, with the checks between them, and which vendors can be
asked. It must not open anything.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from downloader.account import Account
from downloader.confirmation import Confirm
from downloader.fence import Fence, Opening, parse_opening
from shared.settings import PREFIX, Port, ServiceSettings, Words
from shared.vendors import Vendor

DEFAULT_MAX_BYTES = 512 * 1024 * 1024

_OBJECT_STORES = frozenset({"s3", "gs", "az"})
_IN_AN_OBJECT_STORE = re.compile(r"(?:s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]+(?:/[A-Za-z0-9_][A-Za-z0-9._=-]*)*/?")


def _api_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("must be of printable ASCII without spaces, as it goes into a header")
    return value


def _api_base(value: str) -> str:
    parts = urlsplit(value)
    try:
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValueError("has no port where one should be") from None
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in {"http", "https"} or not named or not plain:
        raise ValueError("must be https://HOST, perhaps with a path, and hold neither a password nor a query")
    return value.rstrip("/")


ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
ApiBase = Annotated[str, AfterValidator(_api_base)]
ApiRate = Annotated[int, Field(ge=1, le=20)]
"""The vendors allow an account 20 requests in ten seconds."""

_KEY = (
    "Key of the vendor's API, to have its links confirmed, and a fresh one where one has expired. Unset: never asked."
)
_BASE = "Base of the vendor's API; http only in a network of your own, as the key travels in it."
_RATE = "Questions put to the vendor in ten seconds; half of it for a minute when that was too fast."


class DownloaderSettings(ServiceSettings):
    """What the downloader needs to know."""

    ops_port: Port = Field(default=9102, description="Port of the operations server; 0 takes a free one.")
    storage_url: str | None = Field(
        default=None,
        description="Where files are kept: `file:///FOLDER`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or"
        " `az://CONTAINER/PREFIX`. Default: `files` in the data folder.",
    )
    storage_single_writer: bool = Field(
        default=False,
        description="Run although the storage cannot create conditionally: this downloader is its only writer.",
    )
    storage_reserve_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Bytes that stay free on the disks of staging and storage, for the queue beside them: with less"
        " nothing is fetched. Default: 1 GiB, but at most 5 % of the disk; 0: none.",
    )
    storage_quota_bytes: int | None = Field(
        default=None, gt=0, description="Bytes of audio and pictures kept at most: beyond, nothing is fetched."
    )
    retention_mode: Literal["off", "report", "delete"] = Field(
        default="off",
        description="Whether files go by age or size: `off`, `report` names them, `delete` lets go what was named for"
        " a day.",
    )
    retention_max_age_days: int | None = Field(
        default=None, ge=16, description="Days a file is kept; no vendor comes back to one after 15."
    )
    retention_max_bytes: int | None = Field(
        default=None, gt=0, description="Bytes of audio and pictures beyond which the oldest files go."
    )
    download_concurrency: int = Field(
        default=4, ge=1, le=256, description="Downloads at once; one more where they are of several vendors."
    )
    download_urgent_concurrency: int = Field(
        default=3,
        ge=1,
        le=256,
        description="Downloads at once, besides, of what is past 80 % of its time: the reserved places, all but one of"
        " them for one host; one more where they are of several vendors.",
    )
    download_per_vendor: int | None = Field(
        default=None,
        ge=1,
        description="Reports of one vendor worked on at once. Default: as many as `WAVEKEEP_DOWNLOAD_CONCURRENCY`: one"
        " vendor alone has them all.",
    )
    download_per_host: int | None = Field(
        default=None,
        ge=1,
        description="Downloads at once from one host. Default: one less than all of them, at least 1.",
    )
    download_large_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=1,
        description="A file above this is large, in bytes: at most half of the downloads are of large files.",
    )
    download_max_bytes: int = Field(default=DEFAULT_MAX_BYTES, ge=1, description="Largest file taken, in bytes.")
    download_min_bytes_per_s: float | None = Field(
        default=None,
        gt=0,
        description="Least rate, in bytes per second. Default: what the largest file needs.",
    )
    download_rate_window_s: float = Field(
        default=30.0, gt=0, description="Seconds of waiting over which the least rate is measured; the longest silence."
    )
    download_attempt_timeout_s: float = Field(default=1_500.0, gt=0, description="Seconds one attempt may take.")
    download_allowed_hosts: Words = Field(
        default=(),
        description="Hosts files may come from, comma-separated, `*.example.com` too. Empty: any public host.",
    )
    download_allow_addresses: Words = Field(
        default=(),
        description="Networks, or addresses with a port, reachable though private, also by http and on any port.",
    )
    confirm: Confirm = Field(
        default="when_possible",
        description="Whether a vendor with a key is asked before fetching: `always`, `when_possible`, `never`.",
    )
    ack_timeout_s: float = Field(
        default=1_800.0, gt=0, description="The broker's acknowledgement time-out (`consumer_timeout`), in seconds."
    )
    quality: bool = Field(
        default=False,
        description="Measure how each file sounds (levels, loudness, clipping, silence); needs the extra `quality`.",
    )
    quality_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="Seconds to wait for the measuring of one file, its turn included; the file is kept either way.",
    )
    quality_workers: int = Field(default=1, ge=1, le=64, description="Files measured at once, each by its own process.")
    waveform: bool = Field(
        default=False,
        description="Keep a picture of each file's waveform (PNG) and its peaks (JSON); needs the extra `quality`.",
    )
    apibox_api_key: ApiKey | None = Field(default=None, description=_KEY)
    apibox_api_base: ApiBase = Field(default="https://api.api.box", description=_BASE)
    apibox_api_rate_per_10s: ApiRate = Field(default=5, description=_RATE)
    kie_api_key: ApiKey | None = Field(default=None, description=_KEY)
    kie_api_base: ApiBase = Field(default="https://api.kie.ai", description=_BASE)
    kie_api_rate_per_10s: ApiRate = Field(default=5, description=_RATE)
    sunoapi_api_key: ApiKey | None = Field(default=None, description=_KEY)
    sunoapi_api_base: ApiBase = Field(default="https://api.sunoapi.org", description=_BASE)
    sunoapi_api_rate_per_10s: ApiRate = Field(default=5, description=_RATE)

    @field_validator("storage_url")
    @classmethod
    def _check_storage_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "file:///")
        if parts.scheme in _OBJECT_STORES:
            if not _IN_AN_OBJECT_STORE.fullmatch(value or ""):
                raise ValueError(
                    f"must be {parts.scheme}://BUCKET or {parts.scheme}://BUCKET/PREFIX, of letters, digits and ._=-;"
                    " credentials and endpoint have variables of their own (docs/storage.md)"
                )
            return value
        if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
            raise ValueError("must be file:///FOLDER, with an absolute path, or s3://, gs:// or az:// with a bucket")
        return value

    @field_validator("download_allowed_hosts")
    @classmethod
    def _check_hosts(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        Fence((), values)
        return values

    @field_validator("download_allow_addresses")
    @classmethod
    def _check_openings(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            parse_opening(value)
        return values

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        needed_s = self.download_max_bytes / self.least_bytes_per_s
        if needed_s > self.download_attempt_timeout_s * 1.000_001:
            raise ValueError(
                f"{PREFIX}DOWNLOAD_MAX_BYTES at {PREFIX}DOWNLOAD_MIN_BYTES_PER_S takes {needed_s:.0f} s, longer than"
                f" {PREFIX}DOWNLOAD_ATTEMPT_TIMEOUT_S ({self.download_attempt_timeout_s:.0f} s): a large file could"
                " never be whole. Raise the rate or the time-out, or lower the size."
            )
        if self.download_attempt_timeout_s >= self.ack_timeout_s:
            raise ValueError(
                f"{PREFIX}DOWNLOAD_ATTEMPT_TIMEOUT_S must be below {PREFIX}ACK_TIMEOUT_S: the broker would hand a"
                " message out again while its file is still being fetched."
            )
        return self

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if self.places_per_host > self.download_concurrency:
            raise ValueError(
                f"{PREFIX}DOWNLOAD_PER_HOST must not be above {PREFIX}DOWNLOAD_CONCURRENCY"
                f" ({self.download_concurrency}): more downloads than that there are never at once."
            )
        if self.places_per_vendor > self.download_concurrency:
            raise ValueError(
                f"{PREFIX}DOWNLOAD_PER_VENDOR must not be above {PREFIX}DOWNLOAD_CONCURRENCY"
                f" ({self.download_concurrency}): no place would be left to another vendor."
            )
        return self

    @model_validator(mode="after")
    def _check_keeping(self) -> Self:
        if self.retention_mode != "off" and self.retention_max_age_days is None and self.retention_max_bytes is None:
            raise ValueError(
                f"{PREFIX}RETENTION_MODE={self.retention_mode} needs {PREFIX}RETENTION_MAX_AGE_DAYS or"
                f" {PREFIX}RETENTION_MAX_BYTES, or both: without them no file would ever go."
            )
        quota_bytes = self.storage_quota_bytes
        if quota_bytes is not None and quota_bytes < self.download_max_bytes:
            raise ValueError(
                f"{PREFIX}STORAGE_QUOTA_BYTES must be at least {PREFIX}DOWNLOAD_MAX_BYTES: a large file could never be"
                " kept. Raise the quota or lower the size."
            )
        if self.retention_mode != "off" and quota_bytes is not None and (self.retention_max_bytes or 0) > quota_bytes:
            raise ValueError(
                f"{PREFIX}RETENTION_MAX_BYTES must not be above {PREFIX}STORAGE_QUOTA_BYTES: the quota would be spent"
                " before any file goes."
            )
        return self

    @model_validator(mode="after")
    def _check_quality_time(self) -> Self:
        measured = self.quality or self.waveform
        if measured and self.download_attempt_timeout_s + self.quality_timeout_s >= self.ack_timeout_s:
            raise ValueError(
                f"{PREFIX}DOWNLOAD_ATTEMPT_TIMEOUT_S and {PREFIX}QUALITY_TIMEOUT_S together must be below"
                f" {PREFIX}ACK_TIMEOUT_S: the broker would hand a message out again while its file is still being"
                " measured."
            )
        return self

    @property
    def least_bytes_per_s(self) -> float:
        """The least rate: as set, or what the largest file needs to arrive within one attempt."""
        return self.download_min_bytes_per_s or self.download_max_bytes / self.download_attempt_timeout_s

    @property
    def places_per_host(self) -> int:
        """Downloads at once from one host: as set, or one less than there are."""
        return self.download_per_host or max(self.download_concurrency - 1, 1)

    @property
    def places_per_vendor(self) -> int:
        """Reports of one vendor worked on at once: as set, or all that there are."""
        return self.download_per_vendor or self.download_concurrency

    @property
    def in_hand(self) -> int:
        """Reports in hand at once in the normal lane: one vendor never has them all."""
        return max(self.download_concurrency, self.places_per_vendor + 1)

    @property
    def urgent_places_per_host(self) -> int:
        """Downloads at once from one host in the urgent lane."""
        return max(self.download_urgent_concurrency - 1, 1)

    @property
    def urgent_in_hand(self) -> int:
        """Reports in hand at once in the urgent lane: one vendor never has them all."""
        return self.download_urgent_concurrency + 1

    @property
    def places_for_large(self) -> int:
        """Downloads of large files at once."""
        return max(self.download_concurrency // 2, 1)

    @property
    def object_store(self) -> str | None:
        """The address of the object store files are kept in; None where they are kept in a folder."""
        return self.storage_url if urlsplit(self.storage_url or "").scheme in _OBJECT_STORES else None

    @property
    def storage_folder(self) -> Path:
        """The folder files are kept in, where that is no object store."""
        if self.storage_url is None:
            return self.data_dir.absolute() / "files"
        return Path(unquote(urlsplit(self.storage_url).path))

    @property
    def staging_folder(self) -> Path:
        """The folder attempts are proven in."""
        return self.data_dir.absolute() / "staging"

    def accounts(self) -> Mapping[Vendor, Account]:
        """Return our account with each vendor that a key is configured for."""
        return MappingProxyType(
            {
                vendor: Account(
                    base=getattr(self, f"{vendor}_api_base"),
                    key=getattr(self, f"{vendor}_api_key"),
                    per_10_s=getattr(self, f"{vendor}_api_rate_per_10s"),
                )
                for vendor in Vendor
                if getattr(self, f"{vendor}_api_key") is not None
            }
        )

    @property
    def openings(self) -> tuple[Opening, ...]:
        """What the fence lets through besides the public internet."""
        return tuple(parse_opening(value) for value in self.download_allow_addresses)
