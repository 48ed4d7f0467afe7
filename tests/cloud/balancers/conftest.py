"""Real balancers with servers behind them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from cloud.ports import LoadBalancer
from policies.model import TargetState
from tests.support.balancer_programs import PATIENCE, BalancerProgram, need
from tests.support.named_backends import NamedBackend


class Stand:
    """One real balancer, one adapter, servers."""

    def __init__(self, program: BalancerProgram, names: str) -> None:
        self.program = program
        self.balancer: Any = program.adapter()
        self.servers = [NamedBackend(name) for name in names]
        self.client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE))

    async def ask(self) -> str:
        """Who answers a client; its status where nobody does."""
        async with self.client.get(self.program.url + "/v1/name") as answer:
            return str((await answer.json())["name"]) if answer.status == 200 else str(answer.status)

    async def states(self, balancer: LoadBalancer | None = None) -> dict[str, TargetState]:
        """What it shows."""
        view = await (balancer or self.balancer).observe()
        return {target.id: target.state for target in view.targets}

    async def until(self, **wanted: TargetState) -> None:
        """Wait until these targets, and no others, are in these states."""
        async with asyncio.timeout(PATIENCE):
            while (await self.states()) != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture
async def stand() -> AsyncIterator[Callable[..., Awaitable[Stand]]]:
    """Makes a stand: `await stand(Haproxy, "ab")`."""
    stands: list[Stand] = []

    async def made(kind: type[BalancerProgram], names: str = "ab", **place: Any) -> Stand:
        need(*kind.programs)
        found = Stand(kind(**place), names)
        stands.append(found)
        for server in found.servers:
            await server.start()
        await found.program.start()
        return found

    yield made
    for each in stands:
        await each.client.close()
        await each.balancer.close()
        await each.program.stop()
        each.program.remove()
        for server in each.servers:
            await server.stop()
