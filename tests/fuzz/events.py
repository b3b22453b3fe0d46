"""Fuzz the reader of events.

Responsible for: what must hold of any message. Only `PermanentError` may escape, and what is read can be written and
says the same when it is read again. It must not know who makes the messages.
"""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from shared.errors import PermanentError, Reason
from shared.events import (
    MODELS,
    ConversionAtRisk,
    ConversionConflicting,
    ConversionRejected,
    ConversionStored,
    Evidence,
    FileReplaced,
    Format,
    ReportFailed,
    ReportLinkless,
    ReportSucceeded,
    ReportUnrecognised,
    decode,
    encode,
    make,
    type_of,
)
from shared.vendors import Vendor
from tests.fuzz import json_mutator

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LONGEST_BYTES = 16 * 1024
WORDS = (
    *(f'"{name}"'.encode() for name in MODELS),
    *(b'"specversion":"1.0"', b'"data"', b'"traceparent"', b'"quality":{', b'"vendor":"kie"', b'"task_id":"t"'),
    *(b'"2026-11-21T12:00:00Z"', b'"9999-12-31T23:59:59Z"', b'"0001-01-01T00:00:00+23:59"', b"1e999", b"\\ud800"),
    *(b"18446744073709551616", b"-9223372036854775809", b"null"),
)


def seeds() -> Iterator[bytes]:
    """Return an event of every kind."""
    task: Any = {"vendor": Vendor.KIE, "task_id": "t"}
    report: Any = {**task, "received_at": NOW, "trust": ("token",)}
    file: Any = {
        **task,
        "uri": "file:///x",
        "size_bytes": 1,
        "sha256": "0" * 64,
        "evidence": Evidence(trust=("token",), transport="chunked"),
        "format": Format(
            container="RIFF",
            codec="pcm",
            sample_rate_hz=44_100,
            channels=2,
            bits_per_sample=16,
            frames=9,
            duration_s=0.5,
        ),
    }
    for data in (
        ReportSucceeded(**report, url="https://x/a.wav?Expires=1", code=200, message="m", deadline=NOW, origin="poll"),
        ReportFailed(**report, code=501, message="m", deadline=NOW),
        ReportLinkless(**report, code=200, message="m", explanation="e", body="{}", deadline=NOW),
        ReportUnrecognised(**report, explanation="e", body="{}", body_sha256="0" * 64),
        ConversionStored(**file, quality={"peak": 0.5, "clipped": [1, 2]}, stored_at=NOW),
        ConversionRejected(**task, reason=Reason.VENDOR_FAILED, detail="d", code=501, rejected_at=NOW),
        ConversionConflicting(
            **task, claim="failed", kept_link="https://x/", kept_identity="k", claimed_identity="c", received_at=NOW
        ),
        ConversionAtRisk(**task, threshold_percent=50, deadline=NOW, last_reason=Reason.TIMED_OUT, attempts=3),
        FileReplaced(**file, revision=2, previous_sha256="1" * 64, replaced_at=NOW),
    ):
        yield encode(make(data, time=NOW))


def check(data: bytes) -> None:
    """Read a message; AssertionError, or whatever else escapes, is a crash."""
    try:
        event = decode(data)
    except PermanentError as error:
        error.detail.encode()  # it is logged, and told beside the parked message
        return
    assert type_of(data) == event.type
    assert decode(encode(event)) == event


def mutate(data: bytes, max_size: int, seed: int) -> bytes | None:
    """Return a changed document; None where bytes are to be changed instead."""
    return json_mutator.mutate(data, max_size, seed, WORDS)


if __name__ == "__main__":
    from tests.fuzz.engine import main

    sys.exit(main("events"))
