"""What a stream shows is noted, and its ids are taken out of what the client sees.

The events were recorded from vLLM 0.32, once with `return_token_ids` and once without.
"""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.asked import ask
from orchestrator.gateway.continuation import Capability, Transcript, Way, plan_of
from orchestrator.gateway.stream import CompletionJudge

HEAD = '{"id":"chatcmpl-8c6b","object":"chat.completion.chunk","created":1795990207,"model":"tiny",'
ROLE = (
    '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
)
USAGE = HEAD + '"choices":[],"usage":{"prompt_tokens":4,"total_tokens":7,"completion_tokens":3}}'


def chat_events(*, told: bool) -> list[str]:
    def ids(text: str) -> str:
        return text if told else "null"

    def said(delta: str, token: str, finish: str = "null") -> str:
        stop = "" if finish == "null" else '"stop_reason":null,'
        return (
            f'{HEAD}"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish},'
            f'{stop}"token_ids":{ids(token)}}}]}}'
        )

    return [
        f'{HEAD}{ROLE}"prompt_token_ids":{ids("[3,89,368,203]")},"prompt_text":null}}',
        said('{"content":" a \\"token_ids\\":[1]"}', "[590]"),
        said("{}", "[100]"),
        said('{"content":"é]"}', "[101,102]", '"length"'),
        USAGE,
    ]


TEXT_TOLD = (
    '{"id":"cmpl-ac7a","object":"text_completion","created":1795990207,"model":"tiny","choices":[{"index":0,'
    '"text":"x","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":[76,77],'
    '"token_ids":[528]}]}'
)


def transcript(path: str = "/v1/chat/completions", **fields: Any) -> Transcript:
    body = {"model": "tiny", "stream": True, "messages": [], "prompt": "x", **fields}
    request = ask("POST", path, "application/json", orjson.dumps(body))
    return Transcript(request, plan_of(request))


def taken(into: Transcript, events: list[str]) -> list[str]:
    shown = [into.take(b"data: " + event.encode() + b"\n\n", orjson.loads(event)) for event in events]
    return [event.decode()[6:-2] for event in shown]


def test_a_client_that_asked_for_no_ids_sees_none() -> None:
    noted = transcript(stream_options={"include_usage": True})
    assert taken(noted, chat_events(told=True)) == chat_events(told=False)
    assert (noted.prompt, list(noted.ids), list(noted.lens)) == (
        [3, 89, 368, 203],
        [590, 100, 101, 102],
        [1, 1, 2],
    )
    assert (noted.tokens, noted.finish, noted.length, noted.closing()) == (4, "length", 20, b"")
    assert noted.head["id"] == "chatcmpl-8c6b"


def test_a_usage_that_only_the_gateway_asked_for_is_kept_from_the_client() -> None:
    request = ask(
        "POST", "/v1/chat/completions", "application/json", b'{"model":"tiny","stream":true,"messages":[]}'
    )
    noted = Transcript(request, plan_of(request), asks=True)
    assert not noted.told
    assert taken(noted, chat_events(told=True)) == [*chat_events(told=False)[:-1], ""]
    assert noted.usage == orjson.loads(USAGE)["usage"]
    assert noted.told
    assert noted.closing() == b""
    noted.restart()
    assert (noted.dropped, noted.told) == (4, False)


def test_ids_that_are_generated_again_are_counted() -> None:
    noted = transcript()
    taken(noted, chat_events(told=True)[:3])
    assert noted.keep(1) == 1
    assert (noted.dropped, noted.told) == (1, False)  # it is not whole


def test_a_client_that_asked_for_ids_sees_them() -> None:
    noted = transcript(return_token_ids=True)
    assert taken(noted, chat_events(told=True)) == chat_events(told=True)
    assert noted.tokens == 4


def test_an_engine_without_ids_is_passed_on_and_cannot_be_continued() -> None:
    noted = transcript()
    assert taken(noted, chat_events(told=False)) == chat_events(told=False)
    assert noted.obstacle() == "the engine sent no token ids"


