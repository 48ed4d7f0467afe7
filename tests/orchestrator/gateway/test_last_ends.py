"""How requests end where nobody else is free, the target has left the set, or the client is slow."""

from __future__ import annotations

import asyncio
import json

import pytest

FULL = 1  # request that a target may hold


@pytest.fixture
async def beside_a_full_one(upstreams, gateways, ask, behave, eventually):
    """A gateway with a target of a behaviour and one that is full: `await beside_a_full_one(behaviour)`."""
    holding = []

    async def start(behaviour, **settings):
        full = await upstreams("full", behave.silent)
        running = await gateways(full, max_in_flight=FULL, health_interval=30.0, **settings)
        for _ in range(2 * FULL):  # as many as those find room for that lost their target
            entry = next(iter(running.lane.table))
            running.lane.table.take(entry)
            holding.append((running.lane.table, entry))
        await running.push(full, await upstreams("other", behaviour))
        await eventually(running.all_checked)
        return running

    yield start
    for table, entry in holding:
        table.give(entry)


async def test_what_a_target_said_is_given_when_nobody_else_takes_the_request(beside_a_full_one, ask, behave):
    busy = behave.status("429 Too Many Requests", "slow down", "RateLimitError")
    running = await beside_a_full_one(busy, queue_deadline=0.3)
    reply = await ask(running)
    assert (reply.status, reply.error["message"]) == (429, "slow down")
    state = await running.state()
    assert (state["totals"]["requests_client_error"], state["active"]) == (1, 0)
    async with asyncio.timeout(5):
        await running.gateway._proxy.wait_idle()


async def test_an_answer_that_is_not_whole_is_never_given(beside_a_full_one, ask, behave):
    running = await beside_a_full_one(
        behave.abort_plain, queue_deadline=0.3, breaker_failures=1, breaker_open=60.0
    )
    reply = await ask(running)
    assert (reply.status, reply.error["code"]) == (503, "no_target")


async def test_what_is_the_requests_own_fault_is_told_at_once_where_nobody_is_free(
    beside_a_full_one, ask, behave
):
    wrong = behave.status("400 Bad Request", "no such field", "BadRequestError")
    running = await beside_a_full_one(wrong, queue_deadline=1000.0)
    assert (await ask(running)).status == 400
    assert (await running.state())["totals"]["retries"] == 0


@pytest.mark.parametrize("ends", [True, False])
async def test_a_finished_stream_whose_target_then_says_nothing_is_whole(
    upstreams, gateways, ask, behave, ends
):
    async def then_silent(talk):
        await talk.text("", "stop")
        if ends:
            await talk.done()
        await behave.silent(talk)

    bad = await upstreams("bad", behave.after_tokens(2, then_silent))
    running = await gateways(bad, idle_timeout=0.3)
    reply = await ask(running, stream=True, on_first=bad.go_on)
    assert (reply.said, reply.events[-1], reply.events.count("[DONE]")) == ("t0 t1 ", "[DONE]", 1)
    totals = (await running.state())["totals"]
    assert (totals["streams_cut"], totals["requests_ok"]) == (0, 1)


async def test_what_a_target_holds_that_left_the_set_is_saved_too(
    upstreams, gateways, ask, behave, eventually
):
    leaving = await upstreams("leaving", behave.silent)
    staying = await upstreams("staying")
    running = await gateways(leaving, health_timeout=0.4)
    asking = asyncio.create_task(ask(running))
    await eventually(lambda: leaving.in_flight == 1)
    await running.push(staying)
    await eventually(running.all_checked)
    await leaving.stop_listening()
    assert (await asking).headers["X-Orchestrator-Node"] == "staying"
    await eventually(lambda: len(running.lane.health._watches) == 1)


async def test_a_client_that_reads_late_gets_everything(upstreams, gateways, client, behave, eventually):
    event = "x" * 65_536

    async def much(talk):
        await talk.start_stream()
        for _ in range(400):
            await talk.text(event)
        await talk.text("", "stop")
        await talk.done()
        await talk.end_stream()

    running = await gateways(await upstreams("node", much), stall_least=0.2, idle_timeout=0.4)
    loop, held = asyncio.get_running_loop(), running.lane._watch._held
    async with client.post(running.url + "/v1/chat/completions", json={"stream": True}) as answer:
        await eventually(lambda: any(leash.clock.at_client for leash in held))
        until = loop.time() + 1.5
        await eventually(lambda: loop.time() > until)
        text = await answer.text()
    assert text.endswith("data: [DONE]\n\n")
    assert text.count(event) == 400
    assert "error" not in json.dumps(text[-200:])
