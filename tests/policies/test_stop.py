"""Machines that stop without our asking: a spot node is taken for good, a standby comes back."""

from __future__ import annotations

from typing import Any

import pytest

from policies import observations
from policies.actions import ActionKind, Cause, Drain, Start, Terminate
from policies.events import GoneCause, NodeGone, NodeSeen, NodeStopped, NoticeSeen
from policies.memory import reduce
from policies.model import (
    Confidence,
    InstanceState,
    Market,
    Notice,
    NoticeKind,
    Pool,
    StandbyKind,
    StandbyRules,
    TargetPhase,
)
from policies.value import replace
from tests.support.scene import Scene
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_pools import of_kind, quick_pool

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
STOPPING, STOPPED = InstanceState.STOPPING, InstanceState.STOPPED


def changes(here: Scene) -> tuple[Any, ...]:
    return observations.changes(here.pool, here.world, here.memory)


def taken_up(here: Scene) -> Any:
    """The same scene once its changes are remembered."""
    memory = reduce(here.memory, *changes(here))
    here.records = dict(memory.nodes)
    here.fields.update(swaps=memory.swaps, incoming=memory.incoming, intents=memory.intents)
    return here


def stop_of(node: str) -> NoticeSeen:
    notice = Notice(
        id=f"e-{node}",
        kind=NoticeKind.STOP,
        node=node,
        deadline=10_000.0,
        source="queue",
        confidence=Confidence.CONFIRMED,
        seen_at=10_000.0,
    )
    return NoticeSeen(at=10_000.0, notice=notice)


@pytest.mark.parametrize("state", [STOPPING, STOPPED])
@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("age", [100.0, 5000.0])
def test_a_spot_node_that_a_list_shows_stopped_is_drained_and_a_stopped_standby_takes_its_place(
    state: InstanceState, ready: bool, age: float
) -> None:
    here = Scene(Pool(name="p", replicas=4, standby=StandbyRules(stopped=1)))
    here.nodes(1).nodes(2, ON_DEMAND).node("x", ready=ready, age=age, state=state, serving=ready)
    here.node("sb", ON_DEMAND, ready=False, state=STOPPED, standby=StandbyKind.STOPPED, serving=False)
    here.engines["x"] = replace(here.engines["s0"], node="x", ok=False, failing_since=here.now - 60.0)
    here.shown.pop("x", None)
    plan = taken_up(here).plan()
    assert {a.cause for a in of_kind(plan, Terminate)} <= {Cause.NOTICE}  # it did not fail to boot
    (drain,) = of_kind(plan, Drain)
    assert (drain.node, drain.cause) == ("x", Cause.NOTICE)
    assert "stop notice" in drain.reason
    assert [(a.node, a.replaces) for a in of_kind(plan, Start)] == [("sb", "x")]
    assert {t.id for t in plan.targets if t.phase is TargetPhase.ACTIVE} == {"s0", "o0", "o1"}
    assert here.fleet.by_id["x"].leaving
    assert [n.id for n in here.fleet.standbys] == ["sb"]


def test_it_is_ended_once_its_requests_are_out_and_keeps_no_disk() -> None:
    here = Scene().nodes(2).nodes(1, ON_DEMAND).node("x", state=STOPPED, serving=False)
    taken_up(here).drain("x", Cause.NOTICE, since=40.0, left=-10.0)
    here.shown.pop("x", None)
    here.held.pop("x", None)
    assert [(a.node, a.cause) for a in of_kind(here.plan(), Terminate)] == [("x", Cause.NOTICE)]


def test_its_stop_is_remembered_once() -> None:
    here = Scene().nodes(3).node("x", state=STOPPED, serving=False)
    assert changes(here) == (NodeStopped(at=here.now, node="x"),)
    assert changes(taken_up(here)) == ()


def test_a_node_whose_engine_answers_is_not_stopped_by_a_list() -> None:
    here = Scene().nodes(3).node("x")
    here.instances["x"] = replace(here.instances["x"], state=STOPPED)
    assert changes(here) == ()


