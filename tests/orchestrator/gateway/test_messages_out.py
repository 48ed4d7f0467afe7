"""Chat answers become Anthropic messages that the `anthropic` SDK reads: plain, streamed, broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.gateway.asked import Asked, ask
from orchestrator.gateway.dialects.messages_out import MessagesEdge
from orchestrator.gateway.failure import Failure
from tests.support.chat_answers import DONE, ChatAnswer
from tests.support.messages_stand import Script, answered

REQUEST: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "hi"}],
    "stop_sequences": ["END"],
}
CALL = ("weather", '{"city": "Bern"}')


def sdk(script: Script) -> anthropic.Anthropic:
    """The real client, its bytes carried through the dialect instead of a socket."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        answer = answered(script, request.url.raw_path.decode(), request.read(), [])
        body = b"".join(answer.parts)
        return httpx2.Response(answer.status, headers={"content-type": answer.kind}, content=body)

    http = httpx2.Client(transport=httpx2.MockTransport(handle))
    return anthropic.Anthropic(api_key="k", base_url="http://stand", http_client=http, max_retries=0)


def plain(answer: ChatAnswer) -> anthropic.types.Message:
    return sdk(Script(body=answer.plain())).messages.create(**REQUEST)


def streamed(events: list[bytes]) -> anthropic.types.Message:
    with sdk(Script(events=events)).messages.stream(**REQUEST) as stream:
        return stream.get_final_message()


def content(message: anthropic.types.Message) -> list[dict[str, Any]]:
    return [block.to_dict() for block in message.content]


def told(message: anthropic.types.Message) -> dict[str, Any]:
    return message.to_dict(exclude_none=True)


def asked(**fields: Any) -> Asked:
    return ask("POST", "/v1/messages", "application/json", json.dumps({**REQUEST, **fields}).encode())


def kinds(raw: bytes) -> list[str]:
    return [line[7:].decode() for line in raw.split(b"\n") if line.startswith(b"event: ")]


