"""Where files may be kept by the settings, and how an object store's failures are read."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from downloader.settings import DownloaderSettings
from downloader.storage_factory import build_storage
from downloader.storage_failure import StoreError, advice, failure
from downloader.storage_folder import FolderStorage
from shared.errors import Reason

REFUSED = (
    "Generic S3 error: Error performing PUT https://bucket.example.com/kept/a.json?X-Amz-Signature=k3y in 3ms - Server"
    " returned non-2xx status code: {answer}: <Error><Code>{code}</Code></Error>\n\nDebug source:\nsecret things"
)


@pytest.mark.parametrize(
    "url", ["s3://bucket", "s3://my.bucket-1/", "gs://bucket_2/prefix", "az://container/a/b-c/d_e/", "s3://b1/x=1/y.z"]
)
def test_an_object_store_is_an_address(url: str) -> None:
    """A bucket with or without a prefix is taken as it is written."""
    assert DownloaderSettings(storage_url=url).object_store == url


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3://key:secret@bucket/prefix",
        "s3://bucket:9000/prefix",
        "s3://bucket/prefix?region=eu",
        "s3://bucket/prefix#part",
        "s3://bucket/../other",
        "s3://bucket/.probe",
        "s3://bucket//prefix",
        "s3://bucket/with space",
        "s3://bucket/%41",
        "S3://bucket/prefix",
        "http://bucket/prefix",
        "file://host/folder",
        "folder",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """Neither credentials nor what could be read in two ways gets into an address, and none of it is echoed."""
    with pytest.raises(ValueError, match="must be") as caught:
        DownloaderSettings(storage_url=url)
    assert "secret" not in str(caught.value.errors(include_input=False))  # type: ignore[attr-defined]


def test_a_folder_is_the_default(tmp_path: Path) -> None:
    """Who sets nothing keeps files in the data folder."""
    settings = DownloaderSettings(data_dir=tmp_path)
    with ThreadPoolExecutor(1) as executor:
        storage = build_storage(settings, executor=executor)
    assert isinstance(storage, FolderStorage)
    assert storage.uri("a.wav") == (tmp_path / "files" / "a.wav").as_uri()
    assert settings.object_store is None


@pytest.mark.parametrize(
    ("answer", "code", "reason", "said"),
    [
        ("503 Service Unavailable", "SlowDown", Reason.STORAGE_FAILED, "answered 503 Service Unavailable (SlowDown)"),
        ("507 Insufficient Storage", "Full", Reason.STORAGE_FULL, "answered 507 Insufficient Storage (Full)"),
        ("403 Forbidden", "QuotaExceeded", Reason.STORAGE_FULL, "answered 403 Forbidden (QuotaExceeded)"),
    ],
)
def test_a_failure_is_told_by_status_and_code_alone(answer: str, code: str, reason: Reason, said: str) -> None:
    """What a library writes at length, links and bodies, goes into no log and no event."""
    read = failure(ValueError(REFUSED.format(answer=answer, code=code)))
    assert read.reason is reason
    assert read.detail == f"the object store {said}"


def test_a_failure_without_an_answer_is_told_by_its_cause() -> None:
    """A store that was not reached is told in few words, without the link that was tried."""
    text = (
        "Generic S3 error: Error performing GET https://x/?sig=k3y - HTTP error: error sending request\n\nDebug source:"
    )
    assert failure(OSError(text)).detail == "the object store could not be used: error sending request"
    assert failure(TimeoutError()).detail == "the object store did not answer in time"


@pytest.mark.parametrize(
    ("code", "missing", "no_bucket"),
    [("NoSuchKey", True, False), ("NoSuchBucket", False, True), ("ContainerNotFound", False, True)],
)
def test_a_missing_bucket_is_no_missing_object(code: str, missing: bool, no_bucket: bool) -> None:
    """A bucket that is gone is never read as a task of which nothing is stored."""
    read = failure(FileNotFoundError(REFUSED.format(answer="404 Not Found", code=code)))
    assert (read.missing, read.no_bucket) == (missing, no_bucket)


def test_the_sentence_names_the_providers_own_words() -> None:
    """An operator of one provider is not told of the variables of another."""
    told = advice(StoreError("no", status=403), "az://box/kept")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in told
    assert "AWS_" not in told
    assert "container box" in advice(StoreError("no", code="ContainerNotFound"), "az://box/kept")
