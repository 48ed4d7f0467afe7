"""What may be ended: nothing that answers while a balancer may still send it requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.actions import ActionKind, Cause, Drain, Launch, Terminate, Undrain
from policies.events import DrainEnded
from policies.fleet import Fleet
from policies.memory import reduce
from policies.model import (
    InstanceState,
    Limits,
    Market,
    NoticeKind,
    Observed,
    Phase,
    Pool,
    Target,
    TargetPhase,
    TargetState,
)
from policies.records import Intent, OperatorRequest, intent_key
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind


def drained(shown: TargetState | None, *, read_ago: float = 0.0, **node: Any) -> Any:
    """A node whose drain is over, detached 30 s ago; one balancer shows it so, or not at all."""
    here = Scene().nodes(6).node("x", **node).drain("x", Cause.EXCESS, since=30.0, left=-1.0)
    here.held["x"] = TargetPhase.DRAINING
    targets = [t for t in here.shown.values() if t.id != "x"]
    if shown is not None:
        targets.append(Target(id="x", address="x:1", state=shown, in_flight=3))
    here.settings["balancers"] = {"gw": Observed(value=tuple(targets), at=here.now - read_ago)}
    return here


@pytest.mark.parametrize(
    ("shown", "read_ago", "node", "ends"),
    [
        (None, 0.0, {}, True),
        (TargetState.DRAINING, 0.0, {}, True),
        (TargetState.HEALTHY, 0.0, {}, False),  # it acknowledged the detachment and forgot it
        (TargetState.DRAINING, 60.0, {}, False),  # nobody has looked since the detachment
        (TargetState.UNHEALTHY, 0.0, {"silent_for": 60.0}, False),  # it may answer the next moment
        (TargetState.DRAINING, 0.0, {"silent_for": 60.0}, True),
        (TargetState.DRAINING, 60.0, {"silent_for": 10.0}, False),
        (TargetState.HEALTHY, 0.0, {"silent_for": 60.0}, False),  # only this host cannot reach it
        (TargetState.HEALTHY, 60.0, {"silent_for": 60.0}, False),  # nor the balancer, lately
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_drained_node_ends_when_no_balancer_may_send_it_requests(
    shown: TargetState | None, read_ago: float, node: dict[str, Any], ends: bool, again: bool
) -> None:
    """Also when its termination was asked for before and failed: it may have come back meanwhile."""
    here = drained(shown, read_ago=read_ago, **node)
    token = intent_key("x", ActionKind.TERMINATE)
    at = here.now - 100.0
    open_call = Intent(token=token, kind=ActionKind.TERMINATE, node="x", at=at, asked_at=at, unanswered=True)
    if again:
        here.fields["intents"] = {open_call.token: open_call}
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["x"] if ends else [])


def test_a_node_whose_end_was_asked_for_in_vain_and_that_took_up_work_drains_first() -> None:
    """It was not ready when somebody wanted it to end; an old journal does not say what came after that."""
    here = Scene().nodes(2).nodes(2, Market.ON_DEMAND).node("x", serving=False, in_flight=2)
    here.asked("x", ActionKind.TERMINATE, ago=99.0, unanswered=True, cause=Cause.EXCESS)
    plan = here.plan()
    assert of_kind(plan, Terminate) == []
    assert [(a.node, a.cause, a.deadline) for a in of_kind(plan, Drain)] == [
        ("x", Cause.EXCESS, here.now + 30.0)
    ]
    here.drain("x", Cause.EXCESS, since=29.0, left=1.0)
    assert [*of_kind(here.plan(), Terminate), *of_kind(here.plan(), Drain)] == []
    here.records["x"] = replace(here.records["x"], idle_since=here.now - 1.0)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["x"]
    here.drain("x", Cause.EXCESS, since=30.2, left=-0.2)
    here.records["x"] = replace(here.records["x"], idle_since=None)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["x"]


@pytest.mark.parametrize(("others", "drains"), [(3, False), (4, True)])
def test_one_that_nobody_has_looked_at_waits_while_what_stays_is_too_little(
    others: int, drains: bool
) -> None:
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(others, Market.ON_DEMAND)
    here.node("x", Market.ON_DEMAND, ready=False, probed=False, serving=True, in_flight=2)
    here.asked("x", ActionKind.TERMINATE, ago=200.0, unanswered=True, landed=True, cause=Cause.EXCESS)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Drain)] == (["x"] if drains else [])
    assert [*of_kind(plan, Undrain), *of_kind(plan, Terminate)] == []
    assert ("x" in {s.id for s in plan.targets if s.phase is TargetPhase.ACTIVE}) is not drains


@pytest.mark.parametrize(("read", "ends"), [(False, False), (True, True)])
def test_a_node_that_nobody_has_looked_at_waits_for_the_first_look_at_the_balancer(
    read: bool, ends: bool
) -> None:
    """A daemon that has just started knows of a drain, and not whether the balancer ever heard of it."""
    here = drained(None, probed=False)
    if not read:
        here.settings["balancers"] = {"gw": Observed(value=(), at=None)}
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["x"] if ends else [])


@pytest.mark.parametrize(("looked", "ends"), [("at nobody", False), ("at it", False), ("at all", True)])
def test_a_node_that_drained_by_choice_waits_until_it_is_known_that_the_rest_is_enough(
    looked: str, ends: bool
) -> None:
    """A daemon that has just started knows neither whether it answers nor who else does."""
    here = Scene().nodes(4, probed=looked == "at all").nodes(2, Market.ON_DEMAND)
    here.node("x", probed=looked != "at nobody", idle_since=here.now - 30.0)
    here.drain("x", Cause.RETURN, since=40.0, left=-20.0)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["x"] if ends else [])


@pytest.mark.parametrize("cause", [Cause.SICK, Cause.NOTICE])
@pytest.mark.parametrize(
    ("waited", "silent_for", "ends"), [(5.0, None, False), (5000.0, None, True), (5.0, 60.0, True)]
)
def test_a_silence_or_notice_that_is_over_ends_no_node_that_is_needed_before_an_operator_has_waited(
    waited: float, silent_for: float | None, ends: bool, cause: Cause
) -> None:
    asked = OperatorRequest(since=Scene().now - waited, budget=20.0, reason="maintenance")
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(3, Market.ON_DEMAND)
    here.node("x", Market.ON_DEMAND, silent_for=silent_for, operator=asked, idle_since=here.now - 30.0)
    here.drain("x", cause, since=40.0, left=-20.0)
    del here.held["x"], here.shown["x"]
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["x"] if ends else [])


@pytest.mark.parametrize(("silent_for", "kept"), [(89.0, True), (90.0, False)])
def test_a_last_target_that_is_silent_for_long_is_let_go_and_then_ended(
    silent_for: float, kept: bool
) -> None:
    """It leaves the set first. Kept for ever, it could be what leaves no money for another one."""
    here = Scene(Pool(name="p", replicas=1)).node("x", silent_for=silent_for)
    here.drain("x", Cause.SICK, since=60.0, left=-1.0)
    here.held["x"] = TargetPhase.ACTIVE
    here.shown["x"] = replace(here.shown["x"], state=TargetState.UNHEALTHY)
    plan = here.plan()
    assert of_kind(plan, Terminate) == []
    assert [t.phase for t in plan.targets] == [TargetPhase.ACTIVE if kept else TargetPhase.DRAINING]
    here.held["x"] = TargetPhase.DRAINING
    here.shown["x"] = replace(here.shown["x"], state=TargetState.DRAINING)
    assert of_kind(here.plan(), Terminate)


@pytest.mark.parametrize(
    ("silent_for", "since", "ends"),
    [(60.0, 30.2, True), (60.0, 29.0, False), (29.0, 60.0, False), (None, 60.0, False)],
)
def test_a_dead_node_does_not_wait_for_the_deadline_of_its_notice(
    silent_for: float | None, since: float, ends: bool
) -> None:
    """Nobody can say that it is idle. Its requests have had their budget, or are lost."""
    here = Scene().nodes(2).nodes(2, Market.ON_DEMAND).node("x", silent_for=silent_for, in_flight=2)
    here.notice("x", 80_000.0, kind=NoticeKind.MAINTENANCE)
    here.drain("x", Cause.NOTICE, since=since, left=79_995.0)
    del here.held["x"], here.shown["x"]
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["x"] if ends else [])


def test_a_drain_whose_deadline_is_near_lasts_until_then() -> None:
    """A silent node had left the set long before: what it holds has not been told of the end before now."""
    here = Scene().nodes(2).nodes(2, Market.ON_DEMAND).node("x", silent_for=60.0, in_flight=2)
    here.drain("x", Cause.SICK, since=1.0, left=19.0)
    here.records["x"] = replace(here.records["x"], detached_at=here.now - 60.0)
    del here.held["x"], here.shown["x"]
    assert of_kind(here.plan(), Terminate) == []


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize(("since", "ends"), [(30.2, True), (29.0, False)])
def test_nor_does_one_that_is_stopped(since: float, ends: bool, cancelled: bool) -> None:
    """Nor when it was taken back: the deadline of its drain may be of before this host's clock was set."""
    here = Scene().nodes(2).nodes(2, Market.ON_DEMAND).node("x", state=InstanceState.STOPPED, serving=False)
    here.notice("x", 80_000.0, kind=NoticeKind.MAINTENANCE, cancelled=cancelled)
    here.drain("x", Cause.NOTICE, since=since, left=79_995.0)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["x"] if ends else [])


