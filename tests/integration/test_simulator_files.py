"""The simulator's file host, seen by a raw client: ranges, refusals, and every misbehaviour on the wire."""

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from shared.vendors import Vendor
from simulator.app import Simulator
from simulator.bodies import blocks_of
from simulator.ledger import ServedFile
from simulator.plan import Fault, FilePlan, Framing, Plan, Ranges
from simulator.settings import Settings
from simulator.wavs import Flavour

DEADLINE_S = 20.0
SIZE = 20_000


@dataclass
class Answer:
    """What came over the line until it was closed."""

    status: int
    headers: dict[str, str]
    body: bytes
    ended_by: str


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A simulator on a free port."""
    async with Simulator(Settings(seed=1)) as running:
        yield running


def served(simulator: Simulator, *faults: Fault, **traits: object) -> tuple[str, ServedFile]:
    """Plan one file, and return its link and its entry."""
    file = FilePlan(misbehaviour=faults, **({"size_bytes": SIZE} | traits))  # type: ignore[arg-type]  # traits vary
    plan = Plan(vendor=Vendor.KIE, files=(file,), steps=())
    conversion = simulator._conversions.make(plan)
    entry = conversion.files[0]
    return simulator._conversions.link(entry), entry


def content(file: ServedFile) -> bytes:
    """Return the bytes a good answer has."""
    return b"".join(blocks_of(file.plan, 0, file.size_bytes))


async def fetch(link: str, *, method: str = "GET", limit: int | None = None, quiet_s: float = DEADLINE_S,
                **headers: str) -> Answer:  # fmt: skip
    """Send one request by hand and read until the line ends, a number of bytes is there, or it falls silent."""
    parts = urlsplit(link)
    sent = {"Host": parts.netloc, "User-Agent": "raw", "Connection": "close"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    target = f"{parts.path}?{parts.query}".replace(" ", "%20")
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items() if value)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    raw, ended_by = b"", "fin"
    try:
        writer.write(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode())
        while limit is None or len(raw) < limit:
            async with asyncio.timeout(quiet_s):
                piece = await reader.read(65_536)
            if not piece:
                break
            raw += piece
        else:
            ended_by = "limit"
    except TimeoutError:
        ended_by = "silence"
    except ConnectionResetError:
        ended_by = "reset"
    finally:
        writer.transport.abort()
    lines, _, body = raw.partition(b"\r\n\r\n")
    status, *fields = lines.decode().split("\r\n")
    pairs = (field.partition(": ") for field in fields)
    return Answer(
        int(status.split()[1]) if status else 0, {key.lower(): value for key, _, value in pairs}, body, ended_by
    )


async def test_serves_the_whole_file(simulator: Simulator) -> None:
    """The bytes, their number and a strong tag; the ledger's digest is that of what was sent."""
    link, file = served(simulator)
    answer = await fetch(link)
    assert answer.status == 200
    assert answer.headers["content-length"] == str(file.size_bytes)
    assert answer.headers["accept-ranges"] == "bytes"
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(content(file)).digest()


@pytest.mark.parametrize(
    ("asked", "part", "told"),
    [
        ("bytes=0-0", slice(0, 1), "bytes 0-0/20000"),
        ("bytes=100-199", slice(100, 200), "bytes 100-199/20000"),
        ("bytes=19000-", slice(19_000, None), "bytes 19000-19999/20000"),
        ("bytes=-5", slice(-5, None), "bytes 19995-19999/20000"),
        ("bytes=19999-999999", slice(19_999, None), "bytes 19999-19999/20000"),
    ],
)
async def test_serves_ranges(simulator: Simulator, asked: str, part: slice, told: str) -> None:
    """A single range is answered 206 with exactly its bytes."""
    link, file = served(simulator)
    answer = await fetch(link, Range=asked)
    assert (answer.status, answer.headers["content-range"]) == (206, told)
    assert answer.body == content(file)[part]


async def test_refuses_an_impossible_range(simulator: Simulator) -> None:
    """A range past the end is 416, with the size."""
    link, _ = served(simulator)
    answer = await fetch(link, Range="bytes=20000-")
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */20000")


async def test_range_of_another_version_is_the_whole(simulator: Simulator) -> None:
    """If-Range with the right tag gives the part, with another one the whole file."""
    link, _ = served(simulator)
    tag = (await fetch(link, method="HEAD")).headers["etag"]
    assert (await fetch(link, Range="bytes=1-", If_Range=tag)).status == 206
    assert (await fetch(link, Range="bytes=1-", If_Range='"other"')).status == 200


