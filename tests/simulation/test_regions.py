"""A region falls silent: with a restart, with the journal lost, with its network, and for good."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios import PACE, TWO_REGIONS, config, sales

from cloud.sim.balancer import Traffic
from cloud.sim.faults import CLOUD, Fault, within
from cloud.sim.world import Machine
from orchestrator.simulation.simulate import Simulation
from policies.model import Market
from policies.regions import UNSEEN_FOR


def simulation(folder: Path, **pool: object) -> Simulation:
    return Simulation(
        config(folder, **pool),
        sales=sales(regions=TWO_REGIONS),
        seed=1,
        pace=PACE,
        traffic=Traffic(per_second=2.0),
    )


async def whole(sim: Simulation) -> None:
    sim.furnish()
    sim.boot()
    await sim.settle()


def west(sim: Simulation) -> list[Machine]:
    return [m for m in sim.live() if m.placement.region == "west"]


@pytest.mark.parametrize("fault", [Fault.FAILED, Fault.SLOW, Fault.DENIED, Fault.THROTTLED])
def test_a_restart_while_a_region_is_silent_launches_nothing_twice(
    tmp_path: Path, sound, fault: Fault
) -> None:
    async def script(sim: Simulation) -> None:
        await whole(sim)
        held = {m.id for m in west(sim)}
        assert held
        end = sim.world.faults.begin(within(CLOUD, "west"), fault)
        assert sim.running is not None
        sim.kill(sim.running)
        sim.boot()
        await sim.clock.sleep(120.0)
        assert {m.id for m in sim.live()} >= held
        assert sim.world.launches == 4
        sim.world.terminate(next(m for m in sim.live(Market.SPOT) if m.placement.region == "east").id)
        await sim.settle(within=200.0)  # the other region replaces what it lost, by the journal alone
        end()
        await sim.settle()

    sound(simulation(tmp_path).run(script))


def test_with_the_journal_lost_as_well_nothing_is_launched_or_ended_anywhere(tmp_path: Path, sound) -> None:
    """What the silent region holds nobody can tell; its nodes serve on, and are found when it is back."""

    async def script(sim: Simulation) -> None:
        await whole(sim)
        held = {m.id for m in sim.live()}
        end = sim.world.faults.begin(within(CLOUD, "west"), Fault.FAILED)
        assert sim.running is not None
        sim.kill(sim.running)
        sim.lose_journal()
        sim.checker.faults_on = True  # nobody can know of what is in the west
        sim.boot()
        await sim.clock.sleep(200.0)
        assert {m.id for m in sim.live()} == held
        assert {s.id for s in sim.table.active()} == held
        assert sim.world.launches == 4
        end()
        await sim.clock.sleep(30.0)
        sim.checker.faults_on = False
        await sim.settle()
        assert sim.world.launches == 4

    sound(simulation(tmp_path).run(script))


def test_a_region_that_is_gone_with_its_network_is_replaced_as_far_as_there_is_room(
    tmp_path: Path, sound
) -> None:
    async def script(sim: Simulation) -> None:
        await whole(sim)
        lost = {m.id for m in west(sim)}
        end = sim.world.faults.begin(within(CLOUD, "west"), Fault.SLOW)
        for node in lost:
            sim.world.silence(node)
        await sim.clock.sleep(200.0)
        able = [m for m in sim.live() if m.able(sim.clock.now())]
        assert len(lost) == 2
        assert len(able) == 4  # two of surge
        assert all(m.placement.region == "east" for m in able)
        for node in lost:
            sim.world.revive(node)
        end()
        await sim.settle()

    sound(simulation(tmp_path).run(script))


def test_what_a_region_lost_while_it_was_silent_is_forgotten_when_it_is_back(tmp_path: Path, sound) -> None:
    async def script(sim: Simulation) -> None:
        await whole(sim)
        end = sim.world.faults.begin(within(CLOUD, "west"), Fault.FAILED)
        await sim.clock.sleep(40.0)
        for machine in west(sim):
            sim.world.terminate(machine.id)  # somebody else did
        await sim.clock.sleep(sim.world.pace.listed_after_end + 100.0)  # no list shows them any more
        assert len([m for m in sim.live() if m.able(sim.clock.now())]) == 4
        end()
        await sim.settle()

    sound(simulation(tmp_path).run(script))


@pytest.mark.parametrize("fault", [Fault.FAILED, Fault.SLOW, Fault.DENIED, Fault.THROTTLED])
def test_a_new_pool_begins_though_a_region_is_silent_from_the_start(
    tmp_path: Path, sound, fault: Fault
) -> None:
    async def script(sim: Simulation) -> None:
        end = sim.world.faults.begin(within(CLOUD, "west"), fault)
        sim.boot()
        await sim.clock.sleep(UNSEEN_FOR - 5.0)
        assert sim.live() == []
        await sim.settle(within=120.0)
        assert {m.placement.region for m in sim.live()} == {"east"}
        end()
        await sim.settle()
        assert sim.world.launches == 4

    sound(simulation(tmp_path).run(script))


def test_a_lost_journal_launches_again_only_what_serves_nobody(tmp_path: Path, sound) -> None:
    """The whole pool is in a region that is gone with its network, and nobody remembers it."""

    async def script(sim: Simulation) -> None:
        dark = sim.world.faults.begin(within(("launch",), "east"), Fault.REFUSED)
        sim.boot()
        await sim.settle()
        dark()
        assert {m.placement.region for m in sim.live()} == {"west"}
        sim.checker.faults_on = True
        end = sim.world.faults.begin(within(CLOUD, "west"), Fault.SLOW)
        assert sim.running is not None
        sim.kill(sim.running)
        sim.lose_journal()
        sim.boot()
        await sim.clock.sleep(2 * UNSEEN_FOR)
        assert sim.world.launches == 4  # its nodes serve
        held = [m.id for m in west(sim)]
        for node in held:
            sim.world.silence(node)
        await sim.clock.sleep(120.0)
        able = [m for m in sim.live() if m.able(sim.clock.now())]
        assert [m.placement.region for m in able] == ["east"] * 4
        for node in held:
            sim.world.revive(node)
        end()
        await sim.clock.sleep(60.0)
        sim.checker.faults_on = False
        await sim.settle()
        assert sim.world.launches == 8

    sound(simulation(tmp_path).run(script))


@pytest.mark.parametrize("fault", [Fault.FAILED, Fault.SLOW, Fault.THROTTLED])
def test_a_region_that_lists_and_answers_no_launch_holds_back_none_elsewhere(
    tmp_path: Path, sound, fault: Fault
) -> None:
    """Every launch there hangs, fails or is throttled, while its machines are listed as ever."""

    async def script(sim: Simulation) -> None:
        end = sim.world.faults.begin(within(("launch",), "west"), fault)
        sim.boot()
        await sim.clock.sleep(2 * sim.pool.patience.effect_timeout + 60.0)
        able = [m for m in sim.live() if m.able(sim.clock.now())]
        assert [m.placement.region for m in able] == ["east"] * 4
        end()
        await sim.settle()

    sound(simulation(tmp_path).run(script))


@pytest.mark.parametrize("after", [0.3, 0.4, 0.5, 0.6, 1.0, 5.0])
def test_a_restart_launches_nothing_twice_whichever_region_lists_first(
    tmp_path: Path, sound, after: float
) -> None:
    async def script(sim: Simulation) -> None:
        sim.boot()
        await sim.clock.sleep(after)
        assert sim.running is not None
        sim.kill(sim.running)
        sim.boot()
        await sim.settle()
        assert sim.world.launches == 4

    sound(simulation(tmp_path).run(script))
