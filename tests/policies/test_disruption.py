"""The gate: what may be done to a node, for which cause, and how a refusal is told."""

from __future__ import annotations

import ast
import random
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from policies import disruption, headroom
from policies.actions import ActionKind, Cause, Drain, Stop, Terminate, Undrain
from policies.disruption import ACTS, CAUSES, Act, may
from policies.model import (
    Confidence,
    InstanceState,
    Limits,
    Market,
    NoticeKind,
    Phase,
    Pool,
    StandbyKind,
    Target,
    TargetPhase,
    TargetState,
)
from policies.node import Node
from policies.plan_builder import Turn
from policies.records import OperatorRequest
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind

OD = Market.ON_DEMAND
POLICIES = Path(disruption.__file__).parent
TAKEN = {cause for cause in Cause if cause not in (Cause.STANDBY, Cause.SHORT)}


def drawn(draw: random.Random) -> Scene:
    """Two to seven nodes of any fates."""
    limits = Limits(disruption=draw.choice((0.1, 0.5)))
    here = Scene(
        Pool(name="p", replicas=draw.randint(1, 5), spot_share=draw.choice((0.0, 0.5)), limits=limits)
    )
    for node in "abcdefg"[: draw.randint(2, 7)]:
        state = draw.choice(
            (*[InstanceState.RUNNING] * 6, InstanceState.STOPPED, InstanceState.SHUTTING_DOWN)
        )
        standby = draw.choice((None, None, None, StandbyKind.STOPPED))
        here.node(
            node,
            OD if standby is not None else draw.choice((Market.SPOT, OD)),
            ready=draw.random() < 0.8,
            state=state,
            silent_for=draw.choice((None, None, None, 1.0, 6.0, 40.0)),
            vouched=draw.random() < 0.6,
            serving=standby is None and draw.random() < 0.7,
            probed=draw.random() < 0.9,
            token=f"p/{draw.choice((6, 7))}/{node}",
            standby=standby,
        )
        if draw.random() < 0.3:
            asked = OperatorRequest(since=here.now - draw.choice((5.0, 2000.0)), budget=30.0, reason="asked")
            here.records[node] = replace(here.records[node], operator=asked)
        if draw.random() < 0.2:
            here.notice(node, draw.choice((None, 30.0, 9000.0)), confidence=draw.choice([*Confidence]))
        if draw.random() < 0.3:
            here.drain(node, draw.choice(sorted(TAKEN)), since=draw.choice((1.0, 60.0)))
        if draw.random() < 0.1:
            here.asked(node, ActionKind.TERMINATE, ago=200.0, unanswered=True, cause=Cause.EXCESS)
    return here


def verdicts(turn: Turn, node: Node) -> dict[tuple[Act, Cause], str]:
    return {(act, cause): may(turn, act, node, cause) for act in Act for cause in sorted(TAKEN)}


@pytest.mark.parametrize("seed", range(20))
def test_every_refusal_says_why_in_words_and_lands_in_the_plan(seed: int) -> None:
    draw = random.Random(seed)
    here = drawn(draw)
    for node in here.fleet.nodes:
        for (act, cause), why in verdicts(here.turn(), node).items():
            assert why == "" or (why[0].isalnum() and " " in why and not why.endswith(".")), (act, cause, why)
    for node in here.fleet.nodes:
        turn = here.turn()
        why = may(turn, Act.END, node, Cause.EXCESS)
        assert turn.terminate(node, Cause.EXCESS, "a test") is (why == "")
        if why:
            assert (ActionKind.TERMINATE, node.id, why) in {(d.kind, d.node, d.reason) for d in turn.deferred}
            assert any(node.id in note and why in note for note in turn.notes)


@pytest.mark.parametrize("seed", range(20))
def test_what_may_not_be_done_to_a_node_may_not_when_more_says_that_it_works(seed: int) -> None:
    """Another balancer that sends it requests, and an engine that answers with some, allow nothing."""
    draw = random.Random(seed)
    here = drawn(draw)
    before = {n.id: verdicts(here.turn(), n) for n in here.fleet.nodes if n.phase is not Phase.STOPPED}
    for node, found in before.items():
        more = deepcopy(here)
        if node in more.engines:
            more.engines[node] = replace(
                more.engines[node], ok=True, ready=True, failing_since=None, running=3, at=more.now
            )
        more.held[node] = TargetPhase.ACTIVE
        more.shown[node] = Target(id=node, address="x:1", state=TargetState.HEALTHY, in_flight=3)
        turn = more.turn()
        then = verdicts(turn, turn.fleet.by_id[node])
        for act in (Act.END, Act.STOP, Act.LEAVE):
            for cause in sorted(TAKEN):
                assert not (found[act, cause] and not then[act, cause]), (node, act, cause, found[act, cause])


