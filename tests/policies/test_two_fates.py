"""Two nodes of different fates in one scene: what holds of the first one says nothing of the next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies import observations
from policies.actions import ActionKind, Cause, Drain, Launch, Start, Stop, Terminate, Undrain
from policies.events import NodeGone, NodeMissing, NodeSeen
from policies.model import (
    InstanceState,
    Limits,
    Market,
    NoticeKind,
    Pool,
    RebalanceRules,
    ReturnRules,
    StandbyKind,
    StandbyRules,
    Target,
    TargetState,
)
from policies.records import OperatorRequest
from policies.return_to_spot import least_useful
from policies.standby import _standbys
from tests.support.scene import Scene
from tests.support.toy_pools import ON_DEMAND, SPOT, of_kind


def done(here: Scene, node: str, market: Market = ON_DEMAND, *, age: float) -> Scene:
    """A surplus node whose drain is over: out of every set, and idle for long."""
    here.node(node, market, age=age, idle_since=here.now - 30.0).drain(
        node, Cause.EXCESS, since=40.0, left=-10.0
    )
    del here.held[node], here.shown[node]
    return here


# -- drained nodes end, whatever older ones do ----------------------------------------------------------


def older(here: Scene, fate: str) -> Scene:
    """A node that is older than all others and of which `end_drained` has nothing to end."""
    match fate:
        case "it ends already":
            here.node("old", ON_DEMAND, age=9_000.0, state=InstanceState.SHUTTING_DOWN, serving=False)
        case "its end was asked for":
            here.node("old", ON_DEMAND, age=9_000.0, serving=False).asked("old", ActionKind.TERMINATE)
        case "it works":
            here.node("old", ON_DEMAND, age=9_000.0)
        case "it is gone":
            here.node("old", ON_DEMAND, age=9_000.0, state=InstanceState.TERMINATED, serving=False)
            here.drain("old", Cause.EXCESS, since=40.0, left=-10.0)
        case "it holds requests":
            here.node("old", ON_DEMAND, age=9_000.0, in_flight=2).drain("old", Cause.EXCESS)
        case "a notice is over":
            here.node("old", ON_DEMAND, age=9_000.0).drain("old", Cause.NOTICE)
    return here


@pytest.mark.parametrize(
    "fate",
    [
        "it ends already",
        "its end was asked for",
        "it works",
        "it is gone",
        "it holds requests",
        "a notice is over",
    ],
)
def test_a_drained_node_ends_whatever_an_older_one_does(fate: str) -> None:
    here = done(older(Scene().nodes(3).nodes(3, ON_DEMAND), fate), "young", age=500.0)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["young"]


def test_of_two_drained_nodes_the_one_that_is_not_needed_ends() -> None:
    """The older one is on demand, and what stays of it is too little; the younger one is spot."""
    here = Scene(Pool(name="p", replicas=4)).nodes(5).nodes(1, ON_DEMAND)
    done(here, "needed", age=9_000.0)
    done(here, "spare", SPOT, age=500.0)
    assert here.pool.on_demand_floor == 2
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["spare"]


# -- notices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["drains", "is ending", "may wait"])
def test_a_notice_is_acted_on_whatever_becomes_of_one_with_an_earlier_deadline(first: str) -> None:
    here = Scene(Pool(name="p", replicas=4, limits=Limits(surge=4))).nodes(4).nodes(1, ON_DEMAND)
    here.node("early", age=5_000.0)
    here.notice("early", 60.0)
    if first == "drains":
        here.drain("early", Cause.NOTICE)
    elif first == "is ending":
        here.instances["early"] = replace(here.instances["early"], state=InstanceState.SHUTTING_DOWN)
    here.notice("s0", 100.0)
    drains = {a.node for a in of_kind(here.plan(), Drain)}
    assert "s0" in drains
    assert ("early" in drains) is (first == "may wait")


def test_the_oldest_recommendation_of_a_node_decides_whose_turn_it_is() -> None:
    """A new one for the same node does not put it behind others: it has waited for longer."""
    pool = Pool(name="p", replicas=4, spot_share=1.0, rebalance=RebalanceRules(replace=True))
    here = Scene(pool).nodes(5)
    here.notice("s1", None, kind=NoticeKind.REBALANCE, seen_at=here.now - 50.0)
    for ago in (90.0, 1.0):
        here.notice("s2", None, kind=NoticeKind.REBALANCE, seen_at=here.now - ago, id=f"again-{ago}")
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["s2"]


# -- standbys --------------------------------------------------------------------------------------------


def two_standbys(here: Scene) -> Scene:
    for node, age in (("sb0", 900.0), ("sb1", 800.0)):
        here.node(
            node, ON_DEMAND, state=InstanceState.STOPPED, ready=False, serving=False, age=age,
            standby=StandbyKind.STOPPED,
        )  # fmt: skip
    return here


@pytest.mark.parametrize("standbys", [1, 2])
def test_a_standby_is_started_once_and_counts_once(standbys: int) -> None:
    """On-demand nodes are missing for the floor and, by another rule of the same turn, as cover for spot."""
    here = two_standbys(Scene(Pool(name="p", replicas=4, standby=StandbyRules(stopped=2))).nodes(1))
    if standbys == 1:
        del here.records["sb1"], here.instances["sb1"]
    missing = 3
    plan = here.plan()
    starts = [a.node for a in of_kind(plan, Start)]
    assert starts == ["sb0", "sb1"][:standbys]
    bought = [a for a in of_kind(plan, Launch) if a.placement.market is ON_DEMAND and a.standby is None]
    assert len(starts) + len(bought) == missing


def test_a_standby_that_may_not_be_started_keeps_no_other_one_from_it() -> None:
    here = two_standbys(Scene(Pool(name="p", replicas=4, standby=StandbyRules(stopped=2))).nodes(2))
    here.nodes(1, ON_DEMAND)
    here.records["sb0"] = replace(here.records["sb0"], denied_at=here.now - 10.0)
    assert [a.node for a in of_kind(here.plan(), Start)] == ["sb1"]


def test_a_warm_standby_is_stopped_whatever_an_older_one_does() -> None:
    here = two_standbys(Scene(Pool(name="p", replicas=4, standby=StandbyRules(stopped=2))).nodes(2))
    here.nodes(2, ON_DEMAND)
    here.node("sb1", ON_DEMAND, serving=False, age=800.0, standby=StandbyKind.STOPPED)
    assert [a.node for a in of_kind(here.plan(), Stop)] == ["sb1"]


def test_a_start_is_repeated_only_for_a_node_that_is_still_stopped() -> None:
    """The call of one that boots by now is open until the node answers; to ask again would change nothing."""
    here = Scene().nodes(1).nodes(1, ON_DEMAND)
    for node, state in (("boots", InstanceState.RUNNING), ("stopped", InstanceState.STOPPED)):
        here.node(node, ON_DEMAND, ready=False, state=state, age=200.0, serving=False)
        here.asked(node, ActionKind.START, ago=100.0)
    assert [a.node for a in of_kind(here.plan(), Start)] == ["stopped"]


# -- silence ---------------------------------------------------------------------------------------------


def test_in_a_partition_a_noticed_node_is_no_reason_to_let_a_silent_one_go() -> None:
    """It answers and will be gone: it makes room for nobody. Another one that stays does."""
    here = Scene(Pool(name="p", replicas=10)).nodes(4).nodes(2, ON_DEMAND)
    here.nodes(4, prefix="x", silent_for=60.0).node("leaving")
    here.notice("leaving", 600.0)
    assert here.fleet.suspect
    assert [a.node for a in of_kind(here.plan(), Drain) if a.cause is Cause.SICK] == []
    here.node("staying")
    assert [a.node for a in of_kind(here.plan(), Drain) if a.cause is Cause.SICK] == ["x0"]


def test_in_a_partition_the_silent_nodes_that_are_leaving_anyway_are_not_chosen() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(4).nodes(3, ON_DEMAND)
    here.nodes(4, prefix="x", silent_for=60.0).node(
        "gone", silent_for=99.0, state=InstanceState.SHUTTING_DOWN
    )
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["x0"]


# -- the disruption budget -------------------------------------------------------------------------------


def test_a_node_that_ends_already_uses_up_no_disruption_budget() -> None:
    """It drained by choice and its end was asked for: it serves nobody, so another one may drain."""
    pool = Pool(name="p", replicas=10, limits=Limits(disruption=0.1), back_to_spot=ReturnRules(at_once=9))
    here = Scene(pool).nodes(7).nodes(4, ON_DEMAND).node("x", ON_DEMAND).drain("x", Cause.RETURN)
    assert of_kind(here.plan(), Drain) == []
    here.asked("x", ActionKind.TERMINATE)
    assert len(of_kind(here.plan(), Drain)) == 1


def test_one_operators_drain_waits_for_the_budget_and_one_for_nobody() -> None:
    """The first one serves, and another drains by choice already; the next never took a request."""
    pool = Pool(name="p", replicas=10, limits=Limits(disruption=0.1))
    here = Scene(pool).nodes(8).nodes(4, ON_DEMAND).node("x", ON_DEMAND).drain("x", Cause.OPERATOR)
    asked = OperatorRequest(since=here.now - 10.0, budget=20.0, reason="maintenance")
    here.records["x"] = replace(here.records["x"], operator=asked)
    here.node("busy", ON_DEMAND, age=5_000.0, operator=asked)
    here.node("boots", ON_DEMAND, age=100.0, ready=False, operator=asked)
    assert [a.node for a in of_kind(here.plan(), Drain) if a.cause is Cause.OPERATOR] == ["boots"]


# -- giving back -----------------------------------------------------------------------------------------


def test_what_leaves_for_another_reason_is_not_given_back_as_well() -> None:
    """Surplus by count, and one of it drains in this very turn since an operator asked."""
    pool = Pool(name="p", replicas=4, spot_share=0.0, limits=Limits(disruption=1.0))
    here = Scene(pool).nodes(7, ON_DEMAND)
    here.node("late", ON_DEMAND, ready=False, age=2_000.0)  # never ready: its boot is given up
    plan = here.plan()
    going = [a.node for a in plan.actions if isinstance(a, Drain | Terminate)]
    assert "late" in going
    assert len(going) == len(set(going)) == 4


def test_a_node_too_large_to_go_keeps_no_smaller_one() -> None:
    pool = Pool(
        name="p", replicas=4, spot_share=0.0, units={"gpu": 1, "big": 4}, limits=Limits(disruption=1.0)
    )
    here = Scene(pool).nodes(2, ON_DEMAND).node("big", ON_DEMAND, kind="big", price=99.0)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["o1"] or len(of_kind(here.plan(), Drain)) == 2
    assert "big" not in {a.node for a in of_kind(here.plan(), Drain)}


def test_two_that_drain_to_save_money_come_back_before_anything_is_bought() -> None:
    """The first one to look at is of the other market, the next one answers."""
    here = Scene(Pool(name="p", replicas=4)).nodes(2).nodes(1, ON_DEMAND)
    here.node("spot", age=5_000.0).drain("spot", Cause.EXCESS)
    here.node("cover", ON_DEMAND, age=500.0).drain("cover", Cause.RETURN)
    for node in ("spot", "cover"):
        here.shown.pop(node)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["cover"]
    assert of_kind(plan, Launch) == []


# -- what lists lack -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("missing", "gone"), [(1, 1), (2, 0)])
def test_in_a_small_pool_two_that_a_list_lacks_put_the_list_in_doubt_and_one_does_not(
    missing: int, gone: int
) -> None:
    here = Scene(Pool(name="p", replicas=3)).nodes(3 - missing)
    for i in range(missing):
        here.node(f"x{i}", listed=False, silent_for=60.0, vouched=False, missing_since=here.now - 60.0)
    found = observations.changes(here.pool, here.world, here.memory)
    assert len([e for e in found if isinstance(e, NodeGone)]) == gone
    here.now += 100.0
    for i in range(missing):
        here.engines[f"x{i}"] = replace(here.engines[f"x{i}"], at=here.now)
    found = observations.changes(here.pool, here.world, here.memory)
    assert len([e for e in found if isinstance(e, NodeGone)]) == missing


def test_every_node_that_a_list_lacks_is_noticed_at_once() -> None:
    """Each has its own patience from this turn on, whatever became of the one before it."""
    here = Scene(Pool(name="p", replicas=10)).nodes(7)
    here.node("a", listed=False, silent_for=60.0, vouched=False)
    here.node("b", listed=False, silent_for=60.0, vouched=False, missing_since=here.now - 60.0)
    here.node("c", listed=False, silent_for=60.0, vouched=False)
    found = observations.changes(here.pool, here.world, here.memory)
    assert [(type(e), e.node) for e in found if isinstance(e, NodeMissing | NodeGone)] == [
        (NodeMissing, "a"),
        (NodeGone, "b"),
        (NodeMissing, "c"),
    ]


@pytest.mark.parametrize("shown", [*TargetState, None])
def test_with_the_journal_lost_a_standby_that_a_balancer_knows_is_no_spare(shown: TargetState | None) -> None:
    """Its tag says what it was launched for; the one beside it, which no balancer knows, is a spare."""
    here = Scene(Pool(name="p", replicas=2, standby=StandbyRules(stopped=2)))
    for node in ("works", "spare"):
        here.node(
            node, ON_DEMAND, serving=False, standby=StandbyKind.STOPPED, token=f"p/3/{len(here.records)}"
        )
    if shown is not None:
        here.shown["works"] = Target(id="works", address="works:1", state=shown)
    here.records.clear()
    spare = StandbyKind.STOPPED if shown in (TargetState.UNUSED, None) else None
    seen = {
        e.node: e.standby
        for e in observations.changes(here.pool, here.world, here.memory)
        if isinstance(e, NodeSeen)
    }
    assert seen == {"works": spare, "spare": StandbyKind.STOPPED}


def recalled(silent_for: float | None = None) -> Scene:
    """One on-demand node is missing, and two drain to save money, out of every target set."""
    here = Scene(Pool(name="p", replicas=4)).nodes(2).nodes(1, ON_DEMAND)
    for node, age in (("x", 5_000.0), ("y", 400.0)):
        here.node(node, ON_DEMAND, age=age, silent_for=silent_for).drain(node, Cause.RETURN)
        here.shown.pop(node)
    return here


def test_of_two_that_drain_to_save_money_as_many_come_back_as_are_missing() -> None:
    plan = recalled().plan()
    assert len(of_kind(plan, Undrain)) == 1
    assert of_kind(plan, Launch) == []


def test_what_fails_to_answer_does_not_come_back_and_is_bought() -> None:
    plan = recalled(silent_for=1.0).plan()
    assert of_kind(plan, Undrain) == []
    assert [a.placement.market for a in of_kind(plan, Launch)] == [ON_DEMAND]


def test_surplus_of_which_the_price_is_not_known_is_given_back_after_the_dear_ones() -> None:
    pool = Pool(name="p", replicas=2, spot_share=0.0, limits=Limits(disruption=0.5))
    here = Scene(pool, prices={}).nodes(2, ON_DEMAND, price=3.0)
    here.offerings = []
    here.node("x", ON_DEMAND, price=0.0)
    here.instances["x"] = replace(here.instances["x"], price=None)
    assert here.fleet.by_id["x"].price is None
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["o0"]


def test_a_spot_node_that_drains_to_save_money_comes_back_before_spot_is_bought() -> None:
    here = Scene(Pool(name="p", replicas=4)).nodes(1).nodes(2, ON_DEMAND)
    here.node("x").drain("x", Cause.EXCESS)
    here.shown.pop("x")
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["x"]
    assert [a for a in of_kind(plan, Launch) if a.placement.market is SPOT] == []


def test_a_standby_that_leaves_or_is_started_in_this_turn_is_none_that_stays() -> None:
    turn = two_standbys(Scene(Pool(name="p", replicas=4, standby=StandbyRules(stopped=2))).nodes(4)).turn()
    assert [n.id for n in _standbys(turn)] == ["sb0", "sb1"]
    turn.starting.add("sb0")
    assert [n.id for n in _standbys(turn)] == ["sb1"]
    turn.leaving.add("sb1")
    assert _standbys(turn) == []


def test_a_node_of_unknown_price_is_thought_cheap() -> None:
    here = Scene().node("s0", price=0.5).node("s1", price=0.2).node("s2")
    here.offerings, here.fields["prices"] = [], {}
    here.records["s2"] = replace(here.records["s2"], price=None)
    here.instances["s2"] = replace(here.instances["s2"], price=None)
    assert [n.id for n in sorted(here.fleet.nodes, key=least_useful)] == ["s0", "s1", "s2"]
