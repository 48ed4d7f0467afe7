"""What events leave in memory: the clauses that only one case decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies import hazard, parts
from policies.actions import ActionKind, Cause
from policies.events import (
    DaemonStarted,
    DrainEnded,
    DrainStarted,
    Event,
    GoneCause,
    IntentOpened,
    NodeGone,
    NodeReady,
    NodeSeen,
    ProviderBack,
    ProviderFailing,
    TargetsApplied,
)
from policies.hazard import ZoneHistory
from policies.memory import reduce, replay
from policies.model import Market, StandbyKind, TargetPhase
from policies.records import Memory, intent_key
from tests.support.toy_pools import ON_DEMAND, SPOT, place


def seen(
    node: str, market: Market = SPOT, *, at: float = 10.0, standby: StandbyKind | None = None
) -> NodeSeen:
    return NodeSeen(
        at=at,
        node=node,
        token=f"t-{node}",
        placement=place("a", market),
        launched_at=at,
        price=1.0,
        address="h:1",
        standby=standby,
    )


def ready(node: str, *, at: float = 20.0) -> NodeReady:
    return NodeReady(at=at, node=node, address="h:1")


def drain(node: str, cause: Cause, *, at: float = 50.0) -> DrainStarted:
    return DrainStarted(at=at, node=node, deadline=at + 30.0, cause=cause, reason="because")


# -- a machine that the provider ended before it was ready -----------------------------------------------


def test_a_machine_that_ended_for_want_of_capacity_was_refused_there() -> None:
    """The refusal, what is learned of the zone, and since when spot is lost."""
    before = replace(replay([seen("n")]), zones={place(): ZoneHistory(seen_at=0.0, age=100.0)})
    after = reduce(before, NodeGone(at=90.0, node="n", cause=GoneCause.REFUSED, ended=True))
    assert after.refusals[place()].at == 90.0
    assert after.zones[place()].age == 0.0
    assert after.spot_lost_at == 90.0


# -- whether spot is there -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "back"),
    [
        (DrainEnded(at=80.0, node="spot", reason="again"), True),
        (DrainEnded(at=80.0, node="dear", reason="again"), False),
        (DrainEnded(at=80.0, node="nobody", reason="again"), False),
        (NodeReady(at=80.0, node="dear", address="h:1"), False),
    ],
)
def test_spot_is_back_when_a_spot_node_stays_after_all(event: Event, back: bool) -> None:
    memory = replay([seen("spot"), seen("dear", ON_DEMAND), ready("spot"), drain("spot", Cause.EXCESS)])
    assert memory.spot_lost_at == 50.0
    assert (reduce(memory, event).spot_lost_at is None) is back


def test_spot_is_lost_with_its_last_node_and_not_with_one_of_two() -> None:
    memory = replay([seen("one"), seen("two"), ready("one"), ready("two"), drain("one", Cause.NOTICE)])
    assert memory.spot_lost_at is None
    both = reduce(memory, drain("two", Cause.NOTICE, at=60.0))
    assert both.spot_lost_at == 60.0
    other = reduce(memory, drain("one", Cause.NOTICE, at=55.0), drain("two", Cause.NOTICE, at=61.0))
    assert other.spot_lost_at == 61.0


def test_an_on_demand_node_that_leaves_loses_no_spot() -> None:
    assert replay([seen("dear", ON_DEMAND), drain("dear", Cause.EXCESS)]).spot_lost_at is None


# -- drains ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cause", "remembered"), [(Cause.REBALANCE, True), (Cause.EXCESS, False)])
def test_a_place_that_the_cloud_recommended_to_leave_is_remembered(cause: Cause, remembered: bool) -> None:
    memory = replay([seen("n"), drain("n", cause)])
    assert (place() in memory.reclaims) is remembered
    weight = memory.reclaims[place()].weight if remembered else 0.0
    again = reduce(memory, drain("n", Cause.REBALANCE, at=500.0))  # its deadline moves: no further news
    assert (again.reclaims[place()].weight if remembered else 0.0) == weight


def test_a_set_lets_go_of_what_drains_and_of_nothing_that_it_sends_requests_to() -> None:
    """Two balancers; the second one never had either of them."""
    memory = replay(
        [seen("leaves"), seen("stays"), drain("leaves", Cause.EXCESS), drain("stays", Cause.SICK)]
    )
    held = {"leaves": TargetPhase.DRAINING, "stays": TargetPhase.ACTIVE}
    memory = replace(memory, targets={"gw": held}, applied_at={"gw": 40.0})
    after = reduce(memory, TargetsApplied(at=60.0, balancer="gw", generation=2, changes=()))
    assert after.nodes["leaves"].detached_at == 60.0
    assert after.nodes["stays"].detached_at is None


def test_a_node_that_works_is_not_let_go_of_by_a_set_without_it() -> None:
    memory = replace(replay([seen("n")]), targets={"gw": {}}, applied_at={"gw": 40.0})
    after = reduce(memory, TargetsApplied(at=60.0, balancer="gw", generation=2, changes=()))
    assert after.nodes["n"].detached_at is None


# -- starts ----------------------------------------------------------------------------------------------


def test_start_times_are_learned_apart_for_spot_on_demand_and_standbys() -> None:
    memory = replay([seen("s"), seen("o", ON_DEMAND), seen("sb", ON_DEMAND, standby=StandbyKind.STOPPED)])
    memory = reduce(memory, NodeReady(at=110.0, node="s", address="h:1"))
    memory = reduce(memory, NodeReady(at=160.0, node="o", address="h:1"))
    assert {k: v.mean for k, v in memory.timings.items()} == {
        hazard.SPOT_START: 100.0,
        hazard.ON_DEMAND_START: 150.0,
    }
    start = IntentOpened(at=200.0, token=intent_key("sb", ActionKind.START), kind=ActionKind.START, node="sb")
    memory = reduce(memory, start)
    began = memory.nodes["sb"].started_at
    memory = reduce(memory, NodeReady(at=began + 70.0, node="sb", address="h:1"))
    assert memory.timings[hazard.STANDBY_START].mean == 70.0


def test_a_start_that_nobody_asked_for_teaches_nothing() -> None:
    """A machine that was stopped and started again outside: neither a launch nor a standby."""
    memory = replay([seen("n")])
    memory = replace(memory, nodes={"n": replace(memory.nodes["n"], started_at=400.0)})
    assert reduce(memory, NodeReady(at=900.0, node="n", address="h:1")).timings == {}


# -- restarts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "ran"),
    [
        ({}, False),
        ({"served_at": 20.0}, True),
        ({"whole_at": 20.0}, True),
        ({"nodes": True}, True),
    ],
    ids=str,
)
def test_a_snapshot_tells_that_the_pool_ran_once_by_any_of_its_signs(
    told: dict[str, object], ran: bool
) -> None:
    memory = replay([seen("n"), *([NodeReady(at=20.0, node="n", address="h:1")] if "nodes" in told else [])])
    old = replace(memory, ready_once=False, **{k: v for k, v in told.items() if k != "nodes"})
    assert reduce(old, DaemonStarted(at=100.0, epoch=2)).ready_once is ran


# -- parts and providers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "seconds"), [(1, 0.0), (3, 0.0), (4, 30.0), (5, 60.0), (7, 240.0), (11, 3600.0), (999, 3600.0)]
)
def test_how_long_the_return_of_what_comes_and_goes_is_no_news(times: int, seconds: float) -> None:
    assert parts.hold(times) == seconds


def test_a_provider_that_did_not_fail_is_not_back() -> None:
    memory = reduce(Memory(), ProviderFailing(at=5.0, provider="acme", why="429", since=1.0))
    assert memory.failing == {"acme": 1.0}
    assert reduce(memory, ProviderBack(at=9.0, provider="other", after=1.0)).failing == {"acme": 1.0}
    assert reduce(memory, ProviderBack(at=9.0, provider="acme", after=8.0)).failing == {}
