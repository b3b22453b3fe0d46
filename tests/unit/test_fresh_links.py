"""A link that has expired: the vendor is asked once, and what it answers is followed or not."""

import asyncio
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from downloader.fetch import Fetched, Head, Held, Sink
from downloader.links import Lead, Links
from downloader.metrics import DownloaderMetrics
from downloader.record import Answer, Outcome
from shared import events
from shared.errors import PermanentError, Reason, RetryableError
from shared.events import ConversionConflicting, ReportSucceeded
from shared.links import identity
from shared.vendors import Vendor
from tests.log_capture import captured_logs
from tests.unit.custody_fakes import LINK, NOW, OTHER_LINK, QUERY, FakeVendors, House, succeeded

EXPIRED = RetryableError(Reason.LINK_EXPIRED, "answered 403")
SIGNED_ANEW = LINK.replace("k3y", "n3w")
THIRD_LINK = "https://cdn.example.com/c.wav"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Custody among fakes, that asks for expired links alone."""
    with ThreadPoolExecutor(4) as executor:
        house = House(tmp_path / "staging", executor)
        house.confirm = "never"
        yield house


def ready(url: str) -> Answer:
    """Return an answer with a link."""
    return Answer(Outcome.READY, url=url)


@pytest.mark.parametrize("fresh", [OTHER_LINK, SIGNED_ANEW])
async def test_a_fresh_link_is_followed_in_the_same_attempt(house: House, fresh: str) -> None:
    """A file whose link expired is stored through the link the vendor gives, if only its signature is another."""
    house.source.errors, house.vendors.answer = [EXPIRED], ready(fresh)
    await house.custody().handle(succeeded())
    assert house.source.followed == [LINK, fresh]
    assert house.vendors.asked == [(Vendor.APIBOX, "task-1")]
    assert house.publisher.types == ["conversion.stored"]
    assert house.count("attempts_total", outcome="stored") == 1
    assert house.manifest is not None
    assert house.manifest.link == fresh.partition("?")[0]
    assert house.manifest.evidence.trust == ("token", "vendor_confirmed")


async def test_a_link_that_works_is_no_question(house: House) -> None:
    """The vendor is not bothered about a file that is there."""
    house.vendors.answer = ready(OTHER_LINK)
    await house.custody().handle(succeeded())
    assert house.vendors.asked == []
    assert house.manifest is not None
    assert house.manifest.fetched_identity is None


@pytest.mark.parametrize(
    "error", [RetryableError(Reason.BODY_CUT, "cut"), RetryableError(Reason.HTTP_FAILED, "503")], ids=str
)
async def test_other_failures_are_no_question(house: House, error: RetryableError) -> None:
    """Only an expired link can be mended by another one."""
    house.source.errors, house.vendors.answer = [error], ready(OTHER_LINK)
    with pytest.raises(RetryableError) as caught:
        await house.custody().handle(succeeded())
    assert caught.value is error
    assert house.vendors.asked == []


@pytest.mark.parametrize(
    "answer", [None, ready(LINK), *(Answer(one) for one in Outcome if one is not Outcome.READY)], ids=str
)
async def test_without_a_fresh_link_the_ladder_goes_on(house: House, answer: Answer | None) -> None:
    """Whatever else comes of the question, even the vendor's word that it failed, only the deadline ends the tries."""
    house.source.errors, house.vendors.answer = [EXPIRED], answer
    with pytest.raises(RetryableError) as caught:
        await house.custody().handle(succeeded())
    assert caught.value is EXPIRED
    assert house.source.followed == [LINK]
    assert house.publisher.types == []
    await house.custody().handle(succeeded())
    assert house.publisher.types == ["conversion.stored"]


