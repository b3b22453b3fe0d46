"""The public edge: requests in, answers out.

Responsible for: routes, the bounds on what is read, and exactly one answer, one log line and one count a request.
It must not decide whether a callback is believed or what it says: that is `ingress.intake`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from ingress.callback import MalformedCallbackError
from ingress.intake import Intake, NotAuthenticError, Proofs
from ingress.metrics import IngressMetrics
from ingress.problems import Refusal, RefusedError
from shared.errors import BrokerError
from shared.events import Event
from shared.vendors import SAMPLE_ROUTES, Vendor

log = structlog.get_logger()

LARGEST_BODY_BYTES = 64 * 1024
RETRY_AFTER_S = 30

_RECEIVED = b'{"status": "received"}'

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(intake: Intake, *, metrics: IngressMetrics, body_timeout_s: float) -> web.Application:
    """Build the application: `POST /callbacks/{vendor}` and the routes of the vendors' own samples."""
    edge = _Edge(intake, metrics, body_timeout_s)
    app = web.Application(middlewares=[edge.answer], client_max_size=LARGEST_BODY_BYTES)
    app.router.add_post("/callbacks/{vendor}", edge.receive)
    for vendor, path in SAMPLE_ROUTES.items():
        app.router.add_post(path, edge.receive_for(vendor))
    return app


def refuse(metrics: IngressMetrics, error: RefusedError, *, path: str = "", duration_s: float = 0.0) -> web.Response:
    """Count and log a refusal once; return its answer.

    Args:
        path: percent-encoded, without the query; empty where none could be read.
        duration_s: since the head was read.
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
    )
    return error.response()


class _Edge:
    def __init__(self, intake: Intake, metrics: IngressMetrics, body_timeout_s: float) -> None:
        self._intake = intake
        self._metrics = metrics
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
        try:
            self._intake.check_token(vendor, proofs)
            body = await self._read(request)
            event = await self._intake.take(vendor, body, proofs, request.headers.get("traceparent"))
        except NotAuthenticError as error:
            self._metrics.doubted.labels(str(error.doubt)).inc()
            raise RefusedError(Refusal.UNAUTHENTIC, f"Not believed: {error.doubt}.") from error
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

    async def _read(self, request: web.Request) -> bytes:
        """Read the body within its bounds of type, size and time."""
        if "Content-Encoding" in request.headers:
            raise RefusedError(Refusal.ENCODED, "No Content-Encoding is taken.")
        if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
            raise RefusedError(Refusal.WRONG_TYPE, "Send Content-Type: application/json.")
        if (request.content_length or 0) > LARGEST_BODY_BYTES:
            raise RefusedError(Refusal.TOO_LARGE, f"At most {LARGEST_BODY_BYTES} bytes are read.")
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > LARGEST_BODY_BYTES:
                        raise RefusedError(Refusal.TOO_LARGE, f"At most {LARGEST_BODY_BYTES} bytes are read.")
        except TimeoutError:
            raise RefusedError(Refusal.TOO_SLOW, f"It took over {self._body_timeout_s:g} s.") from None
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
            error = RefusedError(Refusal.METHOD, "Use POST.", {"Allow": ", ".join(sorted(unsuited.allowed_methods))})
        except web.HTTPException:
            error = RefusedError(Refusal.NOT_FOUND, "Callbacks go to /callbacks/{vendor}.")
        except Exception:
            log.exception("callback.failed", path=request.rel_url.raw_path[:100])
            error = RefusedError(Refusal.FAULT, "It was logged; send the callback again.")
        else:
            self._metrics.answer_seconds.observe(monotonic() - started)
            return response
        answer = refuse(self._metrics, error, path=request.rel_url.raw_path[:100], duration_s=monotonic() - started)
        if not request.content.is_eof():
            answer.force_close()
        return answer
