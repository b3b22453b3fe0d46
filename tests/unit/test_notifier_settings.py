"""The file of destinations: what is read, and how everything else is refused in one go, without a secret."""

from datetime import timedelta
from pathlib import Path

import pytest

from notifier.settings import (
    DEFAULT_EVENTS,
    RESERVED_NAMES,
    LogDestination,
    NotifierSettings,
    WebhookDestination,
    load_destinations,
)
from shared.errors import StartError
from shared.settings import load

SECRET = "whsec_c2VjcmV0LXRoYXQtbm9ib2R5LW1heS1zZWU="


def written(tmp_path: Path, text: str) -> Path:
    """Return a file with this text."""
    path = tmp_path / "destinations.toml"
    path.write_text(text, "utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(StartError) as caught:
        load_destinations(written(tmp_path, text))
    assert caught.value.__cause__ is None or "whsec" not in str(caught.value.__cause__)
    return str(caught.value)


def test_without_a_file_the_log_is_told() -> None:
    """As installed, end states can be read in the log."""
    assert load_destinations(None) == (LogDestination(name="log", type="log"),)


def test_a_file_is_read(tmp_path: Path) -> None:
    """Every field arrives where it belongs, with its default where none is given."""
    log, hook = load_destinations(
        written(
            tmp_path,
            f"""
            [[destination]]
            name = "people"
            type = "log"
            events = ["conversion.rejected", "file.*"]

            [[destination]]
            name = "billing"
            type = "webhook"
            url = "https://billing.example.com/hooks?k=v"
            secret = "{SECRET}"
            concurrency = 2
            timeout_s = 5
            """,
        )
    )
    assert log == LogDestination(name="people", type="log", events=("conversion.rejected", "file.*"))
    assert isinstance(hook, WebhookDestination)
    assert hook.url.get_secret_value() == "https://billing.example.com/hooks?k=v"
    assert hook.secret is not None
    assert hook.secret.get_secret_value() == SECRET
    assert (hook.events, hook.concurrency, hook.timeout_s) == (DEFAULT_EVENTS, 2, 5.0)
    assert SECRET not in repr(hook)
    assert "billing.example.com" not in repr(hook)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """One start is enough to correct a file, whatever is wrong with it; no value of it is shown."""
    told = refusal(
        tmp_path,
        f"""
        title = "hello"

        [[destination]]
        name = "Log!"
        type = "log"

        [[destination]]
        name = "parked"
        type = "webhook"
        url = "ftp://user:{SECRET}@host/"
        secret = "{SECRET}"
        secret_file = "/run/secret"
        timeout_s = 900

        [[destination]]
        name = "same"
        type = "log"
        colour = "red"

        [[destination]]
        name = "same"
        type = "pigeon"

        [[destination]]
        type = "webhook"
        secret = ["{SECRET}"]
        events = ["report.succeeded"]
        """,
    )
    for words in (
        "not title",
        "destination 1, name:",
        "destination 2, name: 'parked' is the name of one of our own queues",
        "destination 2, url: must be http:// or https://",
        "destination 2, timeout_s:",
        "destination 3, colour:",
        "destination 4: Input tag 'pigeon'",
        "destination 5, name: Field required",
        "destination 5, url: Field required",
        "destination 5, secret:",
        "destination 5, events: 'report.succeeded' is no event",
        "two destinations are called same",
    ):
        assert words in told, told
    assert SECRET not in told
    assert "Value error" not in told


def test_two_secrets_are_one_too_many(tmp_path: Path) -> None:
    """Which of the two would sign is not left to guessing."""
    told = refusal(
        tmp_path,
        '[[destination]]\nname="a"\ntype="webhook"\nurl="https://a.example"\nsecret="YQ=="\nsecret_file="/run/s"\n',
    )
    assert "destination 1: give secret or secret_file, not both" in told


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_our_own_queues_names_are_reserved(tmp_path: Path, name: str) -> None:
    """No destination takes the queue of what is parked or waits."""
    assert "our own queues" in refusal(tmp_path, f'[[destination]]\nname="{name}"\ntype="log"\n')


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://",
        "https:///path",
        "https://:443/",
        "https://h:99999/",
        "https://h:x/",
        "h/p",
        "https://a b/",
        "https://h/#f",
    ],
)
def test_what_is_no_address_is_refused_at_start(tmp_path: Path, url: str) -> None:
    """A mistyped URL is told before the first event, not parked after three days."""
    assert "url: must be" in refusal(tmp_path, f'[[destination]]\nname="a"\ntype="webhook"\nurl="{url}"\n')


