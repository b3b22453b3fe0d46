"""How settings are read and refused: all at once, from the environment alone, and no secret shown."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from downloader.settings import DownloaderSettings
from ingress.settings import IngressSettings
from notifier.settings import NotifierSettings
from shared.errors import StartError
from shared.settings import PREFIX, ServiceSettings, broker_urls, load
from shared.vendors import Vendor
from standalone.settings import StandaloneSettings

SECRET = "s3cret"
MODELS = [ServiceSettings, IngressSettings, DownloaderSettings, NotifierSettings, StandaloneSettings]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Start from an environment that says nothing."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    return monkeypatch


def refused(model: type[ServiceSettings]) -> str:
    """Return what is told about settings that are refused."""
    with pytest.raises(StartError) as caught:
        load(model)
    assert caught.value.__cause__ is None
    return str(caught.value)


@pytest.mark.parametrize("model", MODELS)
def test_defaults_are_whole(model: type[ServiceSettings]) -> None:
    """Every service starts to read its settings from an empty environment."""
    settings = load(model)
    assert settings.data_dir == Path("data")
    assert settings.embedded_path == Path("data/queue.sqlite3").absolute()


def test_ports_of_the_operations_servers() -> None:
    """No two services take the same port by default."""
    assert {model.__name__: load(model).ops_port for model in MODELS[1:]} == {
        "IngressSettings": 9101,
        "DownloaderSettings": 9102,
        "NotifierSettings": 9103,
        "StandaloneSettings": 9100,
    }


def test_all_problems_are_told_at_once(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever corrects the settings sees every problem the first time, and no value."""
    wrong = {
        "INGRESS_PORT": "65536",
        "OPS_PORT": "eighty",
        "BROKER_URL": f"http://user:{SECRET}@rabbit/",
        "PUBLISH_TIMEOUT_S": "0",
        "LOG_LEVEL": f"loud{SECRET}",
        "NOTIFY_CONFIG": str(tmp_path / SECRET),
        "NOTIFY_GIVE_UP_AFTER": f"{SECRET} hours",
        "STORAGE_URL": f"s3://key:{SECRET}@bucket/",
        "KIE_RETENTION_DAYS": "0",
    }
    for name, value in wrong.items():
        environment.setenv(PREFIX + name, value)
    told = refused(StandaloneSettings)
    lines = told.splitlines()[1:]
    assert sorted(line.split(":")[0].strip() for line in lines) == sorted(PREFIX + name for name in wrong)
    assert SECRET not in told
    assert "eighty" not in told
    assert "65536" not in told


def test_problems_between_settings_are_told_with_the_others(environment: pytest.MonkeyPatch) -> None:
    """A relation that does not hold is told although another setting is wrong by itself."""
    environment.setenv("WAVEKEEP_OPS_PORT", "eighty")
    environment.setenv("WAVEKEEP_DOWNLOAD_ATTEMPT_TIMEOUT_S", "1800")
    told = refused(DownloaderSettings)
    assert "WAVEKEEP_OPS_PORT: " in told
    assert "WAVEKEEP_DOWNLOAD_ATTEMPT_TIMEOUT_S must be below WAVEKEEP_ACK_TIMEOUT_S" in told


def test_no_relation_is_told_of_what_is_wrong_itself(environment: pytest.MonkeyPatch) -> None:
    """What a wrong setting might break in relation to others is not guessed."""
    environment.setenv("WAVEKEEP_DOWNLOAD_ATTEMPT_TIMEOUT_S", "soon")
    environment.setenv("WAVEKEEP_ACK_TIMEOUT_S", "600")
    told = refused(DownloaderSettings)
    assert len(told.splitlines()) == 2
    assert "must be below" not in told


@pytest.mark.parametrize("model", MODELS)
def test_empty_is_unset(model: type[ServiceSettings], environment: pytest.MonkeyPatch) -> None:
    """A variable that is set to nothing, as compose files do, counts as unset."""
    unset = load(model)
    for name in model.model_fields:
        environment.setenv(PREFIX + name.upper(), "")
    assert load(model) == unset


