"""What docs/destinations.md and examples/ show works as it stands."""

import asyncio
import base64
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

from aiohttp import ClientSession
from pydantic import SecretStr

from notifier.app import Notifier
from notifier.settings import (
    DEFAULT_EVENTS,
    RESERVED_NAMES,
    LogDestination,
    NotifierSettings,
    WebhookDestination,
    load_destinations,
)
from shared.retry import LADDER
from tests.integration.embedded_house import DEADLINE_S, embedded_house
from tests.integration.receivers import rejected

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "destinations.md").read_text("utf-8")
EXAMPLE = ROOT / "examples" / "destinations.toml"


def test_the_pages_example_is_accepted(tmp_path: Path) -> None:
    """Whoever copies the worked example has two destinations that start."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "destinations.toml"
    path.write_text(text, "utf-8")
    assert [type(each) for each in load_destinations(path)] == [LogDestination, WebhookDestination]


def test_every_field_stands_on_the_page() -> None:
    """Fields, reserved names, default events and the rungs of the ladder are told as the code has them."""
    words: list[Any] = [*WebhookDestination.model_fields, *RESERVED_NAMES, *DEFAULT_EVENTS]
    assert [word for word in words if f"`{word}`" not in PAGE] == []
    flat = " ".join(PAGE.split())
    rungs = [re.sub(r"(\d+)(m?)([a-z]?)", lambda m: f"{m[1]} {'min' if m[2] else m[3]}", step.name) for step in LADDER]
    assert ", ".join(rungs[:-1]) + f", then {rungs[-1]} each time" in flat


async def test_the_example_receiver_takes_what_the_example_destinations_send(tmp_path: Path) -> None:
    """The two examples meet: a signed event is verified and printed once, and nobody else's is taken."""
    secret = tmp_path / "secret"
    secret.write_text("whsec_" + base64.b64encode(b"a key that both sides know").decode() + "\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "examples/subscriber.py", "--port", "0", "--secret-file", str(secret), cwd=ROOT, stdout=PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            url = (await process.stdout.readline()).decode().split()[-1]
            people, billing = load_destinations(EXAMPLE)
            billing = billing.model_copy(update={"url": SecretStr(url), "secret_file": secret})
            async with embedded_house(tmp_path, [people.name, billing.name]) as house:
                settings = NotifierSettings(data_dir=tmp_path)
                service = Notifier(settings, [people, billing], house.broker, house.registry, clock=house.clock)
                async with house.running(service), ClientSession() as session:
                    async with session.post(url, data=b"{}", headers={"webhook-signature": "v1"}) as answer:
                        assert answer.status == 401
                    for task_id in ("task-1", "task-1", "task-2"):
                        await house.publish(rejected(task_id))
                    lines = [(await process.stdout.readline()).decode().split() for _ in range(2)]
        assert sorted(lines) == [["wavekeep.conversion.rejected.v1", f"apibox/task-{n}"] for n in (1, 2)]
    finally:
        process.kill()
        await process.communicate()
