"""The oracle itself: it finds what it is there to find, and nothing else."""

import json
import shutil
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults import report
from tests.faults.core import Verdict, judge
from tests.faults.house import House

Build = Callable[..., House]

_MODES = (
    pytest.param("embedded", marks=pytest.mark.fast_fault),
    pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
)


@pytest.mark.fault(0)
@pytest.mark.parametrize("mode", _MODES)
def test_a_house_that_nobody_breaks_is_good(house: Build, mode: str) -> None:
    """Stored, rejected, healed, conflicting and unrecognised conversions are all as promised."""
    home = house(mode)
    failed, other = {"outcome": "failed"}, {"file": 1, "delay_s": 0.5}
    home.convert(
        {"copies": 4},
        {"steps": [failed]},
        {"steps": [failed, {"delay_s": 0.5}]},
        {"vendor": "apibox", "files": [{}, {}], "steps": [{}, other]},
        {"vendor": "sunoapi", "shape": "no_url"},
    )
    verdict = judge(home, parked={"wavekeep.unrecognised": 1})
    report.record(0, f"none, {mode}", 0, verdict)
    assert verdict.problems == ()
    assert len(verdict.acknowledged) == 5
    (body,) = verdict.parked["wavekeep.unrecognised"]
    assert b"report.unrecognised" in body


@pytest.mark.fault(0)
@pytest.mark.fast_fault
def test_whatever_is_wrong_is_found_and_called_by_its_name(house: Build) -> None:
    """A table of zeros means something only if it would not be zeros after a loss."""
    home = house("embedded")
    lost, copied, cut, untold, renamed, revoked, twice, good = home.convert(*({} for _ in range(8)))
    assert judge(home).problems == ()

    for path in home.kept(f"{lost}.*"):
        path.unlink()
    (audio,) = home.kept(f"{copied}.*.wav")
    shutil.copy(audio, audio.with_name(f"{copied}.{'0' * 12}.wav"))
    (audio,) = home.kept(f"{cut}.*.wav")
    audio.write_bytes(audio.read_bytes()[:-1])
    (marker,) = home.kept(f"{untold}.announced")
    marker.write_text("of an event that nobody was told\n")
    stored = next(event for event in home.told("hook") if event["subject"].endswith(renamed))
    _tell(home, stored | {"id": "another"})
    rejected = {"type": "wavekeep.conversion.rejected.v1", "subject": f"kie/{revoked}", "data": {"reason": "not_wav"}}
    _tell(home, rejected | {"id": "late", "time": "2100-01-01T00:00:00Z"})
    for number, reason in enumerate(("timed_out", "http_failed")):
        given_up = {"type": rejected["type"], "subject": f"kie/{twice}", "data": {"reason": reason}}
        _tell(home, given_up | {"id": f"given up {number}", "time": "2000-01-01T00:00:00Z"})
    (home.folder / "standalone" / "staging" / "left.part").touch()

    verdict = judge(home, within_s=1, parked={"wavekeep.downloader.parked": 1})
    assert verdict.lost == (f"kie/{lost}",)
    assert _subjects(verdict.doubled) == {f"kie/{each}" for each in (copied, renamed, revoked, twice)}
    assert good not in "\n".join(verdict.problems)
    for sign in (f"kie/{cut} is not the file", "was not told of an event", "told another, which nobody marked",
                 "wavekeep.downloader.parked holds 0", "not drained"):  # fmt: skip
        assert any(sign in problem for problem in verdict.problems), sign
    assert report.broken(report.Row("0", "sabotage", 1, verdict))


def test_a_fault_that_was_not_injected_is_missed() -> None:
    """Rows that are absent, because their tests were skipped, do not pass for rows of zeros."""
    verdict = Verdict((), (), (), (), 0.0)
    rows = [report.Row(str(number), "x", 1, verdict) for number in range(1, 26) if number != 18]
    assert report.not_injected(rows) == ["18", "+"]


def test_the_table_tells_every_row_in_the_order_of_the_faults() -> None:
    """Whoever reads the end of a run sees each fault, how often it was injected, and the numbers that must be 0."""
    verdict = Verdict(("kie/a", "kie/b"), ("kie/b",), (), ("lost: kie/b",), 3.21)
    text = report.table([report.Row("7", "broker frozen", 12, verdict)])
    assert text.splitlines()[-1].split() == ["7", "broker", "frozen", "12", "2", "1", "0", "3.2", "s"]


def _subjects(found: tuple[str, ...]) -> set[str]:
    return {each.partition(" ")[0] for each in found}


def _tell(home: House, event: dict[str, Any]) -> None:
    body = json.dumps({key: value for key, value in event.items() if key not in {"webhook_id", "status"}}).encode()
    headers = {"webhook-id": event["id"], "content-type": "application/json"}
    url = f"{home.simulator.base_url}/webhooks/hook"
    with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers, method="POST")):
        pass
