"""Custody, the ordinary ways: stored, rejected, conflicting, at risk, given up."""

import asyncio
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from downloader.custody import Custody
from downloader.digests import Promise
from downloader.fetch import Head
from shared import events
from shared.errors import PermanentError, Reason, RetryableError
from shared.events import ConversionAtRisk, ConversionConflicting, ConversionRejected, ConversionStored
from shared.messaging.port import Message
from shared.vendors import Vendor
from simulator.wavs import Flavour, wav
from tests.log_capture import captured_logs
from tests.unit.custody_fakes import (
    CONTENT,
    DEADLINE,
    LINK,
    NAMES,
    NOW,
    OTHER_CONTENT,
    OTHER_LINK,
    QUERY,
    House,
    failed,
    ids,
    succeeded,
)

DEAD_LINK = RetryableError(Reason.LINK_EXPIRED, "answered 404")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Custody among fakes."""
    with ThreadPoolExecutor(4) as executor:
        yield House(tmp_path / "staging", executor)


async def test_a_report_becomes_a_stored_file(house: House) -> None:
    """The event tells what the manifest proves, under the id that follows from the task alone."""
    await house.custody().handle(succeeded())
    (event,) = house.publisher.told
    manifest = house.manifest
    assert manifest is not None
    assert isinstance(event.data, ConversionStored)
    assert event.id == manifest.event_id == events.event_id("apibox", "task-1", ConversionStored.TYPE)
    assert (event.source, event.subject) == ("wavekeep/apibox", "apibox/task-1")
    assert house.publisher.exchanges == {"wavekeep.events"}
    assert event.data == manifest.announcement()
    assert house.storage.objects[manifest.audio] == CONTENT
    assert event.data.size_bytes == len(CONTENT)
    assert event.data.uri.endswith(f"{NAMES.stem}.{event.data.sha256[:12]}.wav")
    assert event.data.evidence.trust == ("token",)
    assert event.data.evidence.transport == "content_length"
    assert manifest.deadline == DEADLINE
    assert house.staged == []
    assert house.count("conversions_stored_total", vendor="apibox") == 1


async def test_nothing_is_told_before_it_is_true(house: House) -> None:
    """The audio is there before the manifest, the manifest before the event, the confirmation before the marker."""
    await house.custody().handle(succeeded())
    assert house.steps.done == ["fetch", "keep audio", "create .json", "publish conversion.stored", "create .announced"]


async def test_the_trace_goes_on(house: House) -> None:
    """Whoever hears of the file can follow its trace back to the callback."""
    message = succeeded()
    await house.custody().handle(message)
    trace_id = events.decode(message.body).traceparent.split("-")[1]
    assert house.publisher.told[0].traceparent.split("-")[1] == trace_id


async def test_a_repetition_is_silent(house: House) -> None:
    """The vendor's four callbacks are one file, one event; the signature of the link may differ."""
    for process in range(2):
        custody = house.custody()
        for _ in range(2):
            await custody.handle(succeeded(LINK.replace("k3y", f"key{process}")))
    assert house.publisher.types == ["conversion.stored"]
    assert house.steps.starting("fetch") == ["fetch"]


async def test_duplicates_at_once_fetch_once(house: House) -> None:
    """Copies that are in hand at the same time wait for the first instead of fetching the file again."""
    custody = house.custody()
    await asyncio.gather(*(custody.handle(succeeded()) for _ in range(5)))
    assert house.steps.starting("fetch") == ["fetch"]
    assert house.publisher.types == ["conversion.stored"]


async def test_another_link_is_told_as_a_conflict_once(house: House) -> None:
    """A second file for a stored task is never fetched, and its contradiction is one event however often it comes."""
    custody = house.custody()
    for message in (succeeded(), succeeded(OTHER_LINK), succeeded(OTHER_LINK)):
        await custody.handle(message)
    assert house.publisher.types == ["conversion.stored", "conversion.conflicting"]
    house.storage.objects = {key: value for key, value in house.storage.objects.items() if "conflicting" not in key}
    await house.custody().handle(succeeded(OTHER_LINK))
    *_, first, second = house.publisher.told
    assert first.id == second.id
    assert isinstance(first.data, ConversionConflicting)
    assert first.data.claim == "succeeded"
    assert (first.data.kept_link, first.data.claimed_link) == (
        "https://cdn.example.com/a.wav",
        "https://cdn.example.com/b.wav",
    )
    assert house.steps.starting("fetch") == ["fetch"]


