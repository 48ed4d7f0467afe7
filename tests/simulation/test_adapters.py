"""Adapters on simulated pools: what befalls nodes, and that the checker sees what no daemon may do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud.sim.balancer import Traffic
from cloud.sim.world import Sale
from orchestrator.config.load import build_config
from orchestrator.simulation.simulate import Outcome, Simulation
from policies import adapter_set
from policies.model import Market, Placement


def simulation(folder: Path, slots: int, seed: int) -> Simulation:
    pool: dict[str, Any] = {
        "replicas": 3,
        "adapters": {f"a{number}": f"/lora/a{number}" for number in range(6)},
        "adapter_slots": slots,
    }
    daemon = {"state_dir": "state", "listen": "off"}
    config = build_config({"daemon": daemon, "pool": {"p": pool}}, base=folder)
    sales = [
        Sale(placement=Placement("sim", "r", zone, "gpu", market), price=price)
        for zone in "ab"
        for market, price in ((Market.SPOT, 1.0), (Market.ON_DEMAND, 3.0))
    ]
    return Simulation(config, sales=sales, seed=seed, traffic=Traffic(per_second=4.0, adapters=1.0))


async def rough(sim: Simulation) -> None:
    """Engines forget, nodes are taken, the daemon dies: each once a minute."""
    sim.furnish()
    sim.boot()
    await sim.clock.sleep(60.0)
    for minute in range(6):
        running = sim.live(Market.SPOT) + sim.live(Market.ON_DEMAND)
        sim.world.forget_adapters(running[minute % len(running)].id)
        await sim.clock.sleep(30.0)
        if minute % 3 == 1 and sim.live(Market.SPOT):
            sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
        if minute % 3 == 2 and sim.running is not None:
            sim.kill(sim.running)
            sim.restart_later()
        await sim.clock.sleep(30.0)
    await sim.clock.sleep(120.0)


def played(folder: Path, slots: int, seed: int) -> tuple[Simulation, Outcome]:
    sim = simulation(folder, slots, seed)
    return sim, sim.run(rough)


@pytest.mark.parametrize(("slots", "seed"), [(6, 1), (3, 2)])
def test_adapters_are_held_through_all_that_happens(tmp_path: Path, slots: int, seed: int) -> None:
    sim, outcome = played(tmp_path, slots, seed)
    assert not outcome.broken
    traffic = sim.table.adapters
    assert traffic is not None
    assert traffic.asked > 500
    if slots == 6:
        assert all(len(spec.adapters) == 6 for spec in sim.table.active())
    assert {held.name for spec in sim.table.active() for held in spec.adapters} == set(traffic.names)


def test_a_daemon_that_unloads_what_is_routed_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_set.AdapterSet, "_lets_go", lambda *_: True)
    monkeypatch.setattr("policies.invariants._adapters", lambda *_: [])
    _, outcome = played(tmp_path, 3, 2)
    assert "adapter-unrouted" in {broken.name for broken in outcome.broken}


def test_a_daemon_that_routes_before_it_loads_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_set, "lost", lambda *_: iter(()))
    _, outcome = played(tmp_path, 6, 1)
    assert "adapter-held" in {broken.name for broken in outcome.broken}
