"""Kill -9 at every effect: whatever the daemon was doing, the next one finishes it, once.

Each scenario runs clean first, which gives the list of its effects: every write of the journal, every call
that changes the cloud, every write of a target set. Then it runs once for every point: killed just before
the effect, just after it, and with the call on its way so that it lands under the next daemon. One in
`EVERY` of the points of each kind is played here, all of them by `make sim`, also in the continuous check.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from scenarios import SCENARIOS, Scenario, play

from cloud.sim.effects import Moment, Point
from orchestrator.simulation.simulate import Outcome

SEED = 1
EVERY = 30


def replay(scenario: Scenario, point: Point | None) -> str:
    kill = "" if point is None else f" --kill {point}"
    return f"replay: python tests/simulation/replay.py {scenario.name} --seed {SEED}{kill}"


def faults_of(scenario: Scenario, outcome: Outcome) -> list[str]:
    """What is wrong with a run that was killed somewhere."""
    found = [str(b) for b in outcome.broken]
    if outcome.launches != scenario.launches:
        found.append(f"{outcome.launches} machines were launched, {scenario.launches} are needed")
    return found


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_the_clean_run_is_sound(name: str, tmp_path: Path, sound) -> None:
    scenario = SCENARIOS[name]
    outcome = sound(play(scenario, tmp_path, seed=SEED), replay(scenario, None))
    assert (outcome.launches, outcome.boots, outcome.killed_at) == (scenario.launches, 1, None)
    kinds = {e.kind for e in outcome.effects}
    assert {"journal", "apply", "launch"} <= kinds
    assert name in ("bootstrap", "key_not_granted", "spot_not_allowed") or "terminate" in kinds
    assert {p.moment for p in outcome.points} == set(Moment)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_killed_at_every_effect(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    every = play(scenario, tmp_path / "clean", seed=SEED).points
    rng = random.Random(SEED)
    moments = [[point for point in every if point.moment is moment] for moment in Moment]
    points = [point for those in moments for point in rng.sample(those, -(-len(those) // EVERY))]
    assert all(moments)
    failures = []
    for point in points:
        outcome = play(scenario, tmp_path / str(point), seed=SEED, crash=point)
        faults = faults_of(scenario, outcome)
        if outcome.killed_at is None or outcome.killed_at.number != point.effect:
            faults.append("the daemon was not killed: the run before the point was another one")
        elif outcome.boots != 2:
            faults.append(f"{outcome.boots} daemons were started, not 2")
        if faults:
            failures.append(
                f"killed {point.moment} {outcome.killed_at}: {faults}\n  {replay(scenario, point)}"
            )
    assert points
    assert not failures, f"{len(failures)} of {len(points)} points:\n" + "\n".join(failures[:10])
