"""The log's chain: one for our records and those of libraries, and nothing secret through it."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from shared import logs

SECRET = "s3cret"
LINK = f"https://files.example.com/a.wav?X-Amz-Signature={SECRET}&Expires=1"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave logging as it was found."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def written(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what reached standard error; nothing may reach standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the lines written, each of which must be one JSON object."""
    return [json.loads(line) for line in written(capsys).splitlines()]


def logger() -> Any:
    """Return a logger that was bound by no other test."""
    return structlog.get_logger()


def test_ours_and_libraries_records_are_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """Each record is one line of JSON with the same fields, whoever wrote it."""
    logs.configure("tests", log_format="json")
    logger().info("file.stored", size_bytes=7)
    logging.getLogger("some.library").warning("Lost %s of %d", "one", 2)
    ours, theirs = lines(capsys)
    assert (ours["event"], ours["level"], ours["service"], ours["size_bytes"]) == ("file.stored", "info", "tests", 7)
    assert (theirs["event"], theirs["level"], theirs["service"]) == ("Lost one of 2", "warning", "tests")
    for line in (ours, theirs):
        assert abs((datetime.fromisoformat(line["timestamp"]) - datetime.now(UTC)).total_seconds()) < 60


def test_automatic_format_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody looks, it is JSON."""
    logs.configure("tests")
    logger().info("a.b")
    assert lines(capsys)[0]["event"] == "a.b"


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    """What is below the level is not written, neither ours nor a library's; the AMQP library's we tell."""
    logs.configure("tests", log_format="json", level="info")
    logger().debug("too.low")
    logging.getLogger("some.library").debug("too low")
    logging.getLogger("asyncio").info("too chatty")
    logging.getLogger("aiormq.connection").error("told by us")
    logging.getLogger("asyncio").warning("broken")
    logger().error("a.b")
    assert [line["event"] for line in lines(capsys)] == ["broken", "a.b"]


def test_context_is_on_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What is bound to the work in hand stands on libraries' lines too."""
    logs.configure("tests", log_format="json")
    with structlog.contextvars.bound_contextvars(subject="kie/t1"):
        logger().info("a.b")
        logging.getLogger("some.library").warning("c")
    logger().info("d.e")
    assert [line.get("subject") for line in lines(capsys)] == ["kie/t1", "kie/t1", None]


def test_values_of_any_type(capsys: pytest.CaptureFixture[str]) -> None:
    """No value breaks the line: what JSON does not know is told as text."""
    logs.configure("tests", log_format="json")
    values = {
        "path": logs.__file__,
        "error": ValueError("x"),
        "when": datetime(2026, 11, 21, tzinfo=UTC),
        "some": {1, 2},
        "half": "a\ud800b",
        "raw": b"\xff",
        "nested": {"a": [object, None, True, 1.5, {7: "b"}]},
        "huge": 2**80,
        "control": "a\nb\x1b[31m",
        "empty": None,
        "odd": float("nan"),
    }
    logger().warning("a.b", **values)
    (line,) = lines(capsys)
    assert set(values) <= set(line)
    assert line["error"] == "x"
    assert line["half"] == "a\\ud800b"
    assert line["control"] == "a\nb\x1b[31m"
    assert line["nested"]["a"][1:] == [None, True, 1.5, {"7": "b"}]


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    "value",
    [
        LINK,
        f"GET {LINK} failed",
        f"'{LINK}', \"{LINK}\"",
        [LINK],
        (LINK, {"deep": [LINK]}),
        {"url": LINK},
        {LINK: 1},
        {LINK},
        ValueError(LINK),
        OSError(2, "no such file", LINK),
        f"amqp://user:{SECRET}@rabbit:5672/%2F",
        f"amqp://user:x@y{SECRET}@rabbit/",
        f"amqp://{SECRET}@rabbit/",
        f"HTTPS://EXAMPLE.COM/?{SECRET}",
        f"POST /callbacks/kie?token={SECRET} HTTP/1.1",
        f"b'POST /callbacks/kie?a=1&token={SECRET} HTTP/1.1\\r\\n'",
        f"/callbacks/kie?token={SECRET}",
        f"embedded:///queue?key={SECRET}",
    ],
)
def test_no_secret_in_any_field(value: Any, log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Queries and credentials of URLs are cut out of any field, however deep, and of libraries' messages."""
    logs.configure("tests", log_format=log_format)
    logger().warning("a.b", found=value)
    logging.getLogger("some.library").warning("Failed: %s", value)
    logging.getLogger("some.library").warning("Failed", extra={"found": value})
    text = written(capsys)
    assert "a.b" in text
    assert "Failed" in text
    assert "…" in text
    assert SECRET not in text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_in_tracebacks(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exceptions, their causes and their chains show no query and no credential."""

    def fail() -> None:
        try:
            raise OSError(f"cannot open {LINK}")
        except OSError as error:
            raise RuntimeError(f"amqp://user:{SECRET}@rabbit/ is gone") from error

    logs.configure("tests", log_format=log_format)
    try:
        fail()
    except RuntimeError:
        logger().exception("a.failed")
        logging.getLogger("some.library").exception("failed")
    text = written(capsys)
    assert text.count("RuntimeError: ") == 2
    assert text.count("cannot open https://files.example.com/a.wav") == 2
    assert SECRET not in text


def test_traceback_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback does not break a record into several."""
    logs.configure("tests", log_format="json")
    try:
        raise ValueError("x")
    except ValueError:
        logger().exception("a.failed")
    (line,) = lines(capsys)
    assert "ValueError: x" in line["exception"]


@pytest.mark.parametrize(
    "text", ["What now?", "is 1 ? 2 : 3", "wavekeep.downloader", "https://files.example.com/a.wav", "a@b"]
)
def test_the_net_leaves_the_rest(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is neither a query nor a credential is told as it is."""
    logs.configure("tests", log_format="json")
    logger().info("a.b", found=text)
    assert lines(capsys)[0]["found"] == text


def test_configured_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """To configure again replaces, and never doubles, the lines."""
    logs.configure("first", log_format="json")
    logs.configure("second", log_format="json")
    logger().info("a.b")
    logging.getLogger("some.library").warning("c")
    assert [line["service"] for line in lines(capsys)] == ["second", "second"]