async def test_head_has_no_body(simulator: Simulator) -> None:
    """HEAD tells the length and sends nothing."""
    link, file = served(simulator)
    answer = await fetch(link, method="HEAD")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(file.size_bytes), b"")


async def test_link_is_a_key(simulator: Simulator) -> None:
    """Without its signature, with a wrong one, or once expired, the link is 403; fresh links hold beside old ones."""
    link, file = served(simulator)
    bare = link.partition("?")[0]
    assert [(await fetch(each)).status for each in (bare, f"{bare}?Signature=wrong", link)] == [403, 403, 200]
    fresh = simulator._conversions.link(file, fresh=True)
    assert [(await fetch(each)).status for each in (link, fresh)] == [200, 200]
    expired, _ = served(simulator, link_expires_s=0)
    assert (await fetch(expired)).status == 403
    assert (await fetch(f"{simulator.base_url}/files/nothing.wav?a=1")).status == 404


async def test_kies_host_wants_an_agent(simulator: Simulator) -> None:
    """A request without User-Agent is 403, unless the plan says otherwise."""
    link, _ = served(simulator)
    assert (await fetch(link, User_Agent="")).status == 403
    open_link, _ = served(simulator, requires_user_agent=False)
    assert (await fetch(open_link, User_Agent="")).status == 200


async def test_name_may_hold_a_space(simulator: Simulator) -> None:
    """The link holds a raw space, and leads to the file once encoded."""
    link, _ = served(simulator, spaced_name=True)
    assert "/files/My Song_Lead Vocal " in link
    assert (await fetch(link)).status == 200


async def test_fails_first_and_then_is_good(simulator: Simulator) -> None:
    """503 twice with Retry-After, then the file."""
    link, file = served(simulator, Fault(status=503, times=2, retry_after_s=3))
    answers = [await fetch(link) for _ in range(3)]
    assert [(each.status, each.headers.get("retry-after")) for each in answers] == [(503, "3"), (503, "3"), (200, None)]
    assert dict(file.answers) == {503: 2, 200: 1}


@pytest.mark.parametrize("status", [204, 304, 401, 403, 404, 410, 441, 500])
async def test_fails_for_ever(simulator: Simulator, status: int) -> None:
    """A status without end, even one that is in no list."""
    link, _ = served(simulator, Fault(status=status))
    assert [(await fetch(link)).status for _ in range(3)] == [status] * 3


@pytest.mark.parametrize("framing", list(Framing))
async def test_frames_as_told(simulator: Simulator, framing: Framing) -> None:
    """The end of the body is told by length, by chunks, or by nothing but the end of the line."""
    link, file = served(simulator, Fault(framing=framing))
    answer = await fetch(link)
    told = ("content-length" in answer.headers, "transfer-encoding" in answer.headers)
    assert told == (framing is Framing.CONTENT_LENGTH, framing is Framing.CHUNKED)
    if framing is Framing.CHUNKED:
        assert answer.body.endswith(b"\r\n0\r\n\r\n")
    else:
        assert answer.body == content(file)


@pytest.mark.parametrize("framing", list(Framing))
@pytest.mark.parametrize("reset", [False, True])
async def test_cuts_the_line(simulator: Simulator, framing: Framing, reset: bool) -> None:
    """After 1,000 bytes the line ends, by FIN or RST; no last chunk is sent."""
    link, file = served(simulator, Fault(framing=framing, cut_after_bytes=1_000, reset=reset))
    answer = await fetch(link)
    assert answer.ended_by == ("reset" if reset else "fin")
    assert file.bytes_served == 1_000
    if framing is Framing.CHUNKED:
        assert not answer.body.endswith(b"0\r\n\r\n")
    else:
        assert answer.body == content(file)[:1_000]


async def test_cut_at_once_and_cut_late(simulator: Simulator) -> None:
    """Nothing at all, and all but the last byte."""
    for cut in (0, SIZE - 1):
        link, _ = served(simulator, Fault(cut_after_bytes=cut))
        answer = await fetch(link)
        assert (answer.headers["content-length"], len(answer.body)) == (str(SIZE), cut)


@pytest.mark.parametrize("off", [-10, 10])
async def test_tells_a_wrong_length(simulator: Simulator, off: int) -> None:
    """Content-Length says less or more than is sent."""
    link, file = served(simulator, Fault(content_length_off=off))
    answer = await fetch(link)
    assert answer.headers["content-length"] == str(SIZE + off)
    assert answer.body == content(file)


