"""A world that is watched by a checker, and a script that is played in it."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from scenarios import place, sales

from cloud.ports import EngineCommand, LaunchRequest
from cloud.sim.balancer import SimBalancer, TargetTable, Traffic
from cloud.sim.checker import Checker
from cloud.sim.cloud import SimInstances
from cloud.sim.invariants import DaemonState
from cloud.sim.world import Machine, SimWorld
from orchestrator.simulation.virtual_time import VirtualClock, VirtualTimeLoop, virtual_time
from policies.model import (
    DrainRules,
    Market,
    Pool,
    TargetPhase,
    TargetSpec,
)

ACTIVE, DRAINING = TargetPhase.ACTIVE, TargetPhase.DRAINING


class Watched:
    """A world with machines that serve, one balancer, and the checker of a daemon that knows some."""

    def __init__(
        self,
        loop: VirtualTimeLoop,
        market: Market = Market.SPOT,
        *,
        machines: int = 3,
        replicas: int = 3,
        traffic: float = 0.0,
        propagation: float = 0.0,
        **pool: Any,
    ) -> None:
        self.clock, self.known = VirtualClock(loop), set[str]()
        self.woke_at = -math.inf
        self.world = SimWorld(self.clock, sales=sales(capacity=9), rng=random.Random(1))
        asked = Traffic(per_second=traffic, propagation=propagation)
        self.table = TargetTable("lb", self.world, rng=random.Random(2), traffic=asked)
        self.balancer, self.instances = SimBalancer(self.table, self.world), SimInstances(self.world)
        share = 0.0 if market is Market.ON_DEMAND else 0.7
        drain = DrainRules(budget=20.0, margin=5.0)
        wanted = Pool(name="p", replicas=replicas, drain=drain, **{"spot_share": share, **pool})
        self.checker = Checker(self.world, [self.table], wanted, daemon=self._daemon)
        self.machines = [self._machine(f"p/1/{n}", market) for n in range(machines)]
        self.known |= {m.id for m in self.machines}
        self._nature = loop.create_task(self.world.run())

    def _daemon(self) -> DaemonState:
        return DaemonState(up_since=0.0, known=self.known, woke_at=self.woke_at)

    def _machine(self, token: str, market: Market) -> Machine:
        command = EngineCommand(argv=("x",))
        return self.world.add(
            LaunchRequest(token=token, pool="p", placement=place(market, "a"), command=command)
        )

    async def write(
        self, active: Iterable[Machine], draining: Iterable[Machine] = (), *, generation: int = 1
    ) -> None:
        """Have the balancer hold this set."""
        later = self.clock.now() + 30.0
        specs = [TargetSpec(id=m.id, address=m.address) for m in active]
        specs += [
            TargetSpec(id=m.id, address=m.address, phase=DRAINING, drain_deadline=later) for m in draining
        ]
        await self.balancer.apply(specs, generation)

    async def let_go(self, machine: Machine) -> None:
        """Have all get requests, and then one of them drain."""
        await self.write(self.machines)
        await self.write([m for m in self.machines if m is not machine], draining=[machine])

    def by_hand(self, machine: Machine) -> None:
        """Somebody turns a target round to active."""
        self.table.targets[machine.id] = TargetSpec(id=machine.id, address=machine.address, phase=ACTIVE)

    @property
    def broken(self) -> list[str]:
        return [b.name for b in self.checker.broken]


def watch(script: Callable[[Watched], Awaitable[None]], market: Market = Market.SPOT, **made: Any) -> Watched:
    """What was watched while a script was played that begins with every machine loaded."""
    with virtual_time(1) as loop:

        async def play() -> Watched:
            watched = Watched(loop, market, **made)
            await watched.clock.sleep(100.0)
            await script(watched)
            return watched

        return loop.run_until_complete(play())
