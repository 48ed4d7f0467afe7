"""`Instances` and `Offerings` on a simulated world: late, lossy and idempotent like the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from cloud.errors import NotFound
from cloud.ports import EngineSpec, LaunchRequest, Sold
from cloud.sim.counting import weight
from cloud.sim.engine import SimEngine
from cloud.sim.numbers import Numbers
from cloud.sim.wire import Wire
from cloud.sim.world import SimWorld
from policies.model import Instance, Market, Offering, Placement, Pool


class SimInstances:
    """`cloud.ports.Instances` on a simulated world."""

    def __init__(self, world: SimWorld) -> None:
        self._world, self._wire = world, Wire(world)
        self.regions = world.regions

    async def launch(self, request: LaunchRequest) -> Instance:
        """Launch one machine, once per token. Raises CloudError."""
        return await self._wire.change(
            "launch",
            request.token,
            lambda: self._world.launch(request),
            region=request.placement.region,
            market=str(request.placement.market),
            detail=str(request.placement),
            done=lambda: self._world.launched(request) is not None,
        )

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        """All machines of the pool in a region, those that ended lately too. Raises CloudError."""
        found = await self._wire.look("list", lambda: self._world.listed(pool, region), region=region)
        self._world.listed_at[pool, region] = self._world.clock.now()
        return found

    async def terminate(self, node: str) -> None:
        """End a machine. Raises CloudError."""
        terminate, region = partial(self._world.terminate, node), self._region_of(node)
        await self._wire.change("terminate", node, terminate, region=region)

    async def stop(self, node: str) -> None:
        """Stop a machine. Raises CloudError."""
        stop = partial(self._world.stop, node)
        await self._wire.change("stop", node, stop, region=self._region_of(node))

    async def start(self, node: str) -> None:
        """Start a stopped machine. Raises CloudError."""
        start, runs = partial(self._world.start, node), partial(self._world.runs, node)
        await self._wire.change("start", node, start, region=self._region_of(node), done=runs)

    async def console(self, node: str) -> str:
        """Machines of this world write nothing. Raises CloudError."""
        return await self._wire.look("console", partial(self._written, node), region=self._region_of(node))

    def _written(self, node: str) -> str:
        if node not in self._world.machines:
            raise NotFound(f"{node}: no such machine (simulated)")
        return ""

    def _region_of(self, node: str) -> str:
        machine = self._world.machines.get(node)
        return "" if machine is None else machine.placement.region

    async def close(self) -> None:
        """Nothing to release."""


class SimOfferings:
    """`cloud.ports.Offerings` on a simulated world: each region has a part for each market."""

    def __init__(self, world: SimWorld) -> None:
        self._world, self._wire = world, Wire(world)

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        """What can be bought, without prices."""
        found: dict[str, tuple[Offering, ...]] = {}
        for placement in self._world.prices:
            part = _part(placement)
            found[part] = (*found.get(part, ()), Offering(placement=placement, price=None))
        return found

    async def list(self, part: str) -> Sold:
        """Every offering of one part with its price now. Raises CloudError."""
        region = part.rpartition(" ")[0]
        sold = await self._wire.look("offerings", self._world.offerings, region=region)
        return Sold(offerings=tuple(o for o in sold if _part(o.placement) == part))

    async def close(self) -> None:
        """Nothing to release."""


def _part(placement: Placement) -> str:
    return f"{placement.region} {placement.market}"


def furnish(world: SimWorld, pool: Pool) -> None:
    """Machines of an earlier daemon, ready to be adopted: the wanted mix, loaded."""
    command = SimEngine(world).command(EngineSpec(model="sim", served_name="sim"))
    number = 0
    numbers = Numbers.of(pool)
    for market, missing in ((Market.SPOT, numbers.spot), (Market.ON_DEMAND, numbers.floor)):
        sold = [p for p in world.prices if p.market is market]
        while missing > 0:
            number += 1
            place = sold[number % len(sold)]
            token = f"{pool.name}/1/{number}"
            machine = world.add(LaunchRequest(token=token, pool=pool.name, placement=place, command=command))
            machine.visible_at = machine.until = machine.loaded_at = world.clock.now()
            missing -= weight(pool, place)
