"""Custody with a vendor that is asked first: whose link is followed, what waits, and what the evidence says."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from downloader.record import Answer, Outcome
from shared import events
from shared.errors import Reason, RetryableError
from shared.events import ConversionAtRisk, ConversionRejected, ReportUnrecognised, Trust
from shared.links import identity
from shared.messaging.port import Message
from shared.vendors import Vendor
from tests.log_capture import captured_logs
from tests.unit.custody_fakes import (
    BODY,
    DEADLINE,
    LINK,
    NAMES,
    NOW,
    OTHER_LINK,
    QUERY,
    CrashError,
    House,
    failed,
    linkless,
    succeeded,
)

EXPIRED = RetryableError(Reason.LINK_EXPIRED, "answered 403")
FORGED = "https://evil.example.net/forged.wav?token=Signature"
SIGNED_ANEW = LINK.replace("k3y", "n3w")
NOT_READY = [outcome for outcome in Outcome if outcome is not Outcome.READY]
LEAVES_OPEN = [outcome for outcome in NOT_READY if outcome not in {Outcome.PENDING, Outcome.FAILED}]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Custody among fakes."""
    with ThreadPoolExecutor(4) as executor:
        yield House(tmp_path / "staging", executor)


def ready(url: str) -> Answer:
    """Return an answer with a link."""
    return Answer(Outcome.READY, url=url)


async def waits(house: House, message: Message, reason: Reason = Reason.NOT_CONFIRMED) -> None:
    """Handle a message that must be tried again, with nothing fetched and no end told."""
    error = await house.fails(message)
    assert isinstance(error, RetryableError)
    assert error.reason is reason
    assert house.source.followed == []
    assert house.manifest is None
    assert set(house.publisher.types) <= {"conversion.at_risk"}
    assert house.count("confirmations_total", outcome="waited") == 1


def trusted(house: House) -> tuple[str, ...]:
    """Return the evidence of the stored file, which manifest and event tell alike."""
    assert house.manifest is not None
    (stored,) = (event.data for event in house.publisher.told if event.data.TYPE == events.ConversionStored.TYPE)
    assert stored == house.manifest.announcement()
    return house.manifest.evidence.trust


@pytest.mark.parametrize("trust", [("token",), ("signature",), ("token", "signature"), ("none",), ("stale",)])
async def test_a_confirmed_link_is_evidence(house: House, trust: tuple[Trust, ...]) -> None:
    """What the vendor says too, if signed anew, is fetched by the vendor's own link and proven by its word."""
    house.vendors.answer = ready(SIGNED_ANEW)
    await house.custody().handle(succeeded(trust=trust))
    assert house.vendors.asked == [(Vendor.APIBOX, "task-1")]
    assert house.source.followed == [SIGNED_ANEW]
    assert trusted(house) == (*trust, "vendor_confirmed")
    assert house.count("confirmations_total", outcome="confirmed") == 1
    assert house.count("confirmations_total", outcome="differs") == 0


@pytest.mark.parametrize("trust", [("token",), ("signature",), ("none",), ("stale",)])
async def test_a_forged_link_is_never_fetched(house: House, trust: tuple[Trust, ...]) -> None:
    """Another URL under proofs that hold leads to one question and a warning; what is fetched is the vendor's."""
    house.vendors.answer = ready(OTHER_LINK)
    with captured_logs() as lines:
        for _ in range(2):
            await house.custody().handle(succeeded(FORGED, trust=trust))
    assert house.source.followed == [OTHER_LINK]
    assert len(house.vendors.asked) == 1
    assert house.publisher.types == ["conversion.stored"]
    assert trusted(house) == (*trust, "vendor_confirmed")
    (warning,) = (line for line in lines if line["event"] == "link.differs")
    assert warning["log_level"] == "warning"
    assert (warning["claimed"], warning["told"]) == (
        "https://evil.example.net/forged.wav",
        "https://cdn.example.com/b.wav",
    )
    manifest = house.manifest
    assert manifest is not None
    assert manifest.link == "https://cdn.example.com/b.wav"
    assert manifest.link_identity == events.digest(identity(FORGED))
    assert manifest.fetched_identity == manifest.kept_identity == events.digest(identity(OTHER_LINK))
    for text in (house.shown, str(lines)):
        assert "Signature" not in text


