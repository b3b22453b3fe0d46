"""How a refusal is told: problem documents.

Responsible for: the closed list of refusals, each with its status and title (RFC 9457). It must not decide on one.
"""

from enum import StrEnum

import msgspec
from aiohttp import web

CONTENT_TYPE = "application/problem+json"


class Refusal(StrEnum):
    """Why a callback was not taken. Also a metric label."""

    MALFORMED = "malformed"
    UNAUTHENTIC = "unauthentic"
    UNKNOWN_VENDOR = "unknown_vendor"
    NOT_FOUND = "not_found"
    METHOD = "method"
    TOO_SLOW = "too_slow"
    TOO_LARGE = "too_large"
    WRONG_TYPE = "wrong_type"
    ENCODED = "encoded"
    SHEDDING = "shedding"
    NOT_DURABLE = "not_durable"
    CUT_OFF = "cut_off"
    FAULT = "fault"


_STATUS_AND_TITLE: dict[Refusal, tuple[int, str]] = {
    Refusal.MALFORMED: (400, "The callback is malformed"),
    Refusal.UNAUTHENTIC: (401, "The callback is not authentic"),
    Refusal.UNKNOWN_VENDOR: (404, "There is no such vendor"),
    Refusal.NOT_FOUND: (404, "There is nothing here"),
    Refusal.METHOD: (405, "Callbacks come by POST"),
    Refusal.TOO_SLOW: (408, "The callback came too slowly"),
    Refusal.TOO_LARGE: (413, "The body is too large"),
    Refusal.WRONG_TYPE: (415, "The body must be application/json in UTF-8"),
    Refusal.ENCODED: (415, "The body must not be encoded"),
    Refusal.SHEDDING: (429, "Too much is in hand; send the callback again"),
    Refusal.NOT_DURABLE: (503, "The callback could not be kept; send it again"),
    Refusal.CUT_OFF: (400, "The body was cut off"),
    Refusal.FAULT: (500, "A fault of ours"),
}


class RefusedError(Exception):
    """A callback is refused.

    Args:
        refusal: which of the closed list.
        detail: one sentence for whoever sends; nothing of the request in it.
        headers: to send along.
    """

    def __init__(self, refusal: Refusal, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(refusal, detail)
        self.refusal = refusal
        self.detail = detail
        self.headers = headers or {}

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _STATUS_AND_TITLE[self.refusal][0]

    def response(self) -> web.Response:
        """Return the problem document."""
        status, title = _STATUS_AND_TITLE[self.refusal]
        document = {
            "type": f"urn:wavekeep:problem:{self.refusal}",
            "title": title,
            "status": status,
            "detail": self.detail,
        }
        return web.Response(
            body=msgspec.json.encode(document), status=status, content_type=CONTENT_TYPE, headers=self.headers
        )
