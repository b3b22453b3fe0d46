"""What holds of the callback reader for any bytes and any JSON."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.callback import (
    LONGEST_TASK_ID,
    Failed,
    Linkless,
    MalformedCallbackError,
    Reading,
    Succeeded,
    Unrecognised,
    parse,
    read,
)

NOW = datetime(2026, 11, 21, tzinfo=UTC)
KNOWN = (
    "code", "msg", "message", "data", "task_id", "taskId", "audioWavUrl", "audio_wav_url", "response",
    "state", "resultJson", "failCode", "failMsg", "errorMessage", "completeTime", "resultUrls",
)  # fmt: skip
"""Every key that has a meaning."""

SPOKEN = st.sampled_from(
    [
        "200",
        "501",
        "success",
        "fail",
        "https://files.example.com/a b.wav",
        '{"resultUrls": ["http://x/"]}',
        "",
        "a/b",
        "t",
    ]
)
NUMBERS = st.one_of(
    st.integers(), st.sampled_from([200, 500, 0, 10**14]), st.floats(allow_nan=False, allow_infinity=False)
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(), SPOKEN)
KEYS = st.one_of(st.sampled_from(KNOWN), st.text(max_size=5))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=6)),
    max_leaves=15,
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=8)
SHAPED = st.fixed_dictionaries(
    {"code": st.one_of(st.just(200), LEAVES), "data": st.one_of(OBJECTS, JSON)},
    optional={"taskId": LEAVES, "msg": LEAVES},
)
SCRAPS = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from(
            [b"{", b"}", b"[", b"]", b'"', b":", b",", b'"data":', b"\\ud800", b"\\u", b"NaN", b"1e999", b"\xff"]
        ),
    ),
    max_size=20,
).map(b"".join)


def outcome(body: bytes) -> Reading | str:
    """Read a body; the one kind of refusal is an outcome too. Anything else is raised."""
    try:
        return read(parse(body), received_at=NOW)
    except MalformedCallbackError as error:
        return str(error)


def reading(document: Any) -> Reading | str:
    """Read a document as it comes over the wire."""
    return outcome(json.dumps(document).encode())


@given(st.one_of(st.binary(), SCRAPS, JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Whatever comes, it is a reading or one kind of refusal, never a fault."""
    assert outcome(body)


@given(st.one_of(OBJECTS, SHAPED))
def test_any_object_is_a_reading(document: dict[str, Any]) -> None:
    """An object is read unless its task id cannot be one, or half a surrogate pair stands in it."""
    found = reading(document)
    if isinstance(found, str):
        assert "task id" in found or "surrogate" in found
    else:
        assert isinstance(found, Succeeded | Failed | Linkless | Unrecognised)


@given(SHAPED)
def test_what_is_read_can_be_told(document: dict[str, Any]) -> None:
    """A reading holds only what can be encoded again, bounded, and a link only of http."""
    found = reading(document)
    if isinstance(found, str):
        return
    if found.task_id is not None:
        assert 0 < len(found.task_id.encode().decode()) <= LONGEST_TASK_ID
        assert "/" not in found.task_id
    if isinstance(found, Succeeded):
        assert found.url.lower().startswith(("http://", "https://"))
        assert " " not in found.url
    if isinstance(found, Succeeded | Failed | Linkless) and found.completed_at is not None:
        assert found.completed_at <= NOW


@given(st.one_of(OBJECTS, SHAPED))
def test_reading_is_stable(document: dict[str, Any]) -> None:
    """The same callback, written down and read again, says the same."""
    try:
        parsed = parse(json.dumps(document).encode())
    except MalformedCallbackError:
        return
    assert reading(parsed) == reading(json.loads(json.dumps(parsed))) == reading(document)


@given(SHAPED, st.dictionaries(st.text().filter(lambda key: key not in KNOWN), JSON.filter(bool), max_size=4))
def test_unknown_keys_change_nothing(document: dict[str, Any], unknown: dict[str, Any]) -> None:
    """What a vendor adds some day does not change what it says today."""
    try:
        parse(json.dumps(unknown).encode())
    except MalformedCallbackError:
        return
    more = {**unknown, **document}
    if isinstance(data := more.get("data"), dict):
        more["data"] = {**unknown, **data}
        if isinstance(response := data.get("response"), dict):
            more["data"]["response"] = {**unknown, **response}
    assert reading(more) == reading(document)


@pytest.mark.parametrize("depth", [1, 100, 900, 2_000, 50_000])
@given(opening=st.sampled_from(["[", '{"a":', '{"data":', '[{"a":']))
def test_nesting_of_any_depth_ends_well(depth: int, opening: str) -> None:
    """However deep it is nested, it is read or refused."""
    closing = "".join({"[": "]", "{": "}"}[sign] for sign in reversed(opening) if sign in "[{")
    body = ('{"code": 500, "taskId": "t", "x": ' + opening * depth + "1" + closing * depth + "}").encode()
    found = outcome(body)
    assert isinstance(found, Failed) or found == "The body is nested too deep."
