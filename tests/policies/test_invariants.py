"""Each invariant is shown able to fail, and a plan that breaks one does nothing destructive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies import decide as deciding
from policies import invariants
from policies.actions import (
    Alarm,
    Attach,
    Cause,
    Detach,
    Drain,
    Launch,
    Plan,
    Start,
    Stop,
    Terminate,
    Undrain,
    UnloadAdapter,
)
from policies.decide import decide
from policies.grant import Share
from policies.held import Held
from policies.model import InstanceState, Limits, Market, Observed, Pool, StandbyKind, TargetPhase, TargetSpec
from tests.support.scene import Scene
from tests.support.toy_pools import place

ON_DEMAND = Market.ON_DEMAND


@pytest.fixture
def whole() -> Any:
    """Two spot and two on-demand nodes that serve; exactly what is wanted."""
    return (
        Scene(Pool(name="p", replicas=4, limits=Limits(surge=1, spend_per_hour=11.0)))
        .nodes(2)
        .nodes(2, ON_DEMAND)
    )


def specs(here: Scene, **phases: TargetPhase | None) -> tuple[TargetSpec, ...]:
    wanted: dict[str, TargetPhase | None] = {**dict.fromkeys(here.records, TargetPhase.ACTIVE), **phases}
    return tuple(
        TargetSpec(id=i, address=f"{i}:1", phase=phase) for i, phase in wanted.items() if phase is not None
    )


def names(here: Scene, *actions: Any, targets: Any = None) -> list[str]:
    plan = Plan(actions=actions, targets=specs(here) if targets is None else targets)
    return [v.name for v in invariants.check(here.pool, here.world, here.fleet, here.memory, plan)]


def test_an_adapter_that_only_a_balancer_still_routes_is_not_unloaded(whole: Any) -> None:
    """The wanted set is without it already; the other node's balancer keeps no adapters."""
    sql = Held(name="sql", served_as="sql@1", revision="1")
    unload = UnloadAdapter(node="s0", address="s0:1", served_as="sql@1", reason="")
    assert names(whole, unload) == []
    whole.shown["s0"] = replace(whole.shown["s0"], adapters=(sql,))
    assert names(whole, unload) == ["adapters"]


def drain(node: str, cause: Cause = Cause.EXCESS) -> Drain:
    return Drain(node=node, deadline=0.0, cause=cause, reason="")


def end(node: str, cause: Cause = Cause.EXCESS) -> Terminate:
    return Terminate(token=f"{node}:terminate", node=node, cause=cause, reason="")


def launch(token: str, market: Market = Market.SPOT, price: float = 1.0) -> Launch:
    return Launch(token=token, placement=place("a", market), price=price, cause=Cause.SHORT, reason="")


def test_a_sound_plan_has_no_violations(whole: Any) -> None:
    assert names(whole) == []
    assert names(whole, launch("x")) == []


def test_self_harm(whole: Scene) -> None:
    assert "self-harm" in names(whole, drain("s0"))
    assert "self-harm" in names(whole, drain("s0", Cause.RETURN))
    assert names(whole, drain("s0", Cause.NOTICE), targets=specs(whole, s0=TargetPhase.DRAINING)) == []
    whole.node("s2")
    assert names(whole, drain("s0"), targets=specs(whole, s0=TargetPhase.DRAINING)) == []
    whole.node("s2", silent_for=1.0)
    assert "self-harm" in names(whole, drain("s0"), targets=specs(whole, s0=TargetPhase.DRAINING))


def test_floor(whole: Scene) -> None:
    whole.nodes(4)
    plan = Plan(actions=(drain("o0"),), targets=())
    found = invariants.check(whole.pool, whole.world, whole.fleet, whole.memory, plan)
    assert "floor: 1 on-demand nodes would be left, the floor is 2" in map(str, found)
    back = whole.node("o2", ON_DEMAND).drain("o2", Cause.RETURN)
    undrain = Undrain(node="o2", reason="")
    assert "floor" in names(back, drain("o0"), undrain)  # no balancer has it yet
    back.held["o2"] = TargetPhase.ACTIVE
    assert "floor" not in names(back, drain("o0"), undrain)