async def test_goes_silent(simulator: Simulator) -> None:
    """A black hole never answers; a stalled body stops and keeps the line."""
    hole, _ = served(simulator, Fault(black_hole=True))
    answer = await fetch(hole, quiet_s=0.2)
    assert (answer.status, answer.ended_by) == (0, "silence")
    stalled, _ = served(simulator, Fault(stall_after_bytes=500))
    answer = await fetch(stalled, quiet_s=0.2)
    assert (len(answer.body), answer.ended_by) == (500, "silence")


async def test_drips(simulator: Simulator) -> None:
    """A byte comes at its rate, neither sooner nor all at once."""
    link, file = served(simulator, Fault(bytes_per_s=100))
    started = asyncio.get_running_loop().time()
    answer = await fetch(link, limit=400)
    elapsed_s = asyncio.get_running_loop().time() - started
    assert answer.ended_by == "limit"
    assert answer.body == content(file)[: len(answer.body)] != b""
    assert len(answer.body) <= 100 * elapsed_s + 20


async def test_never_ends(simulator: Simulator) -> None:
    """After the file come zeros, for as long as one reads."""
    link, file = served(simulator, Fault(endless=True, framing=Framing.CLOSE))
    answer = await fetch(link, limit=10 * SIZE)
    assert answer.ended_by == "limit"
    assert answer.body.startswith(content(file))
    assert not any(answer.body[SIZE:])


async def test_packs_unasked(simulator: Simulator) -> None:
    """Content-Encoding gzip, whatever was asked, and no ranges."""
    link, file = served(simulator, Fault(gzip=True, framing=Framing.CLOSE))
    answer = await fetch(link, Accept_Encoding="identity", Range="bytes=5-")
    assert (answer.status, answer.headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(answer.body) == content(file)


@pytest.mark.parametrize(
    ("ranges", "asked", "status", "told"),
    [
        (Ranges.IGNORED, "bytes=5-9", 200, None),
        (Ranges.UNASKED, "", 206, "bytes 0-19999/20000"),
        (Ranges.SHIFTED, "bytes=5-9", 206, "bytes 6-9/20000"),
        (Ranges.OTHER_ETAG, "bytes=5-9", 206, "bytes 5-9/20000"),
    ],
)
async def test_gets_ranges_wrong(
    simulator: Simulator, ranges: Ranges, asked: str, status: int, told: str | None
) -> None:
    """Ranges ignored, unasked, shifted, or of a file that has changed meanwhile."""
    link, _ = served(simulator, Fault(ranges=ranges))
    first, second = await fetch(link, Range=asked), await fetch(link, Range=asked)
    assert (first.status, first.headers.get("content-range")) == (status, told)
    assert (first.headers["etag"] != second.headers["etag"]) == (ranges is Ranges.OTHER_ETAG)


async def test_redirects(simulator: Simulator) -> None:
    """To itself for ever, over a number of hops to the file, or to elsewhere."""
    loop, _ = served(simulator, Fault(redirect_to="loop"))
    answer = await fetch(loop)
    assert (answer.status, answer.headers["location"]) == (302, loop.removeprefix(simulator.base_url))
    link, _ = served(simulator, Fault(redirect_hops=2))
    statuses = []
    for _ in range(3):
        answer = await fetch(link)
        statuses.append(answer.status)
        link = simulator.base_url + answer.headers.get("location", "")
    assert statuses == [302, 302, 200]


async def test_delays_and_pads(simulator: Simulator) -> None:
    """The answer comes late, and with a header as large as told."""
    link, _ = served(simulator, Fault(delay_s=0.2, header_bytes=9_000))
    started = asyncio.get_running_loop().time()
    answer = await fetch(link)
    assert asyncio.get_running_loop().time() - started >= 0.2
    assert len(answer.headers["x-padding"]) == 9_000


async def test_pages_and_large_files(simulator: Simulator) -> None:
    """An HTML page says so in its type; a file over many blocks arrives whole, and its parts fit."""
    page, _ = served(simulator, flavour=Flavour.HTML)
    assert (await fetch(page)).headers["content-type"] == "text/html"
    link, file = served(simulator, size_bytes=3_000_000)
    whole = (await fetch(link)).body
    assert whole == content(file)
    assert (await fetch(link, Range="bytes=1000001-")).body == whole[1_000_001:]
