"""Giving surplus back: slowly, after a while, and never below wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.actions import Cause, Drain, Launch, Terminate, Undrain
from policies.model import Limits, Market, Pool, ReturnRules, StandbyRules, TargetPhase
from policies.records import OperatorRequest
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND


def ten(**more: Any) -> Pool:
    return Pool(**{"name": "p", "replicas": 10, **more})


def drained(plan: Any) -> list[tuple[str, Cause]]:
    return [(a.node, a.cause) for a in plan.actions if isinstance(a, Drain)]


def ended(plan: Any) -> list[str]:
    return [a.node for a in plan.actions if isinstance(a, Terminate)]


def test_a_whole_pool_gives_nothing_back() -> None:
    assert Scene(ten()).nodes(7).nodes(3, ON_DEMAND).plan().actions == ()


@pytest.mark.parametrize(("ready_for", "back"), [(0.0, False), (29.0, False), (30.0, True), (900.0, True)])
def test_cover_goes_once_its_spot_node_has_been_ready_for_the_stable_time(
    ready_for: float, back: bool
) -> None:
    here = Scene(ten()).nodes(6).nodes(4, ON_DEMAND)
    here.node("new", ready_at=here.now - ready_for)
    assert bool(drained(here.plan())) is back
    if back:
        assert drained(here.plan())[0][1] is Cause.RETURN


def test_spot_nodes_settle_one_by_one() -> None:
    """In a large pool some spot node is always young; it holds back its own cover and no other."""
    here = Scene(ten(limits=Limits(disruption=0.5))).nodes(5).nodes(5, ON_DEMAND)
    here.node("old", ready_at=here.now - 500.0).node("young", ready_at=here.now - 5.0)
    assert len(drained(here.plan())) == 1


def test_the_dearest_goes_first_then_the_idlest_then_the_youngest() -> None:
    pool = ten(limits=Limits(disruption=1.0), back_to_spot=ReturnRules(at_once=9))
    here = Scene(pool).nodes(7).nodes(3, ON_DEMAND, price=3.0)
    here.node("dear", ON_DEMAND, price=4.0).node("idle", ON_DEMAND, in_flight=0, age=500.0)
    for i in range(3):
        here.node(f"o{i}", ON_DEMAND, in_flight=5)
    here.node("young", ON_DEMAND, in_flight=0, age=400.0)
    assert [node for node, _ in drained(here.plan())] == ["dear", "young", "idle"]


@pytest.mark.parametrize(("at_once", "disruption", "most"), [(2, 0.5, 2), (9, 0.1, 1), (9, 0.3, 3)])
def test_cover_goes_no_faster_than_both_limits_allow(at_once: int, disruption: float, most: int) -> None:
    pool = ten(limits=Limits(disruption=disruption), back_to_spot=ReturnRules(at_once=at_once))
    here = Scene(pool).nodes(7).nodes(9, ON_DEMAND)
    assert len(drained(here.plan())) == most
    here.drain("o8", Cause.RETURN)
    assert len(drained(here.plan())) == most - 1


def test_cover_that_fell_silent_while_it_drains_still_counts_as_leaving() -> None:
    """It may be only this host that cannot reach it."""
    here = Scene(ten()).nodes(7).nodes(4, ON_DEMAND).node("x", ON_DEMAND, silent_for=60.0)
    here.drain("x", Cause.RETURN, since=70.0, left=5.0)
    assert drained(here.plan()) == []
    del here.records["x"]
    assert len(drained(here.plan())) == 1


def test_never_below_wanted() -> None:
    here = Scene(ten()).nodes(7).nodes(4, ON_DEMAND)
    here.node("s0", silent_for=1.0)  # a failed probe is enough to stop counting on it
    assert drained(here.plan()) == []


def test_never_below_the_floor() -> None:
    here = Scene(ten()).nodes(9).nodes(4, ON_DEMAND, silent_for=1.0)
    plan = here.plan()
    assert not any(node.startswith("o") for node, _ in drained(plan))
    assert any("is surplus and stays" in note for note in plan.notes)


def test_doomed_nodes_do_not_count() -> None:
    here = Scene(ten()).nodes(7).nodes(4, ON_DEMAND)
    here.notice("s0")
    assert all(cause is Cause.NOTICE for _, cause in drained(here.plan()))


def test_surplus_that_is_not_ready_ends_at_once() -> None:
    here = Scene(ten()).nodes(7).nodes(3, ON_DEMAND).node("late", ON_DEMAND, ready=False, age=30.0)
    assert ended(here.plan()) == ["late"]


def test_surplus_that_is_not_ready_stays_while_the_floor_has_too_few_that_answer() -> None:
    here = Scene(ten()).nodes(8).nodes(3, ON_DEMAND).node("late", ON_DEMAND, ready=False, age=30.0)
    here.node("o0", ON_DEMAND, silent_for=1.0)
    assert ended(here.plan()) == []


def test_cover_that_is_starting_stays_while_spot_is_only_coming() -> None:
    here = Scene(ten(), whole_at=None).nodes(3, ON_DEMAND)
    for i in range(7):
        here.node(f"cover{i}", ON_DEMAND, ready=False, age=60.0)
        here.launching(f"x{i}", SPOT)
    assert ended(here.plan()) == []


def test_spot_that_stands_in_stays_until_on_demand_is_ready() -> None:
    here = Scene(ten()).nodes(7)
    for i in range(3):
        here.node(f"in{i}", ready=False, age=10.0).launching(f"x{i}", ON_DEMAND)
    assert ended(here.plan()) == []
    here.nodes(3, ON_DEMAND)
    here.fields["intents"] = {}
    assert sorted(ended(here.plan())) == ["in0", "in1", "in2"]


def test_what_nobody_looked_at_since_the_start_is_not_given_back() -> None:
    here = (
        Scene(ten())
        .nodes(7)
        .nodes(3, ON_DEMAND)
        .node("adopted", ON_DEMAND, ready=False, probed=False, token="p/6/1")
    )
    assert here.fleet.by_id["adopted"].may_be_at_work
    assert here.plan().actions == ()


@pytest.mark.parametrize(("watched", "gone"), [(5.0, False), (60.0, True)])
def test_what_an_earlier_daemon_launched_is_no_surplus_boot_before_it_was_watched(
    watched: float, gone: bool
) -> None:
    """With an old journal it may be at work: one look that failed does not tell."""
    here = Scene(ten()).nodes(7).nodes(3, ON_DEMAND)
    here.node("adopted", ON_DEMAND, ready=False, age=watched, token="p/6/1")
    assert ended(here.plan()) == (["adopted"] if gone else [])


def test_a_cordoned_node_is_no_surplus() -> None:
    here = Scene(ten()).nodes(8).nodes(3, ON_DEMAND)
    request = OperatorRequest(since=here.now, budget=9.0, reason="asked")
    here.records["s0"] = replace(here.records["s0"], operator=request)
    assert drained(here.plan()) == [("s0", Cause.OPERATOR)]  # its replacement is there already


def test_surplus_of_each_market_is_judged_by_itself() -> None:
    """On-demand that must stay does not keep spot that may go."""
    here = Scene(Pool(name="p", replicas=4, limits=Limits(disruption=1.0))).nodes(6).nodes(2, ON_DEMAND)
    assert [node for node, _ in drained(here.plan())] == ["s0", "s1", "s2", "s3"]


def test_what_goes_in_a_turn_counts_for_what_may_go_after_it() -> None:
    """Two that nobody has looked at make it look like a surplus of three; only one of it may be relied on."""
    here = Scene(Pool(name="p", replicas=4, limits=Limits(disruption=1.0))).nodes(3).nodes(2, ON_DEMAND)
    here.node("x", ready=False, probed=False).node("y", ready=False, probed=False)
    assert len(drained(here.plan())) == 1


def test_what_comes_back_from_a_drain_is_relied_on_only_when_it_is_a_target_again() -> None:
    """Else one that serves goes for it, is put back since it does not serve, and it goes, in turns."""
    here = Scene(Pool(name="p", replicas=2, spot_share=0.0)).nodes(2, ON_DEMAND)
    here.node("x", ON_DEMAND, serving=False).drain("x", Cause.NOTICE)  # its notice is no more
    plan = here.plan()
    assert [a.node for a in plan.actions if isinstance(a, Undrain)] == ["x"]
    assert drained(plan) == []
    here.held["x"] = TargetPhase.ACTIVE
    assert len(drained(here.plan())) == 1


def test_hot_standby_is_no_surplus() -> None:
    here = Scene(ten(standby=StandbyRules(hot=1))).nodes(7).nodes(4, ON_DEMAND)
    assert here.plan().actions == ()


def test_a_pool_that_shrank_gives_back_as_excess_without_waiting() -> None:
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0), replicas=4, whole_at=9_999.0).nodes(6, ON_DEMAND)
    assert [cause for _, cause in drained(here.plan())] == [Cause.EXCESS]


def test_nothing_is_given_back_while_the_view_is_old() -> None:
    here = Scene(ten()).nodes(7).nodes(5, ON_DEMAND)
    here.settings["durable"] = False
    plan = here.plan()
    assert drained(plan) == []
    assert [d.reason for d in plan.deferred] == ["the journal cannot be written"]
    assert not [a for a in plan.actions if isinstance(a, Launch)]


def test_a_silent_node_that_answers_again_is_quicker_than_a_launch() -> None:
    here = Scene(ten()).nodes(7).nodes(2, ON_DEMAND).node("back", ON_DEMAND).drain("back", Cause.SICK)
    plan = here.plan()
    assert [a.node for a in plan.actions if isinstance(a, Undrain)] == ["back"]
    assert not any(isinstance(a, Launch) for a in plan.actions)
    here = Scene(ten()).nodes(7).nodes(2, ON_DEMAND).node("away", ON_DEMAND, silent_for=60.0)
    here.drain("away", Cause.SICK)
    assert not any(isinstance(a, Undrain) for a in here.plan().actions)


def test_what_drains_is_put_back_also_where_no_further_node_may_live() -> None:
    """Else one that may not end, since it is needed, would neither work nor end for ever."""
    here = (
        Scene(Pool(name="p", replicas=2, spot_share=0.0, limits=Limits(surge=0))).nodes(1).nodes(2, ON_DEMAND)
    )
    here.drain("o1", Cause.EXCESS, since=60.0, left=-30.0)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["o1"]
    assert of_kind(plan, Launch) == []
