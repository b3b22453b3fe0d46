"""Taking a callback: believe it, read it, make it durable.

Responsible for: the one way from an authenticated body to a confirmed report. It does not know HTTP (`ingress.http`)
nor which broker confirms. What it returns was durable before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from ingress import callback
from ingress.authenticity import Credentials, Doubt, doubt_signature, doubt_token, proven_skew_s
from ingress.report import make_report
from shared import events
from shared.clock import Clock
from shared.events import Trust
from shared.messaging.port import Publisher
from shared.vendors import Vendor


@dataclass(frozen=True, slots=True, kw_only=True)
class Proofs:
    """What a request presents to be believed."""

    token: str | None = field(default=None, repr=False)
    timestamp: str | None = None
    signature: str | None = field(default=None, repr=False)


class NotAuthenticError(Exception):
    """A configured proof does not hold."""

    def __init__(self, doubt: Doubt) -> None:
        super().__init__(doubt)
        self.doubt = doubt


class Intake:
    """Turns callbacks into reports.

    Args:
        publisher: confirms before it returns.
        credentials: of each vendor that is served.
        retention: how long each vendor keeps a file.
        tolerance_s: of a signature's timestamp.
        on_skew: told how far our clock is from each rightly signed timestamp, in seconds.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        credentials: Mapping[Vendor, Credentials],
        retention: Mapping[Vendor, timedelta],
        tolerance_s: float,
        clock: Clock,
        on_skew: Callable[[Vendor, float], None] = lambda *_: None,
    ) -> None:
        self._publisher = publisher
        self._credentials = credentials
        self._retention = retention
        self._tolerance_s = tolerance_s
        self._clock = clock
        self._on_skew = on_skew

    def check_token(self, vendor: Vendor, proofs: Proofs) -> None:
        """Judge what needs no body, so that a stranger's body is never read.

        Raises:
            NotAuthenticError: the vendor is not served, or its token does not hold.
        """
        credentials = self._credentials.get(vendor)
        doubt = Doubt.VENDOR_NOT_SERVED if credentials is None else doubt_token(credentials, proofs.token)
        if doubt is not None:
            raise NotAuthenticError(doubt)

    async def take(self, vendor: Vendor, body: bytes, proofs: Proofs, traceparent: str | None) -> events.Event:
        """Make a report of a callback durable; return it.

        Raises:
            MalformedCallbackError: the body cannot be a callback.
            NotAuthenticError: its signature does not hold.
            BrokerError: it may not be durable.
        """
        received_at = self._clock()
        reading = callback.read(callback.parse(body), received_at=received_at)
        credentials = self._credentials[vendor]
        doubt = doubt_signature(
            credentials,
            task_id=reading.task_id,
            timestamp=proofs.timestamp,
            signature=proofs.signature,
            now=received_at,
            tolerance_s=self._tolerance_s,
        )
        skew_s = proven_skew_s(credentials, doubt, timestamp=proofs.timestamp, now=received_at)
        if skew_s is not None:
            self._on_skew(vendor, skew_s)
        if doubt is not None:
            raise NotAuthenticError(doubt)
        report = make_report(
            vendor,
            reading,
            body,
            received_at=received_at,
            retention=self._retention[vendor],
            trust=_trust(credentials),
        )
        event = events.make(report, time=received_at, traceparent=traceparent)
        await self._publisher.publish(report.EXCHANGE, event.routing_key, events.encode(event), event_id=event.id)
        return event


def _trust(credentials: Credentials) -> tuple[Trust, ...]:
    """Name the proofs that held: all that are configured."""
    found: list[Trust] = []
    if credentials.tokens:
        found.append("token")
    if credentials.hmac_keys:
        found.append("signature")
    return tuple(found) or ("none",)
