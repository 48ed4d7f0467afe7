"""Messages as chat answers: plain and streamed, however the bytes are cut, and what is no whole answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloud.providers.anthropic import ChatReader, ChatRelay, MessagesReader, MessagesRelay
from cloud.providers.wire import LONGEST_EVENT, Relay
from policies.spend import Usage
from tests.support.provider_streams import USAGE, event, lines, message, message_stream, read_chat

READER = ChatReader(model="claude", created=1_700_000_000, usage_asked=True)
TEXT = {"type": "text", "text": "Grüße, 世界 🎉!"}
THINKING = {"type": "thinking", "thinking": "hmm, a greeting", "signature": "c2ln"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern", "days": [1, 2]}}
BARE = {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}}
SPENT = Usage(fresh=20, cached=7, cache_write=3, output=9)


def plain(content: list[Any], stop: str = "end_turn", **fields: Any) -> Any:
    answer = READER.answer(json.dumps(message(content, stop, **fields)).encode())
    assert answer.error == ""
    assert answer.usage == SPENT
    return json.loads(answer.body)


def run(relay: Relay, parts: list[bytes]) -> bytes:
    return b"".join([relay.feed(part) for part in parts]) + relay.end()


def streamed(content: list[Any], stop: str = "end_turn", **fields: Any) -> Any:
    relay = READER.relay()
    out = read_chat(run(relay, message_stream(message(content, stop, **fields))))
    assert (relay.whole, relay.begun, relay.error, relay.usage) == (True, True, "", SPENT)
    assert (out["done"], out["roles"]) == (True, 1)
    return out


@pytest.mark.parametrize(
    ("content", "stop", "finish"),
    [
        ([TEXT], "end_turn", "stop"),
        ([TEXT], "stop_sequence", "stop"),
        ([TEXT], "max_tokens", "length"),
        ([TEXT], "model_context_window_exceeded", "length"),
        ([TEXT], "refusal", "content_filter"),
        ([TEXT], "a_reason_of_tomorrow", "stop"),
        ([THINKING, TEXT], "end_turn", "stop"),
        ([THINKING, {"type": "redacted_thinking", "data": "xx"}, TEXT, USE], "tool_use", "tool_calls"),
        ([USE, BARE, {**USE, "id": "toolu_3"}], "tool_use", "tool_calls"),
        ([TEXT, {"type": "a_block_of_tomorrow", "x": 1}, TEXT], "end_turn", "stop"),
        ([], "end_turn", "stop"),
    ],
)
def test_a_stream_comes_to_what_the_plain_answer_says(content, stop, finish):
    whole, out = plain(content, stop), streamed(content, stop)
    said = whole["choices"][0]["message"]
    assert (said["content"] or "") == out["content"]
    assert said.get("reasoning_content", "") == out["reasoning"]
    assert whole["choices"][0]["finish_reason"] == out["finish"] == finish
    assert whole["usage"] == out["usage"]
    calls = said.get("tool_calls", [])
    assert [call["id"] for call in calls] == [call["id"] for call in out["calls"].values()]
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        (call["name"], json.loads(call["arguments"])) for call in out["calls"].values()
    ]


def test_the_plain_answer_in_full():
    assert plain([THINKING, TEXT, USE], "tool_use") == {
        "id": "chatcmpl-01",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "claude-test",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": TEXT["text"],
                    "reasoning_content": THINKING["thinking"],
                    "tool_calls": [
                        {
                            "id": "toolu_1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city":"Bern","days":[1,2]}'},
                        }
                    ],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 9,
            "total_tokens": 39,
            "prompt_tokens_details": {"cached_tokens": 7, "created_cache_tokens": 3},
        },
    }


def test_a_call_alone_has_no_content():
    assert plain([USE], "tool_use")["choices"][0]["message"]["content"] is None


def test_the_stop_string_is_named():
    whole = plain([TEXT], "stop_sequence", stop_sequence="END")
    assert whole["choices"][0]["stop_reason"] == "END"


def test_the_usage_chunk_is_for_those_who_ask():
    relay = ChatReader(model="m", created=0, usage_asked=False).relay()
    out = read_chat(run(relay, message_stream(message([TEXT]))))
    assert out["usage"] is None
    assert relay.usage == SPENT


def test_a_later_count_overrides_only_what_it_carries():
    parts = message_stream(message([TEXT]))
    told = {"input_tokens": 21, "output_tokens": 10, "cache_read_input_tokens": None}
    parts[-2] = event("message_delta", delta={"stop_reason": "end_turn"}, usage=told)
    relay = READER.relay()
    run(relay, parts)
    assert relay.usage == Usage(fresh=21, cached=7, cache_write=3, output=10)


def test_writes_for_an_hour_are_told_apart():
    usage = {**USAGE, "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2}}
    answer = READER.answer(json.dumps(message([TEXT], usage=usage)).encode())
    assert answer.usage == Usage(fresh=20, cached=7, cache_write=1, cache_write_1h=2, output=1)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        {"input_tokens": 1},
        {"input_tokens": "1", "output_tokens": 1},
        {"input_tokens": -1, "output_tokens": 1},
    ],
)
def test_a_usage_of_another_shape_is_none_told(usage):
    answer = READER.answer(json.dumps(message([TEXT], usage=usage)).encode())
    assert answer.usage is None
    assert answer.error == ""
    assert json.loads(answer.body)["usage"] is None


def test_a_stream_without_its_start():
    """As llama.cpp sends where the first token has no text: the prompt's tokens are not known then."""
    relay = READER.relay()
    out = read_chat(run(relay, message_stream(message([TEXT]))[1:]))
    assert (out["content"], out["finish"], out["roles"], out["done"]) == (TEXT["text"], "stop", 1, True)
    assert relay.whole
    assert relay.usage is None


