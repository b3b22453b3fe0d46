"""Taking a callback: believe it, read it, make it durable.

Responsible for: the one way from an authenticated body to a confirmed report. It does not know HTTP (`ingress.http`)
nor which broker confirms. What it returns was durable before.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from ingress import callback
from ingress.authenticity import Credentials, Doubt, doubt_signature, doubt_token, is_askable, proven_skew_s
from ingress.report import make_report
from ingress.source import EVERYWHERE, Address, Boundary, Source, client_address
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
    """A configured proof does not hold, or the callback comes from elsewhere than it may.

    Args:
        doubt: which of the closed list.
        address: that was judged, where it was asked where the callback comes from and the answer is known.
    """

    def __init__(self, doubt: Doubt, address: Address | None = None) -> None:
        super().__init__(doubt)
        self.doubt = doubt
        self.address = address


class Intake:
    """Turns callbacks into reports.

    Args:
        publisher: confirms before it returns.
        credentials: of each vendor that is served.
        retention: how long each vendor keeps a file.
        tolerance_s: of a signature's timestamp.
        askable: the vendors that can be asked whether a callback is true, and for a link that it lacks. Of these a
            right but stale signature is taken, and told as `stale`: nothing may be fetched before the vendor confirms.
        boundary: where callbacks may come from.
        on_skew: told how far our clock is from each rightly signed timestamp, in seconds.
        on_stale: told of each callback that was taken although its signature is stale.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        credentials: Mapping[Vendor, Credentials],
        retention: Mapping[Vendor, timedelta],
        tolerance_s: float,
        clock: Clock,
        askable: Collection[Vendor] = (),
        boundary: Boundary = EVERYWHERE,
        on_skew: Callable[[Vendor, float], None] = lambda *_: None,
        on_stale: Callable[[Vendor], None] = lambda _: None,
    ) -> None:
        self._publisher = publisher
        self._credentials = credentials
        self._retention = retention
        self._tolerance_s = tolerance_s
        self._clock = clock
        self._askable = frozenset(askable)
        self._boundary = boundary
        self._on_skew = on_skew
        self._on_stale = on_stale

    def admit(self, vendor: Vendor, proofs: Proofs, source: Source) -> None:
        """Judge what needs no body, so that a stranger's body is never read.

        Raises:
            NotAuthenticError: the vendor is not served, may not call from there, or its token does not hold.
        """
        credentials = self._credentials.get(vendor)
        if credentials is None:
            raise NotAuthenticError(Doubt.VENDOR_NOT_SERVED)
        if self._boundary.restricts(vendor):
            address = client_address(source, self._boundary.proxies)
            if not self._boundary.admits(vendor, address):
                raise NotAuthenticError(Doubt.SOURCE_OUTSIDE, address)
        doubt = doubt_token(credentials, proofs.token)
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
        stale = vendor in self._askable and is_askable(doubt, timestamp=proofs.timestamp, now=received_at)
        if doubt is not None and not (stale and not isinstance(reading, callback.Unrecognised)):
            raise NotAuthenticError(doubt)  # what nobody understands cannot be asked about either
        report = make_report(
            vendor,
            reading,
            body,
            received_at=received_at,
            retention=self._retention[vendor],
            trust=_trust(credentials, stale=stale),
            askable=vendor in self._askable,
        )
        event = events.make(report, time=received_at, traceparent=traceparent)
        await self._publisher.publish(report.EXCHANGE, event.routing_key, events.encode(event), event_id=event.id)
        if stale:
            self._on_stale(vendor)
        return event


def _trust(credentials: Credentials, *, stale: bool) -> tuple[Trust, ...]:
    """Name the proofs that held: all that are configured."""
    found: list[Trust] = []
    if credentials.tokens:
        found.append("token")
    if credentials.hmac_keys:
        found.append("stale" if stale else "signature")
    return tuple(found) or ("none",)
