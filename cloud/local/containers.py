"""Engines of the local cloud that run in containers: started by a process of the node, removed at its end.

The process that starts a container is the node's engine process and passes signals on. Killed, it leaves the
container running, so every end of a node, and of its engine, removes the container too. Its processes
carry the cloud's mark, by which a guard of the same user ends them where the cloud was killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Final

import structlog

from cloud.ports import Container

log = structlog.get_logger(__name__)

_HELPER: Final = (sys.executable, "-I", "-m", "cloud.local.container_process")


class Containers:
    """The containers of one cloud's nodes. `cloud` is its id."""

    def __init__(self, cloud: str) -> None:
        self._cloud = cloud
        self._removals: dict[str, asyncio.Task[None]] = {}

    def name(self, node: str) -> str:
        """The container of a node, on a machine that may have several clouds."""
        return f"orchestrator-{self._cloud}-{node}"

    def command(
        self, node: str, container: Container, argv: Sequence[str], environment: Iterable[str]
    ) -> list[str]:
        """What the node's process runs: `argv` in the container, with the variables of those names."""
        described = {**asdict(container), "argv": list(argv), "environment": sorted(environment)}
        return [*_HELPER, "run", self.name(node), json.dumps(described)]

    def remove(self, node: str, container: Container | None) -> None:
        """Begin to remove the node's container, if it has one, whatever it does."""
        if container is not None and node not in self._removals:
            task = asyncio.get_running_loop().create_task(self._remove(node, container))
            self._removals[node] = task
            task.add_done_callback(lambda _: self._removals.pop(node, None))

    async def gone(self, node: str) -> None:
        """Wait until nothing of the node's container is being removed any more."""
        if (removal := self._removals.get(node)) is not None:
            await asyncio.shield(removal)

    async def close(self) -> None:
        """Wait for all of them."""
        await asyncio.gather(*self._removals.values(), return_exceptions=True)

    async def _remove(self, node: str, container: Container) -> None:
        process = await asyncio.create_subprocess_exec(
            *(*_HELPER, "remove", self.name(node), "--runtime", container.runtime),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the cloud
        )
        _, said = await process.communicate()
        if process.returncode:
            log.warning("container_not_removed", node=node, error=said.decode(errors="replace").strip())