def test_a_node_that_an_unacknowledged_set_puts_to_work_again_stays() -> None:
    """It was the last resort a moment ago: that set may have landed though nobody said so."""
    here = drained(None)
    here.records["x"] = replace(here.records["x"], idle_since=here.now - 10.0)
    assert of_kind(here.plan(), Terminate)
    here.settings["writing"] = {"gw": ("x",)}
    assert of_kind(here.plan(), Terminate) == []


def test_after_a_restart_a_balancer_that_cannot_be_read_keeps_what_a_look_missed() -> None:
    here = drained(None, silent_for=0.1)
    here.settings["balancers"] = {"gw": Observed(value=(), at=None, error="no answer")}
    here.fields |= {"targets": {}, "applied_at": {}}
    assert of_kind(here.plan(), Terminate) == []


def test_the_last_node_that_fell_silent_for_a_moment_is_not_ended_while_it_is_a_target() -> None:
    here = Scene(Pool(name="p", replicas=1)).node("x", silent_for=6.0)
    here.notice("x", -20.0)
    here.drain("x", Cause.NOTICE, since=40.0, left=-25.0)
    here.held["x"] = TargetPhase.ACTIVE
    here.shown["x"] = replace(here.shown["x"], state=TargetState.UNHEALTHY)
    plan = here.plan()
    assert of_kind(plan, Terminate) == []
    assert [t.phase for t in plan.targets] == [TargetPhase.ACTIVE]


