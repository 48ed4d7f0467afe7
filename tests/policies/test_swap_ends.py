"""What may be ended: nothing that answers while a balancer may still send it requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from policies.actions import ActionKind, Cause, Terminate
from policies.model import Observed, Target, TargetPhase, TargetState
from policies.records import Intent, intent_key

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
