"""Who is believed: tokens, signatures, and both."""

import base64
import hmac
from datetime import UTC, datetime

import pytest

from ingress.authenticity import Credentials, Doubt, doubt_signature, doubt_token, proven_skew_s, sign

KEY = b"test-webhook-hmac-key"
TASK = "ee9c2715375b7837f8bb51d641ff5863"
TIMESTAMP = "1769670760"
SIGNATURE = "xG6/yOyrMyJtUdc1yjmHpKLHSHF3MpzOPa6uxSj3qb4="
NOW = datetime.fromtimestamp(int(TIMESTAMP), UTC)
SIGNED = Credentials(hmac_keys=(KEY,))


def doubt(
    credentials: Credentials = SIGNED,
    *,
    task_id: str | None = TASK,
    timestamp: str | None = TIMESTAMP,
    signature: str | None = SIGNATURE,
    late_s: float = 0,
    tolerance_s: float = 300,
) -> Doubt | None:
    """Judge the vector, with something changed."""
    return doubt_signature(
        credentials,
        task_id=task_id,
        timestamp=timestamp,
        signature=signature,
        now=datetime.fromtimestamp(int(TIMESTAMP) + late_s, UTC),
        tolerance_s=tolerance_s,
    )


def test_vector_of_the_vendor() -> None:
    """The vendor's own example is what we compute and believe."""
    assert sign(KEY, TASK, TIMESTAMP) == SIGNATURE
    assert doubt() is None


@pytest.mark.parametrize("token", ["one", "two", "drei-ß", "日本"])
def test_every_configured_token_is_believed(token: str) -> None:
    """While rotating, the older and the newer token are both good, ASCII or not."""
    credentials = Credentials(tokens=tuple(text.encode() for text in ("one", "two", "drei-ß", "日本")))
    assert doubt_token(credentials, token) is None


@pytest.mark.parametrize("token", ["on", "one ", "ONE", "one,two", "\ud800", "x" * 100_000, "einß"])
def test_wrong_tokens(token: str) -> None:
    """Anything but a configured token is wrong, whatever characters it is made of."""
    assert doubt_token(Credentials(tokens=(b"one", b"two", "ein\u00df2".encode())), token) is Doubt.TOKEN_WRONG


@pytest.mark.parametrize("token", [None, ""])
def test_missing_tokens(token: str | None) -> None:
    """No token is not a token."""
    assert doubt_token(Credentials(tokens=(b"one",)), token) is Doubt.TOKEN_MISSING


def test_token_where_none_is_configured() -> None:
    """A token nobody asked for is no ground for doubt: the signature decides."""
    assert doubt_token(SIGNED, "whatever") is None


