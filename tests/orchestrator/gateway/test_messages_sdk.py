"""The `anthropic` SDK over real sockets, with only the dialect between it and a chat engine's answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from tests.support.chat_answers import ChatAnswer
from tests.support.messages_stand import REQUEST_ID, Script, Stand

HI: Any = [{"role": "user", "content": "hi"}]
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
WEATHER: Any = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    one = Stand()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def client(stand: Stand) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key="k", base_url=stand.url, max_retries=0, timeout=20) as one:
        yield one


async def test_plain_and_streamed_answers(stand, client):
    answer = ChatAnswer("Hello there", reasoning="hm", cached=4)
    stand.script = Script(body=answer.plain(), events=answer.events())
    whole = await client.messages.create(model="tiny", max_tokens=9, messages=HI)
    assert whole._request_id == REQUEST_ID
    async with client.messages.stream(model="tiny", max_tokens=9, messages=HI) as stream:
        pieces = [piece async for piece in stream.text_stream]
        message = await stream.get_final_message()
    assert pieces == ["Hel", "lo ", "the", "re"]
    assert message.to_dict(exclude_none=True) == whole.to_dict(exclude_none=True)
    assert [asked.stream for asked in stand.seen] == [False, True]
    assert all(asked.inner_path == "/v1/chat/completions" for asked in stand.seen)


async def test_a_whole_round_of_tools_with_an_image_in_the_result(stand, client):
    calls = ChatAnswer("I look", "hm", [("weather", '{"city": "Bern"}')], "tool_calls")
    stand.script = Script(events=calls.events())
    async with client.messages.stream(model="tiny", max_tokens=90, messages=HI, tools=[WEATHER]) as stream:
        said = await stream.get_final_message()
    assert said.stop_reason == "tool_use"
    (use,) = [block for block in said.content if block.type == "tool_use"]
    stand.script = Script(body=ChatAnswer("Sunny").plain())
    result = [{"type": "text", "text": "sun"}, {"type": "image", "source": PNG}]
    back: Any = {"type": "tool_result", "tool_use_id": use.id, "content": result}
    turns = [*HI, {"role": "assistant", "content": said.content}, {"role": "user", "content": [back]}]
    last = await client.messages.create(model="tiny", max_tokens=90, messages=turns, tools=[WEATHER])
    assert last.content[0].text == "Sunny"
    inner = stand.seen[-1].inner["messages"]
    function = {"name": "weather", "arguments": '{"city":"Bern"}'}
    assert inner[1] == {
        "role": "assistant",
        "content": "I look",
        "reasoning": "hm",
        "tool_calls": [{"id": use.id, "type": "function", "function": function}],
    }
    assert inner[2] == {"role": "tool", "tool_call_id": use.id, "content": "sun"}
    url = "data:image/png;base64,iVBORw0KGgo="
    assert inner[3] == {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


async def test_the_beta_client_and_structured_answers(stand, client):
    stand.script = Script(body=ChatAnswer('{"a": 1}').plain())
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form: Any = {"format": {"type": "json_schema", "schema": schema}}
    message = await client.beta.messages.create(
        model="tiny", max_tokens=9, messages=HI, output_config=form, betas=["x-2026"]
    )
    assert message.content[0].text == '{"a": 1}'
    assert stand.seen[0].inner["response_format"]["json_schema"]["schema"] == schema
    assert stand.seen[0].inner_path == "/v1/chat/completions"


async def test_counting(stand, client):
    stand.script = Script(body=b'{"count": 12, "max_model_len": 99, "tokens": [1]}')
    count = await client.messages.count_tokens(model="tiny", messages=HI, tools=[WEATHER])
    assert count.input_tokens == 12
    assert stand.seen[0].inner_path == "/tokenize"


async def test_a_broken_stream_raises_and_the_connection_serves_on(stand, client):
    answer = ChatAnswer("Hello there")
    stand.script = Script(events=answer.events()[:4])
    with pytest.raises(anthropic.APIStatusError, match="not complete") as caught:
        async with client.messages.stream(model="tiny", max_tokens=9, messages=HI) as stream:
            await stream.get_final_message()
    assert caught.value.type == "api_error"
    raw = await client.messages.create(model="tiny", max_tokens=9, messages=HI, stream=True)
    with pytest.raises(anthropic.APIStatusError):
        async for _ in raw:
            pass
    stand.script = Script(body=answer.plain())
    whole = await client.messages.create(model="tiny", max_tokens=9, messages=HI)
    assert whole.content[0].text == "Hello there"


async def test_errors_and_refusals_are_anthropics(stand, client):
    stand.script = Script(status=429, body=b'{"error": {"message": "slow down"}}')
    with pytest.raises(anthropic.RateLimitError, match="slow down") as caught:
        await client.messages.create(model="tiny", max_tokens=9, messages=HI)
    assert (caught.value.type, caught.value.request_id) == ("rate_limit_error", REQUEST_ID)
    document: Any = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
    with pytest.raises(anthropic.BadRequestError, match="'document'"):
        await client.messages.create(
            model="tiny", max_tokens=9, messages=[{"role": "user", "content": [document]}]
        )
