"""What real llama.cpp servers used: the gateway's rows are the engine's own counters, to the token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from llama_servers import LlamaServer, running_llama
from usage_load import CHAT, Told, forms

from orchestrator.gateway.accounts.usage_file import read_usage
from policies.cost_rows import UsageHour
from policies.model import TargetSpec

pytestmark = [pytest.mark.slow, pytest.mark.llamacpp]

PATIENCE = 60.0
PROMPTS = [f"tell me of node {n}, and of all that it has served since it was launched" for n in range(3)]


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


def counters(server: LlamaServer) -> tuple[int, int, int]:
    """Tokens of prompts that were computed, and that came from the cache, and tokens generated."""
    names = ("prompt_tokens_total", "prompt_tokens_cached_total", "tokens_predicted_total")
    return tuple(int(server.metric(name)) for name in names)  # type: ignore[return-value]


async def rows(running: Any, file: Path) -> list[UsageHour]:
    await running.stop()
    return read_usage(file, 0, 10**9)


async def test_every_form_counts_what_the_engine_counts(
    gateways: Any, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Plain and streamed, with the usage asked for and not, fresh and cached prompts."""
    told, file = Told(), tmp_path / "usage.db"
    with running_llama(tmp_path, name="tiny", slots=1) as server:
        running = await gateways(TargetSpec(id="a", address=server.address), usage_file=file)
        for prompt in PROMPTS:
            for path, body in forms(prompt, 12):
                await told.ask(client, running.url, path, body)
        (row,) = await rows(running, file)
        fresh, cached, output = counters(server)
    assert told.silent == [CHAT] * len(PROMPTS)  # a text completion of llama.cpp tells it unasked
    assert (row.requests, row.failed, row.estimated) == (told.requests, 0, 0)
    assert (row.fresh, row.cached, row.written, row.output) == (fresh, cached, 0, output)
    assert cached > 0
    assert output > 2 * told.requests


async def test_embeddings_count_the_tokens_of_their_prompts(
    gateways: Any, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    told, file = Told(), tmp_path / "usage.db"
    with running_llama(tmp_path, name="tiny", task="embed") as server:
        running = await gateways(TargetSpec(id="a", address=server.address), usage_file=file)
        for inputs in ("some words", ["some words", "and others that are more"]):
            await told.ask(client, running.url, "/v1/embeddings", {"model": "tiny", "input": inputs})
        (row,) = await rows(running, file)
    assert (row.requests, row.estimated, row.output) == (2, 0, 0)
    assert row.fresh == told.prompt > 0


async def test_of_a_client_that_leaves_what_came_is_an_estimate(
    gateways: Any, client: aiohttp.ClientSession, tmp_path: Path, eventually: Any
) -> None:
    file = tmp_path / "usage.db"
    with running_llama(tmp_path, name="tiny", slots=1) as server:
        running = await gateways(TargetSpec(id="a", address=server.address), usage_file=file)
        body = {
            "model": "tiny",
            "prompt": PROMPTS[0],
            "max_tokens": 16000,
            "stream": True,
            "ignore_eos": True,
        }
        async with client.post(f"{running.url}/v1/completions", json=body) as answer:
            got = b""
            while got.count(b"finish_reason") < 100:
                got += await answer.content.readany()
        await eventually(lambda: running.gateway.metrics.active == 0)
        async with asyncio.timeout(PATIENCE):
            while server.metric("requests_processing"):  # noqa: ASYNC110 - the engine tells nobody
                await asyncio.sleep(0.05)
        (row,) = await rows(running, file)
        _, _, output = counters(server)
    assert (row.requests, row.failed, row.estimated) == (1, 0, 1)
    assert 100 <= row.output <= output
    assert row.fresh > 0
