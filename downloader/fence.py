"""The fence: which links may be followed, and to which addresses.

Responsible for: judging a URL before it is asked for, every redirect, and every address before a socket is opened to
it. Pure. It must not resolve names or open anything: `downloader.fetch` brings each address here before it connects.

The rule: https on port 443 to public addresses. An operator's `Opening` lets exactly the network it names be reached
by plain http and on other ports too. A link is read strictly, so that no two readers of it can disagree about the
host; what another reader would repair is refused. Details name host, port and address, never path or query.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NoReturn
from urllib.parse import quote, urljoin

from yarl import URL

from shared.errors import PermanentError, Reason

MAX_REDIRECTS = 3
MAX_URL_CHARS = 8_192

_PORTS = {"https": 443, "http": 80}

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<rest>.*)")
_REST = re.compile(r"//(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?P<fragment>#.*)?")
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]+))(?::(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LEFT_AS_IT_IS = "-._~:/?[]@!$&'()*+,;=%"

_FORBIDDEN_V4 = tuple(
    IPv4Network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments, some of them called global
        "192.88.99.0/24",  # the former 6to4 relays
        "168.63.129.16/32",  # a cloud's own host, reachable from inside its machines
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_FORBIDDEN_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: holds an IPv4 address
        "3fff::/20",  # documentation
    )
)
_LOOPBACK = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


@dataclass(frozen=True, slots=True)
class Opening:
    """A network that may also be reached by plain http and on any port, or on exactly one."""

    network: IPv4Network | IPv6Network
    port: int | None = None

    def __str__(self) -> str:
        return str(self.network) if self.port is None else f"{self.network} port {self.port}"

    def covers(self, address: IPv4Address | IPv6Address, port: int) -> bool:
        """Tell whether it opens this address at this port."""
        return self.port in {None, port} and address in self.network


def parse_opening(text: str) -> Opening:
    """Read an opening: `127.0.0.0/8`, `127.0.0.1:8099`, `::1/128`, `[::1]:80`.

    Raises:
        ValueError: it names no network, one with host bits set, or no port between 1 and 65535.
    """
    told = f"{text[:80]!r} is no opening"
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if bracketed:
        named, port_text = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        named, _, port_text = text.partition(":")
    else:
        named, port_text = text, None
    try:
        network = ip_network(named)
    except ValueError as error:
        raise ValueError(
            f"{told}: {error}; write a network or an address, with a port if only that is meant"
        ) from error
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError(f"{told}: write the IPv4 network itself, for addresses are judged unmapped")
    if port_text is None:
        return Opening(network)
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65_535:
        raise ValueError(f"{told}: a port is a number between 1 and 65535")
    return Opening(network, int(port_text))


@dataclass(frozen=True, slots=True)
class Fence:
    """What may be reached.

    Args:
        openings: networks open beyond the rule.
        allowed_hosts: where not empty, the only hosts that may be named: exactly, or as `*.example.com` for everything
            below `example.com`. An opened address written as such needs no entry.

    Raises:
        ValueError: an allowed host is neither.
    """

    openings: tuple[Opening, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.allowed_hosts:
            if not _NAME.fullmatch(pattern.lower().removeprefix("*.")) and _address(pattern) is None:
                raise ValueError(f"{pattern[:80]!r} is no host: write 'files.example.com' or '*.example.com'")

    def judge_url(self, url: str) -> URL:
        """Return the URL as it is to be asked for, or refuse it.

        What is escaped stays as it is, byte for byte, for a signature may cover it; spaces and other characters that
        cannot be sent are escaped, and the fragment is dropped.

        Raises:
            PermanentError: `url_malformed`, `scheme_forbidden`, `port_forbidden`, `host_forbidden` or
                `address_forbidden`.
        """
        if len(url) > MAX_URL_CHARS:
            _refuse(Reason.URL_MALFORMED, f"the link is longer than {MAX_URL_CHARS} characters")
        scheme, rest = _split_scheme(_readable(url))
        parts = _REST.fullmatch(rest)
        if parts is None or (parts["fragment"] is not None and parts["path"] is None):
            _refuse(Reason.URL_MALFORMED, "the link does not have the shape https://host/path")
        host, port = _split_authority(parts["authority"], scheme)
        self._judge_host(host, port, scheme)
        bracketed = f"[{host}]" if ":" in host else host
        explicit = "" if port == _PORTS[scheme] else f":{port}"
        path, query = _escape(parts["path"] or "/"), _escape(parts["query"] or "")
        return URL(f"{scheme}://{bracketed}{explicit}{path}{query}", encoded=True)

    def judge_address(self, address: str, port: int, *, scheme: str) -> None:
        """Let a connection pass, or refuse it: to be asked about every address right before a socket is opened.

        Raises:
            PermanentError: `address_forbidden` where it is neither public nor opened, `scheme_forbidden` or
                `port_forbidden` where it is public but not meant to be reached so.
        """
        parsed = _address(address)
        if parsed is None:
            _refuse(Reason.ADDRESS_FORBIDDEN, f"{address[:80]!r} is no address")
        if any(opening.covers(parsed, port) for opening in self.openings):
            return
        if not _is_public(parsed):
            _refuse(Reason.ADDRESS_FORBIDDEN, f"{parsed} is not a public address")
        _judge_manner(port, scheme)

    def judge_redirect(self, previous: URL, location: str, hop: int) -> URL:
        """Return where a redirect leads, judged like a first URL, or refuse it.

        A step down from https to http needs no rule of its own: plain http passes only towards what is opened.

        Args:
            previous: the URL that answered.
            location: its `Location`, absolute or relative.
            hop: which redirect of this download it is, from 1.

        Raises:
            PermanentError: `too_many_redirects`, or as `judge_url`.
        """
        if hop > MAX_REDIRECTS:
            _refuse(Reason.TOO_MANY_REDIRECTS, f"{previous.host} redirected once more after {MAX_REDIRECTS} redirects")
        target = _readable(location)
        if not target:
            _refuse(Reason.URL_MALFORMED, f"{previous.host} redirected to nowhere")
        if _URL.fullmatch(target):
            return self.judge_url(target)
        try:
            joined = urljoin(str(previous), target)
        except ValueError:
            _refuse(Reason.URL_MALFORMED, f"{previous.host} redirected to what is no link")
        return self.judge_url(joined)

    def _judge_host(self, host: str, port: int, scheme: str) -> None:
        literal = _address(host)
        if literal is not None:
            self.judge_address(host, port, scheme=scheme)
            if not self._opens((literal,), port) and self.allowed_hosts and host not in self.allowed_hosts:
                _refuse(Reason.HOST_FORBIDDEN, f"{host} is none of the allowed hosts")
            return
        if self.allowed_hosts and not any(_matches(host, pattern.lower()) for pattern in self.allowed_hosts):
            _refuse(Reason.HOST_FORBIDDEN, f"{host} is none of the allowed hosts")
        if host.rpartition(".")[2] == "localhost" and not self._opens(_LOOPBACK, port):
            _refuse(Reason.ADDRESS_FORBIDDEN, f"{host} is not a public address")
        if not any(opening.port in {None, port} for opening in self.openings):
            _judge_manner(port, scheme)

    def _opens(self, addresses: Iterable[IPv4Address | IPv6Address], port: int) -> bool:
        return any(opening.covers(address, port) for opening in self.openings for address in addresses)


def _judge_manner(port: int, scheme: str) -> None:
    if scheme != "https":
        _refuse(Reason.SCHEME_FORBIDDEN, f"{scheme} is only for addresses that a setting opens")
    if port != _PORTS["https"]:
        _refuse(Reason.PORT_FORBIDDEN, f"port {port} is only for addresses that a setting opens")


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    # `is_global` alone calls multicast, translated and some reserved addresses global.
    if isinstance(address, IPv4Address):
        allowed = address.is_global and not address.is_multicast
        return allowed and not any(address in network for network in _FORBIDDEN_V4)
    return address in _GLOBAL_V6 and not any(address in network for network in _FORBIDDEN_V6)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address, an IPv4-mapped one as the IPv4 address that it reaches; None where it is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _readable(url: str) -> str:
    if _UNREADABLE.search(url):
        _refuse(Reason.URL_MALFORMED, "the link holds control characters or backslashes")
    return url.strip(" ")


def _split_scheme(url: str) -> tuple[str, str]:
    parts = _URL.fullmatch(url)
    if parts is None:
        _refuse(Reason.URL_MALFORMED, "the link has no scheme")
    scheme = parts["scheme"].lower()
    if scheme not in _PORTS:
        _refuse(Reason.SCHEME_FORBIDDEN, f"{scheme[:20]} is not https")
    return scheme, parts["rest"]


def _split_authority(authority: str, scheme: str) -> tuple[str, int]:
    """Return host and port, the host in its one spelling."""
    if "@" in authority:
        _refuse(Reason.URL_MALFORMED, "the link holds a user before its host")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        _refuse(Reason.URL_MALFORMED, "the link's host is not plainly written")
    port = _PORTS[scheme] if parts["port"] is None else int(parts["port"])
    if not 1 <= port <= 65_535:
        _refuse(Reason.URL_MALFORMED, "the link's port is none")
    if parts["v6"] is not None:
        return _compressed(parts["v6"]), port
    host = parts["name"].lower()
    # What ends in a number is an address to every resolver, in whatever base it is written.
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) and _address(host) is None:
        _refuse(Reason.URL_MALFORMED, "the link's address is not written as four decimal numbers")
    if not _NAME.fullmatch(host):
        _refuse(Reason.URL_MALFORMED, "the link's host is not plainly written")
    return host, port


def _compressed(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except ValueError:
        _refuse(Reason.URL_MALFORMED, "the link's address is no IPv6 address")


def _matches(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _escape(text: str) -> str:
    try:
        # A server's raw bytes come as surrogate escapes; they go back as the bytes they were.
        sent = _STRAY_PERCENT.sub("%25", text).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        _refuse(Reason.URL_MALFORMED, "the link holds half of a character")
    return quote(sent, safe=_LEFT_AS_IT_IS)


def _refuse(reason: Reason, detail: str) -> NoReturn:
    # `from None`: what a parser says about a link may quote its query.
    raise PermanentError(reason, detail) from None
