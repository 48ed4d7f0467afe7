"""`Engine` on a simulated world: reads what an engine would answer on its address."""

from __future__ import annotations

from functools import partial

from cloud.errors import NotFound, Uncertain
from cloud.ports import Clock, EngineCapabilities, EngineCommand, EngineSpec
from cloud.sim.wire import Wire
from cloud.sim.world import Machine, SimWorld
from policies.model import EngineReading

_TOKENS_PER_SECOND = 50.0


class SimEngine:
    """`cloud.ports.Engine` on a simulated world."""

    name = "sim"
    capabilities = EngineCapabilities(
        tasks=frozenset({"generate"}), token_ids="exact", adapters="runtime", drains=True, ran=True
    )

    def __init__(self, world: SimWorld, clock: Clock | None = None) -> None:
        self._world, self._wire = world, Wire(world)
        self._clock = clock if clock is not None else world.clock  # that of the host which looks

    def command(self, spec: EngineSpec) -> EngineCommand:
        """Any command will do: simulated machines run nothing."""
        return EngineCommand(
            argv=("sim-engine", spec.model, *spec.args), env=spec.env, build=spec.build(self.name)
        )

    async def probe(self, node: str, address: str, previous: EngineReading | None) -> EngineReading:
        """Look once. A machine that is away or still loads refuses; a silent one keeps what it had."""
        world = self._world
        await world.clock.sleep(world.rng.uniform(*world.pace.latency))
        now, at, faults = world.clock.now(), self._clock.now(), world.faults
        machine = world.at_address(node, address)
        ready = previous is not None and previous.ready
        if machine is None:
            return _failed(node, at, previous, ready=ready, why=f"cannot connect to {address}")
        if node in faults.unreachable or faults.chance(faults.lost_probes):
            if machine.unseen_since is None:
                machine.unseen_since = machine.quiet_from = now
            return _failed(node, at, previous, ready=ready, why=f"no route to {address}")
        if machine.unseen_since is not None:
            machine.unseen_since, machine.seen_again_at = None, now
        if now < machine.loaded_at:
            return _failed(node, at, previous, ready=False, why=f"connection refused at {address}")
        if machine.silent_since is not None:
            return _failed(node, at, previous, ready=ready, why="healthy, but gave no token: frozen")
        machine.answered_at = now
        return EngineReading(
            node=node,
            at=at,
            ready=True,
            ok=True,
            running=machine.in_flight(now),
            progress=_progress(machine, now),
            adapters=tuple(sorted(machine.adapters)),
            adapters_at=at,
        )

    async def load_adapter(self, address: str, served_as: str, source: str) -> None:
        """Load an adapter, which takes its time. Raises CloudError."""
        world = self._world
        await world.clock.sleep(world.rng.uniform(*world.pace.adapter))
        change = partial(self._loaded, address, served_as, source)
        await self._wire.change("load", served_as, change, detail=address)

    def _loaded(self, address: str, served_as: str, source: str) -> None:
        if source in self._world.faults.broken_adapters:
            raise NotFound(f"no adapter found for {source} (simulated)")
        self._at(address).adapters.add(served_as)

    async def unload_adapter(self, address: str, served_as: str) -> None:
        """Let go of an adapter. Raises CloudError."""
        change = partial(self._unloaded, address, served_as)
        await self._wire.change("unload", served_as, change, detail=address)

    def _unloaded(self, address: str, served_as: str) -> None:
        self._at(address).adapters.discard(served_as)

    def _at(self, address: str) -> Machine:
        world, now = self._world, self._world.clock.now()
        machine = next((m for m in world.machines.values() if m.address == address and m.able(now)), None)
        if machine is None or machine.id in world.faults.unreachable:
            raise Uncertain(f"cannot connect to {address} (simulated)")
        return machine

    async def close(self) -> None:
        """Nothing to release."""


def _progress(machine: Machine, now: float) -> float:
    return max(0.0, now - machine.loaded_at) * _TOKENS_PER_SECOND


def _failed(node: str, now: float, previous: EngineReading | None, *, ready: bool, why: str) -> EngineReading:
    since = previous.failing_since if previous is not None else None
    return EngineReading(
        node=node,
        at=now,
        ready=ready,
        ok=False,
        failing_since=now if since is None else since,
        running=previous.running if previous is not None and ready else 0,
        progress=previous.progress if previous is not None else 0.0,
        failure=why,
    )
