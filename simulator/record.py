"""What a vendor says about a task when asked.

Responsible for: the two spellings of record-info and kie's job form. Pure. It must not know of requests, keys or
limits. Source: the vendors' record-info pages.
"""

from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from shared.vendors import Vendor
from simulator.ledger import Conversion, ServedFile
from simulator.oracle import claim
from simulator.payloads import USUAL_FAILURE, result_json
from simulator.plan import RecordForm

USUAL_FORM = MappingProxyType(
    {
        Vendor.APIBOX: RecordForm.NEW_TEXT_TIMES,
        Vendor.KIE: RecordForm.NEW_EPOCH_TIMES,
        Vendor.SUNOAPI: RecordForm.OLD,
    }
)

_CREATION_CODES = frozenset({400, 451})


class State(NamedTuple):
    """How a task stands with its vendor: its file once there is one, or the code and text of its failure."""

    flag: str
    file: ServedFile | None = None
    code: int | None = None
    message: str | None = None


def state_of(conversion: Conversion) -> State | None:
    """Return how a task stands; None where the vendor does not know it."""
    record = conversion.plan.record
    if record == "unknown":
        return None
    if record == "pending":
        return State("PENDING")
    if record == "succeeded":
        return State("SUCCESS", conversion.files[0])
    if record == "failed":
        return _failure(*USUAL_FAILURE[conversion.vendor])
    return _as_called(conversion)


def record(conversion: Conversion, state: State, url: str | None) -> dict[str, Any]:
    """Return `data` of record-info, as the plan or the vendor spells it."""
    form = conversion.plan.record_form or USUAL_FORM[conversion.vendor]
    old = form is RecordForm.OLD
    time = _epoch_ms if form is RecordForm.NEW_EPOCH_TIMES else _text
    music_task, _ = conversion.source or ("", "")
    return {
        "taskId": conversion.task_id,
        "musicId": music_task,
        "callbackUrl": conversion.callback_url,
        "status" if old else "successFlag": state.flag,
        "response": {"audio_wav_url" if old else "audioWavUrl": url} if url else None,
        "createTime": time(conversion.created_at),
        "completeTime": time(conversion.completed_at) if conversion.completed_at and state.flag != "PENDING" else None,
        "errorCode": state.code,
        "errorMessage": state.message,
    }


def job(conversion: Conversion, state: State, url: str | None) -> dict[str, Any]:
    """Return `data` of kie's newer job form."""
    failed = state.code is not None
    waiting = state.flag == "PENDING"
    return {
        "taskId": conversion.task_id,
        "model": "ai-music-api/convert-to-wav-format",
        "state": "fail" if failed else "generating" if waiting else "success",
        "resultJson": result_json(url),
        "failCode": str(state.code) if failed else None,
        "failMsg": state.message,
        "createTime": _epoch_ms(conversion.created_at),
        "completeTime": _epoch_ms(conversion.completed_at) if conversion.completed_at and not waiting else None,
    }


def _as_called(conversion: Conversion) -> State:
    plan = conversion.plan
    if not plan.steps:
        return State("SUCCESS", conversion.files[0]) if conversion.finished else State("PENDING")
    if not conversion.steps_begun:
        return State("PENDING")
    step = plan.steps[conversion.steps_begun - 1]
    if step.outcome == "failed" or claim(step, plan.shape) == "failed":
        usual_code, usual_message = USUAL_FAILURE[conversion.vendor]
        return _failure(step.code or usual_code, step.message or usual_message)
    unheard = conversion.finished and not conversion.acknowledged
    return State("CALLBACK_EXCEPTION" if unheard else "SUCCESS", conversion.files[step.file])


def _failure(code: int, message: str) -> State:
    flag = "CREATE_TASK_FAILED" if code in _CREATION_CODES else "GENERATE_WAV_FAILED"
    return State(flag, code=code, message=message)


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _epoch_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)
