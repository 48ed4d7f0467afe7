"""What becomes of a stream that breaks is decided from its request."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from orchestrator.gateway.asked import Asked, ask
from orchestrator.gateway.continuation import Capability, Kind, Way, plan_of, prepared

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = "application/json"
FUNCTION = {"type": "function", "function": {"name": "f"}}
STRICT = {"type": "function", "function": {"name": "f", "strict": True}}
PICTURE = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]


def asked(path: str = CHAT, **fields: Any) -> Asked:
    body = {"model": "m", "stream": True, **fields}
    body |= {"messages": [{"role": "user", "content": "hi"}], **fields} if path == CHAT else {}
    return ask("POST", path, JSON, orjson.dumps(body))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.EXACT, {}),
        (Kind.EXACT, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "logit_bias": {"5": 1}}),
        (Kind.EXACT, {"temperature": 0, "seed": 3}),
        (Kind.EXACT, {"stop": []}),
        (Kind.EXACT, {"stop": [""], "response_format": {"type": "text"}, "logprobs": False}),
        (Kind.EXACT, {"tools": [FUNCTION], "tool_choice": "none"}),
        (Kind.PARSED, {"tools": [FUNCTION]}),
        (Kind.PARSED, {"tools": [FUNCTION], "tool_choice": "auto"}),
        (Kind.OURS, {"stop": "x"}),
        (Kind.OURS, {"stop": ["x", "yz"]}),
        (Kind.INEXACT, {"presence_penalty": 0.5}),
        (Kind.INEXACT, {"frequency_penalty": -1}),
        (Kind.INEXACT, {"seed": 0}),
        (Kind.INEXACT, {"logprobs": True, "top_logprobs": 2}),
        (Kind.INEXACT, {"seed": 1, "tools": [FUNCTION]}),
        (Kind.AGAIN, {"response_format": {"type": "json_object"}}),
        (Kind.AGAIN, {"response_format": {"type": "json_schema", "json_schema": {}}}),
        (Kind.AGAIN, {"structured_outputs": {"regex": "a+"}}),
        (Kind.AGAIN, {"guided_json": {"type": "object"}}),
        (Kind.AGAIN, {"tools": [FUNCTION], "tool_choice": "required"}),
        (Kind.AGAIN, {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (Kind.AGAIN, {"tools": [STRICT]}),
        (Kind.AGAIN, {"tools": [FUNCTION], "stop": "x"}),
        (Kind.AGAIN, {"messages": [{"role": "user", "content": PICTURE}]}),
        (Kind.AGAIN, {"thinking_token_budget": 0}),
        (Kind.ENDED, {"n": 2}),
        (Kind.ENDED, {"use_beam_search": True}),
        (Kind.ENDED, {"echo": True, "response_format": {"type": "json_object"}}),
        (Kind.ENDED, {"prompt_logprobs": 0}),
        (Kind.ENDED, {"stream": False}),
    ],
)
def test_the_kind_of_a_chat(kind: Kind, fields: dict[str, Any]) -> None:
    plan = plan_of(asked(**fields))
    assert plan.kind is kind
    assert bool(plan.why) == (kind in (Kind.INEXACT, Kind.AGAIN, Kind.ENDED))
    assert plan.inexact == (kind is Kind.INEXACT)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.EXACT, {"prompt": "a"}),
        (Kind.EXACT, {"prompt": [1, 2, 3]}),
        (Kind.EXACT, {"prompt": ["a"]}),
        (Kind.INEXACT, {"prompt": "a", "logprobs": 0}),
        (Kind.ENDED, {"prompt": ["a", "b"]}),
        (Kind.ENDED, {"prompt": "a", "echo": True}),
        (Kind.AGAIN, {"prompt_embeds": "AAAA"}),
    ],
)
def test_the_kind_of_a_text(kind: Kind, fields: dict[str, Any]) -> None:
    assert plan_of(asked(TEXT, **fields)).kind is kind


def test_other_dialects_are_not_continued() -> None:
    body = orjson.dumps({"model": "m", "input": "a", "stream": True})
    assert plan_of(ask("POST", "/v1/responses", JSON, body)).kind is Kind.ENDED
    assert plan_of(ask("POST", "/v1/embeddings", JSON, body)).kind is Kind.ENDED


@pytest.mark.parametrize(
    "fields",
    [{"tools": 5}, {"tools": [5]}, {"messages": "x"}, {"messages": [5]}, {"stop": 5}, {"response_format": 1}],
)
def test_a_request_that_makes_no_sense_has_a_plan(fields: dict[str, Any]) -> None:
    assert plan_of(asked(**fields)).kind in Kind


ABLE = Capability(way=Way.CLEAN, identity="x")


def test_a_body_asks_for_ids_and_is_otherwise_as_it_came() -> None:
    raw = (
        b'  {"model": "m", "stream": true,\n "messages": [{"role": "u", "content": "\\u00e9"}], "top_p": 1.0}'
    )
    request = ask("POST", CHAT, JSON, raw)
    body = prepared(request, plan_of(request), ABLE, asks=False)
    assert body == b'{"return_token_ids":true,' + raw[3:]
    assert orjson.loads(body) == {**orjson.loads(raw), "return_token_ids": True}


@pytest.mark.parametrize("ids", [True, False])
def test_a_body_asks_for_the_usage_where_it_is_wanted(ids: bool) -> None:
    raw = b'{"model": "m", "stream": true, "messages": []}'
    request = ask("POST", CHAT, JSON, raw)
    body = prepared(request, plan_of(request) if ids else None, ABLE, asks=True)
    wanted = {"return_token_ids": True} if ids else {}
    assert orjson.loads(body) == {**orjson.loads(raw), **wanted, "stream_options": {"include_usage": True}}


def test_the_usage_is_asked_for_at_the_end_and_not_in_every_chunk() -> None:
    options = {"continuous_usage_stats": True, "include_obfuscation": False}
    raw = orjson.dumps({"model": "m", "stream": True, "messages": [], "stream_options": options})
    request = ask("POST", CHAT, JSON, raw)
    sent = orjson.loads(prepared(request, None, ABLE, asks=True))
    assert sent["stream_options"] == {"include_obfuscation": False, "include_usage": True}


@pytest.mark.parametrize("client", [False, None, 0])
def test_a_client_that_wants_no_ids_does_not_keep_them_from_the_gateway(client: Any) -> None:
    request = asked(return_token_ids=client)
    body = orjson.loads(prepared(request, plan_of(request), ABLE, asks=False))
    assert body == {**orjson.loads(request.raw), "return_token_ids": True}


@pytest.mark.parametrize(
    ("fields", "capability"),
    [
        ({}, Capability()),
        ({"return_token_ids": True}, ABLE),
        ({"response_format": {"type": "json_object"}}, ABLE),
        ({"n": 2}, ABLE),
    ],
)
def test_where_ids_are_of_no_use_the_body_stays(fields: dict[str, Any], capability: Capability) -> None:
    request = asked(**fields)
    assert prepared(request, plan_of(request), capability, asks=False) == request.raw
