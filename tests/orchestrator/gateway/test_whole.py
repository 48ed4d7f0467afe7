"""Each dialect's rule of what a whole plain answer is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.asked import ask
from orchestrator.gateway.dialects.table import ROWS
from orchestrator.gateway.failure import Failure

JSON = "application/json"


def judged(path: str, fields: object, answer: object, method: str = "POST"):
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    asked = ask(method, path, JSON, json.dumps(fields).encode() if method == "POST" else b"")
    return asked.dialect.whole(asked, body).failure


def choices(*reasons):
    return {"choices": [{"index": n, "finish_reason": reason} for n, reason in enumerate(reasons)]}


def vectors(count, key="embedding"):
    return {"data": [{"index": n, key: [0.5]} for n in range(count)]}


def response(status, **fields):
    return {"id": "r", "status": status, "usage": {"output_tokens": 3}, **fields}


CHAT, COMPLETIONS, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, RANK, SCORE = "/v1/responses", "/rerank", "/score"
DOCS = {"query": "q", "documents": ["a", "b", "c"]}
RESULT = {"index": 0, "relevance_score": 0.1}


@pytest.mark.parametrize(
    ("path", "fields", "answer"),
    [
        (CHAT, {}, choices("stop")),
        (CHAT, {"n": 2}, choices("tool_calls", "length")),
        (COMPLETIONS, {"prompt": ["a", "b"]}, choices("stop", "stop")),
        ("/v1/chat/completions/batch", {"messages": [[{}], [{}]]}, choices("stop", "stop")),
        (EMBED, {"input": "a"}, vectors(1)),
        (EMBED, {"input": [1, 2, 3]}, vectors(1)),
        (EMBED, {"input": ["a", 1]}, vectors(1)),  # llama.cpp: texts among ids are one input
        (COMPLETIONS, {"prompt": ["a", 1]}, choices("stop")),
        (EMBED, {"input": ["a", "b"]}, vectors(2)),
        (EMBED, {"input": [[1], [2], [3]]}, vectors(3)),
        (EMBED, {"messages": [{"role": "user", "content": "x"}]}, vectors(1)),
        (EMBED, {"input": "a", "encoding_format": "bytes"}, b"\x00\x01"),
        (EMBED, {"input": "a"}, {"data": [{"index": 0, "embedding": "AACAPw=="}]}),
        (RESPONSES, {}, response("completed")),
        (RESPONSES, {}, response("completed", error=None, usage=None)),
        (RESPONSES, {}, response("incomplete", incomplete_details={"reason": "max_output_tokens"})),
        (RESPONSES, {}, response("failed", error={"code": "invalid_prompt", "message": "no"})),
        (RESPONSES, {"background": True}, response("queued", usage=None)),
        (RESPONSES, {"background": True}, response("in_progress")),
        (RANK, DOCS, {"results": [RESULT] * 3}),
        (RANK, DOCS | {"top_n": 2}, {"results": [RESULT] * 2}),
        (RANK, DOCS | {"top_n": 9}, {"results": [RESULT] * 3}),
        (RANK, DOCS | {"top_n": "2"}, {"results": [RESULT] * 2}),  # as pydantic reads it
        (RANK, DOCS | {"top_n": 2.0}, {"results": [RESULT] * 2}),
        ("/v2/rerank", DOCS | {"top_n": 0}, {"results": [RESULT] * 3}),
        (SCORE, {"text_1": "a", "text_2": ["b", "c"]}, vectors(2, "score")),
        (SCORE, {"queries": ["a", "b"], "documents": ["c", "d"]}, vectors(2, "score")),
        ("/v1/score", {"data_1": "a", "data_2": "b"}, vectors(1, "score")),
        ("/pooling", {"input": ["a", "b"]}, vectors(2, "data")),
        ("/pooling", {"data": {"x": 1}}, {"request_id": "r", "data": {"y": 2}}),
        ("/classify", {"input": ["a"]}, {"data": [{"label": None, "probs": [1.0]}]}),
        ("/v2/embed", {"texts": ["a", "b"]}, {"embeddings": {"float": [[0.1], [0.2]], "int8": None}}),
        ("/tokenize", {"prompt": "a"}, {"count": 2, "tokens": [1, 2]}),
        ("/tokenize", {"content": "a"}, {"tokens": [1, 2]}),
        ("/detokenize", {"tokens": [1]}, {"prompt": ""}),
        ("/detokenize", {"tokens": [1]}, {"content": "a"}),
        ("/v1/images/generations", {"n": 2}, {"data": [{"b64_json": "x"}, {"url": "u"}]}),
        ("/v1/audio/transcriptions", {}, {"text": ""}),
        ("/v1/audio/transcriptions", {}, b"1\n00:00:00,000 --> plain text"),
        ("/v1/audio/speech", {}, b"RIFF\x00"),
        ("/v1/files", {}, b"\x00 anything"),
        ("/v1/anything", {}, b"anything"),
    ],
)
def test_whole_answers(path, fields, answer):
    assert judged(path, fields, answer) is None


BAD, HALF, ENGINE, ABORTED = (
    Failure.BAD_RESPONSE,
    Failure.INCOMPLETE,
    Failure.ENGINE_ERROR,
    Failure.ABORTED,
)


@pytest.mark.parametrize(
    ("path", "fields", "answer", "failure"),
    [
        (CHAT, {}, choices("abort"), ABORTED),
        (CHAT, {"n": 2}, choices("stop", "abort"), ABORTED),
        (CHAT, {}, choices(None), HALF),
        (CHAT, {}, choices(""), HALF),
        (CHAT, {}, choices(), HALF),
        (CHAT, {"n": 2}, choices("stop"), HALF),
        (COMPLETIONS, {"prompt": ["a", "b"]}, choices("stop"), HALF),
        (CHAT, {}, {"choices": None}, BAD),
        (CHAT, {}, {"choices": [7]}, BAD),
        (CHAT, {}, {}, BAD),
        (CHAT, {}, {"error": {"message": "EngineCore"}}, ENGINE),
        (CHAT, {}, choices("stop") | {"error": "x"}, ENGINE),
        (EMBED, {"input": ["a", "b"]}, vectors(1), HALF),
        (EMBED, {"input": "a"}, {"data": [{"index": 0}]}, HALF),
        (EMBED, {"input": "a"}, {"data": [{"index": 0, "embedding": []}]}, HALF),
        (EMBED, {"input": "a"}, {"data": [{"index": 0, "embedding": [0.1, None]}]}, Failure.SERVER_ERROR),
        (EMBED, {"input": "a"}, {"data": {}}, BAD),
        (EMBED, {"input": "a", "encoding_format": "bytes"}, b"", HALF),
        (RESPONSES, {}, response("in_progress"), HALF),
        (RESPONSES, {}, response("queued"), HALF),
        (RESPONSES, {}, response("cancelled"), ABORTED),
        (RESPONSES, {}, response("completed", usage={"output_tokens": 0}), ABORTED),
        (RESPONSES, {}, response("failed", error={"code": "server_error"}), ENGINE),
        (RESPONSES, {}, response("failed"), ENGINE),
        (RESPONSES, {}, {"id": "r"}, BAD),
        (RANK, DOCS, {"results": [RESULT] * 2}, HALF),
        (RANK, DOCS, {"results": [RESULT, RESULT, {"index": 1}]}, HALF),
        (RANK, DOCS, {"data": []}, BAD),
        (SCORE, {"text_1": "a", "text_2": ["b", "c"]}, vectors(1, "score"), HALF),
        ("/pooling", {"input": ["a", "b"]}, vectors(1, "data"), HALF),
        ("/pooling", {"data": 1}, {"request_id": "r"}, HALF),
        ("/classify", {"input": ["a"]}, {"data": []}, HALF),
        ("/v2/embed", {"texts": ["a", "b"]}, {"embeddings": {"float": [[0.1]]}}, HALF),
        ("/v2/embed", {"texts": ["a"]}, {"embeddings": {}}, HALF),
        ("/v2/embed", {"texts": ["a"]}, {"embeddings": [[0.1]]}, BAD),
        ("/tokenize", {"prompt": "a"}, {"count": 3, "tokens": [1, 2]}, HALF),
        ("/tokenize", {"prompt": "a"}, {"count": 3}, BAD),
        ("/detokenize", {"tokens": [1]}, {}, BAD),
        ("/v1/images/generations", {"n": 2}, {"data": [{"b64_json": "x"}]}, HALF),
        ("/v1/images/generations", {}, {"data": [{"b64_json": None}]}, HALF),
        ("/v1/audio/transcriptions", {}, {"texts": 1}, HALF),
        ("/v1/audio/transcriptions", {}, b'{"text": "cut of', BAD),
        ("/v1/audio/speech", {}, b"", HALF),
    ],
)
def test_answers_that_are_not_whole(path, fields, answer, failure):
    assert judged(path, fields, answer) is failure


JUDGED = sorted(path for path, row in ROWS.items() if row.json and row.translate is None)


@pytest.mark.parametrize("path", JUDGED)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"<html>", b'{"choices":[{"finish_re', b"\xff"])
def test_nonsense_is_no_answer_in_any_dialect(path, body):
    assert judged(path, {}, body) is Failure.BAD_RESPONSE


@pytest.mark.parametrize("status", ["queued", "in_progress", "failed", "cancelled", "completed"])
def test_a_stored_response_is_what_it_is(status):
    answer = response(status, error={"code": "server_error"} if status == "failed" else None)
    assert judged("/v1/responses/r", None, answer, "GET") is None
    assert judged("/v1/responses/r", None, b"{", "GET") is Failure.BAD_RESPONSE


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**60) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["data", "choices", "results", "status", "usage", "error", "embeddings", "tokens", "count", "prompt",
     "input", "messages", "documents", "top_n", "text_1", "text_2", "queries", "texts", "images", "tools"]
)  # fmt: skip
objects = st.dictionaries(names, json_values, max_size=5)


@given(st.sampled_from(JUDGED), objects, objects)
def test_any_answer_to_any_request_is_judged(path, fields, answer):
    assert judged(path, fields, answer) is None or isinstance(judged(path, fields, answer), Failure)


def test_a_ranking_of_a_text_that_nobody_sent_is_none() -> None:
    fields = {"query": "q", "documents": ["a", "b"]}
    rows = [{"index": 1, "score": 0.5}, {"index": 0, "score": 0.1}]
    assert judged("/rerank", fields, rows) is None
    assert judged("/rerank", fields, [{**rows[0], "index": 2}, rows[1]]) is Failure.BAD_RESPONSE
    assert judged("/rerank", {"query": "q", "texts": ["a", "b"]}, rows[:1]) is Failure.INCOMPLETE
    assert judged("/rerank", fields, [{"index": 1}, {"index": 0}]) is Failure.INCOMPLETE
