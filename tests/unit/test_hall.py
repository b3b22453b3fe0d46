"""Who gives way when there is one too many, of connections and of callbacks in hand."""

import asyncio

import pytest

from ingress import hall
from ingress.hall import CutShortError, Desk, Hall, NoPlaceError


def filled(*names: str, most: int = 3) -> Hall[str]:
    """Return a hall these came into, in order."""
    made: Hall[str] = Hall(most)
    assert [made.enter(name) for name in names] == [None] * len(names)
    return made


def test_nobody_leaves_while_there_is_room() -> None:
    """The bound is how many may stay, not one less."""
    assert len(filled("a", "b", "c")) == 3


def test_the_oldest_stranger_gives_way() -> None:
    """Whoever has said nothing for longest makes room, one for each that comes."""
    made = filled("a", "b", "c")
    assert [made.enter(name) for name in "def"] == ["a", "b", "c"]
    assert len(made) == 3


def test_whoever_is_in_the_middle_of_a_request_stays() -> None:
    """No request that has come is lost for a connection that says nothing yet."""
    made = filled("a", "b", "c")
    made.busy("a")
    assert [made.enter(name) for name in "def"] == ["b", "c", "d"]


def test_whoever_brought_a_callback_outlasts_strangers() -> None:
    """However many strangers come, a known connection waits for its next callback undisturbed."""
    made = filled("a", "b", "c")
    made.busy("a")
    made.idle("a", known=True)
    assert [made.enter(name) for name in "defg"] == ["b", "c", "d", "e"]


def test_a_refused_request_makes_nobody_known() -> None:
    """A stranger stays one, but has been idle only since it was answered."""
    made = filled("a", "b", "c")
    made.busy("a")
    made.idle("a", known=False)
    assert [made.enter(name) for name in "def"] == ["b", "c", "a"]


def test_known_ones_give_way_where_there_are_no_others() -> None:
    """Known connections that fill everything leave nobody outside: the one idle for longest goes."""
    made = filled("a", "b", "c")
    for name in "bac":
        made.busy(name)
        made.idle(name, known=True)
    assert [made.enter(name) for name in "de"] == ["b", "d"]


def test_the_newcomer_leaves_where_all_others_are_at_work() -> None:
    """Nobody at work is disturbed, and the bound is kept."""
    made = filled("a", "b", "c")
    for name in "abc":
        made.busy(name)
    assert made.enter("d") == "d"
    assert len(made) == 3


def test_whoever_left_does_not_come_back_by_a_late_word() -> None:
    """What is told of a connection after it was closed takes no room."""
    made = filled("a")
    for _ in range(2):
        made.leave("a")
    made.busy("a")
    made.idle("a", known=True)
    assert len(made) == 0


async def test_places_are_bounded_and_given_back() -> None:
    """One too many is turned away at once, also after places were given back by success and by failure."""
    desk = Desk(2)

    def fill() -> None:
        with desk.place(), desk.place():
            assert desk.in_hand == 2
            with pytest.raises(NoPlaceError), desk.place():
                pass
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            fill()
        assert desk.in_hand == 0


async def test_a_slow_reading_gives_up_its_place_to_whoever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads for too long is cut short, the first of them first; who waits for a confirmation never is."""
    monkeypatch.setattr(hall, "PATIENCE_S", 0.0)
    desk = Desk(3)
    cut: list[str] = []

    async def read(name: str) -> None:
        with desk.place() as place:
            try:
                async with desk.reading(place, 30):
                    await asyncio.Event().wait()
            except CutShortError:
                cut.append(name)

    with desk.place():  # waits for its confirmation
        readings = [asyncio.create_task(read(name)) for name in "ab"]
        await asyncio.sleep(0)
        with desk.place() as place:
            assert not place.given_away
            await asyncio.wait((readings[0],), timeout=5)
            assert cut == ["a"]
            assert desk.in_hand == 3
            with desk.place(), pytest.raises(NoPlaceError), desk.place():
                pass
            await asyncio.wait((readings[1],), timeout=5)
    assert cut == ["a", "b"]
    assert desk.in_hand == 0


async def test_a_reading_that_just_began_is_not_cut_short() -> None:
    """A callback is one packet: whoever sends it at once is never in danger."""
    desk = Desk(1)
    with desk.place() as place:
        async with desk.reading(place, 30):
            with pytest.raises(NoPlaceError), desk.place():
                pass
            await asyncio.sleep(0)
    assert not place.given_away


async def test_the_whole_time_ends_a_reading_as_a_time_out() -> None:
    """A reading that nobody waits behind has its whole time, and is told apart."""
    desk = Desk(1)
    with desk.place() as place, pytest.raises(TimeoutError):
        async with desk.reading(place, 0.01):
            await asyncio.Event().wait()
    assert desk.in_hand == 0
