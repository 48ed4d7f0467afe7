"""Who is sick, who is given up, and when nobody is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.actions import Alarm, Cause, Drain, Launch, Terminate
from policies.model import InstanceState, Limits, Market, Pool
from policies.records import OperatorRequest
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind

ON_DEMAND = Market.ON_DEMAND


def ten(**more: Any) -> Pool:
    return Pool(**{"name": "p", "replicas": 10, **more})


@pytest.mark.parametrize(
    ("silent_for", "healthy", "lost"),
    [(None, True, False), (4.9, True, False), (5.0, False, False), (29.9, False, False), (30.0, False, True)],
)
def test_silence_makes_a_node_unhealthy_and_then_lost(
    silent_for: float | None, healthy: bool, lost: bool
) -> None:
    here = Scene(ten()).nodes(9).node("x", silent_for=silent_for)
    node = here.fleet.by_id["x"]
    assert (node.healthy, node.lost, node.ready) == (healthy, lost, healthy)
    assert node.reliable is (silent_for is None)
    active = {t.id for t in here.plan().targets if t.phase == "active"}
    assert ("x" in active) is healthy


def test_silence_is_counted_between_looks() -> None:
    """A daemon that hung for ten minutes after one look that failed has heard nothing from anybody."""
    here = Scene().nodes(2).nodes(1, ON_DEMAND).node("x", silent_for=602.0)
    here.engines["x"] = replace(here.engines["x"], at=here.now - 600.0)
    assert here.fleet.by_id["x"].healthy
    assert of_kind(here.plan(), Drain) == []


def test_a_lost_node_is_drained_and_replaced() -> None:
    here = Scene(ten()).nodes(6).nodes(3, ON_DEMAND).node("x", silent_for=31.0)
    plan = here.plan()
    (drain,) = of_kind(plan, Drain)
    assert (drain.node, drain.cause, drain.deadline) == ("x", Cause.SICK, here.now + here.pool.drain.budget)
    assert drain.reason == "engine silent for 31 s: connection refused"
    assert len(of_kind(plan, Launch)) == 2  # cover now, and spot to return to
    assert of_kind(plan, Alarm) == []


def test_up_to_the_limit_all_of_them_are_replaced() -> None:
    here = Scene(ten()).nodes(4).nodes(3, ON_DEMAND).nodes(3, prefix="x", silent_for=60.0)
    assert len(of_kind(here.plan(), Drain)) == 3


def test_silent_nodes_that_a_balancer_finds_healthy_leave_the_set_first() -> None:
    """When a partition ends they come back one after another; the last are no sicker than the first."""
    here = Scene(ten()).nodes(4).nodes(3, ON_DEMAND).nodes(3, prefix="x", silent_for=60.0, vouched=True)
    plan = here.plan()
    assert of_kind(plan, Drain) == []
    assert {t.id for t in plan.targets} & {"x0", "x1", "x2"} == set()
    for node in ("x0", "x1", "x2"):
        here.shown.pop(node)
    assert len(of_kind(here.plan(), Drain)) == 3


def test_the_only_node_is_replaced_although_a_balancer_finds_it_healthy() -> None:
    here = Scene(Pool(name="p", replicas=1)).node("x", ON_DEMAND, silent_for=60.0, vouched=True)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Drain)] == ["x"]
    assert len(of_kind(plan, Launch)) == 1
    assert [(t.id, t.phase) for t in plan.targets] == [("x", "active")]


def test_beyond_the_limit_none_is_and_an_alarm_is_raised() -> None:
    here = Scene(ten()).nodes(3).nodes(3, ON_DEMAND).nodes(4, prefix="x", silent_for=60.0)
    plan = here.plan()
    assert of_kind(plan, Drain) == []
    (alarm,) = of_kind(plan, Alarm)
    assert alarm.name == "TooManyUnhealthy"
    assert alarm.reason.startswith("4 of 10 nodes are silent")
    assert {t.id for t in plan.targets if t.phase == "active"} == set(here.records)  # they stay targets
    assert len(of_kind(plan, Launch)) == 2  # as far as the surge limit goes


def test_new_nodes_that_are_ready_let_as_many_silent_ones_go() -> None:
    here = Scene(ten()).nodes(3).nodes(5, ON_DEMAND).nodes(4, prefix="x", silent_for=60.0)
    here.node("x2", silent_for=99.0)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["x2", "x0"]


def test_a_cordoned_node_that_answers_makes_room_for_a_new_one() -> None:
    """Else the cordoned node and the silent ones would wait for each other, with no room for anybody."""
    here = Scene(ten(limits=Limits(surge=1))).nodes(4).nodes(3, ON_DEMAND)
    here.nodes(4, prefix="x", silent_for=60.0)
    request = OperatorRequest(since=here.now, budget=9.0, reason="asked")
    here.records["s0"] = replace(here.records["s0"], operator=request)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["x0"]


def test_the_target_set_is_kept_from_the_moment_that_so_many_fall_silent() -> None:
    """Long before any node counts as lost: a partition must not empty the set in the meantime."""
    here = Scene(ten()).nodes(7, silent_for=6.0).nodes(3, ON_DEMAND, silent_for=6.0)
    plan = here.plan()
    assert here.fleet.suspect
    assert len([t for t in plan.targets if t.phase == "active"]) == 10


@pytest.mark.parametrize(
    ("replicas", "silent", "suspect"), [(1, 1, False), (2, 1, False), (2, 2, True), (3, 2, True)]
)
def test_one_silent_node_is_never_a_fault_of_ours(replicas: int, silent: int, suspect: bool) -> None:
    here = Scene(Pool(name="p", replicas=replicas)).nodes(replicas, ON_DEMAND)
    for i in range(silent):
        here.node(f"o{i}", ON_DEMAND, silent_for=60.0)
    assert here.fleet.suspect is suspect


@pytest.mark.parametrize(("left", "suspect"), [(0.0, False), (None, False), (0.1, True)])
def test_nodes_that_are_expected_to_fall_silent_say_nothing(left: float | None, suspect: bool) -> None:
    here = Scene(ten()).nodes(7, silent_for=60.0).nodes(3, ON_DEMAND)
    for i in range(7):
        here.notice(f"s{i}", left)
    assert here.fleet.suspect is suspect


def test_suspect_nodes_count_against_the_surge_limit() -> None:
    here = Scene(ten(limits=Limits(surge=0))).nodes(7, silent_for=60.0).nodes(3, ON_DEMAND)
    assert here.fleet.living == 10
    assert of_kind(here.plan(), Launch) == []


# -- boots ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [InstanceState.PENDING, InstanceState.RUNNING])
@pytest.mark.parametrize(("age", "given_up"), [(899.0, False), (901.0, True)])
def test_a_node_that_does_not_become_ready_is_given_up(
    state: InstanceState, age: float, given_up: bool
) -> None:
    here = Scene().nodes(2).nodes(1, ON_DEMAND).node("x", ON_DEMAND, ready=False, age=age, state=state)
    ends = of_kind(here.plan(), Terminate)
    assert [(a.node, a.cause) for a in ends] == ([("x", Cause.BOOT)] if given_up else [])
    if given_up and state is InstanceState.RUNNING:
        assert ends[0].reason == "not ready 900 s after its start: connection refused"


def test_what_is_given_up_is_replaced_in_the_same_turn() -> None:
    here = Scene().nodes(2).nodes(1, ON_DEMAND).node("x", ON_DEMAND, ready=False, age=901.0)
    assert [a.placement.market for a in of_kind(here.plan(), Launch)] == [ON_DEMAND]


def test_a_node_that_nobody_has_looked_at_is_not_given_up() -> None:
    here = Scene().nodes(2).nodes(1, ON_DEMAND).node("x", ON_DEMAND, ready=False, age=5000.0, probed=False)
    assert of_kind(here.plan(), Terminate) == []
    here.records["x"] = replace(here.records["x"], address="")
    here.instances["x"] = replace(here.instances["x"], address="")
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["x"]  # without an address nobody ever will


def test_a_node_that_lists_lack_and_nobody_looks_at_is_not_given_up_as_a_boot() -> None:
    """Its address may not be known either: only how long lists lack it says that it is gone."""
    here = Scene().nodes(2).nodes(1, ON_DEMAND)
    here.node("x", ON_DEMAND, ready=False, age=5000.0, probed=False, listed=False, address="")
    assert of_kind(here.plan(), Terminate) == []


def test_the_boot_is_counted_from_the_start_of_a_standby() -> None:
    here = Scene().nodes(2).nodes(1, ON_DEMAND)
    here.node("x", ON_DEMAND, ready=False, age=5000.0, started_at=9_900.0)
    assert of_kind(here.plan(), Terminate) == []


def test_a_daemon_that_hung_while_a_node_booted_looks_again_first() -> None:
    here = Scene().nodes(2).nodes(1, ON_DEMAND).node("x", ON_DEMAND, ready=False, age=1000.0)
    here.engines["x"] = replace(here.engines["x"], at=here.now - 700.0)
    assert of_kind(here.plan(), Terminate) == []


@pytest.mark.parametrize("state", [InstanceState.PENDING, InstanceState.RUNNING])
@pytest.mark.parametrize(("awake", "given_up"), [(899.0, False), (901.0, True)])
def test_a_boot_is_timed_by_one_daemon(state: InstanceState, awake: float, given_up: bool) -> None:
    """By the clock of the one before it, it may have begun yesterday."""
    here = Scene().nodes(2).nodes(1, ON_DEMAND)
    here.node("x", ON_DEMAND, ready=False, age=86_400.0, state=state)
    here.settings["awake_since"] = here.now - awake
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["x"] if given_up else [])


@pytest.mark.parametrize(("watched", "given_up"), [(0.0, False), (29.0, False), (30.0, True)])
def test_a_boot_is_given_up_once_this_daemon_has_watched_it(watched: float, given_up: bool) -> None:
    """What an older daemon launched may be at work, and one look that fails does not tell."""
    here = Scene().nodes(2).nodes(1, ON_DEMAND).node("x", ON_DEMAND, ready=False, age=5000.0)
    here.engines["x"] = replace(here.engines["x"], failing_since=here.now - watched)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["x"] if given_up else [])


def test_a_boot_that_a_balancer_finds_healthy_is_not_given_up() -> None:
    """So it looks after an old journal was restored, while this host reaches no node."""
    here = Scene(ten()).nodes(6).nodes(3, ON_DEMAND)
    here.node("x", ready=False, age=2000.0, serving=True, vouched=True)
    assert of_kind(here.plan(), Terminate) == []
    here.node("x", ready=False, age=2000.0, serving=True, vouched=False)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["x"]


def test_the_alarm_counts_those_that_drain_as_well() -> None:
    """What drains and falls silent with the others is a witness of whose fault it is, and named as one."""
    here = Scene(Pool(name="p", replicas=4)).nodes(2, silent_for=6.0)
    here.node("x", silent_for=6.0).drain("x", Cause.OPERATOR).node("y")
    (alarm,) = [a for a in here.plan().actions if isinstance(a, Alarm)]
    assert alarm.reason.startswith("3 of 4 nodes are silent: ")