@pytest.mark.parametrize("seed", range(20))
def test_a_drain_that_may_be_may_still_be_where_one_more_serves(seed: int) -> None:
    here = drawn(random.Random(seed))
    before = {n.id: verdicts(here.turn(), n) for n in here.fleet.nodes}
    here.node("more", OD)
    turn = here.turn()
    for node, found in before.items():
        for cause in sorted(TAKEN - {Cause.SICK}):  # whose silence it is may change
            then = may(turn, Act.DRAIN, turn.fleet.by_id[node], cause)
            assert found[Act.DRAIN, cause] or not then, (node, cause, then)


@pytest.mark.parametrize("seed", range(20))
def test_counts_of_a_turn_equal_a_count_of_what_stays(seed: int) -> None:
    """After any drains, ends and returns, in any order."""
    draw = random.Random(seed)
    turn = drawn(draw).turn()
    for _ in range(6):
        node = draw.choice(turn.fleet.nodes)
        if draw.random() < 0.5:
            turn.leave(node)
        elif node.drain is not None and node.id not in turn.leaving | turn.returning:
            turn.come_back(node)
    stay = [n for n in turn.fleet.nodes if n.id not in turn.leaving]
    serve = [n for n in stay if n.serving and n.healthy and (n.drain is None or n.id in turn.returning)]
    for node in turn.fleet.nodes:
        assert turn.serving_without(node) == sum(n.units for n in serve if n.id != node.id)
        others = [n for n in stay if n.id != node.id]
        back = [n for n in others if n.id in turn.returning and n.answers and n.in_service]
        sure = [n for n in others if n.reliable] + [n for n in back if n.standby is not StandbyKind.STOPPED]
        if node.operator is not None:
            sure += [n for n in others if headroom.on_notice(n)]
        if node.id not in turn.returning:
            here = sum(n.units for n in sure if n.placement.market is node.placement.market)
            floor = 0 if node.spot else turn.pool.on_demand_floor
            enough = sum(n.units for n in sure) >= turn.pool.replicas and here >= floor
            assert turn.enough_without(node) is enough


def test_the_tables_cover_every_act_and_every_cause() -> None:
    assert set(ACTS) == set(Act)
    assert set(CAUSES) == set(Cause)


# -- nothing goes round the gate ---------------------------------------------------------------------------

GATED = {"Drain": "drain", "Stop": "stop", "Terminate": "terminate", "Undrain": "undrain"}


def makers(tree: ast.Module) -> set[tuple[str, str]]:
    """Which gated actions are made, and in which function."""
    found = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in GATED:
                    found.add((call.func.id, function.name))
    return found


def test_only_a_turn_takes_nodes_away_or_back() -> None:
    made = {
        (path.stem, kind, function)
        for path in sorted(POLICIES.rglob("*.py"))
        for kind, function in makers(ast.parse(path.read_text(encoding="utf-8")))
    }
    # An earlier deadline for a node that drains already asks nobody.
    assert made == {("plan_builder", kind, name) for kind, name in GATED.items()} | {
        ("plan_builder", "Drain", "hasten")
    }


def test_a_turn_asks_the_gate_before_it_plans() -> None:
    tree = ast.parse((POLICIES / "plan_builder.py").read_text(encoding="utf-8"))
    asks = {
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "self._refused"
    }
    assert asks == set(GATED.values())


# -- clause by clause --------------------------------------------------------------------------------------


def verdict(here: Scene, act: Act, node: str, cause: Cause) -> str:
    turn = here.turn()
    return may(turn, act, turn.fleet.by_id[node], cause)


def five(**more: object) -> Scene:
    """Three spot and two on-demand nodes for four, two of them on demand at least."""
    return Scene(Pool(name="p", replicas=4, spot_share=0.5, **more)).nodes(3).nodes(2, OD)  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", [Cause.EXCESS, Cause.RETURN, Cause.REBALANCE, Cause.GPU_DOUBT])
