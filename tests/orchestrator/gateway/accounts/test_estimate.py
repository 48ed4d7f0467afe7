"""What is counted where nobody tells: texts by their bytes, ids one by one, data by a constant."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from orchestrator.gateway.accounts import estimate
from orchestrator.gateway.accounts.estimate import PICTURE, answer_tokens, prompt_tokens


def test_the_examples_hold() -> None:
    failed, tried = doctest.testmod(estimate)
    assert (failed, tried > 0) == (0, True)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, 0),
        ({"model": "m" * 4000, "temperature": 0.5, "stop": "x" * 4000}, 0),
        ({"prompt": "a" * 400}, 100),
        ({"prompt": ["a" * 400, "b" * 400]}, 200),
        ({"prompt": [[1, 2, 3], [4]]}, 4),
        ({"input": "世界" * 20}, 30),
        ({"input": ["a" * 40, {"text": "b" * 36}]}, 20),
        ({"query": "q" * 8, "documents": ["d" * 8, {"text": "e" * 4}]}, 6),
        ({"messages": None, "prompt": 7, "input": True}, 0),
    ],
)
def test_a_prompt(body: dict[str, Any], expected: int) -> None:
    assert prompt_tokens(body) == expected


def test_a_picture_is_no_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 100_000}}
    found = prompt_tokens({"messages": [{"role": "user", "content": [picture]}]})
    assert PICTURE <= found <= PICTURE + 30


def test_tools_are_read_with_their_names() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a" * 400: {}}}}}
    assert prompt_tokens({"tools": [tool]}) > 100


def test_an_answer_is_its_texts() -> None:
    call = {"id": "call-" * 100, "type": "function", "function": {"name": "f", "arguments": "x" * 39}}
    message = {"role": "assistant", "content": "a" * 40, "reasoning": "b" * 40, "tool_calls": [call]}
    chat = {"id": "i" * 400, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    assert answer_tokens(chat) == 30
    said = {"content": [{"type": "text", "text": "a" * 40}], "stop_reason": "end_turn", "role": "assistant"}
    assert answer_tokens(said) == 10
    assert answer_tokens({"data": [{"embedding": [0.5] * 1000}]}) == 0


def test_it_is_as_deep_as_a_body_may_be() -> None:
    deep: Any = "a" * 40
    for _ in range(100_000):
        deep = [deep]
    assert prompt_tokens({"input": deep}) == 10
