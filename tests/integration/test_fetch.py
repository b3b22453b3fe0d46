"""The fetcher against every kind of answer: what arrives whole is handed on, all else is named and ends in time."""

import asyncio
import dataclasses
import errno
import gzip
import hashlib
import itertools
import random
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from downloader.fence import Fence
from downloader.fetch import BLOCK_BYTES, Fetched, Fetcher
from shared.errors import PermanentError, Reason, RetryableError, WavekeepError
from tests.integration.raw_server import (
    LIMITS,
    LOOPS,
    Answer,
    Fresh,
    Kept,
    RawServer,
    Run,
    attempt,
    dripping,
    opened,
    redirecting,
    resetting,
    running,
    sending,
    serving,
)

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(10_000_000))
FRAMED = b"Content-Length: 3\r\n\r\nabc"
ROOMY = dataclasses.replace(LIMITS, max_bytes=1 << 30, attempt_timeout_s=20, rate_window_s=5)


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run coroutines on asyncio's loop, and again on uvloop's."""
    with running(request.param) as run:
        yield run


def status(line: str) -> bytes:
    """Return an otherwise whole answer with this status."""
    return f"HTTP/1.1 {line}\r\n".encode() + FRAMED


def chunks(body: bytes) -> bytes:
    """Return a body in chunks of uneven sizes."""
    edges = [0, 1, 70_000, 70_003, len(body)]
    parts = [body[start:end] for start, end in itertools.pairwise(edges)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


REFUSED: dict[str, tuple[Answer, Reason]] = {
    "length too long": (sending(OK + b"Content-Length: 30\r\n\r\nabc"), Reason.BODY_CUT),
    "length too long, reset": (resetting(OK + b"Content-Length: 30\r\n\r\nabc"), Reason.BODY_CUT),
    "chunked and cut": (sending(CHUNKED + b"3\r\nabc\r\n"), Reason.BODY_CUT),
    "chunked and cut in a chunk": (sending(CHUNKED + b"30\r\nabc"), Reason.BODY_CUT),
    "chunked, broken later": (sending(CHUNKED + b"3\r\nabc\r\n", b"zz\r\nabc\r\n0\r\n\r\n"), Reason.BODY_CUT),
    "close-delimited, reset": (resetting(OK + b"\r\nabc", b"def"), Reason.BODY_CUT),
    "two lengths": (sending(OK + b"Content-Length: 4\r\n" + FRAMED), Reason.ANSWER_INVALID),
    "length and chunks": (
        sending(OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        Reason.ANSWER_INVALID,
    ),
    "negative length": (sending(OK + b"Content-Length: -3\r\n\r\nabc"), Reason.ANSWER_INVALID),
    "gzip": (sending(OK + b"Content-Encoding: gzip\r\n" + FRAMED), Reason.ANSWER_INVALID),
    "gzip bomb": (dripping(OK + b"Content-Encoding: gzip\r\n\r\n", BOMB, pause_s=0), Reason.ANSWER_INVALID),
    "unknown encoding": (sending(OK + b"Content-Encoding: xyz\r\n" + FRAMED), Reason.ANSWER_INVALID),
    "gzip in transfer": (
        sending(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        Reason.ANSWER_INVALID,
    ),
    "206 unasked": (sending(status("206 Partial\r\nContent-Range: bytes 0-2/9")), Reason.ANSWER_INVALID),
    "206 of another range": (sending(status("206 Partial\r\nContent-Range: bytes 3-5/9")), Reason.ANSWER_INVALID),
    "206 of another ETag": (
        sending(status('206 Partial\r\nETag: "other"\r\nContent-Range: bytes 0-2/3')),
        Reason.ANSWER_INVALID,
    ),
    "201": (sending(status("201 Created")), Reason.ANSWER_INVALID),
    "204": (sending(b"HTTP/1.1 204 None\r\n\r\n"), Reason.ANSWER_INVALID),
    "304": (sending(b"HTTP/1.1 304 Same\r\n\r\n"), Reason.ANSWER_INVALID),
    "300": (sending(status("300 Choose\r\nLocation: /b.wav")), Reason.ANSWER_INVALID),
    "101": (
        sending(b"HTTP/1.1 101 Switch\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        Reason.ANSWER_INVALID,
    ),
    "999": (sending(status("999 What")), Reason.ANSWER_INVALID),
    "header of 9,000 bytes": (sending(OK + b"X: " + b"a" * 9_000 + b"\r\n" + FRAMED), Reason.ANSWER_INVALID),
    "endless header": (dripping(OK + b"X: ", b"a" * 4_000, pause_s=0), Reason.ANSWER_INVALID),
    "endless headers": (dripping(OK, b"X: y\r\n", pause_s=0), Reason.ANSWER_INVALID),
    "HTTP/0.9": (sending(b"RIFF\x24\x00\x00\x00WAVE\r\n\r\n"), Reason.ANSWER_INVALID),
    "HTTP/0.9 by name": (sending(b"HTTP/0.9 200 OK\r\n" + FRAMED), Reason.ANSWER_INVALID),
    "HTTP/2.0": (sending(b"HTTP/2.0 200 OK\r\n" + FRAMED), Reason.ANSWER_INVALID),
    "nothing": (sending(), Reason.CONNECTION_FAILED),
    "half a head": (sending(OK + b"Content-Le"), Reason.CONNECTION_FAILED),
    "reset before the answer": (resetting(), Reason.CONNECTION_FAILED),
    "redirect to nowhere": (sending(status("302 Go")), Reason.URL_MALFORMED),
    **{f"{code}": (sending(status(f"{code} No")), Reason.LINK_EXPIRED) for code in (401, 403, 404, 410, 441)},
    **{f"{code}": (sending(status(f"{code} No")), Reason.HTTP_FAILED) for code in (408, 429, 500, 502, 503, 504, 599)},
    **{f"{code}": (sending(status(f"{code} No")), Reason.HTTP_REFUSED) for code in (400, 402, 405, 409, 416, 451)},
    "one byte at a time": (dripping(OK + b"Content-Length: 900000\r\n\r\n", b"x"), Reason.TOO_SLOW),
    "one byte at a time, chunked": (dripping(CHUNKED, b"1\r\nx\r\n"), Reason.TOO_SLOW),
    "one byte at a time, close-delimited": (dripping(OK + b"\r\n", b"x"), Reason.TOO_SLOW),
    "an endless chunk extension": (dripping(CHUNKED + b"3;", b"x"), Reason.TOO_SLOW),
    "silence after the head": (dripping(OK + b"Content-Length: 900000\r\n\r\n", b""), Reason.TOO_SLOW),
    "silence": (dripping(b"", b""), Reason.TIMED_OUT),
    "a head one byte at a time": (dripping(OK + b"X: ", b"x"), Reason.TIMED_OUT),
    "endless 100": (dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), Reason.TIMED_OUT),
    "endless chunks": (dripping(CHUNKED, b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n", pause_s=0), Reason.TOO_LARGE),
    "endless, close-delimited": (dripping(OK + b"\r\n", b"x" * 65_536, pause_s=0), Reason.TOO_LARGE),
    "length over the cap": (sending(OK + b"Content-Length: 1000001\r\n\r\n"), Reason.TOO_LARGE),
}
PERMANENT = {Reason.TOO_LARGE, Reason.URL_MALFORMED}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_answers_are_named_and_end_in_time(run: Run, name: str) -> None:
    """Every answer that is not one whole plain file ends soon, under its reason, and tells nobody the query."""
    answer, reason = REFUSED[name]

    async def story() -> tuple[WavekeepError | Fetched, float]:
        async with serving(answer) as server:
            begun = time.monotonic()
            outcome = await attempt(Fetcher(opened(server), LIMITS), server.url("/a.wav?signature=secret"))
            return outcome, time.monotonic() - begun

    outcome, took_s = run(story())
    assert isinstance(outcome, PermanentError if reason in PERMANENT else RetryableError)
    assert outcome.reason is reason
    assert took_s < 4
    assert "secret" not in "".join(traceback.format_exception(outcome))


@pytest.mark.parametrize(
    ("head", "pack", "transport"),
    [
        ("Content-Length: 300007\r\nContent-Type: Audio/WAV; x=y", lambda body: body, "content_length"),
        ("Transfer-Encoding: Chunked\r\nContent-Type: Audio/WAV", chunks, "chunked"),
        ("Content-Encoding: identity\r\nContent-Type: Audio/WAV", lambda body: body, "close_delimited"),
    ],
)
def test_whole_bodies_arrive(run: Run, head: str, pack: Callable[[bytes], bytes], transport: str) -> None:
    """Each way to end a body is followed and told, and every byte is handed on in order."""
    body = random.Random(1).randbytes(300_007)
    sink = Kept()

    async def story() -> tuple[WavekeepError | Fetched, RawServer]:
        async with serving(sending(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + pack(body))) as server:
            return await attempt(Fetcher(opened(server), LIMITS), server.url("/a.wav?token=1"), sink), server

    outcome, server = run(story())
    assert isinstance(outcome, Fetched)
    assert (outcome.size_bytes, outcome.transport, outcome.status) == (300_007, transport, 200)
    assert outcome.content_type == "audio/wav"
    assert outcome.final_link == server.url()
    assert sink.body == body


def test_nothing_past_the_length_is_taken(run: Run) -> None:
    """Bytes after the told length are no part of the file; if they come at once, the answer is refused."""
    sink = Kept()

    async def story() -> list[WavekeepError | Fetched]:
        outcomes = []
        for parts in ((OK + FRAMED, b"defgh"), (OK + FRAMED + b"defgh",)):
            async with serving(sending(*parts)) as server:
                outcomes.append(await attempt(Fetcher(opened(server), LIMITS), server.url(), sink))
        return outcomes

    later, at_once = run(story())
    assert isinstance(later, Fetched)
    assert later.size_bytes == 3
    assert isinstance(at_once, RetryableError)
    assert at_once.reason is Reason.ANSWER_INVALID
    assert sink.body == b"abc"


def test_a_request_says_little(run: Run) -> None:
    """We name ourselves, ask for the plain bytes, and carry neither cookie nor credential nor referrer."""

    async def story() -> bytes:
        async with serving(sending(OK + FRAMED)) as server:
            await attempt(Fetcher(opened(server), LIMITS), server.url("/a b.wav?s=%2F+"))
            return server.requests[0]

    line, *headers = run(story()).decode().strip().split("\r\n")
    names = {header.partition(":")[0].lower(): header.partition(":")[2].strip() for header in headers}
    assert line == "GET /a%20b.wav?s=%2F+ HTTP/1.1"
    assert set(names) == {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert names["accept-encoding"] == "identity"
    assert names["user-agent"].startswith("wavekeep/")


def test_an_attempt_is_bounded_as_a_whole(run: Run) -> None:
    """A body that always keeps the least rate still ends with the attempt's time."""
    limits = dataclasses.replace(LIMITS, attempt_timeout_s=0.5)

    async def story() -> WavekeepError | Fetched:
        async with serving(dripping(CHUNKED, b"100\r\n" + b"x" * 256 + b"\r\n", pause_s=0.01)) as server:
            return await attempt(Fetcher(opened(server), limits), server.url())

    outcome = run(story())
    assert isinstance(outcome, RetryableError)
    assert outcome.reason is Reason.TIMED_OUT


