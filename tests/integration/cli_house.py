"""The command line beside a running broker: places to try it in.

Responsible for: running commands as an operator would, and filling the queues as services would. It must not assert
anything but that no command ever shows a traceback.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
from click.testing import CliRunner, Result

from cli.__main__ import main
from ingress.callback import Unrecognised
from ingress.report import make_report
from shared import events
from shared.errors import PermanentError, Reason
from shared.events import Data, ReportSucceeded
from shared.messaging.embedded import EmbeddedBroker
from shared.messaging.port import Broker, Kept, Message, Subscription
from shared.messaging.rabbitmq import RabbitBroker, apply_topology
from shared.messaging.topology import DOWNLOADER, UNRECOGNISED, parked_queue, topology
from shared.vendors import Vendor
from tests.contract.brokers import metrics
from tests.integration.embedded_house import eventually, until

TOPOLOGY = topology(["log"])
PARKED = parked_queue(DOWNLOADER)
SECRET = "Signature=k3y-to-the-file"


class Place:
    """A broker that is in use, and the environment by which a command finds it and the files."""

    def __init__(self, broker: Broker, environment: dict[str, str], data_dir: Path) -> None:
        self.broker = broker
        self.environment = environment | {"WAVEKEEP_DATA_DIR": str(data_dir)}
        self.data_dir = data_dir

    async def cli(self, *words: str, status: int = 0, typed: str | None = None) -> Result:
        """Run a command to its end, which must be this status."""
        runner = CliRunner(env=self.environment)
        result = await asyncio.to_thread(runner.invoke, main, list(words), input=typed)
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result

    async def json(self, *words: str, status: int = 0) -> Any:
        """Run a command with `--json`; return what it printed."""
        return json.loads((await self.cli(*words, "--json", status=status)).stdout)

    async def publish(self, *told: Data) -> None:
        """Publish events as a service would."""
        for data in told:
            event = events.make(data, time=getattr(data, "received_at", datetime.now(UTC)))
            await self.broker.publish(data.EXCHANGE, event.routing_key, events.encode(event), event_id=event.id)

    async def park(self, *told: tuple[Data, Reason]) -> list[Kept]:
        """Have a downloader park what it is told, each for its reason; return what is parked then, oldest first."""
        before = len(await self.kept(PARKED))
        for data, reason in told:

            async def refuse(_: Message, reason: Reason = reason) -> None:
                raise PermanentError(reason, "a person must look")

            await self.publish(data)
            before += 1
            async with self.consuming(refuse):
                await self.until_kept(PARKED, before)
        return sorted(await self.kept(PARKED), key=lambda kept: kept.parked_at or datetime.now(UTC))

    async def waiting(self, count: int) -> list[str]:
        """Take so many messages from the downloader's queue; return their subjects."""
        seen: list[str] = []

        async def see(message: Message) -> None:
            seen.append(events.decode(message.body).subject)

        async with self.consuming(see):
            await until(lambda: len(seen) >= count)
        return sorted(seen)

    @asynccontextmanager
    async def consuming(self, handler: Any) -> AsyncIterator[None]:
        """Consume the downloader's queue meanwhile."""
        stop = asyncio.Event()
        subscription = Subscription(queue=DOWNLOADER, handler=handler, concurrency=10, next_step=lambda *_: None)
        task = asyncio.create_task(self.broker.consume(subscription, stop=stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def kept(self, queue: str = UNRECOGNISED) -> list[Kept]:
        """Return what waits in a queue."""
        return [kept async for kept in self.broker.kept(queue)]

    async def until_kept(self, queue: str, count: int) -> None:
        """Return once so many wait there; fail when they do not in time."""

        async def there() -> bool:
            return len(await self.kept(queue)) == count

        await eventually(there)


@asynccontextmanager
async def embedded_place(folder: Path) -> AsyncIterator[Place]:
    """Run the broker of a single machine."""
    broker = EmbeddedBroker(folder / "queue.sqlite3", TOPOLOGY, metrics=metrics(), grace_time_s=1.0)
    await broker.start()
    try:
        yield Place(broker, {}, folder)
    finally:
        await broker.close()


@asynccontextmanager
async def rabbitmq_place(url: str, folder: Path) -> AsyncIterator[Place]:
    """Use a node, with the names of the product; the queues are empty afterwards."""
    await apply_topology(url, TOPOLOGY)
    broker = RabbitBroker(url, TOPOLOGY, metrics=metrics(), name="test", settle_s=0.0, check_every_s=0.5)
    await broker.start()
    try:
        yield Place(broker, {"WAVEKEEP_BROKER_URL": url}, folder)
    finally:
        await broker.close()
        async with await aio_pika.connect(url) as connection, connection.channel() as channel:
            for queue in TOPOLOGY.queues:
                await (await channel.get_queue(queue.name, ensure=False)).purge()


def succeeded(task_id: str, *, vendor: Vendor = Vendor.APIBOX) -> ReportSucceeded:
    """Return a report with a link that is a key."""
    now = datetime.now(UTC)
    return ReportSucceeded(
        vendor=vendor,
        task_id=task_id,
        url=f"https://cdn.example.com/{task_id}.wav?{SECRET}",
        code=200,
        message="success",
        received_at=now,
        deadline=now + timedelta(days=15),
        trust=("token",),
    )


def unread(body: dict[str, Any], *, vendor: Vendor = Vendor.KIE, at: datetime) -> Data:
    """Return what an older version made of a body that it did not understand."""
    return make_report(
        vendor,
        Unrecognised(None, "an older version did not know this shape"),
        json.dumps(body).encode(),
        received_at=at,
        retention=timedelta(days=14),
        trust=("token", "signature"),
        askable=False,
    )


def lines(text: str) -> Sequence[str]:
    """Return the lines that hold anything."""
    return [line for line in text.splitlines() if line.strip()]
