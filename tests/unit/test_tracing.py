"""One trace from the callback to the notification."""

import re

import pytest

from shared.tracing import start, trace_id

VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def test_a_trace_goes_on() -> None:
    """A valid value keeps its trace and its flags, in a span of its own."""
    version, trace, span, flags = start(VALID).split("-")
    assert (version, trace, flags) == ("00", "0af7651916cd43dd8448eb211c80319c", "00")
    assert re.fullmatch(r"[0-9a-f]{16}", span)
    assert span != "b7ad6b7169203331"


@pytest.mark.parametrize(
    "incoming",
    [
        None,
        "",
        "x",
        VALID.upper(),
        f" {VALID}",
        f"{VALID}\n",
        f"{VALID}-extra",
        VALID[:-1],
        "01" + VALID[2:],
        "ff" + VALID[2:],
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        "00-\u0660af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "\udcff",
        "0" * 100_000,
    ],
)
def test_anything_else_starts_a_trace(incoming: str | None) -> None:
    """What is not a value of the standard is not carried on, whoever sent it."""
    started = start(incoming)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", started)
    assert trace_id(started) != trace_id(VALID)
    assert trace_id(incoming) is None


def test_traces_differ() -> None:
    """Two callbacks without a trace do not share one."""
    assert len({trace_id(start()) for _ in range(100)}) == 100


def test_what_is_started_goes_on() -> None:
    """What we start is valid for the next one."""
    first = start()
    assert trace_id(start(first)) == trace_id(first) == first.split("-")[1]
