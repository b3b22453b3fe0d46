"""The fence, over the whole table of hostile addresses, spellings, schemes, ports and redirects."""

from ipaddress import ip_network

import pytest
from yarl import URL

from downloader.fence import Fence, Opening, parse_opening
from shared.errors import PermanentError, Reason
from tests.hostile_links import FORBIDDEN_ADDRESSES, KINDS, PUBLIC_ADDRESSES, SPELLINGS, spelled

CLOSED = Fence()

MALFORMED = (
    # decimal, octal, hex and short addresses
    "https://2130706433/a.wav",
    "https://017700000001/a.wav",
    "https://0177.0.0.1/a.wav",
    "https://0x7f000001/a.wav",
    "https://0X7F.0.0.1/a.wav",
    "https://0x7f.1/a.wav",
    "https://127.1/a.wav",
    "https://127.0.1/a.wav",
    "https://0/a.wav",
    "https://127.0.0.01/a.wav",
    "https://127.0.0.256/a.wav",
    "https://1.127.0.0.1/a.wav",
    # trailing dots and empty labels
    "https://127.0.0.1./a.wav",
    "https://localhost./a.wav",
    "https://files.example.com./a.wav",
    "https://files..example.com/a.wav",
    "https://.example.com/a.wav",
    # escaped and look-alike characters
    "https://127%2e0.0.1/a.wav",
    "https://%31%32%37.0.0.1/a.wav",
    "https://local%68ost/a.wav",
    "https://\uff11\uff12\uff17.0.0.1/a.wav",  # full-width digits
    "https://\u2460\u2461\u2466.0.0.1/a.wav",  # circled digits
    "https://127\u30020\u30020\u30021/a.wav",  # ideographic dots
    "https://files\uff0eexample.com/a.wav",
    "https://\u24c1ocalhost/a.wav",
    "https://files.ex\u00adample.com/a.wav",
    "https://files.example.com\uff0f@127.0.0.1/a.wav",
    # users and readers that disagree
    "https://user:pw@files.example.com/a.wav",
    "https://user@127.0.0.1/a.wav",
    "https://@files.example.com/a.wav",
    "https://a@b@files.example.com/a.wav",
    "https://files.example.com@127.0.0.1/a.wav",
    "https://127.0.0.1#@files.example.com/a.wav",
    "https://files.example.com#@127.0.0.1/a.wav",
    "https://files.example.com\\@127.0.0.1/a.wav",
    "https:\\\\127.0.0.1\\a.wav",
    "https://files.example.com/\\127.0.0.1/a.wav",
    # control characters
    "https://127.0.0.1\t/a.wav",
    "https://files.exa\tmple.com/a.wav",
    "https://files.example.com\r\nHost: inside/a.wav",
    "https://files.example.com/a.wav\r\nX: y",
    "https://files.example.com/a\n.wav",
    "https://files.example.com/a.wav\x00",
    "\thttps://files.example.com/a.wav",
    "https://files.example.com/\x85.wav",
    # no host, no scheme, no port, no address
    "https:///a.wav",
    "https://",
    "https:",
    "https://:443/a.wav",
    "https:files.example.com/a.wav",
    "https:/files.example.com/a.wav",
    "//files.example.com/a.wav",
    "/a.wav",
    "files.example.com/a.wav",
    "",
    " ",
    "://files.example.com/a.wav",
    "https://files.example.com:/a.wav",
    "https://files.example.com:0/a.wav",
    "https://files.example.com:65536/a.wav",
    "https://files.example.com:443x/a.wav",
    "https://files.example.com:-443/a.wav",
    "https://files.example.com:\u0664\u0664\u0663/a.wav",
    "https://[::1/a.wav",
    "https://::1/a.wav",
    "https://[127.0.0.1]/a.wav",
    "https://[::1]files.example.com/a.wav",
    "https://[fe80::1%25eth0]/a.wav",
    "https://[v1.x]/a.wav",
    "https://files example.com/a.wav",
    "https://-files.example.com/a.wav",
    "https://" + "a" * 64 + ".example.com/a.wav",
    "https://" + "a." * 130 + "com/a.wav",
    "https://files.example.com/" + "a" * 8_192,
    "https://files.example.com/\ud800.wav",
)
INSIDE = (
    "https://127.0.0.1/a.wav",
    "HTTPS://127.0.0.1/a.wav",
    "https://127.0.0.1:443/a.wav",
    "https://[::1]/a.wav",
    "https://[0:0:0:0:0:0:0:1]/a.wav",
    "https://[::FFFF:127.0.0.1]/a.wav",
    "https://[::ffff:7f00:1]/a.wav",
    "https://0.0.0.0/a.wav",
    "https://169.254.169.254/latest/meta-data",
    "https://localhost/a.wav",
    "https://LOCALHOST/a.wav",
    "https://a.localhost/a.wav",
)
OTHER_SCHEMES = (
    "http://files.example.com/a.wav",
    "HTTP://files.example.com/a.wav",
    "http://8.8.8.8/a.wav",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "ftp://files.example.com/a.wav",
    "gopher://127.0.0.1:6379/_",
    "data:audio/wav;base64,UklGRg==",
    "ws://files.example.com/",
    "javascript:alert(1)",
    "tcp://files.example.com:443/",
    "unix:///var/run/docker.sock",
    "blob:https://files.example.com/a",
)
OTHER_PORTS = (
    "https://files.example.com:80/a.wav",
    "https://files.example.com:8443/a.wav",
    "https://files.example.com:22/a.wav",
    "https://8.8.8.8:6379/a.wav",
    "https://[2606:4700::1111]:8443/a.wav",
)
PASSING = (
    ("https://files.example.com/a.wav", "https://files.example.com/a.wav"),
    ("HTTPS://Files.EXAMPLE.com/A.wav", "https://files.example.com/A.wav"),
    ("https://files.example.com:443/a.wav", "https://files.example.com/a.wav"),
    ("https://files.example.com", "https://files.example.com/"),
    ("https://files.example.com?id=1", "https://files.example.com/?id=1"),
    ("https://files.example.com/a.wav#t=10", "https://files.example.com/a.wav"),
    ("  https://files.example.com/a.wav ", "https://files.example.com/a.wav"),
    ("https://files.example.com/My Song_Lead Vocal.wav", "https://files.example.com/My%20Song_Lead%20Vocal.wav"),
    ("https://files.example.com/M\u00fcde.wav", "https://files.example.com/M%C3%BCde.wav"),
    ("https://files.example.com/100%.wav", "https://files.example.com/100%25.wav"),
    (
        "https://files.example.com/a%2Fb%20c.wav?sig=a%2Fb%2B+x",
        "https://files.example.com/a%2Fb%20c.wav?sig=a%2Fb%2B+x",
    ),
    ("https://files.example.com/a/../b.wav?u=http://x@y/", "https://files.example.com/a/../b.wav?u=http://x@y/"),
    ("https://my_bucket.s3.example.com/a|b.wav", "https://my_bucket.s3.example.com/a%7Cb.wav"),
    ("https://xn--mnchen-3ya.example/a.wav", "https://xn--mnchen-3ya.example/a.wav"),
    ("https://8.8.8.8/a.wav", "https://8.8.8.8/a.wav"),
    ("https://[2606:4700:0:0::1111]/a.wav", "https://[2606:4700::1111]/a.wav"),
    ("https://files/a.wav", "https://files/a.wav"),
)