def test_the_prompt_may_be_told_at_the_end():
    parts = message_stream(message([TEXT]))[1:]
    parts[-2] = event(
        "message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 4, "output_tokens": 2}
    )
    relay = READER.relay()
    run(relay, parts)
    assert relay.usage == Usage(fresh=4, cached=0, cache_write=0, output=2)


BOTH = [READER, MessagesReader()]
ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})


@pytest.mark.parametrize("reader", BOTH)
@pytest.mark.parametrize("at", [0, 1, 3, 5, -1])
def test_an_error_ends_the_stream_and_is_not_passed_on(reader, at):
    parts = message_stream(message([TEXT]))
    relay = reader.relay()
    out = run(relay, [*parts[:at], ERROR, *parts[at:]])
    assert relay.error == "overloaded_error: Overloaded"
    assert not relay.whole
    assert relay.begun == (at in (5, -1))
    assert b"Overloaded" not in out
    assert b"DONE" not in out
    assert b"message_stop" not in out


@pytest.mark.parametrize("reader", BOTH)
@pytest.mark.parametrize("shape", ["cut", "no reason", "no stop event"])
def test_whole_only_with_a_stop_reason(reader, shape):
    parts = message_stream(message([TEXT]))
    if shape == "cut":
        parts = parts[:6]
    elif shape == "no reason":  # as vLLM ends an aborted one
        parts[-2] = event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 9})
    else:
        parts = parts[:-1]
    relay = reader.relay()
    out = run(relay, parts)
    assert relay.whole == (shape == "no stop event")
    assert bool(relay.error) == (shape != "no stop event")
    assert (b"[DONE]" in out) == (reader is READER and relay.whole)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"\xff\xfe",
        b'{"type":"error","error":{"type":"api_error","message":"no"}}',
        b'{"type":"message","content":"x","stop_reason":"end_turn"}',
        b'{"type":"message","content":[],"stop_reason":null}',
        b'{"type":"message","content":[{"type":"tool_use"}],"stop_reason":"tool_use"}',
        b'{"type":"message","content":[{"type":"text","text":5}],"stop_reason":"end_turn"}',
        b'{"type":"message","content":[{"type":["x"]}],"stop_reason":["x"]}',
    ],
)
def test_no_whole_message(body):
    answer = READER.answer(body)
    assert answer.error
    assert answer.usage is None


def test_the_client_of_the_same_form_gets_what_came():
    raw = json.dumps(message([THINKING, TEXT]), indent=1).encode()
    assert MessagesReader().answer(raw).body == raw
    assert MessagesReader().answer(raw).usage == SPENT
    stream = b"".join(message_stream(message([THINKING, TEXT])))
    relay = MessagesRelay()
    assert relay.feed(stream) + relay.end() == stream
    assert (relay.whole, relay.usage) == (True, SPENT)


cuts = st.lists(st.integers(0, 10_000), max_size=30)
contents = st.lists(st.sampled_from([TEXT, THINKING, USE, BARE]), max_size=4)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *borders], [*borders, len(data)], strict=True)]


def told(relay: Relay, parts: list[bytes]) -> tuple[Any, ...]:
    return (lines(run(relay, parts)), relay.usage, relay.begun, relay.whole, relay.error)


@given(contents, cuts, st.sampled_from([b"\n", b"\r\n"]), st.integers(0, 3_000))
@example([THINKING, TEXT, USE], list(range(10_000)), b"\r\n", 0)  # each byte by itself
def test_however_it_is_cut(content, places, newline, lost):
    """Also inside characters and ends of lines, and of a stream that breaks anywhere."""
    data = b"".join(message_stream(message(content))).replace(b"\n", newline)
    data = data[: max(0, len(data) - lost)] if lost % 2 else data
    for relay in (READER.relay, MessagesReader().relay):
        assert told(relay(), cut(data, places)) == told(relay(), [data])


@given(st.lists(st.binary(max_size=40) | st.sampled_from(message_stream(message([TEXT, USE]))), max_size=12))
def test_garbage_never_raises(parts):
    for reader in BOTH:
        relay = reader.relay()
        run(relay, parts)
        assert relay.whole != bool(relay.error)


nodes = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["tool_use", "text", "text_delta"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "text", "index", "usage", "stop_reason", "id"]), inner)
    ),
    max_leaves=6,
)


@given(
    st.lists(
        st.builds(
            event,
            st.sampled_from(["message_start", "content_block_start", "content_block_delta", "message_delta",
                             "content_block_stop", "message_stop"]),
            index=nodes, message=nodes, content_block=nodes, delta=nodes, usage=nodes,
        ),
        max_size=4,
    )
)  # fmt: skip
def test_events_of_another_shape_never_raise(parts):
    for reader in BOTH:
        relay = reader.relay()
        run(relay, parts)
        assert relay.whole != bool(relay.error)


def test_an_endless_event_is_bounded():
    relay = ChatRelay("m", 0, usage_asked=False)
    piece = b"x" * (1024 * 1024)
    relay.feed(b"data: ")
    for _ in range(LONGEST_EVENT // len(piece)):
        relay.feed(piece)
    assert "longer than" in relay.error
    assert relay.feed(b"\n\n") == b""
