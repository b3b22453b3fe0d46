"""Plans, the conversions made of them, and what the vendor says about those."""

from datetime import UTC, datetime

import msgspec
import pytest

from shared.vendors import Vendor
from simulator.conversions import Conversions
from simulator.ledger import Attempt, Conversion, Ledger
from simulator.plan import Fault, FilePlan, Load, Plan, RecordForm, Step
from simulator.record import job, record, state_of
from simulator.settings import Settings

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def conversions(seed: int = 1) -> Conversions:
    """Return a maker whose clock stands still."""
    return Conversions(Settings(seed=seed, public_url="http://vendor.test"), Ledger(), clock=lambda: NOW)


def called(plan: Plan) -> Conversion:
    """Return a conversion of which every step has begun."""
    made = conversions().make(plan, callback_url="http://receiver.test/")
    made.steps_begun, made.completed_at = len(plan.steps), NOW
    return made


def attempt(status: int) -> Attempt:
    """Return one answered attempt."""
    return Attempt(
        step=0, copy=0, attempt=1, outcome="succeeded", shape="camel", code=200, url=None, sign="no",
        body_sha256="", sent_at=NOW, status=status,
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"vendor": "kie", "flavor": "pcm16"},
        {"vendor": "nobody"},
        {"vendor": "kie", "steps": [{"file": 1}]},
        {"vendor": "kie", "files": [{"misbehaviour": [{"redirect_to": "http://10.0.0.1/"}]}]},
        {"vendor": "kie", "files": [{"size_bytes": 100, "duration_s": 1}]},
        {"vendor": "kie", "files": [{"misbehaviour": [{"cut_after": 1}]}]},
    ],
)
def test_refuses_what_it_does_not_understand(wrong: dict[str, object]) -> None:
    """A misspelt or impossible plan is refused, never taken for a harmless one."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Plan)


def test_load_counts_its_conversions() -> None:
    """Rate and time give the number."""
    assert Load(rate_per_s=200, seconds=30).conversions == 6_000
    with pytest.raises(ValueError, match="weight"):
        Load(rate_per_s=1, seconds=1, vendors={Vendor.KIE: 0})


def test_a_seed_repeats_a_run() -> None:
    """The same seed gives the same ids, names, links and contents; another one does not."""
    plan = Plan(vendor=Vendor.KIE, callback_url="http://receiver.test/")
    first, again, other = (conversions(seed).make(plan) for seed in (7, 7, 8))
    assert (first.task_id, first.files[0].links, first.files[0].plan) == (
        again.task_id, again.files[0].links, again.files[0].plan,
    )  # fmt: skip
    assert first.task_id != other.task_id
    assert first.files[0].plan.seed != other.files[0].plan.seed


def test_fresh_link_differs_in_its_signature_only() -> None:
    """A link signed anew names the same file; both links hold."""
    maker = conversions()
    file = maker.make(Plan(vendor=Vendor.KIE, callback_url="http://receiver.test/")).files[0]
    old, new = maker.link(file), maker.link(file, fresh=True)
    assert old != new
    assert old.partition("&Signature=")[0] == new.partition("&Signature=")[0]
    assert list(file.links.values()) == [old, new]


def test_faults_are_used_up_in_order() -> None:
    """Twice 503, once cut, then good."""
    faults = (Fault(status=503, times=2), Fault(cut_after_bytes=9, times=1))
    plan = Plan(vendor=Vendor.KIE, callback_url="http://receiver.test/", files=(FilePlan(misbehaviour=faults),))
    file = conversions().make(plan).files[0]
    assert [file.next_fault() for _ in range(5)] == [faults[0], faults[0], faults[1], Fault(), Fault()]
    assert file.fetches == 5


def test_needs_somewhere_to_call_back() -> None:
    """A plan that calls back needs an address; one that stays silent does not."""
    with pytest.raises(ValueError, match="no callback_url"):
        conversions().make(Plan(vendor=Vendor.KIE))
    assert conversions().make(Plan(vendor=Vendor.KIE, steps=())).callback_url is None


def test_a_task_id_is_given_once() -> None:
    """A vendor has one task of a name; another vendor may have the same."""
    maker, plan = conversions(), Plan(vendor=Vendor.KIE, task_id="one", steps=())
    maker.make(plan)
    maker.make(msgspec.structs.replace(plan, vendor=Vendor.APIBOX))
    with pytest.raises(ValueError, match="already"):
        maker.make(plan)


def test_refuses_a_file_that_cannot_be() -> None:
    """A WAV of ten bytes is refused when it is planned, not when it is fetched."""
    with pytest.raises(ValueError, match="no room"):
        conversions().check(Plan(vendor=Vendor.KIE, steps=(), files=(FilePlan(size_bytes=10),)))


def test_record_follows_the_steps() -> None:
    """Pending until the first step begins, then what the latest step claims."""
    plan = Plan(vendor=Vendor.APIBOX, steps=(Step(outcome="failed"), Step()))
    made = called(plan)
    flags = []
    for made.steps_begun in (0, 1, 2):
        state = state_of(made)
        assert state is not None
        flags.append((state.flag, state.file is not None))
    assert flags == [("PENDING", False), ("GENERATE_WAV_FAILED", False), ("SUCCESS", True)]


def test_record_tells_a_failed_callback() -> None:
    """Once the retries are over without a 200, the flag says so and the file is still there."""
    made = called(Plan(vendor=Vendor.APIBOX))
    made.callbacks.append(attempt(503))
    made.finished = True
    state = state_of(made)
    assert state is not None
    assert state.flag == "CALLBACK_EXCEPTION"
    assert state.file is made.files[0]
    made.callbacks.append(attempt(200))
    again = state_of(made)
    assert again is not None
    assert again.flag == "SUCCESS"


@pytest.mark.parametrize(
    ("form", "flag", "link", "time"),
    [
        (RecordForm.NEW_TEXT_TIMES, "successFlag", "audioWavUrl", "2026-11-21 12:00:00"),
        (RecordForm.NEW_EPOCH_TIMES, "successFlag", "audioWavUrl", 1795262400000),
        (RecordForm.OLD, "status", "audio_wav_url", "2026-11-21 12:00:00"),
    ],
)
def test_record_has_two_spellings(form: RecordForm, flag: str, link: str, time: object) -> None:
    """The newer and the older field names, and both kinds of times."""
    made = called(Plan(vendor=Vendor.KIE, record_form=form))
    state = state_of(made)
    assert state is not None
    data = record(made, state, "http://vendor.test/a.wav")
    assert (data[flag], data["response"], data["createTime"], data["completeTime"]) == (
        "SUCCESS", {link: "http://vendor.test/a.wav"}, time, time,
    )  # fmt: skip


def test_job_form() -> None:
    """The newer form of kie holds its result as a JSON string."""
    made = called(Plan(vendor=Vendor.KIE))
    state = state_of(made)
    assert state is not None
    data = job(made, state, "http://vendor.test/a.wav")
    assert data["state"] == "success"
    assert msgspec.json.decode(data["resultJson"]) == {"resultUrls": ["http://vendor.test/a.wav"]}