def refusal(fence: Fence, url: str) -> Reason:
    """Return why the fence refuses a URL."""
    with pytest.raises(PermanentError) as caught:
        fence.judge_url(url)
    return caught.value.reason


def address_refusal(fence: Fence, address: str, port: int = 443, scheme: str = "https") -> Reason:
    """Return why the fence refuses a connection."""
    with pytest.raises(PermanentError) as caught:
        fence.judge_address(address, port, scheme=scheme)
    return caught.value.reason


def literal(address: str) -> str:
    """Return the URL that names an address itself."""
    return f"https://[{address}]/a.wav" if ":" in address else f"https://{address}/a.wav"


@pytest.mark.parametrize("address", FORBIDDEN_ADDRESSES)
def test_no_address_inside_is_reached(address: str) -> None:
    """Neither as an address to connect to nor as the host of a URL does a reserved address pass."""
    assert address_refusal(CLOSED, address) is Reason.ADDRESS_FORBIDDEN
    assert refusal(CLOSED, literal(address)) is Reason.ADDRESS_FORBIDDEN


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_public_addresses_are_reached(address: str) -> None:
    """Neighbours of the reserved networks are ordinary addresses."""
    CLOSED.judge_address(address, 443, scheme="https")
    assert CLOSED.judge_url(literal(address)).scheme == "https"


