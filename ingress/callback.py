"""What a vendor says: from the bytes of a callback to a reading of it.

Responsible for: what a callback means as a whole, from its task, code and link, whichever vendor it comes from; their
spellings are `shared.vendor_json`'s. Pure. It must not know HTTP, nor publish anything.

Source: the vendors' callback pages; each form has a sample in `tests/samples`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shared import vendor_json
from shared.vendor_json import MalformedJsonError, as_message, as_number, as_object, link_in, task_named

SUCCESS_CODE = 200
FAILED_CODE = 501
LONGEST_TASK_ID = 256

_FORBIDDEN_IN_TASK_ID = re.compile(r"[\x00-\x1f\x7f-\x9f/\\\u2028\u2029]")
_OLDEST_COMPLETION = timedelta(days=1)
"""A vendor has stopped calling back by then. A time further back would bring the deadline near, and nobody signs it."""


class MalformedCallbackError(Exception):
    """The body cannot be what a vendor sends; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The vendor has a file."""

    task_id: str
    url: str
    code: int
    message: str
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The vendor failed."""

    task_id: str
    code: int
    message: str
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Linkless:
    """The vendor says that it has a file, but not where: it may tell when asked."""

    task_id: str
    explanation: str
    code: int
    message: str
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Unrecognised:
    """JSON of no known shape, or one that says too little."""

    task_id: str | None
    explanation: str


Reading = Succeeded | Failed | Linkless | Unrecognised


def parse(body: bytes) -> Mapping[str, Any]:
    """Read the body as one JSON object.

    Raises:
        MalformedCallbackError: it is none: not UTF-8, not JSON (RFC 8259), not an object, nested too deep, with a
            number no computer agrees on, with a key twice, or with half a surrogate pair.
    """
    try:
        return vendor_json.parse(body)
    except MalformedJsonError as error:
        raise MalformedCallbackError(str(error)) from None


def read(document: Mapping[str, Any], *, received_at: datetime) -> Reading:
    """Read what the vendor says.

    Args:
        document: of `parse`.
        received_at: aware; bounds what is believed of the vendor's own times.

    Raises:
        MalformedCallbackError: the task id cannot be one.
    """
    data = as_object(document.get("data"))
    named = task_named(data, document)
    task_id = None if named is None else _checked_task_id(named)
    code = _code(document, data)
    state = data.get("state")
    url = link_in(data)
    if task_id is None:
        return Unrecognised(None, "it names no task")
    if code is None:
        return Unrecognised(task_id, "it has no code")
    message = as_message(data.get("failMsg"), document.get("msg"), document.get("message"), data.get("errorMessage"))
    completed_at = _completed_at(data, received_at)
    if code != SUCCESS_CODE:
        return Failed(task_id, code, message, completed_at)
    if state == "fail":
        return Failed(task_id, as_number(data.get("failCode")) or FAILED_CODE, message, completed_at)
    if url is None and "callbackType" in data:  # the same vendors' music tasks bear one: no WAV to ask for
        return Unrecognised(task_id, "it tells of a music task, not of a WAV")
    if url is None:
        return Linkless(task_id, "it tells success without a link to a WAV", code, message, completed_at)
    return Succeeded(task_id, url, code, message, completed_at)


def _checked_task_id(task_id: str) -> str:
    if len(task_id) > LONGEST_TASK_ID:
        raise MalformedCallbackError(f"The task id is longer than {LONGEST_TASK_ID} characters.")
    if _FORBIDDEN_IN_TASK_ID.search(task_id) or set(task_id) == {"."}:
        raise MalformedCallbackError("The task id holds a control character or a path.")
    return task_id


def _code(document: Mapping[str, Any], data: Mapping[str, Any]) -> int | None:
    code = as_number(document.get("code"))
    if code is None and data.get("state") in ("success", "fail"):  # a set would fault on an unhashable state
        return SUCCESS_CODE
    return code


def _completed_at(data: Mapping[str, Any], received_at: datetime) -> datetime | None:
    """Return when the vendor finished, where it says so in epoch milliseconds and within reason.

    Its other form, a local time without a zone, is ignored: no page says which zone.
    """
    value = data.get("completeTime")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 10**14:
        return None
    completed_at = datetime.fromtimestamp(value / 1_000, UTC)
    return completed_at if received_at - _OLDEST_COMPLETION < completed_at <= received_at else None
