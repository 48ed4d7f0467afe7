"""Launches that try whether machines start: what is waited for, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.actions import Launch
from policies.model import InstanceState, Market, Observed, Offering, Pool
from policies.records import Bar
from tests.support.scene import Scene
from tests.support.toy_pools import ON_DEMAND, SPOT, of_kind, place

PAUSE_OVER = 900.0  # seconds ago: the first pause of a market is long over


def new(replicas: int = 9, **memory: Any) -> Scene:
    """A pool of which no node was ever ready."""
    return Scene(Pool(name="p", replicas=replicas), whole_at=None, ready_once=False, **memory)


def launches(here: Scene, market: Market | None = None) -> int:
    return sum(market in (None, a.placement.market) for a in of_kind(here.plan(), Launch))


def why_not(here: Scene) -> set[str]:
    return {d.reason for d in here.plan().deferred}


@pytest.mark.parametrize(("failed", "more"), [(0, ""), (1, ", 1 failed"), (2, ", 2 failed")])
def test_why_nothing_more_is_launched_says_how_many_failed(failed: int, more: str) -> None:
    here = new(failed_starts=failed)
    for n in range(3 - failed):
        here.launching(f"p/7/{n}")
    assert launches(here) == 0
    told = f"no machine of this pool was seen running yet: {3 - failed} are on their way{more}"
    assert told in why_not(here)


def test_machines_that_are_pending_are_on_their_way_and_such_as_have_ended_are_not() -> None:
    here = new()
    for n in range(2):
        here.node(f"x{n}", ready=False, state=InstanceState.PENDING, age=5.0)
    assert launches(here) == 1
    for n in range(3):
        here.node(f"gone{n}", ready=False, state=InstanceState.SHUTTING_DOWN, age=5.0)
    assert launches(here) == 1


def test_a_stranger_that_runs_tells_nothing_of_this_pools_image() -> None:
    here = new()
    for n in range(3):
        here.node(f"x{n}", ready=False, state=InstanceState.PENDING, age=5.0)
    here.instances["other"] = replace(here.instances["x0"], id="other", state=InstanceState.RUNNING)
    assert launches(here) == 0
    here.node("x0", ready=False, age=5.0)
    assert launches(here) > 3


def test_machines_that_nobody_can_see_keep_no_other_region_waiting() -> None:
    here = new()
    for n in range(3):
        here.node(f"x{n}", ready=False, probed=False, state=InstanceState.PENDING, age=2_000.0)
    here.offerings += [Offering(placement=replace(place(market=m), region="far"), price=1.0) for m in Market]
    seen = Observed(value=tuple(here.instances.values()), at=here.now)
    here.settings["regions"] = {"r": seen, "far": Observed(value=(), at=here.now)}
    waits = launches(here)
    here.settings["regions"] = {
        "r": replace(seen, at=here.now - 3_000.0, error="no answer"),
        "far": Observed(value=(), at=here.now),
    }
    goes = {a.placement.region for a in of_kind(here.plan(), Launch)}
    assert (waits, goes) == (0, {"far"})


# -- a market that was paused ----------------------------------------------------------------------------


def tried(**more: Any) -> Scene:
    """Spot was paused, and the pause is over: one launch may try it."""
    bar = Bar(at=10_000.0 - PAUSE_OVER, count=1, why="denied", **more)
    return Scene(Pool(name="p", replicas=10), bars={("r", SPOT): bar}).nodes(9, ON_DEMAND)


def test_after_a_pause_one_launch_tries() -> None:
    assert launches(tried(), SPOT) == 1


@pytest.mark.parametrize("state", [InstanceState.PENDING, InstanceState.RUNNING])
@pytest.mark.parametrize(
    ("age", "tries"),
    [
        (PAUSE_OVER - 1.0, 0),
        (PAUSE_OVER, 0),  # launched at that very instant
        (PAUSE_OVER + 1.0, 1),  # what was launched before it is no trial
    ],
)
def test_a_machine_that_boots_since_then_is_the_trial(state: InstanceState, age: float, tries: int) -> None:
    here = tried(denied=False, boots=3).node("x", ready=False, state=state, age=age)
    here.pool = replace(here.pool, health=replace(here.pool.health, boot_timeout=5_000.0))
    assert launches(here, SPOT) == tries


def test_one_that_has_started_is_a_trial_no_more_and_keeps_no_launch() -> None:
    here = tried(denied=False, boots=3).node("x", age=300.0)
    assert launches(here, SPOT) == 1


def test_a_trial_in_another_market_is_none_in_this_one() -> None:
    here = tried().node("x", ON_DEMAND, ready=False, state=InstanceState.PENDING, age=10.0)
    here.launching("p/7/9", ON_DEMAND)
    assert launches(here, SPOT) == 1


@pytest.mark.parametrize(
    ("change", "asks"),
    [
        ({}, 1),
        ({"accepted_at": 9_999.0, "unanswered": False}, 1),  # that one was taken
        ({"unanswered": False, "ago": 2.0}, 0),  # its answer is awaited
    ],
    ids=str,
)
def test_of_the_launches_left_from_a_wave_one_is_asked_again_at_a_time(
    change: dict[str, Any], asks: int
) -> None:
    here = tried()
    for n in range(2):
        here.launching(f"p/7/{n}", ago=800.0, unanswered=True, attempts=9, throttled=9)
    here.launching("p/7/7", **{"ago": 800.0, "unanswered": True, "attempts": 9, "throttled": 9, **change})
    again = [a.token for a in of_kind(here.plan(), Launch) if a.placement.market is SPOT]
    assert len(again) == asks
