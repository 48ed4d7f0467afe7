"""Messages through the gateway beside vLLM's own `/v1/messages`: the same texts, calls, reasons and counts.

Needs what tools/vllm/install.sh makes, as the engine contract does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from vllm_server import running_vllm

from policies.model import TargetSpec

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(600)]

PARSERS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
KEY = "sk-test"

HI = [{"role": "user", "content": "hi"}]
CITY = {"type": "string", "enum": ["Bern", "Oslo", "Köln"]}
WEATHER = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {"type": "object", "properties": {"city": CITY}, "required": ["city"]},
}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
ROUND: list[dict[str, Any]] = [
    *HI,
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "I look"},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bern"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sun"}]},
            {"type": "text", "text": "and?"},
        ],
    },
]
TURNS = [*HI, {"role": "assistant", "content": "ok"}, {"role": "system", "content": "now"}, HI[0]]
CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "system": {"system": "be brief"},
    "blocks": {
        "system": [
            {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "b"},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}
        ],
    },
    "a system message between turns": {"messages": TURNS},
    "stop sequence": {"stop_sequences": ["e"], "max_tokens": 60},
    "sampling": {"extra_body": {"top_k": 1, "top_p": 0.5}},
    "tools at will": {"tools": [WEATHER]},
    "no tools": {"tools": [WEATHER], "tool_choice": {"type": "none"}},
    "a round of tools": {"messages": ROUND, "tools": [WEATHER]},
    "schema": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "max_tokens": 60},
    "effort": {"output_config": {"effort": "low"}},
    "thinking off": {"thinking": {"type": "disabled"}},
    "thinking as the model likes": {"thinking": {"type": "adaptive"}},
    "budget without a reasoning parser": {
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "max_tokens": 1200,
    },
    "image for a model of text": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}],
            }
        ]
    },
    "no such model": {"model": "nope"},
    "prompt too long": {"messages": [{"role": "user", "content": "word " * 3000}]},
}
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Bern|Köln)"\}\}\n</tool_call>'
CALLS = {"one call": rf"Wait\. {CALL}", "two calls": f"({CALL}){{2}}"}
COUNTED = ("messages", "system", "tools", "tool_choice", "thinking", "output_config")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM server that asks for a key: its address."""
    with running_vllm(tmp_path_factory.mktemp("vllm"), (*PARSERS, "--api-key", KEY)) as address:
        yield address


@pytest.fixture
async def ours(engine: str, gateways: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """A client of the gateway, with its key where Anthropic's clients have it."""
    running = await gateways(TargetSpec(id="v", address=engine), api_key=KEY)
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=running.url, max_retries=0) as client:
        yield client


@pytest.fixture
async def theirs(engine: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """A client of vLLM's own `/v1/messages`."""
    async with anthropic.AsyncAnthropic(auth_token=KEY, base_url=f"http://{engine}", max_retries=0) as client:
        yield client


async def said(client: anthropic.AsyncAnthropic, fields: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    """What comes of a request, without ids and signatures, which differ each time."""
    body = {"temperature": 0, **fields.get("extra_body", {})}
    ask = {"model": "tiny", "max_tokens": 12, "messages": HI, **fields, "extra_body": body}
    try:
        if stream:
            async with client.messages.stream(**ask) as events:
                message = await events.get_final_message()
        else:
            message = await client.messages.create(**ask)
    except anthropic.APIStatusError as error:
        return {"error": type(error).__name__}
    told = message.to_dict(exclude_none=True)
    blocks = [
        {name: value for name, value in block.items() if name not in ("id", "signature")}
        for block in told["content"]
    ]
    return {**told, "id": "", "content": blocks}


@pytest.mark.parametrize("name", CASES)
async def test_the_gateway_says_what_vllms_own_route_says(ours, theirs, name):
    plain, streamed, own = await asyncio.gather(
        said(ours, CASES[name], stream=False),
        said(ours, CASES[name], stream=True),
        said(theirs, CASES[name], stream=False),
    )
    assert plain == own
    if streamed != {"error": "APIStatusError"}:  # a refusal inside a stream has the stream's status 200
        assert streamed == own
    else:
        assert "error" in own


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("no such model", "prompt too long")])
async def test_the_gateway_counts_what_vllms_own_route_counts(ours, theirs, name):
    fields = {"model": "tiny", "messages": HI} | {
        field: value for field, value in CASES[name].items() if field in COUNTED
    }
    if name == "image for a model of text":
        for client in (ours, theirs):
            with pytest.raises(anthropic.BadRequestError):
                await client.messages.count_tokens(**fields)
        return
    counted = [(await client.messages.count_tokens(**fields)).input_tokens for client in (ours, theirs)]
    assert counted[0] == counted[1]
    message = await said(ours, {"max_tokens": 1, **CASES[name]}, stream=False)
    if "usage" in message:
        usage = message["usage"]
        assert usage["input_tokens"] + usage.get("cache_read_input_tokens", 0) == counted[0]


@pytest.mark.parametrize("name", CALLS)
async def test_calls_are_those_of_vllms_chat(engine, ours, name):
    forced = {"structured_outputs": {"regex": CALLS[name]}, "temperature": 0}
    fields = {"tools": [WEATHER], "extra_body": forced, "max_tokens": 250}
    plain, streamed = [await said(ours, fields, stream=stream) for stream in (False, True)]
    assert streamed == plain
    assert plain["stop_reason"] == "tool_use"
    function = {"name": "weather", "parameters": WEATHER["input_schema"]}
    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"http://{engine}/v1") as client:
        chat = await client.chat.completions.create(
            model="tiny", messages=HI, max_tokens=250, tools=[{"type": "function", "function": function}],
            extra_body=forced,
        )  # fmt: skip
    calls = chat.choices[0].message.tool_calls
    uses = [block for block in plain["content"] if block["type"] == "tool_use"]
    assert len(uses) == len(calls) == (2 if name == "two calls" else 1)
    assert [
        str(use["input"]["city"]) in call.function.arguments for use, call in zip(uses, calls, strict=True)
    ]
    assert plain["usage"]["output_tokens"] == chat.usage.completion_tokens


async def test_the_engine_goes_on_with_the_last_message_of_the_assistant(engine, ours):
    """As a completion does of the very prompt that the template makes, with the message behind it."""
    begun = "The answer is ("
    fields = {"messages": [*HI, {"role": "assistant", "content": begun}], "max_tokens": 16}
    whole, streamed = [await said(ours, fields, stream=stream) for stream in (False, True)]
    assert streamed == whole
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(f"http://{engine}", headers=headers) as session:

        async def post(path: str, **body: Any) -> dict[str, Any]:
            async with session.post(path, json={"model": "tiny", **body}) as answer:
                assert answer.status == 200
                return dict(await answer.json())

        tokens = (await post("/tokenize", messages=HI))["tokens"]
        prompt = (await post("/detokenize", tokens=tokens))["prompt"] + begun
        plain = {"prompt": prompt, "add_special_tokens": False, "max_tokens": 16, "temperature": 0}
        completion = await post("/v1/completions", **plain)
    assert whole["content"][0]["text"] == completion["choices"][0]["text"]
    assert whole["usage"]["output_tokens"] == completion["usage"]["completion_tokens"]
