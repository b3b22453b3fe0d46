"""The manifest: the JSON beside a file that proves it, and the commit point of custody.

Responsible for: its fields and their meaning, and the event each one becomes. Immutable once created: where a person
replaces the file, each revision is kept under a name of its own. It must not hold anything that opens the link: no
query, no secret.
"""

from datetime import datetime
from typing import Literal, TypeVar

import msgspec

from downloader.quality import Quality
from shared.errors import PermanentError, Reason
from shared.events import ConversionStored, Evidence, FileReplaced, Format
from shared.vendors import Vendor

R = TypeVar("R")


class Replacement(msgspec.Struct, frozen=True, kw_only=True):
    """Why this revision is there: a person put it in the place of the one before.

    Attributes:
        link: where the file was fetched from, without query; null where the person brought it.
        link_identity: as in the manifest; null as well.
        explanation: the person's.
    """

    previous_sha256: str
    link: str | None
    link_identity: str | None
    explanation: str | None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, and how it was proven.

    Attributes:
        revision: 1 as stored; a higher one each time a person replaced the file. A tombstone takes a number too.
        replacement: from the second revision on.
        audio: key of the audio in the same storage.
        link: where it came from, without query: the report's link, or the vendor's own that was followed in its place.
        link_identity: digest of the report's link without its signature, to tell a repetition from a contradiction.
            It stays that of the report whichever link was followed, because the report is what the vendor repeats;
            where the report told none, it is that of the first link the vendor gave.
        fetched_identity: digest of the link that was followed in place of that one; null where that one was.
        event_id: of the `conversion.stored`, or `file.replaced`, that tells it.
        quality: what a quality run found; null where none was configured.
        waveform, peaks: keys of picture and peaks in the same storage; null where none were made.
    """

    version: Literal[1] = 1
    revision: int = 1
    vendor: Vendor
    task_id: str
    audio: str
    uri: str
    size_bytes: int
    sha256: str
    format: Format
    evidence: Evidence
    warnings: tuple[str, ...]
    quality: Quality | None = None
    waveform: str | None = None
    peaks: str | None = None
    link: str
    link_identity: str
    fetched_identity: str | None = None
    received_at: datetime
    deadline: datetime
    stored_at: datetime
    event_id: str
    traceparent: str
    replacement: Replacement | None = None

    @property
    def kept_identity(self) -> str:
        """The identity of `link`: of the file that is kept."""
        return self.fetched_identity or self.link_identity

    def knows(self, identity: str) -> bool:
        """Tell whether a link of this identity led to what is kept, so that a report of it contradicts nothing."""
        replaced_by = self.replacement and self.replacement.link_identity
        return identity in {self.link_identity, self.fetched_identity, replaced_by}

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
            quality=None if self.quality is None else msgspec.to_builtins(self.quality),
            warnings=self.warnings,
            stored_at=self.stored_at,
        )

    def replacement_announcement(self) -> FileReplaced:
        """Return what `file.replaced` says of a later revision: always the same."""
        assert self.replacement is not None
        return FileReplaced(
            vendor=self.vendor,
            task_id=self.task_id,
            revision=self.revision,
            uri=self.uri,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            format=self.format,
            evidence=self.evidence,
            warnings=self.warnings,
            previous_sha256=self.replacement.previous_sha256,
            fetched_link=self.replacement.link,
            explanation=self.replacement.explanation,
            replaced_at=self.stored_at,
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
