"""The vendors we take callbacks from.

Responsible for: the closed list of vendor ids and what each promises about keeping a file (source: the vendors' own
pages, as summed up in `docs/events.md`). It must not parse or authenticate anything.
"""

from enum import StrEnum


class Vendor(StrEnum):
    """A seller of the conversion."""

    APIBOX = "apibox"
    KIE = "kie"
    SUNOAPI = "sunoapi"


RETENTION_DAYS: dict[Vendor, int] = {Vendor.APIBOX: 15, Vendor.KIE: 14, Vendor.SUNOAPI: 15}
"""Days after which the vendor deletes a file, unless a setting says otherwise."""

SAMPLE_ROUTES: dict[Vendor, str] = {
    Vendor.APIBOX: "/wav-callback",
    Vendor.KIE: "/suno-wav-callback",
    Vendor.SUNOAPI: "/wav-conversion-callback",
}
"""The routes in the vendors' own sample receivers, kept so that a receiver can be replaced without touching callers."""
