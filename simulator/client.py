"""A client of the simulator's control interface, for whoever drives it from another process.

Responsible for: one method a question, plans and answers as plain data. It must not wait, repeat or judge anything.
Plain synchronous code; every call is bounded by a time-out.
"""

import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from simulator.plan import Load, Plan, WebhookManner


class SimulatorClient:
    """Talks to one simulator.

    Args:
        base_url: where it listens.
        timeout_s: for each call. The ledger of thousands of conversions takes a while.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 60.0) -> None:
        self.base_url = base_url
        self._timeout_s = timeout_s

    def convert(self, plans: Sequence[Plan | Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Make conversions, and begin to call them back; return vendor, task id and links of each."""
        made: list[dict[str, Any]] = self._call("POST", "/control/conversions", list(plans))["conversions"]
        return made

    def begin(self, load: Load | Mapping[str, Any]) -> int:
        """Begin a load; return how many conversions it makes."""
        return int(self._call("POST", "/control/load", load)["conversions"])

    def pending(self) -> dict[str, Any]:
        """Return what is still to be sent or retried, and how far the load has come."""
        return self._object("GET", "/control/pending")

    def ledger(self, **query: str) -> dict[str, Any]:
        """Return the ledger, or the part of it that `vendor`, `task_id` and `digests` ask for."""
        return self._object("GET", "/control/ledger" + (f"?{urlencode(query)}" if query else ""))

    def webhooks(self, name: str) -> list[dict[str, Any]]:
        """Return what came in under a name, oldest first."""
        deliveries: list[dict[str, Any]] = self._call("GET", f"/control/webhooks/{name}")["deliveries"]
        return deliveries

    def tell_webhook(self, name: str, manner: WebhookManner | Mapping[str, Any]) -> None:
        """Say how the next deliveries under a name are answered."""
        self._call("POST", f"/control/webhooks/{name}", manner)

    def reset(self) -> None:
        """Drop what is still to be sent, and forget everything."""
        self._call("DELETE", "/control/ledger")

    def _object(self, method: str, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call(method, path)
        return found

    def _call(self, method: str, path: str, content: object = None) -> Any:
        data = None if content is None else msgspec.json.encode(content)
        request = urllib.request.Request(self.base_url + path, data=data, method=method)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:  # noqa: S310
            body = answer.read()
        return json.loads(body) if body else None