ANSWERS = {
    "text": (ChatAnswer("Hello there"), "end_turn"),
    "cut short": (ChatAnswer("Hello", finish="length"), "max_tokens"),
    "stop string": (ChatAnswer("Hello ", matched="END"), "stop_sequence"),
    "stop token": (ChatAnswer("Hello ", matched=7), "end_turn"),
    "a stop that is not the client's": (ChatAnswer("Hello ", matched="</s>"), "end_turn"),
    "thinking": (ChatAnswer("So", reasoning="Let me see"), "end_turn"),
    "call": (ChatAnswer(calls=[CALL], finish="tool_calls"), "tool_use"),
    "forced call": (ChatAnswer(calls=[CALL], finish="stop"), "tool_use"),
    "calls": (ChatAnswer("I look", "hm", [CALL, ("now", ""), CALL], "tool_calls"), "tool_use"),
    "call and length": (ChatAnswer(calls=[CALL], finish="length"), "max_tokens"),
    "refused": (ChatAnswer("no", finish="content_filter"), "refusal"),
    "nothing": (ChatAnswer(), "end_turn"),
    "cached": (ChatAnswer("Hi", cached=4), "end_turn"),
    "odd letters": (ChatAnswer('Köln\n\n\u2028"data: [DONE]"\r\n\x00 🌍'), "end_turn"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_plain_and_streamed_answers_are_the_same_message(name):
    answer, reason = ANSWERS[name]
    whole, stream = plain(answer), streamed(answer.events())
    assert told(stream) == told(whole)
    expected: list[dict[str, Any]] = []
    if answer.reasoning:
        expected.append({"type": "thinking", "thinking": answer.reasoning, "signature": whole.id})
    if answer.text or not (answer.reasoning or answer.calls):
        expected.append({"type": "text", "text": answer.text})
    expected += [
        {"type": "tool_use", "id": f"call_{at}", "name": tool, "input": json.loads(arguments or "{}")}
        for at, (tool, arguments) in enumerate(answer.calls)
    ]
    assert content(whole) == expected
    assert (whole.id, whole.role, whole.model) == ("msg_a1", "assistant", "tiny")
    assert (whole.stop_reason, whole.stop_sequence) == (reason, "END" if reason == "stop_sequence" else None)
    assert whole.usage.input_tokens == answer.prompt - (answer.cached or 0)
    assert whole.usage.output_tokens == answer.completion
    assert whole.usage.cache_read_input_tokens == answer.cached


def test_a_stream_has_the_events_of_anthropics_own():
    edge = MessagesEdge(asked(stream=True))
    out = edge.feed(b"".join(ChatAnswer("abcd", "why", [CALL], "tool_calls").events((40,))))
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    thinking = [*block[:2], *block[1:]]  # the signature is a delta too
    assert kinds(out) == ["message_start", "ping", *thinking, *block, *block[:2]]
    assert kinds(edge.closing()) == ["content_block_stop", "message_delta", "message_stop"]


def test_the_first_event_tells_the_tokens_of_the_prompt():
    first = MessagesEdge(asked(stream=True)).feed(ChatAnswer("x").events()[0])
    message = json.loads(first.split(b"\n")[1][6:])["message"]
    assert message["usage"] == {"input_tokens": 11, "output_tokens": 0}


def test_comments_pass():
    edge = MessagesEdge(asked(stream=True))
    assert edge.feed(b": continued\n\n") == b": continued\n\n"


def test_calls_that_come_mixed_are_told_one_after_the_other():
    deltas = [
        ChatAnswer.call_delta(0, "weather", '{"city":'),
        ChatAnswer.call_delta(1, "now", '{"zone":'),
        {"content": "well"},
        {"tool_calls": [{"index": 1, "function": {"arguments": '"CET"}'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Bern"}\n'}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": " \n"}}]},
        {"content": "."},
    ]
    events = ChatAnswer(finish="tool_calls").stream(deltas)
    message = streamed(events)
    assert content(message) == [
        {"type": "tool_use", "id": "call_0", "name": "weather", "input": {"city": "Bern"}},
        {"type": "tool_use", "id": "call_1", "name": "now", "input": {"zone": "CET"}},
        {"type": "text", "text": "well."},
    ]
    opened = [
        kind for kind in kinds(MessagesEdge(asked(stream=True)).feed(b"".join(events))) if "block_st" in kind
    ]
    assert opened == ["content_block_start", "content_block_stop"] * 2 + ["content_block_start"]


def test_a_call_that_goes_on_after_its_end_is_an_error_and_not_a_wrong_call():
    deltas = [
        ChatAnswer.call_delta(0, "weather", "{}"),
        ChatAnswer.call_delta(1, "now", "{}"),
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":1}'}}]},
    ]
    with pytest.raises(anthropic.APIStatusError, match="cannot be read as chat"):
        streamed(ChatAnswer(finish="tool_calls").stream(deltas))


def test_a_stop_string_inside_a_call_says_so():
    """A client must not run a call that a stop string cut short."""
    cut, good = ("weather", '{"city": "'), ("weather", '{"city": 1}')
    for calls, reason in (([cut], "stop_sequence"), ([good], "tool_use"), ([cut, good], "stop_sequence")):
        answer = ChatAnswer(calls=calls, matched="END")
        assert streamed(answer.events()).stop_reason == reason
        assert plain(answer).stop_reason == reason


@pytest.mark.parametrize("arguments", ['{"city": ', '"Bern"', "[1]", "null"])
def test_arguments_that_are_no_object_are_named_so(arguments):
    (block,) = plain(ChatAnswer(calls=[("weather", arguments)], finish="tool_calls")).content
    assert block.input == {"INVALID_JSON": arguments}


def test_other_names_for_reasoning_and_refusals_are_read():
    events = ChatAnswer().stream([{"reasoning_content": "hm"}, {"refusal": "no"}])
    assert [block.to_dict().get("thinking", "no") for block in streamed(events).content] == ["hm", "no"]


def test_a_refusal_inside_a_stream_ends_it_with_its_own_type():
    error = {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}
    events = [*ChatAnswer("Hel").events()[:2], b"data: %s\n\n" % json.dumps(error).encode(), DONE]
    with pytest.raises(anthropic.APIStatusError) as caught:
        streamed(events)
    assert caught.value.type == "invalid_request_error"
    assert "too long" in str(caught.value)
    edge = MessagesEdge(asked(stream=True))
    assert kinds(edge.feed(b"".join([*events, *ChatAnswer("more").events()])) + edge.closing())[-1] == "error"


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (401, "authentication_error", anthropic.AuthenticationError),
        (403, "permission_error", anthropic.PermissionDeniedError),
        (404, "not_found_error", anthropic.NotFoundError),
        (413, "request_too_large", anthropic.RequestTooLargeError),
        (422, "invalid_request_error", anthropic.UnprocessableEntityError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (503, "overloaded_error", anthropic.ServiceUnavailableError),
        (504, "timeout_error", anthropic.DeadlineExceededError),
        (529, "overloaded_error", anthropic.OverloadedError),
    ],
)
def test_an_engines_error_keeps_its_status_and_words(status, kind, error):
    body = json.dumps({"error": {"message": "so it is", "type": "X", "code": status}}).encode()
    with pytest.raises(error) as caught:
        sdk(Script(body=body, status=status)).messages.create(**REQUEST)
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert caught.value.body["request_id"] == "req-7"
    assert "so it is" in caught.value.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"error": "plain"}', "plain"),
        (b'{"error": {"code": 5}}', '{"error": {"code": 5}}'),
        (b"Internal Server Error", "Internal Server Error"),
        (b"[1]", "[1]"),
        (b"", "gave no reason"),
        (b"\xff" * 900, "\ufffd" * 500),
    ],
)
def test_errors_of_any_shape_reach_the_client(body, words):
    failed = json.loads(MessagesEdge(asked()).failed(500, body, "r"))
    assert failed["error"]["message"].endswith(words)


