"""What the vendors say, in every spelling they use, and what cannot be a callback."""

import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ingress.authenticity import Credentials
from ingress.callback import (
    LONGEST_TASK_ID,
    Failed,
    Linkless,
    MalformedCallbackError,
    Reading,
    Succeeded,
    Unrecognised,
    parse,
    read,
)
from ingress.intake import Intake, Proofs
from ingress.report import make_report, read_again
from shared.events import ReportFailed, ReportLinkless, ReportSucceeded, ReportUnrecognised
from shared.vendor_json import LONGEST_MESSAGE
from shared.vendors import Vendor
from tests.recording import RecordingPublisher

SAMPLES = Path(__file__).parent.parent / "samples"
INDEX: dict[str, dict[str, Any]] = json.loads((SAMPLES / "index.json").read_text("utf-8"))
NOW = datetime(2026, 1, 29, 7, 12, 40, tzinfo=UTC)
URL = "https://files.example.com/a.wav"
KINDS = {Succeeded: "succeeded", Failed: "failed", Linkless: "unrecognised", Unrecognised: "unrecognised"}
RETENTION = {Vendor.APIBOX: timedelta(days=15), Vendor.KIE: timedelta(days=14), Vendor.SUNOAPI: timedelta(days=15)}


def reading_of(document: Any) -> Reading:
    """Read a document as it comes over the wire."""
    return read(parse(json.dumps(document).encode()), received_at=NOW)


def success(**data: Any) -> dict[str, Any]:
    """Return a callback of success with this in its data."""
    return {"code": 200, "msg": "success", "data": {"task_id": "t1", "audioWavUrl": URL, **data}}


def intake(publisher: RecordingPublisher, *, askable: Collection[Vendor] = ()) -> Intake:
    """Build an intake that believes everybody, and can ask some."""
    believing = Credentials(allow_unauthenticated=True)
    return Intake(
        publisher,
        credentials=dict.fromkeys(Vendor, believing),
        retention=RETENTION,
        tolerance_s=300,
        clock=lambda: NOW,
        askable=askable,
    )


def test_every_sample_is_in_the_index() -> None:
    """No sample is left without a word about what it must become."""
    assert {path.name for path in SAMPLES.glob("*.json")} == {*INDEX, "index.json"}


@pytest.mark.parametrize("name", INDEX)
def test_samples_read_as_the_index_says(name: str) -> None:
    """What a vendor really sends becomes what it means."""
    expected = INDEX[name]
    found = read(parse((SAMPLES / name).read_bytes()), received_at=NOW)
    assert KINDS[type(found)] == expected["outcome"]
    assert found.task_id == expected["task_id"]
    assert getattr(found, "url", None) == expected["url"]
    if isinstance(found, Succeeded | Failed):
        assert found.code == expected["code"]


@pytest.mark.parametrize("name", INDEX)
async def test_samples_are_published_as_the_index_says(name: str) -> None:
    """A sample becomes one confirmed report on the private exchange, with everything its readers need."""
    expected, body, publisher = INDEX[name], (SAMPLES / name).read_bytes(), RecordingPublisher()
    vendor = Vendor(expected["vendor"])
    event = await intake(publisher).take(vendor, body, Proofs(), None)
    (published,) = publisher.published
    report = published.event.data
    assert published.exchange == "wavekeep.intake"
    assert published.routing_key == f"report.{expected['outcome']}"
    assert published.event_id == published.event.id == event.id
    assert published.event.source == f"wavekeep/{vendor}"
    assert isinstance(report, ReportSucceeded | ReportFailed | ReportUnrecognised)
    assert (report.vendor, report.task_id, report.trust) == (vendor, expected["task_id"], ("none",))
    assert report.received_at == NOW
    if isinstance(report, ReportUnrecognised):
        assert report.body == body.decode()
    else:
        assert report.code == expected["code"]
        assert getattr(report, "url", None) == expected["url"]


@pytest.mark.parametrize("vendor", Vendor)
async def test_deadline_counts_from_reception(vendor: Vendor) -> None:
    """Where the vendor tells no time, its retention counts from the reception."""
    publisher = RecordingPublisher()
    await intake(publisher).take(vendor, json.dumps(success()).encode(), Proofs(), None)
    report = publisher.published[0].event.data
    assert isinstance(report, ReportSucceeded)
    assert report.deadline == NOW + RETENTION[vendor]


