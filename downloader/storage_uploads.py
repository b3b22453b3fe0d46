"""Uploads to S3 that were begun and never ended: what a process leaves that is killed in the middle of one.

Responsible for: finding those of ours that are too old to be alive, and aborting them. It must not touch an object, nor
know what is uploaded. The object store's own library can neither list uploads nor abort one of another process.

It is imported only where the storage is S3, and it alone imports botocore: see `docs/adr/0016-sweeping-uploads.md`.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

from downloader.storage_failure import ECOSYSTEMS, StoreError
from shared.clock import Clock

T = TypeVar("T")

LEAST_AGE: Final = timedelta(days=1)
"""Far beyond any transfer, and any difference between two clocks."""

_LIVES: Final = 10
"""No attempt puts a file longer than one transfer time-out; another replica may have been told another one."""

_OURS: Final = re.compile(r"[a-z]+/[0-9a-f]{2}/[A-Za-z0-9_-]{1,64}\.[0-9a-f]{12}\.(?:wav|png|peaks\.json)")
"""What is uploaded below the address; in a bucket without a prefix, others may have uploads too."""

_LONGEST_CODE: Final = 60
_PROFILES: Final = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}
"""Profiles are not read for files, so they are not read here: it would be another identity."""

_CONFIG: Final = Config(
    connect_timeout=5,
    read_timeout=15,
    retries={"mode": "standard", "total_max_attempts": 1},  # the next round tries again
    user_agent_appid="wavekeep",
)


class ForgottenUploads:
    """The uploads below one address.

    Args:
        address: `s3://BUCKET/PREFIX`.
        executor: runs what blocks, one request at a time.
        transfer_timeout_s: that our uploads have.
        least_age: of an upload that nobody can be at any more; longer where transfers may take long. 0 ends all.
        environment: holds credentials, region and endpoint, under the names that are documented for the storage.
    """

    def __init__(
        self,
        address: str,
        *,
        executor: Executor,
        transfer_timeout_s: float,
        clock: Clock,
        least_age: timedelta = LEAST_AGE,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._bucket, _, prefix = address.removeprefix("s3://").rstrip("/").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._executor = executor
        self._least_age = max(least_age, timedelta(seconds=_LIVES * transfer_timeout_s)) if least_age else least_age
        self._clock = clock
        self._environment = environment
        self._client: Any = None

    async def sweep(self) -> AsyncIterator[str]:
        """Abort what nobody can be at any more; yield the key of each upload, below the address, once it is gone.

        Safe to cancel and to repeat, and by several replicas at a time: a request ends within 20 s.

        Raises:
            RetryableError: a `StoreError`: the store failed, or does not let us (`denied`).
        """
        old = self._clock() - self._least_age
        marker: dict[str, str] = {}
        while True:
            page = await self._ask("list_multipart_uploads", Prefix=self._prefix, **marker)
            for upload in page.get("Uploads", ()):
                key = upload["Key"].removeprefix(self._prefix)
                if (
                    upload["Initiated"] <= old
                    and _OURS.fullmatch(key)
                    and await self._abort(upload["Key"], upload["UploadId"])
                ):
                    yield key
            if not page.get("IsTruncated"):
                return
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def _abort(self, key: str, upload_id: str) -> bool:
        """Abort an upload; False where somebody was faster, or its writer completed it after all."""
        try:
            await self._ask("abort_multipart_upload", Key=key, UploadId=upload_id)
        except StoreError as error:
            if error.missing:
                return False
            raise
        return True

    async def _ask(self, call: str, **what: str) -> Any:
        try:
            if self._client is None:
                self._client = await self._off_loop(partial(_client, self._bucket, self._environment))
            return await self._off_loop(partial(getattr(self._client, call), Bucket=self._bucket, **what))
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "")[:_LONGEST_CODE]
            raise StoreError(
                f"the object store answered {status} ({code}) to {call}", status=status, code=code
            ) from error
        except (BotoCoreError, OSError, ValueError) as error:
            raise StoreError(f"the object store could not be used: {type(error).__name__}") from error

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _client(bucket: str, environment: Mapping[str, str]) -> Any:
    """Return a client that finds store, region and credentials where the storage's library finds them. Blocking."""
    endpoint = next(filter(None, map(environment.get, ECOSYSTEMS["s3"].endpoints)), None)
    virtual = environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in {"1", "true", "yes", "on"}
    if endpoint and virtual:  # then the bucket is in it already, which this library puts there by itself
        endpoint = endpoint.replace(f"://{bucket}.", "://", 1)
    session = Session(session_vars=_PROFILES)
    session.set_default_client_config(_CONFIG)
    return session.create_client(
        "s3",
        region_name=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
        endpoint_url=endpoint,
        config=_CONFIG.merge(Config(s3={"addressing_style": "virtual" if virtual else "path"})),
    )
