"""The closed tree of what can go wrong, and the closed list of words for it.

Responsible for: classifying every failure as worth another try or not, under one `Reason`. The same word stands in
the exception, in the log field `reason` and in the metric label `reason`. It must not decide what follows: that is
`shared.messaging.consumer` (settling) and `shared.retry` (when to try again).

    WavekeepError
    ├── RetryableError      the same attempt may succeed later
    └── PermanentError      no repetition can help; a person may
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why something failed: the one vocabulary of exceptions, logs, metrics and events."""

    # what the vendor said
    VENDOR_FAILED = "vendor_failed"
    NOT_CONFIRMED = "not_confirmed"
    LINK_MISSING = "link_missing"
    # the fence (permanent)
    URL_MALFORMED = "url_malformed"
    SCHEME_FORBIDDEN = "scheme_forbidden"
    PORT_FORBIDDEN = "port_forbidden"
    HOST_FORBIDDEN = "host_forbidden"
    ADDRESS_FORBIDDEN = "address_forbidden"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    # the way to the file (retryable)
    HOST_UNRESOLVED = "host_unresolved"
    CONNECTION_FAILED = "connection_failed"
    CERTIFICATE_INVALID = "certificate_invalid"
    TIMED_OUT = "timed_out"
    TOO_SLOW = "too_slow"
    LINK_EXPIRED = "link_expired"
    HTTP_REFUSED = "http_refused"
    HTTP_FAILED = "http_failed"
    ANSWER_INVALID = "answer_invalid"
    BODY_CUT = "body_cut"
    DIGEST_DIFFERS = "digest_differs"
    # the file itself
    TOO_LARGE = "too_large"
    NOT_WAV = "not_wav"
    WAV_TRUNCATED = "wav_truncated"
    WAV_INVALID = "wav_invalid"
    WAV_UNSUPPORTED = "wav_unsupported"
    # our own storage
    STORAGE_FULL = "storage_full"
    STORAGE_FAILED = "storage_failed"
    STORED_FILE_DIFFERS = "stored_file_differs"
    # our own places (uncounted)
    VENDOR_BUSY = "vendor_busy"
    HOST_BUSY = "host_busy"
    LARGE_BUSY = "large_busy"
    # messaging
    TASK_IN_HAND = "task_in_hand"
    BROKER_UNAVAILABLE = "broker_unavailable"
    PUBLISH_TIMED_OUT = "publish_timed_out"
    PUBLISH_REFUSED = "publish_refused"
    NOT_ROUTABLE = "not_routable"
    MESSAGE_MALFORMED = "message_malformed"
    MESSAGE_UNKNOWN = "message_unknown"
    DELIVERY_LIMIT = "delivery_limit"
    # destinations of the notifier
    DESTINATION_REFUSED = "destination_refused"
    DESTINATION_FAILED = "destination_failed"
    DESTINATION_UNREACHABLE = "destination_unreachable"
    # anything nobody foresaw
    UNEXPECTED = "unexpected"


class WavekeepError(Exception):
    """Base of all errors this project raises on purpose.

    Args:
        reason: the closed word for it.
        detail: one sentence for a person; no secret, no query string.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class RetryableError(WavekeepError):
    """The same attempt may succeed later.

    Args:
        retry_after_s: how long the other side asked to be left alone; None where it did not say.

    Attributes:
        progressed: the attempt brought the work forward, so that the next one is due as soon as after a first failure.
        counted: an attempt was made and failed. False where none was made, because its turn has not come.
    """

    counted = True

    def __init__(self, reason: Reason, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason, detail)
        self.retry_after_s = retry_after_s
        self.progressed = False


class BusyError(RetryableError):
    """There is no place for it now; nothing was tried, and nothing is held against the message."""

    counted = False


class PermanentError(WavekeepError):
    """No repetition can help; the message is parked for a person."""


class BrokerError(RetryableError):
    """The broker did not take a message, or did not say so: treat it as unknown, publish again later."""


class NotRoutableError(BrokerError):
    """A queue that must take the message is missing."""


class DeliveryLostError(BrokerError):
    """A message in hand can no longer be settled: its channel is gone, and the broker hands it out again."""


class StartError(Exception):
    """The process cannot start; the message is a sentence that says what to do."""


class InUseError(StartError):
    """Another process has what only one may use."""