async def test_deadline_counts_from_completion() -> None:
    """Where the vendor tells when it finished, its retention counts from there."""
    publisher = RecordingPublisher()
    body = (SAMPLES / "kie-job-success.json").read_bytes()
    later = datetime(2026, 1, 29, 8, tzinfo=UTC)
    believing = Intake(
        publisher,
        credentials={Vendor.KIE: Credentials(allow_unauthenticated=True)},
        retention=RETENTION,
        tolerance_s=300,
        clock=lambda: later,
    )
    await believing.take(Vendor.KIE, body, Proofs(), None)
    report = publisher.published[0].event.data
    assert isinstance(report, ReportSucceeded)
    assert report.deadline == datetime(2026, 1, 29, 7, 12, 40, 456_000, tzinfo=UTC) + timedelta(days=14)


@pytest.mark.parametrize(
    "data",
    [
        {"audioWavUrl": URL},
        {"audio_wav_url": URL},
        {"response": {"audioWavUrl": URL}},
        {"response": {"audio_wav_url": URL}},
        {"audioWavUrl": "", "audio_wav_url": URL},
        {"audioWavUrl": None, "response": {"audio_wav_url": URL}},
        {"audioWavUrl": 7, "audio_wav_url": URL},
        {"audioWavUrl": f"  {URL}\n"},
        {"state": "success", "resultJson": json.dumps({"resultUrls": [URL]})},
        {"state": "success", "resultJson": json.dumps({"resultUrls": [None, "", "ftp://x/", URL, "https://x/b"]})},
        {"state": "success", "resultJson": {"resultUrls": [URL]}},
    ],
)
def test_every_spelling_of_the_link(data: dict[str, Any]) -> None:
    """The first usable link is found wherever a vendor puts it."""
    found = reading_of({"code": 200, "data": {"task_id": "t1", **data}})
    assert isinstance(found, Succeeded)
    assert found.url == URL


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"audioWavUrl": ""},
        {"audioWavUrl": "n/a"},
        {"audioWavUrl": "ftp://files.example.com/a.wav"},
        {"audioWavUrl": "https:///a.wav"},
        {"audioWavUrl": [URL]},
        {"response": URL},
        {"resultJson": json.dumps({"resultUrls": [URL]})},
        {"state": "waiting", "resultJson": json.dumps({"resultUrls": [URL]})},
        {"state": "success", "resultJson": "not JSON"},
        {"state": "success", "resultJson": '{"resultUrls": "' + URL + '"}'},
        {"state": "success", "resultJson": '["' + URL + '"]'},
        {"state": "success", "resultJson": '{"resultUrls": ["https://\\ud800.example.com/"]}'},
        {"state": "success", "resultJson": "[" * 60_000},
        {"state": "success", "resultJson": None},
    ],
)
def test_success_without_a_link_is_not_believed(data: dict[str, Any]) -> None:
    """Code 200 without a usable link is not taken for a file: where it is must be asked."""
    found = reading_of({"code": 200, "msg": "done", "data": {"task_id": "t1", **data}})
    assert found == Linkless("t1", "it tells success without a link to a WAV", 200, "done", None)


LINKLESS = json.dumps({"code": 200, "msg": "done", "data": {"task_id": "t1", "audioWavUrl": ""}}).encode()


@pytest.mark.parametrize("vendor", Vendor)
async def test_a_success_without_a_link_is_asked_for_where_that_is_possible(vendor: Vendor) -> None:
    """With the vendor's key it goes on to be asked for, with the deadline of a success and its body kept."""
    publisher = RecordingPublisher()
    event = await intake(publisher, askable=[vendor]).take(vendor, LINKLESS, Proofs(), None)
    (published,) = publisher.published
    report = published.event.data
    assert isinstance(report, ReportLinkless)
    assert (published.exchange, published.routing_key) == ("wavekeep.intake", "report.linkless")
    assert (report.task_id, report.code, report.message, report.trust) == ("t1", 200, "done", ("none",))
    assert (report.body, report.explanation) == (LINKLESS.decode(), "it tells success without a link to a WAV")
    assert report.deadline == NOW + RETENTION[vendor]
    assert event.id == (await intake(publisher, askable=[vendor]).take(vendor, LINKLESS, Proofs(), None)).id


async def test_a_success_without_a_link_is_kept_where_nobody_can_be_asked() -> None:
    """Without this vendor's key, whichever others there are, a person must look."""
    publisher = RecordingPublisher()
    await intake(publisher, askable=[Vendor.APIBOX]).take(Vendor.KIE, LINKLESS, Proofs(), None)
    report = publisher.published[0].event.data
    assert isinstance(report, ReportUnrecognised)
    assert (report.task_id, report.body) == ("t1", LINKLESS.decode())
    assert report.explanation == "it tells success without a link to a WAV"


