"""What holds of conditions, whatever the witnesses say; and that nobody else asks the witnesses."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.evidence import TESTIMONY, Evidence, Question, Status, Witness, says
from policies.evidence.conditions import Look, words
from policies.fleet import Fleet
from policies.model import Observed, Pool, TargetState, World
from policies.node import Role
from policies.records import Memory
from policies.value import replace
from tests.support.instants import NOW, instants

POLICIES = Path(__file__).parents[2] / "policies"
MODULES = sorted(POLICIES.rglob("*.py"))

Instant = tuple[Pool, World, Memory]
many = settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)


def attributes(tree: ast.AST) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def elsewhere() -> dict[str, ast.Module]:
    """The modules of policies outside of the evidence, without the one that names what the world has."""
    return {
        str(file.relative_to(POLICIES)): ast.parse(file.read_text(encoding="utf-8"))
        for file in MODULES
        if file.parent.name != "evidence" and file.name != "model.py"
    }


def test_only_the_evidence_asks_the_witnesses() -> None:
    asked = ("engines", "balancers", "failing_since", "awake_since", "writing")
    found = [
        f"{name}:{node.lineno} {node.attr}"
        for name, tree in elsewhere().items()
        for node in attributes(tree)
        if node.attr in asked
    ]
    assert found == []


def test_who_is_a_standby_is_asked_in_one_place() -> None:
    found = [
        f"{file.name}:{node.lineno}"
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and not isinstance(node.ops[0], ast.Lt | ast.Gt | ast.LtE | ast.GtE)
        and any(
            getattr(side, "attr", getattr(side, "id", "")) == "standby"
            for side in (node.left, *node.comparators)
        )
    ]
    assert len(found) <= 3, found


def test_every_word_of_a_witness_has_its_place_in_the_table() -> None:
    assert set(TESTIMONY) == set(Witness) - {Witness.NOBODY}
    assert set(TESTIMONY[Witness.BALANCER]) == set(TargetState)
    assert set(TESTIMONY[Witness.PROBE]) == set(Look)


@pytest.mark.parametrize(
    ("witness", "word", "question", "status"),
    [
        (Witness.BALANCER, TargetState.HEALTHY, Question.REACHABLE, Status.TRUE),
        (Witness.BALANCER, TargetState.HEALTHY, Question.HEARD, Status.UNKNOWN),
        (Witness.BALANCER, TargetState.DRAINING, Question.REACHABLE, Status.UNKNOWN),
        (Witness.BALANCER, TargetState.UNUSED, Question.REACHABLE, Status.UNKNOWN),
        (Witness.BALANCER, TargetState.INITIAL, Question.REACHABLE, Status.UNKNOWN),
        (Witness.PROBE, Look.OLD, Question.HEARD, Status.UNKNOWN),
        (Witness.PROBE, Look.FAILED, Question.EXISTS, Status.UNKNOWN),
    ],
)
def test_who_may_say_what(witness: Witness, word: TargetState, question: Question, status: Status) -> None:
    assert says(witness, word, question) is status


def test_nobody_but_a_probe_says_that_an_engine_answers() -> None:
    assert [w for w in TESTIMONY if words(w, Question.HEARD, Status.TRUE)] == [Witness.PROBE]


@many
@given(instants())
def test_a_balancer_that_finds_a_node_healthy_forbids_that_it_is_unreachable(instant: Instant) -> None:
    evidence = Evidence(*instant)
    for node in evidence.routing.finds_healthy & instant[2].nodes.keys():
        assert evidence.reachable(node).open


@many
@given(instants())
def test_a_node_is_unreachable_only_for_as_long_as_this_daemon_was_awake_and_heard_nothing(
    instant: Instant,
) -> None:
    _, world, memory = instant
    evidence = Evidence(*instant)
    for node in memory.nodes:
        if evidence.reachable(node).fails():
            reading = world.engines[node]
            assert reading.at >= world.awake_since
            assert reading.failing_since is not None
            assert evidence.reachable(node).lasted <= reading.at - reading.failing_since


@many
@given(instants())
def test_what_was_seen_before_this_daemon_woke_up_says_nothing(instant: Instant) -> None:
    pool, world, memory = instant
    evidence = Evidence(pool, replace(world, awake_since=NOW + 1.0), memory)
    for node in memory.nodes:
        assert evidence.heard(node).status is Status.UNKNOWN
        assert evidence.reachable(node).open
        assert evidence.routed(node).open or not evidence.routing
    assert not evidence.mass_silence(lambda region: "")


@many
@given(instants(), st.sampled_from(["engines", "balancers"]))
def test_a_witness_that_falls_away_makes_nothing_known_to_be_false(instant: Instant, which: str) -> None:
    """Whom nobody asks any more says nothing: what may have been so may still be."""
    pool, world, memory = instant
    if which == "engines":
        less = replace(world, engines={})
    else:
        views = {name: Observed(value=view.value, at=None) for name, view in world.balancers.items()}
        less = replace(world, balancers=views)
    before, after = Evidence(pool, world, memory), Evidence(pool, less, memory)
    for node, record in memory.nodes.items():
        if which == "engines":
            assert after.reachable(node).open
            assert after.heard(node).open
            assert after.holds_requests(record).open or before.never_served(record.token, record.ready_at)
        else:
            assert after.routed(node).open or not world.balancers
            assert before.reachable(node).open <= after.reachable(node).open


@many
@given(instants())
def test_a_set_that_is_being_written_counts_as_taken(instant: Instant) -> None:
    evidence, world = Evidence(*instant), instant[1]
    for nodes in (world.writing[name] for name in world.balancers):
        assert all(evidence.routed(node).holds for node in nodes)


@many
@given(instants())
def test_each_node_has_one_role_and_what_counts_is_counted(instant: Instant) -> None:
    for node in Fleet.of(*instant).nodes:
        assert node.leaving is (node.role is Role.LEAVING)
        assert not node.capacity or node.role is Role.COUNTED
        assert node.reliable <= node.ready <= node.working <= node.capacity
        assert not node.reliable or node.answers or node.ready_at is None


@many
@given(instants())
def test_what_holds_no_requests_never_served_or_is_stopped_or_silent_to_all(instant: Instant) -> None:
    pool = instant[0]
    for node in Fleet.of(*instant).nodes:
        if not node.holds_requests.open and not node.never_served:
            stopped = node.phase in ("stopped", "gone")
            assert stopped or node.reachable.fails(pool.health.replace_after)
