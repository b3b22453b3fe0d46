"""Secrets from files, as container platforms mount them: read at start, refused in a sentence, never shown."""

import os
from pathlib import Path
from typing import Any

import pytest

from downloader.settings import DownloaderSettings
from ingress.settings import IngressSettings
from notifier.settings import NotifierSettings
from shared.errors import StartError
from shared.settings import LARGEST_SECRET_BYTES, PREFIX, ServiceSettings, load, secret_settings
from shared.vendors import Vendor
from standalone.settings import StandaloneSettings

SECRET = "s3cret"
MODELS = [IngressSettings, DownloaderSettings, NotifierSettings, StandaloneSettings]
OF_THE_INGRESS = {f"{vendor}_{name}" for vendor in Vendor for name in ("callback_tokens", "hmac_keys", "api_key")}
OF_THE_DOWNLOADER = {f"{vendor}_api_key" for vendor in Vendor}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Start from an environment that says nothing."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a file that is not there yet, and whose name nobody may see either."""
    return tmp_path / f"{SECRET}.txt"


def refused(model: type[ServiceSettings]) -> list[str]:
    """Return the problems of settings that are refused; none of them shows the secret or where it is."""
    with pytest.raises(StartError) as caught:
        load(model)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def plain(value: Any) -> Any:
    """Return a secret, or several, as text."""
    return tuple(map(plain, value)) if isinstance(value, tuple) else value.get_secret_value()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (IngressSettings, OF_THE_INGRESS),
        (DownloaderSettings, OF_THE_DOWNLOADER),
        (NotifierSettings, set()),
        (StandaloneSettings, OF_THE_INGRESS | OF_THE_DOWNLOADER),
    ],
)
def test_every_secret_has_a_file_form(model: type[ServiceSettings], expected: set[str]) -> None:
    """What must not stand in an environment need not: each secret, and nothing else, may be in a file."""
    assert set(secret_settings(model)) == {"broker_url", *expected}


@pytest.mark.parametrize("name", secret_settings(StandaloneSettings))
@pytest.mark.parametrize("model", MODELS)
def test_every_secret_is_read_from_its_file(
    name: str, model: type[ServiceSettings], environment: pytest.MonkeyPatch, file: Path
) -> None:
    """In every service that has the setting, the file says what the variable would."""
    value = f"amqp://user:{SECRET}@rabbit/" if name == "broker_url" else SECRET
    file.write_text(f"{value}\n")
    environment.setenv(f"{PREFIX}{name.upper()}_FILE", str(file))
    found = getattr(load(model), name, None)
    if name not in model.model_fields:
        assert found is None
        return
    assert plain(found) == ((value,) if isinstance(found, tuple) else value)
    assert SECRET not in repr(load(model))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one", ("one",)),
        (b"one\n", ("one",)),
        (b"one\r\n", ("one",)),
        (b"one,two\n", ("one", "two")),
        (b"one\ntwo\n", ("one", "two")),
        (b"one\r\ntwo\r\n", ("one", "two")),
        (b"older,\nnewer,\n\n", ("older", "newer")),
        ("schlüssel\n".encode(), ("schlüssel",)),
    ],
)
def test_several_in_a_file(
    content: bytes, expected: tuple[str, ...], environment: pytest.MonkeyPatch, file: Path
) -> None:
    """While rotating, two stand in one file, separated by a comma or a line."""
    file.write_bytes(content)
    environment.setenv("WAVEKEEP_KIE_CALLBACK_TOKENS_FILE", str(file))
    assert plain(load(IngressSettings).kie_callback_tokens) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [("key", "key"), ("key\n", "key"), ("key\r\n", "key"), (" key, \n\n", " key, \n"), ("key\r", "key\r")],
)
def test_one_lines_end_is_taken_off(content: str, expected: str, environment: pytest.MonkeyPatch, file: Path) -> None:
    """An editor's last line end is no part of a secret; everything else is."""
    file.write_bytes(content.encode())
    environment.setenv("WAVEKEEP_KIE_API_KEY_FILE", str(file))
    assert plain(load(IngressSettings).kie_api_key) == expected


def test_nodes_of_a_cluster_in_a_file(environment: pytest.MonkeyPatch, file: Path) -> None:
    """A broker's nodes may stand one in a line; a line that breaks an address is refused, not joined."""
    environment.setenv("WAVEKEEP_BROKER_URL_FILE", str(file))
    file.write_text(f"amqp://user:{SECRET}@one/\namqp://user:{SECRET}@two/\n")
    assert load(ServiceSettings).embedded_path is None
    file.write_text(f"amqp://user:{SECRET}@o\nne/\n")
    assert refused(ServiceSettings) == ["WAVEKEEP_BROKER_URL_FILE: must not be broken by a line's end or a tab"]


