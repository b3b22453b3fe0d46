"""Uploads that nobody will end are ended: on a real server, after a real kill, and never one that may be alive."""

import asyncio
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from downloader.storage_failure import StoreError
from downloader.storage_object import PART_BYTES
from downloader.storage_uploads import LEAST_AGE, ForgottenUploads, _client
from shared.clock import system_clock
from tests.contract.storages import ObjectKit, other_process, tell
from tests.object_store import Proxy
from tests.object_store_proxy import BEGUN

AUDIO = "apibox/ab/task.0123456789ab.wav"
YOUNG = "kie/cd/task.0123456789ab.wav"
BELOW = "kept/here/"


def uploads(kit: ObjectKit, *, least_age: timedelta = LEAST_AGE) -> ForgottenUploads:
    """Return what sweeps a place."""
    return ForgottenUploads(
        kit.bucket.address,
        executor=kit.executor,
        transfer_timeout_s=kit.transfer_timeout_s,
        clock=system_clock,
        least_age=least_age,
    )


def begun(proxy: Proxy, ago: timedelta) -> None:
    """Have the store tell of all uploads that they were begun so long ago."""
    told = (system_clock() - ago).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    proxy.tell(matching=r"GET .*\?uploads", replaced={BEGUN: told})


async def swept(found: ForgottenUploads) -> list[str]:
    """Sweep, and return what was ended."""
    return [key async for key in found.sweep()]


async def test_what_a_killed_process_left_is_ended(object_kit: ObjectKit, store_proxy: Proxy, tmp_path: Path) -> None:
    """A kill in the middle of an upload leaves one; it stays while it may be alive, and goes after that."""
    (tmp_path / "large.wav").write_bytes(os.urandom(2 * PART_BYTES))
    code = object_kit.opener() + (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "sys.stdin.readline()\n"
        f"asyncio.run(storage.keep(Path(sys.argv[1]), {AUDIO!r}))\n"
    )
    store_proxy.tell(matching="partNumber=", delay_s=60)
    with other_process(code, str(tmp_path / "large.wav")) as process:
        tell(process, "go")
        async with asyncio.timeout(20):
            while not store_proxy.met():  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.01)
        process.kill()
        await asyncio.to_thread(process.wait)
    for ago in (timedelta(), LEAST_AGE - timedelta(minutes=1)):
        begun(store_proxy, ago)
        assert await swept(uploads(object_kit)) == []
        assert object_kit.bucket.uploads() == [f"{BELOW}{AUDIO}"]
    assert await swept(uploads(object_kit, least_age=timedelta())) == [AUDIO]
    assert object_kit.bucket.uploads() == []
    object_kit.bucket.begin_upload(f"{BELOW}{YOUNG}")
    begun(store_proxy, LEAST_AGE + timedelta(minutes=1))
    assert await swept(uploads(object_kit)) == [YOUNG]
    assert object_kit.bucket.uploads() == []


async def test_where_transfers_are_long_uploads_live_longer(object_kit: ObjectKit, store_proxy: Proxy) -> None:
    """The age that is taken for dead follows the longest transfer that any replica may be at."""
    object_kit.bucket.begin_upload(f"{BELOW}{AUDIO}")
    begun(store_proxy, 2 * LEAST_AGE)
    patient = dataclasses.replace(object_kit, transfer_timeout_s=LEAST_AGE.total_seconds())
    assert await swept(uploads(patient)) == []
    assert await swept(uploads(object_kit)) == [AUDIO]


async def test_what_is_not_ours_is_left(object_kit: ObjectKit) -> None:
    """In a bucket that others use too, only keys below our prefix, and such as we make, are ended."""
    others = {"elsewhere/apibox/ab/task.0123456789ab.wav", f"{BELOW}backup.tar", f"{BELOW}apibox/ab/task.json"}
    for key in (*others, f"{BELOW}{AUDIO}"):
        object_kit.bucket.begin_upload(key)
    assert await swept(uploads(object_kit, least_age=timedelta())) == [AUDIO]
    assert set(object_kit.bucket.uploads()) == others