async def test_a_difference_is_counted(house: House) -> None:
    """Forged links show in a graph."""
    house.vendors.answer = ready(OTHER_LINK)
    await house.custody().handle(succeeded(FORGED))
    assert house.count("confirmations_total", outcome="differs") == 1
    assert house.count("confirmations_total", outcome="confirmed") == 0


@pytest.mark.parametrize("outcome", LEAVES_OPEN)
async def test_a_token_needs_no_answer(house: House, outcome: Outcome) -> None:
    """A spent budget, or a vendor that is down or odd, never blocks what a token vouches for; the evidence says so."""
    house.vendors.answer = Answer(outcome)
    await house.custody().handle(succeeded())
    assert house.source.followed == [LINK]
    assert trusted(house) == ("token",)
    assert house.count("confirmations_total", outcome="unconfirmed_fetched") == 1


@pytest.mark.parametrize("outcome", [Outcome.PENDING, Outcome.FAILED])
async def test_a_contradicted_token_waits(house: House, outcome: Outcome) -> None:
    """While the vendor says that there is no file, its callback's link is not fetched before half of the time."""
    house.vendors.answer = Answer(outcome)
    await waits(house, succeeded())
    house.now = NOW + (DEADLINE - NOW) / 2
    await house.custody().handle(succeeded())
    assert house.source.followed == [LINK]
    assert trusted(house) == ("token",)


@pytest.mark.parametrize("outcome", NOT_READY)
@pytest.mark.parametrize("trust", [("signature",), ("none",)])
async def test_a_link_that_nothing_covers_waits(house: House, trust: tuple[Trust, ...], outcome: Outcome) -> None:
    """No signature covers a link: it waits for the vendor's word, and is fetched without it rather than lost."""
    house.vendors.answer = Answer(outcome)
    await waits(house, succeeded(trust=trust))
    house.now = NOW + (DEADLINE - NOW) / 2
    await house.custody().handle(succeeded(trust=trust))
    assert trusted(house) == trust


@pytest.mark.parametrize("outcome", [*NOT_READY, None])
async def test_a_stale_success_is_never_fetched_unconfirmed(house: House, outcome: Outcome | None) -> None:
    """Neither time nor a missing key opens a link under an old signature; at the deadline it is given up and told."""
    house.vendors.answer = None if outcome is None else Answer(outcome)
    message = succeeded(FORGED, trust=("stale",))
    await waits(house, message)
    house.now = NOW + (DEADLINE - NOW) * 0.99
    await waits(house, message)
    house.now = DEADLINE
    custody = house.custody()
    assert custody.next_step(message, Reason.NOT_CONFIRMED) is None
    await custody.give_up(message, Reason.NOT_CONFIRMED, "not confirmed")
    told = house.publisher.told[-1].data
    assert isinstance(told, ConversionRejected)
    assert told.reason is Reason.NOT_CONFIRMED


async def test_always_fetches_nothing_unconfirmed(house: House) -> None:
    """With `always` even a token waits past half of the time, until the vendor has told."""
    house.confirm, house.vendors.answer = "always", Answer(Outcome.UNAVAILABLE)
    house.now = NOW + (DEADLINE - NOW) * 0.9
    await waits(house, succeeded())
    house.vendors.answer = ready(LINK)
    await house.custody().handle(succeeded())
    assert trusted(house) == ("token", "vendor_confirmed")


@pytest.mark.parametrize("trust", [("token",), ("signature",), ("none",)])
async def test_never_asks_about_no_link(house: House, trust: tuple[Trust, ...]) -> None:
    """With `never` the callback's own link is followed, and no question is put."""
    house.confirm, house.vendors.answer = "never", ready(OTHER_LINK)
    await house.custody().handle(succeeded(trust=trust))
    assert (house.vendors.asked, house.source.followed) == ([], [LINK])
    assert trusted(house) == trust
    assert house.count("confirmations_total", outcome="confirmed") == 0


async def test_an_expired_confirmed_link_is_asked_for_again(house: House) -> None:
    """The vendor's own link may expire too: another answer is followed, the same one waits for the ladder."""
    house.vendors.answer = ready(OTHER_LINK)
    house.source.errors = [EXPIRED]
    with pytest.raises(RetryableError) as caught:
        await house.custody().handle(succeeded())
    assert caught.value is EXPIRED
    assert house.source.followed == [OTHER_LINK]
    assert len(house.vendors.asked) == 2
    house.vendors.answer = ready(LINK)
    await house.custody().handle(succeeded())
    assert trusted(house) == ("token", "vendor_confirmed")