def test_unknown_variables_are_left_alone(environment: pytest.MonkeyPatch) -> None:
    """Settings of another service, or of another version, are no problem."""
    environment.setenv("WAVEKEEP_NOT_A_SETTING", "x")
    environment.setenv("WAVEKEEP_DOWNLOAD_MAX_BYTES", "x")
    assert load(IngressSettings) == IngressSettings()


def test_settings_are_read_once(environment: pytest.MonkeyPatch) -> None:
    """A setting cannot change while a process runs."""
    settings = load(ServiceSettings)
    environment.setenv("WAVEKEEP_OPS_PORT", "1")
    assert settings.ops_port == 9100
    with pytest.raises(ValueError, match="frozen"):
        settings.ops_port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one", ["one"]),
        ("one,two", ["one", "two"]),
        (" one , two ,", ["one", "two"]),
        (",", []),
        ("xn--strae-oqa.example", ["xn--strae-oqa.example"]),
    ],
)
def test_comma_separated(text: str, expected: list[str], environment: pytest.MonkeyPatch) -> None:
    """Several values are separated by commas; blanks around them do not count."""
    environment.setenv("WAVEKEEP_KIE_CALLBACK_TOKENS", text)
    environment.setenv("WAVEKEEP_DOWNLOAD_ALLOWED_HOSTS", text)
    settings = load(StandaloneSettings)
    assert [secret.get_secret_value() for secret in settings.kie_callback_tokens] == expected
    assert list(settings.download_allowed_hosts) == expected


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("embedded:///var/lib/queue.sqlite3", Path("/var/lib/queue.sqlite3")),
        ("amqp://rabbit", None),
        ("amqps://u:p@[::1]:5671/%2F", None),
        ("amqp://u:p@one/,amqp://u:p@two/, amqps://u:p@[::1]:5671/%2F", None),
    ],
)
def test_broker_urls(url: str, path: Path | None, environment: pytest.MonkeyPatch) -> None:
    """The broker is named by one URL, a cluster by several; the embedded one is a file."""
    environment.setenv("WAVEKEEP_BROKER_URL", url)
    assert load(ServiceSettings).embedded_path == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("amqp://one/", ("amqp://one/",)),
        ("amqp://one/,amqps://two/", ("amqp://one/", "amqps://two/")),
        (" amqp://one , amqp://two ", ("amqp://one", "amqp://two")),
        ("amqp://user:pass,word@one/a,b", ("amqp://user:pass,word@one/a,b",)),
    ],
)
def test_the_nodes_of_a_cluster(text: str, expected: tuple[str, ...]) -> None:
    """Several URLs are separated by commas; a comma in a password separates nothing."""
    assert broker_urls(text) == expected


def test_embedded_broker_in_a_folder(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the embedded broker's URL names a folder, its file is made in it."""
    environment.setenv("WAVEKEEP_BROKER_URL", f"embedded://{tmp_path}")
    assert load(ServiceSettings).embedded_path == tmp_path / "queue.sqlite3"


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@rabbit/",
        f"amqp://user:{SECRET}@",
        f"amqp:{SECRET}",
        f"amqp://user:{SECRET}/x@rabbit/",
        f"amqp://user:{SECRET}@rabbit:port/",
        f"amqp://user:{SECRET}@rabbit:99999/",
        f"amqp://user:{SECRET}@rabbit:0/",
        f"amqp://user:{SECRET}@[::1/",
        f"embedded://{SECRET}/queue",
        f"embedded:{SECRET}",
        f"embedded://user:{SECRET}@/queue",
        f"amqp://user:{SECRET}@rabbit/,amqp://user:{SECRET}@rabbit:0/",
        f"embedded:///{SECRET},amqp://user:{SECRET}@rabbit/",
        SECRET,
    ],
)
def test_wrong_broker_urls(url: str, environment: pytest.MonkeyPatch) -> None:
    """What names no broker is refused, and nothing of it is shown: it holds a password."""
    environment.setenv("WAVEKEEP_BROKER_URL", url)
    told = refused(ServiceSettings)
    assert "WAVEKEEP_BROKER_URL: " in told
    assert SECRET not in told


