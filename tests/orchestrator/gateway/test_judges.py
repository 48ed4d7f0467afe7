"""Judges of streams: any cut of the bytes gives the same result, and no bad end is taken for a good one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloud import sse
from cloud.sse import Splitter
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.stream import CompletionJudge, ResponsesJudge, StreamJudge, TypedJudge

DONE = b"data: [DONE]\n\n"


def pieces(data: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]


def chunk(text: str = "", finish: str | None = None, index: int = 0, **fields: Any) -> bytes:
    choice = {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **fields}, separators=(",", ":")).encode() + b"\n\n"


def typed(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def result(judge: StreamJudge, parts: list[bytes]) -> tuple[Any, ...]:
    """Feed a judge as an attempt does; what the client got and how it was judged."""
    out = b""
    for part in parts:
        out += judge.feed(part)
        if judge.failure() is not None:
            break
    else:
        out += judge.end()
    last = judge.closing() if judge.whole else b""
    return out + last, judge.failure(), judge.whole, judge.begun, judge.chunks, judge.tokens()


class Notes:
    """A recorder: cuts the ids out of every event."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    @property
    def tokens(self) -> int:
        return len(self.seen)

    def take(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        self.seen.append(chunk)
        return event.replace(b',"token_ids":[1]', b"")

    def take_plain(self, block: bytes, chunks: list[Any]) -> bytes | None:
        self.seen += chunks
        return block.replace(b',"token_ids":[1]', b"") if chunks else None

    def closing(self) -> bytes:
        return b""


texts = st.text(max_size=6) | st.sampled_from(["[DONE]", '"error"', '"finish_reason":null', "\n\n"])
completion_events = st.one_of(
    texts.map(chunk),
    st.builds(chunk, texts, st.sampled_from(["stop", "length", "abort", ""]), st.integers(0, 2)),
    st.builds(chunk, texts, index=st.integers(0, 2)),
    texts.map(lambda text: chunk(text, token_ids=[1])),
    texts.map(lambda text: json.dumps({"choices": [{"text": text}]}).encode().join((b"data:", b"\r\n\r\n"))),
    st.sampled_from(
        [
            DONE, b": ping\n\n", b"event: x\n\n", b"id: 1\r\n" + chunk("x"), b"data: nonsense\n\n",
            b'data: {"error":{"code":400}}\n\n', b'data: {"error":"dead"}\n\n',
            chunk("whole")[:-30] + b"\n\n", b"data: []\n\n",
            b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\n', b"\xef\xbb\xbf" + chunk("x"),
            chunk("x", usage={"completion_tokens": 3}), b"\n\n", b"data: 7", chunk("half")[:20],
        ]
    ),
)  # fmt: skip
cuts = st.lists(st.integers(0, 5000), max_size=25)


@given(st.lists(completion_events, max_size=8).map(b"".join), cuts, st.integers(1, 3))
@example(chunk("a") + chunk("b") + chunk("", "stop") + DONE, list(range(400)), 1)
@example(chunk("a").replace(b"\n", b"\r\n") + chunk("", "stop").replace(b"\n", b"\r\n"), list(range(300)), 1)
@example(b"\n\n\xef\xbb\xbf" + chunk("x"), [2], 1)
@example(chunk("0") + chunk("", index=1) + chunk("", "stop"), [78, 143], 1)  # one that nobody asked for
def test_any_cut_of_a_completion_stream_gives_the_same_result(data, places, choices):
    whole = result(CompletionJudge(choices), [data])
    assert result(CompletionJudge(choices), pieces(data, places)) == whole


@given(st.lists(completion_events, max_size=8).map(b"".join), cuts)
@example(b"\n\n\xef\xbb\xbf" + chunk("x"), [2])
def test_any_cut_of_a_recorded_stream_gives_the_same_result(data, places):
    one, other = Notes(), Notes()
    assert result(CompletionJudge(1, one), [data]) == result(CompletionJudge(1, other), pieces(data, places))
    assert one.seen == other.seen


@given(st.lists(completion_events, max_size=8).map(b"".join), st.integers(1, 3))
def test_a_recorder_that_keeps_all_changes_nothing(data, choices):
    class All(Notes):
        def take(self, event: bytes, chunk: dict[str, Any]) -> bytes:
            return event

        def take_plain(self, block: bytes, chunks: list[Any]) -> bytes | None:
            return block if chunks else None

    assert result(CompletionJudge(choices, All()), [data])[:5] == result(CompletionJudge(choices), [data])[:5]


response_events = st.one_of(
    st.builds(typed, st.just("response.output_text.delta"), delta=texts),
    st.sampled_from(
        [
            typed("response.created", response={"id": "resp_1", "status": "in_progress"}),
            typed("response.completed", response={"status": "completed", "usage": {"output_tokens": 2}}),
            typed("response.completed", response={"status": "completed", "usage": {"output_tokens": 0}}),
            typed("response.incomplete", response={"status": "incomplete"}),
            typed("response.failed", response={"error": {"code": "server_error"}}),
            typed("response.failed", response={"error": {"code": "invalid_prompt"}}),
            typed("error", code="server_error"), typed("error", code=400),
            b'data: {"error":{"code":500}}\n\n', DONE, b": x\n\n", b"data: {\n\n", b'event: response.compl',
        ]
    ),
)  # fmt: skip


@given(st.lists(response_events, max_size=8).map(b"".join), cuts, st.booleans())
def test_any_cut_of_a_responses_stream_gives_the_same_result(data, places, stored):
    whole = result(ResponsesJudge(stored=stored), [data])
    assert result(ResponsesJudge(stored=stored), pieces(data, places)) == whole


@given(st.lists(completion_events | response_events, max_size=8).map(b"".join), cuts)
def test_any_cut_of_another_stream_gives_the_same_result(data, places):
    ends = frozenset({"response.completed"})
    assert result(TypedJudge(ends), pieces(data, places)) == result(TypedJudge(ends), [data])
    assert result(StreamJudge(), pieces(data, places))[1:3] == result(StreamJudge(), [data])[1:3]


def test_two_choices_interleaved_are_whole_when_both_ended():
    judge = CompletionJudge(2)
    parts = [chunk("a"), chunk("b", index=1), chunk("", "stop"), chunk("c", index=1)]
    for part in parts:
        assert judge.feed(part) == part
    assert not judge.whole
    judge.feed(chunk("", "stop", index=1))
    assert judge.whole


def test_a_finish_reason_said_twice_does_not_stand_for_another_choice():
    judge = CompletionJudge(2)
    judge.feed(chunk("a") + chunk("b", index=1) + chunk("", "stop") + chunk("", "stop") + DONE)
    assert (judge.whole, judge.failure()) == (False, Failure.INCOMPLETE)


@pytest.mark.parametrize("read", ["at once", "one by one"])
def test_a_choice_that_was_not_asked_for_is_no_part_of_the_answer(read):
    parts = [chunk("a"), chunk("b", index=1), chunk("", "stop")]
    judge = CompletionJudge(1)
    for part in [b"".join(parts)] if read == "at once" else parts:
        assert judge.feed(part) == part
    assert judge.whole


def test_text_after_its_own_end_breaks_a_stream_that_is_not_whole():
    judge = CompletionJudge(2)
    good = chunk("a") + chunk("b", index=1) + chunk("", "stop")
    assert judge.feed(good + chunk("more") + chunk("", "stop", index=1)) == good
    assert judge.failure() is Failure.BAD_RESPONSE


@pytest.mark.parametrize("junk", [chunk("more"), b"data: nonsense\n\n", chunk("", "abort"), chunk("x")[:-20]])
def test_what_comes_after_a_whole_answer_never_reaches_the_client(junk):
    judge = CompletionJudge(1)
    good = chunk("a") + chunk("", "stop")
    out, failure, whole, *_ = result(judge, [good, junk])
    assert (out, failure, whole) == (good + DONE, None, True)


def test_nothing_follows_done():
    judge = CompletionJudge(1)
    good = chunk("a") + chunk("", "stop") + DONE
    assert judge.feed(good + DONE + chunk("more")) == good
    assert judge.feed(DONE) + judge.end() + judge.closing() == b""


def test_usage_after_the_end_reaches_the_client_also_beside_a_repeated_finish_reason():
    judge = CompletionJudge(1)
    data = chunk("a") + chunk("", "stop") + chunk("", "stop", usage={"completion_tokens": 1}) + DONE
    assert judge.feed(data) == data
    assert judge.tokens() == 1


def test_a_half_event_that_looks_plain_at_its_ends_is_seen():
    judge = CompletionJudge(1)
    judge.feed(chunk("a"))
    assert judge.feed(b'data: {"choices":[{"index":0,"delta":{"content":"x}\n\n') == b""
    assert judge.failure() is Failure.BAD_RESPONSE


def test_a_response_begins_with_its_first_text():
    judge = ResponsesJudge()
    created = typed("response.created", response={"id": "resp_1"})
    assert judge.feed(created) == b""
    assert (judge.begun, judge.response_id) == (False, "resp_1")
    delta = typed("response.output_text.delta", delta="x")
    assert judge.feed(delta) == created + delta


@pytest.mark.parametrize(
    ("last", "failure"),
    [
        (b"", Failure.INCOMPLETE),
        (b"event: response.comp", Failure.INCOMPLETE),
        (DONE, Failure.INCOMPLETE),
        (b"data: {\n\n", Failure.BAD_RESPONSE),
        (typed("error", code="server_error", message="dead"), Failure.ENGINE_ERROR),
        (b'data: {"error":{"message":"EngineCore","code":500}}\n\n', Failure.ENGINE_ERROR),
        (typed("response.failed", response={"error": {"code": "server_error"}}), Failure.ENGINE_ERROR),
        (typed("response.failed", response={}), Failure.ENGINE_ERROR),
        (typed("response.completed", response={"status": "cancelled"}), Failure.ABORTED),
        (
            typed("response.completed", response={"status": "completed", "usage": {"output_tokens": 0}}),
            Failure.ABORTED,
        ),
        (typed("response.failed", response={"error": {"code": "invalid_prompt"}}), None),
        (typed("response.incomplete", response={"status": "incomplete"}), None),
        (typed("response.completed", response={"status": "completed", "usage": None}), None),
    ],
)
def test_ends_of_responses(last, failure):
    text = typed("response.output_text.delta", delta="x")
    out, found, whole, *_ = result(ResponsesJudge(), [text, last])
    assert (found, whole) == (failure, failure is None)
    assert out == text + (last if failure is None else b"")


def test_a_stored_response_that_failed_is_a_whole_answer():
    failed = typed("response.failed", response={"error": {"code": "server_error"}})
    assert result(ResponsesJudge(stored=True), [failed])[:3] == (failed, None, True)


@pytest.mark.parametrize(
    ("events", "whole"),
    [
        ([chunk("word"), chunk("", "stop"), DONE], True),
        ([typed("transcript.text.delta", delta="w"), typed("transcript.text.done", text="w")], True),
        ([typed("speech.audio.delta", audio="AA=="), typed("speech.audio.done")], True),
        ([chunk("word"), DONE], False),
        ([typed("transcript.text.delta", delta="w")], False),
        ([typed("speech.audio.delta", audio="AA==")], False),
        ([chunk("word"), chunk("", "abort")], False),
    ],
)
def test_streams_of_audio(events, whole):
    judge = TypedJudge(frozenset({"transcript.text.done", "speech.audio.done"}))
    out, failure, found, *_ = result(judge, events)
    assert (found, failure is None) == (whole, whole)
    assert out == b"".join(events if whole else events[:1])


def test_an_event_without_end_is_looked_at_once(monkeypatch):
    """8 MiB in pieces of 4 kB: every byte is searched once, and a few at each seam twice."""
    looked = []
    search = sse._last_end
    monkeypatch.setattr(sse, "_last_end", lambda data: looked.append(len(data)) or search(data))
    splitter, piece, count = Splitter(), b"x" * 4096, 2048
    assert not any(splitter.feed(piece) for _ in range(count))
    assert splitter.size == len(piece) * count
    assert sum(looked) <= len(piece) * count + 3 * count
    assert splitter.feed(b"\n\n") == piece * count + b"\n\n"
    assert splitter.size == 0


def test_events_held_back_are_joined_once():
    judge = CompletionJudge(1)
    ping = b": ping\n\n"
    for _ in range(100_000):
        assert judge.feed(ping) == b""
    assert judge.feed(chunk("x")) == ping * 100_000 + chunk("x")


def test_no_more_than_some_mebibytes_are_held_back():
    judge = CompletionJudge(1)
    ping = b": " + b"p" * 65_536 + b"\n\n"
    out = b"".join(judge.feed(ping) for _ in range(100))
    assert judge.begun
    assert out == ping * 100


@pytest.mark.parametrize("strange", [7, None, "text", [], [{"index": 0, "finish_reason": "stop"}]])
def test_a_choice_that_is_no_object_is_passed_over(strange):
    """It crashes nothing, and finishes nothing."""

    def event(*choices: Any, **fields: Any) -> bytes:
        return b"data: " + json.dumps({"choices": list(choices), **fields}).encode() + b"\n\n"

    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    for judge in (CompletionJudge(1), CompletionJudge(1, Notes()), TypedJudge(frozenset({"end"}))):
        judge.feed(chunk("a"))
        assert judge.feed(event(strange))
        assert not judge.whole
        judge.feed(event(strange, last))
        assert (judge.whole, judge.failure()) == (True, None)
    for judge in (CompletionJudge(1), TypedJudge(frozenset({"end"}))):
        judge.feed(b"data: " + json.dumps({"choices": {"0": strange}}).encode() + b"\n\n")
        assert (judge.whole, judge.failure()) == (False, None)