def test_a_request_that_cannot_be_carried_is_refused_in_anthropics_shape():
    with pytest.raises(anthropic.BadRequestError, match="container") as caught:
        sdk(Script()).messages.create(**REQUEST, extra_body={"container": "c1"})
    assert caught.value.type == "invalid_request_error"


def test_counting_answers_the_count():
    body = b'{"count": 12, "max_model_len": 99, "tokens": [1, 2]}'
    count = sdk(Script(body=body)).messages.count_tokens(model="tiny", messages=REQUEST["messages"])
    assert count.input_tokens == 12
    asked_for = ask("POST", "/v1/messages/count_tokens", "", json.dumps(REQUEST).encode())
    assert asked_for.inner_path == "/tokenize"
    assert asked_for.dialect.whole(asked_for, body).failure is None
    assert asked_for.dialect.whole(asked_for, b'{"tokens": [1]}').failure is Failure.BAD_RESPONSE


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (ChatAnswer("x").plain(), None),
        (ChatAnswer("x", finish="abort").plain(), Failure.ABORTED),
        (b'{"choices": [{"index": 0, "message": {}, "finish_reason": null}]}', Failure.INCOMPLETE),
        (b'{"choices": [{"index": 0, "finish_reason": "stop"}]}', Failure.BAD_RESPONSE),
        (b'{"choices": [{"message": {"tool_calls": [1]}, "finish_reason": "stop"}]}', Failure.BAD_RESPONSE),
        (b"{", Failure.BAD_RESPONSE),
    ],
)
def test_a_plain_answer_is_judged_as_chat(body, failure):
    request = asked()
    assert request.inner_path == "/v1/chat/completions"
    assert request.dialect.whole(request, body).failure is failure


NAMES = st.text("abcdef_", min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(NAMES, st.text(max_size=12) | st.integers(-9, 9), max_size=3).map(json.dumps)
SAID = st.builds(
    ChatAnswer,
    text=st.text(max_size=40),
    reasoning=st.text(max_size=20),
    calls=st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3),
    finish=st.sampled_from(["stop", "length", "tool_calls"]),
    matched=st.sampled_from([None, 5, "END", "other"]),
    prompt=st.integers(5, 99),
    completion=st.integers(0, 99),
    cached=st.none() | st.integers(0, 5),
)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=60)
@given(SAID, SIZES)
def test_any_stream_says_what_the_plain_answer_says(answer: ChatAnswer, sizes: list[int]):
    whole, stream = plain(answer), streamed(answer.events(sizes))
    assert told(stream) == told(whole)


