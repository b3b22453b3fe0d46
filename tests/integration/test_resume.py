"""Cut downloads go on where they broke off: over real sockets, with a server that cuts, changes its file, or lies."""

import base64
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import anycrc
import pytest
from aiohttp import web

from downloader.attempt import Proof
from downloader.fence import Fence, parse_opening
from downloader.fetch import Fetched, Fetcher, Limits
from downloader.staging import LEAST_PROGRESS_BYTES, Staging
from shared.errors import Reason, RetryableError
from shared.operations import serving
from simulator.wavs import wav

MIB = 1024 * 1024
TASK = "kie/task-1"


@dataclass
class CuttingServer:
    """Serves one file, and breaks the connection after so many bytes.

    Attributes:
        cut_after: bytes of each answer; None lets it end.
        validators: headers that tell the file from another one.
        promised: more headers.
        requests: the `Range` and `If-Range` of each request.
        sent: bytes of bodies, all together.
        part: how a range is answered: `right`, or in which way not.
    """

    path: Path
    port: int = 0
    cut_after: int | None = None
    validators: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    promised: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str | None, str | None]] = field(default_factory=list)
    sent: int = 0
    part: str = "right"
    status: int | None = None

    @property
    def url(self) -> str:
        """The link of the file."""
        return f"http://127.0.0.1:{self.port}/song.wav?Signature={len(self.requests)}"

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer with the file, or with the part that is asked for."""
        asked, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.requests.append((asked, condition))
        if self.status is not None:
            return web.Response(status=self.status)
        size = self.path.stat().st_size
        start = 0
        if asked and condition in self.validators.values() and self.part != "ignored":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        response = web.StreamResponse(status=206 if start else 200, headers={**self.validators, **self.promised})
        response.headers["Date"] = "Sat, 21 Nov 2026 12:00:00 GMT"
        response.content_length = size - start
        if start:
            self._describe_part(response, start, size)
        await response.prepare(request)
        await self._send(request, response, start, size)
        return response

    def _describe_part(self, response: web.StreamResponse, start: int, size: int) -> None:
        told = {
            "shifted": f"bytes {start + 1}-{size - 1}/{size}",
            "short": f"bytes {start}-{size - 2}/{size}",
            "unknown": f"bytes {start}-{size - 1}/*",
            "nonsense": "the rest",
            "longer": f"bytes {start}-{size}/{size + 1}",
        }.get(self.part, f"bytes {start}-{size - 1}/{size}")
        response.headers["Content-Range"] = told
        if self.part == "other":
            response.headers["ETag"] = '"two"'
        if self.part == "untagged":
            del response.headers["ETag"]
        if self.part == "newer":
            response.headers["Last-Modified"] = "Sat, 21 Nov 2026 11:30:00 GMT"

    async def _send(self, request: web.Request, response: web.StreamResponse, start: int, size: int) -> None:
        end = size if self.cut_after is None else min(size, start + self.cut_after)
        with self.path.open("rb") as file:
            file.seek(start)
            while start < end:
                block = file.read(min(256 * 1024, end - start))
                await response.write(block)
                start += len(block)
                self.sent += len(block)
        if end < size and request.transport is not None:
            await response.drain()
            request.transport.close()


@pytest.fixture
def executor() -> Iterator[Executor]:
    """Threads for what blocks."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[CuttingServer]:
    """A server of a file of about 5 MB."""
    path = tmp_path / "song.wav"
    path.write_bytes(b"".join(wav(duration_s=30).blocks()))
    server = CuttingServer(path)
    app = web.Application()
    app.router.add_get("/song.wav", server.get)
    async with serving(app, "127.0.0.1", 0, shutdown_timeout_s=0.1) as server.port:
        yield server


@pytest.fixture
async def fetcher(executor: Executor) -> AsyncIterator[Fetcher]:
    """A fetcher with loopback opened."""
    limits = Limits(max_bytes=2 << 30, min_bytes_per_s=1, attempt_timeout_s=60)
    async with Fetcher(Fence((parse_opening("127.0.0.0/8"),)), limits, executor=executor) as fetcher:
        yield fetcher


@pytest.fixture
async def staging(tmp_path: Path, executor: Executor) -> Staging:
    """A started staging folder."""
    staging = Staging(tmp_path / "staging", executor=executor)
    await staging.start()
    return staging


async def attempt(fetcher: Fetcher, staging: Staging, url: str, target: Path) -> tuple[Fetched, Proof]:
    """Make one attempt as custody does; move what is whole away."""
    async with staging.attempt(TASK) as one:
        fetched = await fetcher.fetch(url, one)
        proof = await staging.prove(one, body_proven_complete=fetched.transport != "close_delimited")
        one.path.rename(target)
        return fetched, proof


