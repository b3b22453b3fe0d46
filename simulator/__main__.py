"""`python -m simulator`: run the simulated vendor until it is told to stop.

Responsible for: the command line, one line of JSON on standard output once it is ready, and a clean end by SIGTERM or
SIGINT. It must not hold any behaviour of the vendor.
"""

import asyncio
import signal
import sys

import click
import msgspec
import structlog

from shared.vendors import Vendor
from simulator.app import Simulator
from simulator.settings import Settings

_DEFAULTS = Settings()


@click.command(context_settings={"auto_envvar_prefix": "SIMULATOR", "show_default": True})
@click.option("--host", default=_DEFAULTS.host, help="Address to listen on. The control interface has no key.")
@click.option("--port", default=_DEFAULTS.port, type=click.IntRange(0, 65_535), help="0 takes a free one.")
@click.option("--public-url", default="", help="Base of the links to files, where others see another address.")
@click.option("--callback-url", multiple=True, metavar="VENDOR=URL", help="Where a vendor calls back; may be repeated.")
@click.option("--api-key", default=_DEFAULTS.api_key, help="What Authorization: Bearer must carry.")
@click.option("--hmac-key", default=None, help="Key that kie signs its callbacks with; without it they are not signed.")
@click.option("--retry-scale", default=_DEFAULTS.retry_scale, type=click.FloatRange(min=0),
              help="Multiplies the retry intervals of 1, 5 and 15 minutes.")  # fmt: skip
@click.option("--callback-timeout-s", default=_DEFAULTS.callback_timeout_s, type=click.FloatRange(min=0.001),
              help="How long a vendor waits for its 200.")  # fmt: skip
@click.option("--rate-limit", default=_DEFAULTS.rate_limit, type=click.IntRange(1), help="API requests in 10 s.")
@click.option("--seed", default=None, type=int, help="Of ids, names and samples; random without it.")
def main(
    *,
    host: str,
    port: int,
    public_url: str,
    callback_url: tuple[str, ...],
    api_key: str,
    hmac_key: str | None,
    retry_scale: float,
    callback_timeout_s: float,
    rate_limit: int,
    seed: int | None,
) -> None:
    """Play the vendors apibox, kie and sunoapi: submit, ask, call back, serve WAVs, misbehave on demand.

    Every option can also be set by the environment: SIMULATOR_PORT, SIMULATOR_CALLBACK_URL (pairs with spaces in
    between), and so on.
    """
    settings = Settings(
        host=host,
        port=port,
        public_url=public_url.rstrip("/"),
        callback_urls=_callback_urls(callback_url),
        api_key=api_key,
        hmac_key=hmac_key or None,
        retry_scale=retry_scale,
        callback_timeout_s=callback_timeout_s,
        rate_limit=rate_limit,
        seed=seed,
    )
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(_run(settings))


def _callback_urls(pairs: tuple[str, ...]) -> dict[Vendor, str]:
    urls = {}
    for pair in pairs:
        vendor, equals, url = pair.partition("=")
        if vendor not in set(Vendor) or not equals or not url:
            raise click.BadParameter(
                f"{pair!r} is not VENDOR=URL with one of {', '.join(Vendor)}", param_hint="--callback-url"
            )
        urls[Vendor(vendor)] = url
    return urls


async def _run(settings: Settings) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with Simulator(settings) as simulator:
        click.echo(msgspec.json.encode({"ready": True, "base_url": simulator.base_url}))
        sys.stdout.flush()
        await ended.wait()


if __name__ == "__main__":
    main()
