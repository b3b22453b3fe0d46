"""The single process: its secrets, its settings, what it prints, and its sample file."""

import io
import json
import shlex
import stat
import threading
import tomllib
import wave
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from downloader.settings import DownloaderSettings
from downloader.wav import Walker
from ingress.settings import IngressSettings
from notifier.settings import NotifierSettings
from shared.errors import StartError
from shared.settings import ServiceSettings, load
from shared.vendors import Vendor
from standalone.app import unknown_settings, with_tokens
from standalone.banner import banner
from standalone.sample import make_sample
from standalone.secrets import FILE_NAME, keep_tokens
from standalone.settings import StandaloneSettings

TOKENS = {Vendor.APIBOX: "apibox-token", Vendor.KIE: "a&b=c d'e", Vendor.SUNOAPI: "sunoapi-token"}


def test_tokens_are_made_once(tmp_path: Path) -> None:
    """Every vendor gets a long random token of its own, and the same one at every start."""
    made = keep_tokens(tmp_path / "data")
    assert set(made) == set(Vendor)
    assert len(set(made.values())) == len(Vendor)
    assert all(len(token) >= 32 for token in made.values())
    assert keep_tokens(tmp_path / "data") == made
    assert keep_tokens(tmp_path / "other") != made


def test_tokens_are_for_the_owner_alone(tmp_path: Path) -> None:
    """Nobody else on the machine can read them, and no draft of the file is left."""
    keep_tokens(tmp_path / "data")
    assert stat.S_IMODE((tmp_path / "data" / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert [path.name for path in (tmp_path / "data").iterdir()] == [FILE_NAME]


def test_a_kept_token_survives_a_new_vendor(tmp_path: Path) -> None:
    """Where a vendor is missing in the file, only its token is made; the others stay to the letter."""
    odd = 'quote" back\\slash ключ'
    (tmp_path / FILE_NAME).write_text(f"[callback_tokens]\nkie = {json.dumps(odd, ensure_ascii=False)}\n", "utf-8")
    made = keep_tokens(tmp_path)
    assert made[Vendor.KIE] == odd
    assert made[Vendor.APIBOX]
    assert tomllib.loads((tmp_path / FILE_NAME).read_text("utf-8"))["callback_tokens"] == made


def test_processes_that_start_at_once_keep_the_same_tokens(tmp_path: Path) -> None:
    """Of two first starts none prints tokens that the file does not have."""
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(keep_tokens(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [keep_tokens(tmp_path)] * 8


@pytest.mark.parametrize("content", [b"not toml", b"\xff", b'callback_tokens = "x"', b"[callback_tokens]\nkie = 3\n"])
def test_a_damaged_file_is_explained_and_left_alone(tmp_path: Path, content: bytes) -> None:
    """New tokens would lock the vendors out: a person decides, told how in a sentence."""
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(StartError, match="or remove it to have new ones made") as caught:
        keep_tokens(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(caught.value)
    assert (tmp_path / FILE_NAME).read_bytes() == content


def test_a_file_in_the_place_of_the_folder_is_explained(tmp_path: Path) -> None:
    """A mistaken WAVEKEEP_DATA_DIR is told in a sentence."""
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StartError, match=r"data folder .* cannot be used"):
        keep_tokens(tmp_path / "data")


def test_secrets_of_the_environment_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vendor that has a secret of any kind gets no other; the rest get kept ones."""
    monkeypatch.setenv("WAVEKEEP_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WAVEKEEP_APIBOX_CALLBACK_TOKENS", "mine,older")
    monkeypatch.setenv("WAVEKEEP_KIE_HMAC_KEYS", "key")
    settings = with_tokens(load(StandaloneSettings))
    assert [token.get_secret_value() for token in settings.apibox_callback_tokens] == ["mine", "older"]
    assert settings.kie_callback_tokens == ()
    (kept,) = settings.sunoapi_callback_tokens
    assert kept.get_secret_value() == keep_tokens(tmp_path)[Vendor.SUNOAPI]


def test_with_every_secret_given_no_file_is_made(tmp_path: Path) -> None:
    """An operator who brings all secrets finds none of ours lying about."""
    given: dict[str, Any] = {f"{vendor}_callback_tokens": (SecretStr("mine"),) for vendor in Vendor}
    settings = StandaloneSettings(data_dir=tmp_path, **given)
    assert with_tokens(settings) is settings
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("service", [IngressSettings, DownloaderSettings, NotifierSettings])
def test_settings_of_all_services_are_accepted(service: type[ServiceSettings]) -> None:
    """What works for a service works here, with the same default; only the operations port is its own.

    The ingress by itself takes any text for an API key, as it sends none: here the key must be one.
    """
    for name, field in service.model_fields.items():
        mine = StandaloneSettings.model_fields[name]
        unused = service is IngressSettings and name.endswith("_api_key")
        assert unused or mine.annotation == field.annotation, name
        assert mine.default == field.default or name == "ops_port", name
        assert field.default is not PydanticUndefined, name


def test_checks_between_settings_hold_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that could never be met is refused by the single process as by the downloader."""
    monkeypatch.setenv("WAVEKEEP_DOWNLOAD_ATTEMPT_TIMEOUT_S", "99999")
    with pytest.raises(StartError, match="WAVEKEEP_ACK_TIMEOUT_S"):
        load(StandaloneSettings)


def shown(**changes: object) -> str:
    """Return a banner."""
    arguments: dict[str, object] = {
        "local_url": "http://127.0.0.1:8080",
        "public_url": None,
        "tokens": TOKENS,
        "ops_url": "http://127.0.0.1:9100",
        "files": Path("/data/files"),
        "sample_link": "http://127.0.0.1:5555/sample.wav",
        "color": False,
    }
    return banner(**(arguments | changes))  # type: ignore[arg-type]


def test_the_banner_has_a_url_for_every_vendor() -> None:
    """Each can be handed in as it stands: whatever the token holds, the ingress reads it back."""
    text = shown(public_url="https://wavekeep.example.com/")
    urls = [word for word in text.split() if word.startswith("https://")]
    assert [urlsplit(url).path for url in urls] == [f"/callbacks/{vendor}" for vendor in Vendor]
    assert [parse_qs(urlsplit(url).query)["token"] for url in urls] == [[token] for token in TOKENS.values()]
    assert "WAVEKEEP_PUBLIC_URL" not in text
    assert "WAVEKEEP_PUBLIC_URL" in shown()


@pytest.mark.parametrize("vendor", list(Vendor))
def test_the_banner_has_a_line_to_try(vendor: Vendor) -> None:
    """A shell reads the `curl` line as one callback of a new task about the sample file."""
    text = shown(tokens={vendor: TOKENS[vendor]})
    (line,) = [line for line in text.splitlines() if line.strip().startswith("curl")]
    command, _, url, _, header, _, body = shlex.split(line)
    assert (command, header) == ("curl", "Content-Type: application/json")
    assert parse_qs(urlsplit(url).query)["token"] == [TOKENS[vendor]]
    data = json.loads(body)["data"]
    assert data["audioWavUrl"] == "http://127.0.0.1:5555/sample.wav"
    assert data["task_id"] not in shown()


def test_without_a_sample_there_is_nothing_to_try() -> None:
    """No line is printed that could not work."""
    for text in (shown(sample_link=None), shown(tokens={})):
        assert "curl" not in text


def test_colour_is_for_terminals() -> None:
    """What is written into a file holds no control characters."""
    assert "\x1b" not in shown()
    assert "\x1b[1m" in shown(color=True)


def test_the_sample_is_a_whole_wav() -> None:
    """Other readers and our own proof agree on it."""
    body = make_sample()
    with wave.open(io.BytesIO(body)) as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (44_100, 1, 2)
    walker = Walker()
    walker.feed(body)
    assert walker.finish(body_proven_complete=True).format.duration_s == pytest.approx(2.0, abs=0.01)


def test_a_misspelt_setting_is_found() -> None:
    """What looks like a setting of ours and has no effect is told, not ignored; only secrets may come in files."""
    environment = {
        "WAVEKEEP_BROKER_URL_FILE": "x",
        "WAVEKEEP_KIE_API_KEY_FILE": "x",
        "WAVEKEEP_KIE_CALLBACK_TOKENS_FILE": "x",
        "WAVEKEEP_SAMPLE_FILE": "false",
        "WAVEKEEP_PUBLIC_URL_FILE": "x",
        "WAVEKEEP_INGRES_PORT": "1",
        "WAVEKEEP_INGRESS_PORT": "1",
        "WAVEKEEP_TEST_AMQP_URL": "x",
        "PATH": "/bin",
    }
    assert unknown_settings(environment) == ["WAVEKEEP_INGRES_PORT", "WAVEKEEP_PUBLIC_URL_FILE"]
