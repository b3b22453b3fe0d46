"""What a simulated conversion is to do, as the control interface takes it.

Responsible for: the closed vocabulary of callback shapes and misbehaviours, and the frozen models of a plan, of a load,
of a vendor's manner and a webhook's. Pure data: it must not send, serve or judge anything. Unknown fields are refused,
so that a misspelt misbehaviour never passes as none.
"""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shared.errors import Reason
from shared.vendors import Vendor
from simulator.wavs import Flavour

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Outcome = Literal["stored", "rejected", "none"]

DEFAULT_SIZE_BYTES = 65_536


class Shape(StrEnum):
    """The spelling of a callback; each is one that vendors have sent."""

    CAMEL = "camel"
    SNAKE = "snake"
    SIGNED = "signed"
    NESTED_CAMEL = "nested_camel"
    NESTED_SNAKE = "nested_snake"
    JOB = "job"
    CODE_AS_STRING = "code_as_string"
    UNKNOWN_KEYS = "unknown_keys"
    DATA_NULL = "data_null"
    NO_URL = "no_url"
    NO_TASK_ID = "no_task_id"
    MUSIC = "music"


class Sign(StrEnum):
    """How a callback is signed. `auto`: as the vendor does, which is `kie` where a key is configured."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"
    WRONG = "wrong"
    OTHER_TASK = "other_task"
    STALE = "stale"
    FUTURE = "future"


class Framing(StrEnum):
    """How the end of a body is told."""

    CONTENT_LENGTH = "content_length"
    CHUNKED = "chunked"
    CLOSE = "close"


class Ranges(StrEnum):
    """What a file host makes of a request for a part: as told, or one of the ways to get it wrong."""

    HONEST = "honest"
    IGNORED = "ignored"
    UNASKED = "unasked"
    SHIFTED = "shifted"
    OTHER_ETAG = "other_etag"


class RecordForm(StrEnum):
    """The spelling of record-info: the newer one, with text or epoch times, or the older one."""

    NEW_TEXT_TIMES = "new_text_times"
    NEW_EPOCH_TIMES = "new_epoch_times"
    OLD = "old"


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything that comes in by the control interface."""


class Fault(Strict, frozen=True, kw_only=True):
    """How a file misbehaves, for its next `times` requests.

    Attributes:
        times: requests this lasts for; null means for ever. After the last fault of a file it is served well.
        delay_s: wait before answering.
        status: answer with this status and a small page in place of the file.
        retry_after_s: sent along with `status`.
        redirect_to: answer 302 with this Location, or `loop` for the link itself.
        redirect_hops: send this many redirects to ourselves first, then go on as the rest says.
        framing: how the end of the body is told.
        cut_after_bytes: hang up after so many bytes of the body.
        reset: hang up by RST in place of FIN.
        stall_after_bytes: go silent after so many bytes, and keep the line.
        black_hole: take the request and never answer.
        bytes_per_s: drip.
        endless: after the file, zeros for ever.
        content_length_off: added to the true Content-Length.
        gzip: Content-Encoding gzip, whatever was asked.
        ranges: what is made of a Range header.
        header_bytes: size of one more, useless, header.
    """

    times: Positive | None = None
    delay_s: Seconds = 0
    status: Annotated[int, Meta(ge=200, le=599)] | None = None
    retry_after_s: Count | None = None
    redirect_to: str | None = None
    redirect_hops: Count = 0
    framing: Framing = Framing.CONTENT_LENGTH
    cut_after_bytes: Count | None = None
    reset: bool = False
    stall_after_bytes: Count | None = None
    black_hole: bool = False
    bytes_per_s: Annotated[float, Meta(gt=0)] | None = None
    endless: bool = False
    content_length_off: int = 0
    gzip: bool = False
    ranges: Ranges = Ranges.HONEST
    header_bytes: Count = 0


class FilePlan(Strict, frozen=True, kw_only=True):
    """One file of a conversion.

    Attributes:
        flavour: what kind of WAV, or of something that is none.
        size_bytes: the whole file; 64 KiB where neither size nor duration is given.
        duration_s: in place of the size.
        seed: of the samples; null means another one for each file.
        spaced_name: the name, and so the link, holds a raw space.
        requires_user_agent: answer 403 to a request without one; null means as the vendor's host does (`kie`: yes).
        link_expires_s: after this the link is answered 403; null means when the vendor deletes the file.
        misbehaviour: faults, used up one after the other.
    """

    flavour: Flavour = Flavour.PCM16
    size_bytes: Positive | None = None
    duration_s: Annotated[float, Meta(gt=0)] | None = None
    seed: Count | None = None
    spaced_name: bool = False
    requires_user_agent: bool | None = None
    link_expires_s: Seconds | None = None
    misbehaviour: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if self.size_bytes is not None and self.duration_s is not None:
            raise ValueError("give size_bytes or duration_s, not both")


