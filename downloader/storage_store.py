"""The object store's library, set up.

Responsible for: the time-outs and repetitions of its requests, and what it takes from the environment: credentials,
region and endpoint, under the names that each provider's own tools use. It must not do a request.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from downloader.storage_failure import ECOSYSTEMS, advice, failure
from shared.errors import StartError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

Store = S3Store | GCSStore | AzureStore

_TIMEOUT = timedelta(seconds=30)
_CONNECT_TIMEOUT = timedelta(seconds=5)
_RETRY: "RetryConfig" = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=2), "base": 2},
}
"""A request begins no repetition after 20 s: with its own time-out, that is under a minute."""


def open_store(address: str, environment: Mapping[str, str] = os.environ) -> Store:
    """Return the store at `SCHEME://BUCKET/PREFIX`.

    Plain http is spoken only where the environment names an endpoint that begins so.

    Raises:
        StartError: the environment says something that cannot be.
    """
    scheme, _, rest = address.partition("://")
    bucket, _, path = rest.partition("/")
    prefix = path or None
    endpoint = next(filter(None, map(environment.get, ECOSYSTEMS[scheme].endpoints)), "")
    client: ClientConfig = {
        "timeout": _TIMEOUT,
        "connect_timeout": _CONNECT_TIMEOUT,
        "allow_http": endpoint.startswith("http://"),
    }
    try:
        if scheme == "gs":
            return GCSStore(bucket, prefix=prefix, client_options=client, retry_config=_RETRY)
        if scheme == "az":
            return AzureStore(bucket, prefix=prefix, client_options=client, retry_config=_RETRY)
        return S3Store(
            bucket,
            prefix=prefix,
            client_options=client,
            retry_config=_RETRY,
            checksum_algorithm=environment.get("AWS_CHECKSUM_ALGORITHM") or "sha256",
            disable_bulk_delete=True,  # one request a key is what every store understands
        )
    except (BaseError, OSError, ValueError) as error:
        raise StartError(advice(failure(error), address)) from error
