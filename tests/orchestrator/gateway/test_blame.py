"""The circuit breaker, the retry budget and what a target's loss costs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.blame import Breaker, BreakerState, RetryBudget, Tab


def breaker(threshold=3, quiet=5.0, longest=60.0):
    return Breaker(threshold, quiet, longest)


def opened(one, now):
    """Let a probe fail; how long it is quiet after that."""
    one.begin(now)
    one.fail(now)
    quiet = 0.0
    while one.state(now + quiet) is BreakerState.OPEN:
        quiet += 0.5
    return quiet


def test_it_opens_after_failures_in_a_row_only():
    one = breaker()
    for _ in range(4):
        one.fail(1.0)
        one.fail(1.0)
        one.good()
    assert one.state(1.0) is BreakerState.CLOSED
    assert [one.fail(1.0) for _ in range(4)] == [False, False, True, False]
    assert not one.allows(5.9)


def test_one_probe_at_a_time_decides():
    one = breaker(threshold=1)
    one.fail(0.0)
    assert one.state(5.0) is BreakerState.HALF_OPEN
    assert one.allows(5.0)
    one.begin(5.0)
    assert not one.allows(5.0)
    one.fail(5.0)
    assert one.state(14.9) is BreakerState.OPEN
    assert one.allows(15.0)
    one.begin(15.0)
    one.abandon()
    assert one.allows(15.0)
    one.begin(15.0)
    assert not one.allows(19.9)
    assert one.allows(20.0)
    one.good()
    assert one.state(15.0) is BreakerState.CLOSED


def test_the_quiet_time_grows_up_to_a_limit_and_shrinks_with_good_answers():
    one = breaker(threshold=1, quiet=1.0, longest=10.0)
    assert [opened(one, 100.0 * n) for n in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    for _ in range(4):
        one.good()
    assert opened(one, 1000.0) == 4.0
    for _ in range(30):
        one.good()
    assert opened(one, 2000.0) == 1.0


def test_what_a_target_held_when_it_opened_does_not_make_it_quiet_for_longer():
    one = breaker(threshold=3, quiet=1.0)
    for _ in range(512):
        one.fail(0.0)
    assert one.allows(1.0)


def test_a_target_that_asks_to_be_left_alone_is_at_once():
    one = breaker(threshold=100)
    assert one.fail(0.0, retry_after=7.0)
    assert not one.allows(6.9)
    assert one.allows(7.0)
    one.good()
    one.fail(10.0, retry_after=86400.0)
    assert not one.allows(69.9)
    assert one.allows(70.0)


@given(st.lists(st.sampled_from(["good", "fail", "asks", "abandon", "wait"]), max_size=60))
def test_it_never_gets_stuck(steps):
    one, now = breaker(threshold=2), 0.0
    for step in steps:
        if step == "wait":
            now += 3.0
            continue
        if one.allows(now):
            one.begin(now)
            if step == "fail":
                one.fail(now)
            elif step == "asks":
                one.fail(now, retry_after=2.0)
            else:
                getattr(one, step)()
    assert one.allows(now + 60.0)


def pays(budget, tab=None, sent_at=1.0, now=1.0):
    return budget.withdraw(tab or Tab(), sent_at, now)


def test_retries_are_a_share_of_the_traffic_with_a_reserve():
    budget = RetryBudget(ratio=0.5, reserve=3)
    assert [pays(budget) for _ in range(4)] == [True, True, True, False]
    budget.deposit()
    assert not pays(budget)
    budget.deposit()
    assert pays(budget)
    for _ in range(100):
        budget.deposit()
    assert [pays(budget) for _ in range(4)] == [True, True, True, False]


def test_streams_that_are_finished_elsewhere_cost_nothing():
    budget = RetryBudget(ratio=0.0, reserve=2)
    for _ in range(100):
        assert pays(budget)
        budget.refund()
    budget.refund()
    assert [pays(budget) for _ in range(3)] == [True, True, False]


def test_half_of_the_reserve_is_kept_for_targets_that_are_lost():
    budget = RetryBudget(ratio=0.0, reserve=4)
    doubts = [budget.withdraw(Tab(), 1.0, 1.0, doubt=True) for _ in range(9)]
    assert doubts == [True, True, *[False] * 7]
    assert [pays(budget) for _ in range(3)] == [True, True, False]


def test_what_a_target_held_when_it_was_lost_is_paid_for_once():
    budget, tab = RetryBudget(ratio=0.0, reserve=1), Tab()
    assert all(pays(budget, tab, sent_at=float(n), now=512.0) for n in range(512))
    assert not pays(budget, tab, sent_at=513.0, now=513.0)
    assert not pays(budget, Tab(), sent_at=1.0, now=513.0)