async def test_a_music_task_is_never_asked_for() -> None:
    """A callback of the vendors' other tasks tells success too, and no WAV was ever made of it."""
    publisher = RecordingPublisher()
    body = (SAMPLES / "music-callback.json").read_bytes()
    await intake(publisher, askable=list(Vendor)).take(Vendor.KIE, body, Proofs(), None)
    assert isinstance(publisher.published[0].event.data, ReportUnrecognised)


def kept(body: bytes) -> ReportUnrecognised:
    """Return what was kept of a body that was not recognised at the time."""
    reading = Unrecognised(None, "an older version did not know this shape")
    report = make_report(
        Vendor.KIE,
        reading,
        body,
        received_at=NOW,
        retention=RETENTION[Vendor.KIE],
        trust=("token", "stale"),
        askable=True,
    )
    assert isinstance(report, ReportUnrecognised)
    return report


@pytest.mark.parametrize(
    ("body", "askable", "expected"),
    [
        (LINKLESS, True, ReportLinkless),
        (LINKLESS, False, None),
        (json.dumps(success()).encode(), False, ReportSucceeded),
        (b'{"code": 501, "taskId": "t1"}', False, ReportFailed),
        (b'{"taskId": "t1"}', True, None),
        (b"not JSON", True, None),
    ],
)
def test_read_again(body: bytes, askable: bool, expected: type | None) -> None:
    """Read again, a callback is what it would be today, as of then and no better trusted; else it stays."""
    found = read_again(kept(body), retention=RETENTION[Vendor.KIE], askable=askable)
    assert type(found) is (expected or type(None))
    if found is not None:
        assert (found.received_at, found.trust, found.origin) == (NOW, ("token", "stale"), "callback")
        assert found.deadline == NOW + RETENTION[Vendor.KIE]


def test_spaces_in_links_are_encoded() -> None:
    """A raw space in a link, as kie sends it, becomes one that can be asked for."""
    found = reading_of(success(audioWavUrl="https://files.example.com/My Song_Lead Vocal.wav?name=a b"))
    assert isinstance(found, Succeeded)
    assert found.url == "https://files.example.com/My%20Song_Lead%20Vocal.wav?name=a%20b"


@pytest.mark.parametrize(("code", "expected"), [("200", 200), (" 200 ", 200), (200, 200)])
def test_success_codes(code: Any, expected: int) -> None:
    """The code may be a number or a numeric string."""
    found = reading_of(success() | {"code": code})
    assert isinstance(found, Succeeded)
    assert found.code == expected


@pytest.mark.parametrize(
    ("code", "expected"), [("501", 501), (0, 0), (-1, -1), (599, 599), ("429", 429), (999_999_999, 999_999_999)]
)
def test_any_other_code_is_a_failure(code: Any, expected: int) -> None:
    """An unknown code is a failure with that code, even where a link stands beside it."""
    found = reading_of(success() | {"code": code})
    assert isinstance(found, Failed)
    assert found.code == expected


@pytest.mark.parametrize(
    "code", [None, "", "two hundred", "²⁰⁰", "٢٠٠", True, 200.5, [200], {"code": 200}, 10**9, "1" * 10]
)
def test_what_is_no_code(code: Any) -> None:
    """Without a code that can be read, nothing is guessed."""
    assert reading_of(success() | {"code": code}) == Unrecognised("t1", "it has no code")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"task_id": "c", "taskId": "d", "data": {"task_id": "a", "taskId": "b"}}, "a"),
        ({"task_id": "c", "taskId": "d", "data": {"taskId": "b"}}, "b"),
        ({"task_id": "c", "taskId": "d", "data": {}}, "c"),
        ({"taskId": "d", "data": None}, "d"),
        ({"taskId": "d", "data": {"task_id": "", "taskId": None}}, "d"),
        ({"taskId": "d", "data": {"task_id": ["a"], "taskId": True}}, "d"),
        ({"data": {"task_id": 4711}}, "4711"),
        ({"taskId": "d", "data": []}, "d"),
        ({"data": "x"}, None),
        ({}, None),
    ],
)
def test_precedence_of_task_ids(document: dict[str, Any], expected: str | None) -> None:
    """The task is named by the innermost `task_id`, then `taskId`, then those of the top."""
    assert reading_of({"code": 500, **document}).task_id == expected


@pytest.mark.parametrize(
    "task_id",
    [
        "a\0b",
        "a/b",
        "a\\b",
        "../a",
        "..",
        ".",
        "....",
        "a\nb",
        "\x7f",
        "\x85",
        "\u2028",
        "\u2029",
        "x" * 257,
        "x" * 10_000,
    ],
)
def test_task_ids_that_cannot_be(task_id: str) -> None:
    """What reaches for a path or a terminal is refused, not repaired."""
    with pytest.raises(MalformedCallbackError, match="task id"):
        reading_of(success(task_id=task_id))


