"""Warm capacity: used first, made anew when the pool is whole, never started and stopped at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.actions import ActionKind, Cause, Launch, Start, Stop, Terminate
from policies.events import IntentClosed, IntentOpened, Outcome
from policies.memory import reduce
from policies.model import InstanceState, Limits, Market, Observed, Pool, StandbyKind, StandbyRules
from policies.records import Refusal
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind, place

ON_DEMAND = Market.ON_DEMAND


def pool(stopped: int = 1, **more: Any) -> Pool:
    return Pool(**{"name": "p", "replicas": 4, "standby": StandbyRules(stopped=stopped), **more})


def standby(
    here: Scene, node: str = "sb", *, state: InstanceState = InstanceState.STOPPED, **more: Any
) -> Any:
    return here.node(node, ON_DEMAND, state=state, standby=StandbyKind.STOPPED, serving=False, **more)


def stopped(here: Scene, node: str = "sb", **more: Any) -> Any:
    return standby(here, node, ready=False, **more)


def test_a_whole_pool_makes_its_standby() -> None:
    here = Scene(pool()).nodes(2).nodes(2, ON_DEMAND)
    (launch,) = of_kind(here.plan(), Launch)
    assert (launch.standby, launch.cause, launch.placement.market) == (
        StandbyKind.STOPPED,
        Cause.STANDBY,
        ON_DEMAND,
    )
    here.launching("x", ON_DEMAND, standby=StandbyKind.STOPPED)
    assert of_kind(here.plan(), Launch) == []


@pytest.mark.parametrize("fields", [{"whole_at": None}, {}])
def test_not_before_the_pool_itself_is_whole(fields: dict[str, Any]) -> None:
    here = Scene(pool(), **fields).nodes(2).nodes(1, ON_DEMAND).launching("x", ON_DEMAND)
    assert all(a.standby is None for a in of_kind(here.plan(), Launch))


def test_a_warm_one_is_stopped_and_takes_no_requests() -> None:
    here = standby(Scene(pool()).nodes(2).nodes(2, ON_DEMAND), state=InstanceState.RUNNING)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Stop)] == ["sb"]
    assert "sb" not in {t.id for t in plan.targets}
    here.asked("sb", ActionKind.STOP)
    assert of_kind(here.plan(), Stop) == []


def test_a_warm_one_is_not_stopped_while_what_works_is_too_little() -> None:
    """It may be at work, with no journal to tell, and could be put to work at once."""
    here = standby(Scene(pool()).nodes(2).nodes(1, ON_DEMAND), state=InstanceState.RUNNING)
    here.node("coming", ON_DEMAND, ready=False, age=30.0)
    assert of_kind(here.plan(), Stop) == []
    here.node("coming", ON_DEMAND)
    assert [a.node for a in of_kind(here.plan(), Stop)] == ["sb"]


def test_it_starts_in_the_turn_of_the_notice_and_takes_the_doomed_nodes_place() -> None:
    here = stopped(Scene(pool()).nodes(2).nodes(2, ON_DEMAND))
    here.notice("s0")
    plan = here.plan()
    (start,) = of_kind(plan, Start)
    assert (start.node, start.replaces) == ("sb", "s0")
    assert all(a.placement.market is Market.SPOT for a in of_kind(plan, Launch))


def test_a_warm_one_is_not_stopped_before_every_balancer_was_read() -> None:
    """Memory may be older than what was done since: only a balancer tells whether it is at work."""
    here = standby(Scene(pool()).nodes(2).nodes(2, ON_DEMAND), state=InstanceState.RUNNING)
    here.settings["balancers"] = {"gw": Observed(value=())}
    assert of_kind(here.plan(), Stop) == []


def test_a_warm_one_that_holds_requests_is_neither_stopped_nor_ended() -> None:
    """With an old journal it may be at work, though a balancer that was restarted shows nobody."""
    for wanted in (1, 0):
        here = Scene(pool(wanted)).nodes(2).nodes(2, ON_DEMAND)
        standby(here, state=InstanceState.RUNNING, in_flight=2)
        plan = here.plan()
        assert of_kind(plan, Stop) == of_kind(plan, Terminate) == []


def test_a_warm_one_that_is_put_to_work_is_not_stopped_in_the_same_turn() -> None:
    here = standby(Scene(pool()).nodes(2).nodes(2, ON_DEMAND), state=InstanceState.RUNNING)
    here.notice("s0")
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Start)] == ["sb"]
    assert of_kind(plan, Stop) == []


def test_one_whose_stop_is_under_way_is_not_started() -> None:
    here = standby(Scene(pool()).nodes(2).nodes(2, ON_DEMAND), state=InstanceState.RUNNING)
    here.asked("sb", ActionKind.STOP)
    here.notice("s0")
    assert of_kind(here.plan(), Start) == []


def test_it_is_not_used_for_the_hot_standby() -> None:
    here = stopped(Scene(pool(standby=StandbyRules(hot=1, stopped=1))).nodes(2).nodes(2, ON_DEMAND))
    plan = here.plan()
    assert of_kind(plan, Start) == []
    assert len(of_kind(plan, Launch)) == 1


def test_no_more_are_started_than_are_missing() -> None:
    here = Scene(pool(3)).nodes(2).nodes(2, ON_DEMAND)
    for name in ("x", "y", "z"):
        stopped(here, name)
    here.notice("s0")
    assert len(of_kind(here.plan(), Start)) == 1


def test_a_start_counts_as_coming_and_is_asked_again_when_it_shows_no_effect() -> None:
    here = Scene(pool()).nodes(1).nodes(2, ON_DEMAND)
    here.node("sb", ON_DEMAND, ready=False, state=InstanceState.STOPPED, age=30.0, serving=False)
    here.asked("sb", ActionKind.START, ago=59.0, replaces="s9", reason="missing")
    plan = here.plan()
    assert of_kind(plan, Start) == []
    assert all(a.placement.market is Market.SPOT for a in of_kind(plan, Launch))
    here.asked("sb", ActionKind.START, ago=60.0, replaces="s9", reason="missing")
    (again,) = of_kind(here.plan(), Start)
    assert (again.node, again.replaces) == ("sb", "s9")


def opened_start(here: Scene) -> Any:
    opened = IntentOpened(
        at=here.now, token="sb:start", kind=ActionKind.START, node="sb", replaces="s0", reason="missing"
    )
    return reduce(here.memory, opened)


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.QUOTA])
def test_a_start_that_is_refused_leaves_a_standby_and_an_open_swap(outcome: Outcome) -> None:
    here = stopped(Scene(pool()).nodes(2).nodes(2, ON_DEMAND))
    here.notice("s0")
    memory = opened_start(here)
    assert memory.nodes["sb"].standby is None
    assert memory.swaps["s0"].incoming == "sb"
    memory = reduce(memory, IntentClosed(at=here.now, token="sb:start", outcome=outcome))
    assert memory.nodes["sb"].standby is StandbyKind.STOPPED
    assert memory.swaps["s0"].incoming == ""
    assert memory.nodes["sb"].placement in (memory.refusals or memory.quota_at)


def test_a_start_whose_answer_is_lost_stays_a_start() -> None:
    here = stopped(Scene(pool()).nodes(2).nodes(2, ON_DEMAND))
    memory = reduce(
        opened_start(here), IntentClosed(at=here.now, token="sb:start", outcome=Outcome.UNCERTAIN)
    )
    assert memory.nodes["sb"].standby is None
    assert memory.intents["sb:start"].unanswered


def test_asking_again_does_not_restart_the_boot_clock() -> None:
    here = stopped(Scene(pool()).nodes(2).nodes(2, ON_DEMAND))
    memory = opened_start(here)
    here.now += 500.0
    again = IntentOpened(at=here.now, token="sb:start", kind=ActionKind.START, node="sb")
    assert reduce(memory, again).nodes["sb"].started_at == here.now - 500.0


def test_a_placement_that_refused_is_left_alone_for_a_while() -> None:
    here = stopped(Scene(pool()).nodes(2).nodes(2, ON_DEMAND))
    here.notice("s0")
    here.fields["refusals"] = {place("a", ON_DEMAND): Refusal(at=here.now - 10.0)}
    plan = here.plan()
    assert of_kind(plan, Start) == []
    assert any(a.placement.market is ON_DEMAND for a in of_kind(plan, Launch))


def test_a_warm_one_is_used_where_no_launch_is_possible_but_not_asked_again_at_once() -> None:
    here = standby(Scene(pool()).nodes(2).nodes(2, ON_DEMAND), state=InstanceState.RUNNING)
    here.notice("s0")
    here.fields["refusals"] = {place("a", ON_DEMAND): Refusal(at=here.now)}
    assert [a.node for a in of_kind(here.plan(), Start)] == ["sb"]
    here.records["sb"] = replace(here.records["sb"], started_at=here.now)
    assert of_kind(here.plan(), Start) == [], "its start was refused just now"
    here.records["sb"] = replace(here.records["sb"], started_at=here.now - here.pool.patience.effect_timeout)
    assert [a.node for a in of_kind(here.plan(), Start)] == ["sb"]


def test_surplus_standbys_end_youngest_first() -> None:
    here = Scene(pool(1)).nodes(2).nodes(2, ON_DEMAND)
    stopped(here, "old", age=900.0)
    stopped(here, "young", age=100.0)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["young"]


@pytest.mark.parametrize("looked_at", [True, False])
@pytest.mark.parametrize("ready", [3, 4])
def test_those_that_run_are_not_surplus_while_what_works_is_too_little(ready: int, looked_at: bool) -> None:
    """As where the journal is lost, and a balancer has forgotten who worked."""
    here = Scene(pool(0, spot_share=0.0)).nodes(ready, ON_DEMAND)
    standby(here, state=InstanceState.RUNNING, started_at=here.now, ready=looked_at)
    if not looked_at:
        del here.engines["sb"]
    here.fields["refusals"] = {place("a", ON_DEMAND): Refusal(at=here.now)}
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ([] if ready == 3 else ["sb"])


def test_a_standby_lives_beside_the_surge() -> None:
    here = stopped(Scene(pool(1, limits=Limits(surge=0))).nodes(2).nodes(2, ON_DEMAND))
    assert here.pool.most_units == 5
    assert here.plan().actions == ()


def test_a_standby_that_never_warms_up_is_given_up() -> None:
    here = Scene(pool()).nodes(2).nodes(2, ON_DEMAND)
    standby(here, ready=False, state=InstanceState.RUNNING, age=901.0)
    assert [(a.node, a.cause) for a in of_kind(here.plan(), Terminate)] == [("sb", Cause.BOOT)]
