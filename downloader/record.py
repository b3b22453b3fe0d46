"""What a vendor answers when asked about a task: from the bytes of an answer to what they mean.

Responsible for: the closed list of what can come of a question, and the reading of record-info, its older spelling and
kie's job form. Pure. It must not ask, nor decide what follows.

Source: the vendors' record-info pages. Most errors are a code in the body under HTTP 200, an unknown task among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from shared.vendor_json import MalformedJsonError, as_number, as_object, link_in, parse, task_named


class Outcome(StrEnum):
    """What came of a question: the one vocabulary of logs and metrics."""

    READY = "ready"
    """There is a link; it may be the one we have."""
    NO_LINK = "no_link"
    """Done, but the link is not told, or not any more."""
    PENDING = "pending"
    FAILED = "failed"
    """The vendor says that the conversion failed for good."""
    UNKNOWN = "unknown"
    """The vendor does not know the task, in this form at least."""
    THROTTLED = "throttled"
    """We asked too often for the vendor's liking."""
    REFUSED = "refused"
    """The key is not accepted, or the question is not."""
    UNAVAILABLE = "unavailable"
    """No answer, or one that says that none can be given now."""
    MALFORMED = "malformed"
    """An answer that says nothing we know."""
    HELD_BACK = "held_back"
    """Not asked: our own limit was reached."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question.

    Attributes:
        url: of the file, spaces encoded; only where it is `ready`.
        code: the vendor's own, or the HTTP status, where one explains the outcome.
    """

    outcome: Outcome
    url: str | None = None
    code: int | None = None


_TOO_FAST_STATUSES: Final = frozenset({429, 430})
_TOO_FAST_CODES: Final = frozenset({405, 429, 430})
_MAINTENANCE: Final = 455

_DONE: Final = frozenset({"SUCCESS", "CALLBACK_EXCEPTION"})
"""With `CALLBACK_EXCEPTION` only the vendor's callback went wrong."""
_PENDING: Final = frozenset({"PENDING", "WAITING", "QUEUING", "GENERATING"})
_FAILED: Final = frozenset({"CREATE_TASK_FAILED", "GENERATE_WAV_FAILED", "FAIL"})


def read(status: int, body: bytes, *, task_id: str) -> Answer:
    """Read an answer.

    Args:
        status: of HTTP; it goes before the code in the body.
        body: any bytes.
        task_id: the task that was asked about; an answer about another one is malformed.
    """
    if status == 404:
        return Answer(Outcome.UNKNOWN, code=status)
    if status in _TOO_FAST_STATUSES:
        return Answer(Outcome.THROTTLED, code=status)
    if status >= 500:
        return Answer(Outcome.UNAVAILABLE, code=status)
    if status >= 400:
        return Answer(Outcome.REFUSED, code=status)
    if status != 200:
        return Answer(Outcome.MALFORMED, code=status)
    try:
        document = parse(body)
    except MalformedJsonError:
        return Answer(Outcome.MALFORMED)
    code, data = as_number(document.get("code")), as_object(document.get("data"))
    return _read_data(data, task_id) if code == 200 else _read_code(code)


def _read_code(code: int | None) -> Answer:
    if code is None:
        return Answer(Outcome.MALFORMED)
    if code == 404:
        return Answer(Outcome.UNKNOWN, code=code)
    if code in _TOO_FAST_CODES:
        return Answer(Outcome.THROTTLED, code=code)
    if code == _MAINTENANCE or code >= 500:
        return Answer(Outcome.UNAVAILABLE, code=code)
    return Answer(Outcome.REFUSED, code=code)


def _read_data(data: Mapping[str, Any], task_id: str) -> Answer:
    if not data:
        return Answer(Outcome.UNKNOWN)
    if task_named(data) not in {task_id, None}:
        return Answer(Outcome.MALFORMED)
    state = _state(data)
    if state in _DONE:
        url = link_in(data)
        return Answer(Outcome.NO_LINK) if url is None else Answer(Outcome.READY, url=url)
    if state in _PENDING:
        return Answer(Outcome.PENDING)
    if state in _FAILED:
        return Answer(Outcome.FAILED, code=as_number(data.get("errorCode")) or as_number(data.get("failCode")))
    return Answer(Outcome.MALFORMED)


def _state(data: Mapping[str, Any]) -> str | None:
    """Return the word for how the task stands, in capitals, by the first of its names that holds one."""
    for name in ("successFlag", "status", "state"):
        value = data.get(name)
        if isinstance(value, str) and value:
            return value.strip().upper()
    return None
