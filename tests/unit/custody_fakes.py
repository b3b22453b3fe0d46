"""Custody's ports as fakes, and a house to try it in.

Responsible for: a source, a storage and a publisher in memory that note every effect in order and can fail or crash
after any of them. It must not assert anything.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from downloader.confirmation import Confirm
from downloader.custody import Custody
from downloader.fairness import Bounds, Places
from downloader.fetch import Fetched, Head, Sink
from downloader.inspection import Inspection, Inspector, NoInspector
from downloader.links import Links
from downloader.manifest import Manifest, read_manifest
from downloader.metrics import DownloaderMetrics
from downloader.names import Names, names_of
from downloader.record import Answer
from downloader.space import Space
from downloader.staging import Staging
from downloader.storage import Entry, Storage
from shared import events
from shared.errors import BrokerError, PermanentError, Reason, RetryableError
from shared.events import Data, Event, Format, ReportFailed, ReportLinkless, ReportSucceeded, Trust
from shared.messaging.port import Message
from shared.vendors import Vendor
from simulator.wavs import wav

T = TypeVar("T")

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DEADLINE = NOW + timedelta(days=15)
QUERY = "Signature=k3y-to-the-file"
LINK = f"https://cdn.example.com/a.wav?{QUERY}&Expires=1"
OTHER_LINK = f"https://cdn.example.com/b.wav?{QUERY}&Expires=2"
BODY = '{"code": 200, "data": {"task_id": "task-1", "audioWavUrl": ""}, "who": "ü"}'
CONTENT = b"".join(wav(duration_s=0.1).blocks())
OTHER_CONTENT = b"".join(wav(duration_s=0.1, seed=7).blocks())


class CrashError(Exception):
    """The process dies here."""


class Steps:
    """Every effect in order; the process can be made to die after one of them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.crash_after: int | None = None

    def take(self, name: str) -> None:
        """Note an effect; die after it, if that was asked for."""
        self.done.append(name)
        if self.crash_after is not None and len(self.done) > self.crash_after:
            self.crash_after = None
            raise CrashError(name)

    def starting(self, *beginnings: str) -> list[str]:
        """Return the effects whose names begin so."""
        return [name for name in self.done if name.startswith(beginnings)]


@dataclass
class FakeSource:
    """Writes given bytes into the sink; fails with the errors in turn before that."""

    steps: Steps
    content: bytes = CONTENT
    transport: Any = "content_length"
    errors: list[Exception] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[object]] | None = None
    followed: list[str] = field(default_factory=list)
    head: Head | None = None

    async def fetch(self, url: str, sink: Sink) -> Fetched:
        """Pretend to fetch."""
        self.followed.append(url)
        if self.errors:
            raise self.errors.pop(0)
        if self.head is not None:
            sink.begin(self.head)
        for at in range(0, len(self.content), 1_000):
            sink.write(self.content[at : at + 1_000])
        if self.meanwhile is not None:
            await self.meanwhile()
        self.steps.take("fetch")
        return Fetched(len(self.content), self.transport, "audio/wav", 200, url.partition("?")[0])


@dataclass
class FakeVendors:
    """Gives the same answer to every question; none, as without a key, unless told otherwise."""

    answer: Answer | None = None
    asked: list[tuple[Vendor, str]] = field(default_factory=list)

    async def ask(self, vendor: Vendor, task_id: str) -> Answer | None:
        """Answer at once."""
        self.asked.append((vendor, task_id))
        return self.answer