def test_notify_config(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file of destinations must be there when the settings are read."""
    file = tmp_path / "destinations.toml"
    environment.setenv("WAVEKEEP_NOTIFY_CONFIG", str(file))
    assert "WAVEKEEP_NOTIFY_CONFIG: must name a file" in refused(NotifierSettings)
    file.touch()
    assert load(NotifierSettings).notify_config == file


def test_downloads_must_fit_into_an_attempt(environment: pytest.MonkeyPatch) -> None:
    """The largest file, at the least rate, must arrive within one attempt."""
    environment.setenv("WAVEKEEP_DOWNLOAD_MAX_BYTES", "1000000")
    environment.setenv("WAVEKEEP_DOWNLOAD_ATTEMPT_TIMEOUT_S", "100")
    environment.setenv("WAVEKEEP_DOWNLOAD_MIN_BYTES_PER_S", "9999")
    told = refused(DownloaderSettings)
    assert "WAVEKEEP_DOWNLOAD_MAX_BYTES at WAVEKEEP_DOWNLOAD_MIN_BYTES_PER_S" in told
    environment.setenv("WAVEKEEP_DOWNLOAD_MIN_BYTES_PER_S", "10000")
    assert load(DownloaderSettings).least_bytes_per_s == 10_000
    environment.delenv("WAVEKEEP_DOWNLOAD_MIN_BYTES_PER_S")
    assert load(DownloaderSettings).least_bytes_per_s == 10_000


def test_places_for_one_host_are_among_all_of_them(environment: pytest.MonkeyPatch) -> None:
    """One host may have all places if that is asked for, never more; by default one is left to others."""
    for concurrency, by_default in (("1", 1), ("2", 1), ("8", 7)):
        environment.setenv("WAVEKEEP_DOWNLOAD_CONCURRENCY", concurrency)
        assert load(DownloaderSettings).places_per_host == by_default
    environment.setenv("WAVEKEEP_DOWNLOAD_PER_HOST", "8")
    assert load(DownloaderSettings).places_per_host == 8
    environment.setenv("WAVEKEEP_DOWNLOAD_PER_HOST", "9")
    assert "WAVEKEEP_DOWNLOAD_PER_HOST must not be above WAVEKEEP_DOWNLOAD_CONCURRENCY" in refused(DownloaderSettings)


def test_one_vendor_never_has_all_that_is_in_hand(environment: pytest.MonkeyPatch) -> None:
    """By default it has every download there is, and one report more is in hand for another vendor; in either lane."""
    for concurrency in ("1", "2", "8"):
        environment.setenv("WAVEKEEP_DOWNLOAD_CONCURRENCY", concurrency)
        environment.setenv("WAVEKEEP_DOWNLOAD_URGENT_CONCURRENCY", concurrency)
        settings = load(DownloaderSettings)
        assert (settings.places_per_vendor, settings.in_hand) == (int(concurrency), int(concurrency) + 1)
        assert settings.urgent_in_hand == int(concurrency) + 1
        assert settings.urgent_places_per_host == max(int(concurrency) - 1, 1)
    for per_vendor, in_hand in (("8", 9), ("7", 8), ("2", 8)):
        environment.setenv("WAVEKEEP_DOWNLOAD_PER_VENDOR", per_vendor)
        settings = load(DownloaderSettings)
        assert (settings.places_per_vendor, settings.in_hand) == (int(per_vendor), in_hand)
    environment.setenv("WAVEKEEP_DOWNLOAD_PER_VENDOR", "9")
    assert "WAVEKEEP_DOWNLOAD_PER_VENDOR must not be above WAVEKEEP_DOWNLOAD_CONCURRENCY" in refused(DownloaderSettings)


def test_attempts_must_fit_into_the_acknowledgement(environment: pytest.MonkeyPatch) -> None:
    """An attempt ends before the broker hands its message to somebody else."""
    environment.setenv("WAVEKEEP_ACK_TIMEOUT_S", "1500")
    assert "must be below WAVEKEEP_ACK_TIMEOUT_S" in refused(DownloaderSettings)
    environment.setenv("WAVEKEEP_ACK_TIMEOUT_S", "1501")
    assert load(DownloaderSettings).ack_timeout_s == 1_501


def test_only_vendors_with_a_key_are_asked(environment: pytest.MonkeyPatch) -> None:
    """One vendor's key lets us ask that vendor, at its own address and pace."""
    assert load(DownloaderSettings).accounts() == {}
    environment.setenv("WAVEKEEP_KIE_API_KEY", SECRET)
    ((vendor, account),) = load(DownloaderSettings).accounts().items()
    assert (vendor, account.base, account.per_10_s) == (Vendor.KIE, "https://api.kie.ai", 5)
    assert account.key.get_secret_value() == SECRET
    environment.setenv("WAVEKEEP_KIE_API_BASE", "http://127.0.0.1:8181/kie/")
    environment.setenv("WAVEKEEP_KIE_API_RATE_PER_10S", "20")
    account = load(DownloaderSettings).accounts()[Vendor.KIE]
    assert (account.base, account.per_10_s) == ("http://127.0.0.1:8181/kie", 20)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEY", f"{SECRET} two"),
        ("API_KEY", f"{SECRET}\r\nX: y"),
        ("API_KEY", f"{SECRET}é"),
        ("API_BASE", f"ftp://{SECRET}"),
        ("API_BASE", f"https:{SECRET}"),
        ("API_BASE", f"https://user:{SECRET}@api.kie.ai"),
        ("API_BASE", f"https://api.kie.ai/?key={SECRET}"),
        ("API_BASE", f"https://api.kie.ai#{SECRET}"),
        ("API_BASE", f"https://api.kie.ai:{SECRET}"),
        ("API_BASE", f"https://[{SECRET}"),
        ("API_RATE_PER_10S", "0"),
        ("API_RATE_PER_10S", "21"),
    ],
)
def test_wrong_accounts(name: str, value: str, environment: pytest.MonkeyPatch) -> None:
    """What cannot be asked, or would leak the key on its way, is refused at start and not shown."""
    environment.setenv(f"WAVEKEEP_KIE_{name}", value)
    told = refused(DownloaderSettings)
    assert f"WAVEKEEP_KIE_{name}: " in told
    assert SECRET not in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("72h", timedelta(hours=72)),
        ("90m", timedelta(minutes=90)),
        ("45s", timedelta(seconds=45)),
        ("3d", timedelta(days=3)),
        ("72", timedelta(hours=72)),
        ("1.5 h", timedelta(minutes=90)),
        (" 2d ", timedelta(days=2)),
    ],
)
def test_give_up_after(text: str, expected: timedelta, environment: pytest.MonkeyPatch) -> None:
    """A length of time is a number with its unit; a bare number is hours."""
    environment.setenv("WAVEKEEP_NOTIFY_GIVE_UP_AFTER", text)
    assert load(NotifierSettings).notify_give_up_after == expected


