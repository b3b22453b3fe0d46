"""What the commands share: a broker for an operator's moment, and errors as sentences.

Responsible for: opening and closing the broker around one command, and turning what goes wrong into one line and a
status. It must not print results.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import click
from prometheus_client import CollectorRegistry

from cli.settings import CliSettings
from notifier.settings import load_destinations
from shared import logs
from shared.errors import StartError, WavekeepError
from shared.messaging.factory import build_broker
from shared.messaging.port import Broker
from shared.metrics import MessagingMetrics
from shared.settings import load

T = TypeVar("T")

_CONNECT_WITHIN_S = 15.0


def settings() -> CliSettings:
    """Read the settings.

    Raises:
        click.ClickException: naming what must be corrected.
    """
    try:
        return load(CliSettings)
    except StartError as error:
        raise click.ClickException(str(error)) from error


def destinations(found: CliSettings) -> list[str]:
    """Return the names of the notifier's destinations."""
    try:
        return [destination.name for destination in load_destinations(found.notify_config)]
    except StartError as error:
        raise click.ClickException(str(error)) from error


@asynccontextmanager
async def broker() -> AsyncGenerator[Broker, None]:
    """Lend a started broker that declares nothing and owns nothing."""
    found = settings()
    if found.embedded_path is not None and not found.embedded_path.exists():
        raise click.ClickException(
            f"There is no queue at {found.embedded_path}. Start Wavekeep first, or set WAVEKEEP_DATA_DIR or"
            " WAVEKEEP_BROKER_URL as its services have it."
        )
    metrics = MessagingMetrics(CollectorRegistry(), "cli")
    opened = build_broker(found, name="cli", metrics=metrics, destinations=destinations(found), operator=True)
    try:
        async with asyncio.timeout(_CONNECT_WITHIN_S):
            await opened.start()
        yield opened
    except TimeoutError as error:
        raise click.ClickException(
            f"The broker could not be used within {_CONNECT_WITHIN_S:.0f} s. Does it run, and is the topology there"
            " (wavekeep topology check)?"
        ) from error
    finally:
        await opened.close()


def finish(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a command's work to its end; what we raise on purpose becomes one sentence and status 1."""
    logs.configure("cli", level="critical")
    try:
        return asyncio.run(work())
    except (StartError, WavekeepError) as error:
        raise click.ClickException(str(error)) from error
