"""The ingress fails closed: without a secret nobody is believed, unless a setting says so in plain words."""

import os
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from ingress.app import Ingress
from ingress.authenticity import Credentials, Doubt
from ingress.intake import Intake, NotAuthenticError, Proofs
from ingress.settings import IngressSettings
from ingress.source import Source
from shared.clock import system_clock
from shared.errors import StartError
from shared.settings import PREFIX, load
from shared.vendors import Vendor
from tests.recording import RecordingPublisher

BODY = b'{"code": 500, "taskId": "t1"}'


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Start from an environment that says nothing."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    return monkeypatch


def intake(settings: IngressSettings) -> Intake:
    """Build the intake that these settings ask for."""
    return Intake(
        RecordingPublisher(),
        credentials=settings.credentials(),
        retention=settings.retention(),
        tolerance_s=settings.signature_tolerance_s,
        clock=system_clock,
        askable=settings.askable(),
        boundary=settings.boundary(),
    )


def doubt(settings: IngressSettings, vendor: Vendor, token: str | None) -> Doubt | None:
    """Judge a token as the ingress does."""
    try:
        intake(settings).admit(vendor, Proofs(token=token), Source())
    except NotAuthenticError as error:
        return error.doubt
    return None


@pytest.mark.parametrize("tokens", [None, "", ",", " , "])
def test_no_secret_no_start(tokens: str | None, environment: pytest.MonkeyPatch) -> None:
    """Without any vendor's secret the ingress cannot be built, and says what to set."""
    if tokens is not None:
        environment.setenv("WAVEKEEP_KIE_CALLBACK_TOKENS", tokens)
    with pytest.raises(StartError) as caught:
        Ingress(load(IngressSettings), RecordingPublisher(), CollectorRegistry())
    for name in ("APIBOX_CALLBACK_TOKENS", "KIE_CALLBACK_TOKENS", "SUNOAPI_CALLBACK_TOKENS", "KIE_HMAC_KEYS"):
        assert PREFIX + name in str(caught.value)


def test_an_api_key_is_no_proof(environment: pytest.MonkeyPatch) -> None:
    """What lets us ask a vendor does not let the vendor in."""
    environment.setenv("WAVEKEEP_KIE_API_KEY", "key")
    with pytest.raises(StartError):
        load(IngressSettings).credentials()


def test_vendors_without_a_secret_are_not_served(environment: pytest.MonkeyPatch) -> None:
    """One vendor's secret opens nothing for the others."""
    environment.setenv("WAVEKEEP_KIE_CALLBACK_TOKENS", "one,two")
    settings = load(IngressSettings)
    assert set(settings.credentials()) == {Vendor.KIE}
    assert doubt(settings, Vendor.KIE, "one") is None
    assert doubt(settings, Vendor.KIE, "two") is None
    assert doubt(settings, Vendor.KIE, "three") is Doubt.TOKEN_WRONG
    for vendor in (Vendor.APIBOX, Vendor.SUNOAPI):
        assert doubt(settings, vendor, "one") is Doubt.VENDOR_NOT_SERVED
        assert doubt(settings, vendor, None) is Doubt.VENDOR_NOT_SERVED


def test_one_vendors_token_is_not_anothers(environment: pytest.MonkeyPatch) -> None:
    """Each vendor has its own tokens."""
    environment.setenv("WAVEKEEP_KIE_CALLBACK_TOKENS", "one")
    environment.setenv("WAVEKEEP_APIBOX_CALLBACK_TOKENS", "two")
    settings = load(IngressSettings)
    assert doubt(settings, Vendor.APIBOX, "one") is Doubt.TOKEN_WRONG
    assert doubt(settings, Vendor.KIE, "two") is Doubt.TOKEN_WRONG


@pytest.mark.parametrize("vendor", Vendor)
def test_every_vendor_may_have_every_proof(vendor: Vendor, environment: pytest.MonkeyPatch) -> None:
    """Tokens and keys are read for each vendor, as text in UTF-8."""
    environment.setenv(f"WAVEKEEP_{vendor.upper()}_CALLBACK_TOKENS", "eins, zw\u00f6lf")
    environment.setenv(f"WAVEKEEP_{vendor.upper()}_HMAC_KEYS", "older,newer")
    assert load(IngressSettings).credentials() == {
        vendor: Credentials(tokens=(b"eins", "zw\u00f6lf".encode()), hmac_keys=(b"older", b"newer"))
    }


async def test_allowed_in_plain_words(environment: pytest.MonkeyPatch) -> None:
    """A vendor is believed without proof only where its own setting says so, and the report tells it."""
    environment.setenv("WAVEKEEP_KIE_ALLOW_UNAUTHENTICATED", "true")
    settings = load(IngressSettings)
    assert set(settings.credentials()) == {Vendor.KIE}
    assert doubt(settings, Vendor.KIE, None) is None
    assert doubt(settings, Vendor.APIBOX, None) is Doubt.VENDOR_NOT_SERVED
    event = await intake(settings).take(Vendor.KIE, BODY, Proofs(), None)
    assert event.data.trust == ("none",)  # type: ignore[attr-defined]