@pytest.mark.parametrize("text", ["0h", "0", "-1h", "1w", "h", "1h30m", "P3D", "1e3h", "٣h", "nan"])
def test_wrong_give_up_after(text: str, environment: pytest.MonkeyPatch) -> None:
    """Any other length of time, or none at all, is refused with a sentence."""
    environment.setenv("WAVEKEEP_NOTIFY_GIVE_UP_AFTER", text)
    told = refused(NotifierSettings)
    assert "WAVEKEEP_NOTIFY_GIVE_UP_AFTER: " in told


def test_secrets_are_never_shown(environment: pytest.MonkeyPatch) -> None:
    """Neither the settings as text nor their dump shows a secret."""
    for name in ("APIBOX_CALLBACK_TOKENS", "KIE_HMAC_KEYS", "SUNOAPI_CALLBACK_TOKENS", "KIE_API_KEY"):
        environment.setenv(PREFIX + name, f"{SECRET},{SECRET}2")
    environment.setenv("WAVEKEEP_BROKER_URL", f"amqp://user:{SECRET}@rabbit/")
    settings = load(StandaloneSettings)
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert SECRET not in f"{settings.credentials()} {settings.accounts()}"


def test_every_setting_says_what_it_is() -> None:
    """A setting without a description cannot be documented."""
    assert not [name for name, field in StandaloneSettings.model_fields.items() if not field.description]


def test_an_answer_must_fit_into_the_vendors_patience(environment: pytest.MonkeyPatch) -> None:
    """Reading a body, the broker's time and the spool's together stay below the vendor's 15 s."""
    load(IngressSettings)
    environment.setenv("WAVEKEEP_PUBLISH_TIMEOUT_S", "9")
    told = refused(IngressSettings)
    assert "WAVEKEEP_INGRESS_BODY_TIMEOUT_S" in told
    assert "17 s" in told
