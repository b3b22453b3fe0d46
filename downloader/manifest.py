"""The manifest: the JSON beside a file that proves it, and the commit point of custody.

Responsible for: its fields and their meaning, and the event each one becomes. Immutable once created. It must not
hold anything that opens the link: no query, no secret.
"""

from datetime import datetime
from typing import Literal, TypeVar

import msgspec

from shared.errors import PermanentError, Reason
from shared.events import ConversionStored, Evidence, Format
from shared.vendors import Vendor

R = TypeVar("R")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, and how it was proven.

    Attributes:
        audio: key of the audio in the same storage.
        link: where it came from, without query.
        link_identity: digest of the link without its signature, to tell a repetition from a contradiction.
        event_id: of the `conversion.stored` that tells it.
        quality: findings of a quality run; null where none was configured.
    """

    version: Literal[1] = 1
    vendor: Vendor
    task_id: str
    audio: str
    uri: str
    size_bytes: int
    sha256: str
    format: Format
    evidence: Evidence
    warnings: tuple[str, ...]
    quality: None = None
    link: str
    link_identity: str
    received_at: datetime
    deadline: datetime
    stored_at: datetime
    event_id: str
    traceparent: str

    def announcement(self) -> ConversionStored:
        """Return what `conversion.stored` says of it: always the same."""
        return ConversionStored(
            vendor=self.vendor,
            task_id=self.task_id,
            uri=self.uri,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            format=self.format,
            evidence=self.evidence,
            quality=self.quality,
            warnings=self.warnings,
            stored_at=self.stored_at,
        )


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """The record of the first rejection of a task."""

    version: Literal[1] = 1
    vendor: Vendor
    task_id: str
    reason: Reason
    detail: str
    code: int | None
    rejected_at: datetime


def write(record: Manifest | Rejection) -> bytes:
    """Return the JSON of a record, indented: people read it."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def read_manifest(content: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        PermanentError: it is damaged or of a later version; only a person can tell which.
    """
    return _read(content, Manifest)


def read_rejection(content: bytes) -> Rejection:
    """Read the record of a rejection.

    Raises:
        PermanentError: as for a manifest.
    """
    return _read(content, Rejection)


def _read(content: bytes, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PermanentError(Reason.STORAGE_FAILED, f"a record cannot be read: {error}") from error
