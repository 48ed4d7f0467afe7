"""When a node leaves the target set, and when it may end."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from policies import observations
from policies.actions import ActionKind, Alarm, Cause, Drain, Launch, Terminate, Undrain
from policies.drain import begins_now, drain_deadline, ends_at, finished, latest_start, next_start
from policies.events import NodeRouted, TargetsApplied
from policies.fleet import Fleet
from policies.memory import reduce
from policies.model import (
    DrainRules,
    HealthRules,
    InstanceState,
    Market,
    NoticeKind,
    Observed,
    Pool,
    StandbyKind,
    StandbyRules,
    TargetPhase,
    TargetState,
)
from policies.records import OperatorRequest
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind

RULES = DrainRules(budget=30.0, margin=5.0)


@pytest.mark.parametrize(
    ("lead", "latest", "deadline"),
    [
        (120.0, 85.0, 115.0),
        (60.0, 25.0, 55.0),
        (35.0, 0.0, 30.0),
        (30.0, 0.0, 25.0),
        (5.0, 0.0, 0.0),
        (0.0, 0.0, 0.0),
        (-10.0, 0.0, 0.0),
    ],
)
def test_the_arithmetic_of_the_budget(lead: float, latest: float, deadline: float) -> None:
    assert latest_start(RULES, now=0.0, deadline=lead) == latest
    assert drain_deadline(RULES, now=0.0, deadline=lead) == deadline


def test_without_a_deadline_the_budget_is_the_deadline() -> None:
    assert drain_deadline(RULES, now=100.0, deadline=None) == 130.0


def late(
    lead: float,
    *,
    ago: float = 0.0,
    serving: int = 4,
    ready: int = 3,
    kind: NoticeKind = NoticeKind.INTERRUPTION,
) -> bool:
    """Does the first of four nodes drain now? The notice came `ago` seconds before with `lead` s to go."""
    here = Scene(Pool(name="p", replicas=4, health=HealthRules(boot_timeout=600.0))).nodes(4)
    here.notice("s0", lead - ago, seen_at=here.now - ago, kind=kind)
    node = here.fleet.by_id["s0"]
    return begins_now(here.pool, node, now=here.now, serving_without=serving - 1, ready=ready)


def test_early_when_enough_go_on_serving() -> None:
    assert late(120.0, serving=4)  # three of four remain, and three are enough


@pytest.mark.parametrize(
    ("ago", "begins"), [(0.0, False), (50.0, False), (84.9, False), (85.0, True), (110.0, True)]
)
def test_late_when_too_few_would_serve(ago: float, begins: bool) -> None:
    assert late(120.0, ago=ago, serving=3, ready=2) is begins


@pytest.mark.parametrize("lead", [30.0, 5.0, 0.0, -60.0])
def test_a_short_notice_leaves_nothing_to_wait_for(lead: float) -> None:
    assert late(lead, serving=1, ready=0)


@pytest.mark.parametrize(("ago", "left"), [(0.0, 85.0), (84.0, 1.0), (85.0, math.inf), (110.0, math.inf)])
def test_a_turn_falls_on_the_last_instant_of_the_first_that_serves_on(ago: float, left: float) -> None:
    here = Scene().nodes(4)
    here.notice("s0", 120.0 - ago, seen_at=here.now - ago)
    here.notice("s1", 600.0)
    here.notice("s2", 90.0, seen_at=here.now - 1.0)
    here.drain("s2", Cause.NOTICE)
    at = min(left, 565.0) + here.now
    assert next_start(here.pool, here.fleet.nodes, here.now) == at


def test_not_late_once_a_replacement_is_ready() -> None:
    assert late(120.0, ago=20.0, serving=3, ready=4)


def test_planned_maintenance_waits_for_the_replacement() -> None:
    """A week ahead there is no reason to serve with one node less, however many would remain."""
    week, kind = 7 * 86_400.0, NoticeKind.MAINTENANCE
    assert not late(week, serving=4, ready=3, kind=kind)
    assert late(week, serving=4, ready=4, kind=kind)
    assert late(week, ago=week - 35.0, serving=4, ready=3, kind=kind)
    assert not late(week, ago=week - 36.0, serving=4, ready=3, kind=kind)


def test_an_interruption_a_week_ahead_is_a_clock_that_is_wrong() -> None:
    """It is drained as any other: the cloud takes it away long before this host's clock says so."""
    assert late(7 * 86_400.0, serving=4, ready=3)
    assert not late(7 * 86_400.0, serving=3, ready=2)


