"""Our account with a vendor, as the settings have it.

Responsible for: what is known of it. It must not ask: `downloader.vendor_api` does, with a library that is too large
for whoever wants the settings alone.
"""

from dataclasses import dataclass

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class Account:
    """Our account with a vendor.

    Attributes:
        base: of the vendor's API, without a slash at the end.
        key: what `Authorization: Bearer` carries.
        per_10_s: requests within ten seconds.
    """

    base: str
    key: SecretStr
    per_10_s: int
