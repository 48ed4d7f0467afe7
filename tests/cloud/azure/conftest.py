"""The stand-in for Azure with nothing in it, and adapters that talk to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from azure_pool import Adapters
from azure_stage import AzureStandIn

from cloud.clock import SystemClock


class Stand:
    """The stand-in, and adapters of one pool; those that are made anew share the ledger."""

    def __init__(self, stand_in: AzureStandIn, directory: Path) -> None:
        self.stand_in, self.directory = stand_in, directory
        self.clock: Any = SystemClock()
        self._made: list[Adapters] = []

    def adapters(self, *places: Any, **options: Any) -> Adapters:
        made = Adapters(self.stand_in, self.clock, self.directory, *places, **options)
        self._made.append(made)
        return made

    async def order(self, name: str, **values: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self.stand_in.order, name, **values)

    async def until(self, what: Callable[[], Any]) -> Any:
        """Wait until a coroutine gives something."""
        async with asyncio.timeout(30.0):
            while not (found := await what()):
                await self.clock.sleep(0.02)
        return found

    async def close(self) -> None:
        for made in self._made:
            await made.close()


@pytest.fixture
async def stand(azure_process: AzureStandIn, tmp_path: Path) -> AsyncIterator[Stand]:
    await asyncio.to_thread(azure_process.order, "reset")
    found = Stand(azure_process, tmp_path)
    yield found
    await found.close()
