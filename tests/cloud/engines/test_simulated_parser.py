"""How the simulated engine parts an output into reasoning, text and calls, and how it derenders ids."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.engines.simulated_server.derender import Derenderer
from cloud.engines.simulated_server.model import Sequencer
from cloud.engines.simulated_server.outputs import Output, Piece, joined
from cloud.engines.simulated_server.parser import Parsing
from cloud.engines.simulated_server.requests import BadRequest, Offer
from cloud.engines.simulated_server.tokens import (
    END_OF_TEXT,
    START,
    TextStream,
    chat_prompt,
    encode,
    encode_marked,
)

ALL = Parsing(reasoning=True, tools=True)
SCRIPT = '!think 5\n!say 3\n!call f {"a": {"b": ["}", 1]}}\n!call g {}'
OFFER = Offer(("tiny",), 8192, auto_tools=True, reasoning=True)
TOOLS = [{"type": "function", "function": {"name": name}} for name in "fg"]
CHAT = {"messages": [{"role": "user", "content": SCRIPT}], "tools": TOOLS}
PROMPT = list(chat_prompt([("user", SCRIPT)]))


def said() -> list[int]:
    sequencer, tokens = Sequencer(PROMPT, 0), []
    while not tokens or tokens[-1] != END_OF_TEXT:
        tokens.append(sequencer.next())
    return tokens


def output(parsing: Parsing = ALL, stops: tuple[str, ...] = ()) -> Output:
    numbers = itertools.count()
    return Output(0, TextStream(stops), parsing, lambda: f"call-{next(numbers)}")


def chunks(tokens: list[int], sizes: list[int]) -> list[list[int]]:
    """The tokens in chunks of these sizes over and over."""
    found, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(tokens):
            return found
        found.append(tokens[at : at + size])
        at += size
    return found


def run(tokens: list[int], sizes: list[int], parsing: Parsing = ALL) -> list[Piece]:
    out, parts = output(parsing), chunks(tokens, sizes)
    return [out.feed(part, "stop" if number == len(parts) else None) for number, part in enumerate(parts, 1)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_however_it_comes_the_whole_is_the_same(sizes: list[int]) -> None:
    whole = joined(run(said(), sizes))
    assert [call["function"] for call in whole.delta.calls] == [
        {"name": "f", "arguments": '{"a": {"b": ["}", 1]}}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert [call["id"] for call in whole.delta.calls] == ["call-0", "call-1"]
    assert whole.delta.reasoning
    assert whole.delta.content
    assert whole.finish == "tool_calls"


def test_the_arguments_come_in_pieces_after_the_name() -> None:
    parts = [call for piece in run(said(), [1]) for call in piece.delta.calls if call["index"] == 0]
    assert parts[0] == {"id": "call-0", "type": "function", "index": 0, "function": {"name": "f"}}
    assert len(parts) > 4
    assert all(set(part) == {"index", "function"} for part in parts[1:])


def test_without_a_parser_the_marks_are_text() -> None:
    whole = joined(run(said(), [3], Parsing()))
    assert whole.delta.content.startswith("<think> ")
    assert whole.delta.content.endswith('<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>')
    assert (whole.finish, whole.delta.calls) == ("stop", [])


def test_a_named_tool_stops_as_openai_says() -> None:
    assert joined(run(said(), [3], Parsing(tools=True, named=True))).finish == "stop"


def test_a_call_that_is_cut_off_shows_what_there_was() -> None:
    tokens = list(encode_marked('<tool_call>\n{"name": "f", "arguments": {"a": "long'))
    out = output()
    piece = out.feed(tokens, "length")
    assert piece.finish == "length"
    assert piece.delta.calls[-1]["function"]["arguments"] == '{"a": "long'


def test_a_stop_string_ends_the_output() -> None:
    out = output(Parsing(), ("END",))
    piece = out.feed(encode("to the END of it"), None)
    assert (piece.delta.content, piece.finish, piece.stop) == ("to the ", "stop", "END")
    assert len(piece.tokens) == len(encode("to the END"))


# Derender: the same from ids and a state that the client carries


def chunk(tokens: list[int], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "token_ids": tokens, "finish_reason": finish}
    return {"stream": True, "generate_chunk": {"request_id": "x", "choices": [choice]}, **more}


def derenderer(offer: Offer = OFFER) -> Derenderer:
    numbers = itertools.count(100)
    return Derenderer(offer, lambda: f"call-{next(numbers)}")


def seen(deltas: list[dict[str, Any]]) -> tuple[str, str, dict[int, list[str]]]:
    """Content, reasoning, and id, name and arguments of each call."""
    content = "".join(delta["content"] or "" for delta in deltas)
    reasoning = "".join(delta["reasoning"] or "" for delta in deltas)
    calls: dict[int, list[str]] = {}
    for part in (part for delta in deltas for part in delta.get("tool_calls", [])):
        call = calls.setdefault(part["index"], ["", "", ""])
        call[0] += part["id"] or ""
        call[1] += part["function"]["name"] or ""
        call[2] += part["function"]["arguments"] or ""
    return content, reasoning, calls


@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(0, 80))
def test_a_chat_goes_on_from_a_rebuilt_state(sizes: list[int], cut: int) -> None:
    """Cut the chunks anywhere: what was streamed before, and derender from what was recorded of it."""
    tokens = said()[:-1]
    parts = chunks(tokens, sizes)
    cut = min(cut, len(parts) - 1)
    pieces = run(tokens, sizes)
    whole = joined(pieces)
    before = joined([Piece(0, ()), *pieces[:cut]])
    state: dict[str, Any] = {
        "role_sent": True,
        "output_token_ids": [token for part in parts[:cut] for token in part],
        "output_chunk_lens": [len(part) for part in parts[:cut]],
        "tools_streamed": any(piece.delta.calls for piece in pieces[:cut]),
        "last_tool_call_ids": [call["id"] for call in before.delta.calls],
    }
    server, deltas, finish = derenderer(), [], None
    for number, part in enumerate(parts[cut:], start=cut + 1):
        last = "stop" if number == len(parts) else None
        body = chunk(part, last, chat_request=CHAT, prompt_token_ids=PROMPT, stream_state=state)
        answer = server.chat(body, "tiny", 1)
        state = answer["stream_state"]
        deltas.append(answer["chunk"]["choices"][0]["delta"])
        finish = answer["chunk"]["choices"][0]["finish_reason"]
    content, reasoning, calls = seen(deltas)
    assert before.delta.content + content == whole.delta.content
    assert before.delta.reasoning + reasoning == whole.delta.reasoning
    assert finish == "tool_calls"
    for index, call in enumerate(whole.delta.calls):
        new = calls.get(index, ["", "", ""])
        old = before.delta.calls[index]["function"] if index < len(before.delta.calls) else {}
        assert old.get("name", "") + new[1] == call["function"]["name"]
        assert old.get("arguments", "") + new[2] == call["function"]["arguments"]
        assert not (old and new[0]), "a call that has begun keeps its id"
    assert len(state["last_tool_call_ids"]) == 2


@given(st.lists(st.integers(1, 255), min_size=1, max_size=40), st.integers(0, 40))
def test_a_completion_goes_on_inside_a_letter(tokens: list[int], cut: int) -> None:
    server = derenderer()
    whole = server.completion(chunk(tokens), "tiny", 1)["chunk"]["choices"][0]["text"]
    first = server.completion(chunk(tokens[:cut]), "tiny", 1)
    rest = server.completion(chunk(tokens[cut:], stream_state=first["stream_state"]), "tiny", 1)
    assert first["chunk"]["choices"][0]["text"] + rest["chunk"]["choices"][0]["text"] == whole


def test_special_ids_are_shown_as_vllm_shows_them() -> None:
    tokens = [*encode("hi"), END_OF_TEXT, START]
    plain = derenderer(Offer(("tiny",), 100))
    assert plain.completion(chunk(tokens), "tiny", 1)["chunk"]["choices"][0]["text"] == "hi<|start|>"
    assert plain.chat(chunk(tokens), "tiny", 1)["chunk"]["choices"][0]["delta"]["content"] == "hi<|start|>"
    body = chunk(tokens, chat_request=CHAT, prompt_token_ids=PROMPT)
    assert derenderer().chat(body, "tiny", 1)["chunk"]["choices"][0]["delta"]["content"] == (
        "hi<|end|><|start|>"
    )


def test_whole_answers() -> None:
    answer = {"request_id": "x", "choices": [{"index": 0, "token_ids": said()[:-1], "finish_reason": "stop"}]}
    body = {"generate_response": answer, "chat_request": CHAT, "prompt_tokens": 4}
    chat = derenderer().chat(body, "tiny", 1)
    names = [call["function"]["name"] for call in chat["choices"][0]["message"]["tool_calls"]]
    assert names == ["f", "g"]
    assert chat["usage"]["total_tokens"] == 4 + len(said()) - 1
    assert chat["choices"][0]["finish_reason"] == "stop", "vLLM does not say tool_calls here"
    text = derenderer().completion({"generate_responses": [answer, answer]}, "tiny", 1)
    assert [choice["index"] for choice in text["choices"]] == [0, 1]
    assert text["choices"][0]["text"].startswith("<think>")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (chunk([5]), "chat_request is required"),
        (chunk([5], chat_request=CHAT), "prompt_token_ids is required"),
        ({"generate_response": {"choices": []}}, "chat_request is required"),
        ({"chat_request": CHAT}, "generate_response"),
        ({"stream": True, "chat_request": CHAT, "prompt_token_ids": []}, "generate_chunk"),
        (
            chunk(
                [5],
                chat_request=CHAT,
                prompt_token_ids=[],
                stream_state={"output_token_ids": [5], "output_chunk_lens": [2]},
            ),
            "must sum to",
        ),
        ({"chat_request": CHAT, "generate_response": {"choices": [{"index": 0}]}}, "empty or null"),
    ],
)
def test_a_chat_that_cannot_be_derendered(body: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        derenderer().chat(body, "tiny", 1)


def test_several_choices_in_one_chunk_are_refused() -> None:
    body = chunk([5])
    body["generate_chunk"]["choices"] *= 2
    with pytest.raises(BadRequest, match="at most one choice"):
        derenderer().completion(body, "tiny", 1)
