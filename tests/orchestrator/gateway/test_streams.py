"""Streams pass through event by event; one that breaks in the middle ends with an error, never cleanly."""

from __future__ import annotations

import asyncio
import json

import pytest

WIRES = ("http", "https")


def _cuts(behave):
    return {
        "reset": (behave.then_reset, "disconnected"),
        "half an event": (behave.then_half_event, "disconnected"),
        "bad chunk": (behave.then_bad_chunk, "bad_response"),
        "error event": (behave.then_error, "engine_error"),
        "abort": (behave.then_abort, "aborted"),
        "DONE alone": (behave.then_done_only, "incomplete"),
        "clean end": (behave.then_end, "incomplete"),
        "silence": (behave.silent, "stalled"),
    }


@pytest.mark.parametrize(
    "way",
    ["reset", "half an event", "bad chunk", "error event", "abort", "DONE alone", "clean end", "silence"],
)
async def test_a_broken_stream_ends_with_an_error_event(upstreams, gateways, ask, behave, way):
    behaviour, reason = _cuts(behave)[way]
    bad = await upstreams("bad", behave.after_tokens(4, behaviour))
    running = await gateways(bad, **({"idle_timeout": 0.3} if way == "silence" else {}))
    reply = await ask(running, stream=True, headers={"X-Request-Id": "r-1"}, on_first=bad.go_on)
    assert reply.status == 200
    assert reply.said == "t0 t1 t2 t3 "
    assert "[DONE]" not in reply.events
    assert len(reply.events) == 6
    error = reply.events[-1]["error"]
    assert (error["code"], error["reason"], error["request_id"]) == ("stream_interrupted", reason, "r-1")
    assert error["tokens"] is None
    if way == "bad chunk":
        assert "the rest of the answer is not HTTP)" in error["message"]
    totals = (await running.state())["totals"]
    assert (totals["streams_cut"], totals["requests_cut"], totals["retries"]) == (1, 1, 0)
    assert len(bad.seen) == 1
    metrics = running.gateway.metrics.exposition().decode()
    assert f'orchestrator_gateway_streams_cut_total{{reason="{reason}"}} 1.0' in metrics


async def test_a_plain_answer_whose_framing_breaks_is_asked_elsewhere(upstreams, gateways, ask, behave):
    async def badly_framed(talk):
        await talk.start_stream("application/json")
        await talk.chunk(b'{"choices":[')
        await talk.upstream.go_on.wait()
        await behave.then_bad_chunk(talk)

    bad = await upstreams("bad", badly_framed)
    running = await gateways(bad)
    asked = asyncio.create_task(ask(running))
    while not bad.seen:  # noqa: ASYNC110 - until it works on the request
        await asyncio.sleep(0.005)
    good = await upstreams("good")
    await running.push(bad, good)
    await asyncio.sleep(0.05)
    bad.go_on.set()
    reply = await asked
    assert (reply.status, len(bad.seen)) == (200, 1)
    assert "from good" in reply.text


async def test_tokens_so_far_are_told_when_the_engine_tells(upstreams, gateways, ask, behave):
    async def with_usage(talk):
        await talk.start_stream()
        for number in (1, 2, 3):
            choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
            await talk.event({"choices": [choice], "usage": {"completion_tokens": number}})
        await talk.upstream.go_on.wait()
        await behave.then_reset(talk)

    bad = await upstreams("bad", with_usage)
    running = await gateways(bad)
    reply = await ask(running, stream=True, on_first=bad.go_on)
    assert reply.events[-1]["error"]["tokens"] == 3


async def test_a_finished_stream_that_breaks_after_its_end_is_whole(upstreams, gateways, ask, behave):
    bad = await upstreams("bad", behave.after_tokens(2, behave.then_finish_and_reset))
    running = await gateways(bad)
    reply = await ask(running, stream=True, on_first=bad.go_on)
    assert reply.said == "t0 t1 "
    assert reply.events[-1] == "[DONE]"
    totals = (await running.state())["totals"]
    assert (totals["streams_cut"], totals["requests_ok"]) == (0, 1)


async def test_every_choice_must_be_finished(upstreams, gateways, ask, behave):
    async def two_choices(talk):
        await talk.start_stream()
        await talk.text("a", index=0)
        await talk.text("b", index=1)
        await talk.text("", "stop", index=0)
        await talk.upstream.go_on.wait()
        if json.loads(talk.request.body)["model"] != "broken":
            await talk.text("", "length", index=1)
        await talk.done()
        await talk.end_stream()

    node = await upstreams("node", two_choices)
    running = await gateways(node)
    whole = await ask(running, stream=True, n=2, on_first=node.go_on)
    assert whole.events[-1] == "[DONE]"
    node.go_on.clear()
    cut = await ask(running, stream=True, n=2, model="broken", on_first=node.go_on)
    assert cut.events[-1]["error"]["reason"] == "incomplete"


async def test_chunks_arrive_one_by_one(upstreams, gateways, client, behave):
    steps = asyncio.Queue()

    async def stepwise(talk):
        await talk.start_stream()
        while (text := await steps.get()) is not None:
            await talk.text(text)
        await talk.text("", "stop")
        await talk.done()
        await talk.end_stream()

    running = await gateways(await upstreams("node", stepwise))
    await steps.put("one")
    async with client.post(running.url + "/v1/chat/completions", json={"stream": True}) as answer:
        for text, following in (("one", "two"), ("two", "three"), ("three", None)):
            event = await answer.content.readuntil(b"\n\n")
            assert json.loads(event[6:])["choices"][0]["delta"]["content"] == text
            await steps.put(following)
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")