def test_a_closed_port_is_a_failed_connection(run: Run) -> None:
    """Where nobody listens, the connection failed and may work later."""

    async def story() -> WavekeepError | Fetched:
        async with serving(sending()) as server:
            pass
        return await attempt(Fetcher(opened(server), LIMITS), server.url())

    outcome = run(story())
    assert isinstance(outcome, RetryableError)
    assert outcome.reason is Reason.CONNECTION_FAILED


def test_a_large_body_takes_flat_memory(run: Run) -> None:
    """64 MiB pass in bounded blocks, in order, and never more than a few of them are held."""
    piece = random.Random(2).randbytes(1 << 20)
    expected, seen, sizes = hashlib.sha256(piece * 64), hashlib.sha256(), []

    class Hashing(Fresh):
        def write(self, block: bytes) -> None:
            sizes.append(len(block))
            seen.update(block)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64):
            writer.write(piece)
            await writer.drain()

    async def story() -> tuple[Fetched, int]:
        async with serving(answer) as server, Fetcher(opened(server), ROOMY) as fetcher:
            tracemalloc.start()
            try:
                fetched = await fetcher.fetch(server.url(), Hashing())
                return fetched, tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    fetched, peak_bytes = run(story())
    assert fetched.size_bytes == sum(sizes) == 64 << 20
    assert seen.digest() == expected.digest()
    assert peak_bytes < 8 << 20
    assert all(BLOCK_BYTES <= size <= 1 << 20 for size in sizes[:-1])


