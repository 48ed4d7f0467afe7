"""What goes wrong around the daemon, one fault at a time, and what it does about it."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
from scenarios import config, sales

from cloud.sim.balancer import Traffic
from cloud.sim.faults import Fault
from cloud.sim.invariants import Bounds
from orchestrator.simulation.simulate import Simulation
from policies.model import Market, NoticeKind


def simulation(folder: Path, **settings: object) -> Simulation:
    return Simulation(config(folder), sales=sales(), seed=1, traffic=Traffic(per_second=2.0), **settings)  # type: ignore[arg-type]


async def ready(sim: Simulation) -> None:
    """A whole pool under a daemon."""
    sim.furnish()
    sim.boot()
    await sim.settle()


def test_a_balancer_that_hangs_holds_up_no_later_detachment(tmp_path: Path, sound) -> None:
    """A write that gets no answer is given up after the call's time, and the newest set is written."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        sim.world.faults.slow_for = 3600.0
        sim.world.faults.arm("apply", Fault.SLOW)
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=120.0, notice=120.0)
        await sim.settle()

    detach = config(tmp_path).daemon.call_timeout + 5.0
    sound(simulation(tmp_path, bounds=Bounds(detach=detach)).run(script))


def test_a_set_that_is_being_written_is_not_written_twice(tmp_path: Path, sound) -> None:
    async def script(sim: Simulation) -> None:
        await ready(sim)
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=120.0, notice=120.0)
        await sim.settle()

    outcome = sound(simulation(tmp_path).run(script))
    writes = [e.detail for e in outcome.effects if e.kind == "apply"]
    assert [a for a, b in itertools.pairwise(writes) if a == b] == []


def test_a_set_that_is_wanted_no_more_is_not_written(tmp_path: Path, sound) -> None:
    """A write that fails again and again is tried with what is wanted now, not with what was wanted then."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        sim.world.faults.arm("apply", Fault.DENIED, times=6)
        node, deadline = sim.live(Market.ON_DEMAND)[0].id, sim.clock.now() + 300.0
        publish = partial(sim.board.publish, node, kind=NoticeKind.MAINTENANCE, deadline=deadline, name="m")
        publish()
        await sim.clock.sleep(3.5)
        publish(cancelled=True)
        await sim.settle()

    outcome = sound(simulation(tmp_path).run(script))
    assert "drain" in " ".join(e.detail for e in outcome.effects if e.kind == "journal").lower()
    assert [e for e in outcome.effects if e.kind == "apply" and "draining" in e.detail] == []


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("fault", [Fault.DENIED, Fault.SLOW, Fault.THROTTLED])
def test_prices_that_cannot_be_read_hold_back_no_launch(
    tmp_path: Path, sound, fault: Fault, restart: bool
) -> None:
    """Half of the nodes are lost meanwhile, and replaced."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        sim.world.faults.slow_for = 3600.0
        sim.world.faults.begin(("offerings",), fault)
        if restart:
            await restarted(sim)
        for market in Market:
            sim.world.terminate(sim.live(market)[0].id)
        await sim.settle(within=300.0)

    assert sound(simulation(tmp_path).run(script)).checked["prices"]


def test_prices_that_went_away_in_a_drought_hold_back_no_launch_after_it(tmp_path: Path, sound) -> None:
    """The last reading said that nothing is left; what is there since then nobody can read."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        for placement in sim.world.prices:
            sim.world.set_capacity(placement, 0)
        await sim.clock.sleep(130.0)
        sim.world.faults.begin(("offerings",), Fault.DENIED)
        await sim.clock.sleep(130.0)
        for placement in sim.world.prices:
            sim.world.set_capacity(placement, 10)
        for market in Market:
            sim.world.terminate(sim.live(market)[0].id)
        await sim.settle(within=300.0)

    sound(simulation(tmp_path).run(script))


def test_what_fails_is_in_the_journal_with_its_return(tmp_path: Path, sound) -> None:
    """Prices that are back are noted; what was away is one line for each part, however long it lasted."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        end = sim.world.faults.begin(("offerings",), Fault.DENIED)
        await sim.clock.sleep(3600.0)
        sim.world.prices = dict.fromkeys(sim.world.prices, 1.5)
        end()
        await sim.clock.sleep(120.0)
        assert sim.running is not None
        stored = await sim.running.stores[-1].events(limit=200)
        kinds = [e.kind for e in stored if e.kind in ("PricesRead", "PartLost", "PartBack")]
        assert sorted(kinds) == ["PartBack"] * 2 + ["PartLost"] * 2 + ["PricesRead"] * 4
        loop = sim.running.loop(sim.pool.name)
        assert loop is not None
        assert {last.price for last in loop.memory.prices.values()} == {1.5}

    sound(simulation(tmp_path).run(script))


def test_a_full_disk_keeps_no_price_from_being_used_and_none_from_being_noted_later(
    tmp_path: Path, sound
) -> None:
    async def script(sim: Simulation) -> None:
        await ready(sim)
        assert sim.running is not None
        store = sim.running.stores[-1]
        await store._writer.run(lambda db: db.execute("PRAGMA max_page_count=1").fetchall())
        sim.world.prices = dict.fromkeys(sim.world.prices, 1.5)
        await sim.clock.sleep(180.0)
        await store._writer.run(lambda db: db.execute("PRAGMA max_page_count=1000000").fetchall())
        await sim.clock.sleep(30.0)
        stored = await store.load(sim.pool.name)
        assert {last.price for last in stored.prices.values()} == {1.5}

    sound(simulation(tmp_path).run(script))


def test_a_pool_starts_where_no_price_was_ever_read(tmp_path: Path, sound) -> None:
    async def script(sim: Simulation) -> None:
        sim.world.faults.begin(("offerings",), Fault.DENIED)
        sim.boot()
        await sim.settle(within=300.0)

    sound(simulation(tmp_path).run(script))


async def restarted(sim: Simulation) -> None:
    """Killed, and another daemon on the same journal."""
    assert sim.running is not None
    sim.kill(sim.running)
    sim.boot()
    await sim.clock.sleep(1.0)
