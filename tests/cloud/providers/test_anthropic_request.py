"""Chat requests as messages: what is carried, what is left out and named, what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.providers.anthropic_request import OUTPUT_TOKENS, _blocks, messages_of
from cloud.providers.kinds import wire_of
from cloud.providers.wire import Call, Untranslatable

HI = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}
BAD_CALL = {**CALL, "function": {"name": "f", "arguments": "[1"}}
PNG = "iVBORw0KGgo="


def told(*, sampling: bool = False, most_output: int = 0, stream: bool = False, **inner: Any) -> Any:
    return messages_of(
        {"messages": HI, **inner}, model="claude", stream=stream, sampling=sampling, most_output=most_output
    )


def body(**inner: Any) -> Any:
    return told(**inner)[0]


def refused(**inner: Any) -> str:
    with pytest.raises(Untranslatable) as caught:
        told(**inner)
    assert caught.value.text
    return caught.value.param


def test_the_least():
    assert body() == {"model": "claude", "max_tokens": OUTPUT_TOKENS, "messages": HI}


@pytest.mark.parametrize(
    ("fields", "most", "limit"),
    [
        ({}, 64_000, 64_000),
        ({"max_tokens": 7}, 64_000, 7),
        ({"max_completion_tokens": 8, "max_tokens": 7}, 0, 8),
        ({"max_tokens": 100_000}, 64_000, 64_000),
        ({"max_tokens": None}, 0, OUTPUT_TOKENS),
    ],
)
def test_the_most_tokens(fields, most, limit):
    assert body(most_output=most, **fields)["max_tokens"] == limit


@pytest.mark.parametrize("value", [0, -1, "7", 7.5, True])
def test_a_limit_that_is_none_is_refused(value):
    assert refused(max_tokens=value) == "max_tokens"


def test_system_messages_lead():
    out, dropped = told(
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "and kind"}]},
            *HI,
            {"role": "system", "content": "in French"},
            {"role": "user", "content": "again"},
        ]
    )
    assert [block["text"] for block in out["system"]] == ["be brief", "and kind", "in French"]
    assert out["messages"] == [{"role": "user", "content": [text("hi"), text("again")]}]
    assert dropped == ("messages.3: its place",)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_a_tool_round():
    out = body(
        tools=[TOOL],
        messages=[
            *HI,
            {"role": "assistant", "content": "let me see", "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
            {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "rain"}]},
            {"role": "user", "content": "and?"},
        ],
    )
    use = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bern"}}
    assert out["messages"][1:] == [
        {"role": "assistant", "content": [text("let me see"), use, {**use, "id": "call_2"}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "sun"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": "rain"},
                text("and?"),
            ],
        },
    ]
    assert out["tools"] == [
        {"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}
    ]
    assert "tool_choice" not in out


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"type": "tool", "name": "weather"},
        ),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_tool_choices(fields, choice):
    assert body(tools=[TOOL], **fields)["tool_choice"] == choice


def test_strange_call_ids_stay_pairs_and_apart():
    ids = ["functions.f:0", "functions.f.0", "plain-1_A"]
    out = body(
        messages=[
            *HI,
            {"role": "assistant", "tool_calls": [{**CALL, "id": each} for each in ids]},
            *({"role": "tool", "tool_call_id": each, "content": each} for each in ids),
        ]
    )
    uses = [block["id"] for block in out["messages"][1]["content"]]
    assert [block["tool_use_id"] for block in out["messages"][2]["content"]] == uses
    assert len(set(uses)) == 3
    assert uses[2] == "plain-1_A"
    assert all(each.replace("_", "").replace("-", "").isalnum() for each in uses)


@pytest.mark.parametrize(
    ("url", "source"),
    [
        (f"data:image/png;base64,{PNG}", {"type": "base64", "media_type": "image/png", "data": PNG}),
        (
            f"data:image/jpg;name=x;base64,{PNG}",
            {"type": "base64", "media_type": "image/jpeg", "data": PNG},
        ),
        ("https://pictures.example/a.png", {"type": "url", "url": "https://pictures.example/a.png"}),
    ],
)
def test_images(url, source):
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it?"}]
    out = body(messages=[{"role": "user", "content": parts}])
    assert out["messages"][0]["content"] == [{"type": "image", "source": source}, text("what is it?")]


def test_an_empty_text_leaves_what_follows_it():
    parts = [{"type": "text", "text": text} for text in ("", "one", "", "two")]
    assert _blocks("content", parts, "user", []) == [
        {"type": "text", "text": "one"},
        {"type": "text", "text": "two"},
    ]


def test_the_detail_of_an_image_is_named():
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}}
    assert told(messages=[{"role": "user", "content": [part]}])[1] == (
        "messages.0.content.0.image_url.detail",
    )


def test_cache_marks_pass():
    mark = {"type": "ephemeral"}
    part = {"type": "text", "text": "long", "cache_control": mark}
    out = body(messages=[{"role": "user", "content": [part]}], tools=[{**TOOL, "cache_control": mark}])
    assert out["messages"][0]["content"] == [part]
    assert out["tools"][0]["cache_control"] == mark


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"user": "u1"}, {"metadata": {"user_id": "u1"}}),
        ({"safety_identifier": "u2"}, {"metadata": {"user_id": "u2"}}),
        ({"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
        ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"thinking": {"type": "disabled"}}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"thinking": {"type": "adaptive"}}),
        (
            {"chat_template_kwargs": {"thinking": True}, "thinking_token_budget": 2000},
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        ),
        (
            {
                "reasoning_effort": "low",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "object"}},
                },
            },
            {
                "output_config": {
                    "effort": "low",
                    "format": {"type": "json_schema", "schema": {"type": "object"}},
                }
            },
        ),
        ({"response_format": {"type": "text"}}, {}),
        ({"stream": True}, {"stream": True}),
        (
            {
                "n": 1, "logprobs": False, "logit_bias": {}, "metadata": {"a": "b"}, "store": True,
                "stream_options": {"include_usage": True}, "presence_penalty": 0, "seed": None, "top_p": 1.0,
                "functions": None, "parallel_tool_calls": True, "tools": [], "tool_choice": "auto",
            },
            {},
        ),
    ],
)  # fmt: skip
def test_carried_or_idle(fields, expected):
    out, dropped = told(**fields)
    assert out == {**body(), **expected}
    assert dropped == ()


DRAWN = {"temperature": 0, "top_p": 0.9, "top_k": 40}
OTHERS = {
    "min_p": 0.1,
    "seed": 0,
    "presence_penalty": 0.5,
    "frequency_penalty": -1,
    "repetition_penalty": 1.1,
}


def test_models_that_draw_as_they_like_are_not_told_and_that_is_named():
    out, dropped = told(**DRAWN, **OTHERS)
    assert out == body()
    assert set(dropped) == DRAWN.keys() | OTHERS.keys()


def test_sampling_models_are_told():
    out, dropped = told(sampling=True, **DRAWN)
    assert out == {**body(), **DRAWN}
    assert dropped == ()


@pytest.mark.parametrize("name", OTHERS)
def test_what_sampling_models_have_no_word_for_is_refused(name):
    assert refused(sampling=True, **{name: OTHERS[name]}) == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"web_search_options": {"x": 1}}, "web_search_options"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"stop_token_ids": [1]}, "stop_token_ids"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"lang": "fr"}}, "chat_template_kwargs"),
        ({"verbosity": "low"}, "verbosity"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"thinking_token_budget": 4096}, "thinking_token_budget"),
        ({"stop": "\n\n"}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [*HI, {"role": "assistant", "content": "It is"}]}, "messages"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages.0.role"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages.0.weight"),
        (
            {"messages": [{"role": "assistant", "audio": {"id": "a"}}, *HI]},
            "messages.0.audio",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages.0.content.0",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages.0.content.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]},
            "messages.0.content.0.image_url.url",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "tool_calls": [BAD_CALL]}]},
            "messages.1.tool_calls.0.function.arguments",
        ),
        ({"messages": [*HI, {"role": "tool", "content": "x"}]}, "messages.1.tool_call_id"),
    ],
)  # fmt: skip
def test_refused_by_name(fields, param):
    assert refused(**fields) == param


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.floats(0, 2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "messages", "tools", "tool_choice", "stop", "response_format", "max_tokens", "user", "reasoning_effort",
    "chat_template_kwargs", "thinking_token_budget", "temperature", "stream_options", "n", "role", "content",
    "tool_calls", "function", "name", "arguments", "type", "text", "image_url", "url", "json_schema",
    "schema",
]  # fmt: skip
objects = st.dictionaries(st.sampled_from(NAMES), json_values, max_size=5)


@given(
    objects,
    st.lists(objects | st.builds(lambda r, o: {**o, "role": r}, st.sampled_from(["user", "tool"]), objects)),
    st.booleans(),
)
def test_whatever_comes_is_told_or_refused_by_name(inner, messages, sampling):
    """No other exception, and what is told is JSON of the least that the API asks for."""
    try:
        out, _ = told(sampling=sampling, **{**inner, "messages": messages or inner.get("messages", HI)})
    except Untranslatable as refusal:
        named, out = refusal.param, {}
    else:
        named = ""
    assert bool(named) != bool(out and json.loads(json.dumps(out))["messages"])


def call(**options: Any) -> Call:
    wire = wire_of("anthropic", options.pop("url", "https://api.anthropic.com"), **options)
    return wire.request({"messages": HI}, model="claude", key="k1", stream=False, created=1)


def test_keys_go_as_the_version_has_it():
    old, new = call(), call(api_version="2026-10-21")
    assert old.headers["x-api-key"] == "k1"
    assert "Authorization" not in old.headers
    assert new.headers["Authorization"] == "Bearer k1"
    assert "x-api-key" not in new.headers
    assert (old.headers["anthropic-version"], new.headers["anthropic-version"]) == (
        "2023-06-01",
        "2026-10-21",
    )


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://api.anthropic.com", "/v1/messages"),
        ("https://api.anthropic.com/v1/", "/v1/messages"),
        ("http://127.0.0.1:1/proxy", "/proxy/v1/messages"),
    ],
)
def test_where_it_goes(url, path):
    assert call(url=url).path == path


def native(path: str, headers: dict[str, str], fields: Any) -> Call:
    wire = wire_of("anthropic", "https://api.anthropic.com")
    return wire.native(
        json.dumps(fields).encode(), model="m", key="k", stream=False, path=path, headers=headers
    )


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_a_message_stays_but_for_the_model(path):
    fields = {"model": "route", "max_tokens": 5, "messages": [], "thinking": {"type": "adaptive"}, "new": 1}
    headers = {"Anthropic-Beta": "b1", "X-Api-Key": "client's", "Authorization": "client's"}
    call = native(path, headers, fields)
    assert json.loads(call.body) == {**fields, "model": "m"}
    assert call.headers["anthropic-beta"] == "b1"
    assert call.headers["x-api-key"] == "k"
    assert "Authorization" not in call.headers
    assert call.path == path


def test_counting_is_free():
    read = native("/v1/messages/count_tokens", {}, {"messages": []}).reader
    answer = read.answer(b'{"input_tokens": 7}')
    assert answer.usage is not None
    assert (answer.usage.prompt, answer.usage.output, answer.error) == (0, 0, "")
    assert read.answer(b"{}").error


def test_paths_of_another_form_are_refused():
    with pytest.raises(Untranslatable, match="path"):
        native("/v1/embeddings", {}, {})


def test_kinds():
    with pytest.raises(ValueError, match="openai or anthropic"):
        wire_of("other", "https://x")
