"""Which link is which: comparing and showing the URLs of files.

Responsible for: reducing a link to what identifies the file (signature and expiry parameters removed), and to what may
be shown in public (no query at all), also within a sentence. It must not judge whether a link may be fetched: that is
the downloader's fence.
"""

import re
from urllib.parse import urlsplit, urlunsplit

_SIGNATURE_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "x-cos-", "x-obs-", "q-")
_SIGNATURE_NAMES = frozenset(
    {
        "awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "accesskeyid",
        "signature", "expires", "expiry", "policy", "key-pair-id", "security-token",
        "sig", "se", "sp", "sv", "sr", "st", "spr", "skoid", "sktid", "skt", "ske", "sks", "skv",
        "auth_key", "sign", "token", "hdnea", "hdnts", "verify",
    }
)  # fmt: skip

_URL = re.compile(r"\b[a-z][a-z0-9+.-]{0,30}://[^\s'\"<>]+", re.IGNORECASE)
_PARAMETERS = re.compile(r"\?[^\s?='\"<>]*=[^\s'\"<>]*")
"""What is left of a link with a raw space in it."""


def identity(url: str) -> str:
    """Return the URL without the signature and expiry parameters of the known stores; other parameters stay in order.

    Two links of one identity lead to the same file (closed list: S3, Google, Azure, Alibaba, Tencent and Huawei
    stores, CloudFront and Akamai tokens). Never raises: what cannot be split is returned as it is.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    kept = [pair for pair in parts.query.split("&") if pair and not _signs(pair.partition("=")[0].lower())]
    return urlunsplit((parts.scheme.lower(), parts.netloc.lower(), parts.path, "&".join(kept), ""))


def public(url: str) -> str:
    """Return the URL with neither credentials, query nor fragment: fit for logs and public events. Never raises."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(unreadable link)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def host_of(url: str) -> str:
    """Return the host of a link, in lower case; empty where it has none. Never raises."""
    try:
        return (urlsplit(url).hostname or "")[:253]
    except ValueError:
        return ""


def public_text(text: str) -> str:
    """Return a sentence of somebody else's with every link in it made public. Never raises."""
    return _PARAMETERS.sub("", _URL.sub(lambda link: public(link[0]), text))


def _signs(name: str) -> bool:
    return name in _SIGNATURE_NAMES or name.startswith(_SIGNATURE_PREFIXES)
