"""A simulated load balancer and its traffic: a target set with fencing, and the requests that it routes.

`TargetTable` is the balancer; it outlives every daemon and routes while none runs. `SimBalancer` is a
daemon's side of it, the `LoadBalancer` port.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloud.errors import Denied
from cloud.ports import BalancerView, Capabilities
from cloud.sim.adapters import AdapterTraffic
from cloud.sim.wire import Wire
from cloud.sim.world import SimWorld
from policies.model import Target, TargetPhase, TargetSpec, TargetState
from policies.value import replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How many requests come, and how long they take (the least and the most seconds).

    For `propagation` seconds a balancer goes on routing by what it held before a change.
    Of a pool with adapters `adapters` is the share that asks for one, and `skew` how unevenly: see
    `cloud.sim.adapters`.
    """

    per_second: float = 1.0
    seconds: tuple[float, float] = (1.0, 8.0)
    adapters: float = 0.5
    skew: float = 1.0
    propagation: float = 0.0


class TargetTable:
    """The balancer itself. Counts what it could not serve."""

    def __init__(self, name: str, world: SimWorld, *, rng: random.Random, traffic: Traffic) -> None:
        self.name = name
        self._world, self._rng, self._traffic = world, rng, traffic
        self._restarts = 0
        self.generation = 0
        self.accepted = 0  # writes so far
        self.told: frozenset[str] = frozenset()  # who gets requests by the last of them
        self.targets: dict[str, TargetSpec] = {}
        self.on_sent: list[Callable[[TargetTable, Sequence[TargetSpec], int], None]] = []
        self.served = self.unserved = 0
        self.read_at = -math.inf  # when somebody last read the set and heard the answer
        self.shown: frozenset[str] = frozenset()  # targets, by that answer
        self.adapters: AdapterTraffic | None = None
        self._routed: set[str] = set()
        self._changed_at: dict[str, float] = {}  # node of which the set says otherwise, since when
        self._owed = 0.0
        self._routed_at = world.clock.now()
        world.on_tick.append(self._route)

    @property
    def incarnation(self) -> str:
        """Changes when the balancer lost its state."""
        return f"{self.name}/{self._restarts}"

    def replace(self, desired: Sequence[TargetSpec], generation: int) -> None:
        """Take a whole set. Raises Denied for a generation below the accepted one."""
        if generation < self.generation:
            raise Denied(f"{self.name}: generation {generation} is below {self.generation} (simulated)")
        self.generation = generation
        self.accepted += 1
        self.told = frozenset(s.id for s in desired if s.phase is TargetPhase.ACTIVE)
        if not self._world.faults.forgetful:
            self.targets = {s.id: s for s in desired}

    def without(self, leaving: Sequence[TargetSpec]) -> list[TargetSpec]:
        """The set as it is, with these targets draining."""
        going = {s.id: s.drain_deadline for s in leaving}
        return [
            replace(s, phase=TargetPhase.DRAINING, drain_deadline=going[s.id])
            if s.id in going and s.phase is TargetPhase.ACTIVE
            else s
            for s in self.targets.values()
        ]

    def restart(self) -> None:
        """Lose the whole state, as a crash does."""
        self._restarts += 1
        self.generation = 0
        self.targets = {}
        self._world.trace.add("restart", self.name)

    def active(self) -> list[TargetSpec]:
        """Targets that get new requests."""
        return [s for s in self.targets.values() if s.phase is TargetPhase.ACTIVE]

    @property
    def propagation(self) -> float:
        """Seconds for which it goes on routing by what it held before a change."""
        return self._traffic.propagation

    def routed(self, now: float) -> list[str]:
        """Nodes that get new requests, which may lag behind the set."""
        active = {s.id for s in self.active()}
        if not self.propagation:
            return sorted(active)
        late = active ^ self._routed
        self._changed_at = {n: self._changed_at.get(n, now) for n in late}
        for node in [n for n, at in self._changed_at.items() if now - at >= self.propagation]:
            self._routed ^= {node}
            del self._changed_at[node]
        return sorted(self._routed)

    def late(self, now: float) -> set[str]:
        """Nodes that still get new requests although the set says otherwise."""
        return set(self.routed(now)) - {s.id for s in self.active()} if self.propagation else set()

    def view(self) -> BalancerView:
        """What the balancer shows."""
        now = self._world.clock.now()
        return BalancerView(
            incarnation=self.incarnation,
            generation=self.generation,
            targets=tuple(self._target(s, now) for s in self.targets.values()),
            adapters=self.adapters.counts() if self.adapters is not None else {},
        )

    def _target(self, spec: TargetSpec, now: float) -> Target:
        machine = self._world.machine(spec.id)
        able = machine is not None and machine.able(now)
        state = TargetState.HEALTHY if able else TargetState.UNHEALTHY
        if spec.phase is TargetPhase.DRAINING:
            state = TargetState.DRAINING
        in_flight = machine.in_flight(now) if machine is not None else 0
        found = Target(id=spec.id, address=spec.address, state=state, in_flight=in_flight, build=spec.build)
        return found if self.adapters is None else self.adapters.shown(spec, found, now)

    def _route(self, now: float) -> None:
        """Give the requests that came since the last tick to the least busy targets that can answer."""
        routed = self.routed(now)
        self._owed += (now - self._routed_at) * self._traffic.per_second
        self._routed_at = now
        if self._owed < 1.0:
            return
        if self.adapters is not None:
            self._owed -= self.adapters.route(self.active(), int(self._owed), now)
        active = [m for m in map(self._world.machine, routed) if m and m.able(now)]
        busy = [(m.in_flight(now), m.id, m) for m in active]
        heapq.heapify(busy)
        while self._owed >= 1.0:
            self._owed -= 1.0
            if not busy:
                self.unserved += 1
                continue
            held, node, machine = busy[0]
            heapq.heappush(machine.requests, now + self._rng.uniform(*self._traffic.seconds))
            heapq.heapreplace(busy, (held + 1, node, machine))
            self.served += 1


class SimBalancer:
    """`cloud.ports.LoadBalancer` on a simulated balancer."""

    def __init__(self, table: TargetTable, world: SimWorld) -> None:
        self.name = table.name
        self._table, self._wire, self._world = table, Wire(world), world
        self.capabilities = Capabilities(drains=True, counts_in_flight=True, propagation=table.propagation)

    async def observe(self) -> BalancerView:
        """Read the set. Raises CloudError."""
        view = await self._wire.look("observe", self._table.view)
        self._table.read_at = self._world.clock.now()
        self._table.shown = frozenset(t.id for t in view.targets)
        return view

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        """Replace the set. Raises CloudError."""
        for told in self._table.on_sent:
            told(self._table, desired, generation)
        words = " ".join(f"{s.id}={s.phase}" for s in desired)
        await self._wire.change(
            "apply", self.name, lambda: self._table.replace(desired, generation), detail=words or "empty"
        )

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        """Have these get no new requests, and change nothing else. Raises CloudError."""
        table = self._table
        for told in table.on_sent:
            told(table, table.without(leaving), generation)
        words = " ".join(f"{s.id}={s.phase}" for s in leaving)
        await self._wire.change(
            "apply",
            self.name,
            lambda: table.replace(table.without(leaving), generation),
            detail=f"only {words}",
        )

    async def close(self) -> None:
        """Nothing to release."""
