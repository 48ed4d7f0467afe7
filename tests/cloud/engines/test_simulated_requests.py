"""Which requests the simulated engine takes, and what it says to the others."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cloud.engines.simulated_server.requests import BadRequest, InferenceRequest, parse
from cloud.engines.simulated_server.tokens import VOCABULARY_SIZE, chat_prompt, encode

HELLO = [{"role": "user", "content": "hello"}]


def read(body: Any, *, chat: bool = False) -> InferenceRequest:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return parse(data, chat=chat, model_name="tiny", max_model_len=100)


def test_what_a_completion_gets_without_asking() -> None:
    assert read({"prompt": "hello"}) == InferenceRequest(
        chat=False,
        prompt=encode("hello"),
        by_ids=False,
        max_tokens=16,
        stream=False,
        include_usage=False,
        return_token_ids=False,
        ignore_eos=False,
        seed=None,
        stops=(),
    )


def test_a_chat_gets_the_rest_of_the_context() -> None:
    request = read({"model": "tiny", "messages": HELLO}, chat=True)
    assert request.prompt == chat_prompt([("user", "hello")])
    assert request.max_tokens == 100 - len(request.prompt)
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
    assert request.prompt == (1, 2, 3)
    assert request.by_ids
    assert request.stream
    assert request.include_usage
    assert request.return_token_ids
    assert request.ignore_eos
    assert (request.max_tokens, request.seed, request.stops) == (5, 7, ("\n", "END"))
    assert read({"prompt": "a", "stop": "x"}).stops == ("x",)


def test_output_is_cut_to_the_context() -> None:
    assert read({"prompt": [1] * 90, "max_tokens": 100}).max_tokens == 10


@pytest.mark.parametrize("prompt", [["hello"], [[26984]]])
def test_a_batch_of_one_is_one(prompt: Any) -> None:
    assert len(read({"prompt": prompt}).prompt) > 0


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert read({"messages": [{"role": "user", "content": parts}]}, chat=True).prompt == chat_prompt(
        [("user", "hello")]
    )


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (b"{", 400, "body", "JSON"),
        ([], 400, "body", "object"),
        ({"prompt": "a", "model": "other"}, 404, "model", "Valid aliases: tiny"),
        ({}, 400, "prompt", "non-empty"),
        ({"prompt": []}, 400, "prompt", "non-empty"),
        ({"prompt": ["a", "b"]}, 400, "prompt", "one text"),
        ({"prompt": {"a": 1}}, 400, "prompt", "one text"),
        ({"prompt": [-1]}, 400, None, "out of vocabulary"),
        ({"prompt": [VOCABULARY_SIZE]}, 400, None, "out of vocabulary"),
        ({"prompt": [1] * 100}, 400, "input_tokens", "maximum context length is 100"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "at least 1"),
        ({"prompt": "a", "max_tokens": 101}, 400, "max_tokens", "max_model_len=100"),
        ({"prompt": "a", "max_tokens": "5"}, 400, "max_tokens", "whole number"),
        ({"prompt": "a", "max_tokens": True}, 400, "max_tokens", "whole number"),
        ({"prompt": "a", "seed": 1.5}, 400, "seed", "whole number"),
        ({"prompt": "a", "n": 2}, 400, "n", "one answer"),
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
