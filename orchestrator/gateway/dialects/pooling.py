"""Embeddings, pooling, classification, scores and reranking: one row for each input.

OpenAI's embeddings; the others as vLLM 0.32 (entrypoints/pooling) and, for `/v2/`, Cohere define them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.gateway.dialects import Dialect, ErrorShape, Same, Verdict
from orchestrator.gateway.dialects.errors import cohere_error, openai_error
from orchestrator.gateway.dialects.rules import Check, Rule, always, holds, items, json_rule, number
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.stream import StreamJudge

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

_SCORE_PAIRS = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


def _one_each(*filled: str) -> Check:
    """A row under `data` for each input, with one of the fields `filled`."""

    def check(asked: Asked, answer: dict[str, Any]) -> Failure | None:
        return holds(answer, "data", _inputs(asked.inner or {}), *filled)

    return check


def _inputs(fields: dict[str, Any]) -> int:
    """Inputs asked for: texts, lists of token ids, or conversations. One conversation is one input."""
    for name in ("input", "messages"):
        value = fields.get(name)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return 1
        if value is not None:
            return items(value)
    return 0


def _vectors(asked: Asked, answer: dict[str, Any]) -> Failure | None:
    """A vector for each input, no two for the same one, and a number in each place.

    What is no number (NaN) is written as null: by a broken GPU, or for an input that the model cannot take.
    """
    if (failure := holds(answer, "data", _inputs(asked.inner or {}), "embedding")) is not None:
        return failure
    vectors = [row["embedding"] for row in answer["data"]]
    if not all(vectors):
        return Failure.INCOMPLETE
    if any(isinstance(vector, list) and None in vector for vector in vectors):
        return Failure.SERVER_ERROR
    told = [row["index"] for row in answer["data"] if "index" in row]
    return None if len({*map(str, told)}) == len(told) else Failure.BAD_RESPONSE


def _pooled(asked: Asked, answer: dict[str, Any]) -> Failure | None:
    if "data" in (asked.inner or {}):  # a plugin of the engine answers in a form of its own
        return None if answer.get("data") is not None else Failure.INCOMPLETE
    return _one_each("data")(asked, answer)


def _scores(asked: Asked, answer: dict[str, Any]) -> Failure | None:
    """A score for each pair; one text against many counts as many pairs."""
    fields = asked.inner or {}
    pairs = max(
        (max(items(fields.get(a)), items(fields.get(b))) for a, b in _SCORE_PAIRS if b in fields), default=0
    )
    return holds(answer, "data", pairs, "score")


def _ranks(asked: Asked, answer: dict[str, Any]) -> Failure | None:
    """A result for each document, or for the `top_n` best."""
    fields = asked.inner or {}
    documents = items(fields.get("documents", fields.get("texts")))
    count = min(documents, number(fields.get("top_n")) or documents)
    if (failure := holds(answer, "results", count, "relevance_score", "score")) is not None:
        return failure
    places = [row.get("index", 0) for row in answer["results"]]
    known = all(isinstance(place, int) and 0 <= place < max(documents, 1) for place in places)
    return None if known else Failure.BAD_RESPONSE


def _ranked(asked: Asked, body: bytes) -> Verdict:
    """The same for SGLang and TEI, whose answer is the list alone."""
    if not body.startswith(b"[{"):
        return _RANKS(asked, body)
    return _RANKS(asked, b'{"results":' + body + b"}")


_RANKS = json_rule(_ranks)


def _by_type(asked: Asked, answer: dict[str, Any]) -> Failure | None:
    """Cohere: under `embeddings` a list for each type, each with a vector for each input."""
    fields, embeddings = asked.inner or {}, answer.get("embeddings")
    if not isinstance(embeddings, dict):
        return Failure.BAD_RESPONSE
    inputs = sum(items(fields.get(name)) for name in ("texts", "images", "inputs"))
    lists = [vectors for vectors in embeddings.values() if vectors is not None]
    if not lists or not all(isinstance(vectors, list) and len(vectors) >= inputs for vectors in lists):
        return Failure.INCOMPLETE
    return None


def _billed(answer: dict[str, Any]) -> Any:
    """Where Cohere tells the usage: https://docs.cohere.com/reference/embed"""
    meta = answer.get("meta")
    billed = meta.get("billed_units") if isinstance(meta, dict) else None
    if not isinstance(billed, dict):
        return None
    counts = (billed.get(name) for name in ("input_tokens", "image_tokens"))
    return {"input_tokens": sum(count for count in counts if isinstance(count, int))}


def _or_bytes(check: Check) -> Rule:
    """The rule of a dialect whose vectors may be asked for as raw bytes, whose length HTTP vouches for."""
    rule = json_rule(check)

    def whole(asked: Asked, body: bytes) -> Verdict:
        if asked.inner is not None and asked.inner.get("encoding_format") in ("bytes", "bytes_only"):
            return Verdict(None if body else Failure.INCOMPLETE)
        return rule(asked, body)

    return whole


def _row(name: str, whole: Rule, error: ErrorShape = openai_error) -> Dialect:
    return Dialect(
        name=name,
        judge=lambda _: StreamJudge(),
        whole=whole,
        edge=lambda _: Same(error),
        error=error,
        repeats=always,
        streams=False,
    )


EMBEDDINGS = _row("embeddings", _or_bytes(_vectors))
POOLING = _row("pooling", _or_bytes(_pooled))
CLASSIFY = _row("classify", json_rule(_one_each("probs", "label")))
SCORE = _row("score", json_rule(_scores))
RERANK = _row("rerank", _ranked)
COHERE_RERANK = _row("rerank", _ranked, cohere_error)
COHERE_EMBED = _row("embeddings", json_rule(_by_type, told=_billed), cohere_error)