@pytest.mark.parametrize("address", ["", "files.example.com", "127.1", "0x7f000001", "1.2.3.4/32", "fe80::1%1"])
def test_what_is_no_public_address_is_not_connected_to(address: str) -> None:
    """An address that cannot be read, or that names a zone, is refused rather than guessed."""
    assert address_refusal(CLOSED, address) is Reason.ADDRESS_FORBIDDEN


@pytest.mark.parametrize("url", MALFORMED)
def test_ambiguous_spellings_are_refused(url: str) -> None:
    """What two readers could understand differently is malformed, whatever any of them would make of it."""
    assert refusal(CLOSED, url) is Reason.URL_MALFORMED


@pytest.mark.parametrize("url", MALFORMED)
def test_openings_do_not_make_spellings_readable(url: str) -> None:
    """An opening widens what may be reached, never how it may be written."""
    assert refusal(Fence((parse_opening("0.0.0.0/0"), parse_opening("::/0"))), url) is Reason.URL_MALFORMED


@pytest.mark.parametrize("template", SPELLINGS)
def test_no_spelling_of_loopback_passes(template: str) -> None:
    """All 41 ways to write loopback are refused, and none of them for want of a right port."""
    assert refusal(CLOSED, spelled(template, 443)) in {Reason.URL_MALFORMED, Reason.ADDRESS_FORBIDDEN}


def test_every_kind_of_spelling_is_tried() -> None:
    """The table holds every kind of spelling that was found to fool a client, 41 in all."""
    assert all(KINDS.values())
    assert len(set(SPELLINGS)) == 41


@pytest.mark.parametrize("url", INSIDE)
def test_plain_spellings_of_inside_are_refused(url: str) -> None:
    """Loopback and the clouds' metadata are refused before any name is resolved."""
    assert refusal(CLOSED, url) is Reason.ADDRESS_FORBIDDEN


@pytest.mark.parametrize("url", OTHER_SCHEMES)
def test_only_https(url: str) -> None:
    """Without an opening, plain http and every other scheme are forbidden."""
    assert refusal(CLOSED, url) is Reason.SCHEME_FORBIDDEN


@pytest.mark.parametrize("url", OTHER_PORTS)
def test_only_port_443(url: str) -> None:
    """Without an opening, every other port is forbidden."""
    assert refusal(CLOSED, url) is Reason.PORT_FORBIDDEN


def test_public_addresses_only_in_the_public_manner() -> None:
    """A connection by http or to another port is refused at the socket too."""
    assert address_refusal(CLOSED, "8.8.8.8", 80, "http") is Reason.SCHEME_FORBIDDEN
    assert address_refusal(CLOSED, "8.8.8.8", 8_443) is Reason.PORT_FORBIDDEN


@pytest.mark.parametrize(("url", "asked"), PASSING)
def test_ordinary_links_pass_unchanged(url: str, asked: str) -> None:
    """What is escaped keeps every byte that a signature may cover; only what cannot be sent is escaped."""
    assert str(CLOSED.judge_url(url)) == asked


def test_openings_open_exactly_what_they_name() -> None:
    """An opened network is reached by both schemes on any port; with a port, only there; nothing beside it is."""
    fence = Fence((parse_opening("127.0.0.0/8"), parse_opening("10.0.0.7:8099"), parse_opening("[fd00::1]:80")))
    fence.judge_address("127.9.9.9", 8_080, scheme="http")
    fence.judge_address("::ffff:127.0.0.1", 8_080, scheme="http")
    fence.judge_address("10.0.0.7", 8_099, scheme="http")
    fence.judge_address("fd00::1", 80, scheme="https")
    for address, port in [("128.0.0.1", 8_080), ("8.8.8.8", 80)]:
        assert address_refusal(fence, address, port, "http") is Reason.SCHEME_FORBIDDEN
    for address, port in [("10.0.0.7", 8_098), ("10.0.0.8", 8_099), ("fd00::1", 81), ("fd00::2", 80), ("::1", 80)]:
        assert address_refusal(fence, address, port, "http") is Reason.ADDRESS_FORBIDDEN


