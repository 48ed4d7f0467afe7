"""What may be ended: nothing that answers while a balancer may still send it requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from policies.actions import ActionKind, Cause, Drain, Terminate
from policies.model import Observed, Pool, Target, TargetPhase, TargetState
from policies.records import Intent, OperatorRequest, intent_key

Make = Callable[..., Any]


def drained(scene: Make, shown: TargetState | None, *, read_ago: float = 0.0, **node: Any) -> Any:
    """A node whose drain is over, detached 30 s ago; one balancer shows it so, or not at all."""
    here = scene().nodes(6).node("x", **node).drain("x", Cause.EXCESS, since=30.0, left=-1.0)
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
        (TargetState.UNHEALTHY, 0.0, {"silent_for": 60.0}, True),
        (TargetState.HEALTHY, 0.0, {"silent_for": 60.0}, False),  # only this host cannot reach it
        (TargetState.HEALTHY, 60.0, {"silent_for": 60.0}, False),  # nor the balancer, lately
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_drained_node_ends_when_no_balancer_may_send_it_requests(
    scene: Make,
    actions: Make,
    shown: TargetState | None,
    read_ago: float,
    node: dict[str, Any],
    ends: bool,
    again: bool,
) -> None:
    """Also when its termination was asked for before and failed: it may have come back meanwhile."""
    here = drained(scene, shown, read_ago=read_ago, **node)
    token = intent_key("x", ActionKind.TERMINATE)
    at = here.now - 100.0
    open_call = Intent(token=token, kind=ActionKind.TERMINATE, node="x", at=at, asked_at=at, unanswered=True)
    if again:
        here.fields["intents"] = {open_call.token: open_call}
    assert [a.node for a in actions(here.plan(), Terminate)] == (["x"] if ends else [])


@pytest.mark.parametrize(("read", "ends"), [(False, False), (True, True)])
def test_a_node_that_nobody_has_looked_at_waits_for_the_first_look_at_the_balancer(
    scene: Make, actions: Make, read: bool, ends: bool
) -> None:
    """A daemon that has just started knows of a drain, and not whether the balancer ever heard of it."""
    here = drained(scene, None, probed=False)
    if not read:
        here.settings["balancers"] = {"gw": Observed(value=(), at=None)}
    assert [a.node for a in actions(here.plan(), Terminate)] == (["x"] if ends else [])


def test_what_ends_in_this_turn_is_not_kept_as_the_last_target(scene: Make, actions: Make) -> None:
    """A balancer that was restarted shows nobody, and the only node is silent: ended or kept, not both."""
    here = scene(Pool(name="p", replicas=1)).node("x", silent_for=90.0)
    here.drain("x", Cause.SICK, since=60.0, left=-1.0)
    here.held["x"] = TargetPhase.ACTIVE
    here.shown.clear()
    plan = here.plan()
    assert [a.node for a in actions(plan, Terminate)] == ["x"]
    assert plan.targets == ()


def test_an_operators_drain_waits_until_it_is_known_whether_the_node_serves(
    scene: Make, actions: Make
) -> None:
    here = scene().nodes(3).node("x", probed=False, ready=False, serving=True)
    here.records["x"] = replace(
        here.records["x"], operator=OperatorRequest(since=here.now - 10.0, budget=20.0, reason="maintenance")
    )
    assert actions(here.plan(), Drain) == []
    here.node("x", ready=False, serving=False, age=100.0, operator=here.records["x"].operator)
    assert [a.node for a in actions(here.plan(), Drain)] == ["x"]  # it boots, and serves nobody
