"""The tables of hostile addresses and spellings, as the tests of the fence and of what mirrors it read them.

Responsible for: the addresses that are not public, neighbours of theirs that are, and every way to write loopback. It
must not judge any of them.
"""

from ipaddress import ip_network
from types import MappingProxyType

FORBIDDEN_NETWORKS = (
    "127.0.0.0/8",
    "0.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "198.18.0.0/15",
    "192.88.99.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "168.63.129.16/32",
    "::/128",
    "::1/128",
    "fe80::/10",
    "fc00::/7",
    "fec0::/10",
    "ff00::/8",
    "::/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "2002::/16",
    "2001::/23",
    "2001:db8::/32",
    "3fff::/20",
    "100::/64",
    "5f00::/16",
    "4000::/3",
)
SINGLE_ADDRESSES = (
    "169.254.169.254",
    "100.100.100.200",
    "192.0.0.9",
    "192.0.0.192",
    "224.0.1.1",
    "255.255.255.255",
    "::ffff:127.0.0.1",
    "::ffff:10.1.2.3",
    "::ffff:a9fe:a9fe",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "fd00:ec2::254",
    "ff0e::1",
)
FORBIDDEN_ADDRESSES = tuple(
    dict.fromkeys(
        [str(ip_network(network)[at]) for network in FORBIDDEN_NETWORKS for at in (0, -1)] + list(SINGLE_ADDRESSES)
    )
)
PUBLIC_ADDRESSES = (
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "168.63.129.15",
    "168.63.129.17",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.88.98.255",
    "192.167.255.255",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2400:cb00::1",
    "2606:4700::1111",
    "2a00:1450:4001::200e",
    "::ffff:8.8.8.8",
)

KINDS = MappingProxyType(
    {
        "plain": (
            "{scheme}://127.0.0.1:{port}{path}",
            "{scheme}://127.255.255.254:{port}{path}",
            "{scheme}://0.0.0.0:{port}{path}",
            "{scheme}://localhost:{port}{path}",
            "{scheme}://a.localhost:{port}{path}",
        ),
        "decimal": ("{scheme}://2130706433:{port}{path}", "{scheme}://0:{port}{path}"),
        "octal": (
            "{scheme}://017700000001:{port}{path}",
            "{scheme}://0177.0.0.1:{port}{path}",
            "{scheme}://127.0.0.01:{port}{path}",
        ),
        "hex": (
            "{scheme}://0x7f000001:{port}{path}",
            "{scheme}://0x7f.1:{port}{path}",
            "{scheme}://0X7F.0x0.0X0.0x1:{port}{path}",
        ),
        "short": ("{scheme}://127.1:{port}{path}", "{scheme}://127.0.1:{port}{path}"),
        "trailing dot": ("{scheme}://127.0.0.1.:{port}{path}", "{scheme}://localhost.:{port}{path}"),
        "percent-encoded": (
            "{scheme}://127%2e0.0.1:{port}{path}",
            "{scheme}://%31%32%37.0.0.1:{port}{path}",
            "{scheme}://local%68ost:{port}{path}",
        ),
        "full-width digits": ("{scheme}://\uff11\uff12\uff17.0.0.1:{port}{path}",),
        "circled digits": (
            "{scheme}://\u2460\u2461\u2466.0.0.1:{port}{path}",
            "{scheme}://\u24dbocalhost:{port}{path}",
        ),
        "ideographic dot": ("{scheme}://127\u30020\u30020\u30021:{port}{path}",),
        "upper case": ("{scheme}://LOCALHOST:{port}{path}", "{SCHEME}://127.0.0.1:{port}{path}"),
        "IPv6": (
            "{scheme}://[::ffff:127.0.0.1]:{port}{path}",
            "{scheme}://[::FFFF:7F00:1]:{port}{path}",
            "{scheme}://[0:0:0:0:0:ffff:127.0.0.1]:{port}{path}",
        ),
        "user:pw@": (
            "{scheme}://user:pw@127.0.0.1:{port}{path}",
            "{scheme}://files.example.com@127.0.0.1:{port}{path}",
        ),
        "a@b@c": ("{scheme}://a@files.example.com@127.0.0.1:{port}{path}",),
        "#@": ("{scheme}://127.0.0.1:{port}#@files.example.com{path}",),
        "backslash": (
            "{scheme}://127.0.0.1:{port}\\@files.example.com{path}",
            "{scheme}:\\\\127.0.0.1:{port}\\a.wav",
        ),
        "tab": ("{scheme}://127.0.\t0.1:{port}{path}",),
        "CR": ("{scheme}://127.0.0.1\r:{port}{path}",),
        "LF": ("{scheme}://127.0.0.1:{port}/a\n.wav",),
        "NUL": ("{scheme}://127.0.0.1:{port}\0.files.example.com{path}",),
        "empty host": ("{scheme}://:{port}{path}",),
        "scheme-relative": ("//127.0.0.1:{port}{path}",),
    }
)
"""Ways to write a link to loopback, by kind; to be filled in by `spelled`."""

SPELLINGS = tuple(template for templates in KINDS.values() for template in templates)


def spelled(template: str, port: int, *, scheme: str = "https", path: str = "/a.wav") -> str:
    """Return one such link."""
    return template.format(scheme=scheme, SCHEME=scheme.upper(), port=port, path=path)
