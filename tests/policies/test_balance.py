"""The wanted target set, and which balancers are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from policies.actions import Attach, Cause, Detach
from policies.model import (
    InstanceState,
    Market,
    Observed,
    Pool,
    StandbyKind,
    Target,
    TargetPhase,
    TargetState,
)

Make = Callable[..., Any]
ACTIVE, DRAINING = TargetPhase.ACTIVE, TargetPhase.DRAINING


def phases(plan: Any) -> dict[str, TargetPhase]:
    return {t.id: t.phase for t in plan.targets}


@pytest.mark.parametrize(
    ("node", "phase"),
    [
        ({}, ACTIVE),
        ({"serving": False}, ACTIVE),
        ({"ready": False}, None),
        ({"ready": False, "state": InstanceState.PENDING}, None),
        ({"silent_for": 2.0}, ACTIVE),
        ({"silent_for": 6.0}, None),
        ({"standby": StandbyKind.STOPPED, "serving": False}, None),
        ({"state": InstanceState.SHUTTING_DOWN, "serving": True}, None),
        ({"state": InstanceState.TERMINATED, "serving": True}, None),
        ({"state": InstanceState.STOPPED, "serving": True}, None),
        ({"probed": False}, ACTIVE),
        ({"probed": False, "listed": False, "age": 100.0}, ACTIVE),  # one list may lack a page
        ({"probed": False, "listed": False, "vouched": False}, None),
        ({"address": ""}, None),
        # Put to work by a daemon whose journal is lost: one look that fails does not take it out.
        ({"ready": False, "serving": True, "vouched": True}, ACTIVE),
        ({"ready": False, "serving": True, "vouched": False}, None),
    ],
    ids=str,
)
def test_who_belongs(scene: Make, node: dict[str, Any], phase: TargetPhase | None) -> None:
    here = scene(Pool(name="p", replicas=9)).nodes(8).node("x", Market.ON_DEMAND, **node)
    if node.get("address") == "":
        here.instances["x"] = replace(here.instances["x"], address="")
    assert phases(here.plan()).get("x") is phase


def test_a_draining_node_stays_as_one_that_drains_until_it_is_out(scene: Make) -> None:
    here = scene().nodes(5).drain("s4", Cause.EXCESS, left=20.0)
    plan = here.plan()
    spec = next(t for t in plan.targets if t.id == "s4")
    assert (spec.phase, spec.drain_deadline) == (DRAINING, here.now + 20.0)
    del here.held["s4"]  # never was a target, or is out already
    assert "s4" not in phases(here.plan())


def test_a_node_that_begins_to_drain_is_out_in_the_same_turn(scene: Make, actions: Make) -> None:
    here = scene().nodes(4)
    here.notice("s0", 60.0)
    plan = here.plan()
    assert phases(plan)["s0"] is DRAINING
    assert plan.write == ("gw",)
    (detach,) = actions(plan, Detach)
    assert (detach.node, detach.reason) == ("s0", "interruption notice (feed), 60 s left")


def test_a_node_that_ends_in_this_turn_is_out_altogether(scene: Make) -> None:
    here = scene().nodes(5).drain("s4", Cause.EXCESS)
    here.records["s4"] = replace(here.records["s4"], idle_since=here.now - 9.0)
    assert "s4" not in phases(here.plan())


def test_changes_are_said(scene: Make, actions: Make) -> None:
    here = scene(Pool(name="p", replicas=9)).nodes(3).node("new", serving=False)
    here.node("sick", silent_for=8.0)
    plan = here.plan()
    assert [(a.node, a.reason) for a in actions(plan, Attach)] == [("new", "ready")]
    assert [(a.node, a.reason) for a in actions(plan, Detach)] == [("sick", "connection refused")]


def test_the_set_is_sorted_and_whole(scene: Make) -> None:
    here = scene().nodes(4, prefix="z").nodes(2, prefix="a")
    ids = [t.id for t in here.plan().targets]
    assert ids == sorted(ids)
    assert len(ids) == 6


# -- the last one --------------------------------------------------------------------------------------


def test_the_last_node_that_serves_stays_although_it_drains(scene: Make) -> None:
    here = scene(Pool(name="p", replicas=1)).nodes(1)
    here.notice("s0", 20.0)
    plan = here.plan()
    assert phases(plan) == {"s0": ACTIVE}
    assert not plan.write
    here.node("new", Market.ON_DEMAND)
    assert phases(here.plan()) == {"new": ACTIVE, "s0": DRAINING}


def test_of_several_that_must_go_the_one_with_the_latest_deadline_stays(scene: Make) -> None:
    here = scene(Pool(name="p", replicas=3)).nodes(3)
    for i, lead in enumerate((10.0, 30.0, 20.0)):
        here.notice(f"s{i}", lead)
    active = [i for i, phase in phases(here.plan()).items() if phase is ACTIVE]
    assert active == ["s1"]


def test_one_that_can_answer_stays_rather_than_one_that_cannot(scene: Make) -> None:
    here = scene(Pool(name="p", replicas=2)).node("a", silent_for=60.0).node("b")
    here.notice("a", 300.0)
    here.notice("b", 5.0)
    assert phases(here.plan())["b"] is ACTIVE


def test_with_nobody_left_the_set_is_empty(scene: Make) -> None:
    here = scene(Pool(name="p", replicas=1)).node("a", state=InstanceState.TERMINATED, serving=True)
    plan = here.plan()
    assert plan.targets == ()
    assert plan.write == ("gw",)


# -- writing -------------------------------------------------------------------------------------------


def test_a_set_that_is_acknowledged_and_shown_is_not_written(scene: Make) -> None:
    assert scene().nodes(4).plan().write == ()


def shown(here: Any, changes: dict[str, TargetState | None], *, at: float | None = None) -> Any:
    """The balancer shows something else than it acknowledged."""
    for node, state in changes.items():
        if state is None:
            here.shown.pop(node)
        else:
            here.shown[node] = Target(id=node, address=f"{node}:1", state=state)
    view = Observed(value=tuple(here.shown.values()), at=here.now if at is None else at)
    here.settings["balancers"] = {"gw": view}
    return here


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({"s0": None}, True),
        ({"s0": TargetState.DRAINING}, True),
        ({"s0": TargetState.UNUSED}, True),
        ({"foreign": TargetState.HEALTHY}, True),
        ({"s0": TargetState.UNHEALTHY}, False),
        ({"s0": TargetState.INITIAL}, False),
        ({"gone": TargetState.DRAINING}, False),
        ({"gone": TargetState.UNUSED}, False),
    ],
    ids=str,
)
def test_drift_is_mended(scene: Make, changes: dict[str, Any], written: bool) -> None:
    here = shown(scene().nodes(4), changes)
    assert bool(here.plan().write) is written


def test_a_target_that_drains_may_disappear_by_itself(scene: Make) -> None:
    """A balancer that lets go of drained targets is not written again and again."""
    here = scene().nodes(5).drain("s4", Cause.EXCESS)
    assert here.plan().write == ()
    assert shown(here, {"s4": None}).plan().write == ()


def test_a_view_older_than_the_acknowledgement_says_nothing(scene: Make) -> None:
    here = scene().nodes(4)
    here.fields["applied_at"] = {"gw": here.now - 5.0}
    assert shown(here, {"s0": None}, at=here.now - 6.0).plan().write == ()
    assert shown(here, {"s1": None}, at=here.now - 4.0).plan().write == ("gw",)


def test_only_balancers_that_differ_are_written(scene: Make) -> None:
    here = scene().nodes(4)
    view = Observed(value=tuple(here.shown.values()), at=here.now)
    here.settings["balancers"] = {"alb": view, "gw": view}
    here.fields["targets"] = {"gw": dict(here.held), "alb": {}}
    here.fields["applied_at"] = {"gw": here.now - 9.0, "alb": here.now - 9.0}
    assert here.plan().write == ("alb",)


def test_a_node_counts_as_served_while_any_balancer_sends_it_requests(scene: Make) -> None:
    here = scene().nodes(5).drain("s4", Cause.EXCESS)
    view = Observed(value=(), at=here.now)
    here.settings["balancers"] = {"alb": view, "gw": view}
    here.fields["targets"] = {"gw": dict(here.held), "alb": {"s4": ACTIVE}}
    assert here.fleet.by_id["s4"].serving
    here.fields["targets"]["alb"] = {"s4": DRAINING}
    assert not here.fleet.by_id["s4"].serving
    assert here.fleet.by_id["s4"].attached


def test_without_the_lease_nothing_is_written(scene: Make) -> None:
    here = shown(scene().nodes(4), {"s0": None})
    here.settings["leading"] = False
    assert here.plan().write == ()