def test_a_node_that_does_not_serve_drains_at_once() -> None:
    here = Scene().nodes(4).node("x", serving=False)
    here.notice("x")
    assert begins_now(here.pool, here.fleet.by_id["x"], now=here.now, serving_without=0, ready=0)


def test_a_node_that_a_balancer_sends_requests_serves_on_though_no_set_was_acknowledged() -> None:
    """As after a start with a lost journal: the balancer's own word says that it is at work."""
    here = Scene().nodes(4).node("x")
    here.notice("x")
    here.held.clear()
    assert not here.fleet.by_id["x"].serving
    assert not begins_now(here.pool, here.fleet.by_id["x"], now=here.now, serving_without=0, ready=0)


def test_of_many_notices_the_earliest_deadlines_drain_and_the_rest_serve_on() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(7).nodes(3, Market.ON_DEMAND)
    for i in range(4):
        here.notice(f"s{i}", 120.0 - i)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Drain)] == ["s3", "s2"]  # eight must go on serving
    active = {t.id for t in plan.targets if t.phase is TargetPhase.ACTIVE}
    assert {"s0", "s1"} <= active
    assert len(active) == 8
    assert {d.node for d in plan.deferred} == {"s0", "s1"}


def test_a_notice_that_overtakes_a_drain_shortens_it_and_is_written() -> None:
    here = Scene().nodes(5).drain("s4", Cause.EXCESS, left=30.0)
    here.notice("s4", 10.0)
    plan = here.plan()
    (drain,) = of_kind(plan, Drain)
    assert (drain.node, drain.deadline, drain.cause) == ("s4", here.now + 5.0, Cause.NOTICE)
    assert plan.write == ("gw",)
    assert next(t.drain_deadline for t in plan.targets if t.id == "s4") == here.now + 5.0
    here.notice("s4", 300.0, id="later")
    here.records["s4"] = replace(here.records["s4"], notices=here.records["s4"].notices[1:])
    assert of_kind(here.plan(), Drain) == []  # a later one changes nothing


# -- ending --------------------------------------------------------------------------------------------


def draining(*, cause: Cause = Cause.EXCESS, left: float = 25.0, **record: Any) -> Any:
    here = Scene(Pool(name="p", replicas=4)).nodes(5).drain("s4", cause, since=5.0, left=left)
    here.records["s4"] = replace(here.records["s4"], **record)
    return here


@pytest.mark.parametrize(("idle_for", "ends"), [(None, False), (0.5, False), (1.0, True), (9.0, True)])
def test_a_drained_node_ends_after_the_settle_time(idle_for: float | None, ends: bool) -> None:
    here = draining()
    idle = None if idle_for is None else here.now - idle_for
    here.records["s4"] = replace(here.records["s4"], idle_since=idle)
    assert bool(of_kind(here.plan(), Terminate)) is ends


@pytest.mark.parametrize(
    ("engine", "balancer", "ends"),
    [
        (9.0, 0.0, False),  # counted once, by a daemon that looks rarely
        (8.5, 8.5, False),  # counted again, within the settle time
        (8.0, 0.0, True),
        (0.0, 9.0, False),
        (0.0, None, True),  # a balancer that cannot be read has no say
        (None, 0.0, False),  # nobody has looked at the engine since the daemon started
    ],
)
def test_the_requests_of_a_node_are_counted_again_before_it_ends(
    engine: float | None, balancer: float | None, ends: bool
) -> None:
    """Idle for 9 s, by counts that are so many seconds old."""
    here = draining()
    here.records["s4"] = replace(here.records["s4"], idle_since=here.now - 9.0)
    if engine is None:
        del here.engines["s4"]
    else:
        here.engines["s4"] = replace(here.engines["s4"], at=here.now - engine)
    shown = tuple(here.shown.values())
    looked = here.now - (40.0 if balancer is None else balancer)
    view = Observed(value=shown, at=looked, error="no answer" if balancer is None else "")
    here.settings["balancers"] = {"gw": view}
    assert bool(of_kind(here.plan(), Terminate)) is ends


