"""What an object store promises beyond the port: refusals at start, lost answers, aborted uploads, bounds."""

import asyncio
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path

import pytest

from downloader.storage import Entry, Storage
from downloader.storage_object import PART_BYTES, ObjectStorage
from downloader.storage_uploads import ForgottenUploads
from shared.clock import system_clock
from shared.errors import Reason, RetryableError
from tests.contract.storages import ROOT, ObjectKit, other_process, said, staged, tell
from tests.object_store import Proxy, Server

AUDIO = "apibox/ab/task.wav"
KEY = "apibox/ab/task.json"
LARGE = os.urandom(2 * PART_BYTES + 1_000)
COMPLETING = "POST .*uploadId="
_ALLOWED_KIB = 100 * 1024


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (500, "InternalError", Reason.STORAGE_FAILED),
        (503, "SlowDown", Reason.STORAGE_FAILED),
        (429, "TooManyRequests", Reason.STORAGE_FAILED),
        (403, "AccessDenied", Reason.STORAGE_FAILED),
        (404, "NoSuchBucket", Reason.STORAGE_FAILED),
        (403, "QuotaExceeded", Reason.STORAGE_FULL),
        (507, "InsufficientStorage", Reason.STORAGE_FULL),
    ],
)
async def test_every_failure_is_worth_another_try_and_of_our_words(
    object_kit: ObjectKit, store_proxy: Proxy, tmp_path: Path, status: int, code: str, reason: Reason
) -> None:
    """Whatever a store answers, to whichever call, nothing of the library's comes out, and full is told from failed."""
    storage = object_kit.storage()
    await storage.keep(staged(tmp_path / "staging"), AUDIO)
    store_proxy.tell(status=status, code=code)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: storage.create(KEY, b"{}"),
        lambda: storage.keep(staged(tmp_path / "staging"), "apibox/ab/other.wav"),
        lambda: storage.read(AUDIO),
        lambda: storage.delete(AUDIO),
    ]
    for call in calls:
        with pytest.raises(RetryableError) as caught:
            await call()
        assert caught.value.reason is reason
        assert str(status) in caught.value.detail
        assert code in caught.value.detail
    if status != 404:
        for asking in (storage.exists(AUDIO), storage.digest(AUDIO), storage.replace(KEY, b"{}"), _listed(storage)):
            with pytest.raises(RetryableError) as caught:
                await asking
    store_proxy.tell()
    assert await storage.read(AUDIO) == b"audio"
    assert object_kit.listing() == {AUDIO}


async def test_a_line_that_is_cut_is_worth_another_try(
    object_kit: ObjectKit, store_proxy: Proxy, tmp_path: Path
) -> None:
    """A store that hangs up in the middle of an upload leaves nothing there; the staged file is there for the next."""
    storage = object_kit.storage()
    path = staged(tmp_path / "staging", LARGE)
    store_proxy.tell(matching="partNumber=2", cut=True)
    with pytest.raises(RetryableError) as caught:
        await storage.keep(path, AUDIO)
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert len(store_proxy.met()) > 1
    assert object_kit.listing() == set()
    store_proxy.tell()
    await storage.keep(path, AUDIO)
    assert object_kit.listing() == {AUDIO}
    assert path.read_bytes() == LARGE


async def test_who_created_is_told_though_the_answer_was_lost(object_kit: ObjectKit, store_proxy: Proxy) -> None:
    """An object that was created while the line broke is not taken for another writer's when it is tried again."""
    storage = object_kit.storage()
    store_proxy.tell(matching="PUT ", times=1, done=True, status=503)
    assert await storage.create(KEY, b"ours")
    store_proxy.tell(matching="PUT ", times=1, done=True, cut=True)
    assert not await object_kit.storage().create(KEY, b"theirs")
    assert await storage.read(KEY) == b"ours"


async def test_a_conflict_about_nothing_is_tried_again(object_kit: ObjectKit, store_proxy: Proxy) -> None:
    """S3 answers 409 while it cannot tell who is first: nobody lost as long as nothing is there."""
    storage = object_kit.storage()
    store_proxy.tell(matching="PUT ", times=1, status=409, code="ConditionalRequestConflict")
    assert await storage.create(KEY, b"ours")
    store_proxy.tell(matching="PUT ", status=409, code="ConditionalRequestConflict")
    with pytest.raises(RetryableError):
        await storage.create("apibox/ab/other.json", b"ours")


async def test_a_file_that_arrived_counts_though_the_answer_was_lost(
    object_kit: ObjectKit, store_proxy: Proxy, tmp_path: Path
) -> None:
    """Where a store completes an upload and answers 503, there is one object, no upload, and nothing to fetch again."""
    storage = object_kit.storage()
    path = staged(tmp_path / "staging", LARGE)
    store_proxy.tell(matching=COMPLETING, done=True, status=503)
    await storage.keep(path, AUDIO)
    assert len(store_proxy.met()) > 1
    store_proxy.tell()
    assert path.read_bytes() == LARGE
    assert object_kit.listing() == {AUDIO}
    assert await storage.digest(AUDIO) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())


