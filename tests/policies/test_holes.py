"""Nodes of different fates in one instant: who serves, whose silence it is, and which reports are believed.

See docs/decisions/0033.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from policies.actions import Alarm, Cause, Drain, Plan, Undrain
from policies.model import (
    Confidence,
    InstanceState,
    Limits,
    Market,
    NoticeKind,
    Observed,
    Pool,
    TargetPhase,
    TargetState,
)
from policies.records import OperatorRequest
from policies.value import replace
from tests.support.scene import Scene, noticed

REPORTED = Confidence.REPORTED
OD = Market.ON_DEMAND
SERVES_ON = re.compile(r"^([\w-]+)(?::| is noticed).*(?:keeps serving|it serves on)")


def active(plan: Plan) -> set[str]:
    return {t.id for t in plan.targets if t.phase is TargetPhase.ACTIVE}


def drained(plan: Plan) -> set[str]:
    return {a.node for a in plan.actions if isinstance(a, Drain)}


def said_to_serve(plan: Plan) -> set[str]:
    """Nodes of which the notes of a plan say that they go on serving."""
    return {found[1] for note in plan.notes if (found := SERVES_ON.match(note))}


# -- one meaning of serving ----------------------------------------------------------------------------


def asked_long_ago(here: Scene, node: str, cause: Cause = Cause.OPERATOR) -> None:
    request = OperatorRequest(since=here.now - 2000.0, budget=30.0, reason="asked", cause=cause)
    here.records[node] = replace(here.records[node], operator=request)


def four(**pool: Any) -> Scene:
    """Four serve, at least three must; `x` is to go since long ago."""
    limits = Limits(disruption=0.25)
    here = Scene(Pool(**{"name": "p", "replicas": 4, "spot_share": 0.5, "limits": limits, **pool}))
    for node in "abcx":
        here.node(node)
    asked_long_ago(here, "x")
    return here


def begins(here: Scene, node: str, *, acknowledged: bool, cause: Cause = Cause.NOTICE) -> None:
    here.drain(node, cause, since=0.05, left=55.0)
    if not acknowledged:
        here.held[node] = TargetPhase.ACTIVE
        here.shown[node] = replace(here.shown[node], state=TargetState.HEALTHY)
        here.records[node] = replace(here.records[node], detached_at=None)


@pytest.mark.parametrize("moment", ["it arrives", "it drains", "the balancer has acknowledged"])
def test_an_overdue_drain_waits_in_every_moment_of_a_notice(moment: str) -> None:
    here = four()
    here.notice("a", 60.0)
    if moment != "it arrives":
        begins(here, "a", acknowledged=moment != "it drains")
    plan = here.plan()
    assert "x" not in drained(plan)
    assert active(plan) == {"b", "c", "x"}
    assert said_to_serve(plan) == {"x"}


def test_an_overdue_drain_goes_where_enough_serve_without_it() -> None:
    assert drained(four().plan()) == {"x"}


@pytest.mark.parametrize("cause", [Cause.SICK, Cause.BOOT, Cause.GPU])
@pytest.mark.parametrize("acknowledged", [False, True])
def test_what_drains_for_any_cause_serves_no_more(cause: Cause, acknowledged: bool) -> None:
    here = four()
    here.node("a", silent_for=1.0)
    begins(here, "a", acknowledged=acknowledged, cause=cause)
    assert "x" not in drained(here.plan())


def test_one_that_is_put_back_in_this_turn_serves() -> None:
    here = four()
    begins(here, "a", acknowledged=False)  # its notice was taken back
    plan = here.plan()
    assert [a.node for a in plan.actions if isinstance(a, Undrain)] == ["a"]
    assert "x" in drained(plan)
    assert active(plan) == {"a", "b", "c"}


def test_one_that_is_put_back_and_that_no_balancer_sends_to_serves_not_yet() -> None:
    here = four()
    begins(here, "a", acknowledged=True)
    plan = here.plan()
    assert [a.node for a in plan.actions if isinstance(a, Undrain)] == ["a"]
    assert "x" not in drained(plan)


def test_a_silent_node_that_is_to_go_takes_nothing_from_those_that_serve() -> None:
    """It is not one of those that serve, so nothing is missing without it."""
    here = four(health=Pool(name="p", replicas=4).health)
    here.node("x", silent_for=6.0, vouched=True)
    asked_long_ago(here, "x")
    assert drained(here.plan()) == {"x"}
    here.node("c", silent_for=6.0, vouched=True)
    here.node("d")
    assert "x" in drained(here.plan())  # a, b and d


@pytest.mark.parametrize("silent", [False, True])
def test_one_that_gets_no_requests_serves_not(silent: bool) -> None:
    here = four()
    if silent:
        here.node("a", silent_for=6.0)
    else:
        here.node("a", serving=False)
    assert "x" not in drained(here.plan())


def test_a_broken_gpu_goes_only_while_another_serves() -> None:
    here = four()
    asked_long_ago(here, "x", Cause.GPU)
    for node in "abc":
        begins(here, node, acknowledged=False, cause=Cause.SICK)
        here.engines[node] = replace(here.engines[node], ok=False, failing_since=here.now - 1.0)
    plan = here.plan()
    assert "x" not in drained(plan)
    assert "x" in active(plan)


def test_notices_and_requests_in_one_turn_count_each_other() -> None:
    """Two notices and two overdue requests: the notice that comes first takes the one unit to spare."""
    here = four()
    asked_long_ago(here, "c")
    here.notice("a", 300.0)
    here.notice("b", 200.0)
    plan = here.plan()
    assert drained(plan) == {"b"}
    assert active(plan) == {"a", "c", "x"} == said_to_serve(plan)


# -- whose silence it is -------------------------------------------------------------------------------


def partition(noticed: str, left: float | None = 120.0, **more: Any) -> Scene:
    """Nobody answers this host for 6 s; the balancer finds all four healthy."""
    here = Scene(Pool(name="p", replicas=4, spot_share=1.0))
    for node in "abcd":
        here.node(node, silent_for=6.0, vouched=True)
    for node in noticed:
        here.notice(node, left, **more)
    return here


def alarms(plan: Plan) -> list[str]:
    return [a.name for a in plan.actions if isinstance(a, Alarm)]


@pytest.mark.parametrize("noticed", ["", "a", "ab", "abc", "abcd"])
def test_notices_that_are_not_due_make_no_partition_less_of_one(noticed: str) -> None:
    here = partition(noticed)
    plan = here.plan()
    assert here.fleet.suspect
    assert active(plan) == set("abcd")
    assert said_to_serve(plan) == set(noticed)
    assert alarms(plan) == ["TooManyUnhealthy"]
    assert drained(plan) == set()


@pytest.mark.parametrize(("left", "suspect"), [(0.1, True), (0.0, False), (-5.0, False), (None, False)])
def test_one_whose_time_is_up_is_expected_to_fall_silent(left: float | None, suspect: bool) -> None:
    assert partition("abc", left).fleet.suspect is suspect


def test_a_notice_that_takes_nothing_away_takes_no_witness_away() -> None:
    assert partition("abc", -5.0, cancelled=True).fleet.suspect
    assert partition("abc", None, kind=NoticeKind.REBALANCE).fleet.suspect
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(4, OD, silent_for=6.0)
    for i in range(4):
        here.notice(f"o{i}", -5.0)  # no interruption takes an on-demand node
    assert here.fleet.suspect


def test_a_report_takes_no_witness_away() -> None:
    """Else whoever forges reports that are due decides whose fault a silence is."""
    assert partition("abc", -5.0, confidence=REPORTED, source="agent").fleet.suspect


def test_noticed_nodes_that_answer_show_that_nodes_can_be_reached() -> None:
    here = Scene(Pool(name="p", replicas=10, spot_share=1.0)).nodes(10)
    for node in ("s8", "s9"):
        here.node(node, silent_for=60.0)
    for i in range(6):
        here.notice(f"s{i}", 120.0)
    assert not here.fleet.suspect
    assert {"s8", "s9"} <= drained(here.plan())


@pytest.mark.parametrize(
    ("cause", "ready", "suspect"),
    [
        (Cause.NOTICE, True, True),
        (Cause.EXCESS, True, True),
        (Cause.SICK, True, False),
        (Cause.NOTICE, False, False),
    ],
)
def test_one_that_drains_is_a_witness_unless_it_was_silent_or_never_answered(
    cause: Cause, ready: bool, suspect: bool
) -> None:
    here = Scene(Pool(name="p", replicas=2, spot_share=1.0)).node("a", silent_for=6.0)
    here.node("b", ready=ready, silent_for=6.0).drain("b", cause)
    assert here.fleet.suspect is suspect


def test_one_that_ends_is_no_witness() -> None:
    here = Scene(Pool(name="p", replicas=2, spot_share=1.0)).node("a", silent_for=6.0)
    here.node("b", silent_for=6.0)
    assert here.fleet.suspect
    here.instances["b"] = replace(here.instances["b"], state=InstanceState.SHUTTING_DOWN)
    assert not here.fleet.suspect


# -- what a plan says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("silent_for", [None, 6.0, 40.0])
@pytest.mark.parametrize("vouched", [False, True])
def test_a_node_is_said_to_keep_serving_only_as_a_target(silent_for: float | None, vouched: bool) -> None:
    """Silent alone it gets no requests, whatever its notice would allow."""
    here = Scene(Pool(name="p", replicas=8, spot_share=1.0, limits=Limits(disruption=0.25)))
    for node in "abcdefgx":
        here.node(node)
    here.pool = replace(here.pool, drain=replace(here.pool.drain, min_serving=1.0))
    here.node("a", silent_for=silent_for, vouched=vouched)
    here.node("x", silent_for=silent_for, vouched=vouched)
    here.notice("a", 120.0)
    request = OperatorRequest(since=here.now - 5.0, budget=30.0, reason="asked")
    here.records["x"] = replace(here.records["x"], operator=request)
    plan = here.plan()
    assert said_to_serve(plan) <= active(plan) - drained(plan)
    if silent_for is None:
        assert said_to_serve(plan) == {"a", "x"}
    if silent_for == 6.0 and vouched:
        assert any(note.startswith("x: drain asked for; it waits") for note in plan.notes)


@pytest.mark.parametrize("seed", range(12))
def test_of_nodes_of_any_fates_only_targets_are_said_to_serve(seed: int) -> None:
    """Twenty-five scenes of two to six nodes each, drawn by the seed."""
    draw, said = random.Random(seed), 0
    for _ in range(25):
        limits, spot = Limits(disruption=draw.choice((0.1, 0.5))), draw.choice((0.0, 0.5, 1.0))
        here = Scene(Pool(name="p", replicas=draw.randint(1, 5), spot_share=spot, limits=limits))
        here.pool = replace(here.pool, drain=replace(here.pool.drain, min_serving=draw.choice((0.5, 1.0))))
        for node in "abcdef"[: draw.randint(2, 6)]:
            here.node(
                node,
                draw.choice((Market.SPOT, OD)),
                ready=draw.random() < 0.9,
                silent_for=draw.choice((None, None, 1.0, 6.0, 40.0)),
                vouched=draw.random() < 0.7,
                serving=draw.random() < 0.8,
            )
            if draw.random() < 0.5:
                confidence = draw.choice((REPORTED, Confidence.CONFIRMED))
                kind = draw.choice((NoticeKind.INTERRUPTION, NoticeKind.MAINTENANCE))
                lead = draw.choice((None, 30.0, 120.0, 9000.0))
                here.notice(node, lead, confidence=confidence, kind=kind)
            if draw.random() < 0.3:
                asked_long_ago(here, node, draw.choice((Cause.OPERATOR, Cause.GPU, Cause.GPU_DOUBT)))
            if draw.random() < 0.2:
                cause = draw.choice((Cause.NOTICE, Cause.SICK, Cause.OPERATOR, Cause.RETURN))
                begins(here, node, acknowledged=draw.random() < 0.5 or node not in here.shown, cause=cause)
        plan = here.plan()
        said += len(said_to_serve(plan))
        assert said_to_serve(plan) <= active(plan), plan.notes
    assert said


# -- reports beyond the budget -------------------------------------------------------------------------


def ten(*reported: str, silent_for: float | None = 6.0, silent: tuple[str, ...] = ()) -> Scene:
    """Ten nodes and a budget of one; `s0` is reported first and believed, `s1` next."""
    here = Scene(Pool(name="p", replicas=10, spot_share=1.0)).nodes(10)
    for node in silent or ("s1",):
        here.node(node, silent_for=silent_for)
    for node in reported or ("s0", "s1"):
        here.notice(node, confidence=REPORTED, source="agent", seen_at=here.now - 5.0)
    return here


def believed(here: Scene) -> set[str]:
    return set(noticed(here.pool, here.world, here.memory))


def test_a_report_of_a_node_that_nobody_can_reach_is_believed() -> None:
    assert believed(ten()) == {"s0", "s1"}
    assert believed(ten(silent_for=4.9)) == {"s0"}


def test_a_report_is_not_believed_against_a_balancers_word() -> None:
    here = ten().node("s1", silent_for=6.0, vouched=True)
    here.notice("s1", confidence=REPORTED, source="agent", seen_at=here.now - 5.0)
    assert believed(here) == {"s0"}


@pytest.mark.parametrize(("error", "taken"), [("", {"s0"}), ("no answer", {"s0", "s1"})])
def test_the_word_of_a_balancer_counts_as_long_as_it_can_be_read(error: str, taken: set[str]) -> None:
    here = ten().node("s1", silent_for=6.0, vouched=True)
    here.notice("s1", confidence=REPORTED, source="agent", seen_at=here.now - 5.0)
    here.settings["balancers"] = {
        "gw": Observed(value=(), at=here.now),
        "other": Observed(value=tuple(here.shown.values()), at=here.now, error=error),
    }
    assert believed(here) == taken


def test_a_look_of_before_this_daemon_woke_up_is_no_witness() -> None:
    here = ten()
    here.engines["s1"] = replace(here.engines["s1"], at=here.now - 2.0, failing_since=here.now - 12.0)
    assert believed(here) == {"s0", "s1"}
    here.settings["awake_since"] = here.now - 1.0
    assert believed(here) == {"s0"}


def test_nor_is_one_that_nobody_has_looked_at_unreachable() -> None:
    here = ten()
    del here.engines["s1"]
    assert believed(here) == {"s0"}


@pytest.mark.parametrize("vouched", [False, True])
@pytest.mark.parametrize("left", [120.0, 30.0, -5.0, None])
def test_in_a_partition_reports_are_believed_within_the_budget(vouched: bool, left: float | None) -> None:
    """Also where the balancer stands on this side, and reaches nobody either."""
    here = Scene(Pool(name="p", replicas=4, spot_share=1.0))
    for node in "abcd":
        here.node(node, silent_for=6.0, vouched=vouched)
        here.notice(node, left, confidence=REPORTED, source="agent")
    assert believed(here) == {"a"}
    assert drained(here.plan()) <= {"a"}
    assert set("bcd") <= active(here.plan())


def test_confirmed_notices_that_are_not_due_do_not_open_the_budget() -> None:
    """Three are noticed by the cloud, and nobody answers this host: of reports one more is believed."""
    here = Scene(Pool(name="p", replicas=6, spot_share=1.0))
    for node in "abcdef":
        here.node(node, silent_for=6.0)
    for node in "abc":
        here.notice(node, 120.0)
    for node in "def":
        here.notice(node, 120.0, confidence=REPORTED, source="agent")
    assert believed(here) == set("abcd")


def test_a_node_that_drains_for_a_report_counts_unless_nobody_can_reach_it() -> None:
    """Also when its notice was pushed out since."""
    here = ten("s2").drain("s0", Cause.NOTICE)
    assert believed(here) == set()
    here = ten("s2", silent=("s0",)).drain("s0", Cause.NOTICE)
    assert believed(here) == {"s2"}
    here.shown["s0"] = replace(here.shown["s0"], state=TargetState.HEALTHY)
    assert believed(here) == set()
