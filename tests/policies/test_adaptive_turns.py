"""What the adaptive mix does in one turn, counted node by node.

Most pools here start spot nodes within the notice (`SOON`): a loss costs nothing but its replacement, and
every choice follows from prices. Where risk matters the zones are young and starts take longer than a notice.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from policies import adaptive
from policies.actions import Action, ActionKind, Cause, Drain, Launch, Start, Terminate, Undrain
from policies.hazard import ZoneHistory
from policies.model import AdaptiveRules, InstanceState, Limits, Observed, Pool, StandbyKind, StandbyRules
from policies.records import Refusal
from tests.support.scene import Scene
from tests.support.toy_pools import ON_DEMAND, SPOT, of_kind, place

HOUR = 3600.0
SOON = AdaptiveRules(spot_start=90.0)
OLD, YOUNG = 240.0, 0.1  # hours that a zone was watched without bad news


def fleet(
    wanted: int,
    spot: str = "",
    on_demand: int = 0,
    *,
    rules: AdaptiveRules = SOON,
    prices: dict[str, float | None] | None = None,
    age: float = OLD,
    pool: dict[str, Any] | None = None,
    **memory: Any,
) -> Scene:
    """A pool with a spot node in each zone of `spot` ("aab": two in a, one in b), all ready for a day.

    `prices`: USD/h of spot in the zones that sell it; on demand it is 3. `age`: of every zone, in hours.
    """
    base = {"name": "p", "replicas": wanted, "spot_share": 1.0, "adaptive": rules}
    here = Scene(
        Pool(**{**base, "limits": Limits(surge=2 * wanted, disruption=1.0), **(pool or {})}), **memory
    )
    for i, zone in enumerate(spot):
        here.node(f"{zone}{i}", SPOT, zone, age=24 * HOUR)
    for i in range(on_demand):
        here.node(f"o{i}", ON_DEMAND, "a", age=24 * HOUR)
    sold = {"a": 0.9, "b": 0.9, "c": 0.9} if prices is None else prices
    here.offerings = [
        o for o in here.offerings if o.placement.market is ON_DEMAND or o.placement.zone in sold
    ]
    here.offerings = [
        o if o.placement.market is ON_DEMAND else replace(o, price=sold[o.placement.zone])
        for o in here.offerings
    ]
    here.fields["zones"] = {
        place(zone): ZoneHistory(
            held=spot.count(zone), seen_at=here.now, age=age, bad_at=here.now - age * HOUR
        )
        for zone in "abc"
    }
    return here


def standby(here: Scene, node: str = "sb") -> Scene:
    """A stopped standby."""
    return here.node(
        node, ON_DEMAND, ready=False, state=InstanceState.STOPPED, serving=False, standby=StandbyKind.STOPPED
    )


def unsold(here: Scene) -> Scene:
    """Spot cannot be had."""
    here.offerings = [replace(o, available=o.placement.market is ON_DEMAND) for o in here.offerings]
    return here


def zones(here: Scene) -> str:
    """Where spot nodes are launched, in order."""
    return "".join(a.placement.zone for a in of_kind(here.plan(), Launch) if a.placement.market is SPOT)


def covers(here: Scene) -> int:
    """How many on-demand nodes are launched."""
    return sum(a.placement.market is ON_DEMAND for a in of_kind(here.plan(), Launch))


def drains(here: Scene) -> list[tuple[str, Cause]]:
    return [(a.node, a.cause) for a in of_kind(here.plan(), Drain)]


# -- the arithmetic's constants --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("availability", "costs"),
    [
        (0.999, 110.0),
        (0.99, 110.0 / math.sqrt(10.0)),
        (0.9999, 110.0 * math.sqrt(10.0)),
        (1.0, 110.0 * math.sqrt(1000.0)),
    ],
)
def test_what_a_missing_node_hour_may_cost(availability: float, costs: float) -> None:
    assert adaptive.penalty(availability) == pytest.approx(costs)


# -- launches --------------------------------------------------------------------------------------------


def test_what_is_missing_goes_where_it_is_cheapest() -> None:
    assert zones(fleet(4, "aab", prices={"a": 0.9, "b": 0.6, "c": 0.9})) == "b"
    assert zones(fleet(4, "aab", prices={"a": 0.6, "b": 0.9, "c": 0.9})) == "a"


def test_a_zone_where_nothing_stands_yet_is_tried_with_one_node_and_the_rest_wait_for_it() -> None:
    assert zones(fleet(4, prices={"a": 0.9})) == "a"
    assert zones(fleet(4, "a", prices={"a": 0.9})) == "aaa"
    assert zones(fleet(4, "aa", prices={"a": 0.9, "b": 0.3})) == "b"
    assert covers(fleet(4, prices={"a": 0.9})) == 0  # those that wait are counted


def test_spot_that_is_dearer_than_on_demand_is_not_bought() -> None:
    here = fleet(2, "a", prices={"a": 3.1})
    assert (zones(here), covers(here)) == ("", 1)
    here = fleet(2, "a", prices={"a": 2.9})
    assert (zones(here), covers(here)) == ("a", 0)


def test_a_price_that_is_not_known_counts_as_on_demands() -> None:
    here = fleet(2, "b", prices={"a": 2.9, "b": None})
    assert zones(here) == "a"
    here = fleet(2, "b", prices={"a": 3.1, "b": None})
    assert (zones(here), covers(here)) == ("", 1)


def in_region(here: Scene, zone: str, region: str) -> None:
    """The zone is one of another region: it falls by itself."""
    where = replace(place(zone), region=region)
    here.offerings = [
        replace(o, placement=where) if o.placement == place(zone) else o for o in here.offerings
    ]
    here.fields["zones"][where] = here.fields["zones"].pop(place(zone))
    for node, record in here.records.items():
        if record.placement == place(zone):
            here.records[node] = replace(record, placement=where)
            here.instances[node] = replace(here.instances[node], placement=where)


@pytest.mark.parametrize(("held", "bought"), [("a", 1), ("ab", 0), ("abb", 0)])
def test_no_more_than_twice_as_many_spot_nodes_as_wanted(held: str, bought: int) -> None:
    """One is wanted, of zones that fail by the hour and cost next to nothing: another one insures it."""
    here = fleet(
        1, held, rules=AdaptiveRules(availability=0.99), age=YOUNG, prices={"a": 0.01, "b": 0.01, "c": 0.01}
    )
    in_region(here, "b", "s")
    in_region(here, "c", "t")
    assert len(zones(here)) == bought


def test_of_three_wanted_three_more_may_insure_them() -> None:
    here = fleet(
        3,
        "aaabb",
        rules=AdaptiveRules(availability=0.99),
        age=YOUNG,
        prices={"a": 0.01, "b": 0.01, "c": 0.01},
    )
    in_region(here, "b", "s")
    in_region(here, "c", "t")
    assert len(zones(here)) == 1


# -- a zone that took nodes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "closed"),
    [
        (90.0, 60.0),  # nothing is missed: the least
        (119.0, 60.0),
        (131.0, 25.0 * 12.0),  # missed for 12 s
        (600.0, 1500.0),  # the most
    ],
)
def test_a_zone_that_took_a_node_gets_none_until_a_while_after_the_deadline(
    start: float, closed: float
) -> None:
    for passed, where in ((120.0 + closed - 1.0, ""), (120.0 + closed + 1.0, "a")):
        here = fleet(2, "a", prices={"a": 0.9}, rules=AdaptiveRules(spot_start=start, on_demand_start=start))
        here.fields["reclaims"] = {place("a"): Refusal(at=here.now - passed)}
        assert zones(here) == where
        assert covers(here) == (0 if where else 1)


def test_with_a_standby_that_starts_in_time_the_zone_opens_soon() -> None:
    """Nothing is missed then, however long a launch takes."""
    rules = AdaptiveRules(spot_start=600.0, on_demand_start=600.0)
    for standbys, where in ((0, ""), (1, "a")):
        here = fleet(2, "a", prices={"a": 0.9}, rules=rules)
        here.fields["reclaims"] = {place("a"): Refusal(at=here.now - 200.0)}
        if standbys:
            standby(here)
        assert zones(here) == where


def test_a_zone_that_refused_lately_gets_none() -> None:
    here = fleet(2, "a", prices={"a": 0.6, "b": 0.9})
    here.fields["refusals"] = {place("a"): Refusal(at=here.now - 10.0)}
    assert zones(here) == "b"


# -- a look at a zone that nobody has seen ---------------------------------------------------------------


def unseen(hours: dict[str, float], **more: Any) -> Scene:
    """Covered on demand; every zone was so bad when last seen, hours ago, that none is worth a node."""
    here = fleet(2, on_demand=2, rules=AdaptiveRules(), **more)
    here.fields["zones"] = {
        place(zone): ZoneHistory(
            seen_at=here.now - ago * HOUR, bad_at=here.now - ago * HOUR, losses=400.0, expected=1.0
        )
        for zone, ago in hours.items()
    }
    return here


@pytest.mark.parametrize(
    ("hours", "looks"),
    [
        ({"a": 5.9, "b": 5.0, "c": 1.0}, ""),
        ({"a": 6.0, "b": 5.0, "c": 1.0}, "a"),
        ({"a": 7.0, "b": 9.0, "c": 8.0}, "b"),
        ({"a": 7.0, "b": 8.0, "c": 9.0}, "c"),
    ],
)
def test_the_zone_that_was_not_looked_at_for_longest_gets_a_scout(
    hours: dict[str, float], looks: str
) -> None:
    assert zones(unseen(hours)) == looks


def test_it_is_looked_at_by_one_node_at_a_time_and_not_while_it_is_shut() -> None:
    here = unseen({"a": 7.0, "b": 9.0, "c": 8.0})
    here.fields["refusals"] = {place("b"): Refusal(at=here.now - 10.0)}
    assert zones(here) == "c"
    here.launching("p/7/1", SPOT)
    assert zones(here) == ""


@pytest.mark.parametrize(("cap", "looks"), [(None, "b"), (99.0, "c")])
def test_a_spend_cap_allows_no_look_at_what_it_would_cost_is_not_known(cap: float | None, looks: str) -> None:
    here = unseen({"a": 7.0, "b": 9.0, "c": 8.0}, prices={"a": 0.9, "b": None, "c": 0.9})
    here.pool = replace(here.pool, limits=replace(here.pool.limits, spend_per_hour=cap))
    assert zones(here) == looks


def test_no_scout_goes_where_a_node_stands() -> None:
    here = unseen({"a": 7.0, "b": 6.5, "c": 1.0})
    here.node("s", SPOT, "a")
    assert zones(here) == "b"


# -- early swaps -----------------------------------------------------------------------------------------


def test_a_node_moves_to_a_zone_that_has_become_cheaper() -> None:
    here = fleet(4, "aabb", prices={"a": 0.9, "b": 0.9, "c": 0.3})
    (launch,) = of_kind(here.plan(), Launch)
    assert (launch.placement, launch.reason[:22]) == (place("c"), "early swap worth 0.20 ")
    assert drains(here) == []  # once the new one is ready
    here.node("c9", SPOT, "c", age=300.0)
    assert [node[0] for node, _ in drains(here)] == ["a"] or [node[0] for node, _ in drains(here)] == ["b"]


@pytest.mark.parametrize(("price", "moves"), [(0.70, "c"), (0.74, "")])
def test_it_moves_for_no_less_than_the_threshold(price: float, moves: str) -> None:
    """0.06 of an on-demand node, which costs 3."""
    assert zones(fleet(4, "aabb", prices={"a": 0.9, "b": 0.9, "c": price})) == moves


def test_the_dearest_node_is_the_one_that_moves_and_the_cheapest_zone_where_to() -> None:
    here = fleet(3, "abb", prices={"a": 0.9, "b": 1.2, "c": 1.1})
    assert "early swap worth 0.10 " in of_kind(here.plan(), Launch)[0].reason
    assert zones(here) == "a"
    assert zones(fleet(3, "bbb", prices={"a": 0.9, "b": 1.2, "c": 0.8})) == "c"


@pytest.mark.parametrize("why", ["young", "boots", "coming", "short", "shut", "refused"])
def test_nothing_moves_while_something_else_is_under_way(why: str) -> None:
    here = fleet(4, "aabb", prices={"a": 0.9, "b": 0.9, "c": 0.3})
    match why:
        case "young":
            here.node("b3", SPOT, "b", age=599.0)
        case "boots":
            here.node("b3", SPOT, "b", age=700.0, ready=False).node("o", ON_DEMAND)
        case "coming":
            here.launching("p/7/1", SPOT)
        case "short":
            here.pool = replace(here.pool, replicas=5)
        case "shut":
            here.offerings = [replace(o, available=o.placement.zone != "c") for o in here.offerings]
        case "refused":
            here.fields["refusals"] = {place("c"): Refusal(at=here.now - 10.0)}
    assert not any("early swap" in a.reason for a in of_kind(here.plan(), Launch))


def test_after_ten_minutes_the_next_one_moves() -> None:
    here = fleet(4, "aab", prices={"a": 0.9, "b": 0.9, "c": 0.3}).node("b3", SPOT, "b", age=600.0)
    assert zones(here) == "c"


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
    assert any("is surplus and stays: 1 nodes" in note for note in here.plan().notes)


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
