"""What the adaptive mix covers, insures and gives back in one turn, counted node by node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.actions import Action, ActionKind, Cause, Drain, Launch, Start, Terminate, Undrain
from policies.model import AdaptiveRules, InstanceState, Limits, Observed, StandbyKind, StandbyRules
from policies.records import OperatorRequest
from tests.support.adaptive_scenes import (
    HOUR,
    OLD,
    SOON,
    YOUNG,
    covers,
    drains,
    fleet,
    standby,
    unsold,
    zones,
)
from tests.support.scene import Scene
from tests.support.toy_pools import ON_DEMAND, SPOT, of_kind

# -- on demand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_demand_start", "bridges"), [(90.0, 1), (598.9, 1), (599.0, 0), (700.0, 0)])
def test_on_demand_bridges_where_it_is_ready_before_spot(on_demand_start: float, bridges: int) -> None:
    rules = AdaptiveRules(spot_start=600.0, on_demand_start=on_demand_start, notice=5000.0)
    here = fleet(4, "aab", rules=rules)
    assert (len(zones(here)), covers(here)) == (1, bridges)
    if bridges:
        (launch,) = [a for a in of_kind(here.plan(), Launch) if a.placement.market is ON_DEMAND]
        assert launch.reason.startswith("cover until spot is ready")
    here.node("coming", SPOT, "b", ready=False, age=30.0)
    assert (len(zones(here)), covers(here)) == (0, bridges)
    here.node("o", ON_DEMAND)
    assert (len(zones(here)), covers(here)) == (0, 0)


def test_what_no_spot_can_be_bought_for_is_covered_on_demand() -> None:
    assert covers(unsold(fleet(4, "aab"))) == 1
    assert covers(unsold(fleet(4))) == 4


def test_the_floor_is_bought_and_kept_at_any_price() -> None:
    here = fleet(4, "aaa", pool={"spot_share": 0.75})
    assert here.pool.on_demand_floor == 1
    (launch,) = of_kind(here.plan(), Launch)
    assert (launch.placement.market, launch.reason) == (ON_DEMAND, "on-demand floor of 1")
    assert fleet(4, "aaa", 1, pool={"spot_share": 0.75}).plan().actions == ()


@pytest.mark.parametrize(("floor", "held"), [(0, 2), (1, 3), (2, 4)])
def test_on_demand_nodes_beyond_the_floor_are_given_back(floor: int, held: int) -> None:
    here = fleet(4, "aabb"[floor:], held, pool={"spot_share": 1.0 - floor / 4})
    assert here.pool.on_demand_floor == floor
    assert [cause for _, cause in drains(here)] == [Cause.RETURN] * 2


def test_no_more_go_at_once_than_the_disruption_budget() -> None:
    here = fleet(4, "aabb", 2, pool={"limits": Limits(surge=8, disruption=0.25)})
    assert len(drains(here)) == 1
    assert any("1 nodes are draining by choice already" in note for note in here.plan().notes)


def test_a_drain_gives_requests_their_budget() -> None:
    here = fleet(4, "aabb", 1)
    (drain,) = of_kind(here.plan(), Drain)
    assert drain.deadline == here.now + here.pool.drain.budget


def test_an_on_demand_node_that_is_not_ready_is_ended_before_one_that_works() -> None:
    here = fleet(4, "aabb", 1, pool={"limits": Limits(surge=8, disruption=0.0)})
    here.node("boots", ON_DEMAND, ready=False, age=30.0)
    plan = here.plan()
    assert [(a.node, a.cause) for a in of_kind(plan, Terminate)] == [("boots", Cause.EXCESS)]
    assert [a.node for a in of_kind(plan, Drain)] == ["o0"]


def test_one_that_drains_to_save_money_is_the_quickest_cover() -> None:
    here = unsold(fleet(4, "aab", 1)).drain("o0", Cause.RETURN)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["o0"]
    assert of_kind(plan, Launch) == []


def test_two_that_drain_to_save_money_come_back_in_one_turn() -> None:
    here = unsold(fleet(4, "aa", 2)).drain("o0", Cause.RETURN).drain("o1", Cause.RETURN)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["o0", "o1"]
    assert of_kind(plan, Launch) == []


def test_where_nothing_at_all_can_be_had_it_says_so() -> None:
    here = fleet(4, "aab")
    here.offerings = [replace(o, available=False) for o in here.offerings]
    plan = here.plan()
    assert plan.actions == ()
    assert any("on-demand" in note for note in plan.notes)


def test_what_is_short_is_covered_and_not_insured() -> None:
    (launch,) = of_kind(unsold(fleet(4, "aab")).plan(), Launch)
    assert launch.reason.startswith("cover until spot is ready")


# -- insurance -------------------------------------------------------------------------------------------


def test_young_zones_are_insured_and_old_ones_are_not() -> None:
    slow = AdaptiveRules()
    assert covers(fleet(4, "aabb", rules=slow, age=OLD)) == 0
    young = fleet(4, "aabb", rules=slow, age=YOUNG)
    insured = covers(young)
    assert insured > 0
    reasons = [a.reason for a in of_kind(young.plan(), Launch) if a.placement.market is ON_DEMAND]
    assert all(reason.startswith("insurance worth") for reason in reasons)
    again = fleet(4, "aabb", insured, rules=slow, age=YOUNG)
    assert again.plan().actions == ()  # neither bought again nor given back
    assert len(drains(fleet(4, "aabb", insured + 2, rules=slow, age=YOUNG))) == 2


@pytest.mark.parametrize(("standby_start", "insures"), [(75.0, False), (119.0, False), (119.5, True)])
def test_a_standby_that_starts_within_the_notice_is_all_the_insurance(
    standby_start: float, insures: bool
) -> None:
    rules = AdaptiveRules(standby_start=standby_start)
    here = fleet(4, "aabb", rules=rules, age=YOUNG, pool={"standby": StandbyRules(stopped=4)})
    assert covers(here) > 0
    for i in range(4):
        standby(here, f"sb{i}")
    assert (covers(here) > 0) is insures


@pytest.mark.parametrize(
    ("state", "standby_kind"),
    [(InstanceState.RUNNING, StandbyKind.STOPPED), (InstanceState.STOPPED, None)],
    ids=["it still warms up", "it is no standby"],
)
def test_only_a_standby_that_stands_stopped_insures(
    state: InstanceState, standby_kind: StandbyKind | None
) -> None:
    here = fleet(4, "aabb", rules=AdaptiveRules(), age=YOUNG, pool={"standby": StandbyRules(stopped=4)})
    bare = covers(here)
    for i in range(4):
        here.node(
            f"sb{i}", ON_DEMAND, ready=state is InstanceState.RUNNING, state=state, serving=False,
            standby=standby_kind, operator=OperatorRequest(since=here.now, budget=9.0, reason="not counted"),
        )  # fmt: skip
    assert covers(here) == bare > 0


# -- standbys --------------------------------------------------------------------------------------------


def started(here: Scene) -> list[str]:
    return [a.node for a in of_kind(here.plan(), Start)]


WARM = {"standby": StandbyRules(stopped=2)}


def test_standbys_start_for_what_spot_is_not_ready_for() -> None:
    here = standby(standby(fleet(4, "aab", pool=WARM), "s0"), "s1")
    assert (started(here), zones(here), covers(here)) == (["s0"], "a", 0)
    here.node("coming", SPOT, "b", ready=False, age=30.0)
    assert (started(here), zones(here)) == (["s0"], "")
    here.node("coming", SPOT, "b")
    assert started(here) == []


def test_no_standby_starts_for_what_on_demand_nodes_cover() -> None:
    """Where on demand bridges, a node of it counts like a spot node that is ready."""
    rules = AdaptiveRules(spot_start=600.0, on_demand_start=90.0, notice=5_000.0)
    here = standby(fleet(4, "aab", 1, rules=rules, pool=WARM))
    assert started(here) == []
    assert started(standby(fleet(4, "aab", rules=rules, pool=WARM))) == ["sb"]


@pytest.mark.parametrize("whole_at", [None, 9_000.0])
def test_as_many_standbys_start_as_are_needed(whole_at: float | None) -> None:
    here = unsold(fleet(4, "aa", pool=WARM, whole_at=whole_at))
    for node in ("s0", "s1", "s2"):
        standby(here, node)
    assert (started(here), covers(here)) == (["s0", "s1"], 0)


@pytest.mark.parametrize(("takes", "starts"), [(89.0, ["sb"]), (90.0, []), (200.0, [])])
def test_a_standby_that_is_no_quicker_than_spot_is_left_alone(takes: float, starts: list[str]) -> None:
    rules = AdaptiveRules(spot_start=90.0, standby_start=takes)
    assert started(standby(fleet(4, "aab", rules=rules, pool=WARM))) == starts


def test_before_the_pool_was_whole_no_standby_is_spent_on_spot_that_boots() -> None:
    here = standby(fleet(4, "aab", pool=WARM, whole_at=None)).node("coming", SPOT, "b", ready=False, age=30.0)
    assert started(here) == []


def test_where_no_spot_is_sold_a_standby_is_quicker_than_a_launch() -> None:
    """Also in a pool that never was whole: what is short is wanted at once."""
    here = standby(unsold(fleet(4, "aab", pool=WARM, whole_at=None)))
    assert (started(here), covers(here)) == (["sb"], 0)


def test_a_standby_is_no_insurance_that_has_to_run() -> None:
    """It is started for what is missing; what may go missing it insures where it stands."""
    rules = AdaptiveRules(standby_start=150.0)
    here = standby(fleet(4, "aabb", rules=rules, age=YOUNG, pool=WARM))
    assert covers(here) > 0
    assert started(here) == []


# -- surplus spot ----------------------------------------------------------------------------------------


def test_spot_that_is_not_needed_is_given_back_the_dearest_first() -> None:
    here = fleet(3, "abbcc", prices={"a": 0.9, "b": 0.95, "c": 0.85})
    assert [(node[0], cause) for node, cause in drains(here)] == [("b", Cause.EXCESS)] * 2
    assert fleet(5, "abbcc", prices={"a": 0.9, "b": 0.91, "c": 0.9}).plan().actions == ()


def test_the_first_zone_of_the_list_gives_back_like_any_other() -> None:
    here = fleet(3, "aabbc", prices={"a": 0.95, "b": 0.9, "c": 0.9})
    assert [node[0] for node, _ in drains(here)] == ["a", "a"]


def test_a_zone_that_has_given_back_all_it_holds_is_followed_by_the_next_one() -> None:
    here = fleet(3, "abccc", prices={"a": 0.95, "b": 0.93, "c": 0.9})
    assert [node[0] for node, _ in drains(here)] == ["a", "b"]


def test_one_that_nobody_has_looked_at_is_neither_given_back_nor_relied_on() -> None:
    here = fleet(3, "aab", prices={"a": 0.9, "b": 0.95}).node("b3", SPOT, "b", age=24 * HOUR, probed=False)
    assert drains(here) == []
    here.node("b3", SPOT, "b", age=24 * HOUR)
    assert len(drains(here)) == 1


@pytest.mark.parametrize("why", ["coming", "budget", "boots"])
def test_none_is_given_back_while_a_spot_node_is_coming_or_the_budget_is_used_up(why: str) -> None:
    here = fleet(4, "aabbcc")
    assert len(drains(here)) == 2
    match why:
        case "coming":
            here.launching("p/7/1", SPOT)
        case "boots":
            here.node("x", SPOT, "a", ready=False, age=30.0)
        case "budget":
            here.pool = replace(here.pool, limits=Limits(surge=8, disruption=0.25))
            here.drain("a0", Cause.EXCESS)
    assert drains(here) == []


@pytest.mark.parametrize(("price", "goes"), [(0.25, 0), (0.35, 1)])
def test_a_spot_node_stays_unless_it_costs_more_than_the_threshold(price: float, goes: int) -> None:
    """0.1 of an on-demand node, which costs 3."""
    assert len(drains(fleet(2, "aab", prices={"a": 0.2, "b": price}))) == goes


def test_surplus_that_may_not_be_relied_on_leaves_others_alone() -> None:
    here = fleet(4, "aabbc").node("b3", SPOT, "b", age=24 * HOUR, silent_for=1.0)
    assert drains(here) == []


@pytest.mark.parametrize(
    ("price", "held", "minutes", "goes"),
    [
        (0.9, 8, 45.0, 0),  # by the outlook four are surplus, and by the hazard now they insure the rest
        (0.9, 8, 90.0, 2),
        (0.9, 8, 180.0, 3),
        (0.9, 6, 180.0, 1),
        (1.2, 6, 75.0, 1),
        (1.8, 8, 90.0, 3),
    ],
)
def test_what_is_given_back_is_not_bought_again(price: float, held: int, minutes: float, goes: int) -> None:
    """Of four wanted, in zones that were watched for so long. What would be bought again stays."""
    prices: dict[str, float | None] = {"a": price, "b": price}
    names = [f"{zone}{i}" for i, zone in enumerate(("ab" * held)[:held])]
    here = fleet(4, "".join(n[0] for n in names), rules=AdaptiveRules(), prices=prices, age=minutes / 60.0)
    gone = [node for node, _ in drains(here)]
    assert len(gone) == goes
    stay = "".join(n[0] for n in names if n not in gone)
    assert fleet(4, stay, rules=AdaptiveRules(), prices=prices, age=minutes / 60.0).plan().actions == ()


def test_nodes_in_a_zone_that_is_sold_no_more_count_and_are_given_back() -> None:
    """The configuration lacks it now, or the provider: the nodes are there all the same."""
    assert fleet(4, "aabb", prices={"a": 0.9}).plan().actions == ()
    assert len(drains(fleet(3, "aabb", prices={"a": 0.9}))) == 1
    assert zones(fleet(5, "aabb", prices={"a": 0.9})) == "a"


def test_a_node_in_a_region_that_cannot_be_seen_is_not_given_back() -> None:
    here = fleet(2, "aabb")
    assert len(drains(here)) == 2
    here.settings["regions"] = {
        "r": Observed(value=tuple(here.instances.values()), at=here.now - 2000.0, error="no answer")
    }
    assert drains(here) == []


# -- before the pool was whole ---------------------------------------------------------------------------


def test_an_open_launch_counts_where_it_goes() -> None:
    here = fleet(2, "a", prices={"a": 0.9}).launching("p/7/1", SPOT)
    assert (zones(here), covers(here)) == ("", 0)
    here.asked("a0", ActionKind.STOP)
    assert zones(here) == ""


def of(plan_actions: tuple[Action, ...]) -> list[str]:
    return [type(a).__name__ for a in plan_actions]


def test_a_whole_fleet_of_old_zones_is_left_alone() -> None:
    for rules in (SOON, AdaptiveRules()):
        assert of(fleet(4, "aabb", rules=rules).plan().actions) == []
