"""The checker can fail: every invariant catches a bug that was planted for it.

One bug in `EVERY` is played here, all of them by `make sim`, also in the continuous check.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
from planted import PLANTED, Planted
from planted_ports import (
    AcknowledgesTooEarly,
    EmptiesOnce,
    ForgetsIntents,
    LosesATarget,
    NeverForgets,
    PutsDrainingBack,
)
from planted_rules import instead
from scenarios import PACE, SCENARIOS, bootstrap, notice

from cloud.ports import LoadBalancer
from cloud.sim.effects import Moment, Point
from cloud.sim.invariants import INVARIANTS
from orchestrator.simulation.simulate import Simulation
from policies.limits import Budget

EVERY = 6


@pytest.mark.parametrize("planted", PLANTED[::EVERY], ids=lambda p: p.name.replace(" ", "-"))
def test_a_planted_bug_is_caught(planted: Planted) -> None:
    assert planted.caught() is not None


@pytest.mark.parametrize(
    "planted", [p for p in PLANTED if p.rule is not nullcontext], ids=lambda p: p.name.replace(" ", "-")
)
def test_with_the_rule_in_force_its_script_is_sound(planted: Planted, tmp_path: Path, sound) -> None:
    """What is caught is the bug, and not the script."""
    sound(dataclasses.replace(planted, rule=nullcontext).play(tmp_path))


def test_without_journalled_intents_some_crash_launches_twice(tmp_path: Path) -> None:
    """What the write-ahead intent is for: the machine that a dead daemon launched is not launched again."""

    def lag(sim: Simulation) -> None:
        sim.world.pace = dataclasses.replace(PACE, list_lag=(8.0, 8.0))

    planted = Planted(name="", invariant="", script=bootstrap, store=ForgetsIntents, prepare=lag)
    scenario = SCENARIOS["bootstrap"]
    launches = [e for e in planted.play(tmp_path / "clean").effects if e.kind == "launch"]
    counts = [
        planted.play(tmp_path / f"{effect.number}-{moment}", crash=Point(effect.number, moment)).launches
        for effect in launches
        for moment in (Moment.AFTER, Moment.LATE)
    ]
    assert max(counts) > scenario.launches


def test_every_invariant_has_its_planted_bug(tmp_path: Path, sound) -> None:
    """No invariant is counted as kept that nothing was ever shown to break."""
    outcome = sound(Planted(name="", invariant="", script=notice).play(tmp_path))
    assert set(outcome.checked) <= INVARIANTS.keys()
    # These have tests of their own: two compare runs (the one above, test_campaign.py), and two need traffic
    # for adapters (test_adapters.py).
    others = {"same-launches", "repeatable", "adapter-held", "adapter-unrouted"}
    assert INVARIANTS.keys() - {p.invariant for p in PLANTED} == others


def test_wrappers_are_ports() -> None:
    """A wrapper that no longer matches the port would plant nothing."""
    for kind in (AcknowledgesTooEarly, EmptiesOnce, LosesATarget, PutsDrainingBack, NeverForgets):
        assert kind.apply.__code__.co_varnames[1:3] == LoadBalancer.apply.__code__.co_varnames[1:3]


def test_a_rule_is_not_replaced_by_what_cannot_be_called_as_it_is() -> None:
    """It would raise in the daemon, which is another bug than the one that it is to be, or none at all."""
    for other in (lambda self, price: "", lambda self: "", lambda price, leaving: ""):
        with pytest.raises(TypeError):
            instead(Budget, "refuses", other)
    instead(Budget, "refuses", lambda *_, **__: "")
