"""Staging: an attempt hashes, walks and writes in one pass, and leaves nothing behind."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from downloader.answer import Known
from downloader.attempt import Attempt
from downloader.fetch import Head, Held
from downloader.staging import Staging
from shared.errors import PermanentError, Reason, RetryableError, StartError
from simulator.wavs import Flavour, wav

FILE = wav(duration_s=0.5)
CONTENT = b"".join(FILE.blocks())


@pytest.fixture
def executor() -> Iterator[Executor]:
    """Threads for what blocks."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
async def staging(tmp_path: Path, executor: Executor) -> Staging:
    """A started staging folder."""
    staging = Staging(tmp_path / "staging", executor=executor)
    assert await staging.start() == 0
    return staging


def left(tmp_path: Path) -> list[Path]:
    """Return what is in the staging folder."""
    return list((tmp_path / "staging").iterdir())


@pytest.mark.parametrize("piece_bytes", [1, 4_097, len(CONTENT)])
async def test_an_attempt_writes_hashes_and_walks(staging: Staging, piece_bytes: int) -> None:
    """However the bytes were cut on the way, the file, its digest and its format are those that were sent."""
    content = CONTENT[:5_000] if piece_bytes == 1 else CONTENT
    async with staging.attempt() as attempt:
        for at in range(0, len(content), piece_bytes):
            attempt.write(content[at : at + piece_bytes])
        assert attempt.path.read_bytes() == content
        assert attempt.size_bytes == len(content)
        if content is CONTENT:
            proof = attempt.prove(body_proven_complete=True)
            judgement = proof.judgement
            assert proof.sha256 == sha256(CONTENT).hexdigest() == FILE.sha256()
            assert judgement.format.sample_rate_hz == 44_100
            assert judgement.warnings == ()


async def test_a_cut_file_is_not_proven(staging: Staging, tmp_path: Path) -> None:
    """A file that lacks its end is worth another try and never handed on."""
    async with staging.attempt() as attempt:
        attempt.write(CONTENT[:-10])
        with pytest.raises(RetryableError) as caught:
            attempt.prove(body_proven_complete=True)
    assert caught.value.reason is Reason.WAV_TRUNCATED
    assert left(tmp_path) == []


async def test_a_note_never_stands_beside_other_bytes(staging: Staging, tmp_path: Path) -> None:
    """A file that begins anew without a validator is nothing to go on from, even if the process dies meanwhile."""
    link, head = "https://files.example.com/a.wav", Known(validator='"one"')

    async def cut_off() -> None:
        async with staging.attempt("kie/1") as attempt:
            attempt.begin(Head(link, 0, head, (), None))
            attempt.write(CONTENT[:1_000])
            raise RetryableError(Reason.BODY_CUT, "cut")

    with pytest.raises(RetryableError):
        await cut_off()
    async with staging.attempt("kie/1") as attempt:
        assert attempt.held(link) == Held(1_000, head)
        attempt.begin(Head(link, 0, None, (), None))
        attempt.write(CONTENT[:2_000])
        assert [path.suffix for path in left(tmp_path)] == [".part"]


async def test_an_open_length_needs_a_proven_end(staging: Staging) -> None:
    """Where neither header nor transport tells the length, nobody can say whether the file is whole."""
    content = b"".join(wav(duration_s=0.1, flavour=Flavour.STREAMING_HEADER).blocks())
    for proven in (True, False):
        async with staging.attempt() as attempt:
            attempt.write(content)
            if proven:
                judgement = attempt.prove(body_proven_complete=True).judgement
                assert [str(warning) for warning in judgement.warnings] == ["streaming_header"]
            else:
                with pytest.raises(RetryableError):
                    attempt.prove(body_proven_complete=False)


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"<!DOCTYPE html><html>", RetryableError, Reason.NOT_WAV),
        (b"".join(wav(duration_s=0.1, flavour=Flavour.ALAW).blocks()), PermanentError, Reason.WAV_UNSUPPORTED),
    ],
)
async def test_what_cannot_become_a_wav_fails_at_its_first_bytes(
    staging: Staging, tmp_path: Path, content: bytes, kind: type[Exception], reason: Reason
) -> None:
    """Not a byte more than needed is fetched of what will be refused, and none of it is written."""
    with pytest.raises(kind) as caught:
        async with staging.attempt() as attempt:
            attempt.write(content[:100])
    assert getattr(caught.value, "reason", None) is reason
    assert attempt.size_bytes == 0
    assert left(tmp_path) == []


async def test_nothing_is_left_after_success(staging: Staging, tmp_path: Path) -> None:
    """A file that nobody moved away is removed; one that was moved away stays where it is."""
    async with staging.attempt() as attempt:
        attempt.write(CONTENT)
        assert left(tmp_path) == [attempt.path]
    assert left(tmp_path) == []
    async with staging.attempt() as attempt:
        attempt.write(CONTENT)
        attempt.path.rename(tmp_path / "kept")
    assert left(tmp_path) == []
    assert (tmp_path / "kept").read_bytes() == CONTENT


async def test_nothing_is_left_after_cancellation(staging: Staging, tmp_path: Path) -> None:
    """The end of the process in the middle of a download leaves no file."""
    begun = asyncio.Event()

    async def download() -> None:
        async with staging.attempt() as attempt:
            attempt.write(CONTENT[:1_000])
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(download())
    await begun.wait()
    assert len(left(tmp_path)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(tmp_path) == []


class LateExecutor(Executor):
    """Does the work at once, but says so only when it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Work now, tell later."""
        future: Future[Any] = Future()
        result = fn(*args, **kwargs)
        if isinstance(result, Attempt):
            self.let_go.append(lambda: future.set_result(result))
            self.begun.set()
        else:
            future.set_result(result)
        return future


async def test_nothing_is_left_when_cancelled_while_it_begins(tmp_path: Path) -> None:
    """A cancellation that comes while the thread makes the file does not orphan it."""
    executor = LateExecutor()
    staging = Staging(tmp_path / "staging", executor=executor)
    await staging.start()

    async def download() -> None:
        async with staging.attempt():
            raise AssertionError("it was cancelled before")

    task = asyncio.create_task(download())
    await executor.begun.wait()
    assert len(left(tmp_path)) == 1
    task.cancel()
    await asyncio.sleep(0)
    executor.let_go[0]()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(tmp_path) == []


async def test_a_folder_that_is_gone_is_worth_another_try(staging: Staging, tmp_path: Path) -> None:
    """A disk that fails in the middle is told by our word for it."""
    (tmp_path / "staging").rmdir()
    with pytest.raises(RetryableError) as caught:
        async with staging.attempt():
            raise AssertionError("there is nowhere to write to")
    assert caught.value.reason is Reason.STORAGE_FAILED


async def test_an_unusable_folder_is_refused_at_start(tmp_path: Path, executor: Executor) -> None:
    """The sentence names the folder and the setting."""
    (tmp_path / "staging").write_text("a file")
    with pytest.raises(StartError, match="WAVEKEEP_DATA_DIR"):
        await Staging(tmp_path / "staging", executor=executor).start()