async def test_an_upload_that_takes_too_long_is_aborted(
    object_kit: ObjectKit, store_proxy: Proxy, tmp_path: Path
) -> None:
    """A store that hangs costs a bounded time, is worth another try, and keeps no parts."""
    storage = dataclasses.replace(object_kit, transfer_timeout_s=1.0).storage()
    store_proxy.tell(matching="partNumber", delay_s=3)
    with pytest.raises(RetryableError, match="did not answer in time"):
        await storage.keep(staged(tmp_path / "staging", LARGE), AUDIO)
    store_proxy.tell()
    assert object_kit.listing() == set()


async def test_a_cancelled_upload_is_aborted(object_kit: ObjectKit, store_proxy: Proxy, tmp_path: Path) -> None:
    """A process that is asked to end leaves no parts behind, and the cancellation goes on."""
    with pytest.raises(asyncio.CancelledError):
        await _cancelled(object_kit.storage().keep(staged(tmp_path / "staging", LARGE), AUDIO), store_proxy)
    assert object_kit.listing() == set()


async def test_a_store_that_is_slow_in_reading_again_is_bounded(
    object_kit: ObjectKit, store_proxy: Proxy, tmp_path: Path
) -> None:
    """Reading a file again ends in time, whatever the store does."""
    storage = dataclasses.replace(object_kit, transfer_timeout_s=1.0).storage()
    await storage.keep(staged(tmp_path / "staging"), AUDIO)
    store_proxy.tell(matching="GET ", delay_s=5)
    with pytest.raises(RetryableError, match="did not answer in time"):
        await storage.digest(AUDIO)


async def test_the_store_is_asked_to_check_what_it_gets(object_kit: ObjectKit, tmp_path: Path) -> None:
    """Every part goes with its SHA-256, which a store checks before it takes it, and remembers."""
    storage = object_kit.storage()
    await storage.keep(staged(tmp_path / "staging", LARGE), AUDIO)
    assert object_kit.bucket.headers(AUDIO)["x-amz-checksum-algorithm"].upper() == "SHA256"
    assert object_kit.bucket.headers(AUDIO)["x-amz-checksum-sha256"]
    assert object_kit.bucket.get(AUDIO) == LARGE


async def test_a_file_that_changed_while_it_is_read_again_is_told(object_kit: ObjectKit, tmp_path: Path) -> None:
    """A digest is that of one object, never of the halves of two."""
    storage = object_kit.storage()
    await storage.keep(staged(tmp_path / "staging", LARGE), AUDIO)
    ranges = storage._range  # type: ignore[attr-defined]

    async def replaced_meanwhile(key: str, start: int, there: object) -> bytes:
        if start:
            await object_kit.storage().replace(AUDIO, LARGE[::-1])
        return bytes(await ranges(key, start, there))

    storage._range = replaced_meanwhile  # type: ignore[attr-defined]
    with pytest.raises(RetryableError, match="412"):
        await storage.digest(AUDIO)


async def test_files_say_what_they_are(object_kit: ObjectKit, tmp_path: Path) -> None:
    """Who opens an object in a browser hears it, or reads it."""
    storage = object_kit.storage()
    await storage.keep(staged(tmp_path / "staging"), AUDIO)
    await storage.create(KEY, b"{}")
    assert object_kit.bucket.headers(AUDIO)["content-type"] == "audio/wav"
    assert object_kit.bucket.headers(KEY)["content-type"] == "application/json"


async def test_the_documented_rights_are_exactly_those_used(
    object_kit: ObjectKit, store_proxy: Proxy, tmp_path: Path
) -> None:
    """Who gives the policy that is delivered gives what is needed, and nothing more."""
    store_proxy.tell(dropped=["x-no-such-header"])
    storage = object_kit.storage()
    await storage.start()
    await storage.keep(staged(tmp_path / "staging", LARGE), AUDIO)
    await storage.replace(KEY, b"{}")
    assert not await storage.create(KEY, b"{}")
    await storage.digest(AUDIO)
    uploads = ForgottenUploads(
        object_kit.bucket.address,
        executor=object_kit.executor,
        transfer_timeout_s=object_kit.transfer_timeout_s,
        clock=system_clock,
    )
    assert [key async for key in uploads.sweep()] == []
    used = {_right(line) for line in store_proxy.met()}
    with pytest.raises(asyncio.CancelledError):
        await _cancelled(storage.keep(staged(tmp_path / "staging", LARGE), AUDIO), store_proxy)
    policy = json.loads((ROOT / "deploy/s3/policy.json").read_text())
    granted = [action for each in policy["Statement"] for action in _all(each["Action"])]
    assert sorted(used | {_right(line) for line in store_proxy.met()}) == sorted(granted)


