"""Which changes of a pool's size have to be confirmed, and that taking one back is never harder."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policies.bill import Prices
from policies.events import PoolConfigured, PoolWhole
from policies.memory import Memory, replay
from policies.model import (
    AdaptiveRules,
    Instance,
    InstanceState,
    Limits,
    Market,
    Placement,
    Pool,
    StandbyRules,
)
from policies.resize import Has, in_force, sizes, unconfirmed, unconfirmed_at_start

PRICES = Prices(on_demand=4.0, spot=1.0, dearest=4.0)


def pool(replicas: int, *, hot: int = 0, stopped: int = 0, **more: Any) -> Pool:
    return Pool(name="p", replicas=replicas, standby=StandbyRules(hot=hot, stopped=stopped), **more)


def whole(before: Pool) -> Has:
    return Has(whole_with=before.replicas, ready=before.replicas)


def capped(cap: float | None, replicas: int = 10) -> Pool:
    return pool(replicas, limits=Limits(spend_per_hour=cap))


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (pool(4), pool(4000), "would grow"),
        (pool(4), pool(9), "would grow"),
        (pool(4), pool(8), ""),
        (pool(1), pool(3), ""),
        (pool(1), pool(4), "would grow"),
        (pool(4), pool(4, hot=40), "would grow"),
        (pool(4), pool(4, stopped=40), "would grow"),
        (pool(10, spot_share=0.9), pool(10, spot_share=0.0), "would cost"),
        (pool(10, spot_share=0.7), pool(10, spot_share=0.5), ""),
        (pool(10), pool(10, limits=Limits(surge=100)), "may cost"),
        (pool(10), pool(10, adaptive=AdaptiveRules(), limits=Limits(surge=10)), ""),
        (capped(12.5), capped(None), "may cost"),
        (capped(12.5), capped(60.0), "may cost"),
        (capped(40.0), capped(None), ""),
        (capped(None), capped(1.0), ""),
        (pool(4), pool(1), "less than half of that would be left"),
        (pool(4), pool(2), ""),
        (pool(3), pool(1), ""),
        (pool(4, hot=40), pool(4), ""),
    ],
)
def test_a_change_of_a_whole_pool(before: Pool, after: Pool, why: str) -> None:
    found = unconfirmed(before, after, whole(before), PRICES)
    assert why in found
    assert bool(found) == bool(why)


@pytest.mark.parametrize(
    ("before", "after", "has", "confirm"),
    [
        # what was never there is taken back by a word
        (4000, 4, Has(whole_with=4, ready=4), False),
        (4000, 4, Has(whole_with=4, ready=100), False),
        (4000, 40, Has(whole_with=4, ready=100), False),
        (4000, 3, Has(whole_with=4, ready=100), True),
        (4000, 4, Has(whole_with=0, ready=6), False),
        # what serves is not
        (4000, 4, Has(whole_with=0, ready=100), True),
        (4000, 4, Has(whole_with=4000, ready=4000), True),
        (10, 1, Has(whole_with=10, ready=2), True),
        (10, 5, Has(whole_with=6, ready=9), False),
        (10, 1, Has(whole_with=0, ready=0), False),
        # half of what was left is taken up once the pool has no more than that
        (16, 8, Has(whole_with=16, ready=32), True),
        (16, 8, Has(whole_with=16, ready=18), False),
    ],
)
def test_a_smaller_number_is_judged_by_what_the_pool_has(
    before: int, after: int, has: Has, confirm: bool
) -> None:
    assert bool(unconfirmed(pool(before), pool(after), has, PRICES)) is confirm


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 3), st.integers(0, 2), st.booleans())
@example(1, 4, 2, 0, True)  # the standby makes the whole less than twice as large
def test_what_was_taken_up_unasked_can_be_taken_back_unasked(
    before: int, after: int, hot: int, surged: int, arrived: bool
) -> None:
    one, two = pool(before, hot=hot), pool(after, hot=hot)
    if unconfirmed(one, two, whole(one), PRICES):
        return
    beside = hot + surged
    has = Has(whole_with=after, ready=after + beside, grows_from=after)
    if not arrived:
        has = Has(whole_with=before, ready=min(before, after) + beside, grows_from=before)
    assert unconfirmed(two, one, has, PRICES) == ""


@pytest.mark.parametrize(
    ("before", "after", "from_", "why"),
    [
        (8, 16, 4, "more than twice the 4 replicas it was last whole with"),
        (8, 9, 4, "more than twice the 4 replicas it was last whole with"),
        (5, 8, 4, ""),
        (8, 16, 8, ""),
        (8, 16, 0, ""),
        (8, 16, 40, ""),
        (4000, 40, 4, ""),
    ],
)
def test_a_pool_that_doubled_has_to_be_whole_before_it_doubles_again(
    before: int, after: int, from_: int, why: str
) -> None:
    found = unconfirmed(pool(before), pool(after), Has(whole_with=from_, ready=4, grows_from=from_), PRICES)
    assert why in found
    assert bool(found) == bool(why)


def test_growth_that_was_confirmed_does_not_have_other_changes_asked_for() -> None:
    has = Has(whole_with=4, ready=4, grows_from=4)
    assert unconfirmed(pool(4000), pool(4000, hot=1), has, PRICES) == ""


@given(st.integers(1, 500), st.integers(1, 5000), st.integers(0, 5000))
def test_the_number_that_the_pool_was_whole_with_can_always_be_gone_back_to(
    before: int, wrong: int, ready: int
) -> None:
    if wrong > before:
        has = Has(whole_with=before, ready=min(ready, wrong))
        assert unconfirmed(pool(wrong), pool(before), has, PRICES) == ""


def test_an_unknown_price_is_not_zero() -> None:
    assert "no price is known" in unconfirmed(capped(12.5), capped(None), whole(capped(None)), Prices())
    assert "may cost" in unconfirmed(capped(12.5), capped(60.0), whole(capped(None)), Prices())
    assert unconfirmed(capped(None), capped(None, 12), whole(capped(None)), Prices()) == ""
    assert sizes(pool(4), pool(5), Prices()) == "4 -> 5 nodes (prices are not known yet)"


def test_units_are_spared_by_the_node() -> None:
    def weighted(replicas: int) -> Pool:
        return pool(replicas, units={"big": 8})

    assert unconfirmed(weighted(8), weighted(24), whole(weighted(8)), Prices()) == ""
    assert unconfirmed(weighted(8), weighted(32), whole(weighted(8)), Prices()) != ""


# -- a daemon that starts ------------------------------------------------------------------------------


def remembered(replicas: int, *, was_whole: bool = True, **standby: int) -> Memory:
    events: list[Any] = [PoolConfigured(at=1.0, replicas=replicas, **standby)]
    return replay([*events, PoolWhole(at=2.0)] if was_whole else events)


def machines(count: int, kind: str = "gpu", state: InstanceState = InstanceState.RUNNING) -> list[Instance]:
    place = Placement("sim", "r", "a", kind, Market.SPOT)
    return [
        Instance(id=f"i-{n}", pool="p", token="", placement=place, state=state, launched_at=0.0, price=1.0)
        for n in range(count)
    ]


BOTH = {"hot": 0, "stopped": 0}


@pytest.mark.parametrize(
    ("memory", "after", "listed", "confirm"),
    [
        (Memory(), pool(4000), None, False),
        (remembered(4, **BOTH), pool(4000), None, True),
        (remembered(4, **BOTH), pool(4000), machines(4), True),
        (remembered(4, **BOTH), pool(4000), machines(6), True),
        (remembered(4, **BOTH), pool(12), machines(6), True),
        (remembered(4, **BOTH), pool(4, hot=400), machines(4), True),
        (remembered(4), pool(4, hot=400), machines(4), False),
        (remembered(4), pool(400), machines(4), True),
        (remembered(40, **BOTH), pool(4), None, True),
        (remembered(40, **BOTH), pool(4), machines(40), True),
        (remembered(40, was_whole=False, **BOTH), pool(4), None, True),
        # the journal is an old one: what runs already is not launched, what does not run is not lost
        (remembered(4, **BOTH), pool(40), machines(40), False),
        (remembered(4, **BOTH), pool(400), machines(40), True),
        (remembered(40, **BOTH), pool(4), machines(4), False),
        (remembered(40, **BOTH), pool(4), machines(40, state=InstanceState.TERMINATED), False),
        # machines that are lost are no reason to ask for those that are wanted
        (remembered(10, **BOTH), pool(12), machines(2), False),
        # units count the same machines anew
        (remembered(4, **BOTH), pool(32, units={"big": 8}), machines(4, "big"), False),
        (remembered(32, **BOTH), pool(4), machines(4, "big"), False),
    ],
)
def test_the_journal_is_asked_when_a_daemon_starts(
    memory: Memory, after: Pool, listed: list[Instance] | None, confirm: bool
) -> None:
    assert bool(unconfirmed_at_start(after, memory, listed)) is confirm


def test_a_mistake_that_was_never_whole_can_be_corrected_by_a_restart() -> None:
    memory = replay(
        [
            PoolConfigured(at=1.0, replicas=4, **BOTH),
            PoolWhole(at=2.0),
            PoolConfigured(at=3.0, replicas=4000, **BOTH),
        ]
    )
    assert (memory.whole_with, memory.replicas) == (4, 4000)
    assert unconfirmed_at_start(pool(4), memory, machines(100)) == ""
    assert unconfirmed_at_start(pool(4), memory, None) == ""


def test_a_chain_of_steps_meets_the_same_question_at_a_start() -> None:
    configured = [PoolConfigured(at=float(at), replicas=n, **BOTH) for at, n in ((1, 4), (3, 8))]
    memory = replay([configured[0], PoolWhole(at=2.0), configured[1]])
    assert unconfirmed_at_start(pool(16), memory, machines(4)) != ""
    assert unconfirmed_at_start(pool(8), memory, machines(4)) == ""


def test_the_size_in_force_is_the_journals() -> None:
    found = in_force(pool(4000, hot=400, limits=Limits(surge=7)), remembered(4, hot=1, stopped=2))
    assert found == pool(4, hot=1, stopped=2, limits=Limits(surge=7))
    adaptive = in_force(pool(4000, adaptive=AdaptiveRules()), remembered(4, hot=1, stopped=2))
    assert adaptive == pool(4, stopped=2, adaptive=AdaptiveRules())
    assert in_force(pool(4), Memory()) is None
