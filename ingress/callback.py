"""What a vendor says: from the bytes of a callback to a reading of it.

Responsible for: strict JSON (what two parsers could read differently is refused) and a tolerant reading of every
spelling the vendors use, whichever vendor it comes from. Pure. It must not know HTTP, nor publish anything.

Source: the vendors' callback pages; each form has a sample in `tests/samples`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

SUCCESS_CODE = 200
FAILED_CODE = 501
LONGEST_TASK_ID = 256
LONGEST_MESSAGE = 500

_FORBIDDEN_IN_TASK_ID = re.compile(r"[\x00-\x1f\x7f-\x9f/\\\u2028\u2029]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_LINK = re.compile(r"https?://[^/]", re.IGNORECASE)
_OLDEST_COMPLETION = timedelta(days=30)


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
class Unrecognised:
    """JSON of no known shape, or one that says too little."""

    task_id: str | None
    explanation: str


Reading = Succeeded | Failed | Unrecognised


def parse(body: bytes) -> Mapping[str, Any]:
    """Read the body as one JSON object.

    Raises:
        MalformedCallbackError: it is none: not UTF-8, not JSON (RFC 8259), not an object, nested too deep, with a
            number no computer agrees on, with a key twice, or with half a surrogate pair.
    """
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        if _SURROGATE_ESCAPE.search(body):
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedCallbackError("The body holds half a surrogate pair.") from None
    except UnicodeDecodeError:
        raise MalformedCallbackError("The body is not UTF-8.") from None
    except RecursionError:
        raise MalformedCallbackError("The body is nested too deep.") from None
    except ValueError as error:
        raise MalformedCallbackError(f"The body is not JSON: {str(error)[:100]}.") from None
    if not isinstance(document, dict):
        raise MalformedCallbackError("The body is JSON, but not an object.")
    return document


def read(document: Mapping[str, Any], *, received_at: datetime) -> Reading:
    """Read what the vendor says.

    Args:
        document: of `parse`.
        received_at: aware; bounds what is believed of the vendor's own times.

    Raises:
        MalformedCallbackError: the task id cannot be one.
    """
    data = _object(document.get("data"))
    task_id = _task_id(document, data)
    code = _code(document, data)
    state = data.get("state")
    url = _link(data)
    if task_id is None:
        return Unrecognised(None, "it names no task")
    if code is None:
        return Unrecognised(task_id, "it has no code")
    message = _message(document, data)
    completed_at = _completed_at(data, received_at)
    if code != SUCCESS_CODE:
        return Failed(task_id, code, message, completed_at)
    if state == "fail":
        return Failed(task_id, _number(data.get("failCode")) or FAILED_CODE, message, completed_at)
    if url is None:
        return Unrecognised(task_id, "it tells success without a link to a WAV")
    return Succeeded(task_id, url, code, message, completed_at)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _task_id(document: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    for holder in (data, document):
        for name in ("task_id", "taskId"):
            value = holder.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if isinstance(value, str) and value:
                return _checked_task_id(value)
    return None


def _checked_task_id(task_id: str) -> str:
    if len(task_id) > LONGEST_TASK_ID:
        raise MalformedCallbackError(f"The task id is longer than {LONGEST_TASK_ID} characters.")
    if _FORBIDDEN_IN_TASK_ID.search(task_id) or set(task_id) == {"."}:
        raise MalformedCallbackError("The task id holds a control character or a path.")
    return task_id


def _code(document: Mapping[str, Any], data: Mapping[str, Any]) -> int | None:
    code = _number(document.get("code"))
    if code is None and data.get("state") in ("success", "fail"):  # a set would fault on an unhashable state
        return SUCCESS_CODE
    return code


def _number(value: Any) -> int | None:
    """Read a code, which may come as a numeric string; None where it is none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1_000_000_000:
        return value
    return None


def _link(data: Mapping[str, Any]) -> str | None:
    """Return the first link to a WAV, spaces encoded; None where there is none."""
    for candidate in _candidates(data):
        if isinstance(candidate, str) and _LINK.match(candidate.strip()):
            return candidate.strip().replace(" ", "%20")
    return None


def _candidates(data: Mapping[str, Any]) -> Iterator[Any]:
    for holder in (data, _object(data.get("response"))):
        yield holder.get("audioWavUrl")
        yield holder.get("audio_wav_url")
    if data.get("state") == "success":
        yield from _result_urls(data.get("resultJson"))


def _result_urls(result: Any) -> list[Any]:
    """Read kie's job form: a JSON string that holds the links."""
    if isinstance(result, str):
        try:
            result = parse(result.encode("utf-8", "surrogatepass"))
        except MalformedCallbackError:
            return []
    urls = _object(result).get("resultUrls")
    return urls if isinstance(urls, list) else []


def _message(document: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    for value in (data.get("failMsg"), document.get("msg"), document.get("message"), data.get("errorMessage")):
        if isinstance(value, str) and value:
            return value[:LONGEST_MESSAGE]
    return ""


def _completed_at(data: Mapping[str, Any], received_at: datetime) -> datetime | None:
    """Return when the vendor finished, where it says so in epoch milliseconds and within reason.

    Its other form, a local time without a zone, is ignored: no page says which zone.
    """
    value = data.get("completeTime")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 10**14:
        return None
    completed_at = datetime.fromtimestamp(value / 1_000, UTC)
    return completed_at if received_at - _OLDEST_COMPLETION < completed_at <= received_at else None