async def test_a_callbacks_link_that_expired_is_confirmed_by_the_fresh_one(house: House) -> None:
    """A link that came from the vendor after all is evidence, though the first question had no answer."""
    house.vendors.answer = Answer(Outcome.HELD_BACK)
    house.source.errors = [EXPIRED]

    async def ask(vendor: Vendor, task_id: str) -> Answer | None:
        answer, house.vendors.answer = house.vendors.answer, ready(OTHER_LINK)
        return answer

    house.vendors.ask = ask  # type: ignore[method-assign]  # the second answer is another one
    await house.custody().handle(succeeded())
    assert house.source.followed == [LINK, OTHER_LINK]
    assert trusted(house) == ("token", "vendor_confirmed")


async def test_nothing_is_asked_about_what_is_stored(house: House) -> None:
    """A repetition costs no question, and a stale report beside a stored file alarms nobody, whatever it claims."""
    await house.custody().handle(succeeded())
    house.vendors.answer, house.vendors.asked = ready(OTHER_LINK), []
    for message in (
        succeeded(),
        linkless(),
        linkless(trust=("stale",)),
        succeeded(FORGED, trust=("stale",)),
        failed(trust=("stale",)),
    ):
        await house.custody().handle(message)
    assert house.vendors.asked == []
    assert house.publisher.types == ["conversion.stored"]
    assert house.source.followed == [LINK]


@pytest.mark.parametrize("confirm", ["always", "when_possible", "never"])
async def test_a_stale_failure_the_vendor_confirms_is_rejected(house: House, confirm: str) -> None:
    """The rejection tells the vendor's own code and no word of an unconfirmed body."""
    house.confirm, house.vendors.answer = confirm, Answer(Outcome.FAILED, code=531)  # type: ignore[assignment]  # one of them
    for _ in range(2):
        await house.custody().handle(failed(trust=("stale",)))
    (event,) = house.publisher.told
    assert isinstance(event.data, ConversionRejected)
    assert (event.data.reason, event.data.code) == (Reason.VENDOR_FAILED, 531)
    assert "no luck" not in event.data.detail


async def test_a_stale_failure_the_vendor_denies_is_fetched(house: House) -> None:
    """A replayed failure costs nothing: the vendor has a file, and that is stored by its word."""
    house.vendors.answer = ready(OTHER_LINK)
    custody = house.custody()
    for _ in range(2):
        await custody.handle(failed(trust=("stale",)))
    assert house.publisher.types == ["conversion.stored"]
    assert trusted(house) == ("stale", "vendor_confirmed")
    assert house.manifest is not None
    assert house.manifest.kept_identity == house.manifest.link_identity == events.digest(identity(OTHER_LINK))
    assert house.count("confirmations_total", outcome="differs") == 1


@pytest.mark.parametrize("outcome", [*(one for one in NOT_READY if one is not Outcome.FAILED), None])
async def test_a_stale_failure_waits_for_the_vendor(house: House, outcome: Outcome | None) -> None:
    """Nobody's old signature rejects a conversion; given up, it tells our reason and not the claimed code."""
    house.vendors.answer = None if outcome is None else Answer(outcome)
    message = failed(trust=("stale",))
    await waits(house, message)
    await house.custody().give_up(message, Reason.NOT_CONFIRMED, "not confirmed")
    (event,) = house.publisher.told
    assert isinstance(event.data, ConversionRejected)
    assert (event.data.reason, event.data.code) == (Reason.NOT_CONFIRMED, None)


async def test_a_forged_failure_is_no_failure(house: House) -> None:
    """A replayed body that tells a failure rejects nothing: the vendor's own link is followed."""
    house.vendors.answer = ready(OTHER_LINK)
    await house.custody().handle(failed(451, trust=("signature",)))
    assert house.source.followed == [OTHER_LINK]
    assert house.publisher.types == ["conversion.stored"]


async def test_a_failure_waits_for_the_vendor_s_word_unless_a_token_vouches(house: House) -> None:
    """While nobody can be asked, one that only a signature covers waits; one with a token is told in its own words."""
    house.vendors.answer = Answer(Outcome.UNAVAILABLE)
    await waits(house, failed(451, trust=("signature",)), Reason.NOT_CONFIRMED)
    assert house.publisher.types == []
    await house.custody().handle(failed(451, trust=("token",)))
    (event,) = house.publisher.told
    assert isinstance(event.data, ConversionRejected)
    assert event.data.code == 451


