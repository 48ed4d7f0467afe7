"""The wanted target set, and which balancers are written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.actions import ActionKind, Attach, Cause, Detach
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
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind

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
        ({"silent_for": 2.0, "serving": False}, None),  # who enters has answered the last look
        ({"silent_for": 6.0}, None),
        ({"standby": StandbyKind.STOPPED, "serving": False}, None),
        ({"state": InstanceState.SHUTTING_DOWN, "serving": True}, None),
        ({"state": InstanceState.TERMINATED, "serving": True}, None),
        ({"state": InstanceState.STOPPED, "serving": True, "vouched": False}, None),
        # The list may be older than its start; nobody here has looked, and the balancer has.
        ({"state": InstanceState.STOPPED, "serving": True}, ACTIVE),
        ({"state": InstanceState.STOPPED, "serving": True, "ready": False}, ACTIVE),
        ({"probed": False}, ACTIVE),
        ({"probed": False, "listed": False, "age": 100.0}, ACTIVE),  # one list may lack a page
        ({"probed": False, "listed": False, "vouched": False}, ACTIVE),  # nor is a balancer's look a silence
        ({"address": ""}, ACTIVE),  # an old journal knows none, and the balancer does
        ({"address": "", "serving": False}, None),
        # Put to work by a daemon whose journal is lost: one look that fails does not take it out.
        ({"ready": False, "serving": True, "vouched": True}, ACTIVE),
        ({"ready": False, "serving": True, "vouched": False}, None),
    ],
    ids=str,
)
def test_who_belongs(node: dict[str, Any], phase: TargetPhase | None) -> None:
    here = Scene(Pool(name="p", replicas=9)).nodes(8).node("x", Market.ON_DEMAND, **node)
    if node.get("address") == "":
        here.instances["x"] = replace(here.instances["x"], address="")
    assert phases(here.plan()).get("x") is phase


@pytest.mark.parametrize(
    ("silent_for", "ready", "vouched", "phase"),
    [
        (2.0, True, False, ACTIVE),
        (2.0, False, True, ACTIVE),  # the journal that told that it was ready is lost
        (2.0, False, False, None),
        (6.0, True, True, None),
        (6.0, False, True, None),
    ],
)
def test_one_look_that_fails_does_not_make_an_old_list_true(
    silent_for: float, ready: bool, vouched: bool, phase: TargetPhase | None
) -> None:
    here = Scene(Pool(name="p", replicas=9)).nodes(8)
    here.node("x", Market.ON_DEMAND, serving=True, silent_for=silent_for, vouched=vouched)
    here.instances["x"] = replace(here.instances["x"], state=InstanceState.STOPPED)
    if not ready:
        here.records["x"] = replace(here.records["x"], ready_at=None)
    assert phases(here.plan()).get("x") is phase


@pytest.mark.parametrize(
    ("silent_for", "serving", "stays"), [(2.0, True, True), (2.0, False, False), (6.0, True, False)]
)
def test_one_look_that_fails_takes_out_nobody_of_a_balancer_that_lost_its_set(
    silent_for: float, serving: bool, stays: bool
) -> None:
    """With the journal lost as well, only the set that it took tells that the node was at work."""
    here = Scene(Pool(name="p", replicas=9)).nodes(8)
    here.node("x", serving=serving, silent_for=silent_for)
    here.records["x"] = replace(here.records["x"], ready_at=None)
    here.shown.clear()
    here.fields["applied_at"] = {"gw": here.now}
    assert ("x" in phases(here.plan())) is stays


def test_a_draining_node_stays_as_one_that_drains_until_it_is_out() -> None:
    here = Scene().nodes(5).drain("s4", Cause.EXCESS, left=20.0)
    plan = here.plan()
    spec = next(t for t in plan.targets if t.id == "s4")
    assert (spec.phase, spec.drain_deadline) == (DRAINING, here.now + 20.0)
    del here.held["s4"]  # never was a target, or is out already
    assert "s4" not in phases(here.plan())


def test_a_node_that_begins_to_drain_is_out_in_the_same_turn() -> None:
    here = Scene().nodes(4)
    here.notice("s0", 60.0)
    plan = here.plan()
    assert phases(plan)["s0"] is DRAINING
    assert plan.write == ("gw",)
    (detach,) = of_kind(plan, Detach)
    assert (detach.node, detach.reason) == ("s0", "interruption notice (feed), 60 s left")


def test_a_node_that_ends_in_this_turn_is_out_altogether() -> None:
    here = Scene().nodes(5).drain("s4", Cause.EXCESS)
    here.records["s4"] = replace(here.records["s4"], idle_since=here.now - 9.0)
    assert "s4" not in phases(here.plan())


def test_changes_are_said() -> None:
    here = Scene(Pool(name="p", replicas=9)).nodes(3).node("new", serving=False)
    here.node("sick", silent_for=8.0)
    plan = here.plan()
    assert [(a.node, a.reason) for a in of_kind(plan, Attach)] == [("new", "ready")]
    assert [(a.node, a.reason) for a in of_kind(plan, Detach)] == [("sick", "connection refused")]


def test_the_set_is_sorted_and_whole() -> None:
    here = Scene().nodes(4, prefix="z").nodes(2, prefix="a")
    ids = [t.id for t in here.plan().targets]
    assert ids == sorted(ids)
    assert len(ids) == 6


# -- the last one --------------------------------------------------------------------------------------


def test_the_last_node_that_serves_stays_although_it_drains() -> None:
    here = Scene(Pool(name="p", replicas=1)).nodes(1)
    here.notice("s0", 20.0)
    plan = here.plan()
    assert phases(plan) == {"s0": ACTIVE}
    assert not plan.write
    here.node("new", Market.ON_DEMAND)
    assert phases(here.plan()) == {"new": ACTIVE, "s0": DRAINING}


def test_of_several_that_must_go_the_one_with_the_latest_deadline_stays() -> None:
    here = Scene(Pool(name="p", replicas=3)).nodes(3)
    for i, lead in enumerate((10.0, 30.0, 20.0)):
        here.notice(f"s{i}", lead)
    active = [i for i, phase in phases(here.plan()).items() if phase is ACTIVE]
    assert active == ["s1"]


def test_one_that_can_answer_stays_rather_than_one_that_cannot() -> None:
    here = Scene(Pool(name="p", replicas=2)).node("a", silent_for=60.0).node("b")
    here.notice("a", 300.0)
    here.notice("b", 5.0)
    assert phases(here.plan())["b"] is ACTIVE


def test_a_silent_node_stays_rather_than_nobody_though_no_balancer_is_known_to_hold_it() -> None:
    """The set that made it a target landed, and its answer was lost."""
    here = Scene(Pool(name="p", replicas=2)).nodes(2, silent_for=8.0, serving=False)
    assert list(phases(here.plan()).values()) == [ACTIVE]


@pytest.mark.parametrize(
    ("vouched", "accepted_at", "state", "stays"),
    [
        (True, None, InstanceState.RUNNING, True),
        (False, None, InstanceState.RUNNING, False),
        (True, 9_990.0, InstanceState.RUNNING, False),
        (True, None, InstanceState.SHUTTING_DOWN, False),
    ],
)
def test_the_last_node_stays_while_its_end_was_asked_for_in_vain(
    vouched: bool, accepted_at: float | None, state: InstanceState, stays: bool
) -> None:
    here = Scene(Pool(name="p", replicas=1)).node(
        "a", state=state, probed=False, serving=True, vouched=vouched
    )
    here.asked("a", ActionKind.TERMINATE, ago=20.0, unanswered=True, accepted_at=accepted_at)
    here.held["a"] = DRAINING
    assert phases(here.plan()) == ({"a": ACTIVE} if stays else {})


@pytest.mark.parametrize(
    ("accepted_at", "drains", "seen", "stays"),
    [
        (None, False, False, True),
        (9_990.0, False, False, False),
        (None, True, False, False),
        (None, False, True, False),
    ],
)
def test_until_the_cloud_was_seen_one_that_was_to_end_and_did_not_goes_on_serving(
    accepted_at: float | None, drains: bool, seen: bool, stays: bool
) -> None:
    """A journal may be an old copy: since then the node may have been put to work."""
    here = Scene().nodes(4).node("a")
    here.asked("a", ActionKind.TERMINATE, ago=300.0, unanswered=True, accepted_at=accepted_at)
    del here.held["a"]
    if drains:
        here.drain("a", Cause.EXCESS)
    if not seen:
        here.settings["regions"] = {"": Observed(value=())}
    assert ("a" in phases(here.plan())) is stays


def test_the_only_one_that_answers_takes_over_from_one_that_fell_silent() -> None:
    """Though it drained: it answers again, or still does, and nobody else is there."""
    here = Scene(Pool(name="p", replicas=2)).node("a", silent_for=60.0).node("b")
    here.drain("a", Cause.SICK)
    here.held["a"] = ACTIVE
    here.notice("b", 20.0)
    here.drain("b", Cause.NOTICE)
    assert {i for i, phase in phases(here.plan()).items() if phase is ACTIVE} == {"b"}
    here.node("a", silent_for=2.0).drain("a", Cause.SICK)
    here.held["a"] = ACTIVE  # a moment of silence is no reason to change
    assert {i for i, phase in phases(here.plan()).items() if phase is ACTIVE} == {"a"}


def test_the_last_node_stays_while_the_answer_of_the_write_that_put_it_in_is_lost() -> None:
    """With the journal lost nobody remembers that it was ready, and this host cannot reach it."""
    here = Scene(Pool(name="p", replicas=2)).node("x", ready=False, serving=False, age=20.0)
    assert here.plan().targets == ()
    here.settings["writing"] = {"gw": ("x",)}
    assert phases(here.plan()) == {"x": ACTIVE}


def test_one_that_was_asked_to_serve_stays_rather_than_one_put_into_the_set_by_hand() -> None:
    here = Scene(Pool(name="p", replicas=2)).nodes(2)
    for node in ("s0", "s1"):
        here.notice(node, 20.0)
        here.drain(node, Cause.NOTICE)
    here.held["s1"] = ACTIVE
    here.shown["s0"] = Target(id="s0", address="s0:1", state=TargetState.HEALTHY)
    assert {i for i, phase in phases(here.plan()).items() if phase is ACTIVE} == {"s1"}


def test_with_nobody_left_the_set_is_empty() -> None:
    here = Scene(Pool(name="p", replicas=1)).node("a", state=InstanceState.TERMINATED, serving=True)
    plan = here.plan()
    assert plan.targets == ()
    assert plan.write == ("gw",)


# -- writing -------------------------------------------------------------------------------------------


def test_a_set_that_is_acknowledged_and_shown_is_not_written() -> None:
    assert Scene().nodes(4).plan().write == ()


def shown(here: Scene, changes: dict[str, TargetState | None], *, at: float | None = None) -> Any:
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
def test_drift_is_mended(changes: dict[str, Any], written: bool) -> None:
    here = shown(Scene().nodes(4), changes)
    assert bool(here.plan().write) is written


@pytest.mark.parametrize(
    ("build", "written"), [(None, False), ("b", False), ("", True), ("other", True)], ids=str
)
def test_a_balancer_that_keeps_builds_is_told_the_right_one(build: str | None, written: bool) -> None:
    """A gateway holds none after its upgrade, or another one's; some balancers never keep any."""
    here = Scene().nodes(4, build="b")
    for node in list(here.shown):
        here.shown[node] = replace(here.shown[node], build=build)
    here = shown(here, {})
    assert bool(here.plan().write) is written
    assert {s.build for s in here.plan().targets} == {"b"}