async def test_a_failure_after_success_conflicts(house: House) -> None:
    """Stored is final: a late failure is told as a contradiction, never as a rejection."""
    custody = house.custody()
    for message in (succeeded(), failed(), failed()):
        await custody.handle(message)
    assert house.publisher.types == ["conversion.stored", "conversion.conflicting"]
    conflict = house.publisher.told[1].data
    assert isinstance(conflict, ConversionConflicting)
    assert (conflict.claim, conflict.claimed_code, conflict.claimed_link) == ("failed", 500, None)
    assert NAMES.rejected not in house.storage.objects


async def test_a_failure_is_rejected_once(house: House) -> None:
    """The vendor's failure is told with its code; the vendor's repetitions are not."""
    for _ in range(2):
        await house.custody().handle(failed(451))
    (event,) = house.publisher.told
    assert isinstance(event.data, ConversionRejected)
    assert (event.data.reason, event.data.code, event.data.detail) == (
        Reason.VENDOR_FAILED,
        451,
        "no luck with https://cdn.example.com/a.wav",
    )
    assert house.steps.done == [
        "create .rejected.json",
        "publish conversion.rejected",
        "create .rejected.vendor_failed.announced",
    ]


async def test_a_success_heals_a_failure(house: House) -> None:
    """A rejection is not the end: the vendor's later success is fetched, stored and told."""
    for message in (failed(), succeeded(), failed()):
        await house.custody().handle(message)
    assert house.publisher.types == ["conversion.rejected", "conversion.stored", "conversion.conflicting"]


async def test_a_close_delimited_body_is_recorded(house: House) -> None:
    """The evidence says how much the proof is worth where only the connection's end told the length."""
    house.source.transport = "close_delimited"
    await house.custody().handle(succeeded())
    manifest = house.manifest
    assert manifest is not None
    assert manifest.evidence.transport == "close_delimited"


@pytest.mark.parametrize("transport", ["content_length", "chunked", "close_delimited"])
async def test_an_open_length_needs_a_proven_transport(house: House, transport: str) -> None:
    """A header that leaves the length open is taken with a warning only where the transport told the end."""
    house.source.content = b"".join(wav(duration_s=0.1, flavour=Flavour.STREAMING_HEADER).blocks())
    house.source.transport = transport
    if transport == "close_delimited":
        with pytest.raises(RetryableError) as caught:
            await house.custody().handle(succeeded())
        assert caught.value.reason is Reason.WAV_TRUNCATED
        assert house.storage.objects == {}
    else:
        await house.custody().handle(succeeded())
        assert house.manifest is not None
        assert house.manifest.warnings == ("streaming_header",)


async def test_risk_is_told_at_each_mark_once(house: House) -> None:
    """People hear at 50, 80 and 95 % of the time, once each; after a crash again, under the same id."""
    for percent, marks in ((10, []), (49, []), (50, [50]), (60, [50]), (96, [50, 80, 95]), (99, [50, 80, 95])):
        house.now = NOW + (DEADLINE - NOW) * percent / 100
        house.source.errors = [DEAD_LINK]
        assert await house.fails(dataclasses.replace(succeeded(), attempts=6)) is DEAD_LINK
        warnings = [event.data for event in house.publisher.told if isinstance(event.data, ConversionAtRisk)]
        assert [warning.threshold_percent for warning in warnings] == marks
    told = list(house.publisher.told)
    assert len(told) == 3
    assert {(w.last_reason, w.attempts, w.deadline) for w in warnings} == {(Reason.LINK_EXPIRED, 7, DEADLINE)}
    house.storage.objects.clear()
    house.source.errors = [DEAD_LINK]
    assert await house.fails(succeeded()) is DEAD_LINK
    assert len(house.publisher.told) == 6
    assert ids(house.publisher.told) == ids(told)
    assert len(ids(told)) == 3


