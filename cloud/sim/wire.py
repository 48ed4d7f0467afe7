"""The network between a daemon and the simulated world."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cloud.sim.effects import Effects
from cloud.sim.faults import Fault, Faults
from cloud.sim.world import SimWorld

T = TypeVar("T")


class Wire:
    """The network between a daemon and the simulated world: latency, faults, effects."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    async def change(
        self,
        call: str,
        subject: str,
        change: Callable[[], T],
        *,
        region: str = "",
        market: str = "",
        detail: str = "",
        done: Callable[[], bool] = lambda: False,
    ) -> T:
        """A call that changes the world. Raises what `change` raises, and what the faults say.

        `done`: it took effect before, and asks for nothing more that a provider could refuse.
        """
        for told in self._effects.on_sent:
            told(call, subject, region)
        fault = await self._way_out(call, region, market, done)
        result = await self._effects.apply(call, subject, change, detail=detail)
        await self._way_back(call, fault)
        return result

    async def look(self, call: str, read: Callable[[], T], *, region: str = "") -> T:
        """A call that only reads. Raises what the faults say."""
        fault = await self._way_out(call, region)
        result = read()
        await self._way_back(call, fault)
        return result

    @property
    def _effects(self) -> Effects:
        return self._world.effects

    async def _way_out(
        self, call: str, region: str, market: str = "", done: Callable[[], bool] = lambda: False
    ) -> Fault | None:
        fault = self._world.faults.draw(call, region, market, now=self._world.clock.now())
        await self._delay()
        if fault is Fault.SLOW:
            await self._world.clock.sleep(self._world.faults.slow_for)
        if fault in (Fault.REFUSED, Fault.QUOTA) and done():
            return None
        Faults.check(fault, call)
        return fault

    async def _way_back(self, call: str, fault: Fault | None) -> None:
        await self._delay()
        Faults.check_answer(fault, call)

    async def _delay(self) -> None:
        await self._world.clock.sleep(self._world.rng.uniform(*self._world.pace.latency))
