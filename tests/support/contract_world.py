"""What the contract suites of machines, offerings and notices need of a provider, whichever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_bench import Machine, Served

from cloud.clock import SystemClock
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Confidence, Instance, Market, NoticeKind, Offering

PATIENCE = 30.0  # s until a condition counts as never coming true


@dataclass(frozen=True, kw_only=True)
class ToldBy:
    """A source of notices: how far it may be believed, what it tells of, whether it queues."""

    source: Any
    confidence: Confidence
    tells: frozenset[NoticeKind] = frozenset((NoticeKind.INTERRUPTION, NoticeKind.REBALANCE))
    queues: bool = False
    counts_on: float = 0.0  # s from when the node saw it, where its cloud names no time; 0 where it does


TAKES = frozenset((NoticeKind.INTERRUPTION,))
TAKES_OR_MAINTAINS = frozenset((NoticeKind.INTERRUPTION, NoticeKind.MAINTENANCE))
WARNS = TAKES_OR_MAINTAINS | {NoticeKind.REBALANCE}


class World:
    """What the suites need of a provider, whichever it is."""

    clock: SystemClock
    instances: Any
    offerings: Any
    sources: Sequence[ToldBy]
    agents: NodeAgents | None = None
    chooses_notice = True  # whether `reclaim` decides how long the notice is
    keeps_consoles = True

    def watch(self, instance: Instance) -> None:
        """Tell the sources that are on the nodes, or ask each of them, of one that runs."""
        if self.agents is not None:
            self.agents.watch(instance.id)

    async def sold(self) -> list[Offering]:
        """Everything that the provider sells."""
        parts = [await self.offerings.list(part) for part in self.offerings.parts()]
        assert not any(part.problem for part in parts)
        return [offering for part in parts for offering in part.offerings]

    async def request(
        self, token: str, market: Market = Market.ON_DEMAND, pool: str = "pool"
    ) -> LaunchRequest:
        """A request that the provider can meet."""
        placement = next(o.placement for o in await self.sold() if o.placement.market is market)
        command = EngineCommand(argv=("sleep", "600"), stop_grace=5.0, build="b")
        return LaunchRequest(token=token, pool=pool, placement=placement, command=command)

    async def launch_writing(self, text: str) -> Instance:
        """A machine that writes this on its console and goes on."""
        raise NotImplementedError

    async def until_written(self, node: str, last: str = "") -> str:
        """Wait until a machine's console ends in these words, or with something."""
        async with asyncio.timeout(PATIENCE):
            while not (text := await self.instances.console(node)).endswith(last) or not text:
                await self.clock.sleep(0.01)
        return str(text)

    async def listed(self, pool: str) -> tuple[Instance, ...]:
        """All machines of a pool, region by region."""
        parts = [await self.instances.list(pool, region) for region in self.instances.regions]
        return tuple(instance for part in parts for instance in part)

    async def until_state(self, node: str, *states: str, pool: str = "pool"):
        """Wait until the provider lists a node in one of the states; gives the instance."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for instance in await self.listed(pool):
                    if instance.id == node and instance.state in states:
                        return instance
                await self.clock.sleep(0.01)


class NodeAgents:
    """An agent on every node that is watched, the metadata that each asks, and what hears them.

    `imds`: the stand-in for metadata; `cloud`: whose it plays, with what its metadata say besides. The agents
    keep their files in the directory.
    """

    def __init__(self, imds: Any, directory: Path, clock: SystemClock, cloud: str, **said: Any) -> None:
        self._imds, self._directory, self._cloud, self._said = imds, directory, cloud, said
        self._served = Served(clock)
        self._machines: dict[str, Machine] = {}
        self.receiver = self._served.receiver

    async def open(self) -> None:
        """Listen for reports."""
        await self._served.open()

    def watch(self, node: str) -> None:
        """Start the agent of a node that runs."""
        machine = Machine(self._imds, self._directory, id=node, cloud=self._cloud, **self._said)
        self._machines[node] = machine
        machine.start("--url", self._served.url, "--cloud", self._cloud)

    def order(self, name: str, node: str, **values: Any) -> None:
        """Change the metadata of a node that is watched; see tests/support/imds."""
        if node in self._machines:
            self._machines[node].order(name, **values)

    async def close(self) -> None:
        """End the agents."""
        for machine in self._machines.values():
            machine.close()
        await self._served.close()