@dataclass
class MemoryStorage:
    """A storage in a dictionary.

    `damages` flips a byte of whatever is kept; `lies` misreads what is right; `errors` come in turn of whatever is kept
    or created.

    What a listing tells of time is `NOW`, unless a test says otherwise of a key in `modified_at`.
    """

    steps: Steps
    objects: dict[str, bytes] = field(default_factory=dict)
    damages: bool = False
    lies: bool = False
    errors: list[Exception | None] = field(default_factory=list)
    modified_at: dict[str, datetime] = field(default_factory=dict)
    local: bool = False

    async def start(self) -> None:
        """Need nothing."""

    async def keep(self, staged: Path, key: str) -> None:
        """Take the file."""
        self._fail()
        content = content_of(staged)
        self.objects[key] = content[:-1] + b"\xaa" if self.damages else content
        self.steps.take(f"keep {suffix(key)}")

    async def create(self, key: str, content: bytes) -> bool:
        """Create once."""
        self._fail()
        if key in self.objects:
            return False
        self.objects[key] = content
        self.steps.take(f"create {suffix(key)}")
        return True

    async def replace(self, key: str, content: bytes) -> None:
        """Put it there."""
        self.objects[key] = content
        self.steps.take(f"replace {suffix(key)}")

    async def read(self, key: str) -> bytes | None:
        """Return what is there."""
        return self.objects.get(key)

    async def exists(self, key: str) -> bool:
        """Tell whether it is there."""
        return key in self.objects

    async def delete(self, key: str) -> None:
        """Forget."""
        self.objects.pop(key, None)
        self.steps.take(f"delete {suffix(key)}")

    async def digest(self, key: str) -> tuple[int, str]:
        """Read again."""
        content = self.objects[key]
        return len(content), "0" * 64 if self.lies else hashlib.sha256(content).hexdigest()

    async def ask(self) -> None:
        """Answer."""

    async def together(self, work: Callable[[Storage], Coroutine[Any, Any, T]]) -> T:
        """Work here."""
        return await work(self)

    async def list(self, prefix: str = "") -> AsyncIterator[Entry]:
        """Tell what is there, in the order of keys."""
        for key, content in sorted(self.objects.items()):
            if not prefix or key.startswith(f"{prefix}/"):
                yield Entry(key, len(content), self.modified_at.get(key, NOW))

    def uri(self, key: str) -> str:
        """Return an address."""
        return f"memory:///{key}"

    def _fail(self) -> None:
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error


@dataclass
class FakePublisher:
    """Notes what is published; refuses the publishes whose numbers it was given, counted from 1."""

    steps: Steps
    told: list[Event] = field(default_factory=list)
    exchanges: set[str] = field(default_factory=set)
    refuses: set[int] = field(default_factory=set)
    asked: int = 0

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, event_id: str) -> None:
        """Confirm, or refuse."""
        self.asked += 1
        if self.asked in self.refuses:
            raise BrokerError(Reason.PUBLISH_TIMED_OUT, "not confirmed")
        event = events.decode(body)
        assert (event.id, event.routing_key) == (event_id, routing_key)
        self.told.append(event)
        self.exchanges.add(exchange)
        self.steps.take(f"publish {routing_key}")

    @property
    def types(self) -> list[str]:
        """The routing keys in order."""
        return [event.routing_key for event in self.told]


@dataclass
class FakeInspector:
    """Draws a picture and peaks of every file, or of none."""

    folder: Path
    draws: bool = True

    @asynccontextmanager
    async def inspect(self, path: Path, _format: Format) -> AsyncGenerator[Inspection, None]:
        """Draw."""
        png, peaks = self.folder / f"{path.stem}.png", self.folder / f"{path.stem}.json"
        if self.draws:
            png.write_bytes(b"picture")
            peaks.write_bytes(b"peaks")
        try:
            yield Inspection(waveform=png if self.draws else None, peaks=peaks if self.draws else None)
        finally:
            png.unlink(missing_ok=True)
            peaks.unlink(missing_ok=True)