def test_a_node_whose_requests_nobody_counts_has_until_its_deadline() -> None:
    here = draining()
    here.records["s4"] = replace(here.records["s4"], idle_since=here.now - 9.0)
    here.engines["s4"] = replace(here.engines["s4"], ok=False)
    assert of_kind(here.plan(), Terminate)  # its balancer counts
    del here.shown["s4"]
    assert of_kind(here.plan(), Terminate) == []


def test_a_node_that_a_balancer_still_sends_requests_is_not_ended() -> None:
    here = draining(left=-1.0)
    here.held["s4"] = TargetPhase.ACTIVE
    plan = here.plan()
    assert of_kind(plan, Terminate) == []
    assert any("a balancer may still send it requests" in note for note in plan.notes)


def test_a_dead_node_leaves_the_set_before_it_is_ended() -> None:
    here = Scene().nodes(5).node("s4", silent_for=60.0).drain("s4", Cause.SICK, left=-1.0)
    here.held["s4"] = TargetPhase.ACTIVE
    plan = here.plan()
    assert of_kind(plan, Terminate) == []
    assert [t.phase for t in plan.targets if t.id == "s4"] == [TargetPhase.DRAINING]
    here.held["s4"] = TargetPhase.DRAINING
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["s4"]


def test_a_drain_that_ran_out_of_time_ends_its_node_and_says_what_it_held() -> None:
    here = draining(left=-0.1)
    here.engines["s4"] = replace(here.engines["s4"], running=3)
    (end,) = of_kind(here.plan(), Terminate)
    assert end.reason == "drain deadline passed with 3 requests in flight (because excess)"


@pytest.mark.parametrize(
    ("since", "lead", "ends"),
    [
        (115.5, 4.5, False),  # the drain deadline has passed, the cloud's has not: requests get the rest
        (120.0, 0.0, True),
        (0.0, -5.0, False),  # a notice that came too late: its requests get their budget
        (31.0, -36.0, True),
    ],
)
def test_a_doomed_node_is_left_to_the_cloud_until_its_deadline(since: float, lead: float, ends: bool) -> None:
    here = Scene().nodes(5)
    here.notice("s4", lead, seen_at=here.now - since)
    here.drain("s4", Cause.NOTICE, since=since, left=lead - 5.0)
    here.engines["s4"] = replace(here.engines["s4"], running=3)
    assert bool(of_kind(here.plan(), Terminate)) is ends


def test_requests_get_their_budget_from_the_detachment_on() -> None:
    """A balancer that acknowledged late may have sent requests until then."""
    here = Scene().nodes(5)
    here.notice("s4", -20.0)
    here.drain("s4", Cause.NOTICE, since=40.0, left=-25.0)
    here.records["s4"] = replace(here.records["s4"], detached_at=here.now - 10.0)
    assert ends_at(RULES, here.fleet.by_id["s4"]) == here.now + 20.0


def test_so_do_those_of_a_node_that_had_to_serve_on_after_its_drain_began() -> None:
    here = Scene().nodes(5).drain("s4", Cause.SICK, since=100.0, left=-70.0)
    here.records["s4"] = replace(here.records["s4"], detached_at=here.now - 10.0)
    assert ends_at(RULES, here.fleet.by_id["s4"]) == here.now + 20.0


def test_a_notice_that_left_no_time_and_holds_no_more_leaves_requests_their_budget() -> None:
    here = Scene().nodes(5).drain("s4", Cause.NOTICE, since=5.0, left=-5.0)
    here.records["s4"] = replace(here.records["s4"], detached_at=here.now - 5.0)
    assert ends_at(RULES, here.fleet.by_id["s4"]) == here.now + 25.0
    here.drain("s4", Cause.OPERATOR, since=5.0, left=5.0)  # whoever asks says how long
    here.records["s4"] = replace(here.records["s4"], detached_at=here.now - 5.0)
    assert ends_at(RULES, here.fleet.by_id["s4"]) == here.now + 5.0


