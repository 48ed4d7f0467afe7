"""Rebalance recommendations: ignored unless the pool heeds them; a successor first; never below wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from policies.actions import Cause, Drain, Launch
from policies.model import (
    AdaptiveRules,
    Confidence,
    Limits,
    Market,
    NoticeKind,
    Pool,
    RebalanceRules,
    StandbyRules,
)
from tests.support.scene import Scene
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_cloud import ToyCloud
from tests.support.toy_pools import of_kind, quick_pool

Make = Callable[..., Any]
SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
HEEDS = RebalanceRules(replace=True, timeout=120.0)


def whole(**changes: Any) -> ToyCloud:
    """A whole pool of ten, seven on spot."""
    made = CheckedCloud(quick_pool(10, **{"rebalance": HEEDS, **changes}))
    made.settle()
    assert len(made.alive(SPOT)) == 7
    return made


def recommend(toy: ToyCloud, *nodes: str, **more: Any) -> None:
    for node in nodes:
        toy.notice(node, None, kind=NoticeKind.REBALANCE, **more)


def acts(plans: list[Any], kind: type) -> list[Any]:
    return [a for plan in plans for a in plan.actions if isinstance(a, kind)]


def test_by_default_nothing_is_done() -> None:
    toy = whole(rebalance=RebalanceRules())
    recommend(toy, *toy.alive(SPOT))
    assert acts(toy.run(120.0), Launch | Drain) == []


def test_the_successor_is_ready_before_the_node_leaves() -> None:
    toy = whole()
    node = toy.alive(SPOT)[0]
    recommend(toy, node)
    plans, lowest = [], 10
    while node in toy.alive():
        plans.append(toy.turn())
        lowest = min(lowest, len(set(toy.active()) & set(toy.answering())))
    assert lowest >= 10
    (launch,) = acts(plans, Launch)
    assert launch.cause is Cause.REBALANCE
    assert launch.placement.market is SPOT
    assert launch.placement.zone != toy.machines[node].instance.placement.zone
    drains = acts(plans, Drain)
    assert [(d.node, d.cause) for d in drains] == [(node, Cause.REBALANCE)]
    toy.settle()
    assert (len(toy.alive(SPOT)), len(toy.alive(ON_DEMAND))) == (7, 3)


def test_a_node_without_a_successor_goes_on_after_the_timeout() -> None:
    toy = whole()
    node = toy.alive(SPOT)[0]
    toy.set_capacity(SPOT, 0)
    recommend(toy, node)
    toy.run(HEEDS.timeout + 10.0)
    toy.set_capacity(SPOT, 100)
    toy.run(600.0)
    assert node in toy.active()
    assert (len(toy.alive(SPOT)), len(toy.alive(ON_DEMAND))) == (7, 3)


def test_a_successor_that_comes_too_late_is_given_back() -> None:
    toy = whole(rebalance=RebalanceRules(replace=True, timeout=10.0))  # a boot takes 20 s
    node = toy.alive(SPOT)[0]
    recommend(toy, node)
    plans = toy.run(200.0)
    assert len(acts(plans, Launch)) == 1
    assert node in toy.active()
    assert len(toy.alive(SPOT)) == 7


def test_a_whole_pool_of_recommendations_moves_no_faster_than_the_budget() -> None:
    toy = whole(rebalance=RebalanceRules(replace=True, timeout=3600.0))
    zone = toy.zone("a")
    recommend(toy, *zone)
    assert len(zone) >= 2
    most = 0
    for _ in range(600):
        toy.turn()
        fleet = toy.fleet()
        most = max(most, len(toy.alive()))
        assert fleet.voluntary_drains <= toy.pool.disruption_budget == 1
        assert len(fleet.ready) >= 10
    assert not set(zone) & set(toy.alive())
    assert most <= 11
    assert (len(toy.alive(SPOT)), len(toy.alive(ON_DEMAND))) == (7, 3)


def test_the_place_that_was_left_is_not_the_next_one_tried() -> None:
    toy = whole()
    node = toy.zone("a")[0]
    recommend(toy, node)
    toy.run(100.0)
    assert node not in toy.alive()
    left = toy.machines[node].instance.placement
    assert left in toy.memory.reclaims  # a place with bad news has to be quiet for a while


def test_recommended_places_get_no_launch_of_another_cause() -> None:
    toy = whole(
        rebalance=RebalanceRules(replace=True, timeout=3600.0), limits=Limits(disruption=0.0, surge=3)
    )
    recommend(toy, *toy.zone("a"), *toy.zone("b"))
    toy.reclaim(toy.zone("c")[0], 30.0)
    spot = [a for a in acts(toy.run(20.0), Launch) if a.placement.market is SPOT]
    assert {a.placement.zone for a in spot} <= {"c"}


def test_an_interruption_overtakes_its_recommendation() -> None:
    toy = whole()
    node = toy.alive(SPOT)[0]
    recommend(toy, node)
    toy.run(4.0)
    toy.reclaim(node, 30.0)
    plans = toy.run(10.0)
    assert [(d.node, d.cause) for d in acts(plans, Drain)] == [(node, Cause.NOTICE)]
    assert [a for a in acts(plans, Launch) if a.placement.market is ON_DEMAND]


@pytest.mark.parametrize("change", ["cancelled", "on-demand", "restart"])
def test_what_is_no_recommendation_of_a_spot_node_now(change: str) -> None:
    toy = whole()
    node = toy.alive(ON_DEMAND if change == "on-demand" else SPOT)[0]
    recommend(toy, node, cancelled=change == "cancelled")
    if change == "restart":
        toy.run(2.0)
        toy.restart()
        assert acts(toy.run(200.0), Drain)  # it is in the journal
        assert node not in toy.active()
        return
    assert acts(toy.run(200.0), Launch | Drain) == []


def test_what_a_node_says_of_itself_counts_within_the_same_budget() -> None:
    toy = whole(rebalance=RebalanceRules(replace=True, timeout=3600.0))
    recommend(toy, *toy.alive(SPOT), confidence=Confidence.REPORTED)
    for _ in range(100):
        toy.turn()
        assert toy.fleet().voluntary_drains <= 1
        assert len(toy.fleet().ready) >= 10


def test_without_room_for_one_more_nothing_happens() -> None:
    toy = whole(limits=Limits(surge=0))
    recommend(toy, toy.alive(SPOT)[0])
    plans = toy.run(60.0)
    assert acts(plans, Launch | Drain) == []
    assert any("nodes live" in d.reason for d in plans[1].deferred)


def test_a_hot_standby_is_not_spent_on_it() -> None:
    pool = Pool(name="p", replicas=10, rebalance=HEEDS, standby=StandbyRules(hot=1))
    here = Scene(pool).nodes(7).nodes(4, ON_DEMAND)
    here.notice("s0", None, kind=NoticeKind.REBALANCE)
    assert [type(a) for a in here.plan().actions] == [Launch]


def test_a_node_that_is_not_ready_itself_is_left_alone() -> None:
    pool = Pool(name="p", replicas=10, rebalance=HEEDS)
    here = Scene(pool).nodes(6).nodes(3, ON_DEMAND).node("young", ready=False, age=5.0)
    here.notice("young", None, kind=NoticeKind.REBALANCE)
    assert not [a for a in here.plan().actions if isinstance(a, Launch) and a.cause is Cause.REBALANCE]


def test_the_adaptive_mix_heeds_them_too() -> None:
    pool = quick_pool(10, rebalance=HEEDS, adaptive=AdaptiveRules(), spot_share=1.0, limits=Limits(surge=10))
    toy = CheckedCloud(pool)
    toy.settle()
    toy.run(300.0)
    node = toy.alive(SPOT)[0]
    recommend(toy, node)
    for _ in range(150):
        toy.turn()
        assert len(toy.fleet().ready) >= 10
    assert node not in toy.alive()


def test_on_demand_cover_is_no_successor() -> None:
    """The mix wants every spot node that there is: one that left would be put back in the next turn."""
    pool = Pool(name="p", replicas=4, spot_share=1.0, rebalance=HEEDS)
    here = Scene(pool).nodes(4).node("o0", ON_DEMAND)
    here.notice("s0", None, kind=NoticeKind.REBALANCE)
    assert "s0" not in {a.node for a in of_kind(here.plan(), Drain)}
    here.node("s4")
    assert [(a.node, a.cause) for a in of_kind(here.plan(), Drain)] == [("s0", Cause.REBALANCE)]
