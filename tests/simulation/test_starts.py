"""The whole daemon where launches fail for another reason than capacity, and nobody resumes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scenarios import PACE, Script, config, sales

from cloud.sim.faults import Fault, buying
from orchestrator.simulation.simulate import Outcome, Simulation
from policies.bars import PAUSE_FIRST
from policies.memory import Memory
from policies.model import Ending, Market

Sound = Callable[[Outcome], Outcome]


def play(folder: Path, script: Script, **pool: Any) -> Outcome:
    sim = Simulation(config(folder, **pool), sales=sales(capacity=100), seed=1, pace=PACE)
    return sim.run(script)


def remembered(sim: Simulation) -> Memory:
    assert sim.running is not None
    loop = sim.running.loop(sim.pool.name)
    assert loop is not None
    return loop.memory


def test_spot_that_is_allowed_again_comes_by_itself(tmp_path: Path, sound: Sound) -> None:
    async def script(sim: Simulation) -> None:
        end = sim.world.faults.begin((buying(Market.SPOT),), Fault.DENIED)
        sim.boot()
        await sim.clock.sleep(100.0)
        end()
        await sim.settle(within=PAUSE_FIRST + 60.0)
        assert (remembered(sim).bars, remembered(sim).refusals, remembered(sim).preemptions) == ({}, {}, 0)

    assert sound(play(tmp_path, script)).launches == 4


def test_a_wave_that_is_throttled_for_minutes_marks_nothing_refused(tmp_path: Path, sound: Sound) -> None:
    async def script(sim: Simulation) -> None:
        sim.furnish()
        sim.boot()
        await sim.settle()
        for machine in sim.live(Market.SPOT):
            sim.board.reclaim(machine.id, after=1.0, notice=None)
        end = sim.world.faults.begin(("launch",), Fault.THROTTLED)
        await sim.clock.sleep(300.0)
        known = remembered(sim)
        assert sim.world.faults.met[Fault.THROTTLED] > 5 * len(known.intents)
        assert len(known.intents) == 30  # cover for all that is lost, and two to go back to spot
        assert (known.refusals, known.bars, known.quota_at) == ({}, {}, {})
        end()
        await sim.settle(within=1200.0)

    sound(play(tmp_path, script, replicas=40, limits={"launches_per_minute": 400}))


def test_a_healthy_pool_outlives_a_time_without_any_permission(tmp_path: Path, sound: Sound) -> None:
    """Long enough for pauses of an hour: it is tried every five minutes all the same."""

    async def script(sim: Simulation) -> None:
        sim.furnish()
        sim.boot()
        await sim.settle()
        end = sim.world.faults.begin(map(buying, Market), Fault.DENIED)
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
        await sim.clock.sleep(4000.0)
        assert sim.world.launches == 4
        assert sim.world.faults.met[Fault.DENIED] < 40
        end()
        await sim.settle(within=2 * PAUSE_FIRST + 60.0)

    sound(play(tmp_path, script))


@pytest.mark.parametrize(("ending", "most"), [(Ending.FAULT, 20), (Ending.CAPACITY, 80)])
def test_machines_that_never_start_on_spot_cost_no_healthy_pool_its_nodes(
    tmp_path: Path, sound: Sound, ending: Ending, most: int
) -> None:
    """A key that EC2 may not use any more: what is lost on spot is covered on demand, and comes back."""

    async def script(sim: Simulation) -> None:
        sim.furnish()
        sim.boot()
        await sim.settle()
        sim.world.stillborn = {Market.SPOT: ending}
        for machine in sim.live(Market.SPOT):
            sim.board.reclaim(machine.id, after=60.0, notice=60.0)
        await sim.clock.sleep(900.0)
        assert len(sim.live(Market.ON_DEMAND)) == 4
        assert remembered(sim).preemptions == 2
        assert sim.world.launches < most
        sim.world.stillborn = {}
        await sim.settle(within=1800.0)

    sound(play(tmp_path, script))