def test_disruption() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(9).nodes(5, ON_DEMAND)
    out = specs(here, s0=TargetPhase.DRAINING, s1=TargetPhase.DRAINING)
    assert names(here, drain("s0"), targets=out) == []
    assert names(here, drain("s0"), drain("s1"), targets=out) == ["disruption"]
    assert names(here, drain("s0"), drain("s1", Cause.NOTICE), targets=out) == []
    here.node("s8", silent_for=60.0).drain("s8", Cause.OPERATOR)
    out = specs(here, s0=TargetPhase.DRAINING, s8=TargetPhase.DRAINING)
    assert names(here, drain("s0"), targets=out) == ["disruption"]
    assert (
        names(here, drain("s0"), Undrain(node="s8", reason=""), targets=specs(here, s0=TargetPhase.DRAINING))
        == []
    )


def test_surplus(whole: Any) -> None:
    assert names(whole, launch("x"), launch("y")) == ["surplus"]
    whole.launching("x")
    assert names(whole, launch("x")) == []  # asked again, it is counted already
    assert names(whole, launch("y")) == ["surplus"]
    leaving = specs(whole, s0=TargetPhase.DRAINING)
    assert names(whole, launch("y"), drain("s0", Cause.NOTICE), targets=leaving) == []


def test_a_share_of_a_budget(whole: Any) -> None:
    whole.pool = replace(whole.pool, share=Share(nodes=5, dollars=True, drains=1))
    assert names(whole, launch("x", ON_DEMAND, 3.0)) == []
    assert names(whole, launch("x", ON_DEMAND, 3.1)) == ["budget"]  # 8 + 3 USD/h
    whole.pool = replace(whole.pool, share=Share(nodes=4, dollars=True, drains=1))
    assert names(whole, launch("x", ON_DEMAND, 3.0)) == ["budget"]  # four live
    leaving = specs(whole, s0=TargetPhase.DRAINING)
    assert names(whole, launch("x"), drain("s0", Cause.NOTICE), targets=leaving) == []


def test_spend(whole: Any) -> None:
    assert names(whole, launch("x", ON_DEMAND, 3.0)) == []  # 8 + 3
    assert names(whole, launch("x", ON_DEMAND, 3.1)) == ["spend"]
    whole.launching("y", price=1.0)
    whole.pool = replace(whole.pool, limits=replace(whole.pool.limits, surge=9))
    assert names(whole, launch("x", ON_DEMAND, 3.0)) == ["spend"]


def test_spend_of_a_standby_that_starts(whole: Scene) -> None:
    whole.node(
        "sb",
        ON_DEMAND,
        ready=False,
        state=InstanceState.STOPPED,
        standby=StandbyKind.STOPPED,
        probed=False,
        price=4.0,
    )
    start = Start(token="sb:start", node="sb", reason="")
    assert names(whole, start, targets=specs(whole, sb=None)) == ["spend"]


def test_token(whole: Any) -> None:
    whole.pool = replace(whole.pool, limits=Limits(surge=9))
    assert names(whole, launch("x"), launch("x")) == ["token"]


@pytest.mark.parametrize("cause", [Cause.EXCESS, Cause.NOTICE, Cause.BOOT, Cause.SICK])
def test_order(whole: Scene, cause: Cause) -> None:
    whole.nodes(5)
    assert "order" in names(whole, end("s0", cause), targets=specs(whole, s0=None))


def test_order_of_one_node_behind_another_ones_drain(whole: Scene) -> None:
    whole.nodes(5)
    found = names(whole, drain("s1", Cause.NOTICE), end("s0"), targets=specs(whole, s0=None))
    assert "order" in found


def test_order_of_a_node_that_still_gets_requests(whole: Scene) -> None:
    whole.node("x").drain("x", Cause.EXCESS)
    out = specs(whole, x=TargetPhase.DRAINING)
    assert names(whole, end("x"), targets=out) == []
    whole.held["x"] = TargetPhase.ACTIVE
    assert names(whole, end("x"), targets=out) == ["order"]


