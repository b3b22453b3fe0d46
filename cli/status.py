"""`wavekeep status` and `wavekeep show`: how things are, and what is known of one task.

Responsible for: asking the operations servers, and reading manifests. It must not change anything.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import click
import msgspec

from cli.output import as_json, print_json, print_table
from cli.session import finish, settings
from downloader.names import names_of
from downloader.storage import FolderStorage
from shared.vendors import Vendor

PORTS = {"standalone": 9100, "ingress": 9101, "downloader": 9102, "notifier": 9103}


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the operations servers are.")
@click.option("--port", "ports", type=int, multiple=True, help="Ask these ports instead of the usual ones.")
@as_json
def status(host: str, ports: tuple[int, ...], *, json_output: bool) -> None:
    """Ask every service on this machine whether it could do its work now; status 1 where one could not."""
    asked = {str(port): port for port in ports} or PORTS
    found = finish(lambda: _ask_all(host, asked))
    answered = {name: answer for name, answer in found.items() if answer is not None}
    if json_output:
        print_json(found)
    else:
        rows = [(name, asked[name], a["status"], _failing(a)) for name, a in answered.items()]
        print_table(("service", "port", "status", "not well"), rows, empty="No service answers here.")
    if not answered or any(answer["status"] != "ready" for answer in answered.values()):
        raise SystemExit(1)


@click.command()
@click.argument("task")
@click.option("--vendor", type=click.Choice([str(v) for v in Vendor]), help="Only this vendor's task of the name.")
@as_json
def show(task: str, vendor: str | None, *, json_output: bool) -> None:
    """Show what is kept of TASK (the vendor's id, or VENDOR/ID): its manifest, or its rejection."""
    if vendor is None and task.partition("/")[0] in set(Vendor):
        vendor, _, task = task.partition("/")
    found = finish(lambda: _records([vendor] if vendor else [str(v) for v in Vendor], task))
    if not found:
        raise click.ClickException(
            f"Nothing is kept of a task {task}. It may still be on its way: wavekeep parked list"
        )
    if json_output:
        print_json(found)
        return
    for record in found:
        print_table(("", ""), _flat(record), empty="")
        click.echo()


async def _ask_all(host: str, ports: dict[str, int]) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=3)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        answers = await asyncio.gather(*(_ask(session, f"http://{host}:{port}/readyz") for port in ports.values()))
    return dict(zip(ports, answers, strict=True))


async def _ask(session: aiohttp.ClientSession, url: str) -> Any:
    try:
        async with session.get(url) as answer:
            return await answer.json()
    except (aiohttp.ClientError, OSError, ValueError):
        return None


def _failing(answer: dict[str, Any]) -> str:
    return ", ".join(name for name, well in answer.get("checks", {}).items() if not well)


async def _records(vendors: list[str], task: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with ThreadPoolExecutor(1) as executor:
        storage = FolderStorage(settings().storage_folder, executor=executor)
        for vendor in vendors:
            names = names_of(vendor, task)
            for state, key in (("stored", names.manifest), ("rejected", names.rejected)):
                content = await storage.read(key)
                if content is not None:
                    record = {"state": state, **msgspec.json.decode(content)}
                    if state == "stored":
                        record["announced"] = await storage.exists(names.announced)
                    found.append(record)
                    break
    return found


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else value))
    return rows
