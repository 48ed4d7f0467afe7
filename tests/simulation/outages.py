"""Outages: seeds in which one part alone is away now and then, and what is promised for that is judged.

While the swarm's faults are on, "how soon" does not count: what is missing may be missing for any of them.
Here a seed draws what is away (a region, prices, or the database of a pair), for how long, and what happens
meanwhile: nodes are noticed and lost, daemons are killed and frozen. Nothing else fails: "how soon" counts.
"""

from __future__ import annotations

import random
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from scenarios import LOOK, PACE, TWO_REGIONS, bounds, config, sales
from swarm import Bug

from cloud.sim.balancer import Traffic
from cloud.sim.faults import CLOUD, Fault, within
from cloud.sim.notices import METADATA, QUEUE
from cloud.sim.world import Machine
from orchestrator.simulation.recorded_store import RecordedStore, SimProcess
from orchestrator.simulation.simulate import Outcome, Simulation
from policies.model import Market

_FREEZES = (2.0, 4.0, 6.0, 9.0, 30.0)
"""Seconds for which a daemon hangs: shorter and longer than a lease, and than tries in vain may be apart."""

Script = Callable[[Simulation, random.Random, float], Awaitable[None]]


async def without_a_region(sim: Simulation, rng: random.Random, until: float) -> None:
    """A region answers nothing, and nodes in the other one go away."""
    await _one_daemon(sim)
    while sim.clock.now() < until:
        region = rng.choice(sim.world.regions)
        faults = (Fault.FAILED, Fault.SLOW, Fault.DENIED, Fault.THROTTLED)
        end = sim.world.faults.begin(within(CLOUD, region), rng.choice(faults))
        sim.world.trace.add("fault", "without_a_region", region)
        others = [m for m in sim.live() if m.placement.region != region]
        await _goes_on(sim, rng, others)
        end()
        await _rest(sim, rng)


async def without_prices(sim: Simulation, rng: random.Random, until: float) -> None:
    """Prices cannot be read, and nodes go away."""
    await _one_daemon(sim)
    while sim.clock.now() < until:
        end = sim.world.faults.begin(("offerings",), rng.choice((Fault.DENIED, Fault.FAILED, Fault.SLOW)))
        sim.world.trace.add("fault", "without_prices")
        await _goes_on(sim, rng, sim.live())
        end()
        await _rest(sim, rng)


async def without_a_database(sim: Simulation, rng: random.Random, until: float) -> None:
    """The database of a pair answers one host, the other, or none, for longer than a lease or shorter."""
    sim.furnish()
    hosts = {name: sim.boot(host=name) for name in "ab"}
    await sim.settle()
    while sim.clock.now() < until:
        sim.database.lose(*rng.choice(("a", "b", "ab", "ab")))
        sim.world.trace.add("fault", "without_a_database")
        if rng.random() < 0.7:
            _notice(sim, rng)
        await passes(sim, rng.uniform(0, 40))
        await _strike(sim, rng, hosts[rng.choice("ab")])
        await passes(sim, rng.uniform(0, 20))
        sim.database.regain()
        await passes(sim, rng.uniform(0, 10))
        for name, process in hosts.items():
            if process.ended:
                hosts[name] = sim.boot(host=name)
        await passes(sim, rng.uniform(1, 40))
    await passes(sim, 20.0)
    assert len(holders(sim)) == 1


@dataclass(frozen=True, slots=True)
class Outage:
    """What is away in a seed, and the invariant that says what must happen all the same."""

    script: Script
    invariant: str


OUTAGES = (
    Outage(without_a_region, "regions"),
    Outage(without_prices, "prices"),
    Outage(without_a_database, "failsafe"),
)


def outage_of(seed: int) -> Outage:
    """What a seed draws."""
    return random.Random(f"outage/{seed}").choice(OUTAGES)


