"""The contract between services: every event, its schema and its identity.

Responsible for: the CloudEvents 1.0 envelope in structured JSON, one frozen model per event type, and the
deterministic id that makes the same fact the same event however often and by whichever way it arrives. Pure. It must
not publish anything, and no service may put on the wire what is not defined here.

Readers ignore fields they do not know. A renamed field is a new version of its type.
Source: CloudEvents 1.0 (JSON event format); the identities are the design's (`docs/events.md`).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID, uuid5

import msgspec

from shared.errors import PermanentError, Reason
from shared.links import identity
from shared.tracing import start
from shared.vendors import Vendor

CONTENT_TYPE = "application/cloudevents+json"
INTAKE_EXCHANGE = "wavekeep.intake"
EVENTS_EXCHANGE = "wavekeep.events"

_NAMESPACE = UUID("6d0b7a5e-51f4-5c0c-9a53-2f6f0c1f7b6a")
"""Never to be changed: every id ever told depends on it."""

Trust = Literal["token", "signature", "stale", "none", "vendor_confirmed", "operator"]
"""What the word rests on: a proof of the vendor's, a right but old signature, nothing, the vendor's own answer when
asked, or a person with access to the machine and its storage."""

Origin = Literal["callback", "poll", "manual"]

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""Aware: on the wire, a time without a zone is malformed (RFC 3339)."""


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What an event says. Each subclass is one type on one exchange."""

    TYPE: ClassVar[str]
    EXCHANGE: ClassVar[str]

    @property
    def facts(self) -> tuple[str, ...]:
        """What tells this event apart from others of its type about the same task."""
        return ()


class ReportSucceeded(Data, frozen=True, kw_only=True):
    """The vendor has a file.

    `url` is a key to the file: it stays on the private exchange. `deadline` is when the vendor deletes the file.
    """

    TYPE = "wavekeep.report.succeeded.v1"
    EXCHANGE = INTAKE_EXCHANGE

    vendor: Vendor
    task_id: str
    url: str
    code: int
    message: str
    received_at: Instant
    deadline: Instant
    trust: tuple[Trust, ...]
    origin: Origin = "callback"

    @property
    def facts(self) -> tuple[str, ...]:
        """The link, without what merely signs it."""
        return (identity(self.url),)


class ReportFailed(Data, frozen=True, kw_only=True):
    """The vendor failed, with its own code."""

    TYPE = "wavekeep.report.failed.v1"
    EXCHANGE = INTAKE_EXCHANGE

    vendor: Vendor
    task_id: str
    code: int
    message: str
    received_at: Instant
    deadline: Instant
    trust: tuple[Trust, ...]
    origin: Origin = "callback"

    @property
    def facts(self) -> tuple[str, ...]:
        """The vendor's code."""
        return (str(self.code),)


class ReportLinkless(Data, frozen=True, kw_only=True):
    """The vendor says that it has a file, but not where: it is to be asked. The raw body is kept until it has told."""

    TYPE = "wavekeep.report.linkless.v1"
    EXCHANGE = INTAKE_EXCHANGE

    vendor: Vendor
    task_id: str
    code: int
    message: str
    explanation: str
    body: str
    received_at: Instant
    deadline: Instant
    trust: tuple[Trust, ...]
    origin: Origin = "callback"


class ReportUnrecognised(Data, frozen=True, kw_only=True):
    """Authentic, but of no known shape: the raw body, kept for replay."""

    TYPE = "wavekeep.report.unrecognised.v1"
    EXCHANGE = INTAKE_EXCHANGE

    vendor: Vendor
    task_id: str | None
    explanation: str
    body: str | None
    received_at: Instant
    trust: tuple[Trust, ...]
    origin: Origin = "callback"
    body_sha256: str

    @property
    def facts(self) -> tuple[str, ...]:
        """The SHA-256 of the body."""
        return (self.body_sha256,)


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """What the walker read in the file. Rates in Hz, duration in seconds."""

    container: Literal["RIFF", "RIFX", "RF64", "BW64"]
    codec: Literal["pcm", "float"]
    sample_rate_hz: int
    channels: int
    bits_per_sample: int
    frames: int
    duration_s: float


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the proof of a stored file rests on, so that a reader sees exactly how much it is worth.

    Attributes:
        trust: how the sender of the callback was authenticated, and `vendor_confirmed` where the link that was
            followed is the vendor's own answer; `operator` where a person overruled it.
        transport: how the end of the body was known: its length was told, its chunks were ended, or only the
            connection was closed; `content_range` where a cut download was resumed and its last range matched;
            `local_file` where a person brought the file.
        structure: the walker found the WAV whole.
        digest: what the bytes were held against. `own`: nothing; `sha256` was computed here over the bytes as they
            arrived. `server`: a digest that the server sent along, besides.
        matched: which of the server's, for example `repr-digest sha-256`; `etag md5` is only a hint.
        differs: which of the server's are not of these bytes, however often they were fetched.
        reread: the stored file was read again and had the same digest.
    """

    trust: tuple[str, ...]
    transport: Literal["content_length", "chunked", "close_delimited", "content_range", "local_file"]
    structure: Literal["whole"] = "whole"
    digest: Literal["own", "server"] = "own"
    matched: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    reread: bool = True


class ConversionStored(Data, frozen=True, kw_only=True):
    """In custody. Final. `uri` is where our storage keeps it; `quality` is null until a quality run is configured."""

    TYPE = "wavekeep.conversion.stored.v1"
    EXCHANGE = EVENTS_EXCHANGE

    vendor: Vendor
    task_id: str
    uri: str
    size_bytes: int
    sha256: str
    format: Format
    evidence: Evidence
    quality: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    stored_at: Instant


class ConversionRejected(Data, frozen=True, kw_only=True):
    """Given up, with `vendor_failed` and the vendor's code, or with a reason of ours. A later success may heal it."""

    TYPE = "wavekeep.conversion.rejected.v1"
    EXCHANGE = EVENTS_EXCHANGE

    vendor: Vendor
    task_id: str
    reason: Reason
    detail: str
    code: int | None = None
    rejected_at: Instant

    @property
    def facts(self) -> tuple[str, ...]:
        """The reason."""
        return (str(self.reason),)


