"""The routes of the simulated server that speak ids, its tools, adapters and several outputs, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp
import orjson
import pytest

pytestmark = pytest.mark.slow

FAST = ("--tokens-per-second", "500", "--time-to-first-token", "0")
IDS = ("--enable-scale-out", "--enable-tokenizer-info-endpoint")
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
SCRIPT = '!think 5\n!say 3\n!call f {"a": [1, 2]}'
CHAT = {
    "messages": [{"role": "user", "content": SCRIPT}],
    "tools": [{"type": "function", "function": {"name": "f"}}],
}
ROUTES = (
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
    "/inference/v1/generate",
    "/inference/v1/abort_requests",
)


class Simulated(Protocol):
    @property
    def url(self) -> str: ...


Launch = Callable[..., Awaitable[Simulated]]


async def post(http: aiohttp.ClientSession, server: Simulated, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(server.url + path, json=body) as response:
        return response.status, orjson.loads(await response.read() or b"null")


async def stream(http: aiohttp.ClientSession, server: Simulated, path: str, body: Any) -> list[Any]:
    """The events of a whole stream."""
    async with http.post(server.url + path, json={**body, "stream": True}) as response:
        assert response.status == 200
        lines = (await response.read()).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [orjson.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_without_the_flags_there_are_no_such_routes(
    launch: Launch, http: aiohttp.ClientSession
) -> None:
    server = await launch()
    for route in ROUTES:
        status, answer = await post(http, server, route, {})
        assert (status, answer["error"]["type"]) == (403, "PermissionDeniedError")
    async with http.get(f"{server.url}/tokenizer_info") as response:
        assert response.status == 404


async def test_the_key_guards_the_ids(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*IDS, "--api-key", "secret")
    for route in ROUTES:
        assert (await post(http, server, route, {}))[0] == 401
    assert (await post(http, server, "/tokenize", {"prompt": "hi"}))[0] == 200, "open, as vLLM's"


async def test_a_chat_goes_on_elsewhere_from_its_ids(launch: Launch, http: aiohttp.ClientSession) -> None:
    """Cut a stream of thoughts, text and a call at every chunk; the other server says the rest of it."""
    servers = [await launch(*FAST, *IDS, *TOOLS) for _ in range(2)]
    whole = await stream(http, servers[0], "/v1/chat/completions", {**CHAT, "return_token_ids": True})
    prompt, chunks = whole[0]["prompt_token_ids"], [event["choices"][0] for event in whole[1:]]
    ids = [token for chunk in chunks for token in chunk["token_ids"]]
    assert chunks[-1]["finish_reason"] == "tool_calls"
    _, rendered = await post(http, servers[1], "/v1/chat/completions/render", CHAT)
    assert rendered["token_ids"] == prompt
    for cut in range(1, len(ids), 5):
        body = {**rendered, "token_ids": prompt + ids[:cut], "model": "tiny"}
        events = await stream(http, servers[1], "/inference/v1/generate", body)
        rest = [event["choices"][0] for event in events]
        assert ids[:cut] + [token for choice in rest for token in choice["token_ids"]] == ids
        assert rest[-1]["finish_reason"] == "stop"


async def test_a_continued_grammar_starts_anew(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*FAST, *IDS)
    chat = {"messages": [{"role": "user", "content": "hi"}], "structured_outputs": {"choice": ["yes sir"]}}
    _, answer = await post(http, server, "/v1/chat/completions", {**chat, "return_token_ids": True})
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("yes sir", "stop")
    _, rendered = await post(http, server, "/v1/chat/completions/render", chat)
    body = {**rendered, "token_ids": answer["prompt_token_ids"] + choice["token_ids"][:2]}
    _, again = await post(http, server, "/inference/v1/generate", {**body, "output_mode": "text"})
    assert again["choices"][0]["text"] == "yes sir"


async def test_a_call_plain_and_streamed(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*FAST, *TOOLS)
    _, plain = await post(http, server, "/v1/chat/completions", CHAT)
    message = plain["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": [1, 2]}'}
    assert plain["choices"][0]["finish_reason"] == "tool_calls"
    events = await stream(http, server, "/v1/chat/completions", CHAT)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"a": [1, 2]}'
    assert len(calls) >= 2, "the name, then arguments in as many pieces as the machine makes of them"
    assert all("token_ids" in event["choices"][0] for event in events[1:])


async def test_several_outputs_and_prompts(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*FAST)
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 6, "return_token_ids": True}
    _, plain = await post(http, server, "/v1/completions", body)
    texts = [choice["text"] for choice in plain["choices"]]
    assert [choice["index"] for choice in plain["choices"]] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert plain["usage"]["completion_tokens"] == 24
    found: dict[int, str] = {}
    finished = []
    events = await stream(
        http, server, "/v1/completions", {**body, "stream_options": {"include_usage": True}}
    )
    assert events.pop()["usage"] == {"prompt_tokens": 2, "total_tokens": 26, "completion_tokens": 24}
    for event in events:
        (choice,) = event["choices"]
        found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
        finished += [choice["index"]] * (choice["finish_reason"] is not None)
    assert [found[index] for index in range(4)] == texts
    assert sorted(finished) == [0, 1, 2, 3]


async def test_an_adapter_says_something_else(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*FAST, "--lora-modules", "poet=/srv/poet", "clerk=/srv/clerk")
    async with http.get(f"{server.url}/v1/models") as response:
        models = (await response.json())["data"]
    assert [(model["id"], model["root"], model["parent"]) for model in models] == [
        ("tiny", "none", None),
        ("poet", "/srv/poet", "tiny"),
        ("clerk", "/srv/clerk", "tiny"),
    ]
    texts = set()
    for name in ("tiny", "poet", "clerk"):
        _, answer = await post(http, server, "/v1/completions", {"model": name, "prompt": "hi"})
        assert answer["model"] == name
        texts.add(answer["choices"][0]["text"])
    assert len(texts) == 3
    assert (await post(http, server, "/v1/completions", {"model": "painter", "prompt": "hi"}))[0] == 404


LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
HI = {"prompt": "hi", "max_tokens": 8}


async def told(http: aiohttp.ClientSession, server: Simulated, path: str, **fields: Any) -> tuple[int, str]:
    async with http.post(f"{server.url}{path}", json=fields) as response:
        return response.status, await response.text()


async def test_adapters_come_and_go_while_it_runs(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*FAST, "--lora-modules", "poet=/srv/poet")
    status, said = await told(http, server, LOAD, lora_name="poet@1", lora_path="/srv/poet")
    assert (status, said) == (200, "Success: LoRA adapter 'poet@1' added successfully.")
    texts = []
    for name in ("poet", "poet@1"):
        _, answer = await post(http, server, "/v1/completions", {"model": name, **HI})
        texts.append(answer["choices"][0]["text"])
    assert texts[0] == texts[1]  # the same adapter under another name
    again = {"lora_name": "poet@1", "lora_path": "/srv/poet"}
    assert [(await told(http, server, LOAD, **again))[0] for _ in range(2)] == [400, 400]
    assert (await told(http, server, LOAD, **again | {"lora_path": "/srv/clerk"}, load_inplace=True))[
        0
    ] == 200
    _, answer = await post(http, server, "/v1/completions", {"model": "poet@1", **HI})
    assert answer["choices"][0]["text"] != texts[0]
    assert (await told(http, server, UNLOAD, lora_name="poet@1"))[0] == 200
    assert (await told(http, server, UNLOAD, lora_name="poet@1"))[0] == 404
    status, answer = await post(http, server, "/v1/completions", {"model": "poet@1", **HI})
    assert (status, answer["error"]["param"]) == (404, "model")
    async with http.get(f"{server.url}/v1/models") as response:
        assert [row["id"] for row in (await response.json())["data"]] == ["tiny", "poet"]


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        (LOAD, {"lora_name": "a"}, 400),
        (LOAD, {"lora_name": "", "lora_path": "/a"}, 400),
        (LOAD, {"lora_name": "tiny", "lora_path": "/a"}, 400),
        (LOAD, {"lora_name": "a", "lora_path": "/missing"}, 404),
        (UNLOAD, {"lora_name": "tiny"}, 404),
        (UNLOAD, {}, 400),
    ],
)
async def test_what_cannot_be_loaded_is_refused_as_vllm_does(
    launch: Launch, http: aiohttp.ClientSession, path: str, fields: dict[str, Any], status: int
) -> None:
    server = await launch(*FAST)
    assert (await told(http, server, path, **fields))[0] == status


async def test_a_request_ends_whose_adapter_is_unloaded(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch("--tokens-per-second", "20", "--lora-modules", "poet=/srv/poet")
    body = {"model": "poet", "prompt": "hi", "max_tokens": 12, "stream": True}
    async with http.post(f"{server.url}/v1/completions", json=body) as response:
        await response.content.readline()
        assert (await told(http, server, UNLOAD, lora_name="poet"))[0] == 200
        lines = [line async for line in response.content if line.strip()]
    assert orjson.loads(lines[-2].removeprefix(b"data: "))["choices"][0]["finish_reason"] == "length"


async def test_what_has_no_room_is_read_again(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*FAST, "--adapter-load-time", "0.2", "--max-cpu-loras", "1")
    loop = asyncio.get_running_loop()

    async def seconds(name: str) -> float:
        began = loop.time()
        assert (await post(http, server, "/v1/completions", {"model": name, **HI}))[0] == 200
        return loop.time() - began

    for name in ("poet", "clerk"):
        began = loop.time()
        await told(http, server, LOAD, lora_name=name, lora_path=f"/srv/{name}")
        assert loop.time() - began >= 0.2
    assert await seconds("poet") >= 0.2
    assert await seconds("clerk") >= 0.2


async def test_an_aborted_request_ends_with_what_there_is(
    launch: Launch, http: aiohttp.ClientSession
) -> None:
    server = await launch("--tokens-per-second", "20", "--time-to-first-token", "0", *IDS)
    body = {"prompt": "hi", "max_tokens": 5000, "stream": True}
    headers = {"X-Request-Id": "mine"}
    async with http.post(f"{server.url}/v1/completions", json=body, headers=headers) as response:
        await response.content.readline()
        assert (await post(http, server, "/inference/v1/abort_requests", {"request_ids": ["cmpl-mine"]}))[
            0
        ] == 200
        assert await response.content.readline()
        await post(http, server, "/inference/v1/abort_requests", {"request_ids": ["cmpl-mine-0", "other"]})
        async with asyncio.timeout(60):
            lines = [line async for line in response.content if line.strip()]
    assert orjson.loads(lines[-2].removeprefix(b"data: "))["choices"][0]["finish_reason"] == "abort"
    assert (await post(http, server, "/inference/v1/abort_requests", {}))[0] == 400


async def test_the_tokenizer(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*IDS, *TOOLS)
    _, plain = await post(http, server, "/tokenize", {"prompt": "héllo", "return_token_strs": True})
    assert plain["count"] == len(plain["tokens"]) == len(plain["token_strs"])
    assert (await post(http, server, "/detokenize", {"tokens": plain["tokens"]}))[1] == {"prompt": "héllo"}
    _, chat = await post(http, server, "/tokenize", CHAT)
    _, bare = await post(http, server, "/tokenize", {"messages": CHAT["messages"]})
    assert chat["count"] > bare["count"]
    async with http.get(f"{server.url}/tokenizer_info") as response:
        info = await response.json()
    assert info["added_tokens_decoder"]["0"] == info["eos_token"]
    for wrong in ({}, {"prompt": 3}, {"messages": []}, {"prompt": "a", "model": "other"}):
        assert (await post(http, server, "/tokenize", wrong))[0] in (400, 404)