@pytest.mark.parametrize(
    ("state", "ago", "written"),
    [
        (TargetState.DRAINING, 59.0, False),
        (TargetState.DRAINING, 60.0, True),
        (TargetState.UNUSED, 600.0, False),
    ],
)
def test_a_removal_that_shows_no_effect_is_written_again(
    state: TargetState, ago: float, written: bool
) -> None:
    """A target may drain for as long as its balancer likes; the acknowledgement may also be forgotten."""
    here = Scene().nodes(4)
    here.fields["applied_at"] = {"gw": here.now - ago}
    assert bool(shown(here, {"gone": state}).plan().write) is written


def test_a_target_that_drains_may_disappear_by_itself() -> None:
    """A balancer that lets go of drained targets is not written again and again."""
    here = Scene().nodes(5).drain("s4", Cause.EXCESS)
    assert here.plan().write == ()
    assert shown(here, {"s4": None}).plan().write == ()


def test_a_view_older_than_the_acknowledgement_says_nothing() -> None:
    here = Scene().nodes(4)
    here.fields["applied_at"] = {"gw": here.now - 5.0}
    assert shown(here, {"s0": None}, at=here.now - 6.0).plan().write == ()
    assert shown(here, {"s1": None}, at=here.now - 4.0).plan().write == ("gw",)


