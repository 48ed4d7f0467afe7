"""The kinds of faults that a swarm knows, each a coroutine that strikes once and fixes what it broke.

A kind draws from a generator of its own, so that adding a kind changes no other's draws. What a strike begins
it also ends, however short the rest of the run is: after the last strike the world is whole again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from scenarios import PRICES, ZONES, place_in
from swarm_host import HOST

from cloud.errors import InsufficientCapacity
from cloud.ports import EngineCommand, LaunchRequest
from cloud.sim.faults import BALANCER, CLOUD, MUTATIONS, Fault, buying, within
from cloud.sim.notices import METADATA, QUEUE
from cloud.sim.world import Machine
from orchestrator.simulation.simulate import Simulation
from policies.events import OperatorDrained, OperatorUndrained, Paused
from policies.model import Ending, Market, NoticeKind, TargetPhase, TargetSpec

Strike = Callable[[Simulation, random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault: `share` of all seeds know it, and there it strikes about every `pause` seconds."""

    strike: Strike
    share: float = 0.3
    pause: float = 300.0

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.strike.__name__


# -- machines --------------------------------------------------------------------------------------


def spot(sim: Simulation) -> list[Machine]:
    """Spot machines that are not being taken away."""
    return [m for m in sim.live(Market.SPOT) if m.reclaim_at is None]


def some(rng: random.Random, machines: list[Machine], most: int = 1) -> list[Machine]:
    """A few machines, or none where there are none."""
    return rng.sample(machines, k=min(most, len(machines)))


async def notice(sim: Simulation, rng: random.Random) -> None:
    for machine in some(rng, spot(sim)):
        sources = rng.choice(((QUEUE,), (METADATA,), (QUEUE, METADATA)))
        sim.board.reclaim(machine.id, after=120.0, notice=120.0, sources=sources, copies=rng.choice((1, 3)))


async def loss(sim: Simulation, rng: random.Random) -> None:
    for machine in some(rng, spot(sim), rng.choice((1, 1, 3))):
        sim.board.reclaim(machine.id, after=1.0, notice=None)


async def late_notice(sim: Simulation, rng: random.Random) -> None:
    for machine in some(rng, spot(sim)):
        sim.board.reclaim(machine.id, after=60.0, notice=rng.choice((0.0, 5.0, 10.0, 30.0)))


async def zone_reclaimed(sim: Simulation, rng: random.Random) -> None:
    zone, told = rng.choice(ZONES), rng.choice((None, 30.0, 120.0))
    for machine in spot(sim):
        if machine.placement.zone == zone:
            sim.board.reclaim(machine.id, after=120.0, notice=told)
    _dry(sim, rng, Market.SPOT, zone)


async def all_spot_reclaimed(sim: Simulation, rng: random.Random) -> None:
    for machine in spot(sim):
        sim.board.reclaim(machine.id, after=120.0, notice=rng.choice((30.0, 120.0)))
    for zone in ZONES:
        _dry(sim, rng, Market.SPOT, zone)


async def drought(sim: Simulation, rng: random.Random) -> None:
    _dry(sim, rng, rng.choice(list(Market)), rng.choice(ZONES))


async def drought_everywhere(sim: Simulation, rng: random.Random) -> None:
    for market in Market:
        for zone in ZONES:
            _dry(sim, rng, market, zone)


def _dry(sim: Simulation, rng: random.Random, market: Market, zone: str) -> None:
    where = place_in(sim, market, zone)
    sim.world.set_capacity(where, 0)
    sim.world.later(rng.uniform(30, 600), lambda: sim.world.set_capacity(where, 10))


async def price_walk(sim: Simulation, rng: random.Random) -> None:
    for placement in sim.world.prices:
        sim.world.prices[placement] = PRICES[placement.market] * rng.uniform(0.5, 2.0)


async def silence(sim: Simulation, rng: random.Random) -> None:
    for machine in some(rng, sim.live()):
        sim.world.silence(machine.id)


async def flapping(sim: Simulation, rng: random.Random) -> None:
    """An engine that falls silent and comes back, again and again."""
    for machine in some(rng, sim.live()):
        for _ in range(rng.randint(2, 6)):
            if machine.live and machine.silent_since is None:
                sim.world.silence(machine.id)
                await sim.clock.sleep(rng.uniform(1, 15))
                sim.world.revive(machine.id)
            await sim.clock.sleep(rng.uniform(1, 30))


