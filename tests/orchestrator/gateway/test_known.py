"""A new target is asked what it can do before it gets streams that could not be continued otherwise."""

from __future__ import annotations

import asyncio

import pytest


@pytest.fixture
def known_within(monkeypatch):
    def set_to(seconds):
        for module in ("health", "tries"):
            monkeypatch.setattr(f"orchestrator.gateway.{module}.KNOWN_WITHIN", seconds)

    return set_to


async def test_a_stream_waits_for_what_a_new_target_can_do(
    upstreams, gateways, ask, eventually, known_within
):
    known_within(60.0)
    node = await upstreams("node")
    node.tells.clear()
    running = await gateways()
    await running.push(node)
    stream = asyncio.create_task(ask(running, stream=True))
    await eventually(lambda: node.questions)
    assert (await ask(running)).status == 200
    assert len(node.seen) == 1
    assert (await running.targets())["node"]["state"] == "initial"
    node.tells.set()
    assert (await stream).events[-1] == "[DONE]"
    assert (await running.targets())["node"]["state"] == "healthy"


async def test_a_target_that_never_says_what_it_can_gets_its_requests(upstreams, gateways, ask, known_within):
    known_within(0.02)
    node = await upstreams("node")
    node.tells.clear()
    running = await gateways(node)
    assert (await running.targets())["node"]["state"] == "healthy"
    assert (await ask(running, stream=True)).events[-1] == "[DONE]"


async def test_a_target_that_comes_back_is_asked_again(upstreams, gateways, eventually):
    node = await upstreams("node")
    running = await gateways(node)

    async def becomes(state):
        async def is_so():
            return (await running.targets())["node"]["state"] == state

        await eventually(is_so)

    assert node.questions == 1
    node.health = "503 Service Unavailable"
    await becomes("unhealthy")
    node.health = "200 OK"
    await becomes("healthy")
    assert node.questions == 2


async def test_a_target_that_does_not_answer_is_asked_again(upstreams, gateways, eventually):
    node = await upstreams("node")
    node.mute = 2
    running = await gateways(node)

    async def told():
        return ((await running.targets())["node"]["continuation"] or {}).get(
            "why"
        ) == "/version answered 404: "

    await eventually(told)
    assert node.questions == 3
