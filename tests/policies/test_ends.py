"""Drains that are done and calls that show no effect: each clause has a case that it alone decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.actions import ActionKind, Cause, Drain, Launch, Start, Terminate, Undrain
from policies.bars import PAUSE_FIRST
from policies.model import (
    InstanceState,
    NoticeKind,
    Pool,
    StandbyKind,
    StandbyRules,
    TargetPhase,
)
from policies.records import OperatorRequest, Refusal
from tests.support.scene import Scene
from tests.support.toy_pools import ON_DEMAND, of_kind, place


def ended(here: Scene) -> list[tuple[str, Cause]]:
    return [(a.node, a.cause) for a in of_kind(here.plan(), Terminate)]


def returned(here: Scene) -> list[str]:
    return [a.node for a in of_kind(here.plan(), Undrain)]


def active(here: Scene) -> set[str]:
    return {t.id for t in here.plan().targets if t.phase is TargetPhase.ACTIVE}


# -- an end that shows no effect -------------------------------------------------------------------------


def to_end(others: int = 4, *, node: dict[str, Any] | None = None, **call: Any) -> Scene:
    """x answers although its end was asked for; four are wanted, and `others` serve besides."""
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(others, ON_DEMAND)
    here.node("x", ON_DEMAND, **(node or {}))
    return here.asked("x", ActionKind.TERMINATE, **{"ago": 100.0, "unanswered": True, **call})


OUT: dict[str, Any] = {"serving": False}


@pytest.mark.parametrize(
    ("call", "again"),
    [
        ({"ago": 59.0, "unanswered": False}, False),
        ({"ago": 60.0, "unanswered": False}, True),
        ({"ago": 0.5, "unanswered": True, "attempts": 1}, False),
        ({"ago": 1.0, "unanswered": True, "attempts": 1}, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("cause", [None, Cause.SICK])
def test_it_is_asked_for_again_when_it_is_due_and_for_the_same_cause(
    call: dict[str, Any], again: bool, cause: Cause | None
) -> None:
    found = ended(to_end(node=OUT, cause=cause, **call))
    assert found == ([("x", cause or Cause.EXCESS)] if again else [])


def test_one_that_a_list_shows_ending_without_our_call_is_not_ended_again() -> None:
    here = Scene().nodes(4, ON_DEMAND).node("x", state=InstanceState.SHUTTING_DOWN, serving=False)
    assert ended(here) == []


def test_where_too_little_else_serves_it_goes_back_to_work() -> None:
    here = to_end(3)
    assert (returned(here), ended(here)) == (["x"], [])
    assert "x" in active(here)


@pytest.mark.parametrize("why", ["noticed", "cordoned", "standby", "never ready", "silent"])
def test_nor_does_one_go_back_that_somebody_else_takes_or_that_cannot_work(why: str) -> None:
    here = to_end(3, node={"serving": False, **({"silent_for": 1.0} if why == "silent" else {})})
    record = here.records["x"]
    match why:
        case "noticed":
            here.notice("x", 600.0, kind=NoticeKind.MAINTENANCE)
        case "cordoned":
            asked = OperatorRequest(since=here.now - 5_000.0, budget=9.0, reason="asked")
            here.records["x"] = replace(record, operator=asked)
        case "standby":
            here.records["x"] = replace(record, standby=StandbyKind.STOPPED)
        case "never ready":
            here.records["x"] = replace(record, ready_at=None)
    assert returned(here) == []
    assert "x" not in active(here)


@pytest.mark.parametrize(
    ("node", "stays"),
    [
        ({"serving": True, "in_flight": 0}, True),  # a balancer may send it requests
        ({"serving": False, "in_flight": 2}, True),  # it holds some
        ({"serving": False, "in_flight": 0}, False),
    ],
    ids=str,
)
def test_while_the_call_may_still_take_effect_what_is_at_work_stays_as_it_is(
    node: dict[str, Any], stays: bool
) -> None:
    here = to_end(3, node=node, landed=True)
    assert returned(here) == []
    assert ended(here) == ([] if stays else [("x", Cause.EXCESS)])
    assert of_kind(here.plan(), Drain) == []


@pytest.mark.parametrize(
    ("change", "back"),
    [("", True), ("sooner", False), ("not listed", False), ("stopped", False)],
)
def test_a_call_that_may_have_landed_did_nothing_once_its_node_has_outlived_it(
    change: str, back: bool
) -> None:
    """Three times as long as an effect takes, and the newest list shows it running."""
    here = to_end(3, landed=True, ago=179.0 if change == "sooner" else 180.0)
    if change == "not listed":
        del here.instances["x"]
    elif change == "stopped":
        here.instances["x"] = replace(here.instances["x"], state=InstanceState.STOPPING)
    assert returned(here) == (["x"] if back else [])


@pytest.mark.parametrize(("vouched", "stays"), [(True, True), (False, False)])
def test_of_one_that_nobody_has_looked_at_a_balancers_word_counts(vouched: bool, stays: bool) -> None:
    here = to_end(3, node={"probed": False, "serving": True, "vouched": vouched})
    assert returned(here) == []
    assert ("x" in active(here)) is stays


# -- a drain that is done --------------------------------------------------------------------------------


def draining(cause: Cause = Cause.EXCESS, *, since: float = 10.0, left: float = 20.0, **node: Any) -> Scene:
    """x drains, and no balancer knows it any more; enough others serve."""
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(5, ON_DEMAND).node("x", ON_DEMAND, **node)
    here.drain("x", cause, since=since, left=left)
    del here.held["x"]
    here.shown.pop("x", None)
    return here


def reason(here: Scene) -> str:
    return " ".join(a.reason for a in of_kind(here.plan(), Terminate))


def test_why_it_ends_is_said() -> None:
    assert reason(draining(idle_since=9_990.0)) == "drained (because excess)"
    busy = draining(since=40.0, left=-1.0, in_flight=3)
    assert reason(busy) == "drain deadline passed with 3 requests in flight (because excess)"
    assert reason(draining(ready=False)) == "it never took a request (because excess)"
    assert reason(draining()) == ""


def test_one_that_never_was_ready_waits_for_its_detachment_all_the_same() -> None:
    here = draining(ready=False)
    here.held["x"] = TargetPhase.DRAINING
    assert ended(here) == []
    here.held.clear()
    assert ended(here) == [("x", Cause.EXCESS)]


@pytest.mark.parametrize(
    ("since", "silent_for", "notice", "ends"),
    [
        (31.0, 60.0, True, True),
        (29.0, 60.0, True, False),  # its requests have their budget
        (31.0, 5.0, True, False),  # it may answer the next moment
        (31.0, 60.0, False, False),  # its drain has a deadline of its own
    ],
)
def test_a_dead_node_that_is_noticed_ends_before_its_deadline_whatever_it_drains_for(
    since: float, silent_for: float, notice: bool, ends: bool
) -> None:
    here = draining(since=since, left=500.0, silent_for=silent_for, in_flight=2)
    if notice:
        here.notice("x", 80_000.0, kind=NoticeKind.MAINTENANCE)
    assert bool(ended(here)) is ends


# -- notices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lead", "kind", "hastened"),
    [
        (20.0, NoticeKind.MAINTENANCE, 15.0),
        (105.0, NoticeKind.MAINTENANCE, None),  # as soon as the drain would end
        (200.0, NoticeKind.MAINTENANCE, None),
        (None, NoticeKind.STATE_CHANGE, None),  # it says no time
    ],
)
def test_a_notice_hastens_a_drain_that_would_last_longer(
    lead: float | None, kind: NoticeKind, hastened: float | None
) -> None:
    here = draining(since=5.0, left=100.0)
    here.notice("x", lead, kind=kind)
    found = [(a.cause, a.deadline) for a in of_kind(here.plan(), Drain) if a.node == "x"]
    assert found == ([] if hastened is None else [(Cause.NOTICE, here.now + hastened)])


@pytest.mark.parametrize(
    ("lead", "kind", "words"),
    [
        (100.0, NoticeKind.INTERRUPTION, "interruption notice (feed), 100 s left"),
        (-5.0, NoticeKind.INTERRUPTION, "interruption notice (feed), 0 s left"),
        (None, NoticeKind.STATE_CHANGE, "state change notice (feed)"),
    ],
)
def test_a_drain_names_its_notice(lead: float | None, kind: NoticeKind, words: str) -> None:
    here = Scene().nodes(3).nodes(2, ON_DEMAND)
    here.notice("s0", lead, kind=kind)
    assert [a.reason for a in of_kind(here.plan(), Drain)] == [words]


def test_one_whose_request_is_overtaken_by_a_notice_drains_for_the_notice() -> None:
    here = Scene().nodes(4).nodes(2, ON_DEMAND)
    asked = OperatorRequest(since=here.now - 5_000.0, budget=9.0, reason="asked")
    here.records["s0"] = replace(here.records["s0"], operator=asked)
    here.notice("s0")
    assert [a.cause for a in of_kind(here.plan(), Drain) if a.node == "s0"] == [Cause.NOTICE]


def test_one_whose_notice_is_over_returns_before_one_that_is_only_needed() -> None:
    """One of the two is enough; by age the other would be asked first."""
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(3, ON_DEMAND)
    for node, cause, age in (("needed", Cause.EXCESS, 9_000.0), ("free", Cause.NOTICE, 500.0)):
        here.node(node, ON_DEMAND, age=age).drain(node, cause)
        here.held[node] = TargetPhase.ACTIVE
    assert returned(here) == ["free"]
    del here.records["free"], here.instances["free"], here.engines["free"]
    assert returned(here) == ["needed"]


# -- standbys --------------------------------------------------------------------------------------------


def spare(
    here: Scene, node: str = "sb", *, state: InstanceState = InstanceState.STOPPED, **more: Any
) -> Scene:
    runs = state is InstanceState.RUNNING
    return here.node(
        node, ON_DEMAND, state=state, ready=runs, serving=False, standby=StandbyKind.STOPPED, **more
    )


def keeps(stopped: int = 1) -> Pool:
    return Pool(name="p", replicas=4, standby=StandbyRules(stopped=stopped))


@pytest.mark.parametrize(("whole_at", "made"), [(9_000.0, 1), (None, 0)])
def test_a_standby_is_made_once_the_pool_was_whole(whole_at: float | None, made: int) -> None:
    """Enough nodes answer in both cases."""
    here = Scene(keeps(), whole_at=whole_at).nodes(2).nodes(2, ON_DEMAND)
    assert sum(a.standby is not None for a in of_kind(here.plan(), Launch)) == made


def test_where_no_on_demand_is_sold_none_is_made_and_nothing_breaks() -> None:
    here = Scene(keeps()).nodes(2).nodes(2, ON_DEMAND)
    here.offerings = [o for o in here.offerings if o.placement.market is not ON_DEMAND]
    assert of_kind(here.plan(), Launch) == []
    assert here.plan().actions == ()


@pytest.mark.parametrize(
    ("age", "started_ago", "starts"),
    [
        (30.0, None, True),  # it warms up for the first time: nobody asked for a start
        (900.0, 30.0, False),  # it was asked for just now, and refused
        (900.0, 61.0, True),
    ],
)
def test_a_warm_standby_needs_no_room_unless_its_start_was_refused_just_now(
    age: float, started_ago: float | None, starts: bool
) -> None:
    here = spare(Scene(keeps()).nodes(2).nodes(1, ON_DEMAND), state=InstanceState.RUNNING, age=age)
    if started_ago is not None:
        here.records["sb"] = replace(here.records["sb"], started_at=here.now - started_ago)
    here.fields["refusals"] = {place("a", ON_DEMAND): Refusal(at=here.now - 5.0)}
    assert bool(of_kind(here.plan(), Start)) is starts


def test_a_stopped_standby_does_need_room() -> None:
    here = spare(Scene(keeps()).nodes(2).nodes(1, ON_DEMAND))
    assert len(of_kind(here.plan(), Start)) == 1
    here.fields["refusals"] = {place("a", ON_DEMAND): Refusal(at=here.now - 5.0)}
    assert of_kind(here.plan(), Start) == []


@pytest.mark.parametrize(("ago", "starts"), [(PAUSE_FIRST - 1.0, 0), (PAUSE_FIRST, 1)])
def test_one_that_may_not_be_started_is_tried_again_after_a_pause(ago: float, starts: int) -> None:
    here = spare(Scene(keeps()).nodes(2).nodes(1, ON_DEMAND))
    here.records["sb"] = replace(here.records["sb"], denied_at=here.now - ago)
    assert len(of_kind(here.plan(), Start)) == starts


@pytest.mark.parametrize(
    ("state", "in_flight", "enough", "goes"),
    [
        (InstanceState.STOPPED, 0, True, True),
        (InstanceState.STOPPED, 0, False, True),
        (InstanceState.RUNNING, 0, True, True),
        (InstanceState.RUNNING, 0, False, False),  # with the journal lost it may be what worked
        (InstanceState.RUNNING, 1, True, False),
    ],
)
def test_a_standby_that_is_not_wanted_ends_unless_it_may_be_at_work(
    state: InstanceState, in_flight: int, enough: bool, goes: bool
) -> None:
    here = Scene(keeps(0)).nodes(2).nodes(2, ON_DEMAND)
    if not enough:
        here.node("s0", silent_for=1.0)
    spare(here, state=state, in_flight=in_flight)
    assert ended(here) == ([("sb", Cause.EXCESS)] if goes else [])


def test_of_too_many_standbys_the_youngest_end() -> None:
    here = Scene(keeps(1)).nodes(2).nodes(2, ON_DEMAND)
    for node, age in (("old", 900.0), ("mid", 800.0), ("young", 700.0)):
        spare(here, node, age=age)
    assert {node for node, _ in ended(here)} == {"mid", "young"}


# -- starts that show no effect --------------------------------------------------------------------------


def test_a_start_is_not_repeated_for_one_that_leaves() -> None:
    here = Scene().nodes(2).nodes(2, ON_DEMAND)
    for node in ("leaves", "stays"):
        here.node(node, ON_DEMAND, ready=False, state=InstanceState.STOPPED, age=200.0, serving=False)
        here.asked(node, ActionKind.START, ago=100.0)
    here.drain("leaves", Cause.EXCESS)
    assert [a.node for a in of_kind(here.plan(), Start)] == ["stays"]
