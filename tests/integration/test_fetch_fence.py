"""The fence in real connections: no spelling, no answer of the DNS and no redirect leads inside; TLS is verified."""

import asyncio
import dataclasses
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest
from aiohttp.abc import ResolveResult
from pytest_socket import SocketConnectBlockedError
from yarl import URL

from downloader.fence import Fence, parse_opening
from downloader.fetch import Fetched, Fetcher
from downloader.gate import Gate
from shared.errors import PermanentError, Reason, RetryableError, WavekeepError
from tests.hostile_links import FORBIDDEN_ADDRESSES, PUBLIC_ADDRESSES, SPELLINGS, spelled
from tests.integration.raw_server import (
    LIMITS,
    LOOPS,
    Kept,
    RawServer,
    Run,
    ScriptedResolver,
    attempt,
    opened,
    redirecting,
    resolved,
    running,
    sending,
    serving,
    showing,
    trusting,
)

# Public addresses pass the fence here; whatever got as far as connecting to one stops at this.
pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "127.0.0.2"])

FILE = sending(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")


class Fooled(Fence):
    """A fence that lets every URL through that the client could read, so that only the socket's judgement is left."""

    def judge_url(self, url: str) -> URL:
        """Let it through."""
        try:
            return URL(url)
        except ValueError as error:
            raise PermanentError(Reason.URL_MALFORMED, "not even the client can read it") from error

    def judge_redirect(self, previous: URL, location: str, hop: int) -> URL:
        """Let it through."""
        return previous.join(URL(location))


class ChangingAnswer(dict[str, Any]):
    """An answer of the DNS that is public when it is looked at first, and inside from then on."""

    def __init__(self, answer: ResolveResult) -> None:
        super().__init__(answer)
        self._shown = iter(("8.8.8.8",))

    def __getitem__(self, name: str) -> Any:
        """Change."""
        return next(self._shown, "127.0.0.2") if name == "host" else super().__getitem__(name)


class RebindingResolver(ScriptedResolver):
    """Gives one answer that changes between the check and the connection, and then those of its script."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return them."""
        changing = cast("ResolveResult", ChangingAnswer(resolved(host, "8.8.8.8", port)))
        return [changing, *await super().resolve(host, port, family)]


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run coroutines on asyncio's loop, and again on uvloop's."""
    with running(request.param) as run:
        yield run


def refused(outcome: Fetched | WavekeepError, reason: Reason) -> bool:
    """Tell whether the fence refused for this reason, for good."""
    return isinstance(outcome, PermanentError) and outcome.reason is reason


@pytest.mark.parametrize("template", SPELLINGS)
def test_by_default_no_spelling_reaches_loopback(run: Run, template: str) -> None:
    """Without openings every way to write loopback is refused before anything is connected."""

    async def story() -> tuple[Fetched | WavekeepError, RawServer]:
        async with serving(FILE) as server:
            return await attempt(Fetcher(Fence(), LIMITS), spelled(template, server.port)), server

    outcome, server = run(story())
    assert isinstance(outcome, PermanentError)
    assert server.connections == 0


@pytest.mark.parametrize("template", SPELLINGS)
def test_the_socket_is_judged_whatever_the_url_looked_like(run: Run, template: str) -> None:
    """Even where the check of the URL let a spelling through, nothing is connected to what is behind it."""

    async def story() -> tuple[Fetched | WavekeepError, RawServer]:
        async with serving(FILE) as server:
            url = spelled(template, server.port, scheme="http")
            return await attempt(Fetcher(Fooled(), LIMITS), url), server

    outcome, server = run(story())
    assert isinstance(outcome, WavekeepError)
    assert outcome.reason in {Reason.ADDRESS_FORBIDDEN, Reason.HOST_UNRESOLVED, Reason.URL_MALFORMED}
    assert server.connections == 0


def test_no_address_inside_is_connected_to(run: Run) -> None:
    """The DNS may answer any address of the table: none is connected to, alone or before a public one."""

    async def story() -> list[tuple[str, Fetched | WavekeepError]]:
        outcomes = []
        for address in FORBIDDEN_ADDRESSES:
            for answers in ([address], [address, "8.8.8.8"]):
                fetcher = Fetcher(Fence(), LIMITS, resolver=ScriptedResolver(answers))
                outcomes.append((address, await attempt(fetcher, "https://files.test/a.wav")))
        return outcomes

    passed = [address for address, outcome in run(story()) if not refused(outcome, Reason.ADDRESS_FORBIDDEN)]
    assert passed == []


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_a_public_neighbour_is_connected_to(address: str) -> None:
    """The gate refuses no more than it must: a socket is made for a public address beside the reserved ones."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    gate = Gate(Fence(), "https", ScriptedResolver([]))
    gate.open_socket((family, socket.SOCK_STREAM, 0, "", (address, 443))).close()
    assert gate.refusal is None


def test_an_alias_of_a_name_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A public name that is a CNAME of one inside is judged by the address at its end, with the system's resolver."""

    def answer(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "intranet.internal", ("127.0.0.1", port))]

    async def story() -> tuple[Fetched | WavekeepError, RawServer]:
        async with serving(FILE) as server:
            monkeypatch.setattr(socket, "getaddrinfo", answer)
            return await attempt(Fetcher(Fence(), LIMITS), "https://alias.example.com/a.wav"), server

    with running("asyncio") as run:  # the other loop asks the system past Python's own function
        outcome, server = run(story())
    assert refused(outcome, Reason.ADDRESS_FORBIDDEN)
    assert server.connections == 0


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["127.0.0.1", "127.0.0.2"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["2606:4700::1111", "::1"],
        ["8.8.8.8", "2001:db8::1", "1.1.1.1"],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],
    ],
)
def test_one_private_answer_refuses_all(run: Run, addresses: list[str]) -> None:
    """A name that leads inside, even only among others, is not connected to at all."""

    async def story() -> Fetched | WavekeepError:
        return await attempt(
            Fetcher(Fence(), LIMITS, resolver=ScriptedResolver(addresses)), "https://files.test/a.wav?signature=secret"
        )

    assert refused(run(story()), Reason.ADDRESS_FORBIDDEN)


