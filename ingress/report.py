"""From what a vendor says to the report that is published.

Responsible for: the one way from a reading to a report, also long afterwards, when a callback that nobody understood
is read again by a version that may. Pure. It must not authenticate: whoever calls knows how far the sender is believed.
"""

import hashlib
from datetime import datetime, timedelta

from ingress import callback
from shared.events import ReportFailed, ReportLinkless, ReportSucceeded, ReportUnrecognised, Trust
from shared.vendors import Vendor

Understood = ReportSucceeded | ReportFailed | ReportLinkless
"""What the downloader takes."""


def make_report(
    vendor: Vendor,
    reading: callback.Reading,
    body: bytes,
    *,
    received_at: datetime,
    retention: timedelta,
    trust: tuple[Trust, ...],
    askable: bool,
) -> Understood | ReportUnrecognised:
    """Return the report of a reading.

    Args:
        body: that was read; kept where it was not recognised, or lacks a link.
        received_at: the first reception, aware.
        retention: how long the vendor keeps a file.
        trust: the proofs that held.
        askable: whether the vendor can be asked for the link that a success lacks. Else that is not recognised: only a
            person can help.
    """
    if isinstance(reading, callback.Unrecognised) or (isinstance(reading, callback.Linkless) and not askable):
        return ReportUnrecognised(
            vendor=vendor,
            task_id=reading.task_id,
            explanation=reading.explanation,
            body=body.decode(),
            body_sha256=hashlib.sha256(body).hexdigest(),
            received_at=received_at,
            trust=trust,
        )
    deadline = (reading.completed_at or received_at) + retention
    if isinstance(reading, callback.Failed):
        return ReportFailed(
            vendor=vendor,
            task_id=reading.task_id,
            code=reading.code,
            message=reading.message,
            received_at=received_at,
            deadline=deadline,
            trust=trust,
        )
    if isinstance(reading, callback.Linkless):
        return ReportLinkless(
            vendor=vendor,
            task_id=reading.task_id,
            code=reading.code,
            message=reading.message,
            explanation=reading.explanation,
            body=body.decode(),
            received_at=received_at,
            deadline=deadline,
            trust=trust,
        )
    return ReportSucceeded(
        vendor=vendor,
        task_id=reading.task_id,
        url=reading.url,
        code=reading.code,
        message=reading.message,
        received_at=received_at,
        deadline=deadline,
        trust=trust,
    )


def read_again(kept: ReportUnrecognised, *, retention: timedelta, askable: bool) -> Understood | None:
    """Read the body of an unrecognised callback again; None where it still says nothing we know.

    A success without a link becomes one to ask for where the vendor has become askable since.

    It stays the callback that it was: first received then, trusted as then, and from the vendor itself, so its origin
    is `callback`, whoever had it read again. The deadline is what it would have been.
    """
    body = (kept.body or "").encode()
    try:
        reading = callback.read(callback.parse(body), received_at=kept.received_at)
    except callback.MalformedCallbackError:
        return None
    report = make_report(
        kept.vendor,
        reading,
        body,
        received_at=kept.received_at,
        retention=retention,
        trust=kept.trust,
        askable=askable,
    )
    return None if isinstance(report, ReportUnrecognised) else report