async def test_events_split_anywhere_are_passed_on_whole_and_unchanged(upstreams, gateways, ask, behave):
    text = b'\xc3\xa9 \\"error\\" \\"finish_reason\\" [DONE]'
    choice = b'{"index":0,"delta":{"content":"%s"},"finish_reason":null}' % text
    stream = b'data: {"choices":[%s]}\n\n' % choice * 5
    stream += b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

    async def byte_by_byte(talk):
        await talk.start_stream()
        for at in range(0, len(stream), 7):
            await talk.chunk(stream[at : at + 7])
        await talk.end_stream()

    running = await gateways(await upstreams("node", byte_by_byte))
    reply = await ask(running, stream=True)
    assert reply.text.encode() == stream


async def test_a_stream_of_another_kind_is_passed_on_as_it_is(upstreams, gateways, client):
    events = b"event: one\ndata: {}\n\nevent: two\ndata: plain\n\n"

    async def unknown(talk):
        await talk.start_stream()
        await talk.chunk(events)
        await talk.end_stream()

    running = await gateways(await upstreams("node", unknown))
    async with client.post(running.url + "/v1/something", json={"stream": True}) as answer:
        assert await answer.read() == events
    assert (await running.state())["totals"]["streams_cut"] == 0


async def test_a_stream_of_another_kind_that_breaks_says_so(upstreams, gateways, client, behave):
    async def unknown(talk):
        await talk.start_stream()
        await talk.chunk(b"event: one\ndata: {}\n\n")
        await behave.then_reset(talk)

    running = await gateways(await upstreams("node", unknown))
    async with client.post(running.url + "/v1/something", json={"stream": True}) as answer:
        text = await answer.text()
    assert json.loads(text.split("data: ")[-1])["error"]["code"] == "stream_interrupted"


async def test_bytes_of_another_kind_pass_as_they_come(upstreams, gateways, client, behave):
    gate = asyncio.Event()

    async def audio(talk):
        await talk.start_stream("audio/mpeg")
        await talk.chunk(b"first")
        await gate.wait()
        await talk.chunk(b"second")
        await talk.end_stream()

    running = await gateways(await upstreams("node", audio))
    async with client.post(running.url + "/v1/audio/speech", json={}) as answer:
        assert await answer.content.readany() == b"first"
        gate.set()
        assert await answer.read() == b"second"


async def test_bytes_of_another_kind_that_break_break_the_connection(upstreams, gateways, client, behave):
    import aiohttp

    async def audio(talk):
        await talk.start_stream("audio/mpeg")
        await talk.chunk(b"first")
        await behave.then_reset(talk)

    running = await gateways(await upstreams("node", audio))
    async with client.post(running.url + "/v1/audio/speech", json={}) as answer:
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    assert (await running.state())["totals"]["requests_cut"] == 1


async def test_a_plain_answer_longer_than_the_limit_is_passed_through(upstreams, gateways, client):
    body = json.dumps({"data": "x" * 50_000}).encode()

    async def long(talk):
        await talk.reply("200 OK", body)

    running = await gateways(await upstreams("node", long), answer_limit=10_000)
    async with client.get(running.url + "/v1/models") as answer:
        assert answer.headers["Content-Length"] == str(len(body))
        assert await answer.read() == body


@pytest.mark.parametrize("stage", ["before the first token", "in the stream", "plain"])
async def test_a_client_that_leaves_frees_the_target(upstreams, gateways, client, behave, eventually, stage):
    behaviour = behave.after_tokens(2, behave.silent) if stage == "in the stream" else behave.silent
    node = await upstreams("node", behaviour)
    running = await gateways(node)

    node.go_on.set()

    async def leave():
        body = {"stream": stage != "plain"}
        async with client.post(running.url + "/v1/chat/completions", json=body) as answer:
            await answer.read()

    asking = asyncio.create_task(leave())
    await eventually(lambda: node.in_flight == 1)
    asking.cancel()
    await eventually(lambda: node.left == 1)

    async def free():
        state = await running.state()
        return state["targets"][0]["in_flight"] == 0 and state["totals"]["requests_cancelled"] == 1

    await eventually(free)
    assert (await running.state())["targets"][0]["breaker"] == "closed"


async def test_a_slow_client_is_not_taken_for_a_silent_engine(
    upstreams, gateways, client, behave, eventually
):
    size, count = 100_000, 100  # more than all the buffers on the way hold

    async def fast(talk):
        await talk.start_stream()
        for _ in range(count):
            await talk.text("x" * size)
        await talk.text("", "stop")
        await talk.done()
        await talk.end_stream()

    node = await upstreams("node", fast)
    running = await gateways(node, idle_timeout=1.0)
    async with client.post(running.url + "/v1/chat/completions", json={"stream": True}) as answer:
        await answer.content.readany()
        await asyncio.sleep(1.3)
        text = await answer.text()
    assert text.endswith("data: [DONE]\n\n")
    assert (await running.state())["totals"]["streams_cut"] == 0
