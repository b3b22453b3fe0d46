"""W3C trace context: one trace from the callback to the notification.

Responsible for: reading and making `traceparent` values (source: W3C Trace Context, section 3.2). It must not send
spans anywhere; the value travels in events and logs, where any collector finds it.
"""

import re
import secrets

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def start(incoming: str | None = None) -> str:
    """Return a `traceparent` of a new span: within the incoming trace where that is valid, else in a new trace."""
    if incoming is not None and _TRACEPARENT.fullmatch(incoming):
        version, trace_id, _, flags = incoming.split("-")
        return f"{version}-{trace_id}-{secrets.token_hex(8)}-{flags}"
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def trace_id(traceparent: str | None) -> str | None:
    """Return the 32 hex digits that all spans of one trace share, or None where there is no valid value."""
    return traceparent.split("-")[1] if traceparent and _TRACEPARENT.fullmatch(traceparent) else None
