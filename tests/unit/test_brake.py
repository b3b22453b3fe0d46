"""The brake stops a consumer for causes of ours alone, and lets go after one success."""

import pytest

from shared.errors import Reason
from shared.messaging.brake import OURS, THEIRS, Brake, GroupBrakes


@pytest.mark.parametrize("reason", sorted(OURS))
def test_too_many_of_ours_within_a_minute_engage_it(reason: Reason) -> None:
    """The first message over the number stops consuming, and says so once."""
    brake = Brake(3)
    assert [brake.parked(reason, second) for second in (0.0, 1.0, 2.0, 3.0, 4.0)] == [False, False, False, True, False]
    assert brake.engaged


def test_the_same_number_over_a_longer_time_does_not() -> None:
    """A trickle is no fault of the whole."""
    brake = Brake(3)
    assert not any(brake.parked(Reason.STORAGE_FULL, second * 21.0) for second in range(50))


@pytest.mark.parametrize("reason", sorted(set(Reason) - OURS))
def test_what_others_do_wrong_never_engages_it(reason: Reason) -> None:
    """A vendor that sends nothing but rubbish stops nobody."""
    brake = Brake(0)
    assert not any(brake.parked(reason, 0.0) for _ in range(100))


def test_one_message_is_tried_a_minute_until_one_succeeds() -> None:
    """While it is engaged one message goes through at a time; a success lets all go on."""
    brake = Brake(0, try_every_s=60.0)
    assert brake.wait_s(0.0) == 0.0
    brake.parked(Reason.UNEXPECTED, 0.0)
    assert brake.wait_s(10.0) == pytest.approx(50.0)
    assert brake.wait_s(60.0) == 0.0
    brake.trying(60.0)
    assert brake.wait_s(61.0) == pytest.approx(59.0)
    assert brake.succeeded()
    assert not brake.engaged
    assert brake.wait_s(61.0) == 0.0
    assert not brake.succeeded()


@pytest.mark.parametrize("reason", sorted(THEIRS))
def test_one_host_is_put_off_and_no_other(reason: Reason) -> None:
    """Beyond the number one host's messages wait, but for one a minute; those of another are parked as ever."""
    brakes = GroupBrakes(2)
    assert [brakes.puts_off("bad.example", reason, second) for second in (0.0, 1.0, 2.0, 3.0)] == [
        False,
        False,
        True,
        True,
    ]
    assert not brakes.puts_off("other.example", reason, 3.0)
    assert brakes.engaged() == 1
    assert [brakes.puts_off("bad.example", reason, second) for second in (62.0, 63.0)] == [False, True]


def test_a_host_that_is_mended_is_let_go() -> None:
    """One success of its own releases it; one of another host does not."""
    brakes = GroupBrakes(1)
    for second in range(3):
        brakes.puts_off("bad.example", Reason.TOO_LARGE, float(second))
    assert not brakes.succeeded("other.example")
    assert brakes.engaged() == 1
    assert brakes.succeeded("bad.example")
    assert brakes.engaged() == 0
    assert not brakes.puts_off("bad.example", Reason.TOO_LARGE, 4.0)


@pytest.mark.parametrize("reason", sorted(set(Reason) - THEIRS))
def test_what_is_not_a_host_s_is_never_put_off(reason: Reason) -> None:
    """Causes of ours stop the whole consumer instead, and what has no more time is parked."""
    brakes = GroupBrakes(0)
    assert not any(brakes.puts_off("any.example", reason, 0.0) for _ in range(100))


def test_no_cause_is_both_ours_and_theirs() -> None:
    """One brake answers for each cause."""
    assert not OURS & THEIRS


def test_hosts_are_forgotten_before_they_fill_the_memory() -> None:
    """Whoever sends a new host name each time takes no more than the bound."""
    brakes = GroupBrakes(0, most_groups=3)
    for number in range(100):
        brakes.puts_off(f"{number}.example", Reason.ADDRESS_FORBIDDEN, 0.0)
    assert brakes.engaged() == 3
