"""What is told of a continuation has the shape of the stream before it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.gateway.continuation.sampling import least_of, limit_of, sampling_of
from orchestrator.gateway.continuation.shape import told_logprobs, usage_of, without_nulls

TOLD = {
    "text_offset": [0, 2],
    "token_logprobs": [-1.0, -2.0],
    "tokens": ["é", "b"],
    "top_logprobs": [{"é": -1.0, "c": -3.0}, {"b": -2.0}],
}


def test_logprobs_of_a_text_count_from_the_answers_start() -> None:
    assert told_logprobs(TOLD, 0, 10, chat=False) == {**TOLD, "text_offset": [10, 12]}
    told = told_logprobs(TOLD, 1, 10, chat=False)
    assert told is not None
    assert (told["tokens"], told["text_offset"]) == (["b"], [12])


def test_logprobs_of_a_chat_have_the_chats_form() -> None:
    first = {"token": "é", "logprob": -1.0, "bytes": [195, 169]}
    second = {"token": "b", "logprob": -2.0, "bytes": [98]}
    other = {"token": "c", "logprob": -3.0, "bytes": [99]}
    assert told_logprobs(TOLD, 0, 10, chat=True) == {
        "content": [{**first, "top_logprobs": [first, other]}, {**second, "top_logprobs": [second]}]
    }
    assert told_logprobs({**TOLD, "top_logprobs": None}, 1, 0, chat=True) == {
        "content": [{**second, "top_logprobs": []}]
    }


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("told", "skip"), [(None, 0), (TOLD, 2), (TOLD, 3)])
def test_nothing_left_to_tell_is_null(told: dict[str, Any] | None, skip: int, chat: bool) -> None:
    assert told_logprobs(told, skip, 0, chat=chat) is None


@pytest.mark.parametrize(
    ("fields", "chat", "limit"),
    [
        ({}, False, 16),
        ({"max_tokens": None}, False, None),
        ({"max_tokens": 5}, False, 5),
        ({}, True, None),
        ({"max_tokens": 5}, True, 5),
        ({"max_completion_tokens": 4, "max_tokens": 5}, True, 4),
        ({"max_completion_tokens": None, "max_tokens": 5}, True, 5),
    ],
)
def test_the_limit_is_the_one_the_engine_would_take(
    fields: dict[str, Any], chat: bool, limit: int | None
) -> None:
    assert limit_of(fields, chat=chat) == limit


def test_the_least_is_less_what_came() -> None:
    assert [least_of({"min_tokens": 5}, said) for said in (0, 4, 5, 9)] == [5, 1, 0, 0]
    assert least_of({}, 3) == 0


def test_sampling_is_the_requests_own() -> None:
    fields = {
        "temperature": 0,
        "top_k": 5,
        "seed": None,
        "stop": "x",
        "max_tokens": 4,
        "messages": [],
        "n": 1,
    }
    assert sampling_of(fields, chat=True) == {"temperature": 0, "top_k": 5}
    assert sampling_of({"logprobs": True}, chat=True) == {"logprobs": 0}
    assert sampling_of({"logprobs": True, "top_logprobs": 3}, chat=True) == {"logprobs": 3}
    assert sampling_of({"logprobs": False, "top_logprobs": 0}, chat=True) == {}
    assert sampling_of({"logprobs": 0}, chat=False) == {"logprobs": 0}


def test_nulls_go_at_any_depth() -> None:
    calls = [{"id": None, "index": 0, "function": {"name": None, "arguments": "{"}}]
    assert without_nulls({"content": None, "tool_calls": calls}) == {
        "tool_calls": [{"index": 0, "function": {"arguments": "{"}}]
    }
    assert usage_of(3, 4) == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