@pytest.mark.parametrize("presented", ["one", "two", "three", "four"])
def test_time_tells_nothing(presented: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every configured secret is compared, each in constant time, whichever of them matches."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr("ingress.authenticity.hmac.compare_digest", compare)
    secrets = (b"one", b"two", b"three")
    doubt_token(Credentials(tokens=secrets), presented)
    assert compared == [(presented.encode(), secret) for secret in secrets]
    compared.clear()
    doubt(Credentials(hmac_keys=secrets), signature=sign(presented.encode(), TASK, TIMESTAMP))
    assert len(compared) == len(secrets)


@pytest.mark.parametrize("key", [b"older", b"newer", "schlüssel".encode()])
def test_every_configured_key_is_believed(key: bytes) -> None:
    """While rotating, signatures of the older and of the newer key are both good."""
    credentials = Credentials(hmac_keys=(b"older", b"newer", "schlüssel".encode()))
    assert doubt(credentials, signature=sign(key, TASK, TIMESTAMP)) is None


@pytest.mark.parametrize(
    "signature",
    [
        sign(b"another key", TASK, TIMESTAMP),
        sign(KEY, "another task", TIMESTAMP),
        sign(KEY, TASK, "1769670761"),
        SIGNATURE[:-1],
        f" {SIGNATURE}",
        SIGNATURE.lower(),
        base64.b64decode(SIGNATURE).hex(),
        "ß" * 44,
        "\udcff",
        "=",
    ],
)
def test_wrong_signatures(signature: str) -> None:
    """A signature of another key, task or time, or in another spelling, is wrong."""
    assert doubt(signature=signature) is Doubt.SIGNATURE_WRONG


def test_right_signature_with_another_task() -> None:
    """A captured signature is worth nothing for another task."""
    assert doubt(task_id="988e7f0a4b0d4c6f9a52b1d3e7c8c8d3") is Doubt.SIGNATURE_WRONG


def test_signed_without_a_task() -> None:
    """A body that names no task cannot have been signed."""
    assert doubt(task_id=None) is Doubt.TASK_MISSING


@pytest.mark.parametrize(
    ("timestamp", "signature"), [(None, SIGNATURE), ("", SIGNATURE), (TIMESTAMP, None), (TIMESTAMP, "")]
)
def test_missing_signatures(timestamp: str | None, signature: str | None) -> None:
    """Half a proof is none."""
    assert doubt(timestamp=timestamp, signature=signature) is Doubt.SIGNATURE_MISSING


@pytest.mark.parametrize("late_s", [-300, -299, 0, 299, 300])
def test_within_tolerance(late_s: float) -> None:
    """Clocks may differ, and the vendor's retry may be late, up to the tolerance."""
    assert doubt(late_s=late_s) is None


@pytest.mark.parametrize("late_s", [301, 86_400, 4_000_000])
def test_stale(late_s: float) -> None:
    """A right signature beyond the tolerance is doubted, and told apart from a wrong one: it may be a replay."""
    assert doubt(late_s=late_s) is Doubt.SIGNATURE_STALE
    assert doubt(late_s=late_s, signature="wrong") is Doubt.SIGNATURE_WRONG


@pytest.mark.parametrize("late_s", [-301, -86_400])
def test_of_the_future(late_s: float) -> None:
    """A right signature of the future is no late retry: it is never believed."""
    assert doubt(late_s=late_s) is Doubt.TIMESTAMP_OUTSIDE


def test_tolerance_is_a_setting() -> None:
    """The tolerance is the given one."""
    assert doubt(late_s=1_799, tolerance_s=1_800) is None
    assert doubt(late_s=2, tolerance_s=1) is Doubt.SIGNATURE_STALE
    assert doubt(late_s=-2, tolerance_s=1) is Doubt.TIMESTAMP_OUTSIDE


@pytest.mark.parametrize(
    "timestamp",
    [
        "now",
        "-1769670760",
        "+1769670760",
        "1769670760.0",
        "1_769_670_760",
        " 1769670760",
        "1769670760\n",
        "0x1",
        "١٧٦٩",
        "²",
        "9" * 13,
        "9" * 5_000,
        "9" * 100_000,
        "\udcff",
        "1e9",
    ],
)
def test_garbage_timestamps(timestamp: str) -> None:
    """A timestamp that is not plain seconds is outside, even when it is correctly signed, and raises nothing."""
    signature = SIGNATURE if "\udcff" in timestamp else sign(KEY, TASK, timestamp)
    assert doubt(timestamp=timestamp, signature=signature) is Doubt.TIMESTAMP_OUTSIDE


def test_every_configured_proof_must_hold() -> None:
    """With a token and a key configured, neither alone is enough."""
    both = Credentials(tokens=(b"one",), hmac_keys=(KEY,))
    assert doubt_token(both, "one") is None
    assert doubt(both, signature=None) is Doubt.SIGNATURE_MISSING
    assert doubt(both, signature="wrong") is Doubt.SIGNATURE_WRONG
    assert doubt(both) is None
    assert doubt_token(both, None) is Doubt.TOKEN_MISSING


@pytest.mark.parametrize(
    ("credentials", "usable"),
    [
        (Credentials(), False),
        (Credentials(tokens=(b"one",)), True),
        (Credentials(hmac_keys=(KEY,)), True),
        (Credentials(allow_unauthenticated=True), True),
    ],
)
def test_usable(credentials: Credentials, usable: bool) -> None:
    """A vendor without any proof to ask is not served, unless told so in plain words."""
    assert credentials.usable is usable


def test_configured_proofs_hold_although_unauthenticated_is_allowed() -> None:
    """To allow the unauthenticated does not switch a configured proof off."""
    both = Credentials(tokens=(b"one",), hmac_keys=(KEY,), allow_unauthenticated=True)
    assert doubt_token(both, "two") is Doubt.TOKEN_WRONG
    assert doubt(both, signature="wrong") is Doubt.SIGNATURE_WRONG


@pytest.mark.parametrize(("late_s", "skew_s"), [(0, 0), (-90, -90), (4_000, 4_000)])
def test_the_skew_of_a_right_signature_is_known_though_it_is_refused(late_s: float, skew_s: float) -> None:
    """A rightly signed timestamp tells how far our clock is off, inside the tolerance and outside."""
    found = doubt(late_s=late_s)
    now = datetime.fromtimestamp(int(TIMESTAMP) + late_s, UTC)
    assert proven_skew_s(SIGNED, found, timestamp=TIMESTAMP, now=now) == skew_s


@pytest.mark.parametrize(
    ("credentials", "signature", "timestamp"),
    [
        (SIGNED, "wrong", TIMESTAMP),
        (SIGNED, None, TIMESTAMP),
        (SIGNED, SIGNATURE, "-1"),
        (SIGNED, SIGNATURE, None),
        (Credentials(tokens=(b"one",)), SIGNATURE, TIMESTAMP),
    ],
)
def test_no_stranger_moves_the_skew(credentials: Credentials, signature: str | None, timestamp: str | None) -> None:
    """A timestamp that nobody is proven to have signed tells nothing about our clock."""
    found = doubt(credentials, signature=signature, timestamp=timestamp)
    assert proven_skew_s(credentials, found, timestamp=timestamp, now=NOW) is None