def test_openings_let_urls_through_that_could_lead_to_them() -> None:
    """A literal is judged at once; a name passes by http if an opening could apply, and its address decides later."""
    fence = Fence((parse_opening("127.0.0.0/8"),))
    assert str(fence.judge_url("http://127.0.0.1:8099/a b.wav")) == "http://127.0.0.1:8099/a%20b.wav"
    assert str(fence.judge_url("http://localhost:8099/")) == "http://localhost:8099/"
    assert fence.judge_url("http://files/a.wav").port == 80
    assert refusal(fence, "http://8.8.8.8/a.wav") is Reason.SCHEME_FORBIDDEN
    assert refusal(fence, "http://10.0.0.1/a.wav") is Reason.ADDRESS_FORBIDDEN
    assert address_refusal(fence, "8.8.8.8", 80, "http") is Reason.SCHEME_FORBIDDEN
    assert refusal(fence, "ftp://127.0.0.1/a.wav") is Reason.SCHEME_FORBIDDEN


def test_an_opening_with_a_port_lets_no_other_port_through() -> None:
    """The port of an opening binds names as well as addresses."""
    fence = Fence((parse_opening("10.0.0.7:8099"),))
    assert fence.judge_url("http://files:8099/a.wav").port == 8_099
    assert refusal(fence, "http://files:8098/a.wav") is Reason.SCHEME_FORBIDDEN
    assert refusal(fence, "https://files:8098/a.wav") is Reason.PORT_FORBIDDEN
    assert refusal(fence, "https://localhost:8099/a.wav") is Reason.ADDRESS_FORBIDDEN


@pytest.mark.parametrize(
    ("text", "network", "port"),
    [
        ("127.0.0.0/8", "127.0.0.0/8", None),
        ("127.0.0.1", "127.0.0.1/32", None),
        ("127.0.0.1:8099", "127.0.0.1/32", 8_099),
        ("10.0.0.0/8:80", "10.0.0.0/8", 80),
        ("::1", "::1/128", None),
        ("fd00::/8", "fd00::/8", None),
        ("[::1]:80", "::1/128", 80),
        ("[fd00::/8]", "fd00::/8", None),
    ],
)
def test_openings_are_read(text: str, network: str, port: int | None) -> None:
    """Networks and addresses of both families are read, with and without a port."""
    assert parse_opening(text) == Opening(ip_network(network), port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "files.example.com",
        "127.0.0.1/8",
        "127.0.0.0/33",
        "127.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:http",
        "127.0.0.1:+80",
        "[::1]:",
        "[::1",
        "[::1]80",
        "[]:80",
        "::ffff:127.0.0.1",
        "*",
    ],
)
def test_openings_that_name_nothing_are_refused(text: str) -> None:
    """A setting that opens something unclear is told to the operator in a sentence, not guessed."""
    with pytest.raises(ValueError, match="is no opening: "):
        parse_opening(text)


@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("https://files.example.com/a.wav", True),
        ("https://FILES.example.com/a.wav", True),
        ("https://a.cdn.example.net/a.wav", True),
        ("https://a.b.cdn.example.net/a.wav", True),
        ("https://8.8.8.8/a.wav", True),
        ("http://127.0.0.1:8099/a.wav", True),
        ("https://cdn.example.net/a.wav", False),
        ("https://evilcdn.example.net/a.wav", False),
        ("https://files.example.com.evil.net/a.wav", False),
        ("https://example.com/a.wav", False),
        ("https://8.8.4.4/a.wav", False),
    ],
)
def test_allowed_hosts_are_the_only_hosts(url: str, passes: bool) -> None:
    """A list of hosts admits those named and those below a wildcard; an opened address needs no entry."""
    fence = Fence((parse_opening("127.0.0.1:8099"),), ("Files.Example.com", "*.cdn.example.net", "8.8.8.8"))
    if passes:
        fence.judge_url(url)
    else:
        assert refusal(fence, url) is Reason.HOST_FORBIDDEN


