"""What the gateway reads of an engine's answers, and how it goes on from token ids: simulated and vLLM alike.

A shape is an answer with each value replaced by the name of its type, its keys in their order. What is
written here was taken from vLLM 0.32, byte for byte.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest
from engine_bench import PATIENCE, SERVED_NAME, Server

pytestmark = pytest.mark.slow

CALL = r'Wait\. <tool_call>\n\{"name": "get_weather", "arguments": \{"city": "(Bern|Oslo)"\}\}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CHAT = {
    "model": SERVED_NAME,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
}
TOOL_CHAT = {
    **CHAT,
    "max_tokens": 120,
    "ignore_eos": False,
    "tools": [TOOL],
    "tool_choice": "auto",
    "structured_outputs": {"regex": CALL},
}
COMPLETION = {
    "model": SERVED_NAME,
    "prompt": "Once upon",
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
}
USAGE = {"prompt_tokens": "int", "total_tokens": "int", "completion_tokens": "int"}
DETAILS = "--enable-prompt-tokens-details"
HEAD = {"id": "str", "object": "str", "created": "int", "model": "str"}


def shape(value: Any) -> Any:
    """The value's shape; a list has the shape of its first item."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value[:1]]
    return None if value is None else type(value).__name__


def alike(value: Any, expected: Any) -> None:
    """The value has this shape, with its keys in this order."""
    assert orjson.dumps(shape(value)).decode() == orjson.dumps(expected).decode()