def test_wrong_files_are_told_with_all_other_problems(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One start shows everything that is wrong with files, beside whatever else is."""
    contents = {
        "KIE_HMAC_KEYS": b"",
        "KIE_CALLBACK_TOKENS": b"\n,\r\n \n",
        "KIE_API_KEY": SECRET.encode() + b"\xff",
        "APIBOX_API_KEY": SECRET.encode() + b" two words",
        "APIBOX_HMAC_KEYS": SECRET.encode() * LARGEST_SECRET_BYTES,
        "APIBOX_CALLBACK_TOKENS": "ü".encode() * (LARGEST_SECRET_BYTES // 2 + 1),
    }
    for name, content in contents.items():
        path = tmp_path / f"{SECRET}-{name}"
        path.write_bytes(content)
        environment.setenv(f"{PREFIX}{name}_FILE", str(path))
    environment.setenv("WAVEKEEP_SUNOAPI_API_KEY_FILE", str(tmp_path / SECRET))
    environment.setenv("WAVEKEEP_SUNOAPI_HMAC_KEYS_FILE", str(tmp_path))
    environment.setenv("WAVEKEEP_SUNOAPI_CALLBACK_TOKENS_FILE", f"{tmp_path}/\x01{SECRET * 1_000}")
    environment.setenv("WAVEKEEP_OPS_PORT", "eighty")
    environment.setenv("WAVEKEEP_ACK_TIMEOUT_S", "1")
    lines = refused(StandaloneSettings)
    others = {"WAVEKEEP_OPS_PORT:", "WAVEKEEP_DOWNLOAD_ATTEMPT_TIMEOUT_S"}
    assert {line.split()[0] for line in lines if "_FILE: " not in line} == others
    assert dict(line.split(": ", 1) for line in lines if "_FILE: " in line) == {
        "WAVEKEEP_KIE_HMAC_KEYS_FILE": "must name a file that holds something",
        "WAVEKEEP_KIE_CALLBACK_TOKENS_FILE": "must name a file that holds something",
        "WAVEKEEP_KIE_API_KEY_FILE": "must name a file that holds text in UTF-8",
        "WAVEKEEP_APIBOX_API_KEY_FILE": "must be of printable ASCII without spaces, as it goes into a header",
        "WAVEKEEP_APIBOX_HMAC_KEYS_FILE": "must name a file of at most 65536 bytes",
        "WAVEKEEP_APIBOX_CALLBACK_TOKENS_FILE": "must name a file of at most 65536 bytes",
        "WAVEKEEP_SUNOAPI_API_KEY_FILE": "must name a file that is there",
        "WAVEKEEP_SUNOAPI_HMAC_KEYS_FILE": "must name a file that is there",
        "WAVEKEEP_SUNOAPI_CALLBACK_TOKENS_FILE": "must name a file that can be read (File name too long)",
    }


def test_a_file_that_may_not_be_read(environment: pytest.MonkeyPatch, file: Path) -> None:
    """A file of somebody else's is told with the system's own words."""
    file.write_text(SECRET)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    environment.setenv("WAVEKEEP_KIE_API_KEY_FILE", str(file))
    environment.setattr(Path, "open", forbidden)
    assert refused(IngressSettings) == [
        "WAVEKEEP_KIE_API_KEY_FILE: must name a file that can be read (Permission denied)"
    ]


def test_a_pipe_is_no_file(environment: pytest.MonkeyPatch, file: Path) -> None:
    """What might never end, and make the start hang, is not opened."""
    os.mkfifo(file)
    environment.setenv("WAVEKEEP_KIE_API_KEY_FILE", str(file))
    assert refused(IngressSettings) == ["WAVEKEEP_KIE_API_KEY_FILE: must name a file that is there"]


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("name", ["KIE_CALLBACK_TOKENS", "KIE_API_KEY", "BROKER_URL"])
def test_not_both(name: str, present: bool, environment: pytest.MonkeyPatch, file: Path) -> None:
    """Which of two would count is not left to guessing, whatever either holds."""
    if present:
        file.write_text(SECRET)
    environment.setenv(PREFIX + name, f"amqp://{SECRET}/")
    environment.setenv(f"{PREFIX}{name}_FILE", str(file))
    assert refused(StandaloneSettings) == [f"{PREFIX}{name}_FILE: give this or {PREFIX}{name}, not both"]


def test_empty_is_unset_here_too(environment: pytest.MonkeyPatch, file: Path) -> None:
    """As compose files do: an empty variable names no file, and an empty secret stands against none."""
    file.write_text(SECRET)
    environment.setenv("WAVEKEEP_KIE_API_KEY", "")
    environment.setenv("WAVEKEEP_KIE_API_KEY_FILE", str(file))
    environment.setenv("WAVEKEEP_APIBOX_API_KEY", SECRET)
    environment.setenv("WAVEKEEP_APIBOX_API_KEY_FILE", "")
    settings = load(StandaloneSettings)
    assert (plain(settings.kie_api_key), plain(settings.apibox_api_key)) == (SECRET, SECRET)


def test_files_are_read_once(environment: pytest.MonkeyPatch, file: Path) -> None:
    """A file that changes, or goes, while a process runs changes nothing."""
    file.write_text(SECRET)
    environment.setenv("WAVEKEEP_KIE_HMAC_KEYS_FILE", str(file))
    settings = load(IngressSettings)
    file.unlink()
    assert settings.credentials()[Vendor.KIE].hmac_keys == (SECRET.encode(),)


def test_only_secrets_are_read_from_files(environment: pytest.MonkeyPatch, file: Path) -> None:
    """A file for a setting that is none has no effect."""
    file.write_text("1")
    environment.setenv("WAVEKEEP_OPS_PORT_FILE", str(file))
    assert load(ServiceSettings).ops_port == 9100
