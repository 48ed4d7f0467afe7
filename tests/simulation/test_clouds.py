"""Two clouds carry one pool: what one of them refuses, hides or breaks stays its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scenarios import PACE, TWO_REGIONS, config, sales

from cloud.sim.balancer import Traffic
from cloud.sim.faults import CLOUD, Fault, within
from cloud.sim.world import Machine
from orchestrator.simulation.simulate import Simulation
from policies.model import Market
from policies.regions import UNSEEN_FOR

CLOUD_OF = {"east": "aws", "west": "gcp"}


def simulation(folder: Path, **pool: object) -> Simulation:
    """A pool that may have nodes of two clouds, one region each."""
    sold = sales(regions=TWO_REGIONS)
    own = [
        replace(sale, placement=replace(sale.placement, provider=CLOUD_OF[sale.placement.region]))
        for sale in sold
    ]
    return Simulation(config(folder, **pool), sales=own, seed=1, pace=PACE, traffic=Traffic(per_second=2.0))


def of(sim: Simulation, provider: str) -> list[Machine]:
    """Live machines of one of the clouds."""
    return [machine for machine in sim.live() if machine.placement.provider == provider]


async def whole(sim: Simulation) -> None:
    sim.furnish()
    sim.boot()
    await sim.settle()


def paused(sim: Simulation) -> set[tuple[str, str]]:
    """Markets that are paused: region and market."""
    assert sim.running is not None
    loop = sim.running.loop(sim.pool.name)
    assert loop is not None
    return {(region, str(market)) for region, market in loop.memory.bars}


@pytest.mark.parametrize("fault", [Fault.DENIED, Fault.MISCONFIGURED, Fault.QUOTA, Fault.REFUSED])
def test_launches_that_one_cloud_refuses_go_to_the_other(tmp_path: Path, sound, fault: Fault) -> None:
    """Its lists answer: only what is bought there fails, and only its places are closed for it."""

    async def script(sim: Simulation) -> None:
        await whole(sim)
        sim.world.faults.begin(within(("launch",), "west"), fault)
        for machine in of(sim, "gcp"):
            sim.world.terminate(machine.id)
        await sim.settle(within=300.0)
        assert of(sim, "gcp") == []
        assert len(of(sim, "aws")) == 4
        if fault in (Fault.DENIED, Fault.MISCONFIGURED):
            assert {region for region, _ in paused(sim)} == {"west"}

    sound(simulation(tmp_path).run(script))


@pytest.mark.parametrize("fault", [Fault.DENIED, Fault.SLOW])
def test_a_new_pool_starts_on_one_cloud_while_the_other_refuses_or_hangs(
    tmp_path: Path, sound, fault: Fault
) -> None:
    """As where credentials of one cloud are wrong, or its adapters could not be made."""

    async def script(sim: Simulation) -> None:
        end = sim.world.faults.begin(within(CLOUD, "west"), fault)
        sim.boot()
        await sim.clock.sleep(UNSEEN_FOR - 20.0)
        assert sim.world.launches == 0
        await sim.settle(within=300.0)
        assert len(of(sim, "aws")) == 4
        end()
        await sim.settle()
        assert sim.world.launches <= 6  # the other is no reason to buy anew

    sound(simulation(tmp_path).run(script))


def test_a_cloud_that_is_gone_with_its_machines_is_made_up_for_within_the_cap_and_comes_back(
    tmp_path: Path, sound
) -> None:
    async def script(sim: Simulation) -> None:
        await whole(sim)
        lost = {machine.id for machine in of(sim, "gcp")}
        end = sim.world.faults.begin(within(CLOUD, "west"), Fault.SLOW)
        for node in lost:
            sim.world.silence(node)
        await sim.clock.sleep(200.0)
        able = [m for m in sim.live() if m.able(sim.clock.now())]
        assert lost
        assert {m.placement.provider for m in able} == {"aws"}
        assert len(able) == 4
        for node in lost:
            sim.world.terminate(node)
        end()
        await sim.settle()
        assert len(sim.live(Market.SPOT)) == sim.pool.spot_wanted

    sound(simulation(tmp_path).run(script))