def play(
    seed: int,
    *,
    hours: float,
    look: float = LOOK,
    kept: int = 400,
    planted: Bug | None = None,
) -> Outcome:
    """One run of a seed; `kept` lines of its trace stay. `planted`: see `swarm.play_swarm`."""
    rng, script = random.Random(f"strikes/{seed}"), outage_of(seed).script
    standby: dict[str, int] = rng.choice(({}, {}, {"hot": 1}, {"stopped": 1}))

    pool = {"replicas": rng.choice((1, 2, 4, 4, 8)), "standby": standby}

    async def whole(sim: Simulation) -> None:
        await script(sim, rng, sim.clock.now() + hours * 3600.0)
        await sim.settle()

    with tempfile.TemporaryDirectory() as folder:
        sim = Simulation(
            config(Path(folder), look=look, **pool),
            sales=sales(regions=TWO_REGIONS if script is without_a_region else None),
            seed=seed,
            pace=PACE,
            traffic=Traffic(per_second=2.0),
            bounds=bounds(look),
            sources=random.Random(f"sources/{seed}").choice(((QUEUE, METADATA), (QUEUE,))),
            wrap=None if planted is None else lambda ports: planted.wrap(sim, ports),
            store=RecordedStore if planted is None else planted.store,
        )
        if planted is not None:
            planted.into(sim, pool)
            sim.stop_once_broken()
        sim.world.trace.tail = deque(maxlen=kept)
        return sim.run(whole)


def holders(sim: Simulation) -> list[SimProcess]:
    """Daemons of a pair that would act now, frozen ones among them: they could wake up at any moment."""
    return [p for p in sim.processes if not p.ended and any(lease.valid() for lease in p.leases[1:])]


async def passes(sim: Simulation, seconds: float) -> None:
    """Time goes by in small steps; at none of them two daemons hold the lease."""
    until = sim.clock.now() + seconds
    while sim.clock.now() < until:
        await sim.clock.sleep(0.25)
        assert len(holders(sim)) <= 1


async def _one_daemon(sim: Simulation) -> None:
    sim.furnish()
    sim.boot(supervised=True)
    await sim.settle()


def _notice(sim: Simulation, rng: random.Random) -> None:
    """A few spot nodes, or all, are taken away with a notice."""
    spot = [m for m in sim.live(Market.SPOT) if m.reclaim_at is None]
    for machine in rng.sample(spot, min(len(spot), rng.choice((1, 1, 1, 2, 8)))):
        after = rng.uniform(20, 70)
        sim.board.reclaim(machine.id, after=after, notice=rng.uniform(15, 60), sources=sim.sources)


async def _strike(sim: Simulation, rng: random.Random, victim: SimProcess) -> None:
    """Maybe a daemon is killed, or hangs for a while."""
    deed = rng.choice(("kill", "freeze", "none", "none"))
    if victim.ended or deed == "none":
        return
    if deed == "kill":
        sim.kill(victim)
        return
    sim.freeze(victim)
    await passes(sim, rng.choice(_FREEZES))
    sim.thaw(victim)


async def _goes_on(sim: Simulation, rng: random.Random, nodes: list[Machine]) -> None:
    """Some time later some of these nodes are taken away; the daemon may be killed meanwhile."""
    await sim.clock.sleep(rng.uniform(0, 90))
    for machine in rng.sample(nodes, min(len(nodes), rng.choice((0, 1, 1, 2)))):
        if machine.live and machine.reclaim_at is None and machine.placement.market is Market.SPOT:
            told = rng.choice((None, 30.0, 60.0))
            sim.board.reclaim(machine.id, after=told or 1.0, notice=told, sources=sim.sources)
    await sim.clock.sleep(rng.uniform(0, 30))
    if rng.random() < 0.3 and sim.running is not None:
        sim.kill(sim.running)
        sim.boot(supervised=True)
    await sim.clock.sleep(rng.uniform(0, 300))


async def _rest(sim: Simulation, rng: random.Random) -> None:
    await sim.clock.sleep(rng.uniform(0, 120))