def test_the_delivered_rule_ends_forgotten_uploads() -> None:
    """The rule for the bucket aborts uploads after a day, and touches no object."""
    (rule,) = json.loads((ROOT / "deploy/s3/lifecycle.json").read_text())["Rules"]
    assert rule["Status"] == "Enabled"
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert not set(rule) & {"Expiration", "Transitions", "NoncurrentVersionExpiration"}


async def test_a_store_that_lists_in_no_order_is_refused(
    object_kit: ObjectKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What belongs to one task must come together: a store that does otherwise is told, not believed."""

    async def disordered(_: ObjectStorage, __: str) -> AsyncIterator[Entry]:
        for key in ("kie/ab/b.json", "kie/ab/a.json"):
            yield Entry(key, 1, datetime.now(UTC))

    monkeypatch.setattr(ObjectStorage, "_entries", disordered)
    with pytest.raises(RetryableError, match="order of keys") as caught:
        await _listed(object_kit.storage())
    assert caught.value.reason is Reason.STORAGE_FAILED


def test_the_library_is_loaded_only_where_a_store_is_configured(tmp_path: Path) -> None:
    """Who keeps files in a folder pays neither its memory nor its time at start."""
    code = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from downloader.app import DownloaderSettings\n"
        "from downloader.storage_factory import build_storage, build_uploads\n"
        "from shared.clock import system_clock\n"
        "import cli.audit, cli.replace, cli.retention, cli.status, standalone.app\n"
        "executor = ThreadPoolExecutor(1)\n"
        "def build(**settings):\n"
        "    settings = DownloaderSettings(**settings)\n"
        "    uploads = build_uploads(settings, executor=executor, clock=system_clock)\n"
        "    return build_storage(settings, executor=executor), uploads\n"
        "assert build()[1] is None\n"
        "assert not {'obstore', 'botocore'} & set(sys.modules)\n"
        "assert build(storage_url='gs://bucket/kept')[1] is None\n"
        "assert 'botocore' not in sys.modules\n"
        "assert build(storage_url='s3://bucket/kept')[1] is not None\n"
        "assert {'obstore', 'botocore'} <= set(sys.modules)\n"
    )
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("WAVEKEEP_", "AWS_"))}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=surroundings)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_memory_does_not_grow_with_a_file(
    object_kit: ObjectKit, s3_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file of a gigabyte is put, and a smaller one read again, with the memory of a few parts.

    The server opens the whole object for each range, so that reading a gigabyte again would take it minutes.
    """
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    code = object_kit.opener() + (
        "import asyncio, re, sys\n"
        "from pathlib import Path\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "async def keep(name, size):\n"
        "    path = Path(sys.argv[1]) / name\n"
        "    path.open('wb').truncate(size)\n"
        "    await storage.keep(path, name)\n"
        "async def both():\n"
        "    await keep('small.wav', 1_000)\n"
        "    before = peak()\n"
        "    await keep('large.wav', 1_000_000_000)\n"
        "    await keep('again.wav', 150_000_000)\n"
        "    assert (await storage.digest('again.wav'))[0] == 150_000_000\n"
        "    print(peak() - before, flush=True)\n"
        "sys.stdin.readline()\n"
        "asyncio.run(both())\n"
    )
    with other_process(code, str(tmp_path)) as process:
        tell(process, "go")
        grown_kib = int(await said(process, within_s=280))
    assert object_kit.listing() == {"small.wav", "large.wav", "again.wav"}
    assert grown_kib < _ALLOWED_KIB


async def _cancelled(keeping: Coroutine[object, object, None], store_proxy: Proxy) -> None:
    """Cancel what keeps a file as soon as a part of it is on its way."""
    store_proxy.tell(matching="uploadId=", delay_s=2)
    task = asyncio.create_task(keeping)
    async with asyncio.timeout(10):
        while not any("partNumber" in line for line in store_proxy.met()):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.005)
    task.cancel()
    await task


def _all(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _right(line: str) -> str:
    """Return the right that S3 asks for before it does a request."""
    if "list-type=2" in line:
        return "s3:ListBucket"
    if "?uploads&" in line and line.startswith("GET "):
        return "s3:ListBucketMultipartUploads"
    method, _, path = line.partition(" ")
    if method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId=" in path else "s3:DeleteObject"
    return {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "POST": "s3:PutObject"}[method]


async def _listed(storage: Storage) -> list[str]:
    return [entry.key async for entry in storage.list()]
