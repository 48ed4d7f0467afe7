"""`Instances` and `Offerings` on a simulated world: late, lossy and idempotent like the real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cloud.ports import LaunchRequest
from cloud.sim.effects import Effects
from cloud.sim.faults import Fault, Faults
from cloud.sim.world import SimWorld
from policies.model import Instance, Offering

T = TypeVar("T")


class Wire:
    """The network between a daemon and the simulated world: latency, faults, effects."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    async def change(self, call: str, subject: str, change: Callable[[], T], *, detail: str = "") -> T:
        """A call that changes the world. Raises what `change` raises, and what the faults say."""
        fault = await self._way_out(call)
        result = await self._effects.apply(call, subject, change, detail=detail)
        await self._way_back(call, fault)
        return result

    async def look(self, call: str, read: Callable[[], T]) -> T:
        """A call that only reads. Raises what the faults say."""
        fault = await self._way_out(call)
        result = read()
        await self._way_back(call, fault)
        return result

    @property
    def _effects(self) -> Effects:
        return self._world.effects

    async def _way_out(self, call: str) -> Fault | None:
        fault = self._world.faults.draw(call)
        await self._delay()
        if fault is Fault.SLOW:
            await self._world.clock.sleep(self._world.faults.slow_for)
        Faults.check(fault, call)
        return fault

    async def _way_back(self, call: str, fault: Fault | None) -> None:
        await self._delay()
        Faults.check_answer(fault, call)

    async def _delay(self) -> None:
        await self._world.clock.sleep(self._world.rng.uniform(*self._world.pace.latency))


class SimInstances:
    """`cloud.ports.Instances` on a simulated world."""

    def __init__(self, world: SimWorld) -> None:
        self._world, self._wire = world, Wire(world)

    async def launch(self, request: LaunchRequest) -> Instance:
        """Launch one machine, once per token. Raises CloudError."""
        return await self._wire.change(
            "launch",
            request.token,
            lambda: self._world.launch(request),
            detail=str(request.placement),
        )

    async def list(self, pool: str) -> tuple[Instance, ...]:
        """All machines of the pool, those that ended lately too. Raises CloudError."""
        return await self._wire.look("list", lambda: self._world.listed(pool))

    async def terminate(self, node: str) -> None:
        """End a machine. Raises CloudError."""
        await self._wire.change("terminate", node, lambda: self._world.terminate(node))

    async def stop(self, node: str) -> None:
        """Stop a machine. Raises CloudError."""
        await self._wire.change("stop", node, lambda: self._world.stop(node))

    async def start(self, node: str) -> None:
        """Start a stopped machine. Raises CloudError."""
        await self._wire.change("start", node, lambda: self._world.start(node))

    async def close(self) -> None:
        """Nothing to release."""


class SimOfferings:
    """`cloud.ports.Offerings` on a simulated world."""

    def __init__(self, world: SimWorld) -> None:
        self._world, self._wire = world, Wire(world)

    async def list(self) -> tuple[Offering, ...]:
        """Every offering with its price now. Raises CloudError."""
        return await self._wire.look("offerings", self._world.offerings)

    async def close(self) -> None:
        """Nothing to release."""