async def failed(fetcher: Fetcher, staging: Staging, url: str, target: Path) -> RetryableError:
    """Make one attempt that fails; return why."""
    with pytest.raises(RetryableError) as caught:
        await attempt(fetcher, staging, url, target)
    return caught.value


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def test_a_cut_download_goes_on(
    server: CuttingServer, fetcher: Fetcher, staging: Staging, tmp_path: Path
) -> None:
    """The next attempt asks for the rest only, says of what, and ends with the very file; nothing stays behind."""
    server.cut_after = 2 * MIB
    error = await failed(fetcher, staging, server.url, tmp_path / "kept")
    assert (error.reason, error.progressed) == (Reason.BODY_CUT, True)
    server.cut_after = None
    fetched, proof = await attempt(fetcher, staging, server.url, tmp_path / "kept")
    assert server.requests == [(None, None), (f"bytes={fetched.resumed_at}-", '"one"')]
    assert fetched.resumed_at >= MIB
    assert fetched.transport == "content_range"
    assert fetched.resumed_at + fetched.size_bytes == server.path.stat().st_size
    assert proof.sha256 == sha256(tmp_path / "kept") == sha256(server.path)
    assert list((tmp_path / "staging").iterdir()) == []


async def test_a_gigabyte_cut_every_fifty_megabytes_ends_whole(
    fetcher: Fetcher, staging: Staging, server: CuttingServer, tmp_path: Path
) -> None:
    """Over a line that is cut again and again, less than a tenth of the bytes is fetched twice."""
    size = 1_000_000_000
    header = b"".join(wav(duration_s=0.001).blocks())[:44]
    audio = size - len(header)
    header = header[:4] + (size - 8).to_bytes(4, "little") + header[8:40] + audio.to_bytes(4, "little")
    server.path.write_bytes(header)
    os.truncate(server.path, size)
    server.cut_after = 50_000_000
    for _ in range(19):
        error = await failed(fetcher, staging, server.url, tmp_path / "kept")
        assert (error.reason, error.progressed) == (Reason.BODY_CUT, True)
    server.cut_after = None  # the rest is a little longer, because of what broke off on its way each time
    fetched, proof = await attempt(fetcher, staging, server.url, tmp_path / "kept")
    assert fetched.resumed_at + fetched.size_bytes == size
    assert proof.judgement.format.frames == audio // 4
    assert proof.sha256 == sha256(server.path)
    assert server.sent < 1.1 * size


@pytest.mark.parametrize("part", ["shifted", "short", "unknown", "nonsense", "longer", "other", "untagged", "newer"])
async def test_another_part_than_asked_for_starts_over(
    server: CuttingServer, fetcher: Fetcher, staging: Staging, tmp_path: Path, part: str
) -> None:
    """A part that is not surely the rest of this very file is refused, and the next attempt begins at the beginning.

    So it is although the server believes to have heeded `If-Range`.
    """
    server.validators["Last-Modified"] = "Sat, 21 Nov 2026 11:00:00 GMT"
    server.cut_after = 2 * MIB
    await failed(fetcher, staging, server.url, tmp_path / "kept")
    server.cut_after, server.part = None, part
    error = await failed(fetcher, staging, server.url, tmp_path / "kept")
    assert (error.reason, error.progressed) == (Reason.ANSWER_INVALID, False)
    fetched, proof = await attempt(fetcher, staging, server.url, tmp_path / "kept")
    assert (fetched.resumed_at, proof.sha256) == (0, sha256(server.path))


@pytest.mark.parametrize("how", ["ignored", "changed"])
async def test_a_server_that_sends_all_of_it_again_is_believed(
    server: CuttingServer, fetcher: Fetcher, staging: Staging, tmp_path: Path, how: str
) -> None:
    """Without ranges, or of a file that has changed meanwhile, the whole comes and what was there is thrown away."""
    server.cut_after = 2 * MIB
    await failed(fetcher, staging, server.url, tmp_path / "kept")
    server.cut_after = None
    if how == "ignored":
        server.part = "ignored"
    else:
        server.validators = {"ETag": '"two"'}
        server.path.write_bytes(b"".join(wav(duration_s=20, seed=7).blocks()))
    fetched, proof = await attempt(fetcher, staging, server.url, tmp_path / "kept")
    assert fetched.resumed_at == 0
    assert proof.sha256 == sha256(server.path) == sha256(tmp_path / "kept")


