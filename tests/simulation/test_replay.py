"""What the simulated daemon recorded is decided again from its journal, whatever happened to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scenarios import PACE, SCENARIOS, config, play, sales
from swarm import Swarm, play_swarm

from cloud.sim.effects import Point
from orchestrator.journal.file import JournalFile
from orchestrator.journal.replay import replay
from orchestrator.simulation.simulate import Simulation
from policies import capacity, swap
from policies.model import Market
from policies.plan_builder import Turn


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_every_turn_of_a_scenario_is_decided_again_the_same(name: str, tmp_path: Path, sound) -> None:
    outcome = sound(play(SCENARIOS[name], tmp_path, seed=1))
    with JournalFile.open(tmp_path / "state") as journal:
        turns = list(replay(journal))
        assert sum(r.turns for r in journal.recordings()) == len(turns) > 3
    assert [t.differences or t.unreadable for t in turns if not t.identical] == []
    assert outcome.checked["replay"] == len(turns)
    assert any(t.recorded["actions"] for t in turns)


def test_a_daemon_that_was_killed_and_its_follower_are_decided_again(tmp_path: Path, sound) -> None:
    """Each of the two began a recording of its own; the first lost what it had not written."""
    clean = play(SCENARIOS["notice"], tmp_path / "clean", seed=1)
    drained = next(e for e in clean.effects if "DrainStarted" in e.detail)
    sound(
        play(SCENARIOS["notice"], tmp_path / "killed", seed=1, crash=Point.parse(f"{drained.number}:after"))
    )
    with JournalFile.open(tmp_path / "killed" / "state") as journal:
        assert len({r.epoch for r in journal.recordings()}) == 2
        assert all(turn.identical for turn in replay(journal))


def test_what_a_swarm_of_faults_made_is_decided_again() -> None:
    recorded = [s for s in (Swarm(seed, 0.25) for seed in range(1000, 1050)) if s.record_turns != "off"]
    outcomes = [play_swarm(swarm) for swarm in recorded[:5]]
    assert [b for outcome in outcomes for b in outcome.broken if b.name == "replay"] == []
    assert sum(outcome.checked["replay"] for outcome in outcomes) > 100


def test_a_policy_with_a_memory_of_its_own_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that no journal holds: the plan depends on how often it was asked before."""
    calls = 0
    replenish: Callable[[Turn], object] = capacity.replenish

    def counting(turn: Turn) -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            turn.note("the seventh turn")
        replenish(turn)

    monkeypatch.setattr(capacity, "replenish", counting)
    outcome = play(SCENARIOS["notice"], tmp_path, seed=1)
    (broken,) = [b for b in outcome.broken if b.name == "replay"]
    assert "the seventh turn" in broken.text


def test_the_turn_that_ended_the_daemon_is_on_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of a policy that raises: the copy on the desk raises in the same place."""
    drain = swap.drain_noticed

    def raises_when_doomed(turn: Turn) -> None:
        if any(node.notice is not None for node in turn.fleet.nodes):
            raise LookupError("nobody thought of this")
        drain(turn)

    async def script(sim: Simulation) -> None:
        sim.furnish()
        process = sim.boot()
        await sim.settle()
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
        while not process.ended:
            await sim.clock.sleep(1.0)
        await process.daemon.stop()

    with monkeypatch.context() as patched:
        patched.setattr(swap, "drain_noticed", raises_when_doomed)
        outcome = Simulation(config(tmp_path), sales=sales(), pace=PACE).run(script)
        assert [b.name for b in outcome.broken] == ["daemon-lives"]
        with JournalFile.open(tmp_path / "state") as journal:
            assert all(turn.identical for turn in replay(journal))
    with JournalFile.open(tmp_path / "state") as journal:
        *others, last = replay(journal)
    assert all(turn.identical for turn in others)
    assert last.differences == ("decide raised LookupError: nobody thought of this",)


@pytest.mark.slow
def test_another_hash_seed_decides_the_same(tmp_path: Path) -> None:
    """Sets of strings are in another order in another process; no plan may depend on that."""
    play(SCENARIOS["return_to_spot"], tmp_path, seed=1)
    root = Path(__file__).parents[2]
    for hash_seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", "journal", "replay", str(tmp_path / "state")],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Every plan came out the same, byte for byte." in done.stdout