def test_no_operators_budget_is_shorter_than_the_balancer_takes() -> None:
    """It may send requests for as long as a node must be idle."""
    slow = replace(RULES, settle=25.0)
    here = Scene().nodes(5).drain("s4", Cause.OPERATOR, since=20.0, left=0.0)
    here.records["s4"] = replace(here.records["s4"], detached_at=here.now - 20.0)
    assert ends_at(RULES, here.fleet.by_id["s4"]) == here.now
    assert ends_at(slow, here.fleet.by_id["s4"]) == here.now + 5.0


def test_the_budget_counts_anew_when_a_balancer_forgot_that_it_let_the_node_go() -> None:
    here = Scene().nodes(5).drain("s4", Cause.EXCESS, since=100.0, left=-70.0)
    here.shown["s4"] = replace(here.shown["s4"], state=TargetState.HEALTHY)
    seen = observations.changes(here.pool, here.world, here.memory)
    assert seen == (NodeRouted(at=here.now, node="s4"),)
    memory = reduce(here.memory, *seen)
    assert memory.nodes["s4"].detached_at is None
    assert observations.changes(here.pool, here.world, memory) == ()
    memory = reduce(memory, TargetsApplied(at=here.now + 2.0, balancer="gw", generation=9, changes=()))
    assert memory.nodes["s4"].detached_at == here.now + 2.0
    node = Fleet.of(here.pool, here.world, memory).by_id["s4"]
    assert ends_at(RULES, node) == here.now + 32.0


def test_a_doomed_node_that_is_idle_ends_at_once() -> None:
    here = Scene().nodes(5)
    here.notice("s4", 100.0)
    here.drain("s4", Cause.NOTICE, left=95.0)
    here.records["s4"] = replace(here.records["s4"], idle_since=here.now - 2.0)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["s4"]


def test_a_node_that_does_not_drain_is_never_finished() -> None:
    here = Scene().nodes(4)
    here.now = 1e12
    assert not finished(RULES, here.fleet.by_id["s0"])
    assert ends_at(RULES, here.fleet.by_id["s0"]) == float("inf")


def test_a_termination_without_effect_is_asked_again_after_the_time_out() -> None:
    here = Scene().nodes(5).drain("s4", Cause.EXCESS, since=90.0, left=-60.0)
    here.asked("s4", ActionKind.TERMINATE, ago=59.0)
    assert of_kind(here.plan(), Terminate) == []
    here.asked("s4", ActionKind.TERMINATE, ago=60.0, cause=Cause.EXCESS)
    (again,) = of_kind(here.plan(), Terminate)
    assert (again.node, again.cause) == ("s4", Cause.EXCESS)


def test_a_machine_that_the_cloud_is_ending_is_not_ended_by_us() -> None:
    """A loss without notice: asking for its end would make it look like our wish."""
    here = Scene().nodes(4).node("s0", state=InstanceState.SHUTTING_DOWN, serving=True)
    plan = here.plan()
    assert of_kind(plan, Terminate) == []
    assert "s0" not in {t.id for t in plan.targets}
    assert next(a.replaces for a in of_kind(plan, Launch)) == "s0"


# -- what an operator asks for -------------------------------------------------------------------------


def asked(here: Scene, node: str, *, ago: float = 1.0) -> Any:
    request = OperatorRequest(since=here.now - ago, budget=20.0, reason="kernel")
    here.records[node] = replace(here.records[node], operator=request)
    return here


def test_a_cordoned_node_serves_until_its_replacement_is_ready() -> None:
    here = asked(Scene().nodes(2).nodes(2, Market.ON_DEMAND), "s0")
    plan = here.plan()
    assert of_kind(plan, Drain) == []
    assert of_kind(plan, Launch)
    assert "s0" in {t.id for t in plan.targets if t.phase is TargetPhase.ACTIVE}
    here.node("o2", Market.ON_DEMAND)
    (drain,) = of_kind(here.plan(), Drain)
    assert (drain.node, drain.deadline, drain.cause) == ("s0", here.now + 20.0, Cause.OPERATOR)