async def test_several_that_sweep_at_once_do_not_disturb_one_another(object_kit: ObjectKit) -> None:
    """What another replica was faster with is no failure, and each upload is told at least by one."""
    keys = {f"apibox/ab/{number}.0123456789ab.wav" for number in range(20)}
    for key in keys:
        object_kit.bucket.begin_upload(f"{BELOW}{key}")
    both = await asyncio.gather(*(swept(uploads(object_kit, least_age=timedelta())) for _ in range(2)))
    assert {*both[0], *both[1]} == keys
    assert object_kit.bucket.uploads() == []


@pytest.mark.parametrize(
    ("status", "code", "denied"),
    [
        (403, "AccessDenied", True),
        (501, "NotImplemented", True),
        (503, "SlowDown", False),
        (500, "InternalError", False),
    ],
)
@pytest.mark.parametrize("call", ["GET ", "DELETE "])
async def test_a_refusal_is_told_from_a_failure(
    object_kit: ObjectKit, store_proxy: Proxy, call: str, status: int, code: str, *, denied: bool
) -> None:
    """A missing right, to list or to abort, will be missing again; all else is in our words too."""
    object_kit.bucket.begin_upload(f"{BELOW}{AUDIO}")
    store_proxy.tell(matching=call, status=status, code=code)
    with pytest.raises(StoreError, match=f"answered {status} \\({code}\\)") as caught:
        await swept(uploads(object_kit, least_age=timedelta()))
    assert caught.value.denied is denied
    assert len(store_proxy.met()) == 1


async def test_a_store_that_hangs_up_is_told_in_our_words(object_kit: ObjectKit, store_proxy: Proxy) -> None:
    """A line that breaks is a store's failure, and the next sweep is none the worse for it."""
    object_kit.bucket.begin_upload(f"{BELOW}{AUDIO}")
    found = uploads(object_kit, least_age=timedelta())
    store_proxy.tell(matching="GET ", cut=True)
    with pytest.raises(StoreError, match="could not be used"):
        await swept(found)
    store_proxy.tell()
    assert await swept(found) == [AUDIO]


class Pages:
    """A client whose listing takes two pages."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.aborted: list[str] = []

    def list_multipart_uploads(self, **asked: str) -> dict[str, object]:
        """Return the next page."""
        self.asked.append(asked)
        first = len(self.asked) == 1
        upload = {"Key": f"{BELOW}{AUDIO if first else YOUNG}", "UploadId": "1", "Initiated": system_clock()}
        more = {"IsTruncated": True, "NextKeyMarker": "k", "NextUploadIdMarker": "u"} if first else {}
        return {"Uploads": [upload], **more}

    def abort_multipart_upload(self, **asked: str) -> None:
        """Take note."""
        self.aborted.append(asked["Key"])


async def test_every_page_is_swept() -> None:
    """Beyond the thousand uploads that a store tells at once, the next page is asked for by both of its markers."""
    with ThreadPoolExecutor(1) as executor:
        found = ForgottenUploads(
            "s3://bucket/kept/here",
            executor=executor,
            transfer_timeout_s=1,
            clock=lambda: system_clock() + timedelta(seconds=1),
            least_age=timedelta(),
        )
        found._client = pages = Pages()
        assert await swept(found) == [AUDIO, YOUNG]
    assert [asked["Prefix"] for asked in pages.asked] == [BELOW, BELOW]
    assert (pages.asked[1]["KeyMarker"], pages.asked[1]["UploadIdMarker"]) == ("k", "u")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "https://s3.eu-central-1.amazonaws.com"),
        ({"AWS_ENDPOINT_URL": "http://store.example.com:9000"}, "http://store.example.com:9000"),
        (
            {"AWS_ENDPOINT_URL_S3": "https://s3.example.com", "AWS_ENDPOINT_URL": "https://example.com"},
            "https://s3.example.com",
        ),
        (
            {"AWS_ENDPOINT_URL": "https://bucket.example.com", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
            "https://example.com",
        ),
    ],
)
def test_it_goes_where_the_files_go(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], url: str) -> None:
    """Region and endpoint are those of the storage's library, and a profile of this machine changes nothing."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    client = _client("bucket", {**given, "AWS_REGION": "eu-central-1"})
    assert (client.meta.endpoint_url, client.meta.region_name) == (url, "eu-central-1")
    assert client.meta.config.s3["addressing_style"] == ("virtual" if "bucket." in str(given) else "path")