class Engine:
    """A client of one server."""

    def __init__(self, http: aiohttp.ClientSession, server: Server) -> None:
        self.http = http
        self.server = server

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.http.post(self.server.url + path, json=body) as response:
            data = await response.read()
            return response.status, orjson.loads(data) if data else None

    async def ok(self, path: str, body: Any) -> Any:
        status, answer = await self.post(path, body)
        assert status == 200, answer
        return answer

    async def stream(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a whole stream, without the end mark."""
        async with self.http.post(self.server.url + path, json={**body, "stream": True}) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            blocks = (await response.read()).decode().split("\n\n")
        assert blocks[-2:] == ["data: [DONE]", ""]
        return [orjson.loads(block.removeprefix("data: ")) for block in blocks[:-2]]

    def usage(self, *details: str) -> dict[str, Any]:
        """The usage at the end of a stream. With `DETAILS`, which the adapter gives to vLLM, it has these."""
        told = dict.fromkeys(details, "int")
        return {**USAGE, "prompt_tokens_details": told} if DETAILS in self.server.command.argv else USAGE

    def whole_usage(self, *, created: bool) -> dict[str, Any]:
        """The usage of a plain answer; `created`: its details tell what it put into the cache."""
        told = {"cached_tokens": "int", "created_cache_tokens": "int" if created else None}
        details = {**told, "multimodal_tokens": None} if DETAILS in self.server.command.argv else None
        return {**USAGE, "prompt_tokens_details": details, "completion_tokens_details": None}

    async def info(self) -> Any:
        async with self.http.get(f"{self.server.url}/tokenizer_info") as response:
            assert response.status == 200
            return await response.json()


@pytest.fixture
def engine(server: Server, http: aiohttp.ClientSession) -> Engine:
    return Engine(http, server)


async def test_a_chat_stream(engine: Engine) -> None:
    body = {**CHAT, "return_token_ids": True}
    role, *chunks, last = await engine.stream("/v1/chat/completions", body)
    choice = {
        "index": "int",
        "delta": {"role": "str", "content": "str"},
        "logprobs": None,
        "finish_reason": None,
    }
    alike(role, {**HEAD, "choices": [choice], "prompt_token_ids": ["int"], "prompt_text": None})
    choice = {"index": "int", "delta": {"content": "str"}, "logprobs": None, "finish_reason": None}
    for chunk in chunks:
        if not chunk["choices"][0]["delta"]:  # half a letter
            choice["delta"] = {}
        alike(chunk, {**HEAD, "choices": [{**choice, "token_ids": ["int"]}]})
        choice["delta"] = {"content": "str"}
    choice |= {"finish_reason": "str", "stop_reason": None, "token_ids": ["int"]}
    alike(last, {**HEAD, "choices": [choice], "system_fingerprint": "str"})
    assert all(chunk["choices"][0]["delta"] != {"content": ""} for chunk in (*chunks, last))
    ids = [token for chunk in (*chunks, last) for token in chunk["choices"][0]["token_ids"]]
    assert len(ids) == 24
    counted = await engine.stream("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    usage = engine.usage("cached_tokens", "created_cache_tokens")
    alike(counted[-1], {**HEAD, "choices": [], "usage": usage, "system_fingerprint": "str"})
    assert "system_fingerprint" not in counted[-2]
    assert all(event["choices"][0]["token_ids"] is None for event in counted[1:-1])


async def test_a_plain_chat(engine: Engine) -> None:
    answer = await engine.ok("/v1/chat/completions", {**CHAT, "return_token_ids": True})
    message = {"role": "str", "content": "str", "refusal": None, "annotations": None, "audio": None}
    choice = {"index": "int", "message": {**message, "function_call": None, "reasoning": None}}
    choice |= {"logprobs": None, "finish_reason": "str", "stop_reason": None, "token_ids": ["int"]}
    whole = {**HEAD, "choices": [{**choice, "routed_experts": None}], "service_tier": None}
    whole |= {"system_fingerprint": "str", "usage": engine.whole_usage(created=True)}
    whole |= {
        "prompt_logprobs": None,
        "prompt_token_ids": ["int"],
        "prompt_text": None,
        "kv_transfer_params": None,
    }
    alike(answer, {**whole, "ec_transfer_params": None, "metrics": None})


async def test_a_completion_plain_and_streamed(engine: Engine) -> None:
    body = {**COMPLETION, "return_token_ids": True}
    first, *chunks, last = await engine.stream("/v1/completions", body)
    choice = {"index": "int", "text": "str", "logprobs": None, "finish_reason": None, "stop_reason": None}
    more = {"prompt_token_ids": ["int"], "token_ids": ["int"]}
    alike(first, {**HEAD, "choices": [choice | more]})
    more["prompt_token_ids"] = None
    for chunk in chunks:
        alike(chunk, {**HEAD, "choices": [choice | more]})
    alike(
        last, {**HEAD, "choices": [{**choice, "finish_reason": "str", **more}], "system_fingerprint": "str"}
    )
    answer = await engine.ok("/v1/completions", body)
    choice = {"index": "int", "text": "str", "logprobs": None, "finish_reason": "str", "stop_reason": None}
    choice |= {
        "token_ids": ["int"],
        "prompt_logprobs": None,
        "prompt_token_ids": ["int"],
        "routed_experts": None,
    }
    whole = {**HEAD, "choices": [choice], "service_tier": None, "system_fingerprint": "str"}
    whole |= {"usage": engine.whole_usage(created=False), "kv_transfer_params": None}
    whole |= {"ec_transfer_params": None, "metrics": None}
    alike(answer, whole)


async def test_several_outputs_each_have_a_role_and_an_end(engine: Engine) -> None:
    events = await engine.stream("/v1/chat/completions", {**CHAT, "n": 2, "temperature": 1, "max_tokens": 6})
    assert [event["choices"][0]["index"] for event in events[:2]] == [0, 1]
    assert all(event["choices"][0]["delta"]["role"] == "assistant" for event in events[:2])
    ends = [choice for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(end["index"] for end in ends) == [0, 1]
    assert all(len(event["choices"]) == 1 for event in events)


async def test_rendered_requests(engine: Engine) -> None:
    chat = await engine.ok("/v1/chat/completions/render", CHAT)
    (completion,) = await engine.ok("/v1/completions/render", COMPLETION)
    keys = (
        "request_id token_ids token_offsets features content_parts sampling_params model reasoning_ended "
        "reasoning_parser_kwargs return_token_ids output_mode stream stream_options cache_salt priority "
        "kv_transfer_params ec_transfer_params"
    )
    for rendered in (chat, completion):
        assert list(rendered) == keys.split()
        sampling = rendered["sampling_params"]
        assert (sampling["max_tokens"], sampling["temperature"], sampling["stop"]) == (24, 0.0, [])
        assert sampling["ignore_eos"] is True
    said = await engine.ok("/v1/chat/completions", {**CHAT, "return_token_ids": True})
    assert chat["token_ids"] == said["prompt_token_ids"]
    told = await engine.ok("/tokenize", {"model": SERVED_NAME, "messages": CHAT["messages"]})
    alike(told, {"count": "int", "max_model_len": "int", "tokens": ["int"], "token_strs": None})
    assert told["tokens"] == chat["token_ids"]
    forced = await engine.ok("/v1/chat/completions/render", {**TOOL_CHAT, "tool_choice": "required"})
    assert forced["sampling_params"]["structured_outputs"]


async def test_generated_ids(engine: Engine) -> None:
    rendered = await engine.ok("/v1/chat/completions/render", CHAT)
    body = {**rendered, "stream_options": {"include_usage": True}, "return_token_ids": True}
    first, *chunks, last, usage = await engine.stream("/inference/v1/generate", body)
    choice = {"index": "int", "finish_reason": None, "stop_reason": None, "token_ids": ["int"]}
    choice |= {"routed_experts": None, "sampling_mask": None, "weight_versions": None, "logprobs": None}
    head = {"request_id": "str", "usage": None}
    tail = {"output_mode": "str", "choices": [choice]}
    alike(first, {**head, "prompt_token_ids": ["int"], **tail})
    for chunk in chunks:
        alike(chunk, {**head, **tail})
    version = {"version": "str", "start": "int", "end": "int"}
    choice |= {"finish_reason": "str", "weight_versions": [version]}
    alike(last, {**head, **tail})
    told = engine.usage("cached_tokens")
    alike(usage, {"request_id": "str", "usage": told, "output_mode": "str", "choices": []})
    plain = await engine.ok("/inference/v1/generate", rendered)
    said = await engine.ok("/v1/chat/completions", {**CHAT, "return_token_ids": True})
    ids = [token for event in (first, *chunks, last) for token in event["choices"][0]["token_ids"]]
    assert ids == plain["choices"][0]["token_ids"] == said["choices"][0]["token_ids"]
    whole = {
        "request_id": "str",
        "model": "str",
        "created": "int",
        "usage": engine.whole_usage(created=False),
        "prompt_logprobs": None,
    }
    whole |= {
        "prompt_token_id_logprobs": None,
        "prompt_token_ids": None,
        "mm_placeholders": None,
        "metrics": None,
    }
    whole |= {
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "output_mode": "str",
        "choices": [choice],
    }
    alike(plain, whole)


@pytest.mark.parametrize("cut", [1, 11, 23])
async def test_a_chat_goes_on_from_its_ids(engine: Engine, cut: int) -> None:
    said = await engine.ok("/v1/chat/completions", {**CHAT, "return_token_ids": True})
    ids = said["choices"][0]["token_ids"]
    rendered = await engine.ok("/v1/chat/completions/render", CHAT)
    rendered["token_ids"] = said["prompt_token_ids"] + ids[:cut]
    rendered["sampling_params"]["max_tokens"] = 24 - cut
    rest = await engine.ok("/inference/v1/generate", rendered)
    assert ids[:cut] + rest["choices"][0]["token_ids"] == ids
    assert rest["choices"][0]["finish_reason"] == "length"


async def test_ids_become_the_text_of_the_stream(engine: Engine) -> None:
    """At every cut, also inside a letter: all ids so far in one call, and its state for the next one."""
    body = {**COMPLETION, "max_tokens": 64, "return_token_ids": True}
    said = (await engine.ok("/v1/completions", body))["choices"][0]
    ids, text, prompt = said["token_ids"], said["text"], said["prompt_token_ids"]
    assert len(ids) == 64
    base = {
        "stream": True,
        "model": SERVED_NAME,
        "prompt_token_ids": prompt[-8:],
        "completion_request": COMPLETION,
    }
    for cut in range(1, 64, 6):
        found, state = "", None
        for part in (ids[:cut], ids[cut:]):
            choice = {"index": 0, "token_ids": part, "finish_reason": None}
            chunk = {"request_id": "x", "choices": [choice]}
            answer = await engine.ok(
                "/v1/completions/derender", {**base, "generate_chunk": chunk, "stream_state": state}
            )
            state = answer["stream_state"]
            found += answer["chunk"]["choices"][0]["text"]
        assert found.startswith(text)
    choice = {"index": "int", "text": "str", "logprobs": None, "finish_reason": None, "stop_reason": None}
    choice |= {"prompt_token_ids": None, "token_ids": None}
    tail = {"usage": None, "system_fingerprint": None, "metrics": None}
    alike(answer["chunk"], {**HEAD, "choices": [choice], **tail})
    keys = (
        "prev_tokens prefix_offset read_offset role_sent logprob_context_token_ids logprob_text_offset "
        "output_token_ids output_chunk_lens tools_streamed last_tool_call_ids"
    )
    assert list(answer["stream_state"]) == keys.split()


def joined(deltas: list[dict[str, Any]]) -> tuple[str, list[list[str]]]:
    """The text, and the id, name and arguments of each call."""
    calls: dict[int, list[str]] = {}
    for part in (part for delta in deltas for part in delta.get("tool_calls") or ()):
        call = calls.setdefault(part["index"], ["", "", ""])
        call[0] += part.get("id") or ""
        call[1] += part["function"].get("name") or ""
        call[2] += part["function"].get("arguments") or ""
    return "".join(delta.get("content") or "" for delta in deltas), [calls[index] for index in sorted(calls)]


async def test_a_call_plain_and_streamed(engine: Engine) -> None:
    plain = await engine.ok("/v1/chat/completions", TOOL_CHAT)
    message = plain["choices"][0]["message"]
    alike(
        message["tool_calls"], [{"id": "str", "type": "str", "function": {"name": "str", "arguments": "str"}}]
    )
    assert plain["choices"][0]["finish_reason"] == "tool_calls"
    events = await engine.stream("/v1/chat/completions", TOOL_CHAT)
    deltas = [event["choices"][0]["delta"] for event in events]
    text, ((name_id, name, arguments),) = joined(deltas)
    assert (text, name, arguments) == ("Wait. ", *message["tool_calls"][0]["function"].values())
    assert name_id.startswith("chatcmpl-tool-")
    parts = [delta for delta in deltas if delta.get("tool_calls")]
    entry = {"id": "str", "type": "str", "index": "int", "function": {"name": "str"}}
    alike({**parts[0], "tool_calls": parts[0]["tool_calls"][:1]}, {"content": None, "tool_calls": [entry]})
    alike(parts[-1], {"content": None, "tool_calls": [{"index": "int", "function": {"arguments": "str"}}]})
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_call_goes_on_from_a_rebuilt_state(engine: Engine) -> None:
    """What a gateway recorded of a stream is enough to show the rest of it, wherever it was cut."""
    events = await engine.stream("/v1/chat/completions", {**TOOL_CHAT, "return_token_ids": True})
    prompt = events[0]["prompt_token_ids"]
    choices = [event["choices"][0] for event in events[1:]]
    parts = [choice["token_ids"] for choice in choices]
    parts[-1] = parts[-1][:-1]  # the id that ended the text is not to be shown
    whole = joined([choice["delta"] for choice in choices])
    request = {**TOOL_CHAT, "stream": True}
    for cut in range(0, len(parts), 4):
        before = [choice["delta"] for choice in choices[:cut]]
        state: Any = {
            "role_sent": True,
            "output_token_ids": [token for part in parts[:cut] for token in part],
            "output_chunk_lens": [len(part) for part in parts[:cut] if part],
            "tools_streamed": any(delta.get("tool_calls") for delta in before),
            "last_tool_call_ids": [call[0] for call in joined(before)[1]],
        }
        rest = [token for part in parts[cut:] for token in part]
        choice = {"index": 0, "token_ids": rest, "finish_reason": "stop"}
        body = {"stream": True, "model": SERVED_NAME, "chat_request": request, "prompt_token_ids": prompt}
        chunk = {"request_id": "x", "choices": [choice]}
        answer = await engine.ok(
            "/v1/chat/completions/derender", {**body, "generate_chunk": chunk, "stream_state": state}
        )
        (found,) = answer["chunk"]["choices"]
        text, calls = joined([*before, found["delta"]])
        assert (text, [call[1:] for call in calls]) == (whole[0], [call[1:] for call in whole[1]])
        assert found["finish_reason"] == "tool_calls"
        assert found["delta"]["role"] is None
        assert answer["stream_state"]["output_token_ids"] == [token for part in parts for token in part]


async def test_which_special_ids_derender_shows(engine: Engine) -> None:
    """The id that ends a text is left out where no parser reads; all others are shown, and all of them to
    one.
    """
    info = await engine.info()
    named = {text: int(token) for token, text in info["added_tokens_decoder"].items()}
    told = await engine.ok("/tokenize", {"model": SERVED_NAME, "messages": CHAT["messages"]})
    end, begin = named[info["eos_token"]], told["tokens"][0]
    assert begin == named["<|start|>"]
    words = (await engine.ok("/tokenize", {"model": SERVED_NAME, "prompt": "hi"}))["tokens"]
    choice = {"index": 0, "token_ids": [end, *words, begin], "finish_reason": None}
    body = {"stream": True, "model": SERVED_NAME, "prompt_token_ids": words}
    body["generate_chunk"] = {"request_id": "x", "choices": [choice]}
    plain = await engine.ok("/v1/completions/derender", body)
    assert plain["chunk"]["choices"][0]["text"] == "hi<|start|>"
    parsed = await engine.ok("/v1/chat/completions/derender", {**body, "chat_request": CHAT})
    assert parsed["chunk"]["choices"][0]["delta"]["content"] == f"{info['eos_token']}hi<|start|>"
    shown = await engine.ok("/detokenize", {"model": SERVED_NAME, "tokens": [*words, begin]})
    assert shown == {"prompt": "hi<|start|>"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/inference/v1/generate", {"token_ids": [5], "model": "other", "sampling_params": {}}, 404),
        ("/inference/v1/generate", {"token_ids": [5]}, 400),
        ("/inference/v1/generate", {"token_ids": [], "sampling_params": {}}, 400),
        ("/v1/chat/completions/render", {**CHAT, "model": "other"}, 404),
        ("/v1/chat/completions/derender", {"stream": True, "generate_chunk": {"choices": []}}, 400),
        (
            "/v1/chat/completions/derender",
            {
                "stream": True,
                "chat_request": CHAT,
                "prompt_token_ids": [5],
                "generate_chunk": {"choices": [{"index": 0, "token_ids": [5]}]},
                "stream_state": {"output_token_ids": [5], "output_chunk_lens": [2]},
            },
            400,
        ),
        ("/v1/completions/derender", {"model": SERVED_NAME}, 400),
        ("/inference/v1/abort_requests", {}, 400),
        ("/v1/responses", {"model": SERVED_NAME, "input": "a", "previous_response_id": "resp_x"}, 404),
    ],
)
async def test_what_is_refused(engine: Engine, path: str, body: dict[str, Any], status: int) -> None:
    got, answer = await engine.post(path, body)
    assert got == status
    alike(answer["error"] | {"param": None}, {"message": "str", "type": "str", "param": None, "code": "int"})
    assert answer["error"]["code"] == status


async def test_a_request_is_aborted_by_its_id(engine: Engine) -> None:
    body = {**COMPLETION, "max_tokens": 1900, "stream": True}
    headers = {"X-Request-Id": "to-abort"}
    url = engine.server.url
    async with asyncio.timeout(PATIENCE):
        async with engine.http.post(f"{url}/v1/completions", json=body, headers=headers) as response:
            await response.content.readline()
            names = {"request_ids": ["cmpl-to-abort-0", "unknown"]}
            assert await engine.post("/inference/v1/abort_requests", names) == (200, None)
            lines = [line async for line in response.content if line.strip()]
    assert lines[-1].strip() == b"data: [DONE]"
    choice = orjson.loads(lines[-2].removeprefix(b"data: "))["choices"][0]
    assert choice["finish_reason"] == "abort"


async def test_a_streamed_response(engine: Engine) -> None:
    body = {"model": SERVED_NAME, "input": "Hello", "max_output_tokens": 8, "temperature": 0, "stream": True}
    async with engine.http.post(f"{engine.server.url}/v1/responses", json=body) as response:
        assert response.content_type == "text/event-stream"
        blocks = (await response.read()).decode().rstrip().split("\n\n")
    named = [block.split("\n") for block in blocks]
    events = [orjson.loads(data.removeprefix("data: ")) for _, data in named]
    assert [f"event: {event['type']}" for event in events] == [name for name, _ in named]
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    part = {"annotations": [], "text": "str", "type": "str", "logprobs": None}
    item = {"id": "str", "content": [part], "role": "str", "status": "str", "type": "str", "phase": None}
    alike(events[-2], {"item": item, "output_index": "int", "sequence_number": "int", "type": "str"})
    final = events[-1]["response"]
    assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert final["output"][0]["content"][0]["text"] == events[-4]["text"]
    assert list(final) == list(events[0]["response"])
    assert final["usage"]["output_tokens"] == 8
