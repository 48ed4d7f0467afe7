"""A pair of control hosts on virtual time: at most one daemon holds the lease, and the pool never suffers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from outages import holders, passes
from scenarios import PACE, config, database_away, sales

from cloud.sim.balancer import Traffic
from cloud.sim.faults import Fault
from orchestrator.simulation.simulate import Simulation
from policies.model import Market


def simulation(folder: Path, seed: int = 1) -> Simulation:
    return Simulation(config(folder), sales=sales(), seed=seed, pace=PACE, traffic=Traffic(per_second=2.0))


def test_a_frozen_leader_wakes_up_and_does_nothing(tmp_path: Path, sound) -> None:
    async def script(sim: Simulation) -> None:
        sim.furnish()
        first, second = sim.boot(host="a"), sim.boot(host="b")
        await sim.settle()
        assert holders(sim) == [first]
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=0.5, notice=60.0)
        await passes(sim, 0.75)
        sim.freeze(first)
        await passes(sim, 15.0)
        assert holders(sim) == [second]
        sim.thaw(first)
        await passes(sim, 10.0)
        assert "took over" in first.ended
        await sim.settle()
        assert holders(sim) == [second]

    outcome = sound(simulation(tmp_path).run(script))
    assert outcome.checked["one-writer"] > 0


def test_a_killed_leader_is_back_before_the_standby_moves(tmp_path: Path, sound) -> None:
    """Its seat tells that it is dead; nobody waits for its lease to run out."""

    async def script(sim: Simulation) -> None:
        sim.furnish()
        first, second = sim.boot(host="a"), sim.boot(host="b")
        await sim.settle()
        sim.kill(first)
        again = sim.boot(host="a")
        await passes(sim, 1.0)
        assert holders(sim) == [again]
        await passes(sim, 30.0)
        assert holders(sim) == [again]
        await sim.stop(again)
        await passes(sim, 2.0)
        assert holders(sim) == [second]
        await sim.settle()

    sound(simulation(tmp_path).run(script))


def test_the_standby_takes_over_with_the_last_good_prices(tmp_path: Path, sound) -> None:
    """It has never read any itself, and knows what its spend cap has left."""

    async def script(sim: Simulation) -> None:
        sim.furnish()
        first, second = sim.boot(host="a"), sim.boot(host="b")
        await sim.settle()
        sim.world.faults.begin(("offerings",), Fault.DENIED)
        sim.freeze(first)
        await passes(sim, 15.0)
        assert holders(sim) == [second]
        for market in Market:
            sim.world.terminate(sim.live(market)[0].id)
        await sim.settle(within=120.0)
        loop = second.loop(sim.pool.name)
        assert loop is not None
        known = loop.memory.prices
        assert {placement: last.price for placement, last in known.items()} == sim.world.prices

    capped = config(tmp_path, limits={"spend_per_hour": 20.0})
    sound(Simulation(capped, sales=sales(), seed=1, pace=PACE, traffic=Traffic(per_second=2.0)).run(script))


@pytest.mark.parametrize("seed", range(1, 4))
def test_without_a_database_noticed_nodes_leave_and_nothing_else_is_done(
    tmp_path: Path, seed: int, sound
) -> None:
    folder = config(tmp_path, replicas=8)
    sim = Simulation(folder, sales=sales(), seed=seed, pace=PACE, traffic=Traffic(per_second=2.0))
    outcome = sound(sim.run(database_away))
    assert outcome.checked["failsafe"] > 100


def test_a_frozen_daemon_that_wakes_up_without_its_database_looks_anew(tmp_path: Path, sound) -> None:
    """What it saw before is old: it takes out the noticed node only once it has asked in vain for a while."""

    async def script(sim: Simulation) -> None:
        sim.furnish()
        first, _ = sim.boot(host="a"), sim.boot(host="b")
        await sim.settle()
        sim.database.lose()
        await passes(sim, 2.0)
        sim.freeze(first)
        noticed = sim.live(Market.SPOT)[0].id
        sim.board.reclaim(noticed, after=50.0, notice=49.0)
        await passes(sim, 20.0)
        written = sim.table.accepted
        sim.thaw(first)
        await passes(sim, 4.0)
        assert sim.table.accepted == written
        await passes(sim, 8.0)
        assert noticed not in {s.id for s in sim.table.active()}
        sim.database.regain()
        await sim.settle()

    sound(simulation(tmp_path).run(script))


def test_a_daemon_whose_host_alone_is_cut_off_is_fenced_by_the_balancer(tmp_path: Path, sound) -> None:
    """It hears of a notice like the new leader does, and its sets are refused."""

    async def script(sim: Simulation) -> None:
        sim.furnish()
        first, second = sim.boot(host="a"), sim.boot(host="b")
        await sim.settle()
        sim.database.lose("a")
        await passes(sim, 20.0)
        assert holders(sim) == [second]
        assert first.failsafe
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0, sources=sim.sources)
        await passes(sim, 90.0)
        assert sim.table.generation >> 20 == second.stores[-1].epoch
        assert not first.ended
        sim.database.regain()
        await passes(sim, 5.0)
        assert "took over" in first.ended
        await sim.settle()

    sound(simulation(tmp_path).run(script))


@pytest.mark.parametrize("seed", range(1, 5))
def test_whatever_happens_to_two_hosts(tmp_path: Path, seed: int, sound) -> None:
    """Kills, freezes and stops of either host and reclaims, for half an hour."""

    async def script(sim: Simulation) -> None:
        rng = random.Random(seed)
        sim.furnish()
        hosts = {name: sim.boot(host=name) for name in "ab"}
        await sim.settle()
        led = set()
        for _ in range(30):
            name = rng.choice("ab")
            victim = hosts[name]
            spot = sim.live(Market.SPOT)
            if spot and rng.random() < 0.5:
                sim.board.reclaim(rng.choice(spot).id, after=rng.uniform(0, 5), notice=60.0)
                await passes(sim, rng.uniform(0, 6))
            match rng.choice(("kill", "freeze", "stop")) if not victim.ended else "none":
                case "kill":
                    sim.kill(victim)
                case "stop":
                    await sim.stop(victim)
                case "freeze":
                    sim.freeze(victim)
                    await passes(sim, rng.choice((2.0, 9.0, 30.0)))
                    sim.thaw(victim)
            await passes(sim, rng.uniform(0, 15))
            led |= {process.name for process in holders(sim)}
            for each, process in hosts.items():
                if process.ended:
                    hosts[each] = sim.boot(host=each)
            await passes(sim, rng.uniform(1, 40))
        await passes(sim, 20.0)
        assert len(holders(sim)) == 1
        assert len(led) > 3, "the lease changed hands"
        await sim.settle()

    sound(simulation(tmp_path, seed).run(script))
