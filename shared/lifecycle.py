"""The life of a process: build, start, run, stop.

Responsible for: the event loop, signals, the order of starting and stopping, and the exit status. It must not know
any service.

Exit status: 0 after an orderly end, 1 when something failed, 2 when the settings or the surroundings do not allow to
start.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from shared import logs, tasks
from shared.errors import StartError
from shared.messaging.port import Broker
from shared.operations import operations
from shared.settings import ServiceSettings

log = structlog.get_logger()

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Service(Protocol):
    """One room of the house, built and not yet started."""

    async def run(self, stop: asyncio.Event) -> None:
        """Start, work until told to stop, finish what is in hand. Raises when it cannot go on."""

    def checks(self) -> Mapping[str, bool]:
        """Tell what must hold for this service to do its work now, by name."""


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run a process to its end; SIGTERM and SIGINT ask for it.

    Args:
        main: works until the event it is given is set.

    Returns:
        The exit status.
    """
    logs.configure("wavekeep")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_told(main))
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except BaseExceptionGroup as group:
        if (first := _first(group, StartError)) is not None:
            sys.stderr.write(f"{first}\n")
            return 2
        log.exception("process.failed")
        return 1
    except Exception:
        log.exception("process.failed")
        return 1
    return 0


async def _until_told(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        await main(stop)
    finally:
        for number in _SIGNALS:  # told once is enough: what is left to do is to leave
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


async def serve(
    name: str,
    settings: ServiceSettings,
    broker: Broker,
    services: Sequence[Service],
    registry: CollectorRegistry,
    stop: asyncio.Event,
    *,
    operations_at: asyncio.Future[int] | None = None,
) -> None:
    """Run services over one broker until told to stop; a service that fails ends them all.

    The operations server is up first and down last, so that a start that waits for its broker can be watched;
    `operations_at` is told its port.
    """
    logs.configure(name, log_format=settings.log_format, level=settings.log_level)

    def checks() -> Mapping[str, bool]:
        found = {"running": not stop.is_set(), "broker": broker.publishing()}
        for service in services:
            found.update(service.checks())
        return found

    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(
            operations(settings.ops_host, settings.ops_port, service=name, registry=registry, checks=checks)
        )
        if operations_at is not None:
            operations_at.set_result(port)
        stack.push_async_callback(broker.close)
        await _unless_stopped(broker.start(), stop)
        if not stop.is_set():
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(broker.watch())
                async with asyncio.TaskGroup() as working:
                    for service in services:
                        working.create_task(service.run(stop))
                watch.cancel()
        log.info("process.stopped")


async def _unless_stopped(work: Awaitable[None], stop: asyncio.Event) -> None:
    """Await the work, but no longer than until the end is asked for."""
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        await tasks.end(working, stopped)
        await asyncio.gather(working, stopped, return_exceptions=True)


def _first(group: BaseExceptionGroup[BaseException], kind: type[StartError]) -> StartError | None:
    found = group.subgroup(kind)
    while found is not None and isinstance(found.exceptions[0], BaseExceptionGroup):
        found = found.exceptions[0]
    return found.exceptions[0] if found is not None and isinstance(found.exceptions[0], kind) else None
