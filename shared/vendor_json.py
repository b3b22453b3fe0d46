"""The JSON of the vendors: strict where two parsers could differ, tolerant of every spelling.

Responsible for: what the body of a callback and the answer to a question have in common, which is their JSON, how they
name a task, number a code, and spell a link. Pure. It must not decide what a document says as a whole.

Source: the vendors' pages; each form has a sample in `tests/samples`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

LONGEST_MESSAGE = 500

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_LINK = re.compile(r"https?://[^/]", re.IGNORECASE)


class MalformedJsonError(Exception):
    """The bytes are not one JSON object that every parser reads alike; the message says what is wrong with them."""


def parse(body: bytes) -> Mapping[str, Any]:
    """Read the bytes as one JSON object.

    Raises:
        MalformedJsonError: they are none: not UTF-8, not JSON (RFC 8259), not an object, nested too deep, with a number
            no computer agrees on, with a key twice, or with half a surrogate pair.
    """
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        if _SURROGATE_ESCAPE.search(body):
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedJsonError("The body holds half a surrogate pair.") from None
    except UnicodeDecodeError:
        raise MalformedJsonError("The body is not UTF-8.") from None
    except RecursionError:
        raise MalformedJsonError("The body is nested too deep.") from None
    except ValueError as error:
        raise MalformedJsonError(f"The body is not JSON: {str(error)[:100]}.") from None
    if not isinstance(document, dict):
        raise MalformedJsonError("The body is JSON, but not an object.")
    return document


def as_object(value: Any) -> Mapping[str, Any]:
    """Return an object, empty where the value is none."""
    return value if isinstance(value, dict) else {}


def as_number(value: Any) -> int | None:
    """Read a code, which may come as a numeric string; None where it is none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1_000_000_000:
        return value
    return None


def as_message(*values: Any) -> str:
    """Return the first text that says anything, cut to a sensible length; empty where none does."""
    return next((value[:LONGEST_MESSAGE] for value in values if isinstance(value, str) and value), "")


def task_named(*holders: Mapping[str, Any]) -> str | None:
    """Return the first task id that one of these objects tells, in either spelling; it may hold anything."""
    for holder in holders:
        for name in ("task_id", "taskId"):
            value = holder.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if isinstance(value, str) and value:
                return value
    return None


def link_in(data: Mapping[str, Any]) -> str | None:
    """Return the first link to a WAV in the `data` of a document, spaces encoded; None where there is none."""
    for candidate in _candidates(data):
        if isinstance(candidate, str) and _LINK.match(candidate.strip()):
            return candidate.strip().replace(" ", "%20")
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _candidates(data: Mapping[str, Any]) -> Iterator[Any]:
    for holder in (data, as_object(data.get("response"))):
        yield holder.get("audioWavUrl")
        yield holder.get("audio_wav_url")
    if data.get("state") == "success":
        yield from _result_urls(data.get("resultJson"))


def _result_urls(result: Any) -> list[Any]:
    """Read kie's job form: a JSON string that holds the links."""
    if isinstance(result, str):
        try:
            result = parse(result.encode("utf-8", "surrogatepass"))
        except MalformedJsonError:
            return []
    urls = as_object(result).get("resultUrls")
    return urls if isinstance(urls, list) else []
