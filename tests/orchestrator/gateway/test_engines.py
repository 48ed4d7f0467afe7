"""The gateway in front of simulated engines, which fail and shut down as vLLM was measured to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections import Counter

import aiohttp
import pytest

from policies.model import TargetSpec

pytestmark = pytest.mark.slow

PATIENCE = 40.0


@contextlib.asynccontextmanager
async def engine(*flags: str):
    """A simulated engine process and its address."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cloud.engines.simulated_server",
        *("--model", "m", "--port", "0", "--tokens-per-second", "400", "--time-to-first-token", "0.01"),
        *("--max-num-seqs", "64", "--shutdown-timeout", "30", "--faults", *flags),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            while not (found := re.search(rb"ready on (\S+)", await child.stderr.readline())):
                assert child.returncode is None
        yield child, found.group(1).decode()
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


class Clients:
    """Ask without a pause, half of them for streams, and sort what comes back."""

    def __init__(self, url: str, prompt: object) -> None:
        self.url = url
        self.prompt = prompt
        self.got: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()
        self.going_on = True

    async def __aenter__(self) -> Clients:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE))
        self._tasks = [asyncio.create_task(self._client(number % 2 == 0)) for number in range(12)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.going_on = False
        await asyncio.gather(*self._tasks)
        await self._session.close()

    async def more(self, count: int) -> None:
        goal = self.got.total() + count
        async with asyncio.timeout(PATIENCE):
            while self.got.total() < goal:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _client(self, stream: bool) -> None:
        body = {"model": "m", "prompt": self.prompt, "max_tokens": 30, "stream": stream}
        while self.going_on:
            async with self._session.post(self.url + "/v1/completions", json=body) as answer:
                text = await answer.text()
            self.nodes[answer.headers.get("X-Orchestrator-Node", "")] += 1
            self.got[self._judge(answer.status, text, stream)] += 1

    @staticmethod
    def _judge(status: int, text: str, stream: bool) -> str:
        if status != 200:
            return f"{status} {text[:100]}"
        if not stream:
            return "plain" if json.loads(text)["choices"][0]["finish_reason"] == "length" else text
        if text.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in text:
            return "stream"
        return "cut" if "stream_interrupted" in text else text


@pytest.mark.parametrize(("answer", "prompt"), [("abort", [1, 2, 3]), ("error", "hello")])
async def test_an_engine_that_shuts_down_under_load_costs_nothing(gateways, answer, prompt):
    async with engine("--drain-answer", answer) as (leaving, a), engine() as (_, b):
        running = await gateways(TargetSpec(id="a", address=a), TargetSpec(id="b", address=b))
        async with Clients(running.url, prompt) as clients:
            await clients.more(40)
            leaving.send_signal(signal.SIGTERM)
            await clients.more(80)
            await asyncio.wait_for(leaving.wait(), PATIENCE)
            await clients.more(20)
        assert set(clients.got) == {"plain", "stream"}
        assert set(clients.nodes) == {"a", "b"}


async def test_an_engine_that_crashes_cuts_its_streams_and_nothing_else(gateways, client):
    async with engine() as (_, a), engine() as (_, b):
        running = await gateways(TargetSpec(id="a", address=a), TargetSpec(id="b", address=b))
        async with Clients(running.url, "hello") as clients:
            await clients.more(40)
            async with client.post(f"http://{a}/faults/crash-engine") as answer:
                assert answer.status < 300
            await clients.more(80)
        assert set(clients.got) <= {"plain", "stream", "cut"}
        assert clients.got["cut"] <= 6
        totals = (await running.state())["totals"]
        assert totals["streams_cut"] == clients.got["cut"]


async def test_a_full_engine_hands_over_to_another(gateways):
    async with engine("--max-num-queued-reqs", "1") as (_, a), engine() as (_, b):
        running = await gateways(TargetSpec(id="a", address=a), TargetSpec(id="b", address=b))
        async with Clients(running.url, "hello") as clients:
            await clients.more(60)
        assert set(clients.got) == {"plain", "stream"}
        assert set(clients.nodes) == {"a", "b"}