def test_an_opened_name_is_reached_only_at_the_opened_address(run: Run) -> None:
    """Two answers, one opened and one beside it: refused, and the opened one alone is fetched."""

    async def story() -> list[Fetched | WavekeepError]:
        outcomes = []
        async with serving(FILE) as server:
            for addresses in (["127.0.0.1", "127.0.0.2"], ["127.0.0.1"]):
                fetcher = Fetcher(opened(server), LIMITS, resolver=ScriptedResolver(addresses))
                outcomes.append(await attempt(fetcher, server.url(host="files.test")))
            assert server.connections == 1
        return outcomes

    both, one = run(story())
    assert refused(both, Reason.ADDRESS_FORBIDDEN)
    assert isinstance(one, Fetched)


@pytest.mark.parametrize("others", [[], ["127.0.0.1"]])
def test_rebinding_between_check_and_connection_is_stopped(run: Run, others: list[str]) -> None:
    """The address that is connected to is judged, not the one that was shown; no other answer helps it."""

    async def story() -> tuple[Fetched | WavekeepError, RawServer, RawServer]:
        async with serving(FILE) as beside, serving(FILE, host="127.0.0.2", port=beside.port) as inside:
            openings = tuple(parse_opening(f"{address}:{beside.port}") for address in ("8.8.8.8", "127.0.0.1"))
            fetcher = Fetcher(Fence(openings), LIMITS, resolver=RebindingResolver(others))
            return await attempt(fetcher, beside.url(host="files.test")), beside, inside

    outcome, beside, inside = run(story())
    assert refused(outcome, Reason.ADDRESS_FORBIDDEN)
    assert (beside.connections, inside.connections) == (0, 0)


def test_a_public_name_that_moves_inside_is_refused(run: Run) -> None:
    """A name that was public for one download and is loopback for the next is connected to only while public."""

    async def story() -> Fetched | WavekeepError:
        resolver = ScriptedResolver(["8.8.8.8"], ["127.0.0.1"])
        fetcher = Fetcher(Fence(), LIMITS, resolver=resolver)
        with pytest.warns(UserWarning, match=r'host "8\.8\.8\.8"'), pytest.raises(SocketConnectBlockedError):
            await attempt(fetcher, "https://files.test/a.wav")
        return await attempt(fetcher, "https://files.test/a.wav")

    assert refused(run(story()), Reason.ADDRESS_FORBIDDEN)


def test_rebinding_between_two_hops_is_stopped(run: Run) -> None:
    """A name is resolved and judged anew for each hop: what it led to before counts for nothing."""

    async def story() -> tuple[Fetched | WavekeepError, RawServer, RawServer]:
        async with serving(redirecting("/b.wav")) as first, serving(FILE, host="127.0.0.2", port=first.port) as inside:
            resolver = ScriptedResolver(["127.0.0.1"], ["127.0.0.2"])
            fetcher = Fetcher(opened(first), LIMITS, resolver=resolver)
            return await attempt(fetcher, first.url(host="files.test")), first, inside

    outcome, first, inside = run(story())
    assert refused(outcome, Reason.ADDRESS_FORBIDDEN)
    assert (first.connections, inside.connections) == (1, 0)


