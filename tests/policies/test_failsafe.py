"""Beyond the lease, while the database does not answer: noticed nodes leave, and nothing else is done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies import invariants
from policies.actions import Action, Attach, Cause, Detach, Drain, Plan, Undrain
from policies.model import (
    Confidence,
    Market,
    NoticeKind,
    Observed,
    Pool,
    TargetPhase,
    TargetSpec,
    TargetState,
)
from tests.support.scene import Scene
from tests.support.toy_checks import CheckedCloud

DRAINING = TargetPhase.DRAINING


@pytest.fixture
def beyond() -> Any:
    """Ten nodes that serve; the database fell silent 40 s ago, and the lease has run out."""
    here = Scene(Pool(name="p", replicas=10)).nodes(7).nodes(3, Market.ON_DEMAND)
    here.settings |= {"leading": False, "durable": False, "failsafe_since": here.now - 40.0}
    return here


def out(plan: Plan) -> list[str]:
    return [t.id for t in plan.targets if t.phase is DRAINING]


def done(plan: Plan) -> list[tuple[type[Action], str]]:
    return [(type(a), getattr(a, "node", "")) for a in plan.actions]


def test_a_noticed_node_leaves_and_everything_else_stays(beyond: Scene) -> None:
    beyond.notice("s0")
    plan = beyond.plan()
    assert (out(plan), plan.write) == (["s0"], ("gw",))
    assert {t.id for t in plan.targets} == set(beyond.records)
    assert done(plan) == [(Drain, "s0"), (Detach, "s0")]
    assert {d.reason for d in plan.deferred} == {"the database does not answer, and the lease has run out"}


def test_without_a_notice_nothing_is_written(beyond: Scene) -> None:
    assert beyond.plan().write == ()


def test_a_lease_that_another_has_allows_nothing(beyond: Scene) -> None:
    beyond.settings["failsafe_since"] = None
    beyond.notice("s0")
    assert beyond.plan().write == ()


def test_a_node_that_is_out_is_not_taken_out_again_until_a_balancer_shows_it_back(beyond: Scene) -> None:
    beyond.notice("s0")
    beyond.drain("s0", Cause.NOTICE)
    assert beyond.plan().write == ()
    beyond.shown["s0"] = replace(beyond.shown["s0"], state=TargetState.HEALTHY)
    assert (out(beyond.plan()), beyond.plan().write) == (["s0"], ("gw",))


def test_a_set_whose_answer_is_lost_may_have_put_it_back(beyond: Scene) -> None:
    beyond.notice("s0")
    beyond.drain("s0", Cause.NOTICE)
    beyond.settings["writing"] = {"gw": ("s0",)}
    assert beyond.plan().write == ("gw",)


def test_what_was_to_leave_for_another_reason_stays(beyond: Scene) -> None:
    """It was decided under the lease, and not yet acknowledged: another daemon may have taken it back."""
    beyond.drain("s1", Cause.OPERATOR)
    beyond.shown["s1"] = replace(beyond.shown["s1"], state=TargetState.HEALTHY)
    beyond.node("s2", silent_for=500.0)
    plan = beyond.plan()
    assert (out(plan), plan.write) == ([], ())


def test_a_node_that_is_ready_does_not_enter(beyond: Scene) -> None:
    beyond.node("new", serving=False)
    beyond.notice("s0")
    plan = beyond.plan()
    assert "new" not in {t.id for t in plan.targets}
    assert Attach not in {kind for kind, _ in done(plan)}


def test_reports_take_out_no_more_than_the_disruption_budget(beyond: Scene) -> None:
    for number in range(4):
        beyond.notice(
            f"s{number}", confidence=Confidence.REPORTED, source="agent", seen_at=beyond.now - number
        )
    assert out(beyond.plan()) == ["s3"]
    for number in range(4, 7):
        beyond.notice(f"s{number}", 60.0)
    assert out(beyond.plan()) == ["s4", "s5"]  # the rest serve on: too few others do


def test_a_notice_that_is_taken_back_changes_nothing(beyond: Scene) -> None:
    """Its node stays where it is: neither put back nor, where it serves still, taken out."""
    beyond.notice("s0", cancelled=True)
    beyond.drain("s0", Cause.NOTICE)
    plan = beyond.plan()
    assert plan.write == ()
    assert Undrain not in {kind for kind, _ in done(plan)}
    beyond.shown["s0"] = replace(beyond.shown["s0"], state=TargetState.HEALTHY)
    assert beyond.plan().write == ()


@pytest.mark.parametrize("state", [TargetState.UNHEALTHY, TargetState.INITIAL])
def test_the_last_target_that_a_balancer_finds_healthy_stays(beyond: Scene, state: TargetState) -> None:
    """However the others look to this daemon: it cannot put them in."""
    for node in beyond.records:
        if node not in ("s0", "o0"):
            beyond.shown[node] = replace(beyond.shown[node], state=state)
    beyond.notice("s0", 30.0)
    beyond.notice("o0", 40.0, kind=NoticeKind.MAINTENANCE)
    plan = beyond.plan()
    assert out(plan) == ["s0"]
    assert "o0 is noticed and goes on serving: gw has no other healthy target" in plan.notes


def test_each_balancer_keeps_a_healthy_target(beyond: Scene) -> None:
    alone = (beyond.shown["s0"],)
    every = tuple(beyond.shown.values())
    beyond.settings["balancers"] = {
        "alb": Observed(value=alone, at=beyond.now),
        "gw": Observed(value=every, at=beyond.now),
    }
    beyond.notice("s0")
    assert beyond.plan().write == ()


def test_a_balancer_that_was_never_read_keeps_no_node_in_another_one(beyond: Scene) -> None:
    """It took all of them once. It is not written, so no target of its own is at stake."""
    took = dict.fromkeys(beyond.records, TargetPhase.ACTIVE)
    beyond.fields["targets"] = {"gw": took, "alb": took}
    beyond.settings["balancers"] = {
        "alb": Observed(value=(), at=None),
        "gw": Observed(value=tuple(beyond.shown.values()), at=beyond.now),
    }
    beyond.notice("s0")
    plan = beyond.plan()
    assert (out(plan), plan.write) == (["s0"], ("gw",))


@pytest.mark.parametrize("read_at", [None, -200.0, -3.0])
def test_a_balancer_that_was_not_read_since_the_daemon_is_awake_is_not_written(
    beyond: Scene, read_at: float | None
) -> None:
    at = None if read_at is None else beyond.now + read_at
    beyond.settings |= {
        "balancers": {"gw": Observed(value=tuple(beyond.shown.values()), at=at)},
        "awake_since": beyond.now - 2.0,
    }
    beyond.notice("s0")
    assert beyond.plan().write == ()


def test_what_happens_while_the_database_is_away_and_after() -> None:
    """Two notices, one before and one in the silence: both leave; nothing is bought until it is over."""
    toy = CheckedCloud(record=True)
    toy.set_capacity(Market.SPOT, 100)
    toy.set_capacity(Market.ON_DEMAND, 100)
    toy.settle()
    first, second = toy.alive(Market.SPOT)[:2]
    toy.reclaim(first, 120.0)
    toy.run(4.0)
    launched = len(toy.machines)
    toy.silent_since = toy.now
    active = set(toy.active())
    toy.reclaim(second, 60.0)
    toy.run(10.0)
    assert first not in toy.active()
    assert second not in toy.active()
    assert set(toy.active()) <= active
    toy.run(300.0)
    assert len(toy.machines) == launched
    toy.silent_since = None
    toy.settle()
    assert len(toy.answering()) >= toy.pool.replicas


# -- the last look at a plan ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("specs", "broken"),
    [
        ({"s0": DRAINING}, []),
        ({"s1": DRAINING}, ["failsafe"]),
        ({"x": DRAINING}, ["failsafe"]),
        ({"x": TargetPhase.ACTIVE}, ["failsafe"]),
        ({"s1": TargetPhase.ACTIVE}, []),
    ],
)
def test_a_plan_that_does_more_is_a_violation(
    beyond: Scene, specs: dict[str, TargetPhase], broken: list[str]
) -> None:
    beyond.notice("s0")
    targets = tuple(TargetSpec(id=i, address=f"{i}:1", phase=phase) for i, phase in specs.items())
    plan = Plan(targets=targets, write=("gw",))
    found = invariants.check(beyond.pool, beyond.world, beyond.fleet, beyond.memory, plan)
    assert [v.name for v in found] == broken


def test_a_plan_that_empties_a_balancer_is_a_violation() -> None:
    here = Scene(Pool(name="p", replicas=1)).node("s0")
    here.settings |= {"leading": False, "failsafe_since": here.now - 40.0}
    here.notice("s0")
    gone = (TargetSpec(id="s0", address="s0:1", phase=DRAINING),)
    plan = Plan(targets=gone, write=("gw",))
    found = invariants.check(here.pool, here.world, here.fleet, here.memory, plan)
    assert [v.name for v in found] == ["last-target"]
    assert out(here.plan()) == []
