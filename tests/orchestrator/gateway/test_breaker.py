"""The circuit breaker and the retry budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.breaker import Breaker, BreakerState, RetryBudget


def test_it_opens_after_failures_in_a_row_only():
    breaker = Breaker(threshold=3, open_for=5.0)
    for _ in range(4):
        breaker.fail(1.0)
        breaker.fail(1.0)
        breaker.succeed()
    assert breaker.state(1.0) is BreakerState.CLOSED
    assert [breaker.fail(1.0) for _ in range(4)] == [False, False, True, False]
    assert not breaker.allows(5.9)


def test_one_probe_at_a_time_decides():
    breaker = Breaker(threshold=1, open_for=5.0)
    breaker.fail(0.0)
    assert breaker.state(5.0) is BreakerState.HALF_OPEN
    assert breaker.allows(5.0)
    breaker.begin()
    assert not breaker.allows(5.0)
    breaker.fail(5.0)
    assert breaker.state(9.9) is BreakerState.OPEN
    assert breaker.allows(10.0)
    breaker.begin()
    breaker.abandon()
    assert breaker.allows(10.0)
    breaker.begin()
    breaker.succeed()
    assert breaker.state(10.0) is BreakerState.CLOSED


@given(st.lists(st.sampled_from(["succeed", "fail", "abandon", "wait"]), max_size=60))
def test_it_never_gets_stuck(steps):
    breaker, now = Breaker(threshold=2, open_for=5.0), 0.0
    for step in steps:
        if step == "wait":
            now += 3.0
            continue
        if breaker.allows(now):
            breaker.begin()
            if step == "fail":
                breaker.fail(now)
            else:
                getattr(breaker, step)()
    assert breaker.allows(now + 5.0)


def test_retries_are_a_share_of_the_traffic_with_a_reserve():
    budget = RetryBudget(ratio=0.5, reserve=3)
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False]
    budget.deposit()
    assert not budget.withdraw()
    budget.deposit()
    assert budget.withdraw()
    for _ in range(100):
        budget.deposit()
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False]
