"""The egress examples let out exactly what the fence lets through."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from downloader.fence import Fence
from shared.errors import PermanentError
from tests.hostile_links import FORBIDDEN_ADDRESSES, FORBIDDEN_NETWORKS, PUBLIC_ADDRESSES

EGRESS = Path(__file__).parents[2] / "deploy/egress"
Network = IPv4Network | IPv6Network


def nft_networks() -> tuple[list[Network], list[Network]]:
    """Return what the nftables example lets out, and what of it does not."""
    text = (EGRESS / "wavekeep.nft").read_text()
    sets = dict(re.findall(r"set (\w+) \{[^}]*elements = \{([^}]*)\}", text))
    assert "ip daddr != @reserved tcp dport $web accept" in text
    (v6,) = re.findall(r"ip6 daddr (\S+) ip6 daddr != @reserved_v6 tcp dport \$web accept", text)
    except_ = [ip_network(entry.strip()) for name in ("reserved", "reserved_v6") for entry in sets[name].split(",")]
    return [ip_network("0.0.0.0/0"), ip_network(v6)], except_


def policy() -> dict[str, Any]:
    """Return the Kubernetes example."""
    found: dict[str, Any] = yaml.safe_load((EGRESS / "networkpolicy.yaml").read_text())
    return found


def policy_networks() -> tuple[list[Network], list[Network]]:
    """Return what the Kubernetes example lets out, and what of it does not."""
    blocks = [peer["ipBlock"] for rule in policy()["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
    return [ip_network(block["cidr"]) for block in blocks], [
        ip_network(each) for block in blocks for each in block["except"]
    ]


def edges(networks: list[Network]) -> Iterator[str]:
    """Yield the first and the last address of each network, and their neighbours outside."""
    for network in networks:
        for number in (int(network[0]) - 1, int(network[0]), int(network[-1]), int(network[-1]) + 1):
            if 0 <= number < 1 << network.max_prefixlen:
                yield str(type(network[0])(number))


def public(address: str) -> bool:
    """Tell what the fence says."""
    try:
        Fence().judge_address(address, 443, scheme="https")
    except PermanentError:
        return False
    return True


@pytest.mark.parametrize("example", [nft_networks, policy_networks])
def test_what_is_let_out_is_what_the_fence_lets_through(example: Any) -> None:
    """At every edge of every network of either, and for the whole table, both say the same."""
    out, but_not = example()
    tried = {
        *edges([*out, *but_not, *map(ip_network, FORBIDDEN_NETWORKS)]),
        *(address for address in (*FORBIDDEN_ADDRESSES, *PUBLIC_ADDRESSES) if "ffff:" not in address.lower()[:8]),
    }
    assert len(tried) > 120
    differing = []
    for text in sorted(tried):
        address = ip_address(text)
        let_out = any(address in network for network in out) and not any(address in network for network in but_not)
        if let_out != public(text):
            differing.append(text)
    assert differing == []


def test_only_https_goes_out_to_the_public() -> None:
    """The ports are the fence's, and nothing is opened beside the broker and the DNS."""
    assert "define web = { 443 }" in (EGRESS / "wavekeep.nft").read_text()
    dns, broker, web = policy()["spec"]["egress"]
    assert policy()["spec"]["policyTypes"] == ["Egress"]
    assert [port["port"] for rule in (dns, broker, web) for port in rule["ports"]] == [53, 53, 5671, 5672, 443]
    assert all("podSelector" in peer for rule in (dns, broker) for peer in rule["to"])
