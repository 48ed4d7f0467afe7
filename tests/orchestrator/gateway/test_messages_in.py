"""Anthropic Messages requests become chat requests; what cannot be carried is refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from orchestrator.gateway.dialects import Unfit, messages_in
from orchestrator.gateway.dialects.messages_in import auth_headers, chat_of, count_of

HI = [{"role": "user", "content": "hi"}]
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
WEATHER = {"name": "weather", "description": "of a city", "input_schema": {"properties": {"city": {}}}}
CACHED = {"cache_control": {"type": "ephemeral"}}


def asks(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 9, "messages": HI} | fields


def chat(**fields: Any) -> dict[str, Any]:
    return chat_of(asks(**fields))


def messages(*turns: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return chat(messages=list(turns), **fields)["messages"]


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def use(call_id: str = "c1", **more: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "weather", "input": {"city": "Bern"}, **more}


def result(content: Any = None, call_id: str = "c1", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **more}


def test_a_short_request_is_carried_as_it_is():
    assert chat() == {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def test_a_stream_asks_for_the_usage_that_its_first_event_tells():
    streamed = chat(stream=True)
    assert streamed["stream"] is True
    assert streamed["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_sampling_stops_and_user_keep_their_meaning():
    fields = {"temperature": 0, "top_p": 0.9, "top_k": 4, "stop_sequences": ["a", "b"]}
    carried = chat(**fields, metadata={"user_id": "u1"})
    assert carried == chat() | {"temperature": 0, "top_p": 0.9, "top_k": 4, "stop": ["a", "b"], "user": "u1"}


def test_fields_without_bearing_on_the_answer_are_dropped():
    fields = {"service_tier": "auto", "inference_geo": "eu", "context_management": {"edits": [1]}, **CACHED}
    assert chat(**fields, container=None, mcp_servers=[]) == chat()


def test_the_engines_own_fields_pass():
    assert chat(seed=5, cache_salt="s") == chat() | {"seed": 5, "cache_salt": "s"}


@pytest.mark.parametrize(
    ("system", "carried"),
    [
        ("be brief", "be brief"),
        ([text("a", **CACHED), text("b")], "ab"),
        ([text("x-anthropic-billing-header: 17"), text("b")], "b"),
        ("", None),
        ([], None),
    ],
)
def test_the_system_prompt_comes_first(system, carried):
    first = [{"role": "system", "content": carried}] if carried else []
    assert chat(system=system)["messages"] == [*first, {"role": "user", "content": "hi"}]


def test_a_system_message_between_turns_keeps_its_place():
    turns = messages(user(text("a")), {"role": "system", "content": "now"}, user(text("b")))
    assert turns == [
        {"role": "user", "content": "a"},
        {"role": "system", "content": "now"},
        {"role": "user", "content": "b"},
    ]


def test_messages_of_one_role_in_a_row_are_one_turn():
    turns = messages({"role": "user", "content": "a"}, user(text("b"), PNG))
    assert turns == [{"role": "user", "content": [text("a"), text("b"), PNG_PART]}]


def test_images_keep_their_place_among_texts():
    linked = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    turns = messages(user(text("see"), PNG, text("and"), linked))
    link = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert turns[0]["content"] == [text("see"), PNG_PART, text("and"), link]


def test_a_round_of_tools_is_carried_whole():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "xyz"}
    said = assistant(thought, hidden, text("I "), text("look"), use(), use("c2", caller={"type": "direct"}))
    back = user(result("sun", **CACHED), result([text("one"), text("two"), PNG], "c2"), text("so?"), text(""))
    turns = messages(HI[0], said, back, tools=[WEATHER])
    function = {"name": "weather", "arguments": '{"city":"Bern"}'}
    calls = [{"id": call_id, "type": "function", "function": function} for call_id in ("c1", "c2")]
    assert turns[1] == {"role": "assistant", "content": "I look", "reasoning": "hm", "tool_calls": calls}
    assert turns[2:] == [
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": "one\ntwo"},
        {"role": "user", "content": [PNG_PART, text("so?")]},
    ]


@pytest.mark.parametrize(
    ("given", "carried"),
    [
        (result("no such city", is_error=True), "Error: no such city"),
        (result(is_error=True), "Error: "),
        (result("fine", is_error=False), "fine"),
        (result(), ""),
    ],
)
def test_a_failed_tool_is_told_from_one_that_worked(given, carried):
    turns = messages(HI[0], assistant(use()), user(given))
    assert turns[2:] == [{"role": "tool", "tool_call_id": "c1", "content": carried}]


def test_tools_become_functions():
    strict = {**WEATHER, "type": "custom", "strict": True, "defer_loading": False, **CACHED}
    bare = {"name": "now", "input_schema": {"type": "object"}, "allowed_callers": ["direct"]}
    parameters = {"type": "object", "properties": {"city": {}}}
    first = {"name": "weather", "description": "of a city", "parameters": parameters, "strict": True}
    second = {"name": "now", "parameters": {"type": "object"}}
    assert chat(tools=[strict, bare])["tools"] == [
        {"type": "function", "function": first},
        {"type": "function", "function": second},
    ]
    assert "tools" not in chat(tools=[])


@pytest.mark.parametrize(
    ("choice", "carried"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "weather"},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
    ],
)
def test_the_choice_of_tools_keeps_its_meaning(choice, carried):
    assert chat(tools=[WEATHER], tool_choice=choice) == chat(tools=[WEATHER]) | carried


@pytest.mark.parametrize(
    ("thinking", "carried"),
    [
        ({"type": "disabled"}, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        (
            {"type": "enabled", "budget_tokens": 8, "display": "summarized"},
            {
                "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
                "thinking_token_budget": 8,
            },
        ),
        ({"type": "adaptive"}, {}),
    ],
)
def test_thinking_is_switched_in_the_template(thinking, carried):
    assert chat(thinking=thinking) == chat() | carried


def test_the_clients_own_template_fields_win():
    own = {"enable_thinking": True, "style": "x"}
    kwargs = chat(thinking={"type": "disabled"}, chat_template_kwargs=own)["chat_template_kwargs"]
    assert kwargs == {"enable_thinking": True, "thinking": False, "style": "x"}


def test_effort_and_schema_are_carried():
    schema = {"type": "object", "properties": {"a": {}}}
    carried = chat(output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}})
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert carried == chat() | {"reasoning_effort": "low", "response_format": form}


def test_the_engine_goes_on_with_a_last_assistant_message():
    carried = chat(messages=[*HI, {"role": "assistant", "content": "The answer is ("}])
    assert carried["messages"][-1] == {"role": "assistant", "content": "The answer is ("}
    assert (carried["add_generation_prompt"], carried["continue_final_message"]) == (False, True)
    assert carried["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}


def test_an_empty_last_assistant_message_asks_for_nothing():
    assert chat(messages=[*HI, {"role": "assistant", "content": ""}]) == chat()


DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
FILE = {"type": "image", "source": {"type": "file", "file_id": "f1"}}
BUDGET = {"type": "enabled", "budget_tokens": 5}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": [user(DOCUMENT)]}, "messages.0.content.0", "'document'"),
        ({"messages": [user({"type": "search_result"})]}, "messages.0.content.0", "'search_result'"),
        ({"messages": [user({"type": "container_upload"})]}, "messages.0.content.0", "'container_upload'"),
        ({"messages": [user(FILE)]}, "messages.0.content.0.source", "'file'"),
        ({"messages": [user(result([DOCUMENT]))]}, "messages.0.content.0.content.0", "'document'"),
        (
            {"messages": [user(result([{"type": "tool_reference"}]))]},
            "messages.0.content.0.content.0",
            "tool_ref",
        ),
        ({"messages": [assistant({"type": "server_tool_use"})]}, "messages.0.content.0", "'server_tool_use'"),
        ({"messages": [assistant({"type": "mcp_tool_use"})]}, "messages.0.content.0", "'mcp_tool_use'"),
        ({"messages": [assistant(PNG)]}, "messages.0.content.0", "'image' in assistant"),
        ({"messages": [user(use())]}, "messages.0.content.0", "'tool_use' in user"),
        (
            {"messages": [assistant(text("a", citations=[{}]))]},
            "messages.0.content.0.citations",
            "this field",
        ),
        ({"messages": [assistant(use(caller={"type": "x"}))]}, "messages.0.content.0.caller", "server tool"),
        ({"tools": [{"type": "web_search_20250305"}]}, "tools.0", "'web_search_20250305'"),
        ({"tools": [{"type": "mcp_toolset"}]}, "tools.0", "'mcp_toolset'"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools.0.defer_loading", "this field"),
        ({"tools": [{**WEATHER, "allowed_callers": ["code"]}]}, "tools.0.allowed_callers", "server tools"),
        ({"container": "c1"}, "container", "this field"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers", "this field"),
        ({"fallbacks": [{"model": "x"}]}, "fallbacks", "this field"),
        ({"output_config": {"task_budget": {"total": 1}}}, "output_config.task_budget", "this field"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format", "'xml'"),
        ({"messages": [*HI, assistant(use())]}, "messages", "more than text"),
        ({"messages": [*HI, assistant(text("a"))], "thinking": BUDGET}, "messages", "with thinking"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(fields, param, words):
    with pytest.raises(Unfit) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "not_carried", param)
    assert caught.value.message.startswith(f"{param}: ")
    assert words in caught.value.message
    assert "cannot be carried" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"system": 5}, "system"),
        ({"metadata": "u"}, "metadata"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0"),
        ({"messages": [user({"text": "x"})]}, "messages.0.content.0.type"),
        ({"messages": [user({"type": "text"})]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [*HI, assistant({**use(), "input": "x"}), *HI]}, "messages.1.content.0.input"),
        ({"messages": [*HI, {"role": "assistant", "content": "a "}]}, "messages"),
        ({"tools": {"name": "x"}}, "tools"),
        ({"tools": ["x"]}, "tools.0"),
        ({"tools": [{"name": "x", "input_schema": 5}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"tool_choice": {"type": ["auto"]}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
    ],
)
def test_a_broken_request_is_refused_at_its_place(fields, param):
    with pytest.raises(Unfit) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_request", param)


def test_counting_asks_for_the_prompt_that_would_be_answered():
    fields = {"system": "s", "tools": [WEATHER], "thinking": {"type": "disabled"}}
    sent, count = chat(**fields), count_of(asks(**fields, stop_sequences=["x"]))
    assert count == {name: value for name, value in sent.items() if name != "max_tokens"}


def test_counting_hands_the_effort_to_the_template():
    count = count_of({"model": "m", "messages": HI, "output_config": {"effort": "high"}})
    assert count["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "high"}


def test_the_clients_own_fields_are_left_alone():
    body = asks(tools=[WEATHER], messages=[user(text("a")), user(text("b"))], stream=True)
    before = orjson.dumps(body)
    chat_of(body)
    count_of(body)
    assert orjson.dumps(body) == before


@pytest.mark.parametrize(
    ("sent", "carried"),
    [
        ({"X-API-Key": "k"}, {"Authorization": "Bearer k"}),
        ({"x-api-key": "k", "authorization": "Bearer own"}, {"authorization": "Bearer own"}),
        ({"Authorization": "Bearer own"}, {"Authorization": "Bearer own"}),
        ({"x-api-key": "", "Accept": "*/*"}, {"Accept": "*/*"}),
    ],
)
def test_the_key_of_anthropics_clients_is_the_engines_bearer_token(sent, carried):
    headers = CIMultiDict(sent)
    auth_headers(headers)
    assert headers == CIMultiDict(carried)


def test_the_page_names_every_field_and_block():
    page = (Path(__file__).parents[3] / "docs/reference/anthropic.md").read_text()
    fields = messages_in._CARRIED | messages_in._RENAMED.keys() | messages_in._DROPPED | messages_in._ENGINES
    blocks = frozenset().union(*messages_in._BLOCKS_OF.values())
    assert [
        name for name in sorted(fields | blocks | messages_in._TOOL_FIELDS) if f"`{name}`" not in page
    ] == []
