"""What the adaptive mix buys and moves in one turn, counted node by node.

Most pools here start spot nodes within the notice (`SOON`): a loss costs nothing but its replacement, and
every choice follows from prices. Where risk matters the zones are young and starts take longer than a notice.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from policies import adaptive
from policies.actions import Launch, Terminate
from policies.hazard import ZoneHistory
from policies.model import AdaptiveRules
from policies.records import Bar, Refusal
from tests.support.adaptive_scenes import (
    HOUR,
    YOUNG,
    covers,
    drains,
    fleet,
    standby,
    zones,
)
from tests.support.scene import Scene
from tests.support.toy_pools import ON_DEMAND, SPOT, of_kind, place

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
    (launch,) = of_kind(here.plan(), Launch)
    assert launch.reason.startswith("spot node worth")  # and no early swap


def test_everything_is_measured_in_the_cheapest_on_demand_node() -> None:
    """One zone sells it for 4 USD/h, and of another one the price is not known."""
    for price, where in ((2.9, "a"), (3.2, "")):
        here = fleet(2, "a", prices={"a": price})
        dearer: dict[str, float | None] = {"a": 3.0, "b": 4.0, "c": None}
        here.offerings = [
            replace(o, price=dearer[o.placement.zone]) if o.placement.market is ON_DEMAND else o
            for o in here.offerings
        ]
        assert zones(here) == where


@pytest.mark.parametrize(("price", "bought"), [(2.98, ""), (2.95, "a")])
def test_a_spot_node_is_bought_for_no_less_than_the_threshold(price: float, bought: str) -> None:
    """0.01 of an on-demand node, which costs 3."""
    here = fleet(2, "a", prices={"a": price})
    assert (zones(here), covers(here)) == (bought, 0 if bought else 1)


def test_a_pool_that_wants_no_spot_buys_none() -> None:
    here = fleet(2, pool={"spot_share": 0.0})
    assert (zones(here), covers(here)) == ("", 2)


def test_a_zone_of_which_nothing_is_known_is_tried() -> None:
    here = fleet(2, "a", prices={"a": 0.9, "b": 0.3})
    here.fields["zones"] = {}
    assert zones(here) == "b"


def test_where_spot_may_not_be_launched_on_demand_covers() -> None:
    here = fleet(4, "aab", bars={("r", SPOT): Bar(at=9_990.0, count=1, why="denied")})
    assert (zones(here), covers(here)) == ("", 1)


@pytest.mark.parametrize(("reached", "bought"), [(0, 0), (3, 1), (4, 2), (9, 2)])
def test_spot_that_is_paused_and_was_never_there_is_not_bought_on_demand(reached: int, bought: int) -> None:
    here = fleet(
        4, "aa", bars={("r", SPOT): Bar(at=9_990.0, count=1, why="denied")}, whole_at=None, reached=reached
    )
    assert (zones(here), covers(here)) == ("", bought)
    told = "spot is paused, and what was not there before is not bought on demand" in here.plan().notes
    assert told is (bought < 2)


def test_a_node_whose_boot_is_given_up_is_replaced_in_the_same_turn() -> None:
    here = fleet(4, "aab", prices={"a": 0.9}).node("never", SPOT, "b", ready=False, age=2_000.0)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Terminate)] == ["never"]
    assert zones(here) == "a"


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
    for passed, where in ((120.0 + closed - 1.0, ""), (120.0 + closed, "a"), (120.0 + closed + 1.0, "a")):
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


def test_no_scout_goes_where_spot_is_whole() -> None:
    here = fleet(2, "ab")
    bad = ZoneHistory(seen_at=here.now - 9 * HOUR, bad_at=here.now - 9 * HOUR, losses=400.0, expected=1.0)
    here.fields["zones"][place("c")] = bad
    assert here.plan().actions == ()


@pytest.mark.parametrize(("held", "bought"), [("", "a"), ("a", ""), ("aa", "")])
def test_into_a_young_zone_goes_one_node_and_no_other_follows_it(held: str, bought: str) -> None:
    """The scout is judged by the hours to come, what follows it by the hazard now. Others carry the pool."""
    here = fleet(4, held, 4 - len(held), rules=AdaptiveRules(), prices={"a": 0.9}, age=0.3)
    assert zones(here) == bought


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


def test_a_dear_zone_that_holds_nothing_moves_nothing() -> None:
    assert fleet(4, "aabb", prices={"a": 0.9, "b": 0.9, "c": 2.0}).plan().actions == ()


def test_after_ten_minutes_the_next_one_moves() -> None:
    here = fleet(4, "aab", prices={"a": 0.9, "b": 0.9, "c": 0.3}).node("b3", SPOT, "b", age=600.0)
    assert zones(here) == "c"