def test_each_target_has_the_build_that_its_node_was_launched_with() -> None:
    """After a change of the engine old nodes and new ones serve side by side, also while they drain."""
    here = Scene().nodes(2, build="old").nodes(2, prefix="n", build="new").drain("s1", Cause.EXCESS)
    builds = {s.id: s.build for s in here.plan().targets}
    assert builds == {"s0": "old", "s1": "old", "n0": "new", "n1": "new"}


def test_a_build_that_the_journal_does_not_say_is_that_of_the_list() -> None:
    """Journals of earlier versions have none; what they knew of a node is known all the same."""
    here = Scene().nodes(2)
    here.instances["s0"] = replace(here.instances["s0"], build="listed")
    assert {s.id: s.build for s in here.plan().targets} == {"s0": "listed", "s1": ""}


def test_only_balancers_that_differ_are_written() -> None:
    here = Scene().nodes(4)
    view = Observed(value=tuple(here.shown.values()), at=here.now)
    here.settings["balancers"] = {"alb": view, "gw": view}
    here.fields["targets"] = {"gw": dict(here.held), "alb": {}}
    here.fields["applied_at"] = {"gw": here.now - 9.0, "alb": here.now - 9.0}
    assert here.plan().write == ("alb",)


def test_a_node_counts_as_served_while_any_balancer_sends_it_requests() -> None:
    here = Scene().nodes(5).drain("s4", Cause.EXCESS)
    view = Observed(value=(), at=here.now)
    here.settings["balancers"] = {"alb": view, "gw": view}
    here.fields["targets"] = {"gw": dict(here.held), "alb": {"s4": ACTIVE}}
    assert here.fleet.by_id["s4"].serving
    here.fields["targets"]["alb"] = {"s4": DRAINING}
    assert not here.fleet.by_id["s4"].serving
    assert here.fleet.by_id["s4"].attached


def test_without_the_lease_nothing_is_written() -> None:
    here = shown(Scene().nodes(4), {"s0": None})
    here.settings["leading"] = False
    assert here.plan().write == ()
