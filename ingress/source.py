"""Where a callback comes from: the judgement on networks.

Responsible for: finding the address of the client behind the proxies that are trusted, and whether it lies in the
networks that a vendor may call from. A restriction, never a proof. Pure. It must not read requests or settings.

Whoever calls writes `X-Forwarded-For` as he likes, and every proxy appends whom it saw: only what trusted proxies have
appended is true, and that is the end of the list. So it is read from the right, as far as the proxies are trusted; the
leftmost address is whatever the client wishes. What cannot be read is nobody's address, and lies in no network.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import MappingProxyType

from shared.vendors import Vendor

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")
_PORT = re.compile(r":[0-9]{1,5}")
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a request says it comes from.

    Attributes:
        peer: the address at the other end of the connection; None where it has none.
        forwarded: every line of `X-Forwarded-For`, in order.
    """

    peer: str | None = None
    forwarded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Where callbacks may come from.

    Attributes:
        networks: of each vendor; without any, it may call from everywhere.
        proxies: the networks of the reverse proxies that are believed.
    """

    networks: Mapping[Vendor, tuple[Network, ...]] = field(default_factory=lambda: MappingProxyType({}))
    proxies: tuple[Network, ...] = ()

    def restricts(self, vendor: Vendor) -> bool:
        """Tell whether it is asked where the vendor's callbacks come from."""
        return bool(self.networks.get(vendor))

    def admits(self, vendor: Vendor, address: Address | None) -> bool:
        """Tell whether a vendor may call from an address; from an unknown one only where nothing is asked."""
        return not self.restricts(vendor) or (address is not None and _lies_in(address, self.networks[vendor]))


EVERYWHERE = Boundary()
"""No vendor is asked where it calls from."""


def client_address(source: Source, proxies: Sequence[Network]) -> Address | None:
    """Return the address of the client: the last one on the way that is no trusted proxy; None where it is unknown."""
    address = _read((source.peer or "").partition("%")[0])
    if address is None or not _lies_in(address, proxies):
        return address
    for entry in reversed(",".join(source.forwarded).split(",")):
        address = _read(_without_port(entry.strip(" \t")))
        if address is None or not _lies_in(address, proxies):
            return address
    return None


def parse_network(text: str) -> Network:
    """Read a network in CIDR form, or a single address.

    Raises:
        ValueError: it is none; without showing it.
    """
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError(
            "must be networks such as 192.0.2.0/24 or 2001:db8::/32, with no bit set behind the prefix"
        ) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise ValueError("must name the IPv4 networks themselves, not as ::ffff:…")
    return network


def _without_port(entry: str) -> str:
    """Take off the port that some proxies append: `192.0.2.1:567`, `[2001:db8::1]:567`."""
    if (bracketed := _BRACKETED.fullmatch(entry)) is not None:
        return bracketed[1]
    host, colon, port = entry.partition(":")
    return host if "." in host and _PORT.fullmatch(colon + port) else entry


def _read(text: str) -> Address | None:
    """Read an address; an IPv4 one within an IPv6 one is that. None where it is none."""
    if "%" in text:  # a zone may be any text at all, and means nothing to another machine
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _lies_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
