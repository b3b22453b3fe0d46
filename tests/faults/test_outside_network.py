"""The network fails: cut downloads, starved and endless ones, names and certificates. Faults 16, 17 and 25."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults import report
from tests.faults.core import judge
from tests.faults.house import House, wait_for
from tests.faults.surroundings import Names, Proxy, logged, metric

Build = Callable[..., House]

TLS = Path(__file__).parents[1] / "integration" / "tls"
FILE_BYTES = 600_000
WINDOW_S = "2"
PARKED = "wavekeep.downloader.parked"

CUTS: Mapping[str, tuple[str, str, set[str]]] = {
    "reset": ("reset", "content_length", {"body_cut", "connection_failed"}),
    "FIN before the length is reached": ("fin", "content_length", {"body_cut"}),
    "FIN in a chunked body": ("fin", "chunked", {"body_cut"}),
    "FIN in a close-delimited body": ("fin", "close", {"body_cut", "wav_truncated"}),
    "reset of a close-delimited body": ("reset", "close", {"body_cut", "wav_truncated"}),
    "black hole": ("black_hole", "content_length", {"too_slow", "timed_out"}),
}
"""How the line ends, how the end of the body would be told, and as what the downloader may know it."""


@contextlib.contextmanager
def behind(
    proxy: Proxy, build: Build, *, base: str = "http://127.0.0.1", names: Names | None = None, **settings: str
) -> Iterator[House]:
    """Run a house whose vendor serves its files through a proxy.

    Args:
        base: of the links, without the port, which is the proxy's.
        names: that the services see; None for those of this machine.
    """
    home = build(
        "embedded",
        start=False,
        simulator={"SIMULATOR_PUBLIC_URL": f"{base}:{proxy.port}"},
        settings={"WAVEKEEP_DOWNLOAD_ALLOW_ADDRESSES": f"127.0.0.1:{proxy.port}", **settings},
    )
    if names is not None:
        for process in home.processes:
            process.wrapper = names.wrapper
    with proxy.before(home.simulator.base_url):
        home.start()
        yield home


def _connected(proxy: Proxy, connections: int) -> bool:
    return proxy.lines["connections"] >= connections


@contextlib.contextmanager
def watched(home: House, size_bytes: int) -> Iterator[list[str]]:
    """Look at the storage all the time; yields a list that every file with a final name and another size goes to."""
    seen: list[str] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.002):
            for path in home.kept("*.wav"):
                with contextlib.suppress(FileNotFoundError):
                    if (size := path.stat().st_size) != size_bytes:
                        seen.append(f"{path.name} with {size} bytes")

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.fast_fault if "FIN in a close" in name else ()) for name in CUTS]
)
def test_a_cut_download_is_tried_again_and_never_published(
    house: Build, seed: random.Random, tmp_path: Path, name: str
) -> None:
    """Wherever a line breaks in mid-download, no part is ever seen as a file, and the whole file is kept in the end."""
    end, framing, reasons = CUTS[name]
    proxy = Proxy(tmp_path)
    plan = {"files": [{"size_bytes": FILE_BYTES, "misbehaviour": [{"framing": framing}]}]}
    with behind(proxy, house, WAVEKEEP_DOWNLOAD_RATE_WINDOW_S=WINDOW_S) as home, watched(home, FILE_BYTES) as cut_files:
        cuts = 4
        for _ in range(cuts):  # one place each: in the header of the WAV, near the end, and anywhere between
            connections = proxy.lines["connections"]
            place = seed.choice((600, FILE_BYTES - 100, seed.randrange(600, FILE_BYTES)))
            proxy.tell(times=1, after_bytes=place, end=end)
            home.convert(plan)
            wait_for(partial(_connected, proxy, connections + 1), "the line is there to be cut")
        verdict = judge(home, within_s=90)
        tried_again = retried(home)
    report.record(16, f"download cut: {name}", cuts, verdict)
    assert cut_files == []
    assert verdict.problems == ()
    assert len(home.kept("*.wav")) == cuts
    assert len(tried_again) == cuts
    assert {line["reason"] for line in tried_again} <= reasons


@pytest.mark.fault(17)
def test_a_starved_and_an_endless_download_harm_no_other(house: Build) -> None:
    """Two files come at a byte a second, one never ends: others are stored meanwhile, and each of these is ended."""
    home = house(
        "embedded",
        settings={
            "WAVEKEEP_DOWNLOAD_CONCURRENCY": "4",
            "WAVEKEEP_DOWNLOAD_MAX_BYTES": "2000000",
            "WAVEKEEP_DOWNLOAD_MIN_BYTES_PER_S": "16384",
            "WAVEKEEP_DOWNLOAD_RATE_WINDOW_S": "8",
        },
    )
    starved = {"files": [{"misbehaviour": [{"bytes_per_s": 1, "times": 1}]}]}
    home.convert(starved, starved)
    wait_for(lambda: metric(home, "wavekeep_downloader_attempts_in_progress") == 2, "two downloads are being starved")
    home.convert({"files": [{"misbehaviour": [{"endless": True}]}]}, *({} for _ in range(12)))
    wait_for(lambda: len(home.kept("*.wav")) == 12, "the others are stored", within_s=30)
    assert retried(home, "too_slow") == []
    verdict = judge(home, parked={PARKED: 1}, within_s=90)
    report.record(17, "two downloads of a byte a second, an endless one", 3, verdict)
    assert verdict.problems == ()
    assert len(retried(home, "too_slow")) == 2
    assert len(logged(home, "message.parked", reason="too_large")) == 1


@pytest.mark.fault(25)
def test_while_no_name_is_known_downloads_wait(house: Build, tmp_path: Path) -> None:
    """Without DNS a download is tried again as `host_unresolved`; once the name is known the file is kept."""
    names, proxy = Names(tmp_path), Proxy(tmp_path)
    with behind(proxy, house, base="http://files.test", names=names) as home:
        home.convert({}, {})
        wait_for(lambda: len(retried(home, "host_unresolved")) == 2, "both wait")
        names.tell(files_test="127.0.0.1")
        verdict = judge(home, within_s=90)
    report.record(25, "DNS down", 2, verdict)
    assert verdict.problems == ()


@pytest.mark.fault(25)
def test_a_host_that_moves_inside_is_refused_before_it_is_reached(house: Build, tmp_path: Path) -> None:
    """A name that was open at the first attempt and inside at the second is refused for good, and nothing connects."""
    names, proxy = Names(tmp_path), Proxy(tmp_path)
    names.tell(files_test="127.0.0.1")
    plan = {
        "files": [{"misbehaviour": [{"status": 503, "times": 1}]}],
        "expect": {"outcome": "rejected", "reasons": ["address_forbidden"]},
    }
    with (
        behind(proxy, house, base="http://files.test", names=names) as home,
        socket.create_server(("127.0.0.9", proxy.port)) as inside,
    ):
        home.convert(plan, plan)
        wait_for(lambda: len(retried(home, "http_failed")) == 2, "both wait")
        names.tell(files_test="127.0.0.9")
        verdict = judge(home, parked={PARKED: 2}, within_s=90)
        inside.setblocking(False)
        with pytest.raises(BlockingIOError):
            inside.accept()
        refused = logged(home, "message.parked", reason="address_forbidden")
    report.record(25, "rebinding: the host moves inside between two attempts", 2, verdict)
    assert verdict.problems == ()
    assert len(refused) == 2


@pytest.mark.fault(25)
def test_an_expired_certificate_is_waited_out(house: Build, tmp_path: Path) -> None:
    """A download from a host whose certificate has expired is tried again, and is kept once it was renewed."""
    names, proxy = Names(tmp_path), Proxy(tmp_path, certificate=TLS / "expired.pem")
    names.tell(files_test="127.0.0.1")
    authority = str(TLS / "authority.pem")
    with behind(proxy, house, base="https://files.test", names=names, SSL_CERT_FILE=authority) as home:
        home.convert({}, {})
        wait_for(lambda: len(retried(home, "certificate_invalid")) == 2, "both wait")
        proxy.tell(certificate=str(TLS / "valid.pem"))
        verdict = judge(home, within_s=90)
    report.record(25, "certificate expired", 2, verdict)
    assert verdict.problems == ()


def retried(home: House, reason: str | None = None) -> list[dict[str, Any]]:
    """Return what was said of each download that is tried again, for one reason or for any."""
    wanted = {"queue": "wavekeep.downloader"} | ({"reason": reason} if reason else {})
    return logged(home, "message.retry_scheduled", **wanted)
