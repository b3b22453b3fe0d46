"""Fuzz the reader of what a vendor answers when asked.

Responsible for: what must hold of any answer. Nothing may escape, and a link is told exactly where there is one. It
must not know who makes the answers.
"""

import json
import sys
from collections.abc import Iterator

from downloader.record import Outcome, read
from tests.fuzz import json_mutator

LONGEST_BYTES = 64 * 1024
WORDS = (
    *(b'{"code":200,"data":{', b'"taskId":"t"', b'"successFlag"', b'"status"', b'"state"', b'"response"'),
    *(b'"audioWavUrl"', b'"audio_wav_url"', b'"resultJson"', b'"resultUrls"', b'"errorCode"', b'"failCode"'),
    *(b'"SUCCESS"', b'"PENDING"', b'"CALLBACK_EXCEPTION"', b'"GENERATE_WAV_FAILED"', b'"fail"', b'"success"'),
    *(b"https://x/", b'"{\\"resultUrls\\":[\\"https://x/\\"]}"', b"\\ud800", b"404", b"429", b"455", b"500", b"null"),
)


def seeds() -> Iterator[bytes]:
    """Return one answer of each kind."""
    link = "https://x/a b.wav"
    for data in (
        {"taskId": "t", "successFlag": "SUCCESS", "response": {"audioWavUrl": link}},
        {"taskId": "t", "status": "CALLBACK_EXCEPTION", "response": {"audio_wav_url": link}},
        {"taskId": "t", "state": "success", "resultJson": json.dumps({"resultUrls": [link]})},
        {"taskId": "t", "state": "fail", "failCode": "501", "failMsg": "no"},
        {"taskId": "t", "successFlag": "GENERATE_WAV_FAILED", "errorCode": 500},
        {"taskId": "t", "successFlag": "PENDING", "response": None},
        {"taskId": "other", "successFlag": "SUCCESS"},
        None,
    ):
        yield json.dumps({"code": 200, "msg": "success", "data": data}).encode()
    for code in (404, 405, 401, 455, 500, "430"):
        yield json.dumps({"code": code, "msg": "x", "data": None}).encode()


def check(data: bytes) -> None:
    """Read an answer; AssertionError, or whatever else escapes, is a crash."""
    for status in (200, 204, 404, 429, 401, 502):
        answer = read(status, data, task_id="t")
        assert (answer.url is not None) == (answer.outcome is Outcome.READY)
        if answer.url is not None:
            assert answer.url.encode().lower().startswith((b"http://", b"https://"))
            assert " " not in answer.url


def mutate(data: bytes, max_size: int, seed: int) -> bytes | None:
    """Return a changed document; None where bytes are to be changed instead."""
    return json_mutator.mutate(data, max_size, seed, WORDS)


if __name__ == "__main__":
    from tests.fuzz.engine import main

    sys.exit(main("record"))
