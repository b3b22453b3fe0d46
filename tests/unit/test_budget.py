"""How often a vendor is asked, by a clock of the test's own."""

import pytest

from downloader.budget import HALVED_FOR_S, WINDOW_S, Budget


class Watch:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Return the seconds it shows."""
        return self.now_s


@pytest.fixture
def watch() -> Watch:
    """A clock that stands still."""
    return Watch()


def taken(budget: Budget) -> int:
    """Take all there is at this moment; return how many that was."""
    return next(count for count in range(1_000) if not budget.take())


def test_a_window_holds_so_many(watch: Watch) -> None:
    """Within any ten seconds there are no more requests than the setting says."""
    budget = Budget(5, monotonic=watch)
    assert taken(budget) == 5
    watch.now_s += WINDOW_S - 0.001
    assert taken(budget) == 0
    watch.now_s += 0.001
    assert taken(budget) == 5


def test_the_window_slides(watch: Watch) -> None:
    """Spending late in one window leaves less for the beginning of the next."""
    budget = Budget(3, monotonic=watch)
    budget.take()
    watch.now_s += WINDOW_S / 2
    assert taken(budget) == 2
    watch.now_s += WINDOW_S / 2
    assert taken(budget) == 1


@pytest.mark.parametrize(("per_10_s", "halved"), [(20, 10), (5, 2), (2, 1), (1, 1)])
def test_too_fast_halves_it_for_a_minute(watch: Watch, per_10_s: int, halved: int) -> None:
    """A vendor that says it is too much is asked half as often for a minute, but never not at all."""
    budget = Budget(per_10_s, monotonic=watch)
    budget.halve()
    for _ in range(int(HALVED_FOR_S / WINDOW_S)):
        assert taken(budget) == halved
        watch.now_s += WINDOW_S
    assert taken(budget) == per_10_s


def test_the_minute_begins_anew(watch: Watch) -> None:
    """A vendor that says so again is given another minute, and no less than half."""
    budget = Budget(8, monotonic=watch)
    budget.halve()
    watch.now_s += HALVED_FOR_S - 1
    budget.halve()
    watch.now_s += HALVED_FOR_S - 1
    assert taken(budget) == 4
    watch.now_s += WINDOW_S
    assert taken(budget) == 8
