"""The contract between services: identities, the envelope, and what no public event may hold."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import msgspec
import pytest

from shared import events
from shared.errors import PermanentError, Reason
from shared.events import (
    ConversionAtRisk,
    ConversionConflicting,
    ConversionRejected,
    ConversionStored,
    Data,
    Evidence,
    FileDamaged,
    FileExpired,
    FileReplaced,
    Format,
    ReportFailed,
    ReportLinkless,
    ReportSucceeded,
    ReportUnrecognised,
)
from shared.tracing import trace_id
from shared.vendors import Vendor

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
TASK = "988e7f0a4b0d4c6f9a52b1d3e7c8c8d3"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

SUCCEEDED = ReportSucceeded(
    vendor=Vendor.KIE,
    task_id=TASK,
    url="https://files.example.com/a.wav?X-Amz-Signature=1&part=2",
    code=200,
    message="success",
    received_at=NOW,
    deadline=NOW + timedelta(days=14),
    trust=("token", "signature"),
)
FAILED = ReportFailed(
    vendor=Vendor.KIE,
    task_id=TASK,
    code=501,
    message="WAV conversion failed",
    received_at=NOW,
    deadline=NOW + timedelta(days=14),
    trust=("token",),
)
LINKLESS = ReportLinkless(
    vendor=Vendor.KIE,
    task_id=TASK,
    code=200,
    message="success",
    explanation="it tells success without a link to a WAV",
    body="{}",
    received_at=NOW,
    deadline=NOW + timedelta(days=14),
    trust=("token",),
)
UNRECOGNISED = ReportUnrecognised(
    vendor=Vendor.KIE,
    task_id=None,
    explanation="it names no task",
    body="{}",
    body_sha256="44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    received_at=NOW,
    trust=("none",),
)
STORED = ConversionStored(
    vendor=Vendor.KIE,
    task_id=TASK,
    uri=f"file:///var/lib/wavekeep/files/kie/98/{TASK}.0123456789ab.wav",
    size_bytes=1_044,
    sha256="0" * 64,
    format=Format(
        container="RIFF",
        codec="pcm",
        sample_rate_hz=48_000,
        channels=2,
        bits_per_sample=16,
        frames=250,
        duration_s=250 / 48_000,
    ),
    evidence=Evidence(trust=("token",), transport="content_length"),
    stored_at=NOW,
)
REJECTED = ConversionRejected(
    vendor=Vendor.KIE, task_id=TASK, reason=Reason.VENDOR_FAILED, detail="it said so", code=501, rejected_at=NOW
)
CONFLICTING = ConversionConflicting(
    vendor=Vendor.KIE,
    task_id=TASK,
    claim="succeeded",
    kept_link="https://files.example.com/a.wav",
    claimed_link="https://files.example.com/b.wav",
    kept_identity=events.digest("https://files.example.com/a.wav?part=2"),
    claimed_identity=events.digest("https://files.example.com/b.wav"),
    received_at=NOW,
)
AT_RISK = ConversionAtRisk(
    vendor=Vendor.KIE,
    task_id=TASK,
    threshold_percent=50,
    deadline=NOW + timedelta(days=7),
    last_reason=Reason.HTTP_FAILED,
    attempts=12,
)

REPLACED = FileReplaced(
    vendor=Vendor.KIE,
    task_id=TASK,
    revision=2,
    uri=f"file:///var/lib/wavekeep/files/kie/98/{TASK}.111111111111.wav",
    size_bytes=1_044,
    sha256="1" * 64,
    format=STORED.format,
    evidence=Evidence(trust=("operator",), transport="local_file"),
    previous_sha256="0" * 64,
    explanation="the vendor sent the wrong song",
    replaced_at=NOW,
)
EXPIRED = FileExpired(
    vendor=Vendor.KIE,
    task_id=TASK,
    revision=1,
    uri=STORED.uri,
    size_bytes=1_044,
    sha256="0" * 64,
    rule="age",
    expired_at=NOW,
)

DAMAGED = FileDamaged(
    vendor=Vendor.KIE,
    task_id=TASK,
    revision=1,
    uri=f"file:///var/lib/wavekeep/files/kie/98/{TASK}.000000000000.wav",
    finding="digest_differs",
    expected_sha256="0" * 64,
    expected_size_bytes=1_044,
    found_sha256="2" * 64,
    found_size_bytes=1_044,
    found_at=NOW,
)

PINNED: dict[str, tuple[Data, str]] = {
    "report.succeeded": (SUCCEEDED, "f4835377-61db-5e7e-a845-ff131d51cbc9"),
    "report.failed": (FAILED, "f4fbaa6e-7416-5a04-aa38-95cdcba6a5a1"),
    "report.linkless": (LINKLESS, "5a4971db-2ff2-5457-98c9-71842e21cdcd"),
    "report.unrecognised": (UNRECOGNISED, "24f8db4b-edb6-568d-b16c-7f9757366951"),
    "conversion.stored": (STORED, "40aad76c-cc29-5bb8-a831-c44b6ba1c5b8"),
    "conversion.rejected": (REJECTED, "7fcedc90-4331-59dc-8560-de9a4f88bc91"),
    "conversion.conflicting": (CONFLICTING, "57bc84dc-f817-538e-a2a6-d00e4bc15e1a"),
    "conversion.at_risk": (AT_RISK, "4512ee7a-efc1-54a9-8c5f-c988ab06e959"),
    "file.replaced": (REPLACED, "cd6681a4-0403-54ca-ba5a-1a9b9f59c4f7"),
    "file.damaged": (DAMAGED, "30ebd909-9850-5893-bb19-658c095d6256"),
    "file.expired": (EXPIRED, "319383e6-694b-51a6-8db5-8d11443c6313"),
}
"""An example of every type, and its id as it was ever told."""

EXAMPLES = [data for data, _ in PINNED.values()]
PUBLIC = [model for model in events.MODELS.values() if model.EXCHANGE == "wavekeep.events"]


def id_of(data: Data, **changes: Any) -> str:
    """Return the id of an example with something changed."""
    return events.make(msgspec.structs.replace(data, **changes), time=NOW).id


def wire(data: Data = SUCCEEDED, /, **changes: Any) -> bytes:
    """Return an example as it is sent, with attributes of the envelope changed."""
    document = json.loads(events.encode(events.make(data, time=NOW, traceparent=TRACEPARENT)))
    return json.dumps(document | changes).encode()


def refusal(body: bytes) -> Reason:
    """Return the reason for which a body is refused for good."""
    with pytest.raises(PermanentError) as caught:
        events.decode(body)
    return caught.value.reason


def test_every_type_has_an_example() -> None:
    """No type is left out of these tests."""
    assert {data.TYPE for data in EXAMPLES} == set(events.MODELS)


@pytest.mark.parametrize("name", PINNED)
def test_pinned_ids(name: str) -> None:
    """An id once told never changes: subscribers deduplicate on it."""
    data, expected = PINNED[name]
    assert events.make(data, time=NOW).id == expected


@pytest.mark.parametrize("data", EXAMPLES)
def test_ids_do_not_depend_on_when_or_how(data: Data) -> None:
    """The same fact has the same id whenever, in whichever trace and by whichever way it arrives."""
    later = {
        name: NOW + timedelta(days=3)
        for name in ("received_at", "rejected_at", "stored_at", "found_at")
        if hasattr(data, name)
    }
    other_way = {"origin": "poll", "trust": ("none",)} if hasattr(data, "origin") else {}
    first = events.make(data, time=NOW)
    again = events.make(
        msgspec.structs.replace(data, **later, **other_way), time=NOW + timedelta(hours=1), traceparent=TRACEPARENT
    )
    assert first.id == again.id
    assert UUID(first.id).version == 5


@pytest.mark.parametrize("data", EXAMPLES)
def test_ids_tell_tasks_and_vendors_apart(data: Data) -> None:
    """A fact about another task, or of another vendor, is another fact."""
    ids = {id_of(data), id_of(data, task_id="another"), id_of(data, vendor=Vendor.APIBOX)}
    assert len(ids) == 3


def test_ids_tell_types_apart() -> None:
    """Two kinds of facts about one task never share an id."""
    assert len({id_of(data) for data in EXAMPLES}) == len(EXAMPLES)


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (SUCCEEDED, {"url": "https://files.example.com/b.wav?part=2"}),
        (SUCCEEDED, {"url": "https://files.example.com/a.wav?part=3"}),
        (FAILED, {"code": 500}),
        (UNRECOGNISED, {"body_sha256": "0" * 64}),
        (REJECTED, {"reason": Reason.NOT_WAV}),
        (CONFLICTING, {"kept_identity": "another"}),
        (CONFLICTING, {"claimed_identity": "another"}),
        (AT_RISK, {"threshold_percent": 80}),
        (REPLACED, {"sha256": "2" * 64}),
        (REPLACED, {"revision": 4}),
        (DAMAGED, {"revision": 2}),
        (DAMAGED, {"revision": None}),
        (DAMAGED, {"finding": "size_differs"}),
        (DAMAGED, {"found_sha256": None}),
        (EXPIRED, {"revision": 2}),
    ],
)
def test_what_makes_another_fact(data: Data, changes: dict[str, Any]) -> None:
    """The identity of each type is what the table of identities says."""
    assert id_of(data) != id_of(data, **changes)


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (SUCCEEDED, {"url": "https://files.example.com/a.wav?X-Amz-Signature=9&part=2&X-Amz-Expires=1"}),
        (SUCCEEDED, {"url": "HTTPS://FILES.example.com/a.wav?part=2#x"}),
        (SUCCEEDED, {"message": "another", "code": 201}),
        (FAILED, {"message": "another"}),
        (UNRECOGNISED, {"explanation": "another"}),
        (STORED, {"sha256": "1" * 64, "uri": "file:///elsewhere", "warnings": ("silence",)}),
        (EXPIRED, {"rule": "size", "sha256": "1" * 64, "expired_at": NOW + timedelta(days=1)}),
        (REJECTED, {"detail": "another", "code": None}),
        (CONFLICTING, {"kept_link": "https://x/", "claim": "failed", "claimed_code": 500}),
        (AT_RISK, {"attempts": 13, "last_reason": Reason.TOO_SLOW}),
        (REPLACED, {"explanation": None, "uri": "file:///elsewhere", "previous_sha256": "3" * 64}),
        (DAMAGED, {"uri": "file:///elsewhere", "found_at": NOW + timedelta(days=1), "expected_sha256": None}),
    ],
)
def test_what_makes_no_other_fact(data: Data, changes: dict[str, Any]) -> None:
    """What is not in the table of identities does not make a second event of one fact."""
    assert id_of(data) == id_of(data, **changes)


def test_parts_of_an_id_cannot_run_together() -> None:
    """No choice of task id and facts makes two facts share an id."""
    ids = [
        events.event_id("kie", "a", "t", "b", "c"),
        events.event_id("kie", "a", "t", "bc"),
        events.event_id("kie", "a", "t", "b,c"),
        events.event_id("kie", 'a","t', "b", "c"),
        events.event_id("kie", "a", "t", "b"),
        events.event_id("kie", None, "t", "b"),
        events.event_id("kie", "null", "t", "b"),
        events.event_id("kie", "", "t", "b"),
    ]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", PINNED)
def test_routing_keys(name: str) -> None:
    """The routing key is the part of the type between `wavekeep.` and `.v1`."""
    data, _ = PINNED[name]
    assert events.make(data, time=NOW).routing_key == name
    assert f"wavekeep.{name}.v1" == data.TYPE


@pytest.mark.parametrize("data", EXAMPLES)
def test_envelope(data: Data) -> None:
    """An event on the wire is a CloudEvent 1.0 in structured JSON, in times of UTC."""
    east = timezone(timedelta(hours=2))
    document = json.loads(events.encode(events.make(data, time=NOW.astimezone(east), traceparent=TRACEPARENT)))
    assert document["specversion"] == "1.0"
    assert document["type"] == data.TYPE
    assert document["source"] == "wavekeep/kie"
    assert document["datacontenttype"] == "application/json"
    assert document["time"] == "2026-11-21T12:30:00Z"
    assert document["subject"] == ("kie" if data is UNRECOGNISED else f"kie/{TASK}")
    assert trace_id(document["traceparent"]) == trace_id(TRACEPARENT)
    assert isinstance(document["id"], str)
    assert isinstance(document["data"], dict)
    attributes = set(document) - {"data"}
    assert all(name.isalnum() and name.islower() and len(name) <= 20 for name in attributes)
    assert all(isinstance(document[name], str) and document[name] for name in attributes)


@pytest.mark.parametrize("data", EXAMPLES)
def test_round_trip(data: Data) -> None:
    """What is encoded is decoded to the same, within the same trace."""
    event = events.make(data, time=NOW, traceparent=TRACEPARENT)
    back = events.decode(events.encode(event))
    assert msgspec.structs.replace(back, traceparent=event.traceparent) == event
    assert trace_id(back.traceparent) == trace_id(TRACEPARENT)
    assert type(back.data) is type(data)


def test_models_are_frozen() -> None:
    """An event, once made, cannot be changed."""
    with pytest.raises(AttributeError):
        SUCCEEDED.url = "https://elsewhere/"  # type: ignore[misc]


@pytest.mark.parametrize("data", EXAMPLES)
def test_unknown_fields_are_ignored(data: Data) -> None:
    """A newer publisher may say more: older readers read on."""
    document = json.loads(wire(data))
    document["partitionkey"] = "x"
    document["data"]["field_of_tomorrow"] = {"deep": [1]}
    assert events.decode(json.dumps(document).encode()).data == data


def test_optional_fields_may_be_missing() -> None:
    """An event without trace, or without what has a default, is read."""
    document = json.loads(wire())
    del document["traceparent"], document["datacontenttype"], document["data"]["origin"]
    event = events.decode(json.dumps(document).encode())
    assert event.data == SUCCEEDED
    assert trace_id(event.traceparent)


@pytest.mark.parametrize(
    "name",
    [
        "wavekeep.report.succeeded.v2",
        "wavekeep.report.succeeded",
        "wavekeep.conversion.overdue.v1",
        "",
        "com.example.x",
    ],
)
def test_unknown_types(name: str) -> None:
    """Another type, or another version of one, is unknown and not guessed at."""
    assert refusal(wire(type=name)) is Reason.MESSAGE_UNKNOWN


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"data": ' + b"[" * 100_000,
        wire()[:-1],
        wire(specversion="0.3"),
        wire(specversion=1),
        wire(id=7),
        wire(type=None),
        wire(time="yesterday"),
        wire(time="2026-11-21T12:30:00"),
        wire(data=None),
        wire(data=[]),
        wire(data="text"),
        wire(data={}),
        wire(data={**json.loads(wire())["data"], "vendor": "nobody"}),
        wire(data={**json.loads(wire())["data"], "url": 7}),
        wire(data={**json.loads(wire())["data"], "trust": ["faith"]}),
        wire(data={**json.loads(wire())["data"], "deadline": "2026-11-21T12:30:00"}),
        wire(data={**json.loads(wire())["data"], "deadline": "soon"}),
    ],
)
def test_malformed_events(body: bytes) -> None:
    """What is no event of ours, or breaks its schema, is refused for good; a time without a zone is none."""
    assert refusal(body) is Reason.MESSAGE_MALFORMED


@pytest.mark.parametrize("missing", ["specversion", "id", "source", "type", "subject", "time", "data"])
def test_required_attributes(missing: str) -> None:
    """An envelope without an attribute that readers rely on is refused for good."""
    document = json.loads(wire())
    del document[missing]
    assert refusal(json.dumps(document).encode()) is Reason.MESSAGE_MALFORMED


def test_refusals_show_no_link() -> None:
    """What is logged about a refused event holds no query string of it."""
    body = wire(data={**json.loads(wire())["data"], "deadline": SUCCEEDED.url, "code": SUCCEEDED.url})
    with pytest.raises(PermanentError) as caught:
        events.decode(body)
    assert "Signature" not in str(caught.value)


@pytest.mark.parametrize("model", events.MODELS.values())
def test_exchanges(model: type[Data]) -> None:
    """Reports are private, end states are public."""
    expected = "wavekeep.intake" if model.TYPE.startswith("wavekeep.report.") else "wavekeep.events"
    assert expected == model.EXCHANGE


@pytest.mark.parametrize("model", PUBLIC)
def test_public_events_have_no_room_for_secrets(model: type[Data]) -> None:
    """No field of a public event is a vendor's link, a body, a message or a credential."""
    names = {field.name for field in msgspec.structs.fields(model)}
    assert not names & {"url", "link", "body", "message", "token", "signature", "secret", "query", "headers"}


def test_public_links_have_no_query() -> None:
    """The links that a public event shows are the digests and the bare link, never the query."""
    body = events.encode(events.make(CONFLICTING, time=NOW)).decode()
    assert "part=2" not in body
    assert "?" not in body
    assert events.digest("https://files.example.com/a.wav?part=2") in body
    assert len(CONFLICTING.kept_identity) == 32
