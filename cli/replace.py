"""`wavekeep replace`: a person overrules what is kept of a task.

Responsible for: putting together what a replacement needs, beside the running services. What is done, and what is
refused, is decided in `downloader.replacement`.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import click

from cli.output import as_json, print_json
from cli.session import broker, finish, settings
from cli.status import find_vendor, vendor_option
from downloader.fence import Fence
from downloader.fetch import Fetcher, Limits
from downloader.replacement import LONGEST_EXPLANATION, Content, RefusedError, Replaced, Replacing, from_file, from_link
from downloader.staging import Staging
from downloader.storage_factory import build_storage
from shared.clock import system_clock


@click.command()
@click.argument("task")
@vendor_option
@click.option("--url", help="Fetch the new file from here, past the same fence as any download.")
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    help="Take this file of this machine.",
)
@click.option("--reason", "explanation", help=f"Why, in words; everybody hears it. Up to {LONGEST_EXPLANATION}.")
@as_json
def replace(
    task: str, vendor: str | None, url: str | None, path: Path | None, explanation: str | None, *, json_output: bool
) -> None:
    """Put another file in the place of the one kept of TASK (the vendor's id, or VENDOR/ID).

    The new file is proven like a download. The old one, and its manifest, are kept beside it; who subscribed hears
    file.replaced. The same command again changes nothing. Where the kept file is damaged or missing, the bytes it had
    repair it.
    """
    if (url is None) == (path is None):
        raise click.UsageError("Say where the new file is: --url URL or --file PATH.")
    named, task_id = find_vendor(vendor, task)
    done = finish(lambda: _replace(named, task_id, url, path, explanation))
    manifest = done.manifest
    if json_output:
        print_json(
            {"replaced": done.outcome == "replaced", "repaired": done.outcome == "repaired", "manifest": manifest}
        )
    elif done.outcome == "replaced":
        click.echo(f"Replaced: {manifest.uri} ({manifest.size_bytes} bytes), revision {manifest.revision}.")
    elif done.outcome == "repaired":
        click.echo(
            f"Repaired: {manifest.uri} ({manifest.size_bytes} bytes) was damaged or missing, and is whole again; it"
            f" stays revision {manifest.revision}."
        )
    else:
        click.echo(f"Nothing to do: this file has the place already, in revision {manifest.revision}.")


async def _replace(vendor: str, task_id: str, url: str | None, path: Path | None, explanation: str | None) -> Replaced:
    found = settings()
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(broker())
        executor = stack.enter_context(ThreadPoolExecutor(2))
        fetcher = await stack.enter_async_context(
            Fetcher(
                Fence(found.openings, found.download_allowed_hosts),
                Limits(
                    max_bytes=found.download_max_bytes,
                    min_bytes_per_s=found.least_bytes_per_s,
                    attempt_timeout_s=found.download_attempt_timeout_s,
                    rate_window_s=found.download_rate_window_s,
                ),
                executor=executor,
            )
        )
        content: Content
        if url is not None:
            content = from_link(fetcher, url)
        else:
            assert path is not None
            content = from_file(path, max_bytes=found.download_max_bytes)
        replacing = Replacing(
            # neither is started: what is swept at a start belongs to the services
            staging=Staging(_staging_folder(found.staging_folder), executor=executor),
            storage=build_storage(found, executor=executor),
            publisher=opened,
            clock=system_clock,
        )
        try:
            return await replacing.replace(vendor, task_id, content, explanation=explanation)
        except RefusedError as error:
            raise click.ClickException(str(error)) from error


def _staging_folder(folder: Path) -> Path:
    """Return the folder; a machine that runs only the command line has none yet."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise click.ClickException(f"The staging folder {folder} cannot be used ({error}).") from error
    return folder
