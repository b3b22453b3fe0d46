"""What an answer says: its status, its framing, and how it failed.

Responsible for: telling from an HTTP answer whether a plain, bounded body follows and how its end will be known, and
for translating aiohttp's failures into ours. Pure but for `watch`, which ties a body to its connection. It must not
read the body.
"""

import asyncio
import re
import ssl
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Literal

import aiohttp
import msgspec
from yarl import URL

from downloader.digests import Promise, promises
from shared.errors import PermanentError, Reason, RetryableError, WavekeepError
from shared.links import public

REDIRECTS = frozenset({301, 302, 303, 307, 308})

_LINK_EXPIRED = frozenset({401, 403, 404, 410, 441})
_PASSING = frozenset({408, 429})
_HTTP_VERSIONS = frozenset({aiohttp.HttpVersion10, aiohttp.HttpVersion11})

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_DATE_IS_STRONG_AFTER = timedelta(seconds=60)
"""A file that changed twice within one second would be two files by one date (source: RFC 9110, 8.8.2.2)."""

Transport = Literal["content_length", "chunked", "close_delimited", "content_range"]


def check_status(response: aiohttp.ClientResponse, *, range_asked: bool = False) -> None:
    """Return if a file, or the part that was asked for, follows; raise `RetryableError` by the status if not."""
    status = response.status
    if status == 200 or (status == 206 and range_asked):
        return
    if status in _LINK_EXPIRED:
        reason = Reason.LINK_EXPIRED
    elif status in _PASSING or 500 <= status <= 599:
        reason = Reason.HTTP_FAILED
    elif 400 <= status <= 499 and not (status == 416 and range_asked):
        reason = Reason.HTTP_REFUSED
    else:
        reason = Reason.ANSWER_INVALID
    raise RetryableError(reason, f"{shown(response)}: answered {status}")


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer tells of a file, by which another answer can be told to be about the very same one.

    Attributes:
        validator: a strong ETag, or the date of the last change: what `If-Range` takes.
        modified: the date of the last change; null where none was told.
        size_bytes: of the whole; null where it was not told.
        promised: digests of the whole.
    """

    validator: str
    modified: str | None = None
    size_bytes: int | None = None
    promised: tuple[Promise, ...] = ()


def known_of(response: aiohttp.ClientResponse) -> Known | None:
    """Return what a whole answer tells of its file; None where nothing surely tells it from another one."""
    validator = validator_of(response)
    if validator is None:
        return None
    return Known(
        validator=validator,
        modified=response.headers.get("Last-Modified"),
        size_bytes=response.content_length,
        promised=promises(response.headers, part=False),
    )


def check_range(response: aiohttp.ClientResponse, *, offset: int, known: Known, max_bytes: int) -> int:
    """Return how many bytes follow: all that are left of the very file whose first `offset` bytes are here.

    Servers that heed `Range` and not `If-Range` exist, so the answer itself must tell that it is the same file.

    Raises:
        RetryableError: `answer_invalid`: it is another part, or a part of another file.
        PermanentError: the whole would be over `max_bytes`.
    """
    told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if told is None:
        raise RetryableError(Reason.ANSWER_INVALID, f"{shown(response)}: a part that does not say which")
    first, last, total = map(int, told.groups())
    if first != offset or last != total - 1 or last < first:
        raise RetryableError(
            Reason.ANSWER_INVALID, f"{shown(response)}: bytes {first}-{last} of {total}, not from {offset}"
        )
    tag, modified = response.headers.get("ETag", "").strip(), response.headers.get("Last-Modified")
    by_tag = known.validator.startswith('"')
    same = (
        tag == known.validator if by_tag else modified == known.validator,
        known.modified is None or modified in {known.modified, None},
        known.size_bytes in {None, total},
    )
    if not all(same):
        raise RetryableError(Reason.ANSWER_INVALID, f"{shown(response)}: not surely a part of the same file")
    if response.content_length not in {None, last - first + 1}:
        raise RetryableError(Reason.ANSWER_INVALID, f"{shown(response)}: its length is not that of its range")
    if total > max_bytes:
        raise PermanentError(Reason.TOO_LARGE, f"{shown(response)}: {total} bytes, over {max_bytes}")
    return last - first + 1


def validator_of(response: aiohttp.ClientResponse) -> str | None:
    """Return what tells this very file from another one under its link; None where nothing surely does.

    A strong ETag, else a date of the last change that lies well before the answer's own.
    """
    if response.headers.get("Accept-Ranges", "").strip().lower() == "none":
        return None
    tag = response.headers.get("ETag", "").strip()
    if tag:
        return tag if _STRONG_ETAG.fullmatch(tag) else None
    changed = response.headers.get("Last-Modified", "").strip()
    try:
        age = parsedate_to_datetime(response.headers.get("Date", "")) - parsedate_to_datetime(changed)
    except (TypeError, ValueError):
        return None
    return changed if age >= _DATE_IS_STRONG_AFTER else None


def check_framing(response: aiohttp.ClientResponse, max_bytes: int) -> Transport:
    """Tell how the end of the body will be known; refuse an encoded, an odd and an oversized one."""
    headers = response.headers
    encoding = ", ".join(headers.getall("Content-Encoding", ())).strip().lower()
    transfer = ", ".join(headers.getall("Transfer-Encoding", ())).strip().lower()
    if encoding not in {"", "identity"} or transfer not in {"", "chunked"} or response.version not in _HTTP_VERSIONS:
        raise RetryableError(Reason.ANSWER_INVALID, f"{shown(response)}: not a plain body of HTTP/1")
    if transfer:
        return "chunked"
    length = response.content_length
    if length is None:
        return "close_delimited"
    if length > max_bytes:
        raise PermanentError(Reason.TOO_LARGE, f"{shown(response)}: {length} bytes, over {max_bytes}")
    return "content_length"


def watch(response: aiohttp.ClientResponse) -> asyncio.Future[None] | None:
    """See to it that a body ends with its connection; return the future of that end while the line is open.

    aiohttp leaves a reader waiting when the framing breaks in mid-body, and ends a close-delimited body in the same
    way whether the line was closed or reset. Only the connection's own end tells.
    """
    connection = response.connection
    if connection is None or connection.protocol is None:
        return None
    closed = connection.protocol.closed
    content = response.content

    def end_body(ended: asyncio.Future[None]) -> None:
        broken = ended.cancelled() or ended.exception() is not None
        if not content.is_eof() and content.exception() is None:
            how = "broke" if broken else "ended"
            content.set_exception(aiohttp.ClientPayloadError(f"the connection {how} in mid-body"))

    if closed is not None:
        closed.add_done_callback(end_body)
    return closed


def translated(error: aiohttp.ClientError | OSError, target: URL) -> WavekeepError:
    """Return what it means in our words that no answer came."""
    if isinstance(error, aiohttp.InvalidURL):
        return PermanentError(Reason.URL_MALFORMED, f"{public(str(target))}: the client cannot ask for it")
    if isinstance(error, TimeoutError):
        reason, told = Reason.TIMED_OUT, "no answer in time"
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        reason, told = Reason.HOST_UNRESOLVED, "its name is not known"
    elif isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        reason, told = Reason.CERTIFICATE_INVALID, _told(error)
    elif isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        reason, told = Reason.CONNECTION_FAILED, _told(error)
    else:
        reason, told = Reason.ANSWER_INVALID, "the answer is not HTTP"
    return RetryableError(reason, f"{public(str(target))}: {told}")


def cut(error: Exception, response: aiohttp.ClientResponse) -> RetryableError:
    """Return what it means in our words that a body broke off."""
    return RetryableError(Reason.BODY_CUT, f"{shown(response)}: {_told(error)}")


def shown(response: aiohttp.ClientResponse) -> str:
    """Return where the answer came from, fit for logs."""
    return public(str(response.url))


def media_type(response: aiohttp.ClientResponse) -> str | None:
    """Return the media type, lower case and without parameters; None where there is none."""
    told = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return told[:100].encode("ascii", "replace").decode() or None


def _told(error: Exception) -> str:
    """Return what an error says of itself without naming a URL: the system's words, or only its kind."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        certificate_error = error.certificate_error
        return getattr(certificate_error, "verify_message", "") or type(certificate_error).__name__
    strerror = getattr(error, "strerror", None)
    return str(strerror or type(error).__name__)