def test_strangers_are_not_ended(whole: Scene) -> None:
    assert names(whole, end("somebody else's")) == ["stranger"]


def test_targets_of_nodes_that_are_gone(whole: Scene) -> None:
    ghost = TargetSpec(id="ghost", address="x:1")
    assert names(whole, targets=(*specs(whole), ghost)) == ["target"]
    whole.node("dead", state=InstanceState.TERMINATED)
    assert names(whole, targets=specs(whole)) == ["target"]
    whole.settings["regions"] = {"": Observed(value=())}
    del whole.records["dead"]
    assert names(whole, targets=(*specs(whole), ghost)) == []  # nobody knows yet


def test_targets_that_drain(whole: Scene) -> None:
    assert names(whole, drain("s0", Cause.NOTICE)) == ["target"]
    assert names(whole, drain("s0", Cause.NOTICE), targets=specs(whole, s1=None, o0=None, o1=None)) == []
    whole.drain("s1", Cause.NOTICE)
    assert names(whole) == ["target"]
    assert names(whole, Undrain(node="s1", reason="")) == []


def test_last_target(whole: Scene) -> None:
    assert names(whole, targets=()) == ["last-target"]
    for node in whole.records:
        whole.node(node, silent_for=60.0)
    assert names(whole, targets=()) == []


def test_one_that_memory_does_not_know_yet_may_be_a_target_that_answers(whole: Scene) -> None:
    ghost = TargetSpec(id="ghost", address="x:1")
    whole.settings["regions"] = {"": Observed(value=())}
    assert names(whole, targets=(ghost,)) == []
    assert names(whole, targets=(replace(ghost, phase=TargetPhase.DRAINING),)) == ["last-target"]


@pytest.mark.parametrize(
    "action",
    [
        end("s0"),
        Start(token="t", node="s0", reason=""),
        Stop(token="t", node="s0", reason=""),
    ],
)
@pytest.mark.parametrize("lacks", ["lease", "journal", "view"])
def test_authority(whole: Scene, action: Any, lacks: str) -> None:
    whole.settings.update(
        {
            "lease": {"leading": False},
            "journal": {"durable": False},
            "view": {"regions": {"": Observed(value=())}},
        }[lacks]
    )
    assert "authority" in names(whole, action)


def test_a_plan_with_a_violation_keeps_only_what_cannot_harm(
    whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug of a policy: it launches without end, and drains and ends what works.

    What it may not drain stays in the set.
    """

    def broken(turn: Any) -> None:
        turn.actions += [*(launch(f"bug{i}") for i in range(9)), end("s1")]
        turn.leave(turn.fleet.by_id["s0"])
        turn.actions.append(Drain(node="s0", deadline=turn.now + 20.0, cause=Cause.EXCESS, reason="a bug"))
        turn.drain(turn.fleet.by_id["o1"], turn.now + 20.0, Cause.NOTICE, "a notice")

    monkeypatch.setattr(deciding.capacity, "replenish", broken)
    plan = decide(whole.pool, whole.world, whole.memory)
    alarms = [a for a in plan.actions if isinstance(a, Alarm)]
    assert {a.name for a in alarms} == {"InvariantViolated"}
    assert any(a.reason.startswith("surplus: 10 nodes would live") for a in alarms)
    rest = [a for a in plan.actions if not isinstance(a, Alarm | Attach)]
    assert [a.node for a in rest if isinstance(a, Drain)] == ["o1"]
    assert not [a for a in rest if isinstance(a, Launch | Terminate | Start | Stop)]
    assert [a.node for a in rest if isinstance(a, Detach)] == ["o1"]
    phases = {s.id: (s.phase, s.drain_deadline is None) for s in plan.targets}
    assert phases["s0"] == (TargetPhase.ACTIVE, True)
    assert phases["o1"] == (TargetPhase.DRAINING, False)
