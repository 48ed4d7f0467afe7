"""There and back: what the gateway makes of a message for engines, a provider's translation undoes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloud.providers.kinds import wire_of
from cloud.sse import split_events
from orchestrator.gateway.asked import ask
from tests.support.provider_streams import message, message_stream

WIRE = wire_of("anthropic", "http://provider", sampling=True)
words = st.text(min_size=1, max_size=12)
texts = st.builds(lambda text: {"type": "text", "text": text}, words)
images = st.sampled_from(
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
        {"type": "image", "source": {"type": "url", "url": "https://pictures.example/a.png"}},
    ]
)
inputs = st.dictionaries(words, st.integers(0, 9) | words | st.lists(words, max_size=2), max_size=3)


def uses(names: list[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.tuples(*(inputs for _ in names)).map(
        lambda given: [
            {"type": "tool_use", "id": name, "name": "f", "input": each}
            for name, each in zip(names, given, strict=True)
        ]
    )


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Messages requests of what both forms can say; of one role in a row there is one turn."""
    messages: list[dict[str, Any]] = []
    for turn in range(draw(st.integers(0, 2))):
        messages.append({"role": "user", "content": draw(st.lists(texts | images, min_size=2, max_size=3))})
        calls = draw(uses([f"t{turn}_{at}" for at in range(draw(st.integers(0, 2)))]))
        said: list[dict[str, Any]] = [*draw(st.lists(texts, min_size=0 if calls else 1, max_size=1)), *calls]
        messages.append({"role": "assistant", "content": said})
        if calls:
            results = [
                {"type": "tool_result", "tool_use_id": call["id"], "content": draw(words)} for call in calls
            ]
            messages.append({"role": "user", "content": results})
            messages.append({"role": "assistant", "content": [draw(texts)]})
    messages.append({"role": "user", "content": [draw(texts), draw(texts)]})
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {}}, "description": "d"}
    optional = {
        "system": words,
        "temperature": st.sampled_from([0, 0.5]),
        "top_p": st.just(0.5),
        "top_k": st.just(40),
        "stop_sequences": st.just(["END", "x"]),
        "metadata": st.just({"user_id": "u"}),
        "thinking": st.sampled_from([{"type": "disabled"}, {"type": "enabled", "budget_tokens": 20}]),
        "output_config": st.just({"effort": "low", "format": {"type": "json_schema", "schema": {"a": 1}}}),
        "stream": st.just(True),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(optional))))
    fields = {name: draw(optional[name]) for name in sorted(chosen)}
    if draw(st.booleans()):
        kinds = [{"type": "auto"}, {"type": "any"}, {"type": "none"}, {"type": "tool", "name": "f"}]
        fields |= {"tools": [tool], "tool_choice": draw(st.sampled_from(kinds))}
    return {"model": "m", "max_tokens": 50, "messages": messages, **fields}


def flat(request: Any) -> Any:
    """A text that stands alone may be a string or a block."""

    def content(value: Any) -> Any:
        return value[0]["text"] if len(value) == 1 and value[0]["type"] == "text" else value

    turns = [
        {**turn, "content": turn["content"] if isinstance(turn["content"], str) else content(turn["content"])}
        for turn in request["messages"]
    ]
    return {**request, "messages": turns}


@given(requests())
def test_requests(request_):
    asked = ask("POST", "/v1/messages", "application/json", json.dumps(request_).encode())
    assert asked.inner is not None
    call = WIRE.request(asked.inner, model="m", key="", stream=asked.stream, created=0)
    assert flat(json.loads(call.body)) == flat(request_)
    assert call.dropped == ()


blocks = (
    st.tuples(
        st.lists(
            st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "msg_01"}, words),
            max_size=1,
        ),
        st.lists(texts, max_size=1),
        st.integers(0, 2).flatmap(lambda count: uses([f"t{at}" for at in range(count)])),
    )
    .map(lambda parts: [*parts[0], *parts[1], *parts[2]])
    .filter(bool)
)  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    content = draw(blocks)
    called = any(block["type"] == "tool_use" for block in content)
    stop = "tool_use" if called else draw(st.sampled_from(["end_turn", "max_tokens", "stop_sequence"]))
    return message(content, stop, stop_sequence="END" if stop == "stop_sequence" else None)


def exchange(stream: bool) -> Any:
    fields = {
        "model": "m",
        "max_tokens": 9,
        "stop_sequences": ["END"],
        "messages": [{"role": "user", "content": "x"}],
    }
    body = json.dumps({**fields, "stream": stream}).encode()
    asked = ask("POST", "/v1/messages", "application/json", body)
    assert asked.inner is not None
    call = WIRE.request(asked.inner, model="m", key="", stream=stream, created=0)
    return asked.dialect.edge(asked), call.reader


@given(answers())
def test_plain_answers(whole):
    edge, reader = exchange(stream=False)
    answer = reader.answer(json.dumps(whole).encode())
    assert answer.error == ""
    assert json.loads(edge.answer(answer.body)) == whole


@given(answers())
def test_streams(whole):
    edge, reader = exchange(stream=True)
    relay = reader.relay()
    inner = b"".join(relay.feed(part) for part in message_stream(whole)) + relay.end()
    assert relay.whole
    out = b"".join(edge.feed(each) for each in split_events(inner)) + edge.closing()
    assert read_message(out) == {**whole, "usage": whole["usage"]}


def read_message(stream: bytes) -> Any:
    """What a message's stream comes to, as a client of Anthropic's puts it together."""
    found: dict[str, Any] = {}
    held: dict[int, str] = {}
    for each in stream.split(b"\n\n"):
        if not each or b"data: [DONE]" in each:
            continue
        fields = json.loads(each.partition(b"data: ")[2])
        kind = fields["type"]
        if kind == "message_start":
            found = fields["message"]
        elif kind == "content_block_start":
            found["content"].append(fields["content_block"])
        elif kind == "content_block_delta":
            name, piece = list(fields["delta"].items())[1]
            if name == "partial_json":
                held[fields["index"]] = held.get(fields["index"], "") + piece
            else:
                found["content"][fields["index"]][name] += piece
        elif kind == "message_delta":
            found |= fields["delta"]
            found["usage"] = fields["usage"]
    for at, block in enumerate(found["content"]):
        if block["type"] == "tool_use":
            block["input"] = json.loads(held.get(at) or "{}")
    return found
