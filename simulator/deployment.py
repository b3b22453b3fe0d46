"""All of Wavekeep and a simulated vendor, as processes on loopback, in either way that it is run.

Responsible for: the processes of one deployment, their ports, secrets and settings, and their common start and end. It
must not import any service: what it knows of them is what an operator knows, their modules, settings and addresses.
Plain synchronous code.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from shared.vendors import Vendor
from simulator.client import SimulatorClient
from simulator.processes import Process
from simulator.rabbitmq_local import free_ports

START_TIMEOUT_S = 60.0
"""A first start on RabbitMQ waits ten seconds until its new queues are safe from a crash."""

_POLL_S = 0.1
_SERVICES = ("ingress", "downloader", "notifier")
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class NotReadyError(RuntimeError):
    """A process did not become ready in time; the message holds the end of its log."""


class Deployment:
    """One deployment: `with Deployment(...) as deployment:`, or `start` and `stop`.

    Args:
        folder: takes everything that is written: `files`, `logs`, and a data folder for each process.
        broker_url: of RabbitMQ, for one process a service; None for all services in one process, embedded.
        destinations: writes the TOML of the notifier's destinations, given the base URL of the webhook receivers.
        hmac_key: kie signs with it, and its signature is asked for.
        settings: more of them, by their full names, for every service.
        simulator: settings of the simulator, by their full names.

    Attributes:
        tokens: of each vendor.
        files: folder of the kept files.
        logs: folder of the logs, one a process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        broker_url: str | None,
        destinations: Callable[[str], str],
        hmac_key: str | None = None,
        settings: Mapping[str, str] = _NO_SETTINGS,
        simulator: Mapping[str, str] = _NO_SETTINGS,
    ) -> None:
        self._folder = folder
        self.tokens = {vendor: secrets.token_urlsafe(24) for vendor in Vendor}
        self.files = folder / "files"
        self.logs = folder / "logs"
        modules = _SERVICES if broker_url else ("standalone",)
        simulator_port, ingress_port, *ops_ports = free_ports(2 + len(modules))
        self.ingress_url = f"http://127.0.0.1:{ingress_port}"
        self.ops_urls = {module: f"http://127.0.0.1:{port}" for module, port in zip(modules, ops_ports, strict=True)}
        self.simulator = SimulatorClient(f"http://127.0.0.1:{simulator_port}")
        self._destinations = destinations(f"{self.simulator.base_url}/webhooks")
        self._config = folder / "destinations.toml"
        common = {
            "WAVEKEEP_STORAGE_URL": self.files.as_uri(),
            "WAVEKEEP_NOTIFY_CONFIG": str(self._config),
            "WAVEKEEP_INGRESS_PORT": str(ingress_port),
            "WAVEKEEP_DOWNLOAD_ALLOW_ADDRESSES": f"127.0.0.1:{simulator_port}",
            "WAVEKEEP_SAMPLE_FILE": "false",
            **{f"WAVEKEEP_{vendor.upper()}_CALLBACK_TOKENS": token for vendor, token in self.tokens.items()},
            **({"WAVEKEEP_KIE_HMAC_KEYS": hmac_key} if hmac_key else {}),
            **({"WAVEKEEP_BROKER_URL": broker_url} if broker_url else {}),
            **settings,
        }
        self.services = {
            module: Process(
                module,
                environ={
                    **common,
                    "WAVEKEEP_DATA_DIR": str(folder / module),
                    "WAVEKEEP_OPS_PORT": url.rpartition(":")[2],
                },
                log=self.logs / f"{module}.log",
                ready_url=f"{url}/readyz",
            )
            for module, url in self.ops_urls.items()
        }
        self.vendor = Process(
            "simulator",
            environ={
                "SIMULATOR_PORT": str(simulator_port),
                "SIMULATOR_CALLBACK_URL": " ".join(f"{vendor}={self.callback_url(vendor)}" for vendor in Vendor),
                **({"SIMULATOR_HMAC_KEY": hmac_key} if hmac_key else {}),
                **simulator,
            },
            log=self.logs / "simulator.log",
            ready_url=f"{self.simulator.base_url}/control/health",
        )

    @property
    def processes(self) -> tuple[Process, ...]:
        """All of them, the simulator first."""
        return (self.vendor, *self.services.values())

    def callback_url(self, vendor: Vendor) -> str:
        """Return the URL handed in to a vendor."""
        return f"{self.ingress_url}/callbacks/{vendor}?token={self.tokens[vendor]}"

    def start(self) -> None:
        """Start everything that does not run; return when all of it is ready.

        Raises:
            NotReadyError, ProcessEndedError: one did not start; the others are left running, for `stop`.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._config.touch(mode=0o600)
        self._config.write_text(self._destinations)
        for process in self.processes:
            if not process.running:
                process.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = list(self.processes)
        while waiting := [process for process in waiting if not process.ready()]:
            if time.monotonic() > deadline:
                late = waiting[0]
                raise NotReadyError(f"{late.name} was not ready after {START_TIMEOUT_S:.0f} s:\n{late.tail()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End everything in good order, at once what does not end by itself. Idempotent."""
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            process.stop()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
