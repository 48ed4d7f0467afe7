"""An engine of a test that holds adapters, and fails or hangs as it is told."""

from __future__ import annotations

import asyncio

from cloud.engines.simulated import SimulatedEngine
from cloud.ports import Clock


class HoldingEngine(SimulatedEngine):
    """`held`: by address. `error`: what calls raise, `hangs`: they never come back."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, model_name="m")
        self.held: dict[str, set[str]] = {}
        self.error: Exception | None = None
        self.hangs = False
        self.calls: list[tuple[str, str, str]] = []

    async def load_adapter(self, address: str, served_as: str, source: str) -> None:
        await self._call("load", address, served_as)
        self.held.setdefault(address, set()).add(served_as)

    async def unload_adapter(self, address: str, served_as: str) -> None:
        await self._call("unload", address, served_as)
        self.held.setdefault(address, set()).discard(served_as)

    async def _call(self, what: str, address: str, served_as: str) -> None:
        self.calls.append((what, address, served_as))
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