async def test_allowed_does_not_outweigh_a_proof(environment: pytest.MonkeyPatch) -> None:
    """Where a proof is configured, it must hold, whatever else is allowed."""
    environment.setenv("WAVEKEEP_KIE_ALLOW_UNAUTHENTICATED", "true")
    environment.setenv("WAVEKEEP_KIE_CALLBACK_TOKENS", "one")
    environment.setenv("WAVEKEEP_KIE_HMAC_KEYS", "key")
    settings = load(IngressSettings)
    assert doubt(settings, Vendor.KIE, None) is Doubt.TOKEN_MISSING
    with pytest.raises(NotAuthenticError) as caught:
        await intake(settings).take(Vendor.KIE, BODY, Proofs(token="one"), None)
    assert caught.value.doubt is Doubt.SIGNATURE_MISSING


@pytest.mark.parametrize("value", ["maybe", "2", "ja"])
def test_allowing_takes_a_clear_word(value: str, environment: pytest.MonkeyPatch) -> None:
    """What is neither yes nor no is refused, not guessed."""
    environment.setenv("WAVEKEEP_KIE_ALLOW_UNAUTHENTICATED", value)
    with pytest.raises(StartError, match="WAVEKEEP_KIE_ALLOW_UNAUTHENTICATED"):
        load(IngressSettings)


@pytest.mark.parametrize("vendor", Vendor)
def test_source_networks(vendor: Vendor, environment: pytest.MonkeyPatch) -> None:
    """Networks restrict the vendor they are set for, and no other; they let nobody in by themselves."""
    environment.setenv(f"WAVEKEEP_{vendor.upper()}_SOURCE_NETWORKS", "198.51.100.0/24, 2001:db8::/32,203.0.113.5")
    environment.setenv("WAVEKEEP_TRUSTED_PROXIES", "10.0.0.0/8,::1")
    boundary = load(IngressSettings).boundary()
    assert [other for other in Vendor if boundary.restricts(other)] == [vendor]
    assert list(map(str, boundary.networks[vendor])) == ["198.51.100.0/24", "2001:db8::/32", "203.0.113.5/32"]
    assert list(map(str, boundary.proxies)) == ["10.0.0.0/8", "::1/128"]
    with pytest.raises(StartError):
        load(IngressSettings).credentials()


@pytest.mark.parametrize("name", ["KIE_SOURCE_NETWORKS", "TRUSTED_PROXIES"])
@pytest.mark.parametrize("value", ["s3cret.example", "10.0.0.0/8,s3cret", "10.0.0.1/8", "10.0.0.0/33", "::ffff:0:0/97"])
def test_networks_that_are_none_refuse_the_start(name: str, value: str, environment: pytest.MonkeyPatch) -> None:
    """A mistyped network never means everywhere, nor nowhere: nothing starts, and the variable is named."""
    environment.setenv(PREFIX + name, value)
    with pytest.raises(StartError, match=f"{PREFIX}{name}: must") as caught:
        load(IngressSettings)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("value", ["0.0.0.0/0", "10.0.0.0/8,::/0"])
def test_not_everybody_is_a_proxy(value: str, environment: pytest.MonkeyPatch) -> None:
    """To trust everybody's header is refused: it would be the spoofer's word."""
    environment.setenv("WAVEKEEP_TRUSTED_PROXIES", value)
    with pytest.raises(StartError, match="WAVEKEEP_TRUSTED_PROXIES: must not be everybody"):
        load(IngressSettings)


def test_which_vendors_can_be_asked(environment: pytest.MonkeyPatch) -> None:
    """That a key is there is enough to know: whatever stands in its place, and where nothing does, nobody."""
    assert load(IngressSettings).askable() == frozenset()
    environment.setenv("WAVEKEEP_KIE_API_KEY", "the downloader has it")
    environment.setenv("WAVEKEEP_APIBOX_API_KEY", "")
    assert load(IngressSettings).askable() == {Vendor.KIE}


def test_retention(environment: pytest.MonkeyPatch) -> None:
    """Each vendor keeps a file as long as its pages say, or as a setting says."""
    assert {vendor: kept.days for vendor, kept in load(IngressSettings).retention().items()} == {
        Vendor.APIBOX: 15,
        Vendor.KIE: 14,
        Vendor.SUNOAPI: 15,
    }
    environment.setenv("WAVEKEEP_KIE_RETENTION_DAYS", "3")
    assert load(IngressSettings).retention()[Vendor.KIE] == timedelta(days=3)


@pytest.mark.parametrize("value", ["15", "0", "-1", "inf", "nan"])
def test_bodies_must_arrive_before_the_vendor_gives_up(value: str, environment: pytest.MonkeyPatch) -> None:
    """The time for a body ends before the vendor's fifteen seconds do."""
    environment.setenv("WAVEKEEP_INGRESS_BODY_TIMEOUT_S", value)
    with pytest.raises(StartError, match="WAVEKEEP_INGRESS_BODY_TIMEOUT_S"):
        load(IngressSettings)


def test_no_text_shows_a_secret() -> None:
    """Neither credentials nor proofs show what they hold."""
    credentials = Credentials(tokens=(b"s3cret",), hmac_keys=(b"s3cret",))
    assert "s3cret" not in f"{credentials!r} {Proofs(token='s3cret', signature='s3cret')!r}"