@pytest.mark.parametrize("fault", ["storage", "markers", "ours", "refused"])
async def test_risk_is_told_whatever_fails(house: House, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """People hear of it also where it is our storage that fails, a fault of ours, or a link that is refused for now."""
    down = RetryableError(Reason.STORAGE_FAILED, "503")

    async def fail(*_: object) -> NoReturn:
        raise TypeError("a fault") if fault == "ours" else down

    if fault in {"storage", "ours"}:
        monkeypatch.setattr(house.storage, "read", fail)
    if fault in {"storage", "markers"}:
        monkeypatch.setattr(house.storage, "exists", fail)
        monkeypatch.setattr(house.storage, "create", fail)
    house.source.errors = [PermanentError(Reason.HOST_FORBIDDEN, "x") if fault == "refused" else DEAD_LINK]
    house.now = NOW + (DEADLINE - NOW) * 0.96
    await house.fails(succeeded())
    warnings = [event.data for event in house.publisher.told if isinstance(event.data, ConversionAtRisk)]
    assert [warning.threshold_percent for warning in warnings] == [50, 80, 95]


async def test_what_is_stored_is_at_no_risk(house: House) -> None:
    """A file that is kept, and only cannot be told of for a while, alarms nobody."""
    await house.custody().handle(succeeded())
    del house.storage.objects[NAMES.announced]
    house.publisher.told.clear()
    house.publisher.refuses = {house.publisher.asked + 1}
    house.now = NOW + (DEADLINE - NOW) * 0.96
    await house.fails(succeeded())
    assert house.publisher.told == []


async def test_two_copies_that_are_given_up_are_one_rejection(house: House) -> None:
    """Each copy meets the deadline with a last reason of its own; that the task is given up is one fact, one id."""
    for reason in (Reason.HTTP_FAILED, Reason.TIMED_OUT):
        await house.custody().give_up(succeeded(), reason, "text")
    assert len(ids(house.publisher.told)) == 1
    await house.custody().handle(failed())
    assert len(ids(house.publisher.told)) == 2


async def test_a_second_rejection_that_could_not_be_marked_keeps_its_words(house: House) -> None:
    """Where a process dies between telling and marking, the next one tells the same fact under the same id."""
    await house.custody().handle(failed())
    house.storage.errors = [None, None, RetryableError(Reason.STORAGE_FAILED, "503")]
    with pytest.raises(RetryableError):
        await house.custody().give_up(succeeded(), Reason.TIMED_OUT, "text")
    await house.custody().give_up(succeeded(), Reason.LINK_EXPIRED, "text")
    assert len(ids(house.publisher.told)) == 2


async def test_two_copies_that_are_given_up_beside_the_vendors_word_are_one_rejection(house: House) -> None:
    """The vendor's failure is a fact of its own, whichever of the two was first."""
    await house.custody().handle(failed())
    for reason in (Reason.HTTP_FAILED, Reason.TIMED_OUT):
        await house.custody().give_up(succeeded(), reason, "text")
    assert len(ids(house.publisher.told)) == 2


async def test_giving_up_is_told_once(house: House) -> None:
    """Before a report is parked its rejection is told, with our reason; a second give-up says nothing new."""
    for _ in range(2):
        await house.custody().give_up(succeeded(), Reason.TOO_LARGE, "over the cap")
    (event,) = house.publisher.told
    assert isinstance(event.data, ConversionRejected)
    assert (event.data.reason, event.data.detail, event.data.code) == (Reason.TOO_LARGE, "over the cap", None)
    assert house.count("conversions_rejected_total", reason="too_large") == 0  # the second process told nothing


async def test_a_stored_task_is_never_given_up(house: House) -> None:
    """A report that is parked beside a stored file rejects nothing."""
    await house.custody().handle(succeeded())
    await house.custody().give_up(succeeded(OTHER_LINK), Reason.UNEXPECTED, "no matter")
    assert house.publisher.types == ["conversion.stored"]


async def test_a_give_up_that_cannot_be_told_fails(house: House) -> None:
    """Where the broker does not confirm the rejection the message is not parked yet: the caller hears of it."""
    house.publisher.refuses = {1}
    with pytest.raises(RetryableError):
        await house.custody().give_up(succeeded(), Reason.TOO_LARGE, "over the cap")
    await house.custody().give_up(succeeded(), Reason.TOO_LARGE, "over the cap")
    assert house.publisher.types == ["conversion.rejected"]


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b'{"type":"wavekeep.report.succeeded.v9"}'])
async def test_what_is_no_report_is_parked_unannounced(house: House, body: bytes) -> None:
    """Nobody can say which task it is about, so nobody is told; it is not tried again."""
    message = dataclasses.replace(succeeded(), body=body)
    custody = house.custody()
    with pytest.raises(PermanentError):
        await custody.handle(message)
    assert custody.next_step(message, Reason.MESSAGE_MALFORMED) is None
    await custody.give_up(message, Reason.MESSAGE_MALFORMED, "unreadable")
    assert house.steps.done == []


async def test_an_event_that_is_no_report_is_parked(house: House) -> None:
    """What was bound to the wrong queue does not become a download."""
    await house.custody().handle(succeeded())
    stored = dataclasses.replace(succeeded(), body=events.encode(house.publisher.told[0]))
    with pytest.raises(PermanentError) as caught:
        await house.custody().handle(stored)
    assert caught.value.reason is Reason.MESSAGE_UNKNOWN