def test_the_floor_and_wanted_hold_back_what_is_chosen(cause: Cause) -> None:
    here = five()
    assert verdict(here, Act.DRAIN, "s0", cause) == ""
    assert verdict(here, Act.DRAIN, "o0", cause) != ""  # the floor
    here.node("s1", silent_for=1.0)
    assert verdict(here, Act.DRAIN, "s0", cause) != ""  # wanted
    assert verdict(here, Act.DRAIN, "s1", cause) == ""


@pytest.mark.parametrize(("hot", "goes"), [(0, True), (1, False)])
def test_a_recommendation_leaves_the_hot_standby(hot: int, goes: bool) -> None:
    here = five()
    here.pool = replace(here.pool, standby=replace(here.pool.standby, hot=hot))
    assert (verdict(here, Act.DRAIN, "s0", Cause.REBALANCE) == "") is goes
    assert verdict(here, Act.DRAIN, "s0", Cause.EXCESS) == ""


def test_the_budget_counts_what_goes_by_choice_and_works() -> None:
    here = five().nodes(6).node("x", silent_for=60.0, serving=False).drain("s5", Cause.EXCESS)
    for cause in TAKEN:
        busy = "draining by choice already" in verdict(here, Act.DRAIN, "s0", cause)
        assert busy is (cause.by_choice), cause
    assert verdict(here, Act.DRAIN, "x", Cause.OPERATOR) == ""


@pytest.mark.parametrize(
    ("known", "sent", "returns"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_one_that_nobody_has_looked_at_returns_only_where_it_gets_requests(
    known: bool, sent: bool, returns: bool
) -> None:
    here = Scene().nodes(4).node("x", probed=known).drain("x", Cause.EXCESS)
    if sent:
        here.held["x"] = TargetPhase.ACTIVE
        here.shown["x"] = replace(here.shown["x"], state=TargetState.HEALTHY)
    assert (verdict(here, Act.UNDRAIN, "x", Cause.EXCESS) == "") is returns


@pytest.mark.parametrize("cause", sorted(TAKEN))
@pytest.mark.parametrize("needed", [False, True])
def test_a_draining_node_returns_by_the_table(cause: Cause, needed: bool) -> None:
    """No notice, no request, and it answers: at once, when it is needed, or never."""
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(3 if needed else 4, OD).node("x", OD)
    here.drain("x", cause)
    here.held["x"] = TargetPhase.ACTIVE
    here.shown["x"] = replace(here.shown["x"], state=TargetState.HEALTHY)
    over = cause in (Cause.NOTICE, Cause.OPERATOR, Cause.GPU, Cause.GPU_DOUBT, Cause.OUTDATED)
    recalled = needed and cause is not Cause.BOOT
    assert [a.node for a in of_kind(here.plan(), Undrain)] == (["x"] if over or recalled else [])


@pytest.mark.parametrize(
    ("since", "cause", "returns"),
    [
        (5.0, Cause.OPERATOR, True),
        (2000.0, Cause.OPERATOR, False),
        (2000.0, Cause.GPU_DOUBT, True),
        (5.0, Cause.GPU, False),
    ],
)
def test_a_request_in_force_holds_a_node_unless_it_is_needed_and_not_overdue(
    since: float, cause: Cause, returns: bool
) -> None:
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(3, OD).node("x", OD).drain("x", cause)
    request = OperatorRequest(since=here.now - since, budget=30.0, reason="asked", cause=cause)
    here.records["x"] = replace(here.records["x"], operator=request)
    here.held["x"] = TargetPhase.ACTIVE
    here.shown["x"] = replace(here.shown["x"], state=TargetState.HEALTHY)
    assert [a.node for a in of_kind(here.plan(), Undrain)] == (["x"] if returns else [])
    here.node("o9", OD)
    assert of_kind(here.plan(), Undrain) == []


def test_a_notice_waits_for_no_clear_view_and_all_else_does() -> None:
    here = five()
    here.settings["durable"] = False
    for cause in TAKEN - {Cause.NOTICE}:
        assert verdict(here, Act.DRAIN, "s0", cause) == "the journal cannot be written", cause
    here.notice("s0", 10.0, kind=NoticeKind.INTERRUPTION)
    assert verdict(here, Act.DRAIN, "s0", Cause.NOTICE) == ""
    assert of_kind(here.plan(), Drain) != []
    here.drain("s0", Cause.NOTICE, since=60.0, left=-1.0)
    assert [*of_kind(here.plan(), Terminate), *of_kind(here.plan(), Stop)] == []
