"""`wavekeep status` and `wavekeep show`: how things are, and what is known of one task.

Responsible for: asking the operations servers, and gathering what storage and broker hold. It must not change anything.
"""

import asyncio
import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import click
import msgspec

from cli.chosen import subject_of, waiting_since
from cli.evidence import in_words
from cli.loose import loose_ends, partial_downloads
from cli.output import as_json, print_json, print_table
from cli.parked import SERVICES
from cli.session import broker, finish, settings
from cli.waiting import LOOK_AT_MOST
from downloader.names import Names, names_of
from downloader.storage import Entry, Storage
from downloader.storage_factory import build_storage
from downloader.tombstone import Expiry, read_revision
from shared.errors import PermanentError, Reason, StartError, WavekeepError
from shared.events import Evidence
from shared.messaging.topology import DOWNLOADER, URGENT
from shared.vendors import Vendor

vendor_option = click.option(
    "--vendor", type=click.Choice([str(v) for v in Vendor]), help="Only this vendor's task of the name."
)

_TABLES = ("revisions", "objects", "partial", "waiting", "parked")
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
        print_table(("service", "port", "status", "not well"), rows, empty=_nobody(asked.values()))
    if not answered or any(answer["status"] != "ready" for answer in answered.values()):
        raise SystemExit(1)


@click.command()
@click.argument("task")
@vendor_option
@as_json
def show(task: str, vendor: str | None, *, json_output: bool) -> None:
    """Show everything that is known of TASK (the vendor's id, or VENDOR/ID).

    Its manifest, what it proves, and all revisions; or its rejection; or audio without a manifest (an orphan); what was
    told; the objects that are kept; partial downloads on this machine; what waits of it in an embedded queue, and how
    often that was tried; and what is parked of it, where the broker can be asked.
    """
    vendors, task = _split(vendor, task)
    found = finish(lambda: _everything(vendors, task))
    if not found:
        raise click.ClickException(
            f"Nothing is kept of a task {task}. It may still be on its way: the log tells what waits"
            " (message.retry_scheduled), `wavekeep parked list` what was given up."
        )
    if json_output:
        print_json(found)
        return
    for record in found:
        tables = {name: record.pop(name, None) or [] for name in _TABLES}
        print_table(("", ""), _flat(record), empty="")
        for name, rows in tables.items():
            if rows:
                click.echo()
                print_table(_titled(name, rows[0]), (list(row.values()) for row in rows), empty="")
        click.echo()


def find_vendor(vendor: str | None, task: str) -> tuple[str, str]:
    """Return the vendor and id of a task of which a file is kept, where only one vendor has such a task.

    Raises:
        click.ClickException: none has, or several have.
    """
    vendors, task_id = _split(vendor, task)
    if len(vendors) > 1:
        stored = [r["vendor"] for r in finish(lambda: _records(vendors, task_id)) if r["state"] == "stored"]
        if not stored:
            raise click.ClickException(f"No file is stored of a task {task_id}, so there is nothing to replace.")
        vendors = stored
    if len(vendors) > 1:
        raise click.ClickException(f"Say whose task {task_id} is meant: --vendor {' or '.join(vendors)}.")
    return vendors[0], task_id


def _split(vendor: str | None, task: str) -> tuple[list[str], str]:
    """Return the vendors that may be meant, and the task's id."""
    if vendor is None and task.partition("/")[0] in set(Vendor):
        vendor, _, task = task.partition("/")
    return [vendor] if vendor else [str(v) for v in Vendor], task


def _nobody(ports: Iterable[int]) -> str:
    return f"No service answers on port {', '.join(map(str, ports))}; --port asks others."


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
        storage = build_storage(settings(), executor=executor)
        for vendor in vendors:
            names = names_of(vendor, task)
            for state, key in (("stored", names.manifest), ("rejected", names.rejected)):
                content = await storage.read(key)
                if content is not None:
                    record = {"state": state, **_decoded(content, key)}
                    if state == "stored":
                        record["announced"] = await storage.exists(names.announced)
                        record["revisions"] = await _revisions(storage, names)
                    found.append(record)
                    break
    return found