@pytest.mark.parametrize("task_id", ["x" * LONGEST_TASK_ID, "a.b", "...a", "ä", "a b", "988e7f0a-4b0d"])
def test_unusual_task_ids(task_id: str) -> None:
    """32 hex digits are usual and not promised: other plain text names a task too."""
    assert reading_of(success(task_id=task_id)).task_id == task_id


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"failCode": "500"}, 500),
        ({"failCode": 422}, 422),
        ({"failCode": ""}, 501),
        ({"failCode": None}, 501),
        ({}, 501),
    ],
)
@pytest.mark.parametrize("outer", [{"code": 200}, {}])
def test_failed_jobs(outer: dict[str, Any], data: dict[str, Any], code: int) -> None:
    """In the job form the state counts, whatever the outer code says, and its own code is told."""
    found = reading_of({**outer, "data": {"taskId": "t1", "state": "fail", "failMsg": "internal error", **data}})
    assert isinstance(found, Failed)
    assert (found.code, found.message) == (code, "internal error")


def test_finished_job_without_a_code() -> None:
    """In the job form a finished state stands for the code."""
    result = json.dumps({"resultUrls": [URL]})
    found = reading_of({"data": {"taskId": "t1", "state": "success", "resultJson": result}})
    assert isinstance(found, Succeeded)
    assert found.code == 200


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"msg": "a", "message": "b"}, "a"),
        ({"message": "b"}, "b"),
        ({"msg": None, "data": {"errorMessage": "c"}}, "c"),
        ({"msg": "a", "data": {"failMsg": "d"}}, "d"),
        ({"msg": 7}, ""),
        ({"msg": "x" * 9_000}, "x" * LONGEST_MESSAGE),
    ],
)
def test_message(document: dict[str, Any], message: str) -> None:
    """The vendor's own words are kept, bounded."""
    found = reading_of({"code": 500, "taskId": "t1", **document})
    assert isinstance(found, Failed)
    assert found.message == message


def epoch_ms(moment: datetime) -> int:
    """Return epoch milliseconds."""
    return int(moment.timestamp() * 1_000)


@pytest.mark.parametrize("age", [timedelta(), timedelta(minutes=5), timedelta(hours=23)])
def test_completion_time_within_reason(age: timedelta) -> None:
    """Epoch milliseconds of the last day are believed."""
    found = reading_of(success(completeTime=epoch_ms(NOW - age)))
    assert isinstance(found, Succeeded)
    assert found.completed_at == NOW - age


@pytest.mark.parametrize(
    "value",
    [
        epoch_ms(NOW + timedelta(milliseconds=1)),
        epoch_ms(NOW - timedelta(days=1)),
        epoch_ms(NOW) // 1_000,
        0,
        -1,
        10**14,
        10**300,
        True,
        float(epoch_ms(NOW)),
        str(epoch_ms(NOW)),
        "2026-01-29 07:12:40",
        None,
        [],
    ],
)
def test_completion_time_beyond_reason(value: Any) -> None:
    """A time of the future, of long ago, in seconds or without a zone would move the deadline: it is ignored."""
    found = reading_of(success(completeTime=value))
    assert isinstance(found, Succeeded)
    assert found.completed_at is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"not JSON",
        b"[]",
        b"7",
        b"null",
        b'"text"',
        json.dumps({"code": 200}).encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"code": ' + b"1" * 5_000 + b"}",
        b'{"code": NaN}',
        b'{"code": Infinity}',
        b'{"code": -Infinity}',
        b'{"code": 200, "code": 500}',
        b'{"data": {"task_id": "a", "task_id": "b"}}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": [{"b": "x\\uDC00"}]}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\x00"}',
        b'{"a": 1,}',
        b"{'a': 1}",
        b"{} {}",
        b'{"a": 1} //',
    ],
)
def test_malformed_bodies(body: bytes) -> None:
    """What two parsers could read differently, or not at all, is refused in one way."""
    with pytest.raises(MalformedCallbackError):
        parse(body)


def test_whole_surrogate_pairs_are_text() -> None:
    """A pair of escapes is one character and nothing to refuse."""
    assert parse(b'{"a": "\\ud83c\\udfb5"}') == {"a": "🎵"}


def test_malformed_errors_show_nothing_of_the_body() -> None:
    """What is answered and logged about a refused body holds nothing of it."""
    with pytest.raises(MalformedCallbackError) as caught:
        parse(b'{"token": "s3cret", s3cret}')
    assert "s3cret" not in str(caught.value)
