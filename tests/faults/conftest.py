"""Fixtures of the fault tests, and the table at their end.

Responsible for: houses to break, seeds, which faults a plain run injects, and the run's verdict. The oracle is
`tests.faults.core`.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from simulator.rabbitmq_server import NoServerError, find_server
from tests.faults import report
from tests.faults.core import derived
from tests.faults.house import Broker, House, Mode, own_node

_ROWS = "fault_rows"
_TIMEOUT_S = 420
_NO_NODE_SETTINGS: Mapping[str, int] = MappingProxyType({})


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long faults out of a run that does not ask for faults, and give all of them time."""
    faults = [item for item in items if item.get_closest_marker("fault")]
    for item in faults:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))
    if "fault" not in str(config.option.markexpr):
        left_out = [item for item in faults if not item.get_closest_marker("fast_fault")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Get a server before the first test, so that installing one costs no test its time."""
    needed = any(item.get_closest_marker("fault") and item.get_closest_marker("rabbitmq") for item in session.items)
    if needed and not session.config.option.collectonly:
        with suppress(NoServerError):
            find_server()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run where anything was lost or doubled, whatever the tests themselves made of it.

    A worker of several hands its rows on instead.
    """
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output[_ROWS] = report.handed_on()
    elif any(report.broken(row) for row in report.rows()) or _missing(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the rows of a worker that has ended."""
    report.take_over(getattr(node, "workeroutput", {}).get(_ROWS, "[]"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what each fault did."""
    if rows := report.rows():
        terminalreporter.section(f"faults (seed {config.getoption('--fault-seed')})")
        terminalreporter.write_line(report.table(rows))
        for row in filter(report.broken, rows):
            terminalreporter.write_line(f"LOST OR DOUBLED by fault {row.number}: {row.name}", red=True)
    if missing := _missing(config):
        terminalreporter.write_line(f"NOT INJECTED, so not shown: faults {', '.join(missing)}", red=True)


def _missing(config: pytest.Config) -> list[str]:
    """Return the faults that were to be injected and were not: a test that was skipped proves nothing."""
    return report.not_injected(report.rows()) if config.getoption("--every-fault") else []


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> random.Random:
    """A source of randomness that the run's seed and the test's name alone decide; told when the test fails."""
    number = int(request.config.getoption("--fault-seed"))
    request.node.add_report_section("setup", "seed", f"again with: --fault-seed={number}")
    return derived(number, request.node.nodeid)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """A function that starts a house of the test's own, to break as it likes; gone after the test.

    Args, all by keyword but the first:
        mode: `rabbitmq` (three processes and a private node; default) or `embedded` (one process).
        broker: a running broker instead of a node made here; the test ends it.
        broker_url: a way to it, such as a proxy's.
        node: keys for the node's `rabbit` application, such as `consumer_timeout`.
        settings, simulator, destinations: see `House`.
        start: False to start it later, by `start()`.
    """
    with ExitStack() as stack:

        def build(
            mode: Mode = "rabbitmq",
            *,
            broker: Broker | None = None,
            node: Mapping[str, int] = _NO_NODE_SETTINGS,
            start: bool = True,
            **more: object,
        ) -> House:
            if mode == "rabbitmq" and broker is None:
                broker = stack.enter_context(own_node(node))
            folder = tmp_path / f"house-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            built = House(folder, broker=broker, **more)  # type: ignore[arg-type]
            stack.callback(built.stop)
            if start:
                built.start()
            return built

        yield build
