"""The brake stops a consumer for causes of ours alone, and lets go after one success."""

import pytest

from shared.errors import Reason
from shared.messaging.brake import OURS, Brake


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
