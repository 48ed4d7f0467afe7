"""What broken streams used: each token once, whoever generated it, and what was generated in vain apart."""

from __future__ import annotations

import asyncio
import json

import pytest
from gateway_rig import MODEL, OFFERS, Engine

from orchestrator.gateway.accounts.usage_file import read_usage
from policies.model import TargetSpec

pytestmark = pytest.mark.slow

OPTIONS = ("--tokens-per-second", "200", "--time-to-first-token", "0.01", *OFFERS)
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "tell me a long story"}], "stream": True}


@pytest.fixture
async def pair(tmp_path):
    both = [Engine(name, tmp_path, OPTIONS) for name in ("a", "b")]
    await asyncio.gather(*(one.start() for one in both))
    yield {one.name: one for one in both}
    for one in both:
        await one.close()


async def able(running):
    rows = (await running.targets()).values()
    return all((row["continuation"] or {}).get("way") == "derender" for row in rows)


async def streamed(client, url, first=None, **fields):
    async with client.post(url + "/v1/chat/completions", json=BODY | fields) as answer:
        text = (await answer.content.readany()).decode()
        if first is not None:
            first.set_result(answer.headers["X-Orchestrator-Node"])
        return text + (await answer.read()).decode()


def usages(text):
    rows = [json.loads(part[6:]) for part in text.split("\n\n") if part.startswith("data: {")]
    return [row["usage"] for row in rows if row.get("usage")]


@pytest.mark.parametrize("asks", [False, True])
async def test_a_continued_stream_counts_once(pair, gateways, eventually, client, tmp_path, asks):
    file = tmp_path / "usage.db"
    running = await gateways(
        *(TargetSpec(id=one.name, address=one.address) for one in pair.values()), usage_file=file
    )
    await eventually(lambda: able(running))
    options = {"stream_options": {"include_usage": True}} if asks else {}
    first = asyncio.get_running_loop().create_future()
    asking = asyncio.create_task(streamed(client, running.url, first, max_tokens=300, **options))
    await pair[await first].kill()
    text = await asking
    assert ": continued\n\n" in text
    whole = {"include_usage": True}
    other = next(one for one in pair.values() if one.running)
    (told,) = usages(await streamed(client, f"http://{other.address}", max_tokens=300, stream_options=whole))
    assert [each["total_tokens"] for each in usages(text)] == [told["total_tokens"]] * asks
    metrics = running.gateway.metrics.exposition().decode()
    await running.stop()
    (row,) = read_usage(file, 0, 10**9)
    assert (row.requests, row.failed, row.estimated) == (1, 0, 0)
    assert (row.fresh, row.output) == (told["prompt_tokens"], told["completion_tokens"]) == (row.fresh, 300)
    (read_again,) = [line for line in metrics.splitlines() if line.startswith(WASTED + 'prompt"}')]
    assert float(read_again.split()[-1]) >= told["prompt_tokens"]


WASTED = 'orchestrator_gateway_tokens_wasted_total{kind="'


async def test_a_whole_stream_of_an_engine_that_tells_ids_tells_its_usage(
    pair, gateways, eventually, client, tmp_path
):
    """The engine's own usage and the ids are one number."""
    file = tmp_path / "usage.db"
    running = await gateways(TargetSpec(id="a", address=pair["a"].address), usage_file=file)
    await eventually(lambda: able(running))
    assert usages(await streamed(client, running.url, max_tokens=50)) == []
    job_text = await streamed(client, running.url, max_tokens=50, stream_options={"include_usage": True})
    (told,) = usages(job_text)
    await running.stop()
    (row,) = read_usage(file, 0, 10**9)
    assert (row.requests, row.estimated) == (2, 0)
    assert (row.fresh, row.output) == (2 * told["prompt_tokens"], 2 * told["completion_tokens"])


async def test_of_a_client_that_leaves_the_ids_count(pair, gateways, eventually, client, tmp_path):
    file = tmp_path / "usage.db"
    running = await gateways(TargetSpec(id="a", address=pair["a"].address), usage_file=file)
    await eventually(lambda: able(running))
    async with client.post(running.url + "/v1/chat/completions", json=BODY | {"max_tokens": 3000}) as answer:
        got = b""
        while got.count(b"finish_reason") < 40:
            got += await answer.content.readany()
    await eventually(lambda: running.gateway.metrics.active == 0)
    direct = {"max_tokens": 1, "stream_options": {"include_usage": True}}
    (told,) = usages(await streamed(client, f"http://{pair['a'].address}", **direct))
    await running.stop()
    (row,) = read_usage(file, 0, 10**9)
    assert (row.requests, row.failed, row.estimated) == (1, 0, 1)
    assert row.fresh == told["prompt_tokens"]
    assert 39 <= row.output < 3000
