"""What a vendor's answer about a task means, in every form the vendors give it."""

import json
from typing import Any

import pytest

from downloader.record import Answer, Outcome, read

URL = "https://files.example.com/a.wav"
TASK = "ee9c2715375b7837f8bb51d641ff5863"


def answered(document: Any, *, status: int = 200) -> Answer:
    """Read a document as it comes over the wire."""
    return read(status, json.dumps(document).encode(), task_id=TASK)


def record(**data: Any) -> dict[str, Any]:
    """Return an answer about the task with this in its data."""
    return {"code": 200, "msg": "success", "data": {"taskId": TASK, "createTime": "2026-01-01 00:00:00", **data}}


@pytest.mark.parametrize(
    "data",
    [
        {"successFlag": "SUCCESS", "response": {"audioWavUrl": URL}},
        {"status": "SUCCESS", "response": {"audio_wav_url": URL}},
        {"successFlag": "success", "response": {"audioWavUrl": f" {URL} "}},
        {"successFlag": "SUCCESS", "audioWavUrl": URL, "response": None},
        {"successFlag": None, "status": "SUCCESS", "audio_wav_url": URL},
        {"successFlag": "CALLBACK_EXCEPTION", "response": {"audioWavUrl": URL}, "errorCode": 500},
        {"successFlag": "SUCCESS", "response": {"audioWavUrl": URL}, "completeTime": 1_769_670_760_000, "new": [1]},
        {"state": "success", "resultJson": json.dumps({"resultUrls": [URL]}), "failCode": None},
        {"state": "success", "resultJson": {"resultUrls": [URL, "https://files.example.com/b.wav"]}},
    ],
)
def test_a_link_in_every_spelling(data: dict[str, Any]) -> None:
    """A vendor that has the file gives us its link, also where only its callback went wrong."""
    assert answered(record(**data)) == Answer(Outcome.READY, url=URL)


def test_a_link_with_raw_spaces() -> None:
    """A link is spelt as a callback's is, so that the same one is known as the same."""
    told = answered(record(successFlag="SUCCESS", response={"audioWavUrl": "https://files.example.com/my song.wav"}))
    assert told.url == "https://files.example.com/my%20song.wav"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"successFlag": "PENDING"}, Answer(Outcome.PENDING)),
        ({"status": "PENDING", "response": {"audioWavUrl": URL}}, Answer(Outcome.PENDING)),
        ({"state": "waiting"}, Answer(Outcome.PENDING)),
        ({"state": "queuing"}, Answer(Outcome.PENDING)),
        ({"state": "generating", "resultJson": ""}, Answer(Outcome.PENDING)),
        ({"successFlag": "SUCCESS", "response": None}, Answer(Outcome.NO_LINK)),
        ({"successFlag": "SUCCESS", "response": {"audioWavUrl": ""}}, Answer(Outcome.NO_LINK)),
        ({"successFlag": "SUCCESS", "response": {"audioWavUrl": "ftp://files.example.com/a"}}, Answer(Outcome.NO_LINK)),
        ({"successFlag": "CALLBACK_EXCEPTION"}, Answer(Outcome.NO_LINK)),
        ({"state": "success", "resultJson": "{"}, Answer(Outcome.NO_LINK)),
        ({"successFlag": "CREATE_TASK_FAILED", "errorCode": 400}, Answer(Outcome.FAILED, code=400)),
        ({"status": "GENERATE_WAV_FAILED", "errorCode": "500"}, Answer(Outcome.FAILED, code=500)),
        ({"successFlag": "GENERATE_WAV_FAILED", "response": {"audioWavUrl": URL}}, Answer(Outcome.FAILED)),
        ({"state": "fail", "failCode": "501", "failMsg": "no"}, Answer(Outcome.FAILED, code=501)),
        ({"successFlag": "SOMETHING_NEW", "response": {"audioWavUrl": URL}}, Answer(Outcome.MALFORMED)),
        ({"response": {"audioWavUrl": URL}}, Answer(Outcome.MALFORMED)),
        ({"successFlag": 1, "response": {"audioWavUrl": URL}}, Answer(Outcome.MALFORMED)),
        ({"successFlag": ["SUCCESS"], "state": {}}, Answer(Outcome.MALFORMED)),
        ({"taskId": "another", "successFlag": "SUCCESS", "response": {"audioWavUrl": URL}}, Answer(Outcome.MALFORMED)),
        ({"task_id": "another", "successFlag": "SUCCESS", "response": {"audioWavUrl": URL}}, Answer(Outcome.MALFORMED)),
    ],
)
def test_what_a_record_says(data: dict[str, Any], expected: Answer) -> None:
    """Pending, done without a link, failed, and what is no answer to our question are told apart."""
    assert answered(record(**data)) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"code": 404, "msg": "Task not found", "data": None}, Answer(Outcome.UNKNOWN, code=404)),
        ({"code": "404"}, Answer(Outcome.UNKNOWN, code=404)),
        ({"code": 200, "data": None}, Answer(Outcome.UNKNOWN)),
        ({"code": 200, "data": {}}, Answer(Outcome.UNKNOWN)),
        ({"code": 401, "msg": "Unauthorized"}, Answer(Outcome.REFUSED, code=401)),
        ({"code": 402}, Answer(Outcome.REFUSED, code=402)),
        ({"code": 405}, Answer(Outcome.THROTTLED, code=405)),
        ({"code": 429}, Answer(Outcome.THROTTLED, code=429)),
        ({"code": 430}, Answer(Outcome.THROTTLED, code=430)),
        ({"code": 455}, Answer(Outcome.UNAVAILABLE, code=455)),
        ({"code": 500}, Answer(Outcome.UNAVAILABLE, code=500)),
        ({"data": {"successFlag": "SUCCESS"}}, Answer(Outcome.MALFORMED)),
        ({"code": None}, Answer(Outcome.MALFORMED)),
        ([], Answer(Outcome.MALFORMED)),
    ],
)
def test_codes_in_the_body(document: Any, expected: Answer) -> None:
    """Most errors come as a code under HTTP 200; only an unknown task is worth asking about in another form."""
    assert answered(document) == expected


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (302, Outcome.MALFORMED),
        (204, Outcome.MALFORMED),
        (400, Outcome.REFUSED),
        (401, Outcome.REFUSED),
        (403, Outcome.REFUSED),
        (404, Outcome.UNKNOWN),
        (429, Outcome.THROTTLED),
        (430, Outcome.THROTTLED),
        (500, Outcome.UNAVAILABLE),
        (503, Outcome.UNAVAILABLE),
    ],
)
def test_the_status_goes_before_the_body(status: int, outcome: Outcome) -> None:
    """An answer that is none by HTTP is believed in nothing that it says."""
    document = record(successFlag="SUCCESS", response={"audioWavUrl": URL})
    assert answered(document, status=status) == Answer(outcome, code=status)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"<html>", b'{"code":200,"code":200}', b"[" * 50_000, b'{"code":NaN}', b'{"code":"\\ud800"}'],
)
def test_what_is_no_json_is_no_answer(body: bytes) -> None:
    """Answers are read as strictly as callbacks, and nothing a vendor sends is a fault of ours."""
    assert read(200, body, task_id=TASK) == Answer(Outcome.MALFORMED)


def test_a_numeric_task_id_is_the_same_task() -> None:
    """A vendor that spells the task as a number means the task we asked about."""
    document = {"code": "200", "data": {"task_id": 17, "status": "SUCCESS", "audioWavUrl": URL}}
    assert read(200, json.dumps(document).encode(), task_id="17").outcome is Outcome.READY
