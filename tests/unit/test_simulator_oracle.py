"""The simulator's own judgement of what must become of a conversion."""

import pytest

from shared.errors import Reason
from shared.vendors import Vendor
from simulator.oracle import Evidence, Expectation, expectation
from simulator.plan import Expect, Fault, FilePlan, Framing, Plan, Shape, Step
from simulator.wavs import Flavour

SUCCESS, FAILURE = Step(), Step(outcome="failed")


def judged(*files: FilePlan, steps: tuple[Step, ...] = (SUCCESS,), shape: Shape | None = None) -> Expectation:
    """Return the expectation of a plan all of whose steps were acknowledged."""
    plan = Plan(vendor=Vendor.KIE, files=files or (FilePlan(),), steps=steps, shape=shape)
    return expectation(plan, [Evidence(index, 200, None) for index in range(len(steps))])


def faulty(**traits: object) -> FilePlan:
    """Return a file with one fault."""
    return FilePlan(misbehaviour=(Fault(**traits),))  # type: ignore[arg-type]  # traits vary by test


def test_acknowledged_success_is_stored() -> None:
    """A plain success that got its 200 must be stored, and nothing else."""
    assert judged() == Expectation(outcome="stored", allowed=("stored",), files=(0,))


def test_unanswered_callback_binds_nobody() -> None:
    """Without a 200 nothing is owed; where the answer was lost, storing is allowed; where refused, it is not."""
    plan = Plan(vendor=Vendor.KIE)
    lost = expectation(plan, [Evidence(0, None, "timed_out")])
    assert (lost.outcome, lost.allowed, lost.files) == ("none", ("none", "stored"), (0,))
    for refused in (Evidence(0, None, "refused"), Evidence(0, 401, None), Evidence(0, None, None)):
        assert expectation(plan, [refused]).allowed == ("none",)


def test_answer_other_than_200_is_uncertain() -> None:
    """A 204 or a 503 is no acknowledgement, but the receiver may have taken the callback."""
    for status in (204, 503):
        assert expectation(Plan(vendor=Vendor.KIE), [Evidence(0, status, None)]).allowed == ("none", "stored")


@pytest.mark.parametrize("steps", [(SUCCESS, FAILURE), (FAILURE, SUCCESS)])
def test_success_wins_over_failure(steps: tuple[Step, ...]) -> None:
    """A success is final in whatever order it comes."""
    assert judged(steps=steps).allowed == ("stored",)


def test_two_successes_allow_either_file() -> None:
    """Success A, then success B: one of the two files is the stored one."""
    assert judged(FilePlan(), FilePlan(), steps=(SUCCESS, Step(file=1))).files == (0, 1)


def test_good_file_heals_a_bad_one() -> None:
    """A later success with a good file is stored although the first one's can never be."""
    wanted = judged(FilePlan(flavour=Flavour.ALAW), FilePlan(), steps=(SUCCESS, Step(file=1)))
    assert (wanted.outcome, wanted.files) == ("stored", (1,))


def test_failure_is_rejected() -> None:
    """A failure alone is rejected at once under the vendor's reason."""
    wanted = judged(steps=(FAILURE,))
    assert (wanted.allowed, wanted.reasons, wanted.settled_by) == (("rejected",), (Reason.VENDOR_FAILED,), "attempt")


@pytest.mark.parametrize("shape", [Shape.NO_URL, Shape.MUSIC, Shape.NO_TASK_ID, Shape.DATA_NULL])
def test_unrecognised_has_no_end_state(shape: Shape) -> None:
    """What no reader of the contract can take for a success or failure leads nowhere."""
    assert judged(shape=shape).outcome == "none"


def test_unusual_code_is_a_failure() -> None:
    """Any code but 200 is a failure, whatever the body holds."""
    assert judged(steps=(Step(code=599),)).reasons == (Reason.VENDOR_FAILED,)


@pytest.mark.parametrize(
    ("file", "reason", "settled_by"),
    [
        (FilePlan(flavour=Flavour.ALAW), Reason.WAV_UNSUPPORTED, "attempt"),
        (FilePlan(flavour=Flavour.TRUNCATED), Reason.WAV_TRUNCATED, "deadline"),
        (FilePlan(flavour=Flavour.HTML), Reason.NOT_WAV, "deadline"),
        (faulty(status=410), Reason.LINK_EXPIRED, "deadline"),
        (faulty(status=503), Reason.HTTP_FAILED, "deadline"),
        (faulty(redirect_to="loop"), Reason.TOO_MANY_REDIRECTS, "attempt"),
        (faulty(endless=True), Reason.TOO_LARGE, "attempt"),
        (faulty(black_hole=True), Reason.TIMED_OUT, "deadline"),
    ],
)
def test_bad_file_is_rejected(file: FilePlan, reason: Reason, settled_by: str) -> None:
    """A file that can never be stored is rejected, at once only where no repetition can help."""
    wanted = judged(file)
    assert wanted.allowed == ("rejected",)
    assert reason in wanted.reasons
    assert wanted.settled_by == settled_by


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after_bytes": 9}, {"black_hole": True}, {"gzip": True}])
def test_passing_fault_changes_nothing(fault: dict[str, object]) -> None:
    """A fault that ends is survived."""
    assert judged(faulty(times=2, **fault)).allowed == ("stored",)


def test_lasting_cut_may_be_resumed() -> None:
    """A line that is cut at every request may still give the whole file by ranges, but need not."""
    assert set(judged(faulty(cut_after_bytes=1_000)).allowed) == {"stored", "rejected"}


def test_streaming_header_needs_a_told_end() -> None:
    """A streaming header is stored only where the transport proves the body complete."""
    told = FilePlan(flavour=Flavour.STREAMING_HEADER)
    untold = FilePlan(flavour=Flavour.STREAMING_HEADER, misbehaviour=(Fault(framing=Framing.CLOSE),))
    assert judged(told).allowed == ("stored",)
    assert judged(untold).allowed == ("rejected",)


def test_plan_may_know_better() -> None:
    """What the plan expects holds once a callback is acknowledged, and not before."""
    plan = Plan(vendor=Vendor.KIE, expect=Expect(outcome="rejected", reasons=(Reason.ADDRESS_FORBIDDEN,)))
    assert expectation(plan, [Evidence(0, 200, None)]).reasons == (Reason.ADDRESS_FORBIDDEN,)
    assert expectation(plan, []).allowed == ("none",)
    assert expectation(plan, [Evidence(0, 503, None)]).allowed == ("none", "rejected")
