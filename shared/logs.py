"""Logs: structlog, one chain for our records and those of libraries.

Responsible for: JSON or columns on standard error, the service's name and the trace on every line, and the last net
that keeps query strings out. It must not decide what is logged.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from typing import Any

import msgspec
import stamina.instrumentation
import structlog

_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://[^\s?'\"<>]*)\?[^\s'\"<>]*", re.IGNORECASE)
_PARAMETERS = re.compile(r"\?[^\s?='\"<>]*=[^\s'\"<>]*")
_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://)[^\s/?'\"<>]+@", re.IGNORECASE)


def configure(service: str, *, log_format: str = "auto", level: str = "info") -> None:
    """Send every record of the process to standard error.

    Args:
        service: stands on every line.
        log_format: `json`, `console`, or `auto` for columns on a terminal and JSON elsewhere.
        level: the least level that is shown.
    """
    columns = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(service),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.ExceptionRenderer(),
        without_queries,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if columns
        else structlog.processors.JSONRenderer(serializer=_json)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, root.level))
    for told_by_us in ("aio_pika", "aiormq"):
        logging.getLogger(told_by_us).setLevel(logging.CRITICAL)
    stamina.instrumentation.set_on_retry_hooks(())  # whoever tries again says so in words of its own


def without_queries(_: Any, __: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut queries and the credentials of URLs out of every field of a record: the last net, not the first.

    A value that JSON does not know is told as text. Lone surrogates, which nothing can encode, are escaped.
    """
    for key, value in record.items():
        if not key.startswith("_"):
            record[key] = _cut(value)
    return record


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        text = str(value).encode("utf-8", "backslashreplace").decode()
        if "?" in text or "://" in text:
            text = _PARAMETERS.sub("?…", _PASSWORD.sub(r"\1…@", _QUERY.sub(r"\1?…", text)))
        return text
    if value is None or isinstance(value, bool | int | float | datetime):
        return value
    if isinstance(value, Mapping):
        return {_cut(str(key)): _cut(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cut(one) for one in value]
    return _cut(str(value))


def _named(service: str) -> structlog.typing.Processor:
    def add(_: Any, __: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        record.setdefault("service", service)
        return record

    return add


def _json(record: Any, **_: Any) -> str:
    return msgspec.json.encode(record, enc_hook=str).decode()