def test_ids_of_a_text() -> None:
    noted = transcript("/v1/completions")
    (shown,) = taken(noted, [TEXT_TOLD])
    assert shown == TEXT_TOLD.replace("[76,77]", "null").replace("[528]", "null")
    assert (noted.prompt, list(noted.ids)) == ([76, 77], [528])


@pytest.mark.parametrize("told", [TEXT_TOLD, chat_events(told=True)[0], chat_events(told=True)[1]])
def test_an_engine_that_writes_json_in_another_way(told: str) -> None:
    spaced = told.replace('":', '": ').replace("{}", "{ }")
    shown = orjson.loads(taken(transcript(), [spaced])[0])
    assert b"[76" not in orjson.dumps(shown)
    assert b"[3," not in orjson.dumps(shown)
    assert b'_ids":[5' not in orjson.dumps(shown)
    assert {**shown, "choices": 0, "prompt_token_ids": 0} == {
        **orjson.loads(told),
        "choices": 0,
        "prompt_token_ids": 0,
    }


def test_usage_that_a_finished_stream_still_owes() -> None:
    noted = transcript(stream_options={"include_usage": True})
    taken(noted, chat_events(told=True)[:-1])
    owed = orjson.loads(noted.closing()[6:])
    assert owed == {
        **orjson.loads(USAGE),
        "usage": {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8},
    }
    assert noted.closing() == b""
    unasked = transcript()
    taken(unasked, chat_events(told=True)[:-1])
    assert unasked.closing() == b""


def test_a_break_behind_the_end_of_the_answer_costs_the_client_nothing() -> None:
    noted = transcript(stream_options={"include_usage": True})
    judge = CompletionJudge(1, noted)
    shown = judge.feed(
        b"".join(b"data: " + event.encode() + b"\n\n" for event in chat_events(told=True)[:-1])
    )
    assert judge.whole
    *events, used, done = (shown + judge.closing()).decode().split("\n\n")[:-1]
    assert [event.removeprefix("data: ") for event in events] == chat_events(told=False)[:-1]
    assert '"completion_tokens":4' in used
    assert done == "data: [DONE]"


CLEAN = Capability(way=Way.CLEAN, identity="x", why="no scale-out")
FULL = Capability(way=Way.DERENDER, identity="x")
THINKS = Capability(way=Way.DERENDER, identity="x", reasons=True)
FUNCTION = {"type": "function", "function": {"name": "f"}}
NEED = "tool calls and reasoning need --enable-scale-out"


@pytest.mark.parametrize(
    ("fields", "capability", "obstacle"),
    [
        ({}, None, ""),
        ({}, CLEAN, ""),
        ({}, FULL, ""),
        ({}, Capability(why="away"), "away"),
        ({"tools": [FUNCTION]}, None, ""),
        ({"tools": [FUNCTION]}, CLEAN, NEED),
        ({"tools": [FUNCTION]}, FULL, ""),
        ({"stop": "x"}, CLEAN, ""),
        ({"stop": "x"}, THINKS, ""),
        ({"response_format": {"type": "json_object"}}, FULL, "response_format: its grammar starts anew"),
    ],
)
def test_what_stands_against_a_continuation_once_text_was_sent(
    fields: dict[str, Any], capability: Capability | None, obstacle: str
) -> None:
    noted = transcript(**fields)
    taken(noted, chat_events(told=True)[:2])
    assert noted.obstacle(capability) == obstacle


def delta(**fields: Any) -> list[str]:
    choice = {"index": 0, "delta": fields, "finish_reason": None, "token_ids": [5]}
    return [chat_events(told=True)[0], orjson.dumps({"id": "a", "choices": [choice]}).decode()]


def test_white_space_can_be_asked_again_anywhere() -> None:
    for fields in ({}, {"response_format": {"type": "json_object"}}, {"tools": [FUNCTION]}):
        noted = transcript(**fields)
        taken(noted, delta(content=" \n"))
        assert noted.again
        assert noted.obstacle(Capability()) == ""
    taken(noted, delta(content="a"))
    assert not noted.again
    several = transcript(n=2)
    assert not several.again