def test_rebinding_between_two_downloads_is_stopped(run: Run) -> None:
    """No name is remembered from one download to the next, and no connection is used again."""

    async def story() -> list[Fetched | WavekeepError]:
        resolver = ScriptedResolver(["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2"])
        async with serving(FILE) as server:
            fetcher = Fetcher(opened(server), LIMITS, resolver=resolver)
            outcomes = [await attempt(fetcher, server.url(host="files.test")) for _ in range(3)]
            assert server.connections == 2
        return outcomes

    first, second, third = run(story())
    assert isinstance(first, Fetched)
    assert isinstance(second, Fetched)
    assert refused(third, Reason.ADDRESS_FORBIDDEN)


@pytest.mark.parametrize("answer", [socket.gaierror(socket.EAI_NONAME, "unknown"), []])
def test_unknown_names_may_be_known_later(run: Run, answer: Exception | list[str]) -> None:
    """A name without an address is worth another try."""

    async def story() -> Fetched | WavekeepError:
        return await attempt(Fetcher(Fence(), LIMITS, resolver=ScriptedResolver(answer)), "https://files.test/a.wav")

    outcome = run(story())
    assert isinstance(outcome, RetryableError)
    assert outcome.reason is Reason.HOST_UNRESOLVED


def test_slow_names_end_in_time(run: Run) -> None:
    """A name server that never answers is bounded by the time to connect."""

    class Silent(ScriptedResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            await asyncio.Event().wait()
            raise AssertionError

    async def story() -> Fetched | WavekeepError:
        limits = dataclasses.replace(LIMITS, connect_timeout_s=0.1)
        return await attempt(Fetcher(Fence(), limits, resolver=Silent([])), "https://files.test/a.wav?signature=secret")

    outcome = run(story())
    assert isinstance(outcome, RetryableError)
    assert outcome.reason is Reason.TIMED_OUT
    assert "secret" not in str(outcome)


def test_redirects_lead_on_and_carry_nothing(run: Run) -> None:
    """Three redirects are followed; no cookie, credential or referrer goes along, and the last link is told."""

    async def story() -> tuple[Fetched | WavekeepError, bytes, RawServer]:
        sink = Kept()
        cookie = "Set-Cookie: session=secret; Path=/\r\n"
        async with (
            serving(FILE) as last,
            serving(redirecting(last.url("/d.wav?s=%2B"), headers=cookie)) as third,
            serving(redirecting(third.url("/c.wav"), status=308, headers=cookie)) as second,
            serving(redirecting(second.url("/b.wav"), status=303, headers=cookie)) as first,
        ):
            fetcher = Fetcher(opened(first, second, third, last), LIMITS)
            return await attempt(fetcher, first.url("/a.wav?signature=secret"), sink), sink.body, last

    outcome, body, last = run(story())
    assert isinstance(outcome, Fetched)
    assert outcome.final_link == last.url("/d.wav")
    assert body == b"abc"
    assert last.requests[0].startswith(b"GET /d.wav?s=%2B HTTP/1.1\r\n")
    assert b"secret" not in last.requests[0]


def test_a_loop_of_redirects_ends(run: Run) -> None:
    """The fourth redirect is refused, after four requests."""

    async def story() -> tuple[Fetched | WavekeepError, RawServer]:
        async with serving(redirecting("/a.wav?signature=secret")) as server:
            return await attempt(Fetcher(opened(server), LIMITS), server.url()), server

    outcome, server = run(story())
    assert refused(outcome, Reason.TOO_MANY_REDIRECTS)
    assert server.connections == 4
    assert "secret" not in str(outcome)


def test_redirects_to_inside_are_refused(run: Run) -> None:
    """What is beside the opening is not reached by redirect either, by address, by name or by another scheme."""

    async def story() -> list[Fetched | WavekeepError]:
        outcomes = []
        async with serving(FILE) as inside:
            for location in (inside.url(), "https://127.0.0.1/", inside.url(host="localhost"), "file:///etc/passwd"):
                async with serving(redirecting(location)) as server:
                    outcomes.append(await attempt(Fetcher(opened(server), LIMITS), server.url()))
            assert inside.connections == 0
        return outcomes

    assert all(isinstance(outcome, PermanentError) for outcome in run(story()))


def test_every_hop_is_judged_like_the_first(run: Run) -> None:
    """On the second and the third hop too no spelling of loopback is reached."""

    async def story() -> list[tuple[str, Fetched | WavekeepError]]:
        outcomes = []
        async with serving(FILE) as inside:
            for template in SPELLINGS:
                location = spelled(template, inside.port)
                if set(location) & set("\r\n\0") or not location.isascii():
                    continue  # cannot stand in a header
                async with (
                    serving(redirecting(location)) as third,
                    serving(redirecting(third.url())) as second,
                    serving(redirecting(second.url())) as first,
                ):
                    fetcher = Fetcher(opened(first, second, third), LIMITS)
                    outcomes.append((template, await attempt(fetcher, first.url())))
                    assert third.connections == 1
            assert inside.connections == 0
        return outcomes

    outcomes = run(story())
    assert len(outcomes) > 30
    assert [template for template, outcome in outcomes if not isinstance(outcome, PermanentError)] == []


def test_no_cookie_goes_from_one_download_to_the_next(run: Run) -> None:
    """What one download was given, the next one of the same fetcher does not bring."""

    async def story() -> RawServer:
        answer = sending(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=secret\r\nContent-Length: 3\r\n\r\nabc")
        async with serving(answer) as server, Fetcher(opened(server), LIMITS) as fetcher:
            for _ in range(3):
                await fetcher.fetch(server.url(), Kept())
            return server

    server = run(story())
    assert len(server.requests) == 3
    assert not any(b"cookie" in request.lower() or b"secret" in request for request in server.requests)


def test_https_does_not_step_down(run: Run) -> None:
    """From https nothing leads to plain http, unless the target itself is opened."""

    async def story() -> tuple[list[Fetched | WavekeepError], RawServer]:
        outcomes = []
        async with serving(FILE) as plain, serving(redirecting(plain.url()), tls=showing("valid")) as secure:
            for fence in (opened(secure), opened(secure, plain)):
                resolver = ScriptedResolver(["127.0.0.1"])
                fetcher = Fetcher(fence, LIMITS, resolver=resolver, ssl_context=trusting())
                outcomes.append(await attempt(fetcher, secure.url(host="files.test", scheme="https")))
            return outcomes, plain

    (closed, open_), plain = run(story())
    assert isinstance(closed, PermanentError)
    assert isinstance(open_, Fetched)
    assert plain.connections == 1


@pytest.mark.parametrize("certificate", ["other", "expired", "self-signed", None])
def test_tls_is_verified(run: Run, certificate: str | None) -> None:
    """Another host's, an expired, an unsigned certificate and no TLS at all are refused; they may be mended."""

    async def story() -> Fetched | WavekeepError:
        async with serving(FILE, tls=showing(certificate) if certificate else None, unasked=True) as server:
            resolver = ScriptedResolver(["127.0.0.1"])
            fetcher = Fetcher(opened(server), LIMITS, resolver=resolver, ssl_context=trusting())
            url = server.url("/a.wav?signature=secret", host="files.test", scheme="https")
            return await attempt(fetcher, url)

    outcome = run(story())
    assert isinstance(outcome, RetryableError)
    assert outcome.reason is Reason.CERTIFICATE_INVALID
    assert "secret" not in str(outcome)


def test_the_systems_authorities_are_the_default(run: Run) -> None:
    """Without a context of the tests' own, the tests' authority is unknown."""

    async def story() -> Fetched | WavekeepError:
        async with serving(FILE, tls=showing("valid")) as server:
            fetcher = Fetcher(opened(server), LIMITS, resolver=ScriptedResolver(["127.0.0.1"]))
            return await attempt(fetcher, server.url(host="files.test", scheme="https"))

    outcome = run(story())
    assert isinstance(outcome, RetryableError)
    assert outcome.reason is Reason.CERTIFICATE_INVALID


def test_valid_tls_passes(run: Run) -> None:
    """A certificate of a trusted authority for this host is accepted."""
    sink = Kept()

    async def story() -> Fetched | WavekeepError:
        async with serving(FILE, tls=showing("valid")) as server:
            resolver = ScriptedResolver(["127.0.0.1"])
            fetcher = Fetcher(opened(server), LIMITS, resolver=resolver, ssl_context=trusting())
            return await attempt(fetcher, server.url(host="files.test", scheme="https"), sink)

    assert isinstance(run(story()), Fetched)
    assert sink.body == b"abc"


def test_proxies_of_the_environment_are_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve and connect on our behalf, past the fence: it is never asked."""

    async def story() -> tuple[Fetched | WavekeepError, RawServer]:
        async with serving(FILE) as server, serving(FILE) as proxy:
            for name in ("http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(name, proxy.url(""))
                monkeypatch.setenv(name.upper(), proxy.url(""))
            return await attempt(Fetcher(opened(server), LIMITS), server.url()), proxy

    outcome, proxy = run(story())
    assert isinstance(outcome, Fetched)
    assert proxy.connections == 0
