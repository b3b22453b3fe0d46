"""The egress example in the kernel: from a container and from the host, only what is public is reached."""

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest

from tests.hostile_links import FORBIDDEN_ADDRESSES, PUBLIC_ADDRESSES
from tests.integration.namespaces import Internet, Target, internet, within
from tests.packages import require

RULES = Path(__file__).parents[2] / "deploy/egress/wavekeep.nft"
USER = 10_001
RESOLVER, BROKER = "10.53.0.53", "10.56.0.72"
UNROUTABLE = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")


def routable(text: str) -> bool:
    """Tell whether a kernel lets this be the address of a machine somewhere else."""
    address = ip_address(text)
    if address.version == 6:
        odd = address.is_multicast or address.is_link_local or address.is_loopback or address.is_unspecified
        return not odd and int(address) >> 32 != 0 and address.ipv4_mapped is None
    return not any(address in IPv4Network(network) for network in UNROUTABLE)


INSIDE = tuple(filter(routable, FORBIDDEN_ADDRESSES))
PUBLIC = tuple(filter(routable, PUBLIC_ADDRESSES))


def rules(folder: Path) -> Path:
    """Write the example with what is marked "yours" filled in."""
    text = RULES.read_text()
    for old, new in (("resolver = { 127.0.0.53 }", RESOLVER), ("broker = { 127.0.0.1 }", BROKER)):
        assert old in text
        text = text.replace(old, f"{old.partition(' ')[0]} = {{ {new} }}")
    written = folder / "wavekeep.nft"
    written.write_text(text)
    return written


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    """A world with every address of the tables, a resolver and a broker."""
    with internet([*INSIDE, *PUBLIC, RESOLVER, BROKER], ports=[80, 443, 5672], resolvers=[RESOLVER]) as found:
        yield found


def test_the_rules_can_be_read() -> None:
    """The kernel's own tool finds no fault in the file as it is shipped."""
    done = subprocess.run([require("nft", "nftables"), "-c", "-f", RULES], capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("Rules can be checked by root only on this machine.")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("place", ["container", "host"])
def test_only_the_public_is_reached(world: Internet, tmp_path: Path, place: str) -> None:
    """What a taken-over downloader could reach before, it reaches no more: neither inside nor on another port."""
    nft = require("nft", "nftables")
    namespace = {"container": world.container, "host": world.host}[place]
    user = {"container": 0, "host": USER}[place]
    web: list[Target] = [("tcp", address, 443) for address in (*INSIDE, *PUBLIC)]
    needed: list[Target] = [("udp", RESOLVER, 53), ("tcp", BROKER, 5672)]
    other: list[Target] = [
        ("tcp", PUBLIC[0], 80),
        ("tcp", PUBLIC[0], 5672),
        ("tcp", BROKER, 443),
        ("tcp", RESOLVER, 80),
    ]
    everything = [*web, *needed, *other]
    within(world.host, [nft, "flush", "ruleset"])
    assert world.reached(namespace, everything, user=user) == everything

    within(world.host, [nft, "-f", str(rules(tmp_path))])
    within(world.host, [nft, "-f", str(rules(tmp_path))])  # again, as after a change
    reached = world.reached(namespace, everything, user=user)
    assert reached == [*(("tcp", address, 443) for address in PUBLIC), *needed]


def test_nobody_else_is_held(world: Internet, tmp_path: Path) -> None:
    """Other users of the host reach what they reached before."""
    nft = require("nft", "nftables")
    within(world.host, [nft, "-f", str(rules(tmp_path))])
    targets: list[Target] = [("tcp", address, port) for address in (INSIDE[0], PUBLIC[0]) for port in (80, 443)]
    assert world.reached(world.host, targets, user=USER + 1) == targets
