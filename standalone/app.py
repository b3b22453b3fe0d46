"""All services in one process.

Responsible for: composing the services over one broker, one registry and one operations server, making the secrets
that are missing, and telling how to begin. It must not do any service's work.
"""

import asyncio
import contextlib
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import structlog
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from downloader.app import Downloader
from downloader.fence import Opening
from ingress.app import Ingress, spool_before
from notifier.app import Notifier
from notifier.settings import load_destinations
from shared import lifecycle
from shared.messaging.factory import build_broker
from shared.messaging.topology import DOWNLOADER, NOTIFIER, URGENT, destination_queue
from shared.metrics import MessagingMetrics
from shared.settings import PREFIX, load, secret_settings
from shared.vendors import Vendor
from standalone.banner import banner
from standalone.sample import sample_file
from standalone.secrets import keep_tokens
from standalone.settings import StandaloneSettings

log = structlog.get_logger()

_WORKS_WITHIN_S = 5.0


async def main(stop: asyncio.Event) -> None:
    """Run everything, settings from the environment."""
    settings = with_tokens(load(StandaloneSettings))
    for name in unknown_settings(os.environ):
        meant = difflib.get_close_matches(name, _known_settings(), 1)
        log.warning("setting.unknown", name=name, meant=meant[0] if meant else None, detail="it has no effect")
    destinations = load_destinations(settings.notify_config)
    names = [destination.name for destination in destinations]
    registry = CollectorRegistry()
    metrics = MessagingMetrics(registry, "standalone", [DOWNLOADER, URGENT, NOTIFIER, *map(destination_queue, names)])
    broker = build_broker(
        settings, name="standalone", metrics=metrics, destinations=names, spooled=settings.spool_path is not None
    )
    broker = spool_before(broker, settings, registry)
    async with AsyncExitStack() as stack:
        link: str | None = None
        openings: tuple[Opening, ...] = ()
        if settings.sample_file:
            link, opening = await stack.enter_async_context(sample_file())
            openings = (opening,)
        ingress = Ingress(settings, broker, registry)
        services: list[lifecycle.Service] = [
            ingress,
            Downloader(settings, broker, registry, openings=openings),
            Notifier(settings, destinations, broker, registry),
        ]
        operations_at = asyncio.get_running_loop().create_future()
        greeting = asyncio.create_task(_greet(settings, ingress, services, operations_at, link))
        stack.callback(greeting.cancel)
        await lifecycle.serve("standalone", settings, broker, services, registry, stop, operations_at=operations_at)


def with_tokens(settings: StandaloneSettings) -> StandaloneSettings:
    """Return the settings with a kept token for each vendor that the environment gives no secret."""
    missing = [vendor for vendor in Vendor if not _has_secret(settings, vendor)]
    if not missing:
        return settings
    kept = keep_tokens(settings.data_dir)
    return settings.model_copy(update={f"{vendor}_callback_tokens": (SecretStr(kept[vendor]),) for vendor in missing})


def _has_secret(settings: StandaloneSettings, vendor: Vendor) -> bool:
    names = ("callback_tokens", "hmac_keys", "allow_unauthenticated")
    return any(getattr(settings, f"{vendor}_{name}") for name in names)


async def _greet(
    settings: StandaloneSettings,
    ingress: Ingress,
    services: Sequence[lifecycle.Service],
    operations_at: asyncio.Future[int],
    sample_link: str | None,
) -> None:
    """Tell how to begin once everything works, or callbacks are at least taken while a broker is waited for."""
    await ingress.listening.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WORKS_WITHIN_S):
            while not all(all(service.checks().values()) for service in services):  # noqa: ASYNC110 - they have no event
                await asyncio.sleep(0.05)
    text = banner(
        local_url=f"http://{settings.ingress_host}:{ingress.port}",
        public_url=settings.public_url,
        tokens=_tokens(settings),
        ops_url=f"http://{settings.ops_host}:{await operations_at}",
        files=settings.object_store or str(settings.storage_folder),
        sample_link=sample_link,
        color=sys.stdout.isatty(),
        signing=frozenset(vendor for vendor in Vendor if getattr(settings, f"{vendor}_hmac_keys")),
    )
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _tokens(settings: StandaloneSettings) -> Mapping[Vendor, str]:
    found = {vendor: getattr(settings, f"{vendor}_callback_tokens") for vendor in Vendor}
    return {vendor: tokens[0].get_secret_value() for vendor, tokens in found.items() if tokens}


def unknown_settings(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that look like settings of ours and are none: misspelt, most likely."""
    known = _known_settings()
    ours = (name for name in environment if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}TEST_"))
    return sorted(name for name in ours if name not in known)


def _known_settings() -> set[str]:
    names = [*StandaloneSettings.model_fields, *(f"{name}_file" for name in secret_settings(StandaloneSettings))]
    return {f"{PREFIX}{name.upper()}" for name in names}