@pytest.mark.parametrize(
    "shown",
    [
        {"reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"tool_calls": [{"index": 0, "id": "c", "function": {}}]},
    ],
)
def test_thoughts_and_calls_are_something_shown(shown: dict[str, Any]) -> None:
    noted = transcript(tools=[FUNCTION])
    taken(noted, delta(**shown))
    assert not noted.again
    assert noted.obstacle(CLEAN) == NEED
    assert noted.calls == (["c"] if "tool_calls" in shown else [])


def test_reasoning_needs_a_parser_until_text_comes() -> None:
    noted = transcript(stop="x")
    taken(noted, delta(reasoning="hm"))
    assert noted.obstacle(THINKS) == "stop strings inside reasoning"
    assert noted.needs_parser(CLEAN)
    taken(noted, delta(content="so"))
    assert noted.obstacle(THINKS) == ""
    assert not noted.needs_parser(THINKS)


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=12), st.data())
def test_ids_behind_the_last_text_can_be_forgotten(
    chunks: list[tuple[int, bool]], data: st.DataObject
) -> None:
    noted, total, solid = transcript(), 0, 0
    for count, text in chunks:
        noted.note({"delta": {"content": "a" if text else ""}}, list(range(total, total + count)))
        total += count
        solid = total if text else solid
    assert (noted.tokens, noted.solid) == (total, solid)
    keep = data.draw(st.integers(0, total))
    assert noted.keep(keep) == total - keep
    assert list(noted.ids) == list(range(keep))
    assert sum(noted.lens) == keep
    assert 0 not in noted.lens


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"choices": []},
        {"choices": [5]},
        {"choices": [{"delta": None, "token_ids": None}]},
        {"choices": [{"delta": {"tool_calls": None}, "token_ids": []}]},
    ],
)
def test_odd_chunks_are_passed_on(chunk: dict[str, Any]) -> None:
    event = b"data: " + orjson.dumps(chunk) + b"\n\n"
    assert transcript().take(event, chunk) == event


@pytest.mark.parametrize("ids", [[-1], [2**40], ["a"], "abc", 5, [1.5], [None]])
def test_ids_that_are_none_make_a_stream_that_cannot_be_continued(ids: Any) -> None:
    noted = transcript()
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": None, "token_ids": ids}
    chunk = {**orjson.loads(chat_events(told=True)[0]), "choices": [choice]}
    noted.take(b"data: " + orjson.dumps(chunk) + b"\n\n", chunk)
    assert noted.obstacle() == "the engine sent no token ids"


@pytest.mark.parametrize("wants", [False, True])
@pytest.mark.parametrize("ids", ["[7]", "[7,8]", "null", "[]"])
def test_ordinary_events_at_once_are_noted_as_one_by_one(wants: bool, ids: str) -> None:
    first, *_ = chat_events(told=True)
    said = [chat_events(told=True)[1], chat_events(told=True)[1].replace("[590]", ids)]
    one, all_ = (transcript(**({"return_token_ids": True} if wants else {})) for _ in range(2))
    taken(one, [first])
    taken(all_, [first])
    block = "".join(f"data: {event}\n\n" for event in said).encode()
    shown = all_.take_plain(block, [orjson.loads(event) for event in said])
    assert shown == "".join(f"data: {event}\n\n" for event in taken(one, said)).encode()
    assert (all_.ids, all_.lens, all_.length, all_.tail) == (one.ids, one.lens, one.length, one.tail)
    assert (all_.obstacle(), all_.solid, all_.lumped) == (one.obstacle(), one.solid, one.lumped)


@pytest.mark.parametrize("event", ["{}", '{"choices":[]}', '{"choices":[{"token_ids" : [5]}]}'])
def test_what_is_no_ordinary_event_is_not_noted_at_once(event: str) -> None:
    noted = transcript()
    assert noted.take_plain(f"data: {event}\n\n".encode(), [orjson.loads(event)]) is None
    taken(noted, chat_events(told=True)[:1])
    assert noted.take_plain(f"data: {event}\n\n".encode(), [orjson.loads(event)]) is None
    assert not noted.ids
