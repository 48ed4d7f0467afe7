"""Keeps what is known of the GPUs of a pool's nodes: by their agents, else by an exporter on each node.

An agent's word is signed, and comes by itself. An exporter is asked, with a deadline and in a task that waits
for nothing else, on nodes whose agent has been silent for a while or cannot read the GPUs. What they say is
made into states, and compared between peers, by `policies.gpu_readings` and `policies.gpu_peers`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Set
from typing import Any, Final

from cloud.errors import CloudError
from cloud.logger import structlog
from cloud.ports import Clock, GpuExporter
from policies.gpu_peers import Pace, paces, watch
from policies.gpu_readings import FRESH, GpuState, NodeGpus, follow, with_earlier
from policies.model import EngineReading, GpuRules

log = structlog.get_logger("loop")

EVERY: Final = 15.0
"""Seconds between two looks at the exporters."""
COMPARED_EVERY: Final = 2.0
"""Seconds between two comparisons of nodes with their peers, however often the loop turns."""
_AT_ONCE: Final = 32


class GpuWatch:
    """What is known of GPUs. `reported`: an agent's last word on a node; `rules`: the pool's own."""

    def __init__(
        self,
        clock: Clock,
        *,
        reported: Callable[[str], NodeGpus | None] = lambda _node: None,
        exporter: GpuExporter | None = None,
        rules: Callable[[], GpuRules] = GpuRules,
    ) -> None:
        self._clock, self._reported, self._exporter, self._rules = clock, reported, exporter, rules
        self._read: dict[str, NodeGpus] = {}  # by the exporter
        self._states: Mapping[str, GpuState] = {}
        self._addresses: Mapping[str, str] = {}
        self.errors: dict[str, str] = {}  # why the exporter of a node cannot be read
        self.paces: Mapping[str, Pace] = {}
        self._compared_at = -math.inf
        self._had: set[str] = set()  # nodes whose GPUs could be read once

    def follow(self, addresses: Mapping[str, str]) -> None:
        """Look at these nodes and no others."""
        self._addresses = addresses
        for known in (self._read, self.errors):
            for node in [n for n in known if n not in addresses]:
                del known[node]
        self._had &= addresses.keys()

    def unread(self) -> Set[str]:
        """Nodes whose GPUs nobody can read now: their agent could before, or an exporter is asked in vain.

        An agent that never could may run on a machine without any.
        """
        newest = ((node, self._newest(node)) for node in self._had)
        return self.errors.keys() | {n for n, looked in newest if looked and looked.error and not looked.gpus}

    def looked(self) -> Mapping[str, NodeGpus]:
        """What was read last of every node that anybody read."""
        found = ((node, self._newest(node)) for node in self._addresses)
        return {node: looked for node, looked in found if looked is not None}

    def states(
        self, engines: Mapping[str, EngineReading], kinds: Mapping[str, object]
    ) -> Mapping[str, GpuState]:
        """The state of every node that reports its GPUs or is slow. `kinds`: see `policies.gpu_peers`."""
        now, states = self._clock.now(), dict[str, GpuState]()
        for node in self._addresses:
            known, looked = self._states.get(node), self._newest(node)
            if looked is not None and looked.gpus:
                self._had.add(node)
            old = (
                known is not None and looked is not None and known.at == looked.at <= now <= looked.at + FRESH
            )
            state = known if old else follow(known, looked, now)
            if state is not None:
                states[node] = state
        self._states = states
        if not 0.0 <= now - self._compared_at < COMPARED_EVERY:
            self.paces, self._compared_at = paces(engines, states, kinds), now
            self._states = watch(states, self.paces, self._rules(), now)
        return self._states

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The root task by name, where there are exporters to ask."""
        return {} if self._exporter is None else {"watch GPUs": self._keep_asking(self._exporter)}

    async def _keep_asking(self, exporter: GpuExporter) -> None:
        while True:
            await self._ask(exporter)
            await self._clock.sleep(EVERY)

    def _newest(self, node: str) -> NodeGpus | None:
        """From its agent while that reports, else from the newest source. An agent that cannot read the GPUs
        has still the kernel log.
        """
        reported, read = self._reported(node), self._read.get(node)
        if reported is None or read is None:
            return reported or read
        if self._clock.now() - reported.at > FRESH and reported.at < read.at:
            return read
        return reported if reported.gpus or not read.gpus else with_earlier(reported, read)

    def _speaks(self, node: str, now: float) -> bool:
        """Whether a node's agent reports its GPUs."""
        reported = self._reported(node)
        return reported is not None and now - reported.at <= FRESH and bool(reported.gpus)

    async def _ask(self, exporter: GpuExporter) -> None:
        slots, now = asyncio.Semaphore(_AT_ONCE), self._clock.now()

        async def ask(node: str, address: str) -> None:
            try:
                async with slots:
                    looked = await exporter.read(node, address)
            except CloudError as error:
                if node not in self.errors:
                    log.warning("gpus.read_failed", node=node, error=str(error))
                self.errors[node] = str(error)
            else:
                self._read[node] = with_earlier(self._read.get(node), looked)
                self.errors.pop(node, None)

        async with asyncio.TaskGroup() as group:
            for node, address in self._addresses.items():
                if self._speaks(node, now):
                    self.errors.pop(node, None)
                elif address:
                    group.create_task(ask(node, address))
