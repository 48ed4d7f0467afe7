"""A pool that is wanted empty: what it has drains and ends in good order, and nothing is wrong with that."""

from __future__ import annotations

from typing import Any

import pytest

from policies import explain, resize
from policies.actions import Alarm, Drain, Launch, Terminate
from policies.bill import Prices
from policies.budget import alarms as alarms_of
from policies.fleet import Fleet
from policies.grant import Grant
from policies.memory import Memory
from policies.mix import wanted
from policies.model import (
    AdaptiveRules,
    Observed,
    Pool,
    StandbyRules,
    World,
)
from policies.resize import Has, unconfirmed, unconfirmed_at_start
from policies.service import Service
from policies.value import replace
from policies.verdict import State, judge
from tests.support.scene import Scene
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_cloud import ToyCloud
from tests.support.toy_pools import quick_pool


def drained(toy: ToyCloud, turns: int = 200) -> list[Any]:
    """Turns until nothing lives any more."""
    began = len(toy.turns)
    for _ in range(turns):
        toy.turn()
        if not toy.alive():
            break
    assert not toy.alive()
    return toy.turns[began:]


@pytest.mark.parametrize("adaptive", [False, True])
def test_six_become_none_each_drains_before_it_ends(adaptive: bool) -> None:
    rules = {"adaptive": AdaptiveRules(), "spot_share": 1.0} if adaptive else {}
    toy = CheckedCloud(quick_pool(6, standby=StandbyRules(stopped=1), **rules))
    toy.run(120)
    assert len(toy.active()) >= 6
    toy.configure(replicas=0)
    went = drained(toy)
    actions = [a for turn in went for a in turn.plan.actions]
    assert not [a for a in actions if isinstance(a, Launch | Alarm)]
    drains = [a.node for a in actions if isinstance(a, Drain)]
    ends = [a.node for a in actions if isinstance(a, Terminate)]
    assert {*drains} <= {*ends}
    for node in drains:
        assert drains.index(node) >= 0
        assert actions.index(
            next(a for a in actions if isinstance(a, Drain) and a.node == node)
        ) < actions.index(next(a for a in actions if isinstance(a, Terminate) and a.node == node))
    toy.run(60)
    assert not toy.alive()
    assert not toy.turns[-1].plan.actions
    toy.configure(replicas=2)
    toy.run(200)
    assert len(toy.active()) >= 2


def test_a_drain_of_all_waits_for_requests_in_flight() -> None:
    toy = CheckedCloud(quick_pool(3))
    toy.run(80)
    toy.load(2)
    toy.configure(replicas=0)
    toy.turn()
    toy.turn()
    assert len(toy.alive()) == 3
    assert not toy.active()
    toy.load(0)
    drained(toy)


def test_what_still_starts_is_given_up_at_once() -> None:
    toy = CheckedCloud(quick_pool(4))
    toy.run(2)
    assert toy.alive()
    toy.configure(replicas=0)
    drained(toy, 30)


def test_it_has_no_floor_no_standby_and_no_room() -> None:
    pool = Pool(name="p", replicas=0, standby=StandbyRules(hot=2, stopped=3))
    assert pool.standby == StandbyRules()
    assert pool.most_units == 0
    assert (pool.on_demand_floor, pool.spot_wanted, pool.min_serving) == (0, 0, 0)
    assert wanted(pool, spot_ready=0, spot_coming=0, whole=True).on_demand == 0
    assert replace(pool, replicas=4).disruption_budget == 1
    with pytest.raises(ValueError, match="adaptive"):
        Pool(name="p", replicas=0, adaptive=AdaptiveRules(), units={"gpu": 2})


def test_it_is_empty_and_neither_down_nor_ok() -> None:
    here = Scene(Pool(name="p", replicas=0))
    found = judge(here.fleet, here.world, here.memory)
    assert (found.state, found.serving, found.reasons) == (State.EMPTY, 0, ())
    assert explain.pool_sentences(here.fleet, here.world, here.memory)[0] == (
        "None are wanted: none is launched, and those that are there drain and end."
    )