@pytest.mark.parametrize("head", [b"\r\n", b"Content-Length: 4000000\r\n\r\n"])
def test_a_slow_sink_loses_nothing_and_is_not_blamed_on_the_sender(run: Run, head: bytes) -> None:
    """Time in the sink does not count against the least rate, and what waits meanwhile arrives, also after a close."""
    body = random.Random(3).randbytes(4_000_000)
    limits = dataclasses.replace(ROOMY, min_bytes_per_s=10_000_000, rate_window_s=0.2)

    class Slow(Kept):
        def write(self, block: bytes) -> None:
            time.sleep(0.05)
            super().write(block)

    sink = Slow()

    async def story() -> WavekeepError | Fetched:
        async with serving(sending(OK + head + body)) as server:
            return await attempt(Fetcher(opened(server), limits), server.url(), sink)

    assert isinstance(run(story()), Fetched)
    assert sink.body == body


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "no space"), OSError(errno.ETIMEDOUT, "slow disk"), ValueError("x")]
)
@pytest.mark.parametrize("body_bytes", [3, 900_000])
def test_what_the_sink_raises_passes_unchanged(run: Run, failure: Exception, body_bytes: int) -> None:
    """Our own trouble is never taken for the network's, whether it strikes the first block or the last one."""

    class Failing(Fresh):
        def write(self, block: bytes) -> None:
            raise failure

    async def story() -> None:
        answer = sending(OK + b"Content-Length: %d\r\n\r\n" % body_bytes + b"x" * body_bytes)
        async with serving(answer) as server, Fetcher(opened(server), LIMITS) as fetcher:
            await fetcher.fetch(server.url(), Failing())

    with pytest.raises(type(failure)) as caught:
        run(story())
    assert type(caught.value) is type(failure)
    assert caught.value.args == failure.args


