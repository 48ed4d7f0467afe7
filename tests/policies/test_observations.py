"""What an observation says that was not known before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies import observations
from policies.actions import ActionKind, Cause
from policies.events import (
    GoneCause,
    NodeBusy,
    NodeFound,
    NodeGone,
    NodeIdle,
    NodeMissing,
    NodeReady,
    NodeRouted,
    NodeSeen,
    NodeStopped,
    PoolGrew,
    PoolWhole,
)
from policies.memory import reduce
from policies.model import (
    InstanceState,
    Market,
    NoticeKind,
    Observed,
    Phase,
    Pool,
    StandbyKind,
    Target,
    TargetPhase,
    TargetState,
)
from tests.support.scene import Scene

ON_DEMAND = Market.ON_DEMAND


def changes(here: Scene) -> tuple[Any, ...]:
    return observations.changes(here.pool, here.world, here.memory)


def test_a_picture_that_is_known_says_nothing() -> None:
    assert changes(Scene().nodes(2).nodes(2, ON_DEMAND)) == ()


# -- new nodes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state", [InstanceState.PENDING, InstanceState.RUNNING, InstanceState.STOPPING, InstanceState.STOPPED]
)
def test_a_living_node_that_nobody_knows_is_adopted(state: InstanceState) -> None:
    here = Scene().nodes(2).node("new", ON_DEMAND, state=state, standby=StandbyKind.STOPPED, serving=False)
    del here.records["new"]
    here.instances["new"] = replace(here.instances["new"], standby=StandbyKind.STOPPED, token="p/1/7")
    (event,) = changes(here)
    assert isinstance(event, NodeSeen)
    assert (event.node, event.token, event.standby) == ("new", "p/1/7", StandbyKind.STOPPED)
    assert event.launched_at == here.instances["new"].launched_at


def test_what_a_node_was_launched_to_run_is_remembered_as_it_was_first_seen() -> None:
    """Also of a standby that turns out to be at work, which is then seen anew."""
    here = Scene().nodes(2).node("new", ON_DEMAND, serving=False)
    del here.records["new"]
    here.instances["new"] = replace(here.instances["new"], build="b", token="p/1/7")
    memory = reduce(here.memory, *changes(here))
    assert memory.nodes["new"].build == "b"
    standby = Scene().nodes(2).node("o9", ON_DEMAND, standby=StandbyKind.STOPPED, serving=False, build="b")
    standby.instances["o9"] = replace(standby.instances["o9"], build="b")
    standby.shown["o9"] = Target(id="o9", address="o9:1", state=TargetState.HEALTHY)
    standby.settings["balancers"] = {"gw": Observed(value=tuple(standby.shown.values()), at=standby.now)}
    (seen,) = [e for e in changes(standby) if isinstance(e, NodeSeen)]
    assert (seen.standby, reduce(standby.memory, seen).nodes["o9"].build) == (None, "b")


@pytest.mark.parametrize(
    ("state", "standby"),
    [(TargetState.HEALTHY, None), (TargetState.UNHEALTHY, StandbyKind.STOPPED), (None, StandbyKind.STOPPED)],
)
def test_a_standby_that_a_balancer_sends_requests_to_works_also_where_its_launch_is_still_open(
    state: TargetState | None, standby: StandbyKind | None
) -> None:
    """A journal that was restored from a copy is older than its start."""
    here = Scene().nodes(2).node("new", ON_DEMAND, serving=False).launching("p/1/7", ON_DEMAND)
    del here.records["new"]
    here.instances["new"] = replace(here.instances["new"], standby=StandbyKind.STOPPED, token="p/1/7")
    if state is not None:
        here.shown["new"] = Target(id="new", address="new:1", state=state)
    (event,) = changes(here)
    assert isinstance(event, NodeSeen)
    assert event.standby is standby


@pytest.mark.parametrize(
    ("found", "standby"), [(TargetState.HEALTHY, None), (TargetState.INITIAL, StandbyKind.STOPPED)]
)
def test_a_standby_that_an_old_list_shows_stopped_works_where_a_balancer_finds_it_healthy(
    found: TargetState, standby: StandbyKind | None
) -> None:
    here = Scene().nodes(2).node("x", ON_DEMAND, state=InstanceState.STOPPED, serving=False)
    del here.records["x"]
    here.instances["x"] = replace(here.instances["x"], standby=StandbyKind.STOPPED, token="p/1/7")
    here.shown["x"] = Target(id="x", address="x:1", state=found)
    (event,) = changes(here)
    assert isinstance(event, NodeSeen)
    assert event.standby is standby


@pytest.mark.parametrize(
    ("found", "works"), [(TargetState.HEALTHY, True), (TargetState.UNHEALTHY, False), (None, False)]
)
def test_so_it_does_where_lists_lack_it(found: TargetState | None, works: bool) -> None:
    here = Scene().nodes(2).node("x", ON_DEMAND, listed=False, standby=StandbyKind.STOPPED, serving=False)
    if found is not None:
        here.shown["x"] = Target(id="x", address="x:1", state=found)
    seen = [e for e in changes(here) if isinstance(e, NodeSeen)]
    assert [(e.node, e.token, e.standby) for e in seen] == ([("x", "p/7/x", None)] if works else [])
    assert ("x" in {t.id for t in here.plan().targets}) is False
    here.records = {**reduce(here.memory, *changes(here)).nodes}
    assert ("x" in {t.id for t in here.plan().targets}) is works


@pytest.mark.parametrize("token", ["", "web-7", "p", "p/1", "p/blue/1", "p/1/", "other/1/7", "x/p/1/7"])
def test_a_machine_with_our_tag_that_we_never_launched_is_left_alone(token: str) -> None:
    here = Scene().nodes(4).node("theirs", ON_DEMAND, serving=False)
    del here.records["theirs"]
    here.instances["theirs"] = replace(here.instances["theirs"], token=token)
    assert changes(here) == ()
    plan = here.plan()
    assert [a for a in plan.actions if getattr(a, "node", "") == "theirs"] == []
    assert "not ours, though tagged as this pool's, and left alone: theirs" in plan.notes


def test_a_launch_is_dated_by_our_own_clock() -> None:
    """The provider's is hours off, or ours is: a boot's patience is counted by ours."""
    for theirs, found in ((-90_000.0, -20.0), (-10.0, -10.0), (90_000.0, 0.0)):
        here = Scene().nodes(4).node("new", serving=False).launching("p/1/7", ago=20.0)
        del here.records["new"]
        launched_at = here.now + theirs
        here.instances["new"] = replace(here.instances["new"], token="p/1/7", launched_at=launched_at)
        (event,) = changes(here)
        assert event.launched_at == here.now + found


def test_a_launch_that_was_asked_for_again_counts_from_the_last_time() -> None:
    """It may have been refused for longer than a boot takes before, and the clock been set since."""
    for theirs, found in ((-90_000.0, -5.0), (-300.0, -5.0), (-2.0, -2.0), (90_000.0, 0.0)):
        here = Scene().nodes(4).node("new", serving=False)
        here.launching("p/1/7", ago=400.0, asked_at=here.now - 5.0)
        del here.records["new"]
        launched_at = here.now + theirs
        here.instances["new"] = replace(here.instances["new"], token="p/1/7", launched_at=launched_at)
        (event,) = changes(here)
        assert event.launched_at == here.now + found


@pytest.mark.parametrize("state", [InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED])
def test_one_that_ended_before_we_knew_it_is_none_of_ours(state: InstanceState) -> None:
    here = Scene().nodes(2).node("old", state=state, serving=False)
    del here.records["old"]
    assert changes(here) == ()


@pytest.mark.parametrize(
    ("market", "cause"), [(Market.SPOT, GoneCause.UNANNOUNCED), (ON_DEMAND, GoneCause.LOST)]
)
def test_one_that_we_launched_and_that_ended_before_it_was_seen_is_counted(
    market: Market, cause: GoneCause
) -> None:
    here = Scene().nodes(2).node("quick", market, state=InstanceState.TERMINATED, serving=False)
    del here.records["quick"]
    here.launching("p/7/quick", market)
    seen, gone = changes(here)
    assert isinstance(seen, NodeSeen)
    assert isinstance(gone, NodeGone)
    assert gone.cause is cause


# -- readiness -----------------------------------------------------------------------------------------


def test_readiness_is_told_once() -> None:
    here = Scene().nodes(2).node("x", ready=False)
    assert changes(here) == ()
    here.engines["x"] = replace(here.engines["x"], ready=True, ok=True)
    (event,) = changes(here)
    assert event == NodeReady(at=here.now, node="x", address="x:1")
    here.records["x"] = replace(here.records["x"], ready_at=here.now)
    assert changes(here) == ()


@pytest.mark.parametrize("state", [InstanceState.PENDING, InstanceState.STOPPED, InstanceState.SHUTTING_DOWN])
def test_only_a_running_machine_becomes_ready(state: InstanceState) -> None:
    here = Scene().nodes(2).node("x", ON_DEMAND, ready=False)
    here.engines["x"] = replace(here.engines["x"], ready=True, ok=True)
    here.instances["x"] = replace(here.instances["x"], state=state)
    assert changes(here) == ()


@pytest.mark.parametrize("answers", [True, False])
def test_a_node_that_no_list_shows_becomes_ready_when_its_engine_answers(answers: bool) -> None:
    """Else a look that fails would tell that it boots, and it would leave the set at once."""
    here = Scene().nodes(2).node("x", ready=False, listed=False, missing_since=9_990.0)
    here.engines["x"] = replace(here.engines["x"], ready=True, ok=answers)
    ready = (NodeReady(at=here.now, node="x", address="x:1"),)
    assert changes(here) == (ready if answers else ())


def test_a_stopped_node_must_become_ready_again() -> None:
    here = Scene().nodes(2).node("x", ON_DEMAND, state=InstanceState.STOPPING, standby=StandbyKind.STOPPED)
    assert changes(here) == (NodeStopped(at=here.now, node="x"),)
    here.records["x"] = replace(here.records["x"], ready_at=None)
    assert changes(here) == ()
    here.asked("x", ActionKind.STOP)  # it was stopped before it was ready
    assert changes(here) == (NodeStopped(at=here.now, node="x"),)


def test_a_node_at_work_is_not_stopped_by_a_list_from_before_its_start_and_one_look_that_failed() -> None:
    here = Scene().nodes(2).node("x", ON_DEMAND)
    here.instances["x"] = replace(here.instances["x"], state=InstanceState.STOPPED)
    for silent_for in (None, 0.0, 4.9):
        since = None if silent_for is None else here.now - silent_for
        here.engines["x"] = replace(here.engines["x"], ok=since is None, failing_since=since)
        assert changes(here) == ()
        assert "x" in {n.id for n in here.fleet.ready}
    here.engines["x"] = replace(here.engines["x"], failing_since=here.now - here.pool.health.unhealthy_after)
    assert changes(here) == (NodeStopped(at=here.now, node="x"),)


@pytest.mark.parametrize(("address", "held"), [("", False), ("x:1", False), ("", True)])
def test_a_node_that_answers_is_ready_only_where_it_is_known_where_it_listens(
    address: str, held: bool
) -> None:
    """It is looked at where a list showed it that was forgotten since: nobody could send it requests.

    A balancer that has it knows, and may forget: that is remembered.
    """
    here = Scene().nodes(4)
    here.node("x", ready=False, listed=False, address=address, serving=held, missing_since=9_990.0)
    here.engines["x"] = replace(here.engines["x"], ready=True, ok=True, failing_since=None)
    ready = (NodeReady(at=here.now, node="x", address="x:1"),)
    assert changes(here) == (ready if address or held else ())


def test_a_standby_that_was_started_again_is_ready_only_when_it_answers() -> None:
    """Who probes it may remember that it was ready before it was stopped."""
    here = Scene().nodes(2).node("x", ON_DEMAND, ready=False)
    here.engines["x"] = replace(here.engines["x"], ready=True)
    assert changes(here) == ()
    assert here.fleet.by_id["x"].phase is Phase.STARTING


def test_whole_is_told_once_and_for_the_number_that_is_wanted_now() -> None:
    here = Scene(whole_at=None).nodes(4)

    def whole() -> tuple[Any, ...]:
        return observations.whole(here.pool, here.world, here.memory, here.fleet)

    assert whole() == (PoolWhole(at=here.now),)
    here.fields["whole_at"] = 1.0
    assert whole() == ()
    here.fields.update(whole_at=None, replicas=3)  # the change is not journalled yet
    assert whole() == ()
    here.fields["replicas"] = 4
    here.node("s0", ready=False)
    assert whole() == (PoolGrew(at=here.now, ready=3),)
    here.fields["reached"] = 3  # it is told how far the pool ever was, not how far it is
    assert whole() == ()


# -- the end of a node ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("market", "notice", "asked", "cause"),
    [
        (Market.SPOT, NoticeKind.INTERRUPTION, False, GoneCause.RECLAIMED),
        (Market.SPOT, NoticeKind.INTERRUPTION, True, GoneCause.RECLAIMED),
        (Market.SPOT, NoticeKind.MAINTENANCE, False, GoneCause.RECLAIMED),
        (Market.SPOT, NoticeKind.STOP, True, GoneCause.RECLAIMED),
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
def test_why_a_node_is_gone(market: Market, notice: NoticeKind | None, asked: bool, cause: GoneCause) -> None:
    here = Scene().nodes(3).node("x", market, state=InstanceState.TERMINATED, serving=False)
    if notice is not None:
        here.notice("x", kind=notice)
    if asked:
        here.asked("x", ActionKind.TERMINATE)
    assert changes(here) == (NodeGone(at=here.now, node="x", cause=cause, ended=True),)


def test_a_cancelled_notice_announced_nothing() -> None:
    here = Scene().nodes(3).node("x", state=InstanceState.TERMINATED, serving=False)
    here.notice("x", cancelled=True)
    assert [e.cause for e in changes(here)] == [GoneCause.UNANNOUNCED]


@pytest.mark.parametrize("ended", [True, False])
def test_one_that_has_ended_stays_so_in_an_older_list(ended: bool) -> None:
    """What was only missing may be back."""
    here = lacking(missing_for=1000.0)
    if ended:
        here.node("x", state=InstanceState.TERMINATED, serving=False)
    memory = reduce(here.memory, *changes(here))
    assert "x" not in memory.nodes
    here.node("x")
    here.instances["x"] = replace(here.instances["x"], token=f"{here.pool.name}/7/1")
    again = [e.node for e in observations.changes(here.pool, here.world, memory) if isinstance(e, NodeSeen)]
    assert again == ([] if ended else ["x"])


def test_a_machine_that_is_shutting_down_is_not_gone_yet() -> None:
    assert changes(Scene().nodes(3).node("x", state=InstanceState.SHUTTING_DOWN)) == ()


# -- lists that lack nodes -----------------------------------------------------------------------------


def lacking(*, silent: bool = True, missing_for: float | None = None, **more: Any) -> Any:
    here = Scene().nodes(9).node("x", listed=False, vouched=not silent, **more)
    if silent:
        here.node("x", listed=False, silent_for=60.0, **more)
    if missing_for is not None:
        here.records["x"] = replace(here.records["x"], missing_since=here.now - missing_for)
    return here


def test_a_node_that_a_complete_list_lacks_is_missing_and_not_gone() -> None:
    assert changes(lacking()) == (NodeMissing(at=10_000.0, node="x"),)


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
    silent: bool, missing_for: float, gone: bool
) -> None:
    found = changes(lacking(silent=silent, missing_for=missing_for))
    assert bool(found) is gone
    assert all(isinstance(e, NodeGone) for e in found)


@pytest.mark.parametrize("vouched", [True, False])
def test_what_nobody_has_looked_at_yet_is_not_gone_whatever_a_balancer_finds(vouched: bool) -> None:
    """After a restart its absence may be older than the daemon, and a list may lack a page."""
    here = Scene().nodes(9).node("x", listed=False, probed=False, vouched=vouched)
    for missing_for, gone in ((20.0, False), (149.0, False), (150.0, True)):
        here.records["x"] = replace(here.records["x"], missing_since=here.now - missing_for)
        assert bool(changes(here)) is gone


@pytest.mark.parametrize(("silent_for", "gone"), [(14.9, False), (15.0, True)])
def test_a_look_that_failed_does_not_make_a_missing_node_one_that_is_gone(
    silent_for: float, gone: bool
) -> None:
    here = lacking(missing_for=100.0)
    reading = here.engines["x"]
    here.engines["x"] = replace(reading, failing_since=here.now - silent_for)
    assert bool(changes(here)) is gone


@pytest.mark.parametrize(("looking_for", "gone"), [(14.9, False), (15.0, True), (None, True)])
def test_time_in_which_nobody_looked_at_lists_does_not_count(looking_for: float | None, gone: bool) -> None:
    """The daemon did not run, hung, or got no list: two that lack a node are not all those between."""
    here = lacking(missing_for=100.0)
    since = None if looking_for is None else here.now - looking_for
    here.settings["regions"] = {"": Observed(value=tuple(here.instances.values()), at=here.now, since=since)}
    assert bool(changes(here)) is gone


def test_a_node_that_was_never_ready_may_be_one_that_lists_do_not_show_yet() -> None:
    for missing_for, gone in ((20.0, False), (149.0, False), (150.0, True)):
        assert bool(changes(lacking(missing_for=missing_for, ready=False))) is gone


@pytest.mark.parametrize("standby", [StandbyKind.STOPPED, None])
def test_that_a_standby_is_silent_does_not_tell_that_it_is_gone(standby: StandbyKind | None) -> None:
    """It was stopped, and no list has shown that yet."""
    here = lacking(missing_for=60.0, standby=standby)
    assert [e.node for e in changes(here)] == ([] if standby else ["x"])


def test_a_node_that_is_in_the_list_again_is_found() -> None:
    here = Scene().nodes(9).node("x", missing_since=9_000.0)
    assert changes(here) == (NodeFound(at=here.now, node="x"),)


@pytest.mark.parametrize(
    "instances",
    [
        Observed(value=()),
        Observed(value=(), at=9_999.0, error="throttled"),
    ],
)
def test_an_incomplete_list_says_nothing_of_what_it_lacks(instances: Observed[Any]) -> None:
    here = Scene().nodes(4)
    here.settings["regions"] = {"": instances}
    assert changes(here) == ()


def test_a_list_older_than_the_launch_says_nothing_of_it() -> None:
    here = lacking(age=5.0)
    here.settings["regions"] = {"": Observed(value=tuple(here.instances.values()), at=here.now - 6.0)}
    assert changes(here) == ()


@pytest.mark.parametrize(("listed", "doubted"), [(7, False), (6, True), (0, True)])
def test_a_list_that_lacks_a_third_at_once_is_doubted(listed: int, doubted: bool) -> None:
    here = Scene(Pool(name="p", replicas=10))
    for i in range(10):
        missing = i >= listed
        here.node(
            f"n{i}",
            listed=not missing,
            silent_for=60.0 if missing else None,
            missing_since=9_950.0 if missing else None,
        )
    found = changes(here)
    assert bool(found) is not doubted
    here.now += 100.0
    assert len(changes(here)) == 10 - listed  # not for ever


def test_what_was_launched_since_a_list_was_made_puts_it_in_no_doubt() -> None:
    here = lacking(missing_for=40.0)
    for i in range(5):
        here.node(f"new{i}", age=5.0, ready=False, listed=False)
    here.settings["regions"] = {"": Observed(value=tuple(here.instances.values()), at=here.now - 6.0)}
    assert [(type(e), e.node) for e in changes(here)] == [(NodeGone, "x")]


# -- drains --------------------------------------------------------------------------------------------


def drained(*, idle_since: float | None = None, held: TargetPhase | None = TargetPhase.DRAINING) -> Any:
    here = Scene().nodes(4).node("x").drain("x", Cause.EXCESS, since=10.0)
    here.records["x"] = replace(here.records["x"], idle_since=idle_since, detached_at=here.now - 8.0)
    if held is None:
        del here.held["x"]
    else:
        here.held["x"] = held
    return here


def counted(
    here: Scene, *, engine: int = 0, balancer: int = 0, age: float = 0.0, view_age: float = 0.0
) -> Any:
    here.engines["x"] = replace(here.engines["x"], running=engine, at=here.now - age)
    target = Target(id="x", address="x:1", state=TargetState.DRAINING, in_flight=balancer)
    view = Observed(value=(target,), at=here.now - view_age)
    here.settings["balancers"] = {"gw": view}
    return here


@pytest.mark.parametrize(("engine", "balancer", "idle"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_idle_by_every_count(engine: int, balancer: int, idle: bool) -> None:
    here = counted(drained(), engine=engine, balancer=balancer)
    assert changes(here) == ((NodeIdle(at=here.now, node="x"),) if idle else ())


@pytest.mark.parametrize(
    ("age", "view_age", "idle"), [(8.0, 8.0, True), (8.1, 0.0, False), (0.0, 8.1, False)]
)
def test_counts_from_before_the_detachment_say_nothing(age: float, view_age: float, idle: bool) -> None:
    assert bool(changes(counted(drained(), age=age, view_age=view_age))) is idle


def test_a_node_that_still_gets_requests_is_not_idle() -> None:
    here = counted(drained(held=TargetPhase.ACTIVE))
    assert changes(here) == ()
    here = counted(drained(held=TargetPhase.ACTIVE, idle_since=9_995.0))
    assert changes(here) == (NodeBusy(at=here.now, node="x"),)


def test_a_node_that_a_balancer_shows_as_active_or_may_have_been_told_is_not_idle() -> None:
    """It acknowledged the detachment and forgot it; or a set that names the node is under way."""
    here = counted(drained(idle_since=9_995.0))
    here.settings["writing"] = {"gw": ("x",)}
    assert changes(here) == (NodeBusy(at=here.now, node="x"),)
    here = counted(drained(idle_since=9_995.0))
    target = Target(id="x", address="x:1", state=TargetState.HEALTHY)
    here.settings["balancers"] = {"gw": Observed(value=(target,), at=here.now)}
    busy, routed = changes(here)
    assert (busy, routed) == (NodeBusy(at=here.now, node="x"), NodeRouted(at=here.now, node="x"))


def test_requests_that_come_back_make_it_busy() -> None:
    here = counted(drained(idle_since=9_999.0), engine=1)
    assert changes(here) == (NodeBusy(at=here.now, node="x"),)
    assert changes(counted(drained(idle_since=9_999.0))) == ()


def test_a_balancer_that_cannot_be_read_has_no_say() -> None:
    here = counted(drained())
    here.settings["balancers"] = {
        "gw": here.settings["balancers"]["gw"],
        "alb": Observed(value=(), at=None, error="no answer"),
    }
    assert changes(here) == (NodeIdle(at=here.now, node="x"),)


def test_an_engine_that_fell_silent_holds_nothing() -> None:
    here = counted(drained(), engine=5)
    here.engines["x"] = replace(here.engines["x"], ok=False, failing_since=here.now - 3.0)
    assert changes(here) == (NodeIdle(at=here.now, node="x"),)


def test_the_order_of_a_list_does_not_matter_to_what_is_remembered() -> None:
    here = Scene().nodes(3)
    here.records.clear()
    forwards = reduce(here.memory, *changes(here))
    here.instances = dict(reversed(here.instances.items()))
    assert reduce(here.memory, *changes(here)) == forwards