@pytest.mark.parametrize(("token", "ends"), [("p/7/3", True), ("p/6/3", False)])
def test_with_the_journal_lost_a_doomed_node_that_a_look_missed_gets_its_time(token: str, ends: bool) -> None:
    """It looks like one that boots; only of what this daemon launched is that sure."""
    here = Scene().nodes(6).node("x", ready=False, age=3.0, token=token)
    here.notice("x", 100.0)
    here.drain("x", Cause.NOTICE, since=2.0, left=95.0)
    del here.held["x"]
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["x"] if ends else [])


def test_an_operators_drain_waits_until_it_is_known_whether_the_node_serves() -> None:
    here = Scene().nodes(3).node("x", probed=False, ready=False, serving=True)
    here.records["x"] = replace(
        here.records["x"], operator=OperatorRequest(since=here.now - 10.0, budget=20.0, reason="maintenance")
    )
    assert of_kind(here.plan(), Drain) == []
    here.node("x", ready=False, serving=False, age=100.0, operator=here.records["x"].operator)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["x"]  # it boots, and serves nobody


@pytest.mark.parametrize("state", [{"ready": False}, {"silent_for": 8.0, "vouched": False}])
@pytest.mark.parametrize(
    ("token", "read"), [("p/7/3", False), ("p/7/3", True), ("p/6/3", True), ("p/6/3", False)]
)
def test_with_the_journal_lost_an_operators_drain_waits_for_a_balancers_word(
    token: str, read: bool, state: dict[str, Any]
) -> None:
    """Its engine cannot be reached: it may boot or be sick, or have served for hours and serve on."""
    here = Scene().nodes(3).node("x", serving=False, age=100.0, token=token, **state)
    asked = OperatorRequest(since=here.now - 10.0, budget=20.0, reason="maintenance")
    here.records["x"] = replace(here.records["x"], operator=asked)
    if not read:
        here.settings["balancers"] = {"gw": Observed(value=())}
    launched_here = token == "p/7/3" and here.records["x"].ready_at is None
    assert [a.node for a in of_kind(here.plan(), Drain)] == (["x"] if read or launched_here else [])


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ({}, True),
        ({"landed": True}, False),  # some call may have taken effect
        ({"landed": True, "ago": 180.0}, True),  # then it would be seen by now
        ({"landed": True, "ago": 180.0, "state": InstanceState.SHUTTING_DOWN}, False),
        ({"unanswered": False}, False),
        ({"silent_for": 1.0}, False),
        ({"needed": False}, False),
    ],
    ids=str,
)
def test_what_was_to_end_and_answers_works_again_where_its_end_did_nothing_and_it_is_needed(
    change: dict[str, Any], back: bool
) -> None:
    here = Scene().nodes(2).nodes(1 if change.get("needed", True) else 2, Market.ON_DEMAND)
    here.node("x", Market.ON_DEMAND, silent_for=change.get("silent_for")).drain("x", Cause.SICK, since=60.0)
    call = {"unanswered": change.get("unanswered", True), "landed": change.get("landed", False)}
    here.asked("x", ActionKind.TERMINATE, ago=change.get("ago", 100.0), cause=Cause.SICK, **call)
    here.records["x"] = replace(here.records["x"], idle_since=here.now - 20.0)
    here.instances["x"] = replace(here.instances["x"], state=change.get("state", InstanceState.RUNNING))
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == (["x"] if back else [])
    assert [a.node for a in of_kind(plan, Terminate)] == ([] if back else ["x"])
    assert ("x" in {t.id for t in plan.targets if t.phase is TargetPhase.ACTIVE}) is back
    memory = reduce(here.memory, DrainEnded(at=here.now, node="x", reason="test"))
    ends = "state" in change
    assert Fleet.of(here.pool, here.world, memory).by_id["x"].phase is (
        Phase.TERMINATING if ends else Phase.READY
    )


