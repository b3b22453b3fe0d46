"""A real Prometheus on loopback that runs the files of `deploy/prometheus`.

Responsible for: a process of its own in a temporary folder, with the targets filled in, made fast enough for a test. It
must not change any rule but in how long it waits.
"""

import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from aiohttp import ClientError, ClientSession, ClientTimeout

from simulator.rabbitmq_local import free_ports
from tests.alert_rules import CONFIG, RULES
from tests.integration.embedded_house import eventually
from tests.packages import require

WAIT = "5s"
"""In the place of each rule's own: longer than one scrape that a busy machine is late with."""

_START_WITHIN_S = 30.0
_EVERY = "1s"


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    session: ClientSession

    async def ask(self, path: str, **query: str) -> Any:
        """Return the data of an answer of its API."""
        async with self.session.get(f"/api/v1/{path}", params=query) as answer:
            body = await answer.json()
            assert body["status"] == "success", body
            return body["data"]

    async def health(self) -> dict[str, str]:
        """Return the health of each target, by its address."""
        targets = (await self.ask("targets"))["activeTargets"]
        return {target["labels"]["instance"]: target["health"] for target in targets}

    async def alerts(self) -> dict[str, dict[str, str]]:
        """Return the state of each alert that is not quiet, by its instance and its name."""
        found: dict[str, dict[str, str]] = {}
        for alert in (await self.ask("alerts"))["alerts"]:
            labels = alert["labels"]
            found.setdefault(labels["instance"], {})[labels["alertname"]] = alert["state"]
        return found

    async def rules(self) -> list[dict[str, Any]]:
        """Return all rules, with how and when each was evaluated last."""
        return [rule for group in (await self.ask("rules"))["groups"] for rule in group["rules"]]


@asynccontextmanager
async def prometheus_over(targets: Sequence[str], folder: Path) -> AsyncIterator[Prometheus]:
    """Run Prometheus with our rules over these targets; gone afterwards."""
    (port,) = free_ports(1)
    _configure(targets, folder)
    with _running(port, folder) as process:
        async with ClientSession(f"http://127.0.0.1:{port}", timeout=ClientTimeout(10)) as session:

            async def ready() -> bool:
                assert process.poll() is None, _said(folder)
                try:
                    async with session.get("/-/ready") as answer:
                        return answer.status == 200
                except ClientError:
                    return False  # it does not listen yet

            try:
                await eventually(ready, deadline_s=_START_WITHIN_S)
            except TimeoutError:
                raise AssertionError(_said(folder)) from None
            yield Prometheus(session)


def _configure(targets: Sequence[str], folder: Path) -> None:
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    config["global"] = {"scrape_interval": _EVERY, "evaluation_interval": _EVERY}
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "wavekeep")
    job["static_configs"] = [{"targets": list(targets)}]
    config["scrape_configs"] = [job]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    (folder / RULES.name).write_text(re.sub(r"\bfor: \w+", f"for: {WAIT}", RULES.read_text("utf-8")), "utf-8")


@contextmanager
def _running(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [require("prometheus", "prometheus"), "--config.file", str(folder / "prometheus.yml")]
    command += ["--storage.tsdb.path", str(folder / "series"), "--web.listen-address", f"127.0.0.1:{port}"]
    command += ["--log.level", "warn"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _said(folder: Path) -> str:
    return (folder / "output").read_text("utf-8", "replace")
