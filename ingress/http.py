"""The public edge: requests in, answers out.

Responsible for: routes, the bounds on what is read, and exactly one answer a request, with one log line and one
count a callback. It must not decide whether a callback is believed or what it says: that is `ingress.intake`.
"""

from collections.abc import Awaitable, Callable
from time import monotonic

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from ingress import openapi
from ingress.authenticity import Doubt
from ingress.callback import MalformedCallbackError
from ingress.hall import PATIENCE_S, CutShortError, Desk, NoPlaceError, Place
from ingress.intake import Intake, NotAuthenticError, Proofs
from ingress.metrics import IngressMetrics
from ingress.problems import Refusal, RefusedError
from ingress.source import Source
from shared.errors import BrokerError
from shared.events import Event
from shared.operations import product_version
from shared.vendors import SAMPLE_ROUTES, Vendor

log = structlog.get_logger()

LARGEST_BODY_BYTES = 64 * 1024
RETRY_AFTER_S = 30
RETRY_SHED_AFTER_S = 5

_PATHS = frozenset({*(f"/callbacks/{vendor}" for vendor in Vendor), *SAMPLE_ROUTES.values(), openapi.PATH})
_RECEIVED = b'{"status": "received"}'

_SOURCE = web.RequestKey("source", str)
"""The address that was judged, for the log of a refusal."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(
    intake: Intake, *, metrics: IngressMetrics, body_timeout_s: float, most_in_flight: int
) -> web.Application:
    """Build the application: `POST /callbacks/{vendor}`, the routes of the vendors' own samples, its description."""
    desk = Desk(most_in_flight)
    metrics.in_flight.set_function(lambda: desk.in_hand)
    edge = _Edge(intake, metrics, desk, body_timeout_s)
    app = web.Application(middlewares=[edge.answer], client_max_size=LARGEST_BODY_BYTES)
    app.router.add_post("/callbacks/{vendor}", edge.receive)
    for vendor, path in SAMPLE_ROUTES.items():
        app.router.add_post(path, edge.receive_for(vendor))
    app.router.add_get(openapi.PATH, _describing())
    return app


def _describing() -> Handler:
    """Return what serves the OpenAPI document: made once, the same for everybody, and no callback to log."""
    described = msgspec.json.encode(openapi.document(product_version(), largest_body_bytes=LARGEST_BODY_BYTES))

    async def describe(_: web.Request) -> web.Response:
        return web.Response(
            body=described, content_type="application/json", headers={"Cache-Control": "public, max-age=3600"}
        )

    return describe


def refuse(
    metrics: IngressMetrics,
    error: RefusedError,
    *,
    path: str = "",
    duration_s: float = 0.0,
    source: str | None = None,
) -> web.Response:
    """Count and log a refusal once; return its answer.

    Args:
        path: without the query; empty where none could be read.
        duration_s: since the head was read.
        source: the client's address, where that is why.
    """
    metrics.refused.labels(str(error.refusal)).inc()
    metrics.answer_seconds.observe(duration_s)
    log.warning(
        "callback.refused",
        path=path,
        status=error.status,
        refusal=str(error.refusal),
        detail=error.detail,
        duration_s=round(duration_s, 4),
        **({} if source is None else {"source": source}),
    )
    return error.response()


def _shown_path(request: web.Request) -> str:
    """Return the path where it is one of ours. Any other may hold a token: of a URL that was encoded twice, say."""
    path = request.rel_url.raw_path
    return path if path in _PATHS else "other"


