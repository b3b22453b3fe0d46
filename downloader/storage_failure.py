"""What an object store says when something fails, in our words.

Responsible for: reading the exceptions of the library, classifying them, and the sentence for a service that cannot
start. Pure. It must not let through what a library or a store wrote at length: only status, code and a short cause.
"""

import re
from dataclasses import dataclass

from shared.errors import Reason, RetryableError
from shared.links import public_text

_STATUS = re.compile(r"status code: (\d{3})(?: ([A-Za-z ]{1,40}))?")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_CAUSE = re.compile(r"HTTP error: ([a-z ]{1,60})")
_CREDENTIALS = re.compile(
    r"redential|Account must be specified|service account|token (?:request|file)|/latest/|/computeMetadata/"
)
_LONGEST_CAUSE = 200
_FULL = frozenset({"QuotaExceeded", "ServiceQuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_NO_SUPPORT = frozenset({405, 501})


class StoreError(RetryableError):
    """An object store failed.

    Args:
        status: of the answer, if there was one.
        code: the store's own word for it, if there was one.
        credentials: none were found, or they could not be fetched.
    """

    def __init__(
        self,
        detail: str,
        *,
        reason: Reason = Reason.STORAGE_FAILED,
        status: int | None = None,
        code: str | None = None,
        credentials: bool = False,
    ) -> None:
        super().__init__(reason, detail)
        self.status = status
        self.code = code
        self.credentials = credentials

    @property
    def no_bucket(self) -> bool:
        """Whether it is the bucket itself that is missing."""
        return self.code in _NO_BUCKET

    @property
    def missing(self) -> bool:
        """Whether the object is not there."""
        return self.status == 404 and not self.no_bucket

    @property
    def denied(self) -> bool:
        """Whether asking again in the same way will not help: no right to it, or the store cannot do it."""
        return self.status in {401, 403} | _NO_SUPPORT

    @property
    def taken(self) -> bool:
        """Whether a condition was refused: the key is taken, or holds another version."""
        return self.status in {409, 412}


@dataclass(frozen=True, slots=True)
class Ecosystem:
    """The usual variables of one kind of store, for sentences and for what they allow.

    Attributes:
        credentials: where they come from.
        endpoints: the variables that name another endpoint than the provider's.
        place: what the provider calls a bucket.
    """

    credentials: str
    endpoints: tuple[str, ...]
    place: str = "bucket"


ECOSYSTEMS = {
    "s3": Ecosystem(
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, web identity or instance metadata",
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    ),
    "gs": Ecosystem("GOOGLE_APPLICATION_CREDENTIALS or the metadata server", ("GOOGLE_BASE_URL",)),
    "az": Ecosystem(
        "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or a managed identity",
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        place="container",
    ),
}


def failure(error: BaseException) -> StoreError:
    """Return what a library's exception means."""
    if isinstance(error, TimeoutError):
        return StoreError("the object store did not answer in time")
    text = str(error).partition("Debug source:")[0]
    status, code, cause = _STATUS.search(text), _CODE.search(text), _CAUSE.search(text)
    credentials = _CREDENTIALS.search(text) is not None
    if "redirect without LOCATION" in text:
        return StoreError("the object store redirects, as for a bucket of another region", status=301)
    if status is None:
        told = cause[1] if cause else public_text(text.partition("\n")[0])[:_LONGEST_CAUSE]
        return StoreError(f"the object store could not be used: {told}", credentials=credentials)
    number = int(status[1])
    word = f" ({code[1]})" if code else ""
    full = number == 507 or (code is not None and code[1] in _FULL)
    return StoreError(
        f"the object store answered {number} {status[2] or ''}".rstrip() + word,
        reason=Reason.STORAGE_FULL if full else Reason.STORAGE_FAILED,
        status=number,
        code=code[1] if code else None,
        credentials=credentials,
    )


def advice(error: RetryableError, address: str) -> str:
    """Return the sentence for a service that cannot start on the store at this address (`SCHEME://BUCKET/PREFIX`)."""
    scheme, _, rest = address.partition("://")
    ecosystem, bucket = ECOSYSTEMS[scheme], rest.partition("/")[0]
    said = f"Files cannot be kept in {address} ({error.detail})."
    status = error.status if isinstance(error, StoreError) else None
    if isinstance(error, StoreError) and (error.no_bucket or status == 404):
        return f"{said} There is no {ecosystem.place} {bucket}: create it, or correct WAVEKEEP_STORAGE_URL."
    if status == 301:
        return f"{said} Set the region of the {ecosystem.place}: AWS_REGION."
    if status in {401, 403} or (isinstance(error, StoreError) and error.credentials):
        return (
            f"{said} The credentials are missing, wrong, or have too few rights: {ecosystem.credentials}; the rights"
            " are listed in docs/storage.md."
        )
    if status in _NO_SUPPORT:
        return f"{said} It does not support conditional writes, or is no object store at all; use another one."
    if status is not None:
        return f"{said} Look into the store's own log, or wait until it is well again."
    return f"{said} Check that it runs and is reachable, and {' or '.join(ecosystem.endpoints)}."
