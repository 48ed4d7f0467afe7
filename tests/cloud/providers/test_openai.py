"""Providers of OpenAI's form: what of a request stays, what streams tell, when an answer is whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloud.providers.kinds import wire_of
from cloud.providers.openai import OpenAiReader
from cloud.providers.wire import Call, Relay, Untranslatable
from policies.spend import Usage
from tests.support.provider_streams import chunk, chunks, lines, read_chat

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
HI = [{"role": "user", "content": "hi"}]
WIRE = wire_of("openai", "https://api.example.com")
TOLD = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
SPENT = Usage(fresh=10, cached=0, cache_write=0, output=4)


def native(fields: Any, path: str = CHAT, *, stream: bool = False, url: str = "") -> Call:
    wire = wire_of("openai", url) if url else WIRE
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return wire.native(raw, model="m1", key="k1", stream=stream, path=path, headers={})


def sent(call: Call) -> Any:
    return json.loads(call.body)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://api.openai.com", "/v1/chat/completions"),
        ("https://api.openai.com/", "/v1/chat/completions"),
        ("https://api.openai.com/v1", "/v1/chat/completions"),
        ("https://api.groq.com/openai/v1/", "/openai/v1/chat/completions"),
        ("https://models.example/v1beta/openai", "/v1beta/openai/chat/completions"),
    ],
)
def test_where_it_goes(url, path):
    assert native({"messages": HI}, url=url).path == path


def test_keys():
    assert native({"messages": HI}).headers["Authorization"] == "Bearer k1"
    call = WIRE.native(b"{}", model="m", key="", stream=False, path=CHAT, headers={"Authorization": "x"})
    assert "Authorization" not in call.headers


def test_a_plain_request_stays_but_for_the_model():
    fields = {
        "model": "route",
        "messages": HI,
        "a_field_of_tomorrow": [1],
        "temperature": 0.1,
        "max_tokens": 3,
    }
    assert sent(native(fields)) == {**fields, "model": "m1"}


def test_streams_ask_for_the_usage():
    options = {"include_obfuscation": False, "continuous_usage_stats": True}
    call = native({"messages": HI, "stream": True, "stream_options": options}, stream=True)
    assert sent(call)["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert "stream_options" not in sent(native({"input": "x", "stream": True}, RESPONSES, stream=True))


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/messages", "/tokenize", "/v1/files"])
def test_other_paths_are_not_asked(path):
    assert not WIRE.speaks(path)
    with pytest.raises(Untranslatable) as caught:
        native({"messages": HI}, path)
    assert caught.value.param == "path"


@pytest.mark.parametrize("raw", [b"", b"[1]", b"{", b"\xff"])
def test_a_body_that_is_no_object_is_refused(raw):
    with pytest.raises(Untranslatable, match="no JSON object"):
        native(raw)


def asked(**inner: Any) -> Call:
    return WIRE.request({"messages": HI, **inner}, model="m1", key="k", stream=False, created=0)


def test_what_the_gateway_adds_for_vllm_goes():
    call = asked(
        max_tokens=9,
        chat_template_kwargs={"enable_thinking": True, "thinking": True},
        thinking_token_budget=5,
        add_generation_prompt=True,
        stream_options={"include_usage": True},
        messages=[*HI, {"role": "assistant", "content": "x", "reasoning": "hm"}, *HI],
    )
    said = {"role": "assistant", "content": "x"}
    assert sent(call) == {
        "model": "m1",
        "stream": False,
        "max_tokens": 9,
        "messages": [*HI, said, *HI],
    }
    assert call.dropped == ("thinking",)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://notopenai.com", "max_tokens"),
        ("http://127.0.0.1:1", "max_tokens"),
    ],
)
def test_the_limit_has_the_name_that_the_host_takes(url, name):
    wire = wire_of("openai", url)
    call = wire.request({"messages": HI, "max_tokens": 3}, model="m", key="", stream=False, created=0)
    assert sent(call)[name] == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "messages"),
        ({"chat_template_kwargs": {"lang": "fr"}}, "chat_template_kwargs"),
    ],
)
def test_what_only_vllm_can_do_is_refused(fields, param):
    with pytest.raises(Untranslatable) as caught:
        asked(**fields)
    assert caught.value.param == param


def reader(path: str = CHAT, **fields: Any) -> Any:
    return native({"messages": HI, **fields}, path, stream=bool(fields.get("stream"))).reader


def run(relay: Relay, parts: list[bytes]) -> bytes:
    return b"".join([relay.feed(part) for part in parts]) + relay.end()


@pytest.mark.parametrize("asks", [False, True])
def test_the_usage_event_is_for_those_who_ask(asks):
    fields = {"stream": True, **({"stream_options": {"include_usage": True}} if asks else {})}
    relay = reader(**fields).relay()
    parts = chunks(["a", "b"], usage=TOLD)
    assert run(relay, parts) == b"".join(parts if asks else [*parts[:-2], parts[-1]])
    assert (relay.usage, relay.whole, relay.begun, relay.error) == (SPENT, True, True, "")


def test_usage_in_every_chunk_is_read_and_stays():
    head = {"id": "1", "usage": TOLD}
    parts = [
        chunk({**head, "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}),
        chunk({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        b"data: [DONE]\n\n",
    ]
    relay = reader(stream=True).relay()
    assert run(relay, parts) == b"".join(parts)
    assert relay.usage == SPENT


@pytest.mark.parametrize(
    ("parts", "whole", "begun"),
    [
        (chunks(["a"]), True, True),
        (chunks(["a"])[:-1], True, True),  # the connection ended well, without [DONE]
        (chunks(["a"], finish=None), False, True),
        (chunks(["a"])[:2], False, True),
        (chunks(["a"])[:1], False, False),
        ([], False, False),
        (chunks(["a"], finish="abort"), False, True),
        (chunks(["a"], finish="error"), False, True),
        ([*chunks(["a"])[:2], chunk({"error": {"message": "engine died"}}), *chunks(["a"])[2:]], False, True),
    ],
)
def test_whole_with_a_finish_reason_alone(parts, whole, begun):
    relay = reader(stream=True).relay()
    out = run(relay, parts)
    assert (relay.whole, relay.begun, bool(relay.error)) == (whole, begun, not whole)
    assert out.endswith(b"data: [DONE]\n\n") == whole
    assert b"died" not in out


def test_every_choice_has_to_end():
    def end(index: int) -> bytes:
        return chunk({"choices": [{"index": index, "delta": {"content": "x"}, "finish_reason": "stop"}]})

    relay = reader(stream=True, n=2).relay()
    relay.feed(end(0))
    assert not relay.whole
    relay.feed(end(1))
    assert relay.whole
    two = reader(COMPLETIONS, stream=True, prompt=["a", "b"]).relay()
    assert run(two, [end(0)]).count(b"DONE") == 0
    assert two.error


COMPLETED = {
    "type": "response.completed",
    "response": {
        "status": "completed",
        "usage": {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 6},
            "output_tokens": 4,
            "total_tokens": 14,
        },
    },
}


def test_responses_end_with_their_usage():
    parts = [
        chunk({"type": "response.created", "response": {"usage": None}}),
        chunk({"type": "response.output_text.delta", "delta": "a"}),
        chunk(COMPLETED),
    ]
    relay = reader(RESPONSES, stream=True).relay()
    assert run(relay, parts) == b"".join(parts)
    assert relay.usage == Usage(fresh=4, cached=6, cache_write=0, output=4)
    assert relay.whole


@pytest.mark.parametrize(
    "last",
    [
        {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "no luck"}}},
        {"type": "error", "code": "server_error", "message": "no luck"},
    ],
)
def test_responses_that_fail(last):
    relay = reader(RESPONSES, stream=True).relay()
    out = run(relay, [chunk({"type": "response.output_text.delta", "delta": "a"}), chunk(last)])
    assert "no luck" in relay.error
    assert not relay.whole
    assert b"luck" not in out


def test_a_response_that_is_cut():
    relay = reader(RESPONSES, stream=True).relay()
    run(relay, [chunk({"type": "response.output_text.delta", "delta": "a"})])
    assert relay.error


PLAIN = {"choices": [{"index": 0, "finish_reason": "stop", "message": {}}], "usage": TOLD}


@pytest.mark.parametrize(
    ("path", "answer", "usage"),
    [
        (CHAT, PLAIN, SPENT),
        (COMPLETIONS, PLAIN, SPENT),
        (
            EMBEDDINGS,
            {"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 5, "total_tokens": 5}},
            Usage(fresh=5, cached=0, cache_write=0, output=0),
        ),
        (RESPONSES, COMPLETED["response"], Usage(fresh=4, cached=6, cache_write=0, output=4)),
        (RESPONSES, {"status": "incomplete", "error": None, "usage": None}, None),
    ],
)
def test_plain_answers(path, answer, usage):
    raw = json.dumps(answer, indent=1).encode()
    read = reader(path).answer(raw)
    assert (read.body, read.usage, read.error) == (raw, usage, "")


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        (CHAT, b""),
        (CHAT, b"<html>"),
        (CHAT, b"{}"),
        (CHAT, b'{"choices": 5}'),
        (CHAT, b'{"choices": []}'),
        (CHAT, b'{"choices": [{"finish_reason": null}]}'),
        (CHAT, b'{"choices": [{"finish_reason": "abort"}]}'),
        (CHAT, b'{"choices": [[]]}'),
        (CHAT, b'{"error": {"message": "no"}}'),
        (EMBEDDINGS, b'{"data": []}'),
        (RESPONSES, b'{"status": "failed", "error": {"message": "no"}}'),
        (RESPONSES, b'{"status": "queued"}'),
    ],
)
def test_no_whole_answer(path, raw):
    assert reader(path).answer(raw).error


@pytest.mark.parametrize(
    ("asked", "count"), [("a", 1), (["a"], 1), ([1, 2, 3], 1), (["a", "b"], 2), ([[1], [2, 3], [4]], 3)]
)
def test_an_answer_has_a_vector_for_each_input(asked, count):
    def lacks(vectors):
        body = json.dumps({"model": "m", "input": asked}).encode()
        call = wire_of("openai", "https://api.openai.com").native(
            body, model="m", key="k", stream=False, path=EMBEDDINGS, headers={}
        )
        rows = [{"index": place, "embedding": vector} for place, vector in enumerate(vectors)]
        return call.reader.answer(json.dumps({"data": rows, "usage": TOLD}).encode())

    assert lacks([[0.5]] * count).error == ""
    assert lacks(["AAAAPw=="] * count).error == ""
    short = lacks([[0.5]] * (count - 1) + [[]])
    assert short.error == f"{count - 1} of {count} vectors are in it"
    assert short.usage == SPENT, "it is billed all the same"


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        (
            {**TOLD, "prompt_tokens_details": {"cached_tokens": 6, "created_cache_tokens": 1}},
            Usage(fresh=3, cached=6, cache_write=1, output=4),
        ),
        ({**TOLD, "prompt_tokens_details": None}, SPENT),
        ({**TOLD, "prompt_cache_hit_tokens": 6}, Usage(fresh=4, cached=6, cache_write=0, output=4)),
        ({**TOLD, "total_tokens": 20}, Usage(fresh=10, cached=0, cache_write=0, output=10)),
        ({"prompt_tokens": 10, "completion_tokens": 4}, SPENT),
        (
            {**TOLD, "prompt_tokens_details": {"cached_tokens": 60}},
            Usage(fresh=0, cached=60, cache_write=0, output=4),
        ),
        ({**TOLD, "prompt_tokens": "10"}, None),
        ({**TOLD, "completion_tokens": -4}, None),
        ({**TOLD, "completion_tokens": True}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_what_usage_says(told, usage):
    assert reader().answer(json.dumps({**PLAIN, "usage": told}).encode()).usage == usage


cuts = st.lists(st.integers(0, 10_000), max_size=30)


@example(["a", "b"], list(range(10_000)), b"\r\n", True, 0)  # each byte by itself
@example(["a", "b"], list(range(10_000)), b"\r\n", False, 0)
@example(["\r\x80𐀀"], [686], b"\r\n", False, 509)
@example(["", "𐀀", "0\x80", "0\x80", "0000\x07𐀀", "000\x80\x80\x80"], [1641], b"\r\n", False, 0)
@given(
    st.lists(st.text(max_size=6), max_size=6),
    cuts,
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.integers(0, 900),
)
def test_however_it_is_cut(texts, places, newline, asks, lost):
    """Also inside characters and ends of lines, and of a stream that breaks anywhere."""
    data = b"".join(chunks(texts, usage=TOLD)).replace(b"\n", newline)
    data = data[: max(0, len(data) - lost)] if lost % 2 else data
    borders = sorted({place % (len(data) + 1) for place in places})
    parts = [data[start:end] for start, end in zip([0, *borders], [*borders, len(data)], strict=True)]
    results = []
    for each in (parts, [data]):
        relay = OpenAiReader(CHAT, 1, usage_asked=asks).relay()
        results.append((lines(run(relay, each)), relay.usage, relay.begun, relay.whole, relay.error))
    assert results[0] == results[1]


@given(st.lists(st.text(max_size=6), max_size=6))
def test_nothing_of_a_text_is_lost(texts):
    relay = OpenAiReader(CHAT, 1, usage_asked=True).relay()
    out = read_chat(run(relay, chunks(texts, usage=TOLD)))
    assert out["content"] == "".join(texts)
    assert out["usage"] == TOLD


nodes = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["stop", "response.completed"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "choices", "usage", "finish_reason", "response", "index", "error"]),
            inner,
        )
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.lists(st.binary(max_size=30) | nodes.map(chunk), max_size=8), st.sampled_from([CHAT, RESPONSES]))
def test_garbage_never_raises(parts, path):
    relay = OpenAiReader(path, 1, usage_asked=False).relay()
    run(relay, parts)
    assert relay.whole != bool(relay.error)