async def _everything(vendors: list[str], task: str) -> list[dict[str, Any]]:
    """Return all that is known of a task, for each vendor that has one of the name."""
    parked, waiting = await _messages({f"{vendor}/{task}" for vendor in vendors})
    records = {record["vendor"]: record for record in await _records(vendors, task)}
    found: list[dict[str, Any]] = []
    chosen = settings()
    with ThreadPoolExecutor(1) as executor:
        storage = build_storage(chosen, executor=executor)
        for vendor in vendors:
            names = names_of(vendor, task)
            objects = [entry async for entry in storage.list(_shelf(names)) if entry.key.startswith(f"{names.stem}.")]
            partials = await partial_downloads(chosen.staging_folder, names)
            record = records.get(vendor) or loose_ends(names, f"{vendor}/{task}", objects, partials)
            if record is None:
                continue
            found.append(record)
            record["kept_in"] = storage.uri(_shelf(names))
            record["told"] = [entry.key[len(names.stem) + 1 :] for entry in objects if _is_marker(entry)]
            record["objects"] = [
                {"key": entry.key, "size_bytes": entry.size_bytes, "modified_at": entry.modified_at}
                for entry in sorted(objects, key=lambda entry: entry.key)
                if not _is_marker(entry)
            ]
            if record["state"] == "stored":
                evidence = msgspec.convert(record["evidence"], Evidence)
                record["evidence"]["in_words"] = in_words(evidence)
                record["damage"] = await _damage(storage, names, record, objects)
                for name, key in (("rejection", names.rejected), ("expired", names.expired)):
                    content = await storage.read(key)
                    record[name] = None if content is None else _decoded(content, key)
            record["partial"] = partials
            record["waiting"] = waiting.pop(f"{vendor}/{task}", [])
            record["parked"] = None if parked is None else parked.pop(f"{vendor}/{task}", [])
    for subject in sorted({*waiting, *(parked or {})}):
        messages = {"waiting": waiting.get(subject, []), "parked": (parked or {}).get(subject, [])}
        state = "waiting" if messages["waiting"] else "parked"
        found.append({"state": state, "vendor": subject.partition("/")[0], "task_id": task, **messages})
    return found


_Messages = dict[str, list[dict[str, Any]]]


async def _messages(subjects: set[str]) -> tuple[_Messages | None, _Messages]:
    """Return by subject what is parked of some tasks, None where the broker cannot be asked; and what waits for a try.

    What waits is known of an embedded queue alone: who looks into a work queue of RabbitMQ takes from it.
    """
    found: _Messages = {}
    waiting: _Messages = {}
    try:
        async with broker() as opened:
            for queue in (DOWNLOADER, URGENT) if settings().embedded_path is not None else ():
                async for kept in opened.kept(queue, limit=LOOK_AT_MOST):
                    subject = subject_of(kept)
                    if subject in subjects:
                        facts = {"queue": queue, "attempts": kept.attempts, "last_reason": kept.reason}
                        waiting.setdefault(subject, []).append(facts | {"first_seen": kept.first_seen})
            for service, queue in SERVICES.items():
                async for kept in opened.kept(queue, limit=LOOK_AT_MOST):
                    subject = subject_of(kept)
                    if subject in subjects:
                        facts = {"id": kept.id, "service": service, "reason": kept.reason}
                        since = waiting_since(kept)
                        found.setdefault(subject, []).append(facts | {"attempts": kept.attempts, "waits_since": since})
    except (click.ClickException, StartError, WavekeepError):
        return None, waiting
    return found, waiting


async def _damage(storage: Storage, names: Names, record: dict[str, Any], objects: list[Entry]) -> str | None:
    """Return what a look, without reading the file, finds wrong with it; None where nothing is."""
    found = {entry.key: entry.size_bytes for entry in objects}.get(record["audio"])
    subject = f"{record['vendor']}/{record['task_id']}"
    if found is None:
        gone = await storage.exists(names.expired)
        return None if gone else f"Its audio is missing: wavekeep audit {subject}, then docs/operations.md: Audit."
    if found != record["size_bytes"]:
        return f"Its audio has {found} bytes: wavekeep audit {subject}, then docs/operations.md: Audit."
    return None


def _shelf(names: Names) -> str:
    return names.stem.rpartition("/")[0]


def _is_marker(entry: Entry) -> bool:
    return entry.key.endswith(".announced")


def _titled(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    """Return the titles of a table: what the rows are stands where their first column's name would."""
    return (name.removesuffix("s"), *list(row)[1:])


def _decoded(content: bytes, key: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PermanentError(Reason.STORAGE_FAILED, f"the record {key} cannot be read: {error}") from error


async def _revisions(storage: Storage, names: Names) -> list[dict[str, Any]]:
    """Return the gist of every revision, oldest first; nothing where no person ever replaced the file."""
    found: list[dict[str, Any]] = []
    for number in itertools.count(1):
        content = await storage.read(names.revision(number))
        if content is None:
            break
        record = read_revision(content)
        if isinstance(record, Expiry):  # told before anything follows it
            told = await storage.read(names.expiry_announced) == f"{record.event_id}\n".encode()
            audio, at = None, record.expired_at
            announced = told or await storage.exists(names.revision(number + 1))
            explanation: str | None = f"revision {record.revision} was let go, by {record.rule}"
        else:
            marker = names.announced if number == 1 else names.replacement_announced(number)
            audio, at, announced = record.audio, record.stored_at, await storage.exists(marker)
            explanation = record.replacement.explanation if record.replacement else None
        found.append(
            {
                "revision": number,
                "sha256": record.sha256,
                "size_bytes": record.size_bytes,
                "audio": audio,
                "stored_at": at,
                "announced": announced,
                "explanation": explanation,
            }
        )
    return found if len(found) > 1 else []


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else value))
    return rows
