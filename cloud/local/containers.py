"""Engines of the local cloud that run in containers: started by a process of the node, removed at its end.

The process that starts a container is the node's engine process and passes signals on. Killed, it leaves the
container running, so every end of a node, and of its engine, removes the container too. Its processes
carry the cloud's mark, by which a guard of the same user ends them where the cloud was killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from cloud.local.container_process import REPORT
from cloud.logger import structlog
from cloud.node_boot import read
from cloud.ports import Container

log = structlog.get_logger("local")

_HELPER: Final = (sys.executable, "-I", "-m", "cloud.local.container_process")
_SWEEP: Final = "sweep "  # begins no node's id


class Containers:
    """The containers of one cloud's nodes. `cloud` is its id."""

    def __init__(self, cloud: str) -> None:
        self._cloud = cloud
        self._removals: dict[str, asyncio.Task[object]] = {}
        self._left: dict[str, Container] = {}

    def name(self, node: str) -> str:
        """The container of a node, on a machine that may have several clouds."""
        return f"orchestrator-{self._cloud}-{node}"

    def command(
        self, node: str, container: Container, argv: Sequence[str], environment: Iterable[str]
    ) -> list[str]:
        """What the node's process runs: `argv` in the container, with the variables of those names.

        It first removes what was left of the node.
        """
        self._left.pop(node, None)
        described = {**asdict(container), "argv": list(argv), "environment": sorted(environment)}
        return [*_HELPER, "run", self.name(node), json.dumps(described)]

    def remove(self, node: str, container: Container | None) -> None:
        """Begin to remove the node's container, if it has one, whatever it does."""
        if container is not None and node not in self._removals:
            self._begin(node, self._remove(node, container))

    def retry(self) -> None:
        """Begin again with those that could not be removed."""
        for node, container in tuple(self._left.items()):
            self.remove(node, container)

    def sweep(self, containers: Iterable[Container]) -> None:
        """Begin to remove all of this cloud that an earlier run left, by what its nodes ran in."""
        for runtime in {container.runtime for container in containers}:
            self._begin(_SWEEP + runtime, self._end("sweep", self.name(""), runtime))

    @staticmethod
    def stages(directory: Path, since: float) -> tuple[tuple[str, float], ...]:
        """When each stage of a node's start began, as its process said since then in its directory."""
        times = read(str(directory / REPORT)).get("times") or {}
        return tuple((name, times[name]) for name in ("image", "start") if times.get(name, 0.0) >= since)

    async def gone(self, node: str) -> None:
        """Wait until nothing that may be the node's container is being removed any more."""
        waits = [task for key, task in self._removals.items() if key == node or key.startswith(_SWEEP)]
        if waits:
            await asyncio.wait(waits)

    async def close(self) -> None:
        """Wait for all of them."""
        await asyncio.gather(*self._removals.values(), return_exceptions=True)

    def _begin(self, key: str, removal: Coroutine[None, None, object]) -> None:
        task = asyncio.get_running_loop().create_task(removal)
        self._removals[key] = task
        task.add_done_callback(lambda _: self._removals.pop(key, None))

    async def _remove(self, node: str, container: Container) -> None:
        if await self._end("remove", self.name(node), container.runtime):
            self._left.pop(node, None)
        else:
            self._left[node] = container

    async def _end(self, what: str, name: str, runtime: str) -> bool:
        """Whether the containers of that name have gone."""
        process = await asyncio.create_subprocess_exec(
            *(*_HELPER, what, name, "--runtime", runtime),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the cloud
        )
        _, said = await process.communicate()
        if process.returncode:
            log.warning("container.remove_failed", name=name, error=said.decode(errors="replace").strip())
        return not process.returncode