@given(SAID, SIZES, st.data())
def test_a_stream_cut_anywhere_is_never_a_whole_message(answer: ChatAnswer, sizes: list[int], data: Any):
    events = answer.events(sizes)
    stream = b"".join(events[:-3])  # up to the event that ends the answer
    cut = data.draw(st.integers(0, len(stream)))
    with pytest.raises(anthropic.APIStatusError) as caught:
        streamed([stream[:cut]])
    assert caught.value.type == "api_error"
    edge = MessagesEdge(asked(stream=True))
    sent = edge.feed(stream[: stream.rfind(b"\n\n", 0, cut) + 2 if b"\n\n" in stream[:cut] else 0])
    assert "message_delta" not in kinds(sent)
    assert "message_stop" not in kinds(sent)


@settings(max_examples=30)
@given(SAID, SIZES, st.integers(1, 2))
def test_a_stream_that_breaks_after_its_finish_is_whole(answer: ChatAnswer, sizes: list[int], lost: int):
    message = streamed(answer.events(sizes)[:-lost])
    assert message.stop_reason is not None
    assert "".join(block.text for block in message.content if block.type == "text") == answer.text


DELTAS = st.lists(
    st.builds(lambda words: {"content": words}, st.text("ab ", max_size=3))
    | st.builds(lambda words: {"reasoning": words}, st.text("ab ", max_size=3))
    | st.builds(
        lambda call, words: {
            "tool_calls": [{"index": call, "id": f"c{call}", "function": {"arguments": words}}]
        },
        st.integers(0, 2),
        st.text('{}"a: ', max_size=5),
    ),
    max_size=14,
)


@given(DELTAS)
def test_blocks_are_started_filled_and_stopped_in_order(deltas: list[dict[str, Any]]):
    """Whatever order pieces come in: one block at a time, and nothing that was said is lost."""
    edge = MessagesEdge(asked(stream=True))
    raw = edge.feed(b"".join(ChatAnswer(finish="stop").stream(deltas))) + edge.closing()
    if "error" in kinds(raw):
        assert "message_stop" not in kinds(raw)
        return
    told = [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: ")]
    opened, at, got = None, -1, {"text": "", "thinking": "", "partial_json": ""}
    for event in told:
        if event["type"] == "content_block_start":
            assert opened is None
            assert event["index"] == at + 1
            opened = at = event["index"]
        elif event["type"] == "content_block_delta":
            assert event["index"] == opened
            for name in got:
                got[name] += event["delta"].get(name, "")
        elif event["type"] == "content_block_stop":
            assert event["index"] == opened
            opened = None
    assert opened is None
    said = [json.dumps(delta) for delta in deltas]
    assert got["text"] == "".join(delta.get("content", "") for delta in deltas), said
    assert got["thinking"] == "".join(delta.get("reasoning", "") for delta in deltas)
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    wanted = sorted("".join(call["function"]["arguments"] for call in calls))
    assert [sign for sign in sorted(got["partial_json"]) if sign != " "] == [s for s in wanted if s != " "]


WEIRD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "content", "reasoning", "tool_calls", "function", "arguments", "index", "id",
             "name", "usage", "prompt_tokens_details", "cached_tokens", "finish_reason", "error"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


def _chunk(choice: Any, usage: Any) -> bytes:
    return b"data: %s\n\n" % json.dumps({"id": 1, "choices": [choice], "usage": usage}).encode()


@given(WEIRD, WEIRD, WEIRD)
def test_nonsense_never_raises(delta: Any, choice: Any, usage: Any):
    edge = MessagesEdge(asked(stream=True))
    events = [_chunk({"delta": delta}, usage), _chunk(choice, usage), _chunk({"finish_reason": "stop"}, None)]
    out = edge.feed(b"".join(events)) + edge.closing()
    assert kinds(out)[-1] in ("message_stop", "error")


FEED: dict[str, Callable[[MessagesEdge], bytes]] = {
    "nothing yet": lambda edge: b"",
    "half a text": lambda edge: edge.feed(b"".join(ChatAnswer("Hello").events()[:2])),
}


@pytest.mark.parametrize("name", FEED)
def test_an_interrupted_stream_says_why(name):
    edge = MessagesEdge(asked(stream=True))
    FEED[name](edge)
    last = edge.interrupted(request_id="r1", failure=Failure.DISCONNECTED, detail="gone", tokens=3)
    assert last.startswith(b"event: error\n")
    error = json.loads(last.split(b"data: ")[1])
    assert (error["type"], error["error"]["type"], error["request_id"]) == ("error", "api_error", "r1")
    assert "after 3 tokens" in error["error"]["message"]
    assert "disconnected" in error["error"]["message"]