@pytest.mark.parametrize(
    ("market", "asked", "kinds"),
    [(SPOT, False, [NoticeKind.STOP]), (SPOT, True, []), (ON_DEMAND, False, []), (ON_DEMAND, True, [])],
)
def test_only_a_spot_node_that_we_did_not_stop_is_taken(
    market: Market, asked: bool, kinds: list[NoticeKind]
) -> None:
    here = Scene().nodes(2).node("x", market, state=STOPPED, serving=False)
    if asked:
        here.asked("x", ActionKind.STOP)
    assert [n.kind for n in taken_up(here).records["x"].notices] == kinds
    assert here.fields["intents"] == {}


@pytest.mark.parametrize("early", [False, True])
def test_events_of_a_stop_drain_a_spot_node_and_say_nothing_of_a_standby(early: bool) -> None:
    """They come before a list shows it, and sometimes before a list shows the node at all."""
    here = Scene().nodes(2).nodes(1, ON_DEMAND).node("x")
    here.node("sb", ON_DEMAND, standby=StandbyKind.STOPPED, serving=False)
    for number, node in enumerate(("x", "sb")):
        here.instances[node] = replace(here.instances[node], token=f"p/7/{number}")
    memory = here.memory
    if early:
        memory = replace(memory, nodes={i: r for i, r in memory.nodes.items() if i not in ("x", "sb")})
    memory = reduce(memory, stop_of("x"), stop_of("sb"))
    if early:
        assert set(memory.early_notices) == {"x", "sb"}
        memory = reduce(memory, *observations.changes(here.pool, here.world, memory))
    assert [n.kind for n in memory.nodes["x"].notices] == [NoticeKind.STOP]
    assert memory.nodes["sb"].notices == ()
    here.records = dict(memory.nodes)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["x"]


def test_it_is_a_reclaim_that_the_placement_is_held_to() -> None:
    here = Scene().nodes(2).node("x", zone="b", state=STOPPED, serving=False)
    memory = reduce(here.memory, *changes(here))
    where = memory.nodes["x"].placement
    assert set(memory.reclaims) == {where}
    assert memory.boot_failures == {}
    assert reduce(memory, stop_of("x")).reclaims == memory.reclaims  # the same news once more
    here.records = dict(memory.nodes)
    here.instances["x"] = replace(here.instances["x"], state=InstanceState.TERMINATED)
    gone = NodeGone(at=here.now, node="x", cause=GoneCause.RECLAIMED, ended=True)
    assert changes(here) == (gone,)


def test_a_warning_and_then_a_stop_are_one_reclaim() -> None:
    here = Scene().nodes(2).node("x")
    here.notice("x", 60.0)
    memory = reduce(here.memory, stop_of("x"))
    assert memory.reclaims == {}  # it was learnt with the warning
    assert len(memory.nodes["x"].notices) == 2


@pytest.mark.parametrize(("market", "standby"), [(SPOT, None), (ON_DEMAND, StandbyKind.STOPPED)])
def test_a_stopped_spot_machine_is_adopted_as_no_standby(market: Market, standby: StandbyKind | None) -> None:
    here = Scene().nodes(2).node("new", market, state=STOPPED, standby=StandbyKind.STOPPED, serving=False)
    del here.records["new"]
    here.instances["new"] = replace(here.instances["new"], token="p/1/7")
    (event,) = changes(here)
    assert isinstance(event, NodeSeen)
    assert event.standby is standby


def test_a_pool_whose_spot_node_is_stopped_and_whose_standby_is_kept() -> None:
    """The one is replaced and ended, with its disk; of the other, which we stopped, nothing is thought."""
    toy = CheckedCloud(quick_pool(4, standby=StandbyRules(stopped=1)))
    toy.run(200)
    (standby,) = [i for i in toy.alive() if toy.machines[i].instance.state is STOPPED]
    victim, other = toy.alive(SPOT)
    toy.arriving += [replace(stop_of(standby), at=toy.now), replace(stop_of(standby), at=toy.now)]
    toy.run(10)
    assert toy.active() == sorted(set(toy.alive()) - {standby})
    toy._set(victim, STOPPED)
    toy.run(300)
    assert victim not in toy.alive()
    assert other in toy.active()
    assert len(toy.answering()) == 4
    assert [toy.machines[i].instance.state for i in toy.alive()].count(STOPPED) == 1
    assert toy.memory.preemptions == 1
    assert toy.memory.preemptions_without_notice == 0
    assert toy.memory.boot_failures == {}