@pytest.mark.parametrize(
    "error",
    [
        EXPIRED,
        RetryableError(Reason.BODY_CUT, "cut"),
        PermanentError(Reason.ADDRESS_FORBIDDEN, "10.0.0.1 is private"),
    ],
    ids=str,
)
async def test_a_fresh_link_fails_like_any_other(house: House, error: RetryableError | PermanentError) -> None:
    """A vendor's answer opens no gate and starts no second question: its failure is classified as ever."""
    house.source.errors, house.vendors.answer = [EXPIRED, error], ready(OTHER_LINK)
    with pytest.raises((RetryableError, PermanentError)) as caught:
        await house.custody().handle(succeeded())
    assert caught.value is error
    assert house.source.followed == [LINK, OTHER_LINK]
    assert len(house.vendors.asked) == 1


async def test_neither_link_is_a_conflict_afterwards(house: House) -> None:
    """The vendor may repeat its callback with the old link or the fresh one: both lead to what is kept."""
    house.source.errors, house.vendors.answer = [EXPIRED], ready(OTHER_LINK)
    custody = house.custody()
    for url in (LINK, LINK, SIGNED_ANEW, OTHER_LINK):
        await custody.handle(succeeded(url))
    assert house.publisher.types == ["conversion.stored"]
    assert house.manifest is not None
    assert house.manifest.link_identity == events.digest(identity(LINK))
    assert house.manifest.fetched_identity == house.manifest.kept_identity == events.digest(identity(OTHER_LINK))


async def test_a_conflict_names_the_link_that_is_kept(house: House) -> None:
    """A third link contradicts the one the file really came by; link and identity in the event belong together."""
    house.source.errors, house.vendors.answer = [EXPIRED], ready(OTHER_LINK)
    custody = house.custody()
    for url in (LINK, THIRD_LINK, THIRD_LINK):
        await custody.handle(succeeded(url))
    _, conflict = (event.data for event in house.publisher.told)
    assert isinstance(conflict, ConversionConflicting)
    assert conflict.kept_link == OTHER_LINK.partition("?")[0]
    assert conflict.kept_identity == events.digest(identity(OTHER_LINK))
    assert conflict.claimed_identity == events.digest(identity(THIRD_LINK))


async def test_no_record_event_or_log_opens_the_fresh_link(house: House) -> None:
    """The fresh link's query is a key to the file like the old one's."""
    house.source.errors, house.vendors.answer = [EXPIRED], ready(OTHER_LINK)
    with captured_logs() as lines:
        await house.custody().handle(succeeded())
    assert [line["event"] for line in lines] == ["link.refreshed", "file.stored", "event.announced"]
    for text in (house.shown, str(lines)):
        assert QUERY not in text
        assert "Expires" not in text


@dataclasses.dataclass
class SlowFiles:
    """Tells that the first link has expired, and never ends with the second."""

    cancelled: bool = False

    async def fetch(self, url: str, sink: Sink) -> Fetched:
        """Refuse, or wait to be cancelled."""
        if url == LINK:
            raise EXPIRED
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True
        raise AssertionError


async def test_two_links_take_no_longer_than_one() -> None:
    """The attempt's time holds for both links together: the broker's patience does not double."""
    files = SlowFiles()
    links = Links(
        files,
        FakeVendors(ready(OTHER_LINK)),
        confirm="never",
        metrics=DownloaderMetrics(CollectorRegistry()),
        attempt_timeout_s=0.05,
    )
    report = events.decode(succeeded().body).data
    assert isinstance(report, ReportSucceeded)
    lead = await links.find(report, now=NOW)
    assert isinstance(lead, Lead)
    with pytest.raises(RetryableError) as caught:
        await links.fetch(lead, Nowhere())
    assert caught.value.reason is Reason.TIMED_OUT
    assert QUERY not in caught.value.detail
    assert files.cancelled


class Nowhere:
    """Takes bytes and forgets them."""

    def held(self, _link: str) -> Held | None:
        """Hold nothing."""
        return None

    def begin(self, head: Head) -> None:
        """Forget."""

    def write(self, block: bytes) -> None:
        """Forget."""