class Step(Strict, frozen=True, kw_only=True):
    """One thing the vendor calls back, in one or more copies. What is null is taken from the plan.

    Attributes:
        outcome: what the vendor claims.
        file: index of the file a success names.
        code: the vendor's code; null means 200, or the vendor's usual one for a failure.
        message: the vendor's text; null means the usual one.
        copies: sent at the same moment, each with retries of its own.
        delay_s: wait before it.
        after_answer: wait first until all copies of the step before have had their first answer.
        fresh_link: the link is signed anew, so that it differs in nothing but its signature.
        sign_retries_anew: a retry has a new timestamp and signature; otherwise the first ones again.
    """

    outcome: Literal["succeeded", "failed"] = "succeeded"
    file: Count = 0
    code: int | None = None
    message: str | None = None
    shape: Shape | None = None
    copies: Positive | None = None
    sign: Sign | None = None
    delay_s: Seconds = 0
    after_answer: bool = True
    fresh_link: bool = False
    sign_retries_anew: bool = True


class Expect(Strict, frozen=True, kw_only=True):
    """What must become of a conversion, where its plan knows better than the simulator's own rule."""

    outcome: Outcome
    reasons: tuple[Reason, ...] = ()


class Plan(Strict, frozen=True, kw_only=True):
    """One conversion: its files, what is called back about them and how.

    Attributes:
        task_id: null means 32 random hex digits.
        callback_url: null means the one configured for the vendor.
        delay_s: wait before the first step.
        steps: in order; none at all is a callback that never comes.
        record: what the vendor says when asked. `as_called`: pending until the first step begins, then what the latest
            step claims; with no steps, succeeded once `delay_s` is over.
        record_form: null means as the vendor spells it.
        expect: null means by the simulator's own rule.
    """

    vendor: Vendor
    task_id: Annotated[str, Meta(min_length=1, max_length=20_000)] | None = None
    callback_url: str | None = None
    shape: Shape | None = None
    copies: Positive = 1
    sign: Sign = Sign.AUTO
    delay_s: Seconds = 0
    files: Annotated[tuple[FilePlan, ...], Meta(min_length=1)] = (FilePlan(),)
    steps: tuple[Step, ...] = (Step(),)
    record: Literal["as_called", "pending", "succeeded", "failed", "unknown"] = "as_called"
    record_form: RecordForm | None = None
    expect: Expect | None = None

    def __post_init__(self) -> None:
        if any(step.file >= len(self.files) for step in self.steps):
            raise ValueError("a step names a file that the plan does not have")
        faults = [fault for file in self.files for fault in file.misbehaviour]
        if self.expect is None and any(fault.redirect_to not in (None, "loop") for fault in faults):
            raise ValueError("say in `expect` what must become of a redirect to elsewhere")


class Load(Strict, frozen=True, kw_only=True):
    """A steady stream of plain conversions.

    Attributes:
        rate_per_s: conversions begun a second.
        seconds: for so long; together they give the number.
        vendors: weights.
        size_bytes: of each file.
        flavour: of each file.
        distinct_files: how many different contents the files share, so that their digests stay cheap.
        copies: of each callback.
        callback_url: null means the one configured for the vendor.
    """

    rate_per_s: Annotated[float, Meta(gt=0)]
    seconds: Annotated[float, Meta(gt=0)]
    vendors: dict[Vendor, Count] = msgspec.field(default_factory=lambda: dict.fromkeys(Vendor, 1))
    size_bytes: Positive = DEFAULT_SIZE_BYTES
    flavour: Flavour = Flavour.PCM16
    distinct_files: Positive = 16
    copies: Positive = 1
    callback_url: str | None = None

    def __post_init__(self) -> None:
        if not any(self.vendors.values()):
            raise ValueError("give at least one vendor a weight")

    @property
    def conversions(self) -> int:
        """How many conversions the whole load makes."""
        return max(1, round(self.rate_per_s * self.seconds))


class VendorManner(Strict, frozen=True, kw_only=True):
    """How one vendor's API behaves.

    Attributes:
        plan: what a submitted conversion does; null means one plain success.
        credits: submissions left before "no credits"; null means no end.
        fail_code: answer every request with this code in the body, for example 455 (maintenance).
        http_status: answer every request with this HTTP status and an empty body.
        delay_s: wait before every answer.
    """

    plan: Plan | None = None
    credits: Count | None = None
    fail_code: int | None = None
    http_status: Annotated[int, Meta(ge=400, le=599)] | None = None
    delay_s: Seconds = 0


class WebhookManner(Strict, frozen=True, kw_only=True):
    """How a webhook receiver answers its next `times` deliveries; null means for ever, afterwards 200.

    Attributes:
        status: the answer.
        delay_s: wait before it.
        retry_after: text of the header Retry-After.
        location: text of the header Location.
        hang: record the delivery and never answer.
    """

    times: Positive | None = None
    status: Annotated[int, Meta(ge=200, le=599)] = 200
    delay_s: Seconds = 0
    retry_after: str | None = None
    location: str | None = None
    hang: bool = False
