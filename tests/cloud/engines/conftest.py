"""Simulated servers as processes, and a client for them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest

PATIENCE = 60.0  # s for anything that happens within moments on an idle machine


@dataclass
class Simulated:
    """One server process. `address` is known once it says that it is ready."""

    process: asyncio.subprocess.Process
    address: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    async def listen_until(self, word: str) -> str:
        """Read its log until a line holds the word."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            async for raw in self.process.stderr:
                line = raw.decode().strip()
                self.said.append(line)
                if word in line:
                    return line
        raise AssertionError(f"it ended without saying {word!r}: {self.said}")

    async def ready(self) -> Simulated:
        line = await self.listen_until("ready on")
        self.address = line.rpartition(" ")[2]
        return self

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


Launch = Callable[..., Awaitable[Simulated]]


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    """Start a server with these flags on a free port; every one of them is dead at the end."""
    started: list[Simulated] = []

    async def start(*flags: str, wait: bool = True) -> Simulated:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "cloud.engines.simulated_server", "--model", "none", "--served-model-name", "tiny"),
            *("--port", "0", *flags),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        server = Simulated(process)
        started.append(server)
        return await server.ready() if wait else server

    yield start
    for server in started:
        with contextlib.suppress(ProcessLookupError):
            server.process.kill()
        await server.process.wait()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session