class ConversionConflicting(Data, frozen=True, kw_only=True):
    """A later report contradicts what is final. Links are shown without their queries.

    `kept_identity` and `claimed_identity` are digests of the two links (or of the vendor's code, for a failure): equal
    conflicts have equal ids although no query string is public.
    """

    TYPE = "wavekeep.conversion.conflicting.v1"
    EXCHANGE = EVENTS_EXCHANGE

    vendor: Vendor
    task_id: str
    claim: Literal["succeeded", "failed"]
    kept_link: str
    claimed_link: str | None = None
    claimed_code: int | None = None
    kept_identity: str
    claimed_identity: str
    received_at: Instant

    @property
    def facts(self) -> tuple[str, ...]:
        """Both links."""
        return (self.kept_identity, self.claimed_identity)


class ConversionAtRisk(Data, frozen=True, kw_only=True):
    """Not yet stored at a share of the time to the deadline."""

    TYPE = "wavekeep.conversion.at_risk.v1"
    EXCHANGE = EVENTS_EXCHANGE

    vendor: Vendor
    task_id: str
    threshold_percent: int
    deadline: Instant
    last_reason: Reason
    attempts: int

    @property
    def facts(self) -> tuple[str, ...]:
        """The threshold."""
        return (str(self.threshold_percent),)


class FileReplaced(Data, frozen=True, kw_only=True):
    """A person put another file in the place of the kept one, which stays beside it. What was stored stays told.

    Attributes:
        revision: of the manifest: 2 for the first replacement. It belongs to the identity, because a file may come
            back after another one had its place, and that must be heard too.
        previous_sha256: of the file that had its place until now.
        fetched_link: where it was fetched from, without query; null where a person brought the file.
        explanation: the person's.
    """

    TYPE = "wavekeep.file.replaced.v1"
    EXCHANGE = EVENTS_EXCHANGE

    vendor: Vendor
    task_id: str
    revision: int
    uri: str
    size_bytes: int
    sha256: str
    format: Format
    evidence: Evidence
    warnings: tuple[str, ...] = ()
    previous_sha256: str
    fetched_link: str | None = None
    explanation: str | None = None
    replaced_at: Instant

    @property
    def facts(self) -> tuple[str, ...]:
        """The revision, and the digest of the new file."""
        return (str(self.revision), self.sha256)


class FileDamaged(Data, frozen=True, kw_only=True):
    """A kept file, or its manifest, is not what was proven. Nothing was changed: what is there is left for a person.

    Attributes:
        task_id: where the vendor's id is known no more, its SHA-256, as it stands in the names of the task's files.
        revision: of the manifest; null where no manifest can be read that tells it.
        uri: of what is damaged: the audio, or the manifest.
        finding: `missing`: it is not there; `size_differs`, `digest_differs`; `unreadable`: the storage does not give
            it back, or a manifest makes no sense.
        expected_sha256, expected_size_bytes: by the manifest; null for a manifest itself.
        found_sha256, found_size_bytes: null where nothing could be read.
    """

    TYPE = "wavekeep.file.damaged.v1"
    EXCHANGE = EVENTS_EXCHANGE

    vendor: Vendor
    task_id: str
    revision: int | None
    uri: str
    finding: Literal["missing", "size_differs", "digest_differs", "unreadable"]
    expected_sha256: str | None = None
    expected_size_bytes: int | None = None
    found_sha256: str | None = None
    found_size_bytes: int | None = None
    found_at: Instant

    @property
    def facts(self) -> tuple[str, ...]:
        """The revision, the finding, and the digest of what is there instead."""
        return ("" if self.revision is None else str(self.revision), self.finding, self.found_sha256 or "")