async def unreachable(sim: Simulation, rng: random.Random) -> None:
    """The daemon cannot reach some nodes, or none; the balancer can."""
    nodes = {m.id for m in some(rng, sim.live(), rng.choice((1, 3, 100)))}
    sim.world.faults.unreachable |= nodes
    await sim.clock.sleep(rng.uniform(5, 240))
    sim.world.faults.unreachable -= nodes


async def lost_probes(sim: Simulation, rng: random.Random) -> None:
    sim.world.faults.lost_probes = rng.choice((0.1, 0.3))
    await sim.clock.sleep(rng.uniform(30, 300))
    sim.world.faults.lost_probes = 0.0


# -- notices ---------------------------------------------------------------------------------------


async def forged(sim: Simulation, rng: random.Random) -> None:
    """Nodes that say they go away, and do not."""
    for machine in sim.live()[: rng.randint(1, 4)]:
        deadline = sim.clock.now() + rng.choice((0.0, 20.0, 120.0))
        kind = rng.choice((NoticeKind.INTERRUPTION, NoticeKind.MAINTENANCE))
        name = f"forged {rng.random()}"
        sim.board.publish(machine.id, kind=kind, deadline=deadline, sources=(METADATA,), name=name)


async def unknown_node(sim: Simulation, rng: random.Random) -> None:
    for number in range(rng.choice((1, 1, 1, 1, 1, 300))):
        deadline, source = sim.clock.now() + 100.0, rng.choice((QUEUE, METADATA))
        sim.board.publish(f"i-9{number:03d}", deadline=deadline, sources=(source,))


async def on_demand_interrupted(sim: Simulation, rng: random.Random) -> None:
    """The cloud itself says spot interruption of a node that is no spot node."""
    for machine in some(rng, sim.live(Market.ON_DEMAND)):
        sim.board.publish(machine.id, deadline=sim.clock.now() + 120.0, name=f"wrong {rng.random()}")


async def odd_deadline(sim: Simulation, rng: random.Random) -> None:
    """A notice of a node whose deadline is long over, far away, or no number."""
    for machine in some(rng, sim.live(Market.ON_DEMAND)):
        deadline = rng.choice((math.nan, math.inf, -math.inf, 0.0, sim.clock.now() - 1e6, None))
        sim.board.publish(machine.id, deadline=deadline, sources=(METADATA,), name=f"odd {rng.random()}")


async def cancelled(sim: Simulation, rng: random.Random) -> None:
    for machine in some(rng, sim.live()):
        deadline = sim.clock.now() + rng.choice((30.0, 300.0))
        kind, name = NoticeKind.MAINTENANCE, f"maintenance {rng.random()}"
        publish = partial(sim.board.publish, machine.id, kind=kind, deadline=deadline, name=name)
        publish()
        sim.world.later(rng.uniform(0, 40), partial(publish, cancelled=True))


async def rebalance(sim: Simulation, rng: random.Random) -> None:
    for machine in spot(sim):
        sim.board.publish(machine.id, kind=NoticeKind.REBALANCE, sources=(QUEUE, METADATA))


async def deaf(sim: Simulation, rng: random.Random) -> None:
    """No source of notices can be read."""
    end = sim.world.faults.begin(("stream", "acknowledge"), rng.choice((Fault.DENIED, Fault.FAILED)))
    await sim.clock.sleep(rng.uniform(20, 200))
    end()


# -- the provider's interface ----------------------------------------------------------------------


async def stale_lists(sim: Simulation, rng: random.Random) -> None:
    """All replicas of the list stand still, or some do, so that lists go back and forth in time."""
    sim.world.faults.stale_share = rng.choice((1.0, 0.5))
    sim.world.faults.stale_lists = True
    await sim.clock.sleep(rng.uniform(5, 90))
    sim.world.faults.stale_lists = False


async def lost_pages(sim: Simulation, rng: random.Random) -> None:
    """Lists lack a page and do not say so."""
    sim.world.faults.lost_pages = rng.choice((0.05, 0.3))
    await sim.clock.sleep(rng.uniform(30, 300))
    sim.world.faults.lost_pages = 0.0


async def hidden_node(sim: Simulation, rng: random.Random) -> None:
    """No list shows some nodes for a while."""
    nodes = {m.id for m in some(rng, sim.live(), rng.choice((1, 1, 3)))}
    sim.world.faults.hidden |= nodes
    await sim.clock.sleep(rng.choice((3.0, 8.0, 60.0)))
    sim.world.faults.hidden -= nodes


