"""The ingress's settings.

Responsible for: where it listens and which proofs it asks of each vendor. It must not check any proof.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from ingress.authenticity import Credentials
from ingress.source import Boundary, Network, parse_network
from shared.errors import StartError
from shared.messaging.spool import SPOOL_TIMEOUT_S
from shared.settings import PREFIX, Port, Secrets, ServiceSettings, split
from shared.vendors import RETENTION_DAYS, Vendor

VENDOR_WAITS_S = 15.0
"""How long a vendor waits for an answer."""

_NETWORKS = "Networks the vendor's callbacks may come from, comma-separated. Empty: everywhere."
_ASKABLE = (
    "Whether the downloader can ask this vendor: then a success without a link and a stale signature are taken, and"
    " confirmed by it. The ingress never uses the key: any text will do where it should not be at the edge."
)


def _networks(value: Any) -> Any:
    return tuple(map(parse_network, split(value))) if isinstance(value, str) else value


Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]
"""Comma-separated, in CIDR form."""


class IngressSettings(ServiceSettings):
    """What the ingress needs to know."""

    ops_port: Port = Field(default=9101, description="Port of the operations server; 0 takes a free one.")
    ingress_host: str = Field(default="127.0.0.1", description="Address the callbacks come in on.")
    ingress_port: Port = Field(default=8080, description="Port the callbacks come in on; 0 takes a free one.")
    ingress_body_timeout_s: float = Field(
        default=5.0,
        gt=0,
        lt=15,
        description="Seconds a head or a body may take to arrive; the vendor gives up after 15.",
    )
    ingress_max_connections: int = Field(
        default=4_096,
        ge=16,
        description="Connections open at once; beyond them, one without a request is closed for each that comes."
        " An idle one takes 10 KiB, a hostile one up to 128 KiB.",
    )
    ingress_max_in_flight: int = Field(
        default=1_024,
        ge=1,
        description="Callbacks being read or made durable at once; beyond them 429. A body of the largest size,"
        " 64 KiB, takes up to 192 KiB while it is read and published.",
    )
    spool: bool = Field(
        default=True,
        description="While RabbitMQ does not confirm, keep callbacks in the data folder. Off: 503, where that folder"
        " dies with the ingress.",
    )
    spool_max_messages: int = Field(default=500_000, ge=1, description="Callbacks the spool takes.")
    spool_max_bytes: int = Field(default=1_073_741_824, ge=1, description="Bytes of callbacks the spool takes.")
    spool_reserve_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Bytes that stay free on the spool's disk: with less it takes nothing more. Default: 64 MiB, but at"
        " most 5 % of the disk; 0: none.",
    )
    signature_tolerance_s: float = Field(
        default=1_800.0,
        gt=0,
        description="Seconds a signature's timestamp may be off; the vendor's last retry is late.",
    )
    trusted_proxies: Networks = Field(
        default=(),
        description="Networks of your own reverse proxies, whose `X-Forwarded-For` is believed, comma-separated.",
    )
    apibox_callback_tokens: Secrets = Field(default=(), description="Tokens valid in `?token=`, comma-separated.")
    apibox_hmac_keys: Secrets = Field(default=(), description="Keys callbacks are signed with, comma-separated.")
    apibox_allow_unauthenticated: bool = Field(default=False, description="Believe callbacks without any proof.")
    apibox_source_networks: Networks = Field(default=(), description=_NETWORKS)
    apibox_api_key: SecretStr | None = Field(default=None, description=_ASKABLE)
    apibox_retention_days: int = Field(
        default=RETENTION_DAYS[Vendor.APIBOX], ge=1, description="Days the vendor keeps a file."
    )
    kie_callback_tokens: Secrets = Field(default=(), description="Tokens valid in `?token=`, comma-separated.")
    kie_hmac_keys: Secrets = Field(default=(), description="Keys callbacks are signed with, comma-separated.")
    kie_allow_unauthenticated: bool = Field(default=False, description="Believe callbacks without any proof.")
    kie_source_networks: Networks = Field(default=(), description=_NETWORKS)
    kie_api_key: SecretStr | None = Field(default=None, description=_ASKABLE)
    kie_retention_days: int = Field(
        default=RETENTION_DAYS[Vendor.KIE], ge=1, description="Days the vendor keeps a file."
    )
    sunoapi_callback_tokens: Secrets = Field(default=(), description="Tokens valid in `?token=`, comma-separated.")
    sunoapi_hmac_keys: Secrets = Field(default=(), description="Keys callbacks are signed with, comma-separated.")
    sunoapi_allow_unauthenticated: bool = Field(default=False, description="Believe callbacks without any proof.")
    sunoapi_source_networks: Networks = Field(default=(), description=_NETWORKS)
    sunoapi_api_key: SecretStr | None = Field(default=None, description=_ASKABLE)
    sunoapi_retention_days: int = Field(
        default=RETENTION_DAYS[Vendor.SUNOAPI], ge=1, description="Days the vendor keeps a file."
    )

    def credentials(self) -> Mapping[Vendor, Credentials]:
        """Return the proofs to ask, for each vendor that is served.

        A vendor without any secret is not served: its callbacks are answered 401.

        Raises:
            StartError: no vendor has one.
        """
        served = {vendor: found for vendor in Vendor if (found := self._of(vendor)).usable}
        if not served:
            names = "\n".join(f"  {PREFIX}{vendor.upper()}_CALLBACK_TOKENS" for vendor in Vendor)
            raise StartError(
                "No vendor has a secret, so nobody's callback could be believed. Set at least one of\n"
                f"{names}\n"
                "to a long random text and hand the vendor the URL /callbacks/VENDOR?token=THAT_TEXT; or set"
                f" {PREFIX}KIE_HMAC_KEYS where kie signs. {PREFIX}VENDOR_ALLOW_UNAUTHENTICATED=true believes anybody."
            )
        return MappingProxyType(served)

    def askable(self) -> frozenset[Vendor]:
        """Return the vendors that the downloader can ask."""
        return frozenset(vendor for vendor in Vendor if getattr(self, f"{vendor}_api_key") is not None)

    def boundary(self) -> Boundary:
        """Return where callbacks may come from."""
        return Boundary(
            networks=MappingProxyType({vendor: getattr(self, f"{vendor}_source_networks") for vendor in Vendor}),
            proxies=self.trusted_proxies,
        )

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, networks: tuple[Network, ...]) -> tuple[Network, ...]:
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError("must not be everybody: then no address could be told from a proxy's")
        return networks

    @model_validator(mode="after")
    def _check_answer_time(self) -> Self:
        longest_s = self.ingress_body_timeout_s + self.publish_timeout_s + SPOOL_TIMEOUT_S
        if longest_s >= VENDOR_WAITS_S:
            raise ValueError(
                f"{PREFIX}INGRESS_BODY_TIMEOUT_S and {PREFIX}PUBLISH_TIMEOUT_S, with {SPOOL_TIMEOUT_S:g} s for the"
                f" spool, make {longest_s:g} s: the vendor gives up after {VENDOR_WAITS_S:g} s. Lower one of them."
            )
        return self

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.ingress_max_in_flight > self.ingress_max_connections:
            raise ValueError(
                f"{PREFIX}INGRESS_MAX_IN_FLIGHT must not be over {PREFIX}INGRESS_MAX_CONNECTIONS: each callback in"
                " flight has a connection."
            )
        return self

    @property
    def spool_path(self) -> Path | None:
        """The spool's file; None where there is none: switched off, or not needed before the embedded queue."""
        return self.data_dir.absolute() / "spool.sqlite3" if self.spool and self.embedded_path is None else None

    def retention(self) -> Mapping[Vendor, timedelta]:
        """Return how long each vendor keeps a file."""
        return MappingProxyType(
            {vendor: timedelta(days=getattr(self, f"{vendor}_retention_days")) for vendor in Vendor}
        )

    def _of(self, vendor: Vendor) -> Credentials:
        def secrets(name: str) -> tuple[bytes, ...]:
            found: tuple[SecretStr, ...] = getattr(self, f"{vendor}_{name}")
            return tuple(secret.get_secret_value().encode() for secret in found)

        return Credentials(
            tokens=secrets("callback_tokens"),
            hmac_keys=secrets("hmac_keys"),
            allow_unauthenticated=getattr(self, f"{vendor}_allow_unauthenticated"),
        )