@pytest.mark.parametrize("trust", [("token",), ("signature",)])
async def test_nobody_rings_the_bell_of_conflicts_while_the_vendor_can_be_asked(
    house: House, trust: tuple[Trust, ...]
) -> None:
    """Forged links and failures of a stored task alarm nobody where the vendor says that what is kept is right."""
    await house.custody().handle(succeeded(LINK))
    house.vendors.answer = ready(LINK)
    for number in range(5):
        await house.custody().handle(succeeded(f"https://evil.example.com/{number}.wav", trust=trust))
        await house.custody().handle(failed(400 + number, trust=trust))
    assert house.publisher.types == ["conversion.stored"]
    house.vendors.answer = ready(OTHER_LINK)
    await house.custody().handle(succeeded(OTHER_LINK, trust=trust))
    assert house.publisher.types == ["conversion.stored", "conversion.conflicting"]


async def test_a_conflict_that_nobody_can_be_asked_about_is_told_where_a_token_vouches(house: House) -> None:
    """As ever; one that only a replayable signature covers is not."""
    await house.custody().handle(succeeded(LINK))
    house.vendors.answer = Answer(Outcome.UNAVAILABLE)
    await house.custody().handle(succeeded(OTHER_LINK, trust=("signature",)))
    assert house.publisher.types == ["conversion.stored"]
    await house.custody().handle(succeeded(OTHER_LINK, trust=("token",)))
    assert house.publisher.types == ["conversion.stored", "conversion.conflicting"]


@pytest.mark.parametrize("trust", [("token",), ("stale",), ("none",)])
async def test_a_success_without_a_link_is_stored_once_the_vendor_tells(house: House, trust: tuple[Trust, ...]) -> None:
    """The vendor is asked until it has told where the file is; later reports of that link contradict nothing."""
    house.vendors.answer = Answer(Outcome.PENDING)
    message = linkless(trust=trust)
    await waits(house, message, Reason.LINK_MISSING)
    step = house.custody().next_step(message, Reason.LINK_MISSING)
    assert step is not None
    assert step.seconds == 30
    house.vendors.answer = ready(OTHER_LINK)
    custody = house.custody()
    for repeated in (message, message, succeeded(OTHER_LINK)):
        await custody.handle(repeated)
    assert house.source.followed == [OTHER_LINK]
    assert house.publisher.types == ["conversion.stored"]
    assert trusted(house) == (*trust, "vendor_confirmed")
    assert house.count("confirmations_total", outcome="confirmed") == 1


async def test_a_success_without_a_link_may_have_failed(house: House) -> None:
    """The vendor's own word ends it, with its code."""
    house.vendors.answer = Answer(Outcome.FAILED, code=501)
    await house.custody().handle(linkless())
    (event,) = house.publisher.told
    assert isinstance(event.data, ConversionRejected)
    assert (event.data.reason, event.data.code) == (Reason.VENDOR_FAILED, 501)
    assert house.count("confirmations_total", outcome="differs") == 1


async def test_a_success_without_a_link_is_told_at_risk_and_given_up(house: House) -> None:
    """What the vendor never tells is told at each mark, and rejected at the deadline."""
    house.vendors.answer = Answer(Outcome.NO_LINK)
    house.now = NOW + (DEADLINE - NOW) * 0.81
    message = dataclasses.replace(linkless(), attempts=3)
    await waits(house, message, Reason.LINK_MISSING)
    risks = [event.data for event in house.publisher.told if isinstance(event.data, ConversionAtRisk)]
    assert [(risk.threshold_percent, risk.last_reason, risk.attempts) for risk in risks] == [
        (50, Reason.LINK_MISSING, 4),
        (80, Reason.LINK_MISSING, 4),
    ]
    house.now = DEADLINE
    custody = house.custody()
    assert custody.next_step(message, Reason.LINK_MISSING) is None
    await custody.give_up(message, Reason.LINK_MISSING, "no link")
    told = house.publisher.told[-1].data
    assert isinstance(told, ConversionRejected)
    assert told.reason is Reason.LINK_MISSING