async def denied(sim: Simulation, rng: random.Random) -> None:
    call = rng.choice(("any", *CLOUD, *BALANCER))
    sim.world.faults.arm(call, Fault.DENIED, times=rng.randint(1, 30))
    await sim.clock.sleep(120.0)
    sim.world.faults.disarm(call)


async def _outage(sim: Simulation, rng: random.Random, calls: tuple[str, ...], fault: Fault) -> None:
    end = sim.world.faults.begin(calls, fault)
    await sim.clock.sleep(rng.uniform(20, 200))
    end()


async def credentials_expired(sim: Simulation, rng: random.Random) -> None:
    await _outage(sim, rng, rng.choice((MUTATIONS, CLOUD, (*CLOUD, *BALANCER, "stream"))), Fault.DENIED)


async def throttled(sim: Simulation, rng: random.Random) -> None:
    await _outage(sim, rng, rng.choice((CLOUD, ("launch", "list"))), Fault.THROTTLED)


async def provider_down(sim: Simulation, rng: random.Random) -> None:
    await _outage(sim, rng, CLOUD, rng.choice((Fault.FAILED, Fault.LOST, Fault.SLOW)))


async def region_down(sim: Simulation, rng: random.Random) -> None:
    """One of several regions answers nothing, or is gone with its network."""
    if len(sim.world.regions) == 1:
        return
    region = rng.choice(sim.world.regions)
    calls = rng.choice((CLOUD, CLOUD, ("list",), ("launch", "terminate")))
    dark = {m.id for m in sim.live() if m.placement.region == region} if rng.random() < 0.3 else set()
    end = sim.world.faults.begin(within(calls, region), rng.choice((Fault.FAILED, Fault.LOST, Fault.SLOW)))
    sim.world.faults.unreachable |= dark
    await sim.clock.sleep(rng.uniform(20, 600))
    end()
    sim.world.faults.unreachable -= dark


async def _refusing_launches(sim: Simulation, rng: random.Random, fault: Fault, most: float) -> None:
    """Launches on one market, or on both, meet a fault for a while, and all other calls work."""
    markets = rng.choice(((Market.SPOT,), (Market.SPOT,), (Market.ON_DEMAND,), tuple(Market)))
    end = sim.world.faults.begin(map(buying, markets), fault)
    await sim.clock.sleep(rng.uniform(20, most))
    end()


async def not_allowed(sim: Simulation, rng: random.Random) -> None:
    """A role is missing, or an image is gone."""
    await _refusing_launches(sim, rng, rng.choice((Fault.DENIED, Fault.MISCONFIGURED)), 1500.0)


async def launches_throttled(sim: Simulation, rng: random.Random) -> None:
    await _refusing_launches(sim, rng, Fault.THROTTLED, 600.0)


async def stillborn(sim: Simulation, rng: random.Random) -> None:
    """What is launched is accepted, and ends before it runs."""
    markets = rng.choice(((Market.SPOT,), (Market.ON_DEMAND,), tuple(Market)))
    ending = rng.choice((Ending.FAULT, Ending.FAULT, Ending.CAPACITY))
    sim.world.stillborn |= dict.fromkeys(markets, ending)
    await sim.clock.sleep(rng.uniform(20, 900))
    for market in markets:
        sim.world.stillborn.pop(market, None)


async def quota(sim: Simulation, rng: random.Random) -> None:
    await _outage(sim, rng, ("launch",), Fault.QUOTA)


async def refused(sim: Simulation, rng: random.Random) -> None:
    """Launches and starts are refused though offerings look good."""
    await _outage(sim, rng, ("launch", "start"), Fault.REFUSED)


async def prices_away(sim: Simulation, rng: random.Random) -> None:
    """Prices cannot be read for minutes, or hang, while all else works."""
    end = sim.world.faults.begin(("offerings",), rng.choice((Fault.DENIED, Fault.FAILED, Fault.SLOW)))
    await sim.clock.sleep(rng.uniform(60, 1200))
    end()


async def foreign_machine(sim: Simulation, rng: random.Random) -> None:
    """Somebody else's machine that carries our tag, with a token that we never made."""
    request = LaunchRequest(
        token=rng.choice(("", "web-7", "another/1/1", f"{sim.pool.name}/blue")),
        pool=sim.pool.name,
        placement=place_in(sim, rng.choice(list(Market)), rng.choice(ZONES)),
        command=EngineCommand(argv=("sim",)),
    )
    with suppress(InsufficientCapacity):
        sim.world.add(request, foreign=True)


