"""Fuzz the way from the bytes of a callback to the event that is published.

Responsible for: what must hold of any body. Nothing but `MalformedCallbackError` may escape, and whatever is read
becomes an event that can be encoded and read again. It must not know who makes the bodies.
"""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from ingress.callback import MalformedCallbackError, parse, read
from ingress.report import make_report, read_again
from shared import events, links
from shared.events import ReportSucceeded, ReportUnrecognised
from shared.vendors import Vendor
from tests.fuzz import json_mutator

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
RETENTION = timedelta(days=14)
LONGEST_BYTES = 64 * 1024
WORDS = (
    *(b'"code"', b'"msg"', b'"message"', b'"data"', b'"task_id"', b'"taskId"', b'"audioWavUrl"', b'"audio_wav_url"'),
    *(b'"response"', b'"state"', b'"success"', b'"fail"', b'"resultJson"', b'"failCode"', b'"failMsg"'),
    *(b'"errorMessage"', b'"completeTime"', b'"resultUrls"', b'"callbackType"', b"200", b"501", b"1795000000000"),
    *(b"https://", b"http://x/", b'{\\"resultUrls\\":[\\"https://x/\\"]}', b"\\ud800", b"\\udc00", b"\\u0000"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b'{"', b'":', b'":[', b'"},"'),
)


def seeds() -> Iterator[bytes]:
    """Return what vendors are known to send, and what is known to be hard."""
    for path in sorted((Path(__file__).parents[1] / "samples").glob("*.json")):
        yield path.read_bytes()
    yield from (
        b"[" * LONGEST_BYTES,
        b'{"data":' * 8_000 + b"1" + b"}" * 8_000,
        b'{"code":500,"taskId":"t","x":' + b"[" * 1_200 + b"]" * 1_200 + b"}",
        b'{"code":' + b"9" * 5_000 + b"}",
        b'{"code":200,"taskId":' + b"9" * 300 + b"}",
        b'{"code":NaN,"taskId":1e999}',
        b'{"code":200,"code":501}',
        b'{"code":501,"taskId":"\\ud800"}',
        b'{"code":501,"data":{"taskId":"t","completeTime":10000000000000,"state":[]}}',
        b'{"code":200,"data":{"taskId":"t","completeTime":99999999999999,"audioWavUrl":"http://[/a b.wav?x=y#z"}}',
        b'{"code":200,"data":{"taskId":"t","state":"success","resultJson":"' + b"[" * 30_000 + b'"}}',
        b'{"code":200,"data":{"taskId":"t","state":"success","resultJson":"{\\"resultUrls\\":[\\"http://\\\\ud800\\"]}"}}',
    )


def check(data: bytes) -> None:
    """Read a body as the ingress does; AssertionError, or whatever else escapes, is a crash."""
    try:
        reading = read(parse(data), received_at=NOW)
    except MalformedCallbackError as error:
        msgspec.json.encode(str(error))  # it becomes the detail of a problem document
        return
    for askable in (True, False):
        report = make_report(
            Vendor.KIE, reading, data, received_at=NOW, retention=RETENTION, trust=("token",), askable=askable
        )
        event = events.make(report, time=NOW)
        assert events.decode(events.encode(event)) == event
        assert len(event.subject) <= 300
        if isinstance(report, ReportUnrecognised):
            again = read_again(report, retention=RETENTION, askable=askable)
            assert again is None, "what was not recognised is recognised when it is read again"
        if isinstance(report, ReportSucceeded):
            shown = links.public(report.url)
            assert "?" not in shown
            assert links.identity(links.identity(report.url)) == links.identity(report.url)
            links.public_text(report.message)


def mutate(data: bytes, max_size: int, seed: int) -> bytes | None:
    """Return a changed document; None where bytes are to be changed instead."""
    return json_mutator.mutate(data, max_size, seed, WORDS)


if __name__ == "__main__":
    from tests.fuzz.engine import main

    sys.exit(main("callback"))
