"""Turns of changes at EC2: never more than its buckets hold, in order, and slower where it says so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.aws.pacing import LIMITS, RECOVERY, Limit, Pace

BURST, RATE = 5.0, 2.0
FOREVER = 1e9


def pace():
    return Pace(Limit(BURST, RATE))


def waits(of, count, now=0.0):
    return [of.turn(now, patience=FOREVER) for _ in range(count)]


def test_the_figures_are_those_of_ec2():
    figures = {name: (limit.burst, limit.rate) for name, limit in LIMITS.items()}
    assert figures == {
        "run_instances": (5.0, 2.0),
        "start_instances": (5.0, 2.0),
        "stop_instances": (5.0, 2.0),
        "terminate_instances": (100.0, 5.0),
    }


def test_a_burst_goes_at_once_and_the_rest_at_the_rate_in_order():
    assert waits(pace(), 9) == [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_a_turn_that_is_too_far_off_is_not_taken():
    of = pace()
    waits(of, 7)
    assert of.turn(0.0, patience=1.4) is None
    assert of.turn(0.0, patience=1.5) == 1.5


def test_a_bucket_that_rests_holds_no_more_than_its_burst():
    of = pace()
    waits(of, 5)
    assert waits(of, 6, now=3600.0) == [0.0, 0.0, 0.0, 0.0, 0.0, 0.5]


def test_a_turn_that_is_given_back_is_the_next_ones():
    of = pace()
    waits(of, 6)
    of.give_back()
    assert of.turn(0.0, patience=FOREVER) == 0.5


def test_a_refusal_empties_the_bucket_and_halves_the_rate_until_it_has_recovered():
    of = pace()
    of.refused(0.0)
    assert waits(of, 2) == [1.0, 2.0]
    later = pace()
    later.refused(0.0)
    later.turn(RECOVERY, patience=FOREVER)
    waits(later, 5, now=10 * RECOVERY)
    assert later.turn(10 * RECOVERY, patience=FOREVER) == pytest.approx(0.5)


def test_refusals_of_one_moment_are_one():
    of = pace()
    for _ in range(8):
        of.refused(0.0)
    assert of.turn(0.0, patience=FOREVER) == 1.0


def test_refusals_that_go_on_slow_down_to_a_trickle_and_never_to_nothing():
    of = pace()
    for second in range(1000):
        of.refused(2.0 * second)
    assert of.turn(2000.0, patience=FOREVER) <= 16 / RATE


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.booleans()), max_size=80))
def test_in_no_span_are_there_more_turns_than_the_bucket_holds(steps):
    of, now, times = pace(), 0.0, []
    for passed, refused in steps:
        now += passed
        if refused:
            of.refused(now)
        wait = of.turn(now, patience=4.0)
        if wait is not None:
            times.append(now + wait)
    assert times == sorted(times)
    for first, begun in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= BURST + RATE * (times[last] - begun) + 1e-6
