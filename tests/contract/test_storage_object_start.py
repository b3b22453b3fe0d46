"""Whether an object store can be used is told at start, in one sentence: conditions, rights, bucket, endpoint."""

import dataclasses
from pathlib import Path

import pytest

from downloader.storage_object import ObjectStorage
from downloader.storage_store import open_store
from shared.errors import StartError
from simulator.rabbitmq_local import free_ports
from tests.contract.storages import ObjectKit
from tests.object_store import Bucket, Proxy, Server

KEY = "apibox/ab/task.json"


async def test_a_store_that_ignores_the_condition_is_refused(object_kit: ObjectKit, store_proxy: Proxy) -> None:
    """A store that lets a second creator win never keeps files of two downloaders; the sentence says what to do."""
    store_proxy.tell(dropped=["if-none-match"])
    with pytest.raises(StartError, match="WAVEKEEP_STORAGE_SINGLE_WRITER=true"):
        await object_kit.storage().start()
    assert object_kit.listing() == set()


async def test_a_single_writer_creates_once_on_any_store(object_kit: ObjectKit, store_proxy: Proxy) -> None:
    """Who says to be alone may use such a store, and still never writes over what is there."""
    store_proxy.tell(dropped=["if-none-match"])
    storage = dataclasses.replace(object_kit, single_writer=True).storage()
    await storage.start()
    assert await storage.create(KEY, b"first")
    assert not await storage.create(KEY, b"second")
    assert await storage.read(KEY) == b"first"


@pytest.mark.parametrize(
    ("manner", "told"),
    [
        ({"status": 403, "code": "InvalidAccessKeyId"}, ["403", "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"]),
        ({"status": 403, "code": "AccessDenied", "matching": "DELETE "}, ["AccessDenied", "docs/storage.md"]),
        ({"status": 403, "code": "AccessDenied", "matching": "list-type"}, ["AccessDenied", "docs/storage.md"]),
        ({"status": 501, "code": "NotImplemented", "matching": "PUT "}, ["501", "conditional writes"]),
        ({"status": 301, "code": "PermanentRedirect"}, ["AWS_REGION"]),
        ({"status": 500}, ["500", "InternalError"]),
    ],
)
async def test_a_store_that_cannot_be_used_is_told_at_start(
    object_kit: ObjectKit, store_proxy: Proxy, manner: dict[str, object], told: list[str]
) -> None:
    """Wrong credentials, too few rights, another region: one sentence names the place, the cause and the remedy."""
    store_proxy.tell(**manner)
    with pytest.raises(StartError) as caught:
        await object_kit.storage().start()
    assert [each for each in [object_kit.bucket.address, *told] if each not in str(caught.value)] == []
    assert "secret-of-the-tests" not in str(caught.value)
    assert "Debug source" not in str(caught.value)


async def test_a_missing_bucket_is_told_at_start(object_kit: ObjectKit, s3_server: Server) -> None:
    """A mistyped bucket is told as that, by its name."""
    missing = dataclasses.replace(object_kit, bucket=Bucket(s3_server.url, "bucket-of-nobody"))
    with pytest.raises(StartError, match="There is no bucket bucket-of-nobody"):
        await missing.storage().start()


async def test_a_store_that_nobody_answers_for_is_told_at_start(
    object_kit: ObjectKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint where nothing listens is told with the variable that names it."""
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(StartError, match=r"error sending request.*AWS_ENDPOINT_URL"):
        await object_kit.storage().start()


async def test_missing_credentials_are_told_at_start(object_kit: ObjectKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither variables nor the machine give any, the sentence says where they are looked for."""
    (port,) = free_ports(1)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(StartError, match="AWS_ACCESS_KEY_ID"):
        await object_kit.storage().start()


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_the_other_stores_say_what_they_need(scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wrong set-up of the stores that no server stands in for here is a sentence too, before any request."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StartError, match=r"GOOGLE_APPLICATION_CREDENTIALS|AZURE_STORAGE_ACCOUNT_NAME"):
        open_store(f"{scheme}://bucket/prefix")


async def test_plain_http_is_spoken_only_where_it_was_asked_for(object_kit: ObjectKit) -> None:
    """Credentials do not travel in the clear because some other variable, or the library's default, says http."""
    address = object_kit.bucket.address
    store = open_store(address, {"AWS_ENDPOINT_URL": "https://store.example.com"})
    asked = ObjectStorage(store, address, executor=object_kit.executor, single_writer=False, transfer_timeout_s=10)
    with pytest.raises(StartError, match="builder error"):
        await asked.start()