def test_without_a_replacement_it_goes_after_a_boot_time_out_and_only_while_enough_serve() -> None:
    pool = Pool(name="p", replicas=4, health=HealthRules(boot_timeout=100.0))
    here = asked(Scene(pool).nodes(2).nodes(2, Market.ON_DEMAND), "s0", ago=99.0)
    assert of_kind(here.plan(), Drain) == []
    asked(here, "s0", ago=101.0)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["s0"]
    here.node("s1", serving=False)
    assert of_kind(here.plan(), Drain) == []


def test_spot_that_stands_in_replaces_no_on_demand_node_of_the_floor() -> None:
    here = asked(Scene(Pool(name="p", replicas=2, spot_share=0.5)).nodes(2).nodes(1, Market.ON_DEMAND), "o0")
    plan = here.plan()
    assert of_kind(plan, Drain) == []
    assert [a.placement.market for a in of_kind(plan, Launch)] == [Market.ON_DEMAND]
    asked(here, "o0", ago=here.pool.health.boot_timeout)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["o0"]
    asked(here, "o0").node("o1", Market.ON_DEMAND)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["o0"]


def test_nodes_that_only_this_host_cannot_reach_drain_no_faster_than_the_budget() -> None:
    here = Scene(Pool(name="p", replicas=4)).nodes(4).nodes(2, Market.ON_DEMAND)
    for node in ("x0", "x1"):
        asked(here.node(node, silent_for=9.0, vouched=True), node)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["x0"]
    asked(here.node("x1", silent_for=9.0), "x1")
    assert {a.node for a in of_kind(here.plan(), Drain)} == {"x0", "x1"}


def test_a_node_at_work_that_was_never_seen_ready_counts_in_the_budget() -> None:
    """As where an old journal does not know it and this host cannot reach it."""
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(5, Market.ON_DEMAND)
    assert [a.cause for a in of_kind(here.plan(), Drain)] == [Cause.EXCESS]
    asked(here.node("x", Market.ON_DEMAND, ready=False, serving=True, vouched=True), "x")
    assert [(a.node, a.cause) for a in of_kind(here.plan(), Drain)] == [("x", Cause.OPERATOR)]


def test_a_standby_that_is_not_drained_after_all_makes_no_room_for_another_drain() -> None:
    here = Scene(Pool(name="p", replicas=4, standby=StandbyRules(stopped=1), spot_share=0.0))
    here.nodes(6, Market.ON_DEMAND).drain("o0", Cause.RETURN)
    here.node("sb", Market.ON_DEMAND, standby=StandbyKind.STOPPED).drain("sb", Cause.OPERATOR)
    plan = asked(here, "o1").plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["sb"]
    assert of_kind(plan, Drain) == of_kind(plan, Alarm) == []


def test_where_so_many_are_silent_that_the_fault_may_be_here_none_drains_as_if_it_were_dead() -> None:
    here = Scene(Pool(name="p", replicas=4)).nodes(3, silent_for=7.0).nodes(1, Market.ON_DEMAND)
    assert here.fleet.suspect
    asked(here, "s0")
    assert of_kind(here.plan(), Drain) == []


def test_a_request_that_is_taken_back_ends_the_drain() -> None:
    here = Scene().nodes(4).drain("s0", Cause.OPERATOR)
    assert [a.node for a in of_kind(here.plan(), Undrain)] == ["s0"]
    asked(here, "s0")
    assert of_kind(here.plan(), Undrain) == []


def test_state_changes_are_named_in_words() -> None:
    here = Scene().nodes(4)
    here.notice("s0", None, kind=NoticeKind.STATE_CHANGE)
    (drain,) = of_kind(here.plan(), Drain)
    assert drain.reason == "state change notice (feed)"
    assert drain.deadline == here.now + here.pool.drain.budget
