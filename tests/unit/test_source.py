"""Where a callback comes from: the address behind trusted proxies, and the networks it may lie in."""

from ipaddress import ip_address, ip_network

import pytest

from ingress.source import EVERYWHERE, Boundary, Source, client_address, parse_network
from shared.vendors import Vendor

PROXIES = tuple(map(ip_network, ("10.0.0.0/8", "fd00::/8", "127.0.0.1/32", "::1/128")))
CLIENT = "198.51.100.7"
PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        # nobody between
        (CLIENT, (), CLIENT),
        ("2001:db8::7", (), "2001:db8::7"),
        ("::ffff:198.51.100.7", (), CLIENT),
        ("fe80::7%eth0", (), "fe80::7"),
        # a stranger's own header is his own affair
        (CLIENT, ("203.0.113.9",), CLIENT),
        (CLIENT, ("10.0.0.1, 203.0.113.9",), CLIENT),
        # one proxy, and what the client wrote before it
        (PROXY, (CLIENT,), CLIENT),
        (PROXY, (f"203.0.113.9, {CLIENT}",), CLIENT),
        (PROXY, (f"garbage, <script>,, {CLIENT}",), CLIENT),
        (PROXY, (f"10.9.9.9, {CLIENT}",), CLIENT),
        ("::ffff:10.0.0.1", (CLIENT,), CLIENT),
        ("::1", (CLIENT,), CLIENT),
        ("fd00::1", ("2001:db8::7",), "2001:db8::7"),
        # several proxies
        (PROXY, (f"203.0.113.9, {CLIENT}, 10.0.0.2,10.0.0.3",), CLIENT),
        (PROXY, (f"{CLIENT}, ::ffff:10.0.0.2, [fd00::2]:443",), CLIENT),
        # several lines are one list, in order
        (PROXY, ("203.0.113.9", CLIENT), CLIENT),
        (PROXY, (f"203.0.113.9, {CLIENT}", "10.0.0.2"), CLIENT),
        (PROXY, ("", f"\t{CLIENT} "), CLIENT),
        # with a port
        (PROXY, (f"{CLIENT}:567",), CLIENT),
        (PROXY, ("[2001:db8::7]:567",), "2001:db8::7"),
        (PROXY, ("[2001:db8::7]",), "2001:db8::7"),
        (PROXY, ("2001:DB8::7",), "2001:db8::7"),
        (PROXY, ("::ffff:198.51.100.7",), CLIENT),
        (PROXY, ("[::ffff:198.51.100.7]:567",), CLIENT),
        # unknown: nothing, or only proxies
        (None, (), None),
        (None, (CLIENT,), None),
        ("", (CLIENT,), None),
        ("/run/wavekeep.sock", (CLIENT,), None),
        (PROXY, (), None),
        (PROXY, ("",), None),
        (PROXY, ("10.0.0.2",), None),
        (PROXY, ("10.0.0.3, 10.0.0.2:80", "::1"), None),
        # unknown: what cannot be read ends the way, whatever stands before it
        (PROXY, (f"{CLIENT}, garbage",), None),
        (PROXY, (f"{CLIENT},",), None),
        (PROXY, (CLIENT, ""), None),
        (PROXY, (f"{CLIENT}, unknown, 10.0.0.2",), None),
        (PROXY, (f"{CLIENT};",), None),
        (PROXY, (f'"{CLIENT}"',), None),
        (PROXY, (f"{CLIENT}:",), None),
        (PROXY, (f"{CLIENT}:567890",), None),
        (PROXY, (f"{CLIENT}:x",), None),
        (PROXY, (f"{CLIENT}:1:2",), None),
        (PROXY, ("198.51.100.007",), None),
        (PROXY, ("198.51.100",), None),
        (PROXY, ("3325256711",), None),
        (PROXY, ("198.51.100.\u0667",), None),
        (PROXY, ("[2001:db8::7",), None),
        (PROXY, ("[2001:db8::7]x",), None),
        (PROXY, ("2001:db8::7%eth0",), None),
        (PROXY, ("fe80::1%\n2026 callback.accepted",), None),
        (PROXY, ("x" * 100_000,), None),
        (PROXY, ("," * 100_000,), None),
    ],
)
def test_the_client_is_the_last_one_that_is_no_proxy(
    peer: str | None, forwarded: tuple[str, ...], expected: str | None
) -> None:
    """Only what trusted proxies appended counts, read from the right; what cannot be read is nobody's address."""
    found = client_address(Source(peer, forwarded), PROXIES)
    assert found == (None if expected is None else ip_address(expected))


def test_without_trusted_proxies_the_header_means_nothing() -> None:
    """As installed, the connection alone tells the address."""
    assert client_address(Source(PROXY, (CLIENT,)), ()) == ip_address(PROXY)


@pytest.mark.parametrize(
    ("address", "admitted"),
    [
        ("198.51.100.0", True),
        ("198.51.100.255", True),
        ("198.51.101.0", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("203.0.113.5", True),
        ("203.0.113.6", False),
        (None, False),
    ],
)
def test_networks(address: str | None, admitted: bool) -> None:
    """A vendor may call from its own networks of either kind and nowhere else; from nowhere it may not."""
    networks = tuple(map(parse_network, ("198.51.100.0/24", "2001:db8::/32", "203.0.113.5")))
    boundary = Boundary(networks={Vendor.KIE: networks, Vendor.APIBOX: ()})
    judged = None if address is None else ip_address(address)
    assert boundary.restricts(Vendor.KIE)
    assert boundary.admits(Vendor.KIE, judged) is admitted
    for vendor in (Vendor.APIBOX, Vendor.SUNOAPI):
        assert not boundary.restricts(vendor)
        assert boundary.admits(vendor, judged)


def test_everywhere() -> None:
    """Where nothing is configured, nothing is asked."""
    assert not any(EVERYWHERE.restricts(vendor) for vendor in Vendor)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0/8",
        "2001:db8::1/32",
        "::ffff:10.0.0.0/104",
        "1.2.3.4:80",
        "*",
    ],
)
def test_what_is_no_network(text: str) -> None:
    """A network that could never match, or match more than was meant, is refused, without being shown."""
    with pytest.raises(ValueError, match="must") as caught:
        parse_network(text)
    assert not text or text == "*" or text not in str(caught.value)
