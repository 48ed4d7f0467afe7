"""Whole stories of a pool on the toy cloud: the mix, droughts, returns, refusals, scaling, small pools.

Every turn of every story is checked against the invariants (`tests/support/toy_checks.py`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.actions import Drain, Launch, Start, Undrain
from policies.model import InstanceState, Limits, Market, NoticeKind, ReturnRules, StandbyKind, StandbyRules
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_cloud import ToyCloud
from tests.support.toy_pools import quick_pool

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND


def mix(toy: ToyCloud) -> tuple[int, int]:
    return len(toy.answering(SPOT)), len(toy.answering(ON_DEMAND))


def never_below(toy: ToyCloud, seconds: float, least: int) -> None:
    for _ in range(round(seconds / toy.step)):
        toy.turn()
        assert len(toy.answering()) >= least
        assert len(toy.active()) >= least


@pytest.mark.parametrize(
    ("replicas", "expected"), [(10, (7, 3)), (4, (2, 2)), (3, (2, 1)), (1, (0, 1)), (2, (1, 1))]
)
def test_with_capacity_the_pool_settles_at_seventy_thirty(replicas: int, expected: tuple[int, int]) -> None:
    toy = CheckedCloud(quick_pool(replicas))
    toy.run(100)
    assert mix(toy) == expected
    assert len(toy.alive()) == replicas
    assert toy.count == replicas  # nothing was bought twice on the way


@pytest.mark.parametrize(("share", "expected"), [(0.0, (0, 5)), (1.0, (5, 0)), (0.5, (2, 3))])
def test_the_share_may_be_anything(share: float, expected: tuple[int, int]) -> None:
    toy = CheckedCloud(quick_pool(5, spot_share=share))
    toy.run(100)
    assert mix(toy) == expected


def test_on_demand_covers_while_spot_is_gone_and_the_pool_returns_without_a_dip() -> None:
    toy = CheckedCloud(quick_pool(10))
    toy.run(100)
    toy.set_capacity(SPOT, 0)
    for node in toy.alive(SPOT):
        toy.reclaim(node, 120.0)
    toy.run(200)
    assert mix(toy) == (0, 10)
    toy.set_capacity(SPOT, 100)
    never_below(toy, 1200, 10)
    assert mix(toy) == (7, 3)
    assert len(toy.alive()) == 10


def test_a_zone_that_falls_is_covered_inside_the_notice() -> None:
    toy = CheckedCloud(quick_pool(10), boot=20.0)
    toy.run(100)
    toy.set_capacity(SPOT, 0, "a")
    for node in toy.zone("a"):
        toy.reclaim(node, 120.0)
    toy.run(60)
    assert len(toy.fleet().ready) >= 10
    toy.run(600)
    assert mix(toy) == (7, 3)
    assert not toy.zone("a")


def test_the_first_boot_without_any_spot_covers_with_on_demand_at_once() -> None:
    toy = CheckedCloud(quick_pool(10))
    toy.set_capacity(SPOT, 0)
    toy.run(60)
    assert mix(toy) == (0, 10)
    toy.set_capacity(SPOT, 100)
    never_below(toy, 1200, 10)
    assert mix(toy) == (7, 3)


def test_cover_that_is_starting_is_not_thrown_away_for_spot_that_is_only_asked_for() -> None:
    """A slow boot, and spot that refuses each time it is tried: on-demand still becomes ready once."""
    toy = CheckedCloud(quick_pool(10), boot=100.0)
    toy.set_capacity(SPOT, 0)
    toy.run(140)
    assert mix(toy) == (0, 10)
    assert toy.count == 10


def test_spot_stands_in_while_on_demand_is_refused_and_goes_back() -> None:
    toy = CheckedCloud(quick_pool(10))
    toy.set_capacity(ON_DEMAND, 0)
    toy.run(100)
    assert mix(toy) == (10, 0)
    assert len(toy.alive()) == 10
    toy.set_capacity(ON_DEMAND, 100)
    never_below(toy, 600, 10)
    assert mix(toy) == (7, 3)
    assert len(toy.alive()) == 10


def test_a_pool_that_wants_no_spot_never_buys_it() -> None:
    toy = CheckedCloud(quick_pool(4, spot_share=0.0))
    toy.set_capacity(ON_DEMAND, 1)
    toy.run(200)
    assert mix(toy) == (0, 3)
    assert not any(m.spot for m in toy.machines.values())


def test_nothing_to_be_had_anywhere_keeps_what_there_is() -> None:
    toy = CheckedCloud(quick_pool(4))
    toy.run(100)
    for market in Market:
        toy.set_capacity(market, 0)
    first = toy.alive(SPOT)[0]
    toy.reclaim(first, 120.0)
    toy.run(300)
    assert len(toy.answering()) == 3
    assert len(toy.active()) == 3
    for market in Market:
        toy.set_capacity(market, 100)
    toy.run(400)
    assert mix(toy) == (2, 2)


def test_scaling_in_lets_requests_finish_and_keeps_to_the_budget() -> None:
    toy = CheckedCloud(quick_pool(10))
    toy.run(100)
    toy.configure(replicas=4)
    never_below(toy, 400, 4)
    assert mix(toy) == (2, 2)
    assert len(toy.alive()) == 4
    assert toy.cut == 0


def test_scaling_out_buys_the_mix() -> None:
    toy = CheckedCloud(quick_pool(4))
    toy.run(100)
    toy.configure(replicas=10)
    never_below(toy, 100, 4)
    assert mix(toy) == (7, 3)
    assert toy.count == 10


def test_a_new_share_is_reached_without_a_dip() -> None:
    toy = CheckedCloud(quick_pool(10))
    toy.run(100)
    toy.configure(spot_share=0.5)
    never_below(toy, 400, 10)
    assert mix(toy) == (5, 5)
    toy.configure(spot_share=0.8)
    never_below(toy, 400, 10)
    assert mix(toy) == (8, 2)


def test_requests_in_flight_finish_before_a_node_is_given_back() -> None:
    toy = CheckedCloud(quick_pool(4))
    toy.run(100)
    toy.configure(replicas=2)
    toy.load(3)
    toy.run(4)
    assert len(toy.alive()) == 4  # it drains and holds requests
    toy.load(0)
    toy.run(60)
    assert len(toy.alive()) == 2
    assert toy.cut == 0


def test_a_stopped_standby_takes_over_and_is_made_anew() -> None:
    toy = CheckedCloud(quick_pool(4, standby=StandbyRules(stopped=1)), boot=40.0)
    toy.run(200)
    stopped = [i for i in toy.alive() if toy.machines[i].instance.state is InstanceState.STOPPED]
    assert len(stopped) == 1
    assert len(toy.alive()) == 5
    noticed = toy.alive(SPOT)[0]
    toy.reclaim(noticed, 120.0)
    plan = toy.turn()
    assert [a.node for a in plan.actions if isinstance(a, Start)] == stopped
    assert next(a for a in plan.actions if isinstance(a, Start)).replaces == noticed
    assert any(isinstance(a, Drain) and a.node == noticed for a in plan.actions)
    toy.run(14)  # a start is quicker than a boot
    assert stopped[0] in toy.active()
    assert toy.memory.swaps[noticed].incoming == stopped[0]
    assert toy.memory.swaps[noticed].replaced_at is not None
    toy.run(400)
    states = [toy.machines[i].instance.state for i in toy.alive()]
    assert states.count(InstanceState.STOPPED) == 1
    assert mix(toy) == (2, 2)


def test_a_standby_that_does_not_start_is_replaced_by_a_launch() -> None:
    toy = CheckedCloud(quick_pool(2, standby=StandbyRules(stopped=1)))
    toy.run(100)
    standby = next(i for i in toy.alive() if toy.machines[i].instance.state is InstanceState.STOPPED)
    zone = toy.machines[standby].instance.placement.zone
    toy.set_capacity(ON_DEMAND, 0, zone)
    toy.reclaim(toy.alive(SPOT)[0], 120.0)
    toy.run(60)
    assert toy.memory.nodes[standby].standby is StandbyKind.STOPPED  # a standby again
    assert len(toy.answering()) == 2
    assert len(toy.active()) == 2


def test_a_hot_standby_keeps_the_pool_whole_through_a_notice() -> None:
    toy = CheckedCloud(quick_pool(4, standby=StandbyRules(hot=1)), boot=60.0)
    toy.run(200)
    assert mix(toy) == (2, 3)
    toy.reclaim(toy.alive(SPOT)[0], 4.0)
    never_below(toy, 400, 4)
    assert mix(toy) == (2, 3)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("share", [0.7, 1.0])
def test_small_pools_survive_notices_for_every_node(replicas: int, share: float) -> None:
    toy = CheckedCloud(quick_pool(replicas, spot_share=share), boot=20.0)
    toy.run(100)
    for node in toy.alive():
        kind = NoticeKind.INTERRUPTION if toy.machines[node].spot else NoticeKind.MAINTENANCE
        toy.machines[node].dies_at = toy.now + 120.0
        toy.notice(node, 120.0, kind=kind)
    never_below(toy, 600, 1)
    assert len(toy.answering()) == replicas
    assert len(toy.alive()) == replicas


def test_a_pool_without_surge_covers_and_then_stays() -> None:
    """It cannot make before it breaks, so it keeps its cover rather than dip below wanted."""
    toy = CheckedCloud(quick_pool(4, limits=Limits(surge=0)))
    toy.run(100)
    assert mix(toy) == (2, 2)
    toy.reclaim(toy.alive(SPOT)[0], 120.0)
    toy.run(200)
    assert sum(mix(toy)) == 4
    assert len(toy.alive()) == 4
    never_below(toy, 300, 4)


def test_the_spend_cap_holds_through_a_drought() -> None:
    toy = CheckedCloud(quick_pool(10, limits=Limits(surge=2, spend_per_hour=20.0)))
    toy.run(100)
    assert mix(toy) == (7, 3)  # 16 USD/h
    toy.set_capacity(SPOT, 0)
    for node in toy.alive(SPOT):
        toy.reclaim(node, 10.0)
    toy.run(200)
    assert mix(toy) == (0, 6)  # 18 USD/h: a seventh would cost 21


def test_losses_without_notice_are_counted_and_replaced() -> None:
    toy = CheckedCloud(quick_pool(10))
    toy.run(100)
    victims = toy.alive(SPOT)[:2]
    for node in victims:
        toy.reclaim(node, 0.0, told=False)
    toy.run(400)
    assert mix(toy) == (7, 3)
    assert toy.memory.preemptions == 2
    assert toy.memory.preemptions_without_notice == 2
    assert all(toy.memory.swaps[v].replaced_at is not None for v in victims)


def test_lost_launch_answers_launch_nothing_twice() -> None:
    toy = CheckedCloud(quick_pool(4), list_lag=30.0)
    toy.losing_answers = True
    toy.run(120)
    toy.losing_answers = False
    toy.run(60)
    assert mix(toy) == (2, 2)
    assert toy.count == 4


def test_an_answer_that_never_comes_is_asked_for_ever_without_harm() -> None:
    """The list shows nothing either. After days of asking the wait between two askings is still a number."""
    toy = CheckedCloud(quick_pool(1), step=30.0)
    toy.losing_answers = True
    toy.list_lag = 1e9
    toy.listed = [(-1e12, ())]
    toy.run(600)
    intents = {t: replace(i, attempts=i.attempts + 5000) for t, i in toy.memory.intents.items()}
    toy.memory = replace(toy.memory, intents=intents)
    toy.run(600)
    assert max(i.attempts for i in toy.memory.intents.values()) > 5010


def test_a_pool_whose_engines_all_die_comes_back() -> None:
    toy = CheckedCloud(quick_pool(4))
    toy.run(100)
    dead = toy.alive()
    for node in dead:
        toy.kill_engine(node)
    toy.run(600)
    assert mix(toy) == (2, 2)
    assert not set(dead) & set(toy.alive())


def test_a_partition_ends_no_node() -> None:
    """All engines are silent for us, and new ones would be too: everything is left alone until it heals."""
    toy = CheckedCloud(quick_pool(10))
    toy.run(100)
    before = toy.alive()
    for machine in toy.machines.values():
        machine.dead_engine = True
    for _ in range(100):
        toy.turn()
        for node in set(toy.alive()) - set(before):
            toy.machines[node].dead_engine = True
        assert set(before) <= set(toy.alive())
        assert toy.active() == before
    for machine in toy.machines.values():
        machine.dead_engine = False
    toy.run(400)
    assert mix(toy) == (7, 3)
    assert len(toy.alive()) == 10


def test_operator_drains_of_half_the_pool_go_one_by_one() -> None:
    toy = CheckedCloud(quick_pool(10))
    toy.run(100)
    asked = toy.alive()[:5]
    for node in asked:
        toy.operator_drain(node)
    never_below(toy, 600, 10)
    assert not set(asked) & set(toy.alive())
    assert mix(toy) == (7, 3)


def test_a_cover_node_that_drains_is_taken_back_when_spot_fails_again() -> None:
    toy = CheckedCloud(quick_pool(4, back_to_spot=ReturnRules(hold=10.0, stable=4.0, at_once=1)))
    toy.run(100)
    toy.set_capacity(SPOT, 0)
    toy.reclaim(toy.alive(SPOT)[0], 20.0)
    toy.run(100)
    toy.set_capacity(SPOT, 100)
    toy.load(1)  # so that drains take their time
    for _ in range(100):
        plan = toy.turn()
        returned = [a.node for a in plan.actions if isinstance(a, Drain)]
        toy.load(1)
        if returned:
            break
    assert returned
    toy.reclaim(toy.answering(SPOT)[0], 120.0)
    plan = toy.turn()
    assert [a.node for a in plan.actions if isinstance(a, Undrain)] == returned
    assert not [a for a in plan.actions if isinstance(a, Launch) and a.placement.market is ON_DEMAND]
    assert returned[0] in toy.active()


def test_a_rising_flood_of_notices_for_nodes_nobody_knows_changes_nothing() -> None:
    toy = CheckedCloud(quick_pool(4))
    toy.run(100)
    for i in range(2000):
        toy.notice(f"foreign-{i}", 30.0)
    toy.run(60)
    assert mix(toy) == (2, 2)
    assert len(toy.memory.early_notices) <= 256