class FileExpired(Data, frozen=True, kw_only=True):
    """A kept file is about to be deleted by the rules of retention. What was stored stays told, and its records stay.

    Attributes:
        revision: of the manifest; it belongs to the identity, because a person may put another file in its place.
        uri, size_bytes, sha256: of the file that had its place; earlier revisions go with it.
        rule: the one that lets it go.
    """

    TYPE = "wavekeep.file.expired.v1"
    EXCHANGE = EVENTS_EXCHANGE

    vendor: Vendor
    task_id: str
    revision: int
    uri: str
    size_bytes: int
    sha256: str
    rule: Literal["age", "size"]
    expired_at: Instant

    @property
    def facts(self) -> tuple[str, ...]:
        """The revision."""
        return (str(self.revision),)


MODELS: Mapping[str, type[Data]] = MappingProxyType(
    {
        model.TYPE: model
        for model in (
            ReportSucceeded,
            ReportFailed,
            ReportLinkless,
            ReportUnrecognised,
            ConversionStored,
            ConversionRejected,
            ConversionConflicting,
            ConversionAtRisk,
            FileReplaced,
            FileExpired,
            FileDamaged,
        )
    }
)
"""Every type that is on the wire, by its name."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The CloudEvents envelope."""

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: str
    subject: str
    time: Instant
    datacontenttype: Literal["application/json"] = "application/json"
    traceparent: str
    data: Data

    @property
    def routing_key(self) -> str:
        """The part of the type between `wavekeep.` and `.v1`."""
        return routing_key(self.type)


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: str
    time: Instant
    traceparent: str | None = None
    data: msgspec.Raw


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_DECODERS = {name: msgspec.json.Decoder(model) for name, model in MODELS.items()}
_ENCODER = msgspec.json.Encoder()


def routing_key(event_type: str) -> str:
    """Return the routing key of a type: `wavekeep.report.failed.v1` goes out under `report.failed`."""
    return event_type.removeprefix("wavekeep.").rpartition(".v")[0]


def subject_of(vendor: str, task_id: str | None) -> str:
    """Return the subject, `{vendor}/{task_id}`; the vendor alone where the callback named no task."""
    return f"{vendor}/{task_id}" if task_id else str(vendor)


def event_id(vendor: str, task_id: str | None, event_type: str, *facts: str) -> str:
    """Return the UUIDv5 of a fact. The parts are joined as a JSON array, so that no two facts share a name."""
    return str(uuid5(_NAMESPACE, _ENCODER.encode([vendor, task_id, event_type, *facts]).decode()))


def digest(text: str) -> str:
    """Return the first 32 hex digits of the SHA-256 of a text: an identity that shows nothing of what it identifies."""
    return sha256(text.encode()).hexdigest()[:32]


def make(data: Any, *, time: datetime, traceparent: str | None = None) -> Event:
    """Wrap what an event says into its envelope.

    Args:
        data: an instance of one of `MODELS`.
        time: when the fact came to be, aware.
        traceparent: of the message that led to this one; its trace goes on in a new span.
    """
    return Event(
        id=event_id(data.vendor, data.task_id, data.TYPE, *data.facts),
        source=f"wavekeep/{data.vendor}",
        type=data.TYPE,
        subject=subject_of(data.vendor, data.task_id),
        time=time.astimezone(UTC),
        traceparent=start(traceparent),
        data=data,
    )


def encode(event: Event) -> bytes:
    """Return the structured JSON of an event."""
    return _ENCODER.encode(event)


def type_of(body: bytes) -> str:
    """Return the type of an event without reading what it says.

    Raises:
        PermanentError: `message_malformed` where it is no CloudEvent.
    """
    try:
        return _ENVELOPE.decode(body).type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PermanentError(Reason.MESSAGE_MALFORMED, f"not one of our events: {error}") from error


def decode(body: bytes) -> Event:
    """Read an event of a known type from its structured JSON.

    Raises:
        PermanentError: `message_malformed` where it is no CloudEvent or breaks its schema, `message_unknown` where its
            type or version is none of `MODELS`.
    """
    try:
        envelope = _ENVELOPE.decode(body)
        decoder = _DECODERS.get(envelope.type)
        if decoder is None:
            raise PermanentError(Reason.MESSAGE_UNKNOWN, f"no event type {envelope.type[:80]!r} is known here")
        data = decoder.decode(envelope.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PermanentError(Reason.MESSAGE_MALFORMED, f"not one of our events: {error}") from error
    return Event(
        id=envelope.id,
        source=envelope.source,
        type=envelope.type,
        subject=envelope.subject,
        time=envelope.time,
        traceparent=envelope.traceparent or start(),
        data=data,
    )
