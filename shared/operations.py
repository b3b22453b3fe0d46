"""The operations server of a process: is it alive, could it work now, what does it measure, which version is it.

Responsible for: `/livez`, `/readyz`, `/metrics` and `/version` on a port of its own, apart from the public one. It
must not do any work of a service.
"""

import errno
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from shared.errors import StartError
from shared.metrics import ready

log = structlog.get_logger()

Checks = Callable[[], Mapping[str, bool]]


def product_version() -> str:
    """Return the installed version of Wavekeep, or `0+unknown` where it runs without having been installed."""
    try:
        return version("wavekeep")
    except PackageNotFoundError:
        return "0+unknown"


@asynccontextmanager
async def operations(
    host: str, port: int, *, service: str, registry: CollectorRegistry, checks: Checks
) -> AsyncGenerator[int, None]:
    """Serve while the context lasts; yields the port.

    Args:
        host: where to listen.
        port: 0 takes a free one.
        service: the name `/version`, the log and the gauge of readiness tell.
        registry: what `/metrics` shows; readiness is added to it.
        checks: what must hold for the process to do its work now, by name; all true is ready.
    """
    app = web.Application()
    ready(registry, service).set_function(lambda: float(all(checks().values())))

    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(_: web.Request) -> web.Response:
        found = dict(checks())
        holds = all(found.values())
        return web.json_response(
            {"status": "ready" if holds else "not ready", "checks": found}, status=200 if holds else 503
        )

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def tell_version(_: web.Request) -> web.Response:
        return web.json_response({"service": service, "version": product_version()})

    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/version", tell_version)
    async with serving(app, host, port) as bound:
        log.info("operations.listening", host=host, port=bound)
        yield bound


@asynccontextmanager
async def serving(
    app: web.Application,
    host: str,
    port: int,
    *,
    shutdown_timeout_s: float = 5.0,
    backlog: int = 128,
    make_runner: Callable[..., web.AppRunner] = web.AppRunner,
) -> AsyncGenerator[int, None]:
    """Serve an application while the context lasts; yields the port. On leaving, answers in progress may finish.

    Raises:
        StartError: the address cannot be listened on.
    """
    runner = make_runner(app, access_log=None, handle_signals=False, shutdown_timeout=shutdown_timeout_s)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, reuse_address=True, backlog=backlog)
        try:
            await site.start()
        except OSError as error:
            remedy = (
                "Does Wavekeep run already? Else set another WAVEKEEP_INGRESS_PORT or WAVEKEEP_OPS_PORT (0: a free"
                " one); a second Wavekeep needs another WAVEKEEP_DATA_DIR too."
                if error.errno == errno.EADDRINUSE
                else "Is it an address of this machine? See WAVEKEEP_INGRESS_HOST and WAVEKEEP_OPS_HOST."
            )
            raise StartError(f"{host}:{port} cannot be listened on ({error.strerror}). {remedy}") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
