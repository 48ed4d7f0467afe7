"""Nodes that serve more than one unit: what is bought, given back, disturbed and counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies import economics, explain, invariants
from policies.actions import Alarm, Cause, Drain, Launch, Plan, Start, Terminate
from policies.evidence import Evidence
from policies.invariants import check
from policies.limits import Budget
from policies.memory import Memory
from policies.model import (
    AdaptiveRules,
    Confidence,
    HealthRules,
    InstanceState,
    Limits,
    Market,
    Observed,
    Offering,
    Placement,
    PlacementRules,
    Pool,
    ReturnRules,
    StandbyKind,
    StandbyRules,
    TargetPhase,
    World,
)
from policies.placement import Scorer
from policies.records import OperatorRequest
from policies.regions import Sight
from tests.support.scene import Scene
from tests.support.toy_pools import place

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
UNITS = {"pair": 2, "big": 8}
EVEN = PlacementRules(spread=0.0)


def pool(replicas: int, spot_share: float = 0.0, **changes: Any) -> Pool:
    limits = changes.pop("limits", Limits(surge=16, launches_per_minute=99, disruption=1.0))
    return Pool(name="p", replicas=replicas, spot_share=spot_share, units=UNITS, limits=limits, **changes)


def sold(**prices: float) -> list[Offering]:
    """Types in zones a and b of both markets at a price each."""
    return [
        Offering(placement=place(zone, market, kind), price=price)
        for kind, price in prices.items()
        for market in Market
        for zone in "ab"
    ]


def kinds(plan: Plan) -> list[str]:
    return [a.placement.instance_type for a in plan.actions if isinstance(a, Launch)]


# -- the pool --------------------------------------------------------------------------------------------


def test_a_type_that_is_not_named_serves_one_unit() -> None:
    asked = pool(10)
    assert [asked.units_of(place("a", SPOT, kind)) for kind in ("big", "pair", "gpu")] == [8, 2, 1]
    assert asked.units_of(None) == 1
    assert (asked.largest, asked.weighted, asked.noun(), asked.noun(1)) == (8, True, "units", "unit")
    plain = Pool(name="p", replicas=10, units={"gpu": 1})
    assert (plain.largest, plain.weighted, plain.noun(), plain.noun(1)) == (1, False, "nodes", "node")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"units": {"big": 0}}, "at least one unit"),
        ({"units": {"big": 2}, "adaptive": AdaptiveRules()}, "adaptive mix counts nodes of one unit"),
    ],
)
def test_a_pool_that_cannot_be(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Pool(name="p", replicas=4, **changes)


def test_the_adaptive_mix_takes_units_that_are_all_one() -> None:
    assert not Pool(name="p", replicas=4, units={"gpu": 1}, adaptive=AdaptiveRules()).weighted


# -- which offering --------------------------------------------------------------------------------------


def scorer(
    offerings: list[Offering], *, spread: float = 0.0, held: dict[Placement, int] | None = None
) -> Scorer:
    asked = pool(32, placement=PlacementRules(spread=spread))
    world = World(now=0.0, regions={"": Observed(value=(), at=0.0)})
    sight = Sight(Evidence(asked, world, Memory()), world)
    return Scorer(asked, Memory(), now=0.0, offerings=offerings, held=held or {}, sight=sight)


@pytest.mark.parametrize(
    ("prices", "missing", "chosen"),
    [
        ({"gpu": 1.0, "big": 7.0}, 8, "big"),  # cheaper by the unit
        ({"gpu": 1.0, "big": 9.0}, 8, "gpu"),
        ({"gpu": 1.0, "big": 7.0}, 7, "big"),  # its seven units cost one each: a tie goes by name
        ({"gpu": 1.0, "big": 7.0}, 6, "gpu"),
        ({"gpu": 1.0, "big": 7.0}, 2, "gpu"),  # badly oversized for a small remainder
        ({"gpu": 1.0, "pair": 1.2, "big": 7.0}, 2, "pair"),
        ({"gpu": 1.0, "pair": 0.9, "big": 7.0}, 1, "pair"),  # oversized, and cheaper all the same
        ({"big": 7.0}, 1, "big"),  # nothing else is sold
    ],
)
def test_the_price_of_what_is_needed_decides(prices: dict[str, float], missing: int, chosen: str) -> None:
    offering = scorer(sold(**prices)).take(SPOT, units=missing)
    assert offering is not None
    assert offering.placement.instance_type == chosen


def test_a_large_node_looks_as_dear_as_its_units_one_by_one() -> None:
    """Alone in a zone, the handicaps of the units 0, 1, ... 7 that come before each other."""
    found = scorer([], spread=0.5)
    alone = Offering(placement=place("a", SPOT, "big"), price=8.0)
    one_by_one = sum(1.0 * (1 + 0.5 * before) for before in range(8))
    assert found.score(alone) == pytest.approx(one_by_one)


def test_zones_fill_evenly_by_units() -> None:
    """Where a large node stands a zone looks fuller: small ones go elsewhere until it is even."""
    found = scorer(sold(gpu=1.0), spread=0.5, held={place("a", SPOT, "big"): 8})
    taken = [found.take(SPOT, units=1) for _ in range(10)]
    assert [o.placement.zone for o in taken if o is not None] == ["b"] * 8 + ["a", "b"]


def test_what_the_cap_leaves_room_for_comes_first() -> None:
    """The large node is cheaper by the unit, and would be refused: the small ones are bought."""
    here = Scene(pool(8, placement=EVEN, limits=Limits(surge=16, spend_per_hour=5.0)))
    here.offerings = sold(gpu=1.0, big=6.0)
    plan = here.plan()
    assert kinds(plan) == ["gpu"] * 5
    assert [d.reason for d in plan.deferred] == [
        "the spend cap of 5.00 USD/h leaves 0.00, this node costs 1.00"
    ]


# -- how much is bought ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "bought"),
    [(1, ["gpu"]), (3, ["gpu"] * 3), (8, ["big"]), (9, ["big", "gpu"]), (15, ["big"] * 2), (16, ["big"] * 2)],
)
def test_launches_end_when_the_units_are_there(wanted: int, bought: list[str]) -> None:
    here = Scene(pool(wanted, placement=EVEN), whole_at=None)
    here.offerings = sold(gpu=1.0, big=6.5)
    assert kinds(here.plan()) == bought


def test_what_is_over_counts_for_the_cover() -> None:
    """Floor 3 held by 8 units: the loss of 4 spot units needs no cover at all."""
    here = Scene(pool(7, 0.58, placement=EVEN)).node("o", ON_DEMAND, "a", "big")
    here.offerings = sold(gpu=1.0)
    assert here.pool.on_demand_floor == 3
    assert {a.placement.market for a in here.plan().actions if isinstance(a, Launch)} == {SPOT}


def test_an_open_launch_counts_with_its_units() -> None:
    here = Scene(pool(9)).launching("p/7/1", ON_DEMAND, placement=place("a", ON_DEMAND, "big"))
    here.offerings = sold(gpu=1.0)
    assert (here.fleet.living, here.fleet.counted_by_market[ON_DEMAND]) == (8, 8)
    assert kinds(here.plan()) == ["gpu"]


@pytest.mark.parametrize(("living", "allowed"), [(9, True), (10, False), (17, False)])
def test_a_node_may_live_while_any_of_it_has_room(living: int, allowed: bool) -> None:
    budget = Budget(pool(8, limits=Limits(surge=2)), living=living, launched_last_minute=0, spend=0.0)
    assert (budget.refuses(1.0) == "") is allowed
    budget.take(1.0, 8)
    assert budget.full


# -- what is given back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "gone"),
    [
        (["big", "big"], []),  # 16 of 10: each of them is needed
        (["big", "pair"], []),
        (["big", "pair", "gpu"], ["n2"]),
        (["big", "big", "pair"], ["n1"]),  # 18 of 10: the dearest that fits, the younger of them
        (["pair"] * 5 + ["gpu"], ["n5"]),
        (["gpu"] * 8 + ["big"], ["n7", "n6", "n5", "n4", "n3", "n2"]),  # six over: the large one fits not
    ],
)
def test_only_what_is_wholly_over_goes(held: list[str], gone: list[str]) -> None:
    here = Scene(pool(10))
    prices = {"gpu": 1.0, "pair": 2.0, "big": 8.0}
    for number, kind in enumerate(held):
        here.node(f"n{number}", ON_DEMAND, "a", kind, price=prices[kind], age=1000.0 - number)
    drained = [a.node for a in here.plan().actions if isinstance(a, Drain)]
    assert drained == gone
    assert here.fleet.temporary_on_demand == (0 if not gone else here.fleet.ready_units - 10)


@pytest.mark.parametrize(("kinds", "beyond"), [(["big", "gpu", "gpu"], 1), (["big", "pair"], 0)])
def test_what_is_over_is_temporary_only_if_a_whole_on_demand_node_of_it_could_go(
    kinds: list[str], beyond: int
) -> None:
    """One of ten units is over. A small spot node could go, and is none of them."""
    here = Scene(pool(10, spot_share=0.1))
    for number, kind in enumerate(kinds):
        here.node(f"o{number}", ON_DEMAND, "a", kind)
    here.node("s0", SPOT, "a", "gpu")
    assert here.fleet.counted_by_market[ON_DEMAND] - here.pool.on_demand_floor == 1
    assert here.fleet.temporary_on_demand == beyond


def test_cover_is_given_back_when_its_units_are_not_needed() -> None:
    """Spot of 7 is settled with 8 units; the cover of 8 goes, the floor of 3 (in 4 units) stays."""
    here = Scene(pool(10, 0.7, back_to_spot=ReturnRules(at_once=16)))
    here.node("s", SPOT, "a", "big").node("cover", ON_DEMAND, "b", "big", price=20.0)
    here.node("f0", ON_DEMAND, "a", "pair").node("f1", ON_DEMAND, "b", "pair")
    drains = [a for a in here.plan().actions if isinstance(a, Drain)]
    assert [(a.node, a.cause) for a in drains] == [("cover", Cause.RETURN)]


# -- standbys --------------------------------------------------------------------------------------------


def standby(here: Scene, node: str, kind: str) -> Any:
    stopped = {"standby": StandbyKind.STOPPED, "state": InstanceState.STOPPED, "ready": False}
    return here.node(node, ON_DEMAND, "a", kind, **stopped)


@pytest.mark.parametrize(("missing", "started"), [(1, ["small"]), (2, ["small", "large"]), (8, ["large"])])
def test_standbys_that_fit_are_started_first(missing: int, started: list[str]) -> None:
    here = Scene(pool(missing, standby=StandbyRules(stopped=9)))
    standby(standby(here, "large", "big"), "small", "gpu")
    assert [a.node for a in here.plan().actions if isinstance(a, Start)] == started


@pytest.mark.parametrize(
    ("wanted", "held", "ended"),
    [(8, ["big"], []), (8, ["gpu", "big"], ["k0"]), (2, ["pair", "gpu"], ["k1"]), (3, ["pair", "pair"], [])],
)
def test_standbys_are_kept_by_units(wanted: int, held: list[str], ended: list[str]) -> None:
    here = Scene(pool(1, standby=StandbyRules(stopped=wanted))).node("o", ON_DEMAND)
    for number, kind in enumerate(held):
        standby(here, f"k{number}", kind)
    plan = here.plan()
    assert [a.node for a in plan.actions if isinstance(a, Terminate)] == ended
    assert kinds(plan) == []


# -- disturbing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "most"), [(0.05, 1), (0.5, 1), (1.0, 3)])
def test_the_disruption_budget_counts_units_and_lets_one_node_pass(share: float, most: int) -> None:
    """24 wanted of 48: 1, 12 and 24 units may drain, in nodes of 8; the first may whatever it serves."""
    limits = Limits(surge=40, disruption=share)
    here = Scene(pool(24, limits=limits, back_to_spot=ReturnRules(at_once=99)))
    for number in range(6):
        here.node(f"o{number}", ON_DEMAND, "a", "big")
    drains = [a for a in here.plan().actions if isinstance(a, Drain)]
    assert len(drains) == most


def test_an_operator_waits_for_as_many_units_as_leave() -> None:
    asked = OperatorRequest(since=9_990.0, budget=10.0, reason="asked")
    here = Scene(pool(10)).node("big", ON_DEMAND, "a", "big", operator=asked)
    for number in range(9):
        here.node(f"o{number}", ON_DEMAND)
    assert [a for a in here.plan().actions if isinstance(a, Drain)] == []
    here.node("o9", ON_DEMAND)
    assert [a.node for a in here.plan().actions if isinstance(a, Drain)] == ["big"]


def test_a_doomed_node_serves_on_while_too_few_units_serve_without_it() -> None:
    """Three quarters of 12 are 9: eight small nodes are too few, nine are enough."""
    here = Scene(pool(12, 1.0)).node("big", SPOT, "a", "big").nodes(8)
    here.notice("big", 300.0)
    assert [a for a in here.plan().actions if isinstance(a, Drain)] == []
    here.node("s8")
    assert [a.node for a in here.plan().actions if isinstance(a, Drain)] == ["big"]


def test_reports_are_believed_of_as_many_units_as_may_be_disturbed() -> None:
    here = Scene(pool(20, 1.0, limits=Limits(disruption=0.2)))  # four units
    for node, kind, at in (("a", "pair", 1.0), ("b", "big", 2.0), ("c", "pair", 3.0), ("d", "gpu", 4.0)):
        here.node(node, SPOT, "a", kind)
        here.notice(node, 300.0, confidence=Confidence.REPORTED, seen_at=9_000.0 + at)
    assert [n.id for n in here.fleet.nodes if n.notice is not None] == ["a", "c"]
    alone = Scene(pool(20, 1.0, limits=Limits(disruption=0.2))).node("b", SPOT, "a", "big")
    alone.notice("b", 300.0, confidence=Confidence.REPORTED)
    assert alone.fleet.by_id["b"].notice is not None


def test_silent_nodes_go_for_no_more_units_than_became_ready() -> None:
    """Ten wanted, eight units and two pairs silent: what answers is 2 over, so one pair goes."""
    here = Scene(pool(10, health=HealthRules(max_unhealthy=0.3)))
    here.node("big", ON_DEMAND, "a", "big", silent_for=100.0)
    here.node("p0", ON_DEMAND, "a", "pair", silent_for=90.0).node(
        "p1", ON_DEMAND, "a", "pair", silent_for=80.0
    )
    here.node("o0", ON_DEMAND)
    plan = here.plan()
    assert [a.name for a in plan.actions if isinstance(a, Alarm)] == ["TooManyUnhealthy"]
    assert [a.node for a in plan.actions if isinstance(a, Drain)] == ["p0"]


# -- what is told and what it costs ----------------------------------------------------------------------


def test_a_target_weighs_what_its_node_serves() -> None:
    here = Scene(pool(11)).node("big", ON_DEMAND, "a", "big").node("pair", ON_DEMAND, "a", "pair")
    here.node("one", ON_DEMAND).node("out", ON_DEMAND, "a", "pair").drain("out", Cause.SICK)
    found = {t.id: (t.phase, t.weight) for t in here.plan().targets}
    active, draining = TargetPhase.ACTIVE, TargetPhase.DRAINING
    assert found == {
        "big": (active, 800),
        "pair": (active, 200),
        "one": (active, 100),
        "out": (draining, 200),
    }


def test_savings_are_measured_by_the_unit() -> None:
    here = Scene(pool(10)).node("big", ON_DEMAND, "a", "big", price=4.0)
    here.offerings = sold(gpu=1.0, big=4.0)
    found = economics.rate(here.fleet)
    assert (found.cost, found.on_demand) == (4.0, 5.0)


def test_it_says_units_where_they_differ_from_nodes() -> None:
    here = Scene(pool(10, 0.5)).node("o", ON_DEMAND, "a", "big").node("s", SPOT, "a", "pair")
    assert explain.pool_sentences(here.fleet, here.world, here.memory)[:3] == (
        "10 units are wanted: 5 spot and 5 on-demand (50% spot, the on-demand share rounded up).",
        "10 are ready: 2 spot and 8 on-demand.",
        "2 nodes serve them: a node of big 8, of pair 2, of any other type 1.",
    )
    assert "It serves 8 units." in explain.node_sentences(here.fleet.by_id["o"], here.memory, here.now)


# -- invariants ------------------------------------------------------------------------------------------


def broken(here: Scene, *actions: Any) -> list[str]:
    leaving = {a.node for a in actions if isinstance(a, Drain)}
    plan = Plan(actions=actions, targets=tuple(t for t in here.plan().targets if t.id not in leaving))
    return [str(v) for v in check(here.pool, here.world, here.fleet, here.memory, plan)]


def launch(kind: str, serial: int = 1) -> Launch:
    token, where = f"p/7/{serial}", place("a", ON_DEMAND, kind)
    return Launch(token=token, placement=where, price=1.0, cause=Cause.SHORT, reason="")


def drain(node: str) -> Drain:
    return Drain(node=node, deadline=10_030.0, cause=Cause.EXCESS, reason="")


def test_the_last_node_may_go_over_and_no_further_one() -> None:
    here = Scene(pool(8, limits=Limits(surge=2))).node("big", ON_DEMAND, "a", "big")
    assert broken(here, launch("big")) == []
    assert broken(here, launch("gpu"), launch("big", 2)) == []
    assert broken(here, launch("big"), launch("gpu", 2)) == []  # in whichever order they were decided
    assert broken(here, launch("big"), launch("big", 2)) == ["surplus: 24 units would live, the most is 10"]


def test_leaving_too_few_units_is_a_violation() -> None:
    here = Scene(pool(10)).node("big", ON_DEMAND, "a", "big").nodes(3, ON_DEMAND)
    assert broken(here, drain("o0")) == []
    assert [text.partition(":")[0] for text in broken(here, drain("big"))] == ["self-harm", "floor"]


def test_disturbing_too_many_units_is_a_violation() -> None:
    here = Scene(pool(10, limits=Limits(surge=9, disruption=0.3))).node("big", ON_DEMAND, "a", "big")
    here.nodes(16, ON_DEMAND)
    assert broken(here, drain("big")) == []
    assert broken(here, *(drain(f"o{n}") for n in range(3))) == []
    assert broken(here, drain("big"), drain("o0")) == [
        "disruption: 9 units would drain by choice, the budget is 3"
    ]


def test_units_that_change_need_no_new_journal() -> None:
    """What a node serves is the configuration's word, not the journal's."""
    here = Scene(pool(10)).node("big", ON_DEMAND, "a", "big")
    assert here.fleet.ready_units == 8
    here.pool = replace(here.pool, units={"big": 4})
    assert here.fleet.ready_units == 4
    assert invariants.check(here.pool, here.world, here.fleet, here.memory, here.plan()) == ()