@pytest.mark.parametrize(
    ("validators", "resumes"),
    [
        ({"ETag": '"strong"'}, True),
        ({"ETag": 'W/"weak"'}, False),
        ({"ETag": '"one"', "Accept-Ranges": "none"}, False),
        ({"Last-Modified": "Sat, 21 Nov 2026 11:00:00 GMT"}, True),
        ({"Last-Modified": "Sat, 21 Nov 2026 11:59:59 GMT"}, False),
        ({"Last-Modified": "yesterday"}, False),
        ({}, False),
    ],
)
async def test_only_what_surely_tells_files_apart_is_gone_on_from(
    server: CuttingServer,
    fetcher: Fetcher,
    staging: Staging,
    tmp_path: Path,
    validators: dict[str, str],
    *,
    resumes: bool,
) -> None:
    """Without a strong validator two files could be sewn together, so the next attempt begins at the beginning."""
    server.validators, server.cut_after = validators, 2 * MIB
    await failed(fetcher, staging, server.url, tmp_path / "kept")
    server.cut_after = None
    fetched, proof = await attempt(fetcher, staging, server.url, tmp_path / "kept")
    assert (fetched.resumed_at > 0) is resumes
    assert proof.sha256 == sha256(server.path)


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
async def test_a_refusal_in_between_costs_nothing(
    server: CuttingServer, fetcher: Fetcher, staging: Staging, tmp_path: Path, status: int
) -> None:
    """An expired link or a busy host keeps what is there; it counts as no progress."""
    server.cut_after = 2 * MIB
    await failed(fetcher, staging, server.url, tmp_path / "kept")
    server.cut_after, server.status = None, status
    assert not (await failed(fetcher, staging, server.url, tmp_path / "kept")).progressed
    server.status = None
    fetched, proof = await attempt(fetcher, staging, server.url, tmp_path / "kept")
    assert fetched.resumed_at >= MIB
    assert proof.sha256 == sha256(server.path)


async def test_a_server_that_drips_makes_no_progress(
    server: CuttingServer, fetcher: Fetcher, staging: Staging, tmp_path: Path
) -> None:
    """A few bytes an attempt do not keep it on the first rungs of the ladder."""
    server.cut_after = LEAST_PROGRESS_BYTES // 2
    assert not (await failed(fetcher, staging, server.url, tmp_path / "kept")).progressed


async def test_a_partial_file_that_cannot_be_a_wav_is_thrown_away(
    server: CuttingServer, fetcher: Fetcher, staging: Staging, tmp_path: Path
) -> None:
    """Bytes that were refused are not gone on from."""
    server.path.write_bytes(b"<html>busy</html>" * 100_000)
    assert (await failed(fetcher, staging, server.url, tmp_path / "kept")).reason is Reason.NOT_WAV
    assert list((tmp_path / "staging").iterdir()) == []


async def test_a_digest_of_the_server_is_held_against_the_whole(
    server: CuttingServer, fetcher: Fetcher, staging: Staging, tmp_path: Path
) -> None:
    """What it promises of the file is checked over all its bytes, also those that came in an earlier attempt."""
    whole = hashlib.sha256(server.path.read_bytes()).digest()
    server.promised = {"x-goog-hash": "md5=AAAAAAAAAAAAAAAAAAAAAA=="}
    server.cut_after = 2 * MIB
    await failed(fetcher, staging, server.url, tmp_path / "kept")
    server.cut_after = None
    _, proof = await attempt(fetcher, staging, server.url, tmp_path / "kept")
    assert (proof.matched, proof.differs) == ((), ("x-goog-hash md5",))
    server.promised = {"Repr-Digest": f"sha-256=:{base64.b64encode(whole).decode()}:"}
    server.cut_after = 2 * MIB
    await failed(fetcher, staging, server.url, tmp_path / "kept")
    server.cut_after, server.promised = None, {}  # what was promised first still holds
    _, proof = await attempt(fetcher, staging, server.url, tmp_path / "kept")
    assert proof.matched == ("repr-digest sha-256",)


@pytest.mark.parametrize("cut", [False, True], ids=["at once", "cut and resumed"])
async def test_the_default_checksum_of_s3_is_held_against_the_whole(
    fetcher: Fetcher, staging: Staging, server: CuttingServer, tmp_path: Path, *, cut: bool
) -> None:
    """A link into S3 brings CRC-64/NVME by default: what it promises of the whole must hold, however the bytes came."""
    content = server.path.read_bytes()
    for checked, promised in (("matched", content), ("differs", content[:-1] + b"\xaa")):
        crc = anycrc.Model("CRC64-NVME").calc(promised).to_bytes(8, "big")
        told = {"x-amz-checksum-crc64nvme": base64.b64encode(crc).decode(), "x-amz-checksum-type": "FULL_OBJECT"}
        server.promised, server.cut_after = told, 2 * MIB if cut else None
        if cut:
            await failed(fetcher, staging, server.url, tmp_path / "kept")
            server.cut_after = None
        fetched, proof = await attempt(fetcher, staging, server.url, tmp_path / "kept")
        assert bool(fetched.resumed_at) is cut
        assert getattr(proof, checked) == ("x-amz-checksum-crc64nvme crc64nvme",)
        assert (tmp_path / "kept").read_bytes() == content
