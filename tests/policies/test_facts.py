"""What an observation says that was not known before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from policies import facts
from policies.actions import ActionKind, Cause
from policies.events import (
    GoneCause,
    NodeBusy,
    NodeFound,
    NodeGone,
    NodeIdle,
    NodeMissing,
    NodeReady,
    NodeSeen,
    NodeStopped,
    PoolWhole,
)
from policies.memory import reduce
from policies.model import (
    InstanceState,
    Market,
    NoticeKind,
    Observed,
    Pool,
    StandbyKind,
    Target,
    TargetPhase,
    TargetState,
)

Make = Callable[..., Any]
ON_DEMAND = Market.ON_DEMAND


def changes(here: Any) -> tuple[Any, ...]:
    return facts.changes(here.pool, here.world, here.memory)


def test_a_picture_that_is_known_says_nothing(scene: Make) -> None:
    assert changes(scene().nodes(2).nodes(2, ON_DEMAND)) == ()


# -- new nodes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state", [InstanceState.PENDING, InstanceState.RUNNING, InstanceState.STOPPING, InstanceState.STOPPED]
)
def test_a_living_node_that_nobody_knows_is_adopted(scene: Make, state: InstanceState) -> None:
    here = scene().nodes(2).node("new", ON_DEMAND, state=state, standby=StandbyKind.STOPPED, serving=False)
    del here.records["new"]
    here.instances["new"] = replace(here.instances["new"], standby=StandbyKind.STOPPED, token="p/1/7")
    (event,) = changes(here)
    assert isinstance(event, NodeSeen)
    assert (event.node, event.token, event.standby) == ("new", "p/1/7", StandbyKind.STOPPED)
    assert event.launched_at == here.instances["new"].launched_at


@pytest.mark.parametrize("token", ["", "web-7", "p", "p/1", "p/blue/1", "p/1/", "other/1/7", "x/p/1/7"])
def test_a_machine_with_our_tag_that_we_never_launched_is_left_alone(scene: Make, token: str) -> None:
    here = scene().nodes(4).node("theirs", ON_DEMAND, serving=False)
    del here.records["theirs"]
    here.instances["theirs"] = replace(here.instances["theirs"], token=token)
    assert changes(here) == ()
    plan = here.plan()
    assert [a for a in plan.actions if getattr(a, "node", "") == "theirs"] == []
    assert "not ours, though tagged as this pool's, and left alone: theirs" in plan.notes


def test_a_launch_is_dated_by_our_own_clock(scene: Make) -> None:
    """The provider's is hours off, or ours is: a boot's patience is counted by ours."""
    for theirs, found in ((-90_000.0, -20.0), (-10.0, -10.0), (90_000.0, 0.0)):
        here = scene().nodes(4).node("new", serving=False).launching("p/1/7", ago=20.0)
        del here.records["new"]
        launched_at = here.now + theirs
        here.instances["new"] = replace(here.instances["new"], token="p/1/7", launched_at=launched_at)
        (event,) = changes(here)
        assert event.launched_at == here.now + found


@pytest.mark.parametrize("state", [InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED])
def test_one_that_ended_before_we_knew_it_is_none_of_ours(scene: Make, state: InstanceState) -> None:
    here = scene().nodes(2).node("old", state=state, serving=False)
    del here.records["old"]
    assert changes(here) == ()


@pytest.mark.parametrize(
    ("market", "cause"), [(Market.SPOT, GoneCause.UNANNOUNCED), (ON_DEMAND, GoneCause.LOST)]
)
def test_one_that_we_launched_and_that_ended_before_it_was_seen_is_counted(
    scene: Make, market: Market, cause: GoneCause
) -> None:
    here = scene().nodes(2).node("quick", market, state=InstanceState.TERMINATED, serving=False)
    del here.records["quick"]
    here.launching("t-quick", market)
    seen, gone = changes(here)
    assert isinstance(seen, NodeSeen)
    assert isinstance(gone, NodeGone)
    assert gone.cause is cause


# -- readiness -----------------------------------------------------------------------------------------


def test_readiness_is_told_once(scene: Make) -> None:
    here = scene().nodes(2).node("x", ready=False)
    assert changes(here) == ()
    here.engines["x"] = replace(here.engines["x"], ready=True, ok=True)
    (event,) = changes(here)
    assert event == NodeReady(at=here.now, node="x", address="x:1")
    here.records["x"] = replace(here.records["x"], ready_at=here.now)
    assert changes(here) == ()


@pytest.mark.parametrize("state", [InstanceState.PENDING, InstanceState.STOPPED, InstanceState.SHUTTING_DOWN])
def test_only_a_running_machine_becomes_ready(scene: Make, state: InstanceState) -> None:
    here = scene().nodes(2).node("x", ready=False)
    here.engines["x"] = replace(here.engines["x"], ready=True, ok=True)
    here.instances["x"] = replace(here.instances["x"], state=state)
    assert changes(here) == ()


def test_a_stopped_node_must_become_ready_again(scene: Make) -> None:
    here = scene().nodes(2).node("x", ON_DEMAND, state=InstanceState.STOPPING, standby=StandbyKind.STOPPED)
    assert changes(here) == (NodeStopped(at=here.now, node="x"),)
    here.records["x"] = replace(here.records["x"], ready_at=None)
    assert changes(here) == ()
    here.asked("x", ActionKind.STOP)  # it was stopped before it was ready
    assert changes(here) == (NodeStopped(at=here.now, node="x"),)


def test_whole_is_told_once_and_for_the_number_that_is_wanted_now(scene: Make) -> None:
    here = scene(whole_at=None).nodes(4)

    def whole() -> tuple[Any, ...]:
        return facts.whole(here.pool, here.world, here.memory, here.fleet)

    assert whole() == (PoolWhole(at=here.now),)
    here.fields["whole_at"] = 1.0
    assert whole() == ()
    here.fields.update(whole_at=None, replicas=3)  # the change is not journalled yet
    assert whole() == ()
    here.fields["replicas"] = 4
    here.node("s0", ready=False)
    assert whole() == ()


# -- the end of a node ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("market", "notice", "asked", "cause"),
    [
        (Market.SPOT, NoticeKind.INTERRUPTION, False, GoneCause.RECLAIMED),
        (Market.SPOT, NoticeKind.INTERRUPTION, True, GoneCause.RECLAIMED),
        (Market.SPOT, NoticeKind.MAINTENANCE, False, GoneCause.RECLAIMED),
        (Market.SPOT, NoticeKind.REBALANCE, False, GoneCause.UNANNOUNCED),
        (Market.SPOT, NoticeKind.STATE_CHANGE, False, GoneCause.UNANNOUNCED),
        (Market.SPOT, NoticeKind.STATE_CHANGE, True, GoneCause.TERMINATED),
        (Market.SPOT, None, False, GoneCause.UNANNOUNCED),
        (Market.SPOT, None, True, GoneCause.TERMINATED),
        (ON_DEMAND, None, False, GoneCause.LOST),
        (ON_DEMAND, None, True, GoneCause.TERMINATED),
        (ON_DEMAND, NoticeKind.INTERRUPTION, False, GoneCause.LOST),
    ],
)
def test_why_a_node_is_gone(
    scene: Make, market: Market, notice: NoticeKind | None, asked: bool, cause: GoneCause
) -> None:
    here = scene().nodes(3).node("x", market, state=InstanceState.TERMINATED, serving=False)
    if notice is not None:
        here.notice("x", kind=notice)
    if asked:
        here.asked("x", ActionKind.TERMINATE)
    assert changes(here) == (NodeGone(at=here.now, node="x", cause=cause),)


def test_a_cancelled_notice_announced_nothing(scene: Make) -> None:
    here = scene().nodes(3).node("x", state=InstanceState.TERMINATED, serving=False)
    here.notice("x", cancelled=True)
    assert [e.cause for e in changes(here)] == [GoneCause.UNANNOUNCED]


def test_a_machine_that_is_shutting_down_is_not_gone_yet(scene: Make) -> None:
    assert changes(scene().nodes(3).node("x", state=InstanceState.SHUTTING_DOWN)) == ()


# -- lists that lack nodes -----------------------------------------------------------------------------


def lacking(scene: Make, *, silent: bool = True, missing_for: float | None = None, **more: Any) -> Any:
    here = scene().nodes(9).node("x", listed=False, probed=not silent, vouched=not silent, **more)
    if missing_for is not None:
        here.records["x"] = replace(here.records["x"], missing_since=here.now - missing_for)
    return here


def test_a_node_that_a_complete_list_lacks_is_missing_and_not_gone(scene: Make) -> None:
    assert changes(lacking(scene)) == (NodeMissing(at=10_000.0, node="x"),)


@pytest.mark.parametrize(
    ("silent", "missing_for", "gone"),
    [
        (True, 14.9, False),
        (True, 15.0, True),
        (False, 15.0, False),
        (False, 149.0, False),
        (False, 150.0, True),
    ],
)
def test_it_is_gone_after_the_grace_time_and_ten_times_that_while_it_answers(
    scene: Make, silent: bool, missing_for: float, gone: bool
) -> None:
    found = changes(lacking(scene, silent=silent, missing_for=missing_for))
    assert bool(found) is gone
    assert all(isinstance(e, NodeGone) for e in found)


def test_what_a_balancer_finds_healthy_is_not_gone_because_nobody_has_looked_at_it_yet(scene: Make) -> None:
    """After a restart its absence may be older than the daemon, and a list may lack a page."""
    here = scene().nodes(9).node("x", listed=False, probed=False, vouched=True)
    for missing_for, gone in ((20.0, False), (149.0, False), (150.0, True)):
        here.records["x"] = replace(here.records["x"], missing_since=here.now - missing_for)
        assert bool(changes(here)) is gone


def test_a_node_that_was_never_ready_may_be_one_that_lists_do_not_show_yet(scene: Make) -> None:
    for missing_for, gone in ((20.0, False), (149.0, False), (150.0, True)):
        assert bool(changes(lacking(scene, missing_for=missing_for, ready=False))) is gone


def test_a_node_that_is_in_the_list_again_is_found(scene: Make) -> None:
    here = scene().nodes(9).node("x", missing_since=9_000.0)
    assert changes(here) == (NodeFound(at=here.now, node="x"),)


@pytest.mark.parametrize(
    "instances",
    [
        Observed(value=()),
        Observed(value=(), at=9_999.0, error="throttled"),
    ],
)
def test_an_incomplete_list_says_nothing_of_what_it_lacks(scene: Make, instances: Observed[Any]) -> None:
    here = scene().nodes(4)
    here.settings["instances"] = instances
    assert changes(here) == ()


def test_a_list_older_than_the_launch_says_nothing_of_it(scene: Make) -> None:
    here = lacking(scene, age=5.0)
    here.settings["instances"] = Observed(value=tuple(here.instances.values()), at=here.now - 6.0)
    assert changes(here) == ()


@pytest.mark.parametrize(("listed", "doubted"), [(7, False), (6, True), (0, True)])
def test_a_list_that_lacks_a_third_at_once_is_doubted(scene: Make, listed: int, doubted: bool) -> None:
    here = scene(Pool(name="p", replicas=10))
    for i in range(10):
        missing = i >= listed
        here.node(
            f"n{i}",
            listed=not missing,
            probed=not missing,
            vouched=not missing,
            missing_since=9_950.0 if missing else None,
        )
    found = changes(here)
    assert bool(found) is not doubted
    here.now += 100.0
    assert len(changes(here)) == 10 - listed  # not for ever


# -- drains --------------------------------------------------------------------------------------------


def drained(
    scene: Make, *, idle_since: float | None = None, held: TargetPhase | None = TargetPhase.DRAINING
) -> Any:
    here = scene().nodes(4).node("x").drain("x", Cause.EXCESS, since=10.0)
    here.records["x"] = replace(here.records["x"], idle_since=idle_since, detached_at=here.now - 8.0)
    if held is None:
        del here.held["x"]
    else:
        here.held["x"] = held
    return here


def counted(here: Any, *, engine: int = 0, balancer: int = 0, age: float = 0.0, view_age: float = 0.0) -> Any:
    here.engines["x"] = replace(here.engines["x"], running=engine, at=here.now - age)
    target = Target(id="x", address="x:1", state=TargetState.DRAINING, in_flight=balancer)
    view = Observed(value=(target,), at=here.now - view_age)
    here.settings["balancers"] = {"gw": view}
    return here


@pytest.mark.parametrize(("engine", "balancer", "idle"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_idle_by_every_count(scene: Make, engine: int, balancer: int, idle: bool) -> None:
    here = counted(drained(scene), engine=engine, balancer=balancer)
    assert changes(here) == ((NodeIdle(at=here.now, node="x"),) if idle else ())


@pytest.mark.parametrize(
    ("age", "view_age", "idle"), [(8.0, 8.0, True), (8.1, 0.0, False), (0.0, 8.1, False)]
)
def test_counts_from_before_the_detachment_say_nothing(
    scene: Make, age: float, view_age: float, idle: bool
) -> None:
    assert bool(changes(counted(drained(scene), age=age, view_age=view_age))) is idle


def test_a_node_that_still_gets_requests_is_not_idle(scene: Make) -> None:
    here = counted(drained(scene, held=TargetPhase.ACTIVE))
    assert changes(here) == ()
    here = counted(drained(scene, held=TargetPhase.ACTIVE, idle_since=9_995.0))
    assert changes(here) == (NodeBusy(at=here.now, node="x"),)


def test_requests_that_come_back_make_it_busy(scene: Make) -> None:
    here = counted(drained(scene, idle_since=9_999.0), engine=1)
    assert changes(here) == (NodeBusy(at=here.now, node="x"),)
    assert changes(counted(drained(scene, idle_since=9_999.0))) == ()


def test_a_balancer_that_cannot_be_read_has_no_say(scene: Make) -> None:
    here = counted(drained(scene))
    here.settings["balancers"] = {
        "gw": here.settings["balancers"]["gw"],
        "alb": Observed(value=(), at=None, error="no answer"),
    }
    assert changes(here) == (NodeIdle(at=here.now, node="x"),)


def test_an_engine_that_fell_silent_holds_nothing(scene: Make) -> None:
    here = counted(drained(scene), engine=5)
    here.engines["x"] = replace(here.engines["x"], ok=False, failing_since=here.now - 3.0)
    assert changes(here) == (NodeIdle(at=here.now, node="x"),)


def test_the_order_of_a_list_does_not_matter_to_what_is_remembered(scene: Make) -> None:
    here = scene().nodes(3)
    here.records.clear()
    forwards = reduce(here.memory, *changes(here))
    here.instances = dict(reversed(here.instances.items()))
    assert reduce(here.memory, *changes(here)) == forwards