class Held(Fresh):
    """A sink whose write goes on until it is let go."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.writes = 0
        self.ended = False
        self._failure = failure

    def write(self, block: bytes) -> None:
        """Write until let go."""
        self.writes += 1
        self.begun.set()
        assert self.let_go.wait(5)
        self.ended = True
        if self._failure is not None:
            raise self._failure


@pytest.mark.parametrize("failure", [None, OSError(errno.EIO, "bad disk")])
@pytest.mark.parametrize("cancels", [1, 3])
def test_a_cancelled_fetch_ends_after_the_write_in_hand(run: Run, failure: Exception | None, cancels: int) -> None:
    """Whoever cancels may clean up at once: the running write has ended by then, and no other one begins."""
    sink = Held(failure)

    async def story() -> None:
        answer = dripping(CHUNKED, b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n", pause_s=0)
        async with serving(answer) as server, Fetcher(opened(server), ROOMY) as fetcher:
            task = asyncio.create_task(fetcher.fetch(server.url(), sink))
            assert await asyncio.to_thread(sink.begun.wait, 5)
            for _ in range(cancels):
                task.cancel()
                await asyncio.wait((task,), timeout=0.05)
                assert not task.done()
            sink.let_go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert sink.ended

    run(story())
    assert sink.writes == 1


def test_a_timed_out_fetch_ends_after_the_write_in_hand(run: Run) -> None:
    """The attempt's end waits for the running write too, and is then told as a time-out."""
    sink = Held()
    limits = dataclasses.replace(ROOMY, attempt_timeout_s=0.2)

    async def story() -> None:
        answer = dripping(CHUNKED, b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n", pause_s=0)
        async with serving(answer) as server, Fetcher(opened(server), limits) as fetcher:
            task = asyncio.create_task(fetcher.fetch(server.url(), sink))
            assert (await asyncio.wait((task,), timeout=0.5))[1] == {task}
            sink.let_go.set()
            with pytest.raises(RetryableError) as caught:
                await task
            assert caught.value.reason is Reason.TIMED_OUT
            assert sink.ended

    run(story())
    assert sink.writes == 1


def test_a_broken_disk_outranks_a_broken_line(run: Run) -> None:
    """Where the last block could not be written and the body was cut too, the disk's failure is told."""
    failure = OSError(errno.EIO, "bad disk")

    class Failing(Fresh):
        def write(self, block: bytes) -> None:
            raise failure

    async def story() -> None:
        answer = sending(OK + b"Content-Length: 900000\r\n\r\n" + b"x" * 300_000, b"x")
        async with serving(answer) as server, Fetcher(opened(server), LIMITS) as fetcher:
            await fetcher.fetch(server.url(), Failing())

    with pytest.raises(OSError, match="bad disk") as caught:
        run(story())
    assert caught.value is failure


def test_no_secret_is_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Neither our log nor aiohttp's holds a query string, whatever comes of a fetch."""
    caplog.set_level(0)

    async def story() -> None:
        location = "/b.wav?signature=secret"
        for answer in (
            sending(OK + FRAMED),
            redirecting(location),
            sending(b"x\r\n\r\n"),
            REFUSED["chunked and cut"][0],
        ):
            async with serving(answer) as server:
                await attempt(Fetcher(opened(server), LIMITS), server.url("/a.wav?signature=secret"))

    run(story())
    assert "secret" not in caplog.text


def test_building_a_fetcher_touches_nothing(run: Run) -> None:
    """It is built without a loop, and does not fetch before it was started."""
    fetcher = Fetcher(Fence(), LIMITS)
    with pytest.raises(RuntimeError, match="not started"):
        run(fetcher.fetch("https://files.example.com/a.wav", Kept()))
