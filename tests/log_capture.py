"""What a piece of code logs, whatever an earlier test did to the configuration of the logs.

Responsible for: capturing event dictionaries with the bound context. It must not change what is logged.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog.typing import EventDict


@contextmanager
def captured_logs() -> Iterator[list[EventDict]]:
    """Collect every line while the context lasts."""
    for module in list(sys.modules.values()):
        # a logger that was used under the product's configuration keeps it, unless it is told to forget
        if (logger := getattr(module, "log", None)) is not None and hasattr(logger, "_initial_values"):
            vars(logger).pop("bind", None)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines
