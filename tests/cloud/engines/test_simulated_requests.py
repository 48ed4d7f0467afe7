"""Which requests the simulated engine takes, and what it says to the others."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cloud.engines.simulated_server.parser import Parsing
from cloud.engines.simulated_server.requests import (
    BadRequest,
    InferenceRequest,
    Offer,
    parse_chat,
    parse_completion,
    parse_tokens,
    read_object,
)
from cloud.engines.simulated_server.tokens import VOCABULARY_SIZE, chat_prompt, encode

HELLO = [{"role": "user", "content": "hello"}]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"const": 1}}}}}
OFFER = Offer(("tiny", "adapter"), 100)


def read(body: Any, *, chat: bool = False, offer: Offer = OFFER) -> InferenceRequest:
    data = read_object(body if isinstance(body, bytes) else orjson.dumps(body))
    return parse_chat(data, offer) if chat else parse_completion(data, offer)


def test_what_a_completion_gets_without_asking() -> None:
    assert read({"prompt": "hello"}) == InferenceRequest(
        model="tiny", prompts=(encode("hello"),), by_ids=False, max_tokens=16
    )


def test_a_chat_gets_the_rest_of_the_context() -> None:
    request = read({"model": "tiny", "messages": HELLO}, chat=True)
    assert request.prompts == (chat_prompt([("user", "hello")]),)
    assert request.max_tokens == 100 - len(request.prompts[0])
    assert read({"messages": HELLO, "max_completion_tokens": 3, "max_tokens": 9}, chat=True).max_tokens == 3


def test_everything_that_can_be_asked() -> None:
    body = {
        "prompt": [1, 2, 3],
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "ignore_eos": True,
        "seed": 7,
        "stop": ["\n", "END"],
        "temperature": 0.7,
        "user": "unknown fields are ignored",
    }
    request = read(body)
    assert request.prompts == ((1, 2, 3),)
    assert request.by_ids
    assert request.stream
    assert request.include_usage
    assert request.return_token_ids
    assert request.ignore_eos
    assert (request.max_tokens, request.seed, request.stops) == (5, 7, ("\n", "END"))
    assert read({"prompt": "a", "stop": "x"}).stops == ("x",)


def test_output_is_cut_to_the_context() -> None:
    assert read({"prompt": [1] * 90, "max_tokens": 100}).max_tokens == 10


@pytest.mark.parametrize(
    ("prompt", "prompts", "by_ids"),
    [
        (["hello"], (encode("hello"),), False),
        (["a", "b"], (encode("a"), encode("b")), False),
        ([[5], [6, 7]], ((5,), (6, 7)), True),
    ],
)
def test_several_prompts(prompt: Any, prompts: Any, by_ids: bool) -> None:
    request = read({"prompt": prompt, "n": 2, "model": "adapter"})
    assert (request.prompts, request.by_ids, request.n, request.model) == (prompts, by_ids, 2, "adapter")


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert read({"messages": [{"role": "user", "content": parts}]}, chat=True).prompts == (
        chat_prompt([("user", "hello")]),
    )


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (b"{", 400, "body", "JSON"),
        ([], 400, "body", "object"),
        ({"prompt": "a", "model": "other"}, 404, "model", "Valid aliases: tiny, adapter"),
        ({}, 400, "prompt", "non-empty"),
        ({"prompt": []}, 400, "prompt", "non-empty"),
        ({"prompt": ["a", ""]}, 400, "prompt", "list of either"),
        ({"prompt": ["a", [1]]}, 400, "prompt", "list of either"),
        ({"prompt": {"a": 1}}, 400, "prompt", "list of either"),
        ({"prompt": [-1]}, 400, None, "out of vocabulary"),
        ({"prompt": [VOCABULARY_SIZE]}, 400, None, "out of vocabulary"),
        ({"prompt": [1] * 100}, 400, "input_tokens", "maximum context length is 100"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "at least 1"),
        ({"prompt": "a", "max_tokens": 101}, 400, "max_tokens", "max_model_len=100"),
        ({"prompt": "a", "max_tokens": "5"}, 400, "max_tokens", "whole number"),
        ({"prompt": "a", "max_tokens": True}, 400, "max_tokens", "whole number"),
        ({"prompt": "a", "seed": 1.5}, 400, "seed", "whole number"),
        ({"prompt": "a", "n": 0}, 400, "n", "from 1 to 128"),
        ({"prompt": ["a", "b"], "n": 65}, 400, "n", "from 1 to 64"),
        ({"prompt": "a", "structured_outputs": {"grammar": "x"}}, 400, "structured_outputs", "json_object"),
        ({"prompt": "a", "stop": [1]}, 400, "stop", "strings"),
    ],
)
def test_a_completion_that_is_refused(body: Any, status: int, param: str | None, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(body)
    assert (refused.value.status, refused.value.param) == (status, param)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "messages", [None, [], "hi", ["hi"], [{"content": "hi"}], [{"role": 1, "content": "hi"}]]
)
def test_a_chat_that_is_refused(messages: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        read({"messages": messages}, chat=True)
    assert refused.value.status == 400


def test_tools_are_part_of_the_prompt() -> None:
    plain = read({"messages": HELLO}, chat=True, offer=Offer(("tiny",), 1000))
    tools = read(
        {"messages": HELLO, "tools": [TOOL], "tool_choice": "none"}, chat=True, offer=Offer(("tiny",), 1000)
    )
    assert tools.prompts[0][-len(plain.prompts[0]) :] == plain.prompts[0]
    assert len(tools.prompts[0]) > len(plain.prompts[0])
    assert tools.parsing == Parsing()


@pytest.mark.parametrize(
    ("choice", "parsing", "forced"),
    [
        (None, Parsing(tools=True), ""),
        ("auto", Parsing(tools=True), ""),
        ("required", Parsing(tools=True), '"arguments": {"a": 1}}'),
        ({"type": "function", "function": {"name": "f"}}, Parsing(tools=True, named=True), '{"name": "f"'),
    ],
)
def test_tool_choices(choice: Any, parsing: Parsing, forced: str) -> None:
    offer = Offer(("tiny",), 1000, auto_tools=True)
    request = read({"messages": HELLO, "tools": [TOOL], "tool_choice": choice}, chat=True, offer=offer)
    assert request.parsing == parsing
    assert forced in request.grammar
    assert bool(request.grammar) == bool(forced)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tool_choice": "auto"}, '"auto" tool choice requires'),
        ({"tool_choice": "required"}, 'tool_choice="required" requires'),
        ({"tool_choice": {"function": {"name": "f"}}}, 'tool_choice=function "f" requires'),
        ({"tool_choice": "required", "tools": None}, "`tools` must be set"),
        ({"tools": [{"type": "function"}]}, "needs a function"),
    ],
)
def test_tools_that_are_refused_without_a_parser(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read({"messages": HELLO, "tools": [TOOL], **change}, chat=True)
    assert words in str(refused.value)


def test_an_unknown_tool_is_refused() -> None:
    body = {"messages": HELLO, "tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}
    with pytest.raises(BadRequest, match="does not match"):
        read(body, chat=True, offer=Offer(("tiny",), 1000, auto_tools=True))


@pytest.mark.parametrize(
    ("wanted", "forced"),
    [
        ({"response_format": {"type": "json_object"}}, '{"answer": "some words"}'),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 2}}}}, "2"),
        ({"response_format": {"type": "text"}}, ""),
        ({"structured_outputs": {"json": {"const": 2}, "regex": None}}, "2"),
        ({"structured_outputs": {"json": None}}, ""),
    ],
)
def test_structured_outputs(wanted: dict[str, Any], forced: str) -> None:
    assert read({"messages": HELLO, **wanted}, chat=True).grammar == forced


def test_a_request_in_ids() -> None:
    body = {"token_ids": [5, 6], "stream": True, "sampling_params": {"max_tokens": 3, "stop": "x", "seed": 4}}
    request = parse_tokens(body, OFFER)
    assert (request.prompts, request.by_ids, request.max_tokens) == (((5, 6),), True, 3)
    assert (request.stream, request.stops, request.seed) == (True, ("x",), 4)
    assert parse_tokens({"token_ids": [5], "sampling_params": {}}, OFFER).max_tokens == 99


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"token_ids": [5]}, "body.sampling_params"),
        ({"token_ids": [], "sampling_params": {}}, "body.token_ids"),
        ({"token_ids": "hi", "sampling_params": {}}, "token_ids"),
        ({"token_ids": [VOCABULARY_SIZE], "sampling_params": {}}, None),
        ({"token_ids": [5], "model": "other", "sampling_params": {}}, "model"),
    ],
)
def test_a_request_in_ids_that_is_refused(body: dict[str, Any], param: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_tokens(body, OFFER)
    assert refused.value.param == param
