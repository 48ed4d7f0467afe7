"""Anthropic's SDK in front of the real gateway, and chat engines behind it that break."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from policies.model import TargetSpec
from tests.support.chat_answers import ChatAnswer
from tests.support.gateway_rig import MODEL, Engine

ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def says(answer: ChatAnswer):
    """An engine that says this, plain or streamed, whichever is asked for."""

    async def behave(talk):
        if not json.loads(talk.request.body).get("stream"):
            await talk.reply("200 OK", answer.plain())
            return
        await talk.start_stream()
        for event in answer.events():
            await talk.chunk(event)
        await talk.end_stream()

    return behave


async def listen(client, texts, engine):
    """Note every text of a stream; at the first the engine goes on to break."""
    async with client.messages.stream(**ASK) as stream:
        async for text in stream.text_stream:
            texts.append(text)
            engine.go_on.set()


@pytest.fixture
async def claude():
    """Make a client: `claude(running, api_key="k")`."""
    made = []

    def make(running, **options):
        one = anthropic.AsyncAnthropic(base_url=running.url, max_retries=0, timeout=20, **options)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()


async def test_answers_are_messages_and_engines_see_chat(upstreams, gateways, claude):
    answer = ChatAnswer("Hello there", "hm", [("weather", '{"city": "Bern"}')], "tool_calls")
    engine = await upstreams("a", says(answer))
    client = claude(await gateways(engine), api_key="sk-1")
    whole = await client.messages.create(**ASK)
    async with client.messages.stream(**ASK, extra_headers={"X-Request-Id": "r-2"}) as stream:
        streamed = await stream.get_final_message()
        assert stream.request_id == "r-2"
    assert whole._request_id
    assert streamed.to_dict(exclude_none=True) == whole.to_dict(exclude_none=True)
    assert (whole.content[1].text, whole.stop_reason) == ("Hello there", "tool_use")
    assert [seen.path for seen in engine.seen] == ["/v1/chat/completions"] * 2
    for seen in engine.seen:
        assert seen.headers["authorization"] == "Bearer sk-1"
        assert "x-api-key" not in seen.headers


async def test_tokens_are_counted_by_the_engine(upstreams, gateways, claude):
    async def tokenize(talk):
        await talk.json({"count": 3, "tokens": [1, 2, 3]})

    engine = await upstreams("a", tokenize)
    client = claude(await gateways(engine), auth_token="sk-2")
    counted = await client.messages.count_tokens(model="tiny", messages=ASK["messages"])
    assert counted.input_tokens == 3
    assert engine.seen[0].path == "/tokenize"
    assert engine.seen[0].headers["authorization"] == "Bearer sk-2"


@pytest.mark.parametrize("way", ["reset_at_once", "error_first", "abort_stream", "silent_after_role"])
async def test_a_stream_that_breaks_before_its_text_is_answered_elsewhere(
    upstreams, gateways, claude, behave, way
):
    bad = await upstreams("bad", getattr(behave, way))
    good = await upstreams("good", says(ChatAnswer("Hello")))
    settings = {"first_token_timeout": 0.3} if way == "silent_after_role" else {}
    client = claude(await gateways(bad, good, **settings), api_key="k")
    for _ in range(2):  # each of the two is the first choice once
        async with client.messages.stream(**ASK) as stream:
            assert (await stream.get_final_message()).content[0].text == "Hello"
    assert bad.seen


@pytest.mark.parametrize("way", ["then_reset", "then_error", "then_abort", "then_done_only", "then_end"])
async def test_a_stream_that_breaks_in_its_text_raises(upstreams, gateways, claude, behave, way):
    bad = await upstreams("bad", behave.after_tokens(3, getattr(behave, way)))
    client = claude(await gateways(bad), api_key="k")
    texts: list[str] = []
    with pytest.raises(anthropic.APIStatusError) as caught:
        await listen(client, texts, bad)
    assert "".join(texts) == "t0 t1 t2 "
    assert caught.value.type == "api_error"
    assert "not complete" in str(caught.value)


async def test_an_engines_error_is_anthropics(upstreams, gateways, claude, behave):
    engine = await upstreams("a", behave.status("404 Not Found", "no such model", "NotFoundError"))
    client = claude(await gateways(engine), api_key="k")
    with pytest.raises(anthropic.NotFoundError, match="no such model") as caught:
        await client.messages.create(**ASK)
    assert caught.value.type == "not_found_error"
    assert caught.value.body["request_id"] == caught.value.request_id


async def test_what_cannot_be_carried_is_refused_before_any_engine(upstreams, gateways, claude):
    engine = await upstreams("a", says(ChatAnswer("Hello")))
    client = claude(await gateways(engine), api_key="k")
    with pytest.raises(anthropic.BadRequestError, match="container") as caught:
        await client.messages.create(**ASK, extra_body={"container": "c1"})
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["request_id"] == caught.value.request_id
    assert not engine.seen


async def test_a_gateway_without_targets_says_so_in_anthropics_shape(gateways, claude):
    client = claude(await gateways(queue_deadline=0.05), api_key="k")
    with pytest.raises(anthropic.ServiceUnavailableError) as caught:
        await client.messages.create(**ASK)
    assert caught.value.type == "overloaded_error"
    assert caught.value.body["request_id"] == caught.value.request_id
    assert json.loads(caught.value.response.text)["type"] == "error"


async def test_a_message_goes_on_at_another_node(tmp_path, gateways, claude, eventually):
    """The node that streams it is killed: the client gets the message that it would have got."""
    ask = {**ASK, "max_tokens": 60, "system": "be brief"}
    engines = [
        Engine(name, tmp_path, ("--enable-scale-out", "--tokens-per-second", "50")) for name in ("a", "b")
    ]
    try:
        for engine in engines:
            await engine.start()
        specs = [TargetSpec(id=engine.name, address=engine.address, build="same") for engine in engines]
        running = await gateways(*specs)

        async def probed():
            rows = await running.targets()
            return all((row["continuation"] or {}).get("way") == "derender" for row in rows.values())

        await eventually(probed)
        client = claude(running, api_key="k")
        uncut = await client.messages.create(**{**ask, "model": MODEL})
        async with client.messages.stream(**{**ask, "model": MODEL}) as stream:
            serving = stream.response.headers["x-orchestrator-node"]
            begun = False
            async for _ in stream.text_stream:
                if not begun:
                    await next(engine for engine in engines if engine.name == serving).kill()
                begun = True
            message = await stream.get_final_message()
        whole, cut = (each.to_dict(exclude_none=True) | {"id": ""} for each in (uncut, message))
        assert cut == whole
        assert (await running.state())["totals"]["streams_continued"] == 1
    finally:
        for engine in engines:
            await engine.close()
