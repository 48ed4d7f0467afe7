"""What was used is counted by processes that are replaced, stopped and killed: each token once, none lost."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from gateway_rig import MODEL, OFFERS, Engine, GatewayRig, until

from orchestrator.gateway.accounts.usage_file import read_usage
from policies.cost_rows import UsageHour
from policies.model import TargetSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

OPTIONS = ("--tokens-per-second", "200", "--time-to-first-token", "0.01", *OFFERS)
TOKENS = 40


class World:
    """One engine, gateways that share a usage file, and clients that add up what they are told."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.file = directory / "usage.db"
        self.engine = Engine("n", directory, OPTIONS)
        self.told: Counter[str] = Counter()
        self.session: aiohttp.ClientSession
        self.stopping = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> World:
        self._stack.push_async_callback(self.engine.close)
        await self.engine.start()
        session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=100),
            connector=aiohttp.TCPConnector(force_close=True),  # what is kept would keep an old gateway
        )
        self.session = await self._stack.enter_async_context(session)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def gateway(self, name: str) -> GatewayRig:
        """Another gateway, which keeps its sockets over all its processes."""
        (self._directory / name).mkdir()
        settings = {"usage_file": str(self.file), "linger": 0.1}
        rig = GatewayRig(self._directory / name, settings, kept=True)
        self._stack.push_async_callback(rig.close)
        await self.start(rig)
        return rig

    async def start(self, rig: GatewayRig) -> None:
        await rig.start()
        await rig.apply([TargetSpec(id="n", address=self.engine.address)])

    async def ask(self, rig: GatewayRig, *, stream: bool) -> None:
        """One request, of which all is read."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}], "stream": stream}
        more = {"max_tokens": TOKENS} | ({"stream_options": {"include_usage": True}} if stream else {})
        async with self.session.post(f"{rig.url}/v1/chat/completions", json=body | more) as answer:
            text = await answer.text()
            assert answer.status == 200, text
        rows = [line.removeprefix("data: ") for line in text.splitlines() if '"usage":{' in line]
        usage = json.loads(rows[-1])["usage"]
        self.told += Counter(requests=1, prompt=usage["prompt_tokens"], output=usage["completion_tokens"])

    async def client(self, rig: GatewayRig, *, stream: bool) -> None:
        """Ask without a pause until it is stopped."""
        while not self.stopping.is_set():
            await self.ask(rig, stream=stream)

    def rows(self) -> list[UsageHour]:
        return read_usage(self.file, 0, 10**9)

    def counted(self) -> dict[str, int]:
        """The sums of the file, under the names that `told` has."""
        rows = self.rows()
        assert not any(row.failed or row.estimated for row in rows)
        return {
            "requests": sum(row.requests for row in rows),
            "prompt": sum(row.fresh + row.cached + row.written for row in rows),
            "output": sum(row.output for row in rows),
        }


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as made:
        yield made


async def test_hand_overs_and_stops_under_load_lose_nothing(world: World) -> None:
    """Two gateways, each replaced under load, add to the same rows; both are stopped in the end."""
    rigs = [await world.gateway(name) for name in ("one", "two")]
    clients = [
        asyncio.create_task(world.client(rig, stream=stream))
        for rig in rigs
        for stream in (False, True)
        for _ in range(2)
    ]
    for rig in rigs:
        before = world.told["requests"]

        async def more(than: int = before) -> bool:
            return world.told["requests"] >= than + 20

        await until("requests are answered", more)
        await rig.replace()
    world.stopping.set()
    await asyncio.gather(*clients)
    await asyncio.gather(*(rig.stop() for rig in rigs))
    assert world.counted() == dict(world.told)
    assert world.told["output"] == TOKENS * world.told["requests"]
    assert len({(row.hour, row.backend) for row in world.rows()}) == len(world.rows())


async def test_a_kill_takes_what_is_not_yet_written_and_no_more(world: World) -> None:
    rig = await world.gateway("one")
    for number in range(6):
        await world.ask(rig, stream=number % 2 == 0)

    async def written() -> bool:
        return world.counted() == dict(world.told)

    await until("all of it is in the file", written)
    kept = dict(world.told)
    await world.ask(rig, stream=False)
    await rig.kill()
    after = world.counted()
    assert kept["requests"] <= after["requests"] <= world.told["requests"]
    await world.start(rig)
    await world.ask(rig, stream=True)
    await rig.stop()
    assert world.counted()["requests"] == after["requests"] + 1
    assert world.counted()["output"] == TOKENS * (after["requests"] + 1)
