"""The bodies and headers of callbacks, as the vendors spell them.

Responsible for: building each known shape and signing it. Pure. It must not decide which shape is sent, and it imports
nothing of the services that read these bodies, so that the two can only agree through the vendors' contract.
Source: the vendors' callback pages, as gathered in `tests/samples`.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec

from shared.vendors import Vendor
from simulator.plan import Shape, Sign

USUAL_SHAPE = MappingProxyType({Vendor.APIBOX: Shape.CAMEL, Vendor.KIE: Shape.SNAKE, Vendor.SUNOAPI: Shape.CAMEL})
USUAL_FAILURE = MappingProxyType(
    {
        Vendor.APIBOX: (500, "Internal Error - Please try again later"),
        Vendor.KIE: (501, "WAV conversion failed"),
        Vendor.SUNOAPI: (400, "WAV format conversion failed"),
    }
)

_SKEW_S = {Sign.STALE: -3_600, Sign.FUTURE: 3_600}
_ENCODER = msgspec.json.Encoder()


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What one callback says, before it is spelt.

    Attributes:
        url: of the file; null where the vendor failed.
        at: when the vendor finished, aware.
    """

    task_id: str
    code: int
    message: str
    url: str | None
    at: datetime


def body(shape: Shape, said: Said) -> bytes:
    """Return the JSON of a callback in one shape."""
    return _ENCODER.encode(_SHAPES[shape](said))


def result_json(url: str | None) -> str:
    """Return the JSON string within a job: the URLs of its results, or nothing."""
    return f'{{"resultUrls": [{_ENCODER.encode(url).decode()}]}}' if url is not None else ""


def signature(key: str, task_id: str, timestamp: str) -> str:
    """Return base64(HMAC-SHA256(key, taskId + "." + timestamp)), as `kie` signs; the body is not part of it."""
    mac = hmac.new(key.encode(), f"{task_id}.{timestamp}".encode("utf-8", "surrogatepass"), hashlib.sha256)
    return base64.b64encode(mac.digest()).decode()


def signed_headers(sign: Sign, key: str | None, task_id: str, now_s: float) -> dict[str, str]:
    """Return the headers that sign a callback, none where it is not signed.

    Args:
        sign: rightly, or in one of the wrong ways; `auto` signs where there is a key.
        key: the shared key; without one, `auto` and `no` sign nothing and the others use a key of their own.
        task_id: of the callback.
        now_s: Unix time in seconds.
    """
    if sign is Sign.NO or (sign is Sign.AUTO and key is None):
        return {}
    timestamp = str(int(now_s) + _SKEW_S.get(sign, 0))
    used_key = "not-the-key" if key is None or sign is Sign.WRONG else key
    signed_task = f"{task_id}-other" if sign is Sign.OTHER_TASK else task_id
    return {
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-Signature": signature(used_key, signed_task, timestamp),
    }


def _envelope(said: Said, data: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"code": said.code, "msg": said.message, **more, "data": data}


def _camel(said: Said) -> dict[str, Any]:
    return _envelope(said, {"audioWavUrl": said.url, "task_id": said.task_id})


def _snake(said: Said) -> dict[str, Any]:
    return _envelope(said, {"audio_wav_url": said.url, "task_id": said.task_id})


def _signed(said: Said) -> dict[str, Any]:
    return {"taskId": said.task_id, **_snake(said)}


def _nested_camel(said: Said) -> dict[str, Any]:
    return _envelope(said, {"task_id": said.task_id, "response": {"audioWavUrl": said.url}})


def _nested_snake(said: Said) -> dict[str, Any]:
    return _envelope(said, {"taskId": said.task_id, "response": {"audio_wav_url": said.url}})


def _job(said: Said) -> dict[str, Any]:
    if said.url is None:
        failure = {"state": "fail", "resultJson": "", "failCode": str(said.code), "failMsg": said.message}
        return _envelope(said, {"taskId": said.task_id, **failure})
    epoch_ms = int(said.at.timestamp() * 1_000)
    data = {
        "taskId": said.task_id,
        "model": "ai-music-api/convert-to-wav-format",
        "state": "success",
        "resultJson": result_json(said.url),
        "failCode": None,
        "failMsg": None,
        "createTime": epoch_ms - 60_333,
        "completeTime": epoch_ms,
    }
    return _envelope(said, data)


def _code_as_string(said: Said) -> dict[str, Any]:
    return {**_camel(said), "code": str(said.code)}


def _unknown_keys(said: Said) -> dict[str, Any]:
    data = {"audioWavUrl": said.url, "task_id": said.task_id, "musicIndex": 0, "extra": {"a": [1]}}
    return _envelope(said, data, requestId="r-1")


def _data_null(said: Said) -> dict[str, Any]:
    return _envelope(said, None, taskId=said.task_id)


def _no_url(said: Said) -> dict[str, Any]:
    return _envelope(said, {"audioWavUrl": "", "task_id": said.task_id})


def _no_task_id(said: Said) -> dict[str, Any]:
    return _envelope(said, {"audioWavUrl": said.url})


def _music(said: Said) -> dict[str, Any]:
    track = {
        "id": "8551662c",
        "audio_url": "https://files.example.com/a.mp3",
        "createTime": 1758700000000,
        "title": "x",
        "duration": 198.44,
    }
    return _envelope(said, {"callbackType": "complete", "task_id": said.task_id, "data": [track]})


_SHAPES: dict[Shape, Callable[[Said], dict[str, Any]]] = {
    Shape.CAMEL: _camel,
    Shape.SNAKE: _snake,
    Shape.SIGNED: _signed,
    Shape.NESTED_CAMEL: _nested_camel,
    Shape.NESTED_SNAKE: _nested_snake,
    Shape.JOB: _job,
    Shape.CODE_AS_STRING: _code_as_string,
    Shape.UNKNOWN_KEYS: _unknown_keys,
    Shape.DATA_NULL: _data_null,
    Shape.NO_URL: _no_url,
    Shape.NO_TASK_ID: _no_task_id,
    Shape.MUSIC: _music,
}
