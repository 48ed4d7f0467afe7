"""The clients that people use, in front of providers of both kinds: what they read of answers and errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.support.paid_provider import Behaviour, Line, PaidProvider, Seen, answers, provider
from tests.support.provider_stand import Stand, stand
from tests.support.provider_streams import event, message, message_stream

TEXT = "Grüße, 世界 🎉!"
INPUTS: list[dict[str, Any]] = [{"city": "Köln"}, {}]
CONTENT: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "hm, a greeting", "signature": "c2ln"},
    {"type": "text", "text": TEXT},
    *(
        {"type": "tool_use", "id": f"toolu_{at}", "name": "f", "input": each}
        for at, each in enumerate(INPUTS)
    ),
]
WHOLE = message(CONTENT, "tool_use")
ASKED: dict[str, Any] = {
    "model": "assistant",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "x"}],
}


async def speaks(api: PaidProvider, seen: Seen, line: Line) -> None:
    """Thinks, greets, and calls two tools."""
    api.bill(seen)
    if seen.stream:
        await line.stream(message_stream(WHOLE))
    else:
        await line.answer(200, json.dumps(WHOLE).encode())


def breaking(seen_by_client: asyncio.Event) -> Behaviour:
    """Streams a part and, once the client has something of it, says that it is overloaded."""

    async def breaks(api: PaidProvider, seen: Seen, line: Line) -> None:
        api.bill(seen)
        await line.begin()
        for each in message_stream(WHOLE)[:12]:
            await line.chunk(each)
        await seen_by_client.wait()
        await line.chunk(event("error", error={"type": "overloaded_error", "message": "Overloaded"}))
        await line.end()

    return breaks


async def refuses(api: PaidProvider, seen: Seen, line: Line) -> None:
    await line.error(400, "messages: too odd")


@contextlib.asynccontextmanager
async def clients(
    behaviour: Behaviour, directory: Path, kind: str = "anthropic"
) -> AsyncIterator[tuple[Stand, openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    async with (
        provider(behaviour) as api,
        stand(api, directory, kind=kind) as one,
        openai.AsyncOpenAI(base_url=one.url + "/v1", api_key="x", max_retries=0) as chat,
        anthropic.AsyncAnthropic(base_url=one.url, api_key="x", max_retries=0) as claude,
    ):
        yield one, chat, claude


async def test_openais_client_plain(tmp_path: Path) -> None:
    async with clients(speaks, tmp_path) as (_, chat, _):
        answer = await chat.chat.completions.create(**ASKED)
    said = answer.choices[0].message
    assert said.content == TEXT
    assert said.model_extra == {"reasoning_content": "hm, a greeting"}
    calls = said.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls if call.type == "function"] == INPUTS
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (30, 9)


@pytest.mark.parametrize("asks", [False, True])
async def test_openais_client_streamed(tmp_path: Path, asks: bool) -> None:
    """With the client's own way to put a stream together."""
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asks else {}
    async with (
        clients(speaks, tmp_path) as (_, chat, _),
        chat.chat.completions.stream(**ASKED, **options) as stream,
    ):
        answer = await stream.get_final_completion()
    said = answer.choices[0].message
    assert said.content == TEXT
    assert [json.loads(call.function.arguments) for call in said.tool_calls or []] == INPUTS
    assert answer.choices[0].finish_reason == "tool_calls"
    assert (answer.usage is not None) == asks
    assert answer.usage is None or answer.usage.total_tokens == 39


async def test_anthropics_client_gets_what_the_provider_says(tmp_path: Path) -> None:
    async with clients(speaks, tmp_path) as (_, _, claude):
        plain = await claude.messages.create(**ASKED)
        async with claude.messages.stream(**ASKED) as stream:
            streamed = await stream.get_final_message()
    for answer in (plain, streamed):
        assert [
            block.model_dump(include=set(each)) for block, each in zip(answer.content, CONTENT, strict=True)
        ] == CONTENT
        assert answer.stop_reason == "tool_use"
        assert (
            answer.usage.input_tokens,
            answer.usage.cache_read_input_tokens,
            answer.usage.output_tokens,
        ) == (20, 7, 9)


async def test_anthropics_client_at_a_provider_of_openais_form(tmp_path: Path) -> None:
    async with clients(answers, tmp_path, "openai") as (_, _, claude):
        plain = await claude.messages.create(**ASKED)
        async with claude.messages.stream(**ASKED) as stream:
            streamed = await stream.get_final_message()
    assert [block.text for block in plain.content if block.type == "text"] == ["hi"]
    assert [block.text for block in streamed.content if block.type == "text"] == ["w0 w1 w2 w3 "]
    assert plain.usage.output_tokens == streamed.usage.output_tokens > 0
    assert plain.stop_reason == streamed.stop_reason == "end_turn"


async def read(stream: AsyncIterator[Any], has: asyncio.Event) -> None:
    async for _ in stream:
        has.set()


async def test_a_broken_stream_raises_in_both(tmp_path: Path) -> None:
    has = asyncio.Event()
    async with clients(breaking(has), tmp_path) as (one, chat, claude):
        with pytest.raises(openai.APIError, match="interrupted"):
            await read(await chat.chat.completions.create(**ASKED, stream=True), has)
        has.clear()
        with pytest.raises(anthropic.APIStatusError, match="not complete"):
            await read(await claude.messages.create(**ASKED, stream=True), has)
    assert not one.unserved


async def test_a_refusal_of_the_provider_is_the_clients_in_its_own_form(tmp_path: Path) -> None:
    async with clients(refuses, tmp_path) as (_, chat, claude):
        with pytest.raises(openai.BadRequestError, match="too odd"):
            await chat.chat.completions.create(**ASKED)
        with pytest.raises(anthropic.BadRequestError, match="too odd"):
            await claude.messages.create(**ASKED)


async def test_what_cannot_be_told_names_its_field(tmp_path: Path) -> None:
    async with clients(speaks, tmp_path) as (_, chat, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await chat.chat.completions.create(**ASKED, n=2)
    assert caught.value.param == "n"


async def test_what_an_openai_provider_cannot_be_told_is_named_once(tmp_path: Path) -> None:
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    async with clients(speaks, tmp_path, kind="openai") as (_, _, messages):
        with pytest.raises(anthropic.BadRequestError) as caught:
            await messages.messages.create(**ASKED, tools=[search])
    assert str(caught.value).count("tools.0: ") == 1