@pytest.mark.parametrize("damage", [b"{", b"{}", b'{"vendor": "\xff"}', b'{"version": 2}'])
async def test_a_damaged_manifest_waits_for_a_person(house: House, damage: bytes) -> None:
    """It is neither overwritten nor rejected nor tried again: it is parked."""
    house.storage.objects[NAMES.manifest] = damage
    custody = house.custody()
    with pytest.raises(PermanentError) as caught:
        await custody.handle(succeeded())
    assert caught.value.reason is Reason.STORAGE_FAILED
    await custody.give_up(succeeded(), caught.value.reason, caught.value.detail)
    assert house.storage.objects == {NAMES.manifest: damage}
    assert house.publisher.told == []


def test_trying_ends_at_the_deadline(house: House) -> None:
    """There is always a next attempt before the deadline, however many failed, and none after it."""

    def next_step(message: Message, *, before: timedelta, reason: Reason = Reason.CONNECTION_FAILED) -> float | None:
        house.now = DEADLINE - before
        step = house.custody().next_step(message, reason)
        return None if step is None else step.seconds

    often = dataclasses.replace(succeeded(), attempts=10_000)
    assert next_step(succeeded(), before=timedelta(days=14)) == 5
    assert next_step(succeeded(), before=timedelta(days=14), reason=Reason.LINK_EXPIRED) == 600
    assert next_step(often, before=timedelta(days=14)) == 43_200
    assert next_step(often, before=timedelta(seconds=1)) == 5
    assert next_step(often, before=timedelta(minutes=5), reason=Reason.LINK_EXPIRED) == 120
    assert next_step(often, before=timedelta()) is None
    assert next_step(succeeded(), before=timedelta(days=-1)) is None


async def test_no_record_event_or_log_opens_the_file(house: House) -> None:
    """The link's query is a key: it stays in the report."""
    with captured_logs() as lines:
        house.source.errors = [DEAD_LINK]
        house.now = NOW + (DEADLINE - NOW) * 0.9
        assert await house.fails(succeeded()) is DEAD_LINK
        await house.custody().give_up(succeeded(), Reason.LINK_EXPIRED, "answered 404")
        for message in (succeeded(), succeeded(OTHER_LINK), failed()):
            await house.custody().handle(message)
    assert {"conversion.at_risk", "conversion.rejected", "conversion.stored", "conversion.conflicting"} == set(
        house.publisher.types
    )
    assert {line["event"] for line in lines} == {"file.stored", "event.announced"}
    for text in (house.shown, str(lines)):
        assert QUERY not in text
        assert "Expires" not in text


async def test_every_vendor_has_its_own_tasks(house: House) -> None:
    """One task id at two vendors is two files and two events."""
    report = events.decode(succeeded().body).data
    for vendor in (Vendor.KIE, Vendor.APIBOX):
        data = events.ReportSucceeded(**{**{f: getattr(report, f) for f in report.__struct_fields__}, "vendor": vendor})
        body = events.encode(events.make(data, time=NOW))
        await house.custody().handle(dataclasses.replace(succeeded(), body=body))
    assert len(ids(house.publisher.told)) == 2
    assert len([key for key in house.storage.objects if key.endswith(".wav")]) == 2


WRONG = Head(LINK, 0, None, (Promise("content-md5", "md5", bytes(16)),), None)


async def differ(house: House, custody: Custody, *, attempts: int = 0) -> None:
    """Make an attempt that ends because the bytes are not what the server promised."""
    with pytest.raises(RetryableError) as caught:
        await custody.handle(dataclasses.replace(succeeded(), attempts=attempts))
    assert caught.value.reason is Reason.DIGEST_DIFFERS
    assert house.publisher.types == []


async def test_a_digest_that_never_matches_loses_no_file(house: House) -> None:
    """Bytes that are not what the server promised are fetched again; a header that is always wrong is told, no more.

    However often the task failed for other reasons before.
    """
    house.source.head = WRONG
    custody = house.custody()
    for _ in range(2):
        await differ(house, custody, attempts=20)
    await custody.handle(dataclasses.replace(succeeded(), attempts=22))
    assert house.manifest is not None
    assert (house.manifest.warnings, house.manifest.evidence.digest) == (("server_digest_differs",), "own")


async def test_bytes_that_come_otherwise_each_time_are_never_believed(house: House) -> None:
    """A line that changes bytes says nothing of the server's digest: the same bytes must come three times in a row."""
    house.source.head = WRONG
    custody = house.custody()
    for content in (CONTENT, CONTENT, OTHER_CONTENT, CONTENT, CONTENT):
        house.source.content = content
        await differ(house, custody)
    await differ(house, house.custody())  # a new process begins to count anew
    await custody.handle(succeeded())
    assert house.publisher.types == ["conversion.stored"]