class House:
    """Custody among fakes. Each call of `custody` is one more process over the same storage and broker."""

    def __init__(self, staging_folder: Path, executor: Executor) -> None:
        self.steps = Steps()
        self.source = FakeSource(self.steps)
        self.vendors = FakeVendors()
        self.storage = MemoryStorage(self.steps)
        self.publisher = FakePublisher(self.steps)
        self.now = NOW + timedelta(minutes=1)
        self.confirm: Confirm = "when_possible"
        self.inspector: Inspector = NoInspector()
        self.places: Places | None = None
        self.space: Space | None = None
        self.registry = CollectorRegistry()
        self.staged_folder = staging_folder
        self.executor = executor
        staging_folder.mkdir(exist_ok=True)

    async def fails(self, message: Message) -> Exception:
        """Handle a message that fails, and say so as the consumer does; return what was raised."""
        custody = self.custody()
        try:
            await custody.handle(message)
        except (RetryableError, PermanentError, TypeError) as error:
            reason = Reason.UNEXPECTED if isinstance(error, TypeError) else error.reason
            counted = not isinstance(error, RetryableError) or error.counted
            await custody.warn(message, reason, message.attempts + counted)
            return error
        raise AssertionError("it did not fail")

    def custody(self, source: FakeSource | None = None) -> Custody:
        """Return custody as after a start; metrics are those of the latest one."""
        self.registry = CollectorRegistry()
        metrics = DownloaderMetrics(self.registry)
        return Custody(
            source=Links(
                source or self.source, self.vendors, confirm=self.confirm, metrics=metrics, attempt_timeout_s=60.0
            ),
            places=self.places
            or Places(
                {"normal": Bounds(8, 8), "urgent": Bounds(8, 8)}, large=8, large_bytes=1_000_000_000, metrics=metrics
            ),
            staging=Staging(self.staged_folder, executor=self.executor, space=self.space),
            storage=self.storage,
            inspector=self.inspector,
            publisher=self.publisher,
            metrics=metrics,
            clock=lambda: self.now,
        )

    def count(self, name: str, **labels: str) -> float | None:
        """Return the value of a metric."""
        return self.registry.get_sample_value(f"wavekeep_downloader_{name}", labels)

    @property
    def staged(self) -> list[Path]:
        """What is in the staging folder."""
        return list(self.staged_folder.iterdir())

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of the task the reports are about."""
        content = self.storage.objects.get(NAMES.manifest)
        return None if content is None else read_manifest(content)

    @property
    def shown(self) -> str:
        """Everything anybody may read: records, markers and events."""
        records = [content for key, content in self.storage.objects.items() if not key.endswith(".wav")]
        return b"\n".join([*records, *map(events.encode, self.publisher.told)]).decode()


NAMES: Names = names_of("apibox", "task-1")


def content_of(path: Path) -> bytes:
    """Return what is in a file."""
    return path.read_bytes()


def suffix(key: str) -> str:
    """Return what tells a task's keys apart, with the digest of an audio left out."""
    name = key.removeprefix(NAMES.stem)
    return "audio" if name.endswith(".wav") else name


def succeeded(url: str = LINK, *, trust: tuple[Trust, ...] = ("token",)) -> Message:
    """Return a message that says the vendor has a file."""
    return message(
        ReportSucceeded(
            vendor=Vendor.APIBOX,
            task_id="task-1",
            url=url,
            code=200,
            message="success",
            received_at=NOW,
            deadline=DEADLINE,
            trust=trust,
        )
    )


def failed(code: int = 500, *, trust: tuple[Trust, ...] = ("token",)) -> Message:
    """Return a message that says the vendor failed."""
    return message(
        ReportFailed(
            vendor=Vendor.APIBOX,
            task_id="task-1",
            code=code,
            message=f"no luck with {LINK}",
            received_at=NOW,
            deadline=DEADLINE,
            trust=trust,
        )
    )


def linkless(*, trust: tuple[Trust, ...] = ("token",)) -> Message:
    """Return a message that says the vendor has a file, but not where."""
    return message(
        ReportLinkless(
            vendor=Vendor.APIBOX,
            task_id="task-1",
            code=200,
            message="success",
            explanation="it tells success without a link to a WAV",
            body=BODY,
            received_at=NOW,
            deadline=DEADLINE,
            trust=trust,
        )
    )


def message(data: Data, *, attempts: int = 0) -> Message:
    """Return what a handler is given for this event."""
    event = events.make(data, time=NOW)
    return Message(
        body=events.encode(event), event_id=event.id, queue="wavekeep.downloader", attempts=attempts, first_seen=NOW
    )


def ids(told: Iterable[Event]) -> set[str]:
    """Return the distinct ids of events."""
    return {event.id for event in told}