@pytest.mark.parametrize(
    "text", ["destination = 3", 'destination = "x"', "[destination]\nname='a'", "destination = [1]"]
)
def test_another_shape_is_explained(tmp_path: Path, text: str) -> None:
    """Who forgets a bracket reads how it is written."""
    assert "[[destination]]" in refusal(tmp_path, text)


@pytest.mark.parametrize("content", [b"[[destination", b"\xff\xfe"])
def test_an_unreadable_file_is_told(tmp_path: Path, content: bytes) -> None:
    """What is no TOML is refused by name of the file."""
    path = tmp_path / "destinations.toml"
    path.write_bytes(content)
    with pytest.raises(StartError, match=r"destinations\.toml cannot be read"):
        load_destinations(path)


@pytest.mark.parametrize(
    ("patterns", "wanted", "unwanted"),
    [
        (
            DEFAULT_EVENTS,
            {"conversion.stored", "conversion.at_risk", "file.damaged", "report.unrecognised"},
            {"report.succeeded", "report.failed"},
        ),
        (("conversion.stored",), {"conversion.stored"}, {"conversion.rejected", "file.expired"}),
        (("file.*",), {"file.expired"}, {"conversion.stored", "files.expired"}),
        (("report.unrecognised",), {"report.unrecognised"}, {"conversion.stored"}),
        ((), set(), {"conversion.stored"}),
    ],
)
def test_patterns_choose_events(patterns: tuple[str, ...], wanted: set[str], unwanted: set[str]) -> None:
    """A destination hears what it asked for, and by default never a raw report."""
    destination = LogDestination(name="a", type="log", events=patterns)
    assert {key for key in wanted | unwanted if destination.wants(key)} == wanted


@pytest.mark.parametrize("pattern", ["report.*", "report.succeeded", "conversion", "conversion.#", "#", "", "*.stored"])
def test_no_pattern_reaches_raw_reports(tmp_path: Path, pattern: str) -> None:
    """What could name a raw report, or nothing that exists, is refused."""
    told = refusal(tmp_path, f'[[destination]]\nname="a"\ntype="log"\nevents=["{pattern}"]\n')
    assert "is no event" in told


@pytest.mark.parametrize(
    ("text", "hours"), [("72h", 72.0), ("90m", 1.5), ("30s", 1 / 120), ("2d", 48.0), ("6", 6.0), (" 1.5 h ", 1.5)]
)
def test_give_up_after_is_read(monkeypatch: pytest.MonkeyPatch, text: str, hours: float) -> None:
    """How long is tried can be said as people say it."""
    monkeypatch.setenv("WAVEKEEP_NOTIFY_GIVE_UP_AFTER", text)
    assert load(NotifierSettings).notify_give_up_after == timedelta(hours=hours)


@pytest.mark.parametrize("text", ["0h", "-1h", "soon", "1w"])
def test_a_wrong_give_up_after_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A duration that means nothing stops the start, by name of the setting."""
    monkeypatch.setenv("WAVEKEEP_NOTIFY_GIVE_UP_AFTER", text)
    with pytest.raises(StartError, match="WAVEKEEP_NOTIFY_GIVE_UP_AFTER"):
        load(NotifierSettings)