@pytest.mark.parametrize("serving", [True, False])
@pytest.mark.parametrize(
    ("others", "accepted_at", "drains"), [(3, None, False), (4, None, True), (3, 9_999.0, True)]
)
def test_one_at_work_whose_end_may_have_been_asked_for_in_vain_does_not_drain_while_it_is_needed(
    others: int, accepted_at: float | None, drains: bool, serving: bool
) -> None:
    """It answers. A journal that could not be written may not say that it was put back to work."""
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(others, Market.ON_DEMAND)
    here.node("x", Market.ON_DEMAND, in_flight=2, serving=serving)
    call = {"unanswered": accepted_at is None, "landed": True, "accepted_at": accepted_at}
    here.asked("x", ActionKind.TERMINATE, ago=100.0, cause=Cause.EXCESS, **call)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Drain)] == (["x"] if drains else [])
    assert ("x" in {t.id for t in plan.targets if t.phase is TargetPhase.ACTIVE}) is (serving and not drains)


def test_it_does_not_work_again_in_the_turn_that_launches_what_takes_its_place() -> None:
    """Both would be one node more than may live."""
    here = Scene(Pool(name="p", replicas=2, spot_share=0.0, limits=Limits(surge=0)))
    here.nodes(1, Market.ON_DEMAND).node("x", Market.ON_DEMAND).drain("x", Cause.EXCESS, since=60.0)
    here.asked("x", ActionKind.TERMINATE, ago=100.0, unanswered=True, cause=Cause.EXCESS)
    plan = here.plan()
    assert len(of_kind(plan, Launch)) == 1
    assert of_kind(plan, Undrain) == of_kind(plan, Terminate) == []
    here.launching("p/7/9", Market.ON_DEMAND)
    assert [a.node for a in of_kind(here.plan(), Undrain)] == ["x"]