def test_a_pool_that_is_short_by_budget_is_degraded_and_says_so() -> None:
    toy = CheckedCloud(quick_pool(6, spot_share=1.0))
    grant = Grant(replicas=5, why="short by budget of $5.00 an hour: wanted 6, granted 5 (chat has priority)")
    toy.share = lambda _: grant
    toy.run(120)
    assert len(toy.active()) == 5
    world = toy.turns[-1].world
    found = judge(toy.fleet(), world, toy.memory)
    assert (found.state, found.reasons) == (State.DEGRADED, (grant.why,))
    assert grant.why in toy.turns[-1].plan.notes
    none = replace(world, grant=replace(grant, replicas=0))
    gone = Fleet.of(toy.pool, replace(none, regions={"": Observed(value=(), at=none.now)}), Memory())
    assert judge(gone, none, Memory()).state is State.DOWN


def test_a_floor_that_is_not_paid_for_raises_an_alarm() -> None:
    toy = CheckedCloud(quick_pool(4))
    toy.share = lambda _: Grant(replicas=1, why="short by budget", floor_short=True)
    alarms = [a for a in toy.run(2)[-1].actions if isinstance(a, Alarm)]
    assert [(a.name, a.reason) for a in alarms] == [
        ("budget", "the on-demand floor is not paid for: short by budget")
    ]
    assert [a.name for a in alarms_of(Grant(replicas=1, violation="budget: too much"))] == [
        "InvariantViolated"
    ]


def test_a_dead_gateway_is_told_of_all_the_same() -> None:
    world = World(
        now=100.0,
        regions={"r": Observed(value=(), at=99.0)},
        balancers={"gateway": Observed(value=(), at=80.0, error="connection refused")},
        services={"gateway": Service(in_path=True)},
    )
    memory = Memory(served_at=10.0, whole_at=10.0)
    found = judge(Fleet.of(Pool(name="p", replicas=0), world, memory), world, memory)
    assert found.state is State.DEGRADED
    assert "has not answered" in found.reasons[0]


def test_an_empty_gateway_that_refuses_requests_of_a_pool_without_nodes_is_as_wanted() -> None:
    world = World(
        now=100.0,
        regions={"r": Observed(value=(), at=99.0)},
        balancers={"gateway": Observed(value=(), at=99.0)},
        services={"gateway": Service(in_path=True, failed=50, bare_since=20.0)},
    )
    memory = Memory(served_at=10.0, whole_at=10.0)
    found = judge(Fleet.of(Pool(name="p", replicas=0), world, memory), world, memory)
    assert (found.state, found.reasons) == (State.EMPTY, ())


def test_old_failures_raise_no_alarm_where_nothing_is_wanted() -> None:
    toy = CheckedCloud(quick_pool(0))
    toy.memory = replace(toy.memory, failed_starts=9)
    toy.run(5)
    assert not toy.turns[-1].plan.actions


@pytest.mark.parametrize("replicas", [1, 2, 6])
def test_emptying_has_to_be_confirmed_however_small_the_pool_is(replicas: int) -> None:
    before, after = Pool(name="p", replicas=replicas), Pool(name="p", replicas=0)
    why = unconfirmed(before, after, Has(whole_with=replicas, ready=replicas), Prices())
    assert why.endswith("and none of that would be left")
    assert not unconfirmed(before, after, Has(whole_with=0, ready=0), Prices())
    assert not unconfirmed(after, after, Has(whole_with=0, ready=0), Prices())


def test_from_none_a_few_are_taken_up_and_many_are_confirmed() -> None:
    empty, has = Pool(name="p", replicas=0), Has(whole_with=0, ready=0)
    assert not unconfirmed(empty, Pool(name="p", replicas=2), has, Prices())
    assert "more than twice" in unconfirmed(empty, Pool(name="p", replicas=6), has, Prices())


def test_a_daemon_that_starts_knows_that_none_was_wanted() -> None:
    memory = replace(Memory(), hot=0, stopped=0)
    assert "twice" in unconfirmed_at_start(Pool(name="p", replicas=4000), memory, ())
    assert not unconfirmed_at_start(Pool(name="p", replicas=4000), Memory(), ())
    before = resize.in_force(Pool(name="p", replicas=5), memory)
    assert before is not None
    assert before.replicas == 0


def test_a_grant_of_nothing_drains_no_faster_than_the_pool_would() -> None:
    toy = CheckedCloud(quick_pool(6))
    toy.run(120)
    toy.share = lambda _: Grant(replicas=0, why="short by budget")
    toy.turn()
    chosen = [a for a in toy.turns[-1].plan.actions if isinstance(a, Drain)]
    assert len(chosen) == 1
    assert toy.pool.disruption_budget == 1
    for _ in range(300):
        toy.turn()
    assert not toy.alive()
    toy.share = lambda _: None
    toy.run(200)
    assert len(toy.active()) == 6
