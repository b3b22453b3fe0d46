"""The settings of the single process: those of every service, and what only it needs.

Responsible for: one model over all of them. It must not add meaning to a setting of another room.
"""

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from downloader.settings import DownloaderSettings
from ingress.settings import IngressSettings
from notifier.settings import NotifierSettings
from shared.settings import Port


class StandaloneSettings(DownloaderSettings, IngressSettings, NotifierSettings):
    """What the single process needs to know.

    The downloader comes first: of the vendors' API keys its word counts, for it sends them.
    """

    ops_port: Port = Field(default=9100, description="Port of the operations server; 0 takes a free one.")
    public_url: str | None = Field(
        default=None,
        description="Address vendors reach the ingress under, for the callback URLs that are printed.",
    )
    sample_file: bool = Field(
        default=True,
        description="Serve a sample WAV on loopback, opened in the fence, so that the printed `curl` line works.",
    )

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "https://host")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be http:// or https:// with a host, and neither query nor fragment")
        return value