async def test_without_a_key_a_success_without_a_link_is_unrecognised(house: House) -> None:
    """Nobody can be asked, so a person must: the body is kept, under one id however often it is told."""
    cause = events.decode(linkless().body)
    for _ in range(2):
        await house.custody().handle(linkless(trust=("signature",)))
    assert house.publisher.exchanges == {"wavekeep.intake"}
    assert house.publisher.types == ["report.unrecognised"] * 2
    first, second = house.publisher.told
    digest = sha256(BODY.encode()).hexdigest()
    assert first.id == second.id == events.event_id("apibox", "task-1", ReportUnrecognised.TYPE, digest)
    assert first.subject == cause.subject
    assert first.data == ReportUnrecognised(
        vendor=Vendor.APIBOX,
        task_id="task-1",
        explanation="it tells success without a link to a WAV",
        body=BODY,
        body_sha256=digest,
        received_at=NOW,
        trust=("signature",),
    )
    assert house.storage.objects == {}


async def test_what_cannot_be_handed_on_goes_round_again(house: House) -> None:
    """The report ends only once the broker has confirmed the unrecognised one."""
    house.publisher.refuses = {1}
    with pytest.raises(RetryableError) as caught:
        await house.custody().handle(linkless())
    assert caught.value.reason is Reason.PUBLISH_TIMED_OUT
    await house.custody().handle(linkless())
    assert house.publisher.types == ["report.unrecognised"]


async def test_a_repetition_without_a_link_finishes_the_telling(house: House) -> None:
    """Where a crash came between storing and announcing, also a report without a link has it told."""
    await house.custody().handle(succeeded())
    del house.storage.objects[NAMES.announced]
    await house.custody().handle(linkless())
    assert house.publisher.types == ["conversion.stored"] * 2
    assert len({event.id for event in house.publisher.told}) == 1


@pytest.mark.parametrize(
    "message", [succeeded(FORGED), failed(trust=("stale",)), linkless()], ids=["forged", "stale failure", "linkless"]
)
async def test_a_crash_at_any_step_changes_nothing_in_the_end(house: House, message: Message) -> None:
    """Whichever effect is the last before the process dies, redelivery ends in one file, one event and one id."""
    house.vendors.answer = ready(OTHER_LINK)
    await house.custody().handle(message)
    steps = len(house.steps.done)
    assert steps >= 5
    for crash_after in range(steps):
        house.storage.objects.clear()
        house.publisher.told.clear()
        house.steps.done.clear()
        house.steps.crash_after = crash_after
        with pytest.raises(CrashError):
            await house.custody().handle(message)
        await house.custody().handle(message)
        assert set(house.publisher.types) == {"conversion.stored"}
        assert len({event.id for event in house.publisher.told}) == 1
        assert len([key for key in house.storage.objects if key.endswith(".wav")]) == 1
        assert "fetch" not in house.steps.done[house.steps.done.index("create .json") :]
    assert set(house.source.followed) == {OTHER_LINK}


@pytest.mark.parametrize("message", [succeeded(trust=("signature",)), failed(trust=("stale",)), linkless()])
async def test_a_replay_past_the_deadline_asks_once_more(house: House, message: Message) -> None:
    """What a person sends back from the parked gets one attempt, and heals its rejection."""
    house.now = DEADLINE
    house.vendors.answer = Answer(Outcome.UNAVAILABLE)
    await house.custody().give_up(message, Reason.NOT_CONFIRMED, "not confirmed")
    house.vendors.answer = ready(OTHER_LINK)
    await house.custody().handle(message)
    assert house.publisher.types == ["conversion.rejected", "conversion.stored"]


async def test_no_record_event_or_log_opens_a_file(house: House) -> None:
    """Neither the callback's query nor that of the vendor's link is told."""
    with captured_logs() as lines:
        house.vendors.answer = Answer(Outcome.PENDING)
        house.now = NOW + (DEADLINE - NOW) * 0.4
        for message in (succeeded(), failed(trust=("stale",)), linkless()):
            with pytest.raises(RetryableError) as caught:
                await house.custody().handle(message)
            assert QUERY not in str(caught.value)
        house.vendors.answer = ready(OTHER_LINK)
        await house.custody().handle(failed(trust=("stale",)))
    assert {"link.differs", "file.stored", "event.announced"} == {line["event"] for line in lines}
    for text in (house.shown, str(lines)):
        assert QUERY not in text
        assert "Expires" not in text