@pytest.mark.parametrize("host", ["", "*", "*.", "https://example.com", "example.com/a", "a*.example.com", "exa mple"])
def test_allowed_hosts_that_name_nothing_are_refused(host: str) -> None:
    """A pattern that could never match, or matches everything, is an error at start."""
    with pytest.raises(ValueError, match="is no host"):
        Fence(allowed_hosts=(host,))


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://127.0.0.1/a.wav", Reason.ADDRESS_FORBIDDEN),
        ("https://[::1]/a.wav", Reason.ADDRESS_FORBIDDEN),
        ("//169.254.169.254/latest", Reason.ADDRESS_FORBIDDEN),
        ("//localhost/a.wav", Reason.ADDRESS_FORBIDDEN),
        ("file:///etc/passwd", Reason.SCHEME_FORBIDDEN),
        ("http://files.example.com/a.wav", Reason.SCHEME_FORBIDDEN),
        ("HTTP://files.example.com/a.wav", Reason.SCHEME_FORBIDDEN),
        ("https://files.example.com:8443/a.wav", Reason.PORT_FORBIDDEN),
        ("//files.example.com:22/", Reason.PORT_FORBIDDEN),
        ("https://user:pw@files.example.com/a.wav", Reason.URL_MALFORMED),
        ("//user:pw@files.example.com/a.wav", Reason.URL_MALFORMED),
        ("/\\127.0.0.1/a.wav", Reason.URL_MALFORMED),
        ("/\t/127.0.0.1/a.wav", Reason.URL_MALFORMED),
        ("/a.wav\r\nX: y", Reason.URL_MALFORMED),
        ("//[::1/a.wav", Reason.URL_MALFORMED),
        ("https:a.wav", Reason.URL_MALFORMED),
        ("", Reason.URL_MALFORMED),
        (" ", Reason.URL_MALFORMED),
    ],
)
def test_redirects_are_judged_like_the_first_url(location: str, reason: Reason) -> None:
    """A redirect leads neither inside nor down to http nor anywhere a first URL could not lead."""
    with pytest.raises(PermanentError) as caught:
        CLOSED.judge_redirect(URL("https://files.example.com/s/a.wav"), location, 1)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://cdn.example.net/x.wav?sig=a%2Fb", "https://cdn.example.net/x.wav?sig=a%2Fb"),
        ("//cdn.example.net/x.wav", "https://cdn.example.net/x.wav"),
        ("/x y.wav", "https://files.example.com/x%20y.wav"),
        ("x.wav?sig=%2B", "https://files.example.com/s/x.wav?sig=%2B"),
        ("../x.wav", "https://files.example.com/x.wav"),
        ("?token=1", "https://files.example.com/s/a.wav?token=1"),
        ("/caf\udcc3\udca9.wav", "https://files.example.com/caf%C3%A9.wav"),
    ],
)
def test_redirects_are_resolved(location: str, target: str) -> None:
    """Relative and absolute redirects lead where RFC 3986 says, with the bytes that the server sent."""
    assert (
        str(CLOSED.judge_redirect(URL("https://files.example.com/s/a.wav?old=1", encoded=True), location, 3)) == target
    )


def test_redirects_end() -> None:
    """The fourth redirect is refused, wherever it leads."""
    with pytest.raises(PermanentError) as caught:
        CLOSED.judge_redirect(URL("https://files.example.com/a.wav"), "/b.wav", 4)
    assert caught.value.reason is Reason.TOO_MANY_REDIRECTS


def test_a_redirect_may_lead_to_what_is_opened() -> None:
    """Https may step down to http where an opening names the target, and nowhere else."""
    fence = Fence((parse_opening("127.0.0.1:8099"),))
    previous = URL("https://files.example.com/a.wav")
    assert str(fence.judge_redirect(previous, "http://127.0.0.1:8099/b.wav", 1)) == "http://127.0.0.1:8099/b.wav"
    with pytest.raises(PermanentError):
        fence.judge_redirect(previous, "http://127.0.0.1:8098/b.wav", 1)


@pytest.mark.parametrize("url", [*MALFORMED, *INSIDE, *OTHER_SCHEMES, *OTHER_PORTS])
def test_no_refusal_quotes_a_secret(url: str) -> None:
    """Neither the query nor a user's password is in the error or in what it was raised from."""
    with pytest.raises(PermanentError) as caught:
        CLOSED.judge_url(url + "?signature=secret-value")
    shown = f"{caught.value} {caught.value.args} {caught.value.__cause__}"
    assert "secret" not in shown
    assert "pw" not in shown
