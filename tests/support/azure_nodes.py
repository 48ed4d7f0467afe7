"""What runs on the machines of the stand-in for Azure: an engine, and the agent out of the custom data.

The agent is the program that the machine was given for its first boot, with the key and the options that its
unit has there, so a node hears of its end as a node of Azure would.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from azure_stage import AzureStandIn

from cloud.cloud_init.user_data import unpacked
from orchestrator.demo.processes import die_with_parent

_FOLLOW = 0.2  # s between two looks at the machines
_HOME = "/opt/orchestrator"


def files_of(body: Mapping[str, Any]) -> dict[str, str]:
    """The files of a machine's first boot, by path, out of the call that made it."""
    data = unpacked(base64.b64decode(body["properties"]["osProfile"]["customData"]))
    return {file["path"]: file["content"] for file in yaml.safe_load(data)["write_files"]}


class AgentProcesses:
    """The agent of every running machine, in a process of its own that dies with the machine."""

    def __init__(self, stand_in: AzureStandIn, directory: Path, environment: Mapping[str, str]) -> None:
        self._stand_in, self._directory, self._environment = stand_in, directory, environment
        self._agents: dict[str, asyncio.subprocess.Process] = {}

    async def keep(self) -> None:
        """Follow the machines for ever."""
        while True:
            found = (await asyncio.to_thread(self._stand_in.order, "machines"))["machines"]
            running = {machine["id"] for machine in found if machine["state"] == "running"}
            for node in running - self._agents.keys():
                self._agents[node] = await self._start(node)
            for node in self._agents.keys() - running:
                await _kill(self._agents.pop(node))
            await asyncio.sleep(_FOLLOW)

    async def _start(self, node: str) -> asyncio.subprocess.Process:
        bodies = (await asyncio.to_thread(self._stand_in.order, "calls"))["bodies"]
        home = self._directory / node
        files = files_of(bodies[node])
        for path, content in files.items():
            if path.startswith(f"{_HOME}/"):
                file = home / path.removeprefix(f"{_HOME}/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content)
        (home / "key").write_text(files[f"{_HOME}/agent.key"])
        unit = files["/etc/systemd/system/orchestrator-agent.service"]
        started = re.search(r"^ExecStart=/usr/bin/python3 (.*)$", unit, re.MULTILINE)
        assert started is not None, unit
        words = started[1].replace(_HOME, str(home)).replace("${CREDENTIALS_DIRECTORY}", str(home))
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *shlex.split(words),
            *("--imds", f"{self._stand_in.url}/_imds/{node}", "--nvml", "off", "--nvidia-smi", "true"),
            *("--kernel-log", os.devnull),
            cwd=home,
            env={**self._environment, "PYTHONPATH": str(home)},
            preexec_fn=die_with_parent,
        )

    async def end(self) -> None:
        """Kill every agent."""
        for agent in self._agents.values():
            await _kill(agent)


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


@contextlib.asynccontextmanager
async def kept_agents(agents: AgentProcesses) -> AsyncIterator[None]:
    """Agents follow the machines meanwhile, and are gone afterwards."""
    keeping = asyncio.create_task(agents.keep())
    try:
        yield
        if keeping.done():
            keeping.result()
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        await agents.end()
