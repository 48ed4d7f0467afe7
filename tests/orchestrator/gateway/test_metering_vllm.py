"""What a real vLLM used: the gateway's rows are the engine's own counters, to the token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from usage_load import ASKS, CHAT, RESPONSES, TEXT, Told, forms
from vllm_server import counter, running_vllm

from orchestrator.gateway.accounts.usage_file import read_usage
from policies.cost_rows import UsageHour
from policies.model import TargetSpec

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(600)]

LONG = (
    "some words of a prompt that is read again and again by one and all " * 12
)  # several blocks of the cache


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_vllm(tmp_path_factory.mktemp("vllm")) as address:
        yield address


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


@pytest.fixture
async def running(engine: str, gateways: Any, eventually: Any, tmp_path: Path) -> Any:
    one = await gateways(TargetSpec(id="v", address=engine), usage_file=tmp_path / "usage.db")

    async def able() -> bool:
        return ((await one.targets())["v"]["continuation"] or {}).get("way") == "derender"

    await eventually(able)
    return one


def counters(engine: str) -> list[int]:
    """Tokens of prompts, those of them that came from the cache, and tokens generated."""
    names = ("prompt_tokens_total", "prompt_tokens_cached_total", "generation_tokens_total")
    return [int(counter(engine, name)) for name in names]


async def rows(running: Any, tmp_path: Path) -> list[UsageHour]:
    await running.stop()
    return read_usage(tmp_path / "usage.db", 0, 10**9)


async def test_every_form_counts_what_the_engine_counts(
    engine: str, running: Any, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Plain and streamed, with the usage asked for and not, fresh and cached prompts, several at once."""
    told, before = Told(), counters(engine)
    asked = [*forms(LONG, 12), *forms("a short one", 9)]
    respond = {"model": "tiny", "input": LONG, "max_output_tokens": 7}
    asked += [(RESPONSES, respond), (RESPONSES, {**respond, "stream": True})]
    asked.append((TEXT, {"model": "tiny", "prompt": ["one", "two"], "max_tokens": 4, "stream": True}))
    for path, body in asked:
        await told.ask(client, running.url, path, body)
    await asyncio.gather(*(told.ask(client, running.url, path, body) for path, body in asked[:8]))
    (row,) = await rows(running, tmp_path)
    prompt, cached, output = (now - then for now, then in zip(counters(engine), before, strict=True))
    assert (row.requests, row.failed, row.estimated) == (told.requests, 0, 0)
    assert (row.fresh + row.cached + row.written, row.cached, row.output) == (prompt, cached, output)
    assert cached > 0
    assert sorted(told.silent) == sorted([CHAT] * 3 + [TEXT] * 4)  # those who did not ask


async def test_a_prompt_of_several_answers_counts_once_as_the_usage_says(
    engine: str, running: Any, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """The engine's counters have it once for each answer."""
    told, before = Told(), counters(engine)
    chat = {**forms(LONG, 5)[0][1], "n": 2, "temperature": 1}
    for body in (chat, {**chat, **ASKS, "stream": True}):
        await told.ask(client, running.url, CHAT, body)
    (row,) = await rows(running, tmp_path)
    prompt, _, output = (now - then for now, then in zip(counters(engine), before, strict=True))
    assert (row.requests, row.estimated, told.silent) == (2, 0, [])
    assert (row.fresh + row.cached + row.written, row.cached) == (told.prompt, told.cached)
    assert (prompt, row.output) == (2 * told.prompt, output)


async def test_of_a_client_that_leaves_the_ids_that_came_count(
    engine: str, running: Any, client: aiohttp.ClientSession, tmp_path: Path, eventually: Any
) -> None:
    before = counters(engine)
    body = {"model": "tiny", "prompt": "go on", "max_tokens": 1900, "stream": True, "ignore_eos": True}
    async with client.post(running.url + TEXT, json=body) as answer:
        got = b""
        while got.count(b"finish_reason") < 50:
            got += await answer.content.readany()
    await eventually(lambda: running.gateway.metrics.active == 0)
    async with asyncio.timeout(60):
        while counter(engine, "num_requests_running"):  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.05)
    (row,) = await rows(running, tmp_path)
    prompt, _, output = (now - then for now, then in zip(counters(engine), before, strict=True))
    assert (row.requests, row.failed, row.estimated, row.fresh) == (1, 0, 1, prompt)
    assert 50 <= row.output <= output