class _Edge:
    def __init__(self, intake: Intake, metrics: IngressMetrics, desk: Desk, body_timeout_s: float) -> None:
        self._intake = intake
        self._metrics = metrics
        self._desk = desk
        self._body_timeout_s = body_timeout_s

    async def receive(self, request: web.Request) -> web.Response:
        try:
            vendor = Vendor(request.match_info["vendor"])
        except ValueError:
            names = ", ".join(Vendor)
            raise RefusedError(Refusal.UNKNOWN_VENDOR, f"Vendors are {names}.") from None
        return await self._receive(request, vendor)

    def receive_for(self, vendor: Vendor) -> Handler:
        async def receive(request: web.Request) -> web.Response:
            return await self._receive(request, vendor)

        return receive

    async def _receive(self, request: web.Request, vendor: Vendor) -> web.Response:
        started = monotonic()
        proofs = Proofs(
            token=request.query.get("token"),
            timestamp=request.headers.get("X-Webhook-Timestamp"),
            signature=request.headers.get("X-Webhook-Signature"),
        )
        source = Source(request.remote, tuple(request.headers.getall("X-Forwarded-For", ())))
        try:
            self._intake.admit(vendor, proofs, source)
            with self._desk.place() as place:
                body = await self._read(request, place)
                event = await self._intake.take(vendor, body, proofs, request.headers.get("traceparent"))
        except NotAuthenticError as error:
            self._metrics.doubted.labels(str(error.doubt)).inc()
            if error.doubt is Doubt.SOURCE_OUTSIDE:
                request[_SOURCE] = str(error.address or "unknown")
            raise RefusedError(Refusal.UNAUTHENTIC, f"Not believed: {error.doubt}.") from error
        except NoPlaceError:
            raise RefusedError(
                Refusal.SHEDDING, "Send it again a little later.", {"Retry-After": str(RETRY_SHED_AFTER_S)}
            ) from None
        except MalformedCallbackError as error:
            raise RefusedError(Refusal.MALFORMED, str(error)) from error
        except BrokerError as error:
            log.warning("callback.not_durable", vendor=str(vendor), reason=error.reason, detail=error.detail)
            raise RefusedError(
                Refusal.NOT_DURABLE, "It is not kept: send it again.", {"Retry-After": str(RETRY_AFTER_S)}
            ) from error
        self._tell(event, vendor, monotonic() - started)
        return web.Response(body=_RECEIVED, content_type="application/json")

    def _tell(self, event: Event, vendor: Vendor, duration_s: float) -> None:
        reading = event.routing_key.removeprefix("report.")
        self._metrics.accepted.labels(str(vendor), reading).inc()
        log.info(
            "callback.accepted",
            vendor=str(vendor),
            subject=event.subject,
            reading=reading,
            event_id=event.id,
            traceparent=event.traceparent,
            duration_s=round(duration_s, 4),
        )

    async def _read(self, request: web.Request, place: Place) -> bytes:
        """Read the body within its bounds of type, size and time."""
        if "Content-Encoding" in request.headers:
            raise RefusedError(Refusal.ENCODED, "No Content-Encoding is taken.")
        if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
            raise RefusedError(Refusal.WRONG_TYPE, "Send Content-Type: application/json.")
        if (request.content_length or 0) > LARGEST_BODY_BYTES:
            raise RefusedError(Refusal.TOO_LARGE, f"At most {LARGEST_BODY_BYTES} bytes are read.")
        body = bytearray()
        try:
            async with self._desk.reading(place, self._body_timeout_s):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > LARGEST_BODY_BYTES:
                        raise RefusedError(Refusal.TOO_LARGE, f"At most {LARGEST_BODY_BYTES} bytes are read.")
        except TimeoutError:
            raise RefusedError(Refusal.TOO_SLOW, f"It took over {self._body_timeout_s:g} s.") from None
        except CutShortError:
            raise RefusedError(Refusal.TOO_SLOW, f"It took over {PATIENCE_S:g} s, and others wait.") from None
        except (web.RequestPayloadError, BadHttpMessage, ConnectionError) as error:
            raise RefusedError(Refusal.CUT_OFF, "It ended early.") from error
        return bytes(body)

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every request with 200 or a problem document, counted and logged once."""
        started = monotonic()
        try:
            response = await handler(request)
        except RefusedError as refused:
            error = refused
        except web.HTTPMethodNotAllowed as unsuited:
            allowed = ", ".join(sorted(unsuited.allowed_methods))
            error = RefusedError(Refusal.METHOD, f"Use {allowed}.", {"Allow": allowed})
        except web.HTTPException:
            error = RefusedError(Refusal.NOT_FOUND, "Callbacks go to /callbacks/{vendor}.")
        except Exception:
            log.exception("callback.failed", path=_shown_path(request))
            error = RefusedError(Refusal.FAULT, "It was logged; send the callback again.")
        else:
            self._metrics.answer_seconds.observe(monotonic() - started)
            return response
        answer = refuse(
            self._metrics,
            error,
            path=_shown_path(request),
            duration_s=monotonic() - started,
            source=request.get(_SOURCE),
        )
        if not request.content.is_eof():
            answer.force_close()
        return answer
