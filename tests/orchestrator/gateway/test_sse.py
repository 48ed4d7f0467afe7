"""Splitting and judging streams, whatever way the bytes arrive."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloud.sse import Splitter, event_data, split_events
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.stream import CompletionJudge, StreamJudge, is_plain


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({place % (len(data) + 1) for place in places})
    starts = [0, *borders]
    return [data[start:end] for start, end in zip(starts, [*borders, len(data)], strict=True)]


def event(delta=None, finish=None, index=0, **fields) -> bytes:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    body = {"choices": [choice], **fields}
    return b"data: " + json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"EngineCore encountered an issue","code":500}}\n\n'

texts = st.text(max_size=20) | st.sampled_from(
    ['"error"', "[DONE]", '"finish_reason":"stop"', "\n\n", "data: "]
)
cuts = st.lists(st.integers(0, 10_000), max_size=30)
newlines = st.sampled_from(["\n", "\r\n", "\r"])


@given(st.lists(st.text("ab:\u00e9 ", max_size=8), max_size=8), newlines, cuts)
def test_events_come_out_as_they_went_in(lines, newline, places):
    data = "".join(f"data: {line}{newline}{newline}" for line in lines).encode()
    splitter = Splitter()
    out = [splitter.feed(part) for part in cut(data, places)]
    assert b"".join(out) + splitter.tail == data
    assert splitter.tail in (b"", b"\n")  # the second half of a last CR LF may come on its own
    events = [found for block in out for found in split_events(block) if event_data(found)]
    expected = [line.encode() for line in lines if line]
    assert [event_data(found) for found in events] == expected


@given(st.binary(max_size=200), cuts)
def test_no_byte_is_lost_or_changed(data, places):
    splitter = Splitter()
    assert b"".join(splitter.feed(part) for part in cut(data, places)) + splitter.tail == data


@given(st.lists(texts, min_size=1, max_size=6), cuts)
@example(["a", "b"], [50, 51, 52])
def test_a_good_stream_passes_whole_and_unchanged(words, places):
    data = ROLE + b"".join(event({"content": word}) for word in words) + event(finish="stop") + DONE
    judge = CompletionJudge(1)
    out = b"".join(judge.feed(part) for part in cut(data, places)) + judge.end()
    assert out == data
    assert judge.whole
    assert judge.failure() is None
    assert judge.closing() == b""
    assert judge.chunks == len(words) + 2


@given(st.lists(texts.filter(bool), min_size=1, max_size=6), cuts, st.integers(0, 10_000))
def test_a_stream_cut_anywhere_is_never_taken_for_whole(words, places, end):
    data = ROLE + b"".join(event({"content": word}) for word in words) + event(finish="stop")
    data = data[: end % (len(data) - len(event(finish="stop")) + 1)]
    judge = CompletionJudge(1)
    out = b"".join(judge.feed(part) for part in cut(data, places)) + judge.end()
    assert judge.failure() is not None or not judge.begun
    assert not judge.whole
    assert out == b"" or data.startswith(out.rstrip(b"\n"))


@given(st.lists(texts.filter(bool), max_size=6), cuts, st.sampled_from([ERROR, event(finish="abort"), DONE]))
def test_what_ends_a_stream_badly_is_never_passed_on(words, places, bad):
    good = ROLE + b"".join(event({"content": word}) for word in words)
    judge = CompletionJudge(1)
    out = b""
    for part in cut(good + bad + DONE, places):
        out += judge.feed(part)
        if judge.failure():
            break
    assert judge.failure() in (Failure.ENGINE_ERROR, Failure.ABORTED, Failure.INCOMPLETE)
    assert out == (good if words else b"")


def test_nothing_is_sent_before_the_first_text():
    judge = CompletionJudge(1)
    assert judge.feed(b": keep-alive\n\n" + ROLE) == b""
    assert not judge.begun
    text = event({"content": "x"})
    assert judge.feed(text) == b": keep-alive\n\n" + ROLE + text


@pytest.mark.parametrize(
    "delta",
    [{"reasoning_content": "hm"}, {"tool_calls": [{"index": 0}]}, {"content": "x"}, {"refusal": "no"}],
)
def test_anything_a_reader_sees_begins_a_stream(delta):
    judge = CompletionJudge(1)
    assert judge.feed(event(delta)) == event(delta)


def test_legacy_completions_begin_with_their_text():
    judge = CompletionJudge(1)
    assert judge.feed(b'data: {"choices":[{"index":0,"text":"","finish_reason":null}]}\n\n') == b""
    assert judge.feed(b'data: {"choices":[{"index":0,"text":"x","finish_reason":null}]}\n\n') != b""


def test_an_empty_answer_with_a_normal_end_is_an_answer():
    judge = CompletionJudge(1)
    data = ROLE + event(finish="stop") + DONE
    assert judge.feed(data) == data
    assert judge.whole


def test_what_breaks_after_the_end_does_not_matter():
    judge = CompletionJudge(1)
    data = event({"content": "x"}) + event(finish="stop")
    assert judge.feed(data + ERROR) == data
    assert judge.failure() is None
    assert judge.closing() == DONE


def test_usage_after_the_end_passes():
    judge = CompletionJudge(1)
    usage = b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n'
    data = event({"content": "x"}) + event(finish="length") + usage + DONE
    assert judge.feed(data) == data
    assert judge.tokens() == 2
    assert judge.whole


def test_a_last_event_without_its_blank_line_counts():
    judge = CompletionJudge(1)
    judge.feed(event({"content": "x"}))
    judge.feed(event(finish="stop").rstrip())
    assert not judge.whole
    judge.end()
    assert judge.whole


def test_engines_that_write_spaces_are_judged_alike():
    judge = CompletionJudge(1)
    spaced = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}\n\n'
    assert judge.feed(spaced) == spaced
    assert judge.feed(spaced) == spaced
    assert judge.feed(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}\n\n') == b""
    assert judge.failure() is Failure.ABORTED


PREAMBLE, CONTENT, FINISH = "held back", "begun", "whole"


@pytest.mark.parametrize(
    ("data", "meaning"),
    [
        (b": ping\n\n", PREAMBLE),
        (b"event: ping\n\n", PREAMBLE),
        (b"data: [DONE]\n\n", Failure.INCOMPLETE),
        (b"data:[DONE]\r\n\r\n", Failure.INCOMPLETE),
        (ERROR, Failure.ENGINE_ERROR),
        (b'data: {"error":"Unauthorized"}\n\n', Failure.ENGINE_ERROR),
        (b'data: {"error":{"message":"x","code":400}}\n\n', FINISH),
        (b'data: {"error":{"message":"x","code":429}}\n\n', Failure.ENGINE_ERROR),
        (b'data: {"error":null,"choices":[]}\n\n', PREAMBLE),
        (b"data: not json\n\n", Failure.BAD_RESPONSE),
        (b"data: [1,2]\n\n", Failure.BAD_RESPONSE),
        (b'data: {"choices":[{"index":0,"delta":{"cont\n\n', Failure.BAD_RESPONSE),
        (event(finish="tool_calls"), FINISH),
        (event(finish=""), PREAMBLE),
        (event(finish="abort"), Failure.ABORTED),
        (event({"role": "assistant"}), PREAMBLE),
        (event({"content": "error"}), CONTENT),
        (b"\xef\xbb\xbf" + event({"content": "after a BOM"}), CONTENT),
        (b"id: 7\nevent: message\n" + event({"content": "x"}), CONTENT),
        (event({"content": "x"}).replace(b"\n", b"\r"), CONTENT),
        (event({"content": "x"}, index=[]), CONTENT),
    ],
)
def test_meanings_of_events(data, meaning):
    judge = CompletionJudge(1)
    passed = judge.feed(data)
    if isinstance(meaning, Failure):
        assert (judge.failure(), passed, judge.whole) == (meaning, b"", False)
    else:
        assert judge.failure() is None
        assert (judge.begun, judge.whole) == (meaning != PREAMBLE, meaning == FINISH)
        assert passed == (b"" if meaning == PREAMBLE else data)


def test_data_of_many_lines_is_joined():
    assert event_data(b"event: x\ndata: one\ndata:two\nid: 3\n\n") == b"one\ntwo"


def test_text_that_looks_like_keys_is_still_plain():
    assert is_plain(event({"content": '"error" "finish_reason":"abort"'}))
    assert not is_plain(event(finish="stop"))


def test_other_streams_pass_untouched():
    judge = StreamJudge()
    assert judge.feed(b"event: a\ndata: {}") == b""
    assert judge.feed(b"\n\ndata: 7") == b"event: a\ndata: {}\n\n"
    assert judge.end() == b"data: 7\n\n"
    assert judge.whole


@pytest.mark.parametrize("half", [b"rest", b"event: a\n", b'data: {"a":', b"data: plain"])
def test_half_an_event_of_another_stream_never_passes(half):
    judge = StreamJudge()
    judge.feed(b"data: {}\n\n" + half)
    assert judge.end() == b""
    assert (judge.failure(), judge.whole) == (Failure.INCOMPLETE, False)