# -- balancers -------------------------------------------------------------------------------------


async def balancer_restart(sim: Simulation, rng: random.Random) -> None:
    sim.table.restart()


async def hand_edit(sim: Simulation, rng: random.Random) -> None:
    """Somebody edits the target set: takes one out, puts a strange or an ended one in, turns one round."""
    targets = sim.table.targets
    edit = rng.choice(("out", "strange", "ended", "turn", "generation"))
    if edit == "out" and targets:
        targets.pop(rng.choice(sorted(targets)))
    elif edit == "strange":
        targets["x-1"] = TargetSpec(id="x-1", address="10.9.9.9:1")
    elif edit == "ended":
        for machine in [m for m in sim.world.of(sim.pool.name) if not m.live][-1:]:
            targets[machine.id] = TargetSpec(id=machine.id, address=machine.address)
    elif edit == "turn" and targets:
        node = rng.choice(sorted(targets))
        phase = rng.choice(list(TargetPhase))
        targets[node] = TargetSpec(id=node, address=targets[node].address, phase=phase)
    elif edit == "generation":
        sim.table.generation += rng.choice((1, 1 << 40))
    sim.world.trace.add("hand edit", edit)


async def balancer_down(sim: Simulation, rng: random.Random) -> None:
    calls = rng.choice((BALANCER, ("apply",), ("observe",)))
    await _outage(sim, rng, calls, rng.choice((Fault.FAILED, Fault.SLOW, Fault.LOST)))


async def balancer_forgets(sim: Simulation, rng: random.Random) -> None:
    """It acknowledges sets and goes on with the one that it has."""
    sim.world.faults.forgetful = True
    await sim.clock.sleep(rng.uniform(5, 60))
    sim.world.faults.forgetful = False


# -- operators -------------------------------------------------------------------------------------


async def drained(sim: Simulation, rng: random.Random) -> None:
    live = sim.live()
    if not live:
        return
    node, undo = rng.choice(live).id, rng.random() < 0.3
    await sim.operate(lambda now: OperatorDrained(at=now, node=node, budget=20.0, reason="swarm"))
    if undo:
        await sim.clock.sleep(rng.uniform(0, 60))
        await sim.operate(lambda now: OperatorUndrained(at=now, node=node, reason="swarm"))


async def paused(sim: Simulation, rng: random.Random) -> None:
    seconds = rng.uniform(10, 300)
    await sim.operate(lambda now: Paused(at=now, by="swarm", reason="swarm", until=now + seconds))


async def ended_by_hand(sim: Simulation, rng: random.Random) -> None:
    """Somebody ends, stops or starts a machine in the provider's console."""
    for machine in some(rng, sim.live()):
        deed = rng.choice((sim.world.terminate, sim.world.terminate, sim.world.stop))
        machine.told_at = machine.told_at or sim.clock.now()
        deed(machine.id)
        sim.world.trace.add("by hand", deed.__name__, machine.id)


FAULTS: tuple[Kind, ...] = (
    Kind(notice, 0.6, 200.0), Kind(loss, 0.4), Kind(late_notice, 0.4), Kind(zone_reclaimed),
    Kind(drought, 0.4), Kind(all_spot_reclaimed, 0.2, 600.0), Kind(drought_everywhere, 0.2, 600.0),
    Kind(price_walk), Kind(silence), Kind(flapping), Kind(unreachable), Kind(lost_probes), Kind(forged),
    Kind(unknown_node), Kind(on_demand_interrupted), Kind(odd_deadline), Kind(cancelled),
    Kind(rebalance), Kind(deaf), Kind(stale_lists), Kind(lost_pages), Kind(hidden_node), Kind(denied),
    Kind(credentials_expired), Kind(throttled), Kind(provider_down), Kind(region_down, 0.5), Kind(quota),
    Kind(refused), Kind(not_allowed, 0.3, 600.0), Kind(launches_throttled, 0.2), Kind(stillborn, 0.3, 600.0),
    Kind(prices_away, 0.2, 600.0), Kind(foreign_machine, 0.2, 600.0), Kind(balancer_restart),
    Kind(hand_edit), Kind(balancer_down), Kind(balancer_forgets), Kind(drained), Kind(paused, 0.2),
    Kind(ended_by_hand, 0.2),
    *(Kind(strike, share, pause) for strike, share, pause in HOST),
)  # fmt: skip
