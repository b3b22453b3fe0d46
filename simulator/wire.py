"""Requests and answers in JSON.

Responsible for: decoding a body into one of the plan's models, answering models, and telling a caller's mistake as 400
with one sentence. It must not know what is asked.
"""

from typing import Any, TypeVar

import msgspec
from aiohttp import web

Model = TypeVar("Model")

_ENCODER = msgspec.json.Encoder()


def answer(content: Any, status: int = 200) -> web.Response:
    """Return JSON."""
    return web.Response(body=_ENCODER.encode(content), status=status, content_type="application/json")


def mistake(detail: str, status: int = 400) -> web.Response:
    """Return one sentence about what was wrong with a request."""
    return answer({"error": detail}, status)


async def read(request: web.Request, model: type[Model]) -> Model:
    """Return the body as a model.

    Raises:
        msgspec.DecodeError: it is not JSON, or not of this model (`msgspec.ValidationError`).
    """
    return msgspec.json.decode(await request.read(), type=model)


@web.middleware
async def tell_mistakes(request: web.Request, handler: Any) -> web.StreamResponse:
    """Turn what a model or a plan refuses on the control interface into 400."""
    try:
        response: web.StreamResponse = await handler(request)
    except (msgspec.DecodeError, ValueError) as error:
        if not request.path.startswith("/control/"):
            raise
        return mistake(str(error))
    return response
