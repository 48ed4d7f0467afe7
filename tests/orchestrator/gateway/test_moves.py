"""Streams leave a node on purpose before its drain deadline, and nothing of them is lost."""

from __future__ import annotations

import asyncio
import json

import pytest
from gateway_rig import MODEL, Engine

from cloud.clock import SystemClock
from policies.model import TargetPhase, TargetSpec

pytestmark = [pytest.mark.slow, pytest.mark.long]

OPTIONS = ("--tokens-per-second", "40", "--time-to-first-token", "0.01", "--enable-scale-out")
BODY = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "tell me a long story"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}


@pytest.fixture
async def pair(tmp_path):
    both = [Engine(name, tmp_path, OPTIONS) for name in ("a", "b")]
    await asyncio.gather(*(one.start() for one in both))
    yield both
    for one in both:
        await one.close()


def content(text):
    """Text, finish reasons and usage of a stream; errors would show as a key that is missing."""
    rows = [json.loads(part[6:]) for part in text.split("\n\n") if part.startswith("data: {")]
    choices = [row["choices"][0] for row in rows if row["choices"]]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    roles = sum("role" in choice["delta"] for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return said, roles, reasons, [row["usage"] for row in rows if row.get("usage")]


async def streamed(client, url, first=None, **fields):
    async with client.post(url + "/v1/chat/completions", json=BODY | fields) as answer:
        text = (await answer.content.readany()).decode()
        if first is not None:
            first.set_result(answer.headers["X-Orchestrator-Node"])
        return text + (await answer.read()).decode()


def without(specs, node, *, within):
    """The targets when one of them has to be empty in so many seconds."""
    leaving = TargetSpec(
        id=node,
        address=specs[node].address,
        phase=TargetPhase.DRAINING,
        drain_deadline=SystemClock().now() + within,
    )
    return [leaving, *(spec for name, spec in specs.items() if name != node)]


async def able(running):
    rows = (await running.targets()).values()
    return all((row["continuation"] or {}).get("way") == "derender" for row in rows)


@pytest.mark.parametrize(("tokens", "moves"), [(400, True), (20, False)])
async def test_what_would_outlive_the_deadline_moves(pair, gateways, eventually, client, tokens, moves):
    specs = {one.name: TargetSpec(id=one.name, address=one.address) for one in pair}
    running = await gateways(*specs.values(), drain_margin=3.0)
    await eventually(lambda: able(running))
    first = asyncio.get_running_loop().create_future()
    stream = asyncio.create_task(streamed(client, running.url, first, max_tokens=tokens))
    node = await first
    await running.push(*without(specs, node, within=4.0))
    text = await stream
    direct = await streamed(client, f"http://{specs['a'].address}", max_tokens=tokens)
    assert content(text) == content(direct)
    assert text.endswith("data: [DONE]\n\n")
    assert (": continued\n\n" in text) is moves
    totals = (await running.state())["totals"]
    assert (totals["streams_continued"], totals["streams_cut"]) == (int(moves), 0)
    metrics = running.gateway.metrics.exposition().decode()
    assert ('orchestrator_gateway_moved_total{reason="moved"} 1.0' in metrics) is moves
    assert (await running.targets())[node]["breaker"] == "closed"


async def test_nothing_moves_where_continuing_is_off(pair, gateways, eventually, client):
    specs = {one.name: TargetSpec(id=one.name, address=one.address) for one in pair}
    running = await gateways(*specs.values(), drain_margin=3.0, continuation="off")
    await eventually(lambda: able(running))
    first = asyncio.get_running_loop().create_future()
    stream = asyncio.create_task(streamed(client, running.url, first, max_tokens=120))
    node = await first
    await running.push(*without(specs, node, within=2.0))
    assert content(await stream)[2] == ["length"]
    assert (await running.state())["totals"]["retries"] == 0
