"""A ranking in the words of another engine, and embeddings by type: what is sent, and what is whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from orchestrator.gateway.asked import ask
from orchestrator.gateway.dialects.pooling import _by_type
from orchestrator.gateway.dialects.ranking import in_words_of
from orchestrator.gateway.failure import Failure


def test_a_ranking_is_sent_without_what_the_gateway_does_itself() -> None:
    body = {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 1, "return_documents": True}
    asked = ask("POST", "/v1/rerank", "application/json", orjson.dumps(body))
    ranking: Any = SimpleNamespace(texts="texts", path="/rerank")
    sent = in_words_of(asked, ranking)
    assert orjson.loads(sent.raw) == {"model": "m", "query": "q", "texts": ["a", "b"]}


@pytest.mark.parametrize(
    ("embeddings", "failure"),
    [
        ({"float": [[1.0], [2.0]]}, None),
        ({"float": [[1.0], [2.0]], "int8": None}, None),
        ({"float": [[1.0]]}, Failure.INCOMPLETE),
        ({"float": [[1.0], [2.0]], "int8": [[1]]}, Failure.INCOMPLETE),
        ({}, Failure.INCOMPLETE),
        ([], Failure.BAD_RESPONSE),
    ],
)
def test_each_type_has_a_vector_for_each_input(embeddings: Any, failure: Failure | None) -> None:
    asked: Any = SimpleNamespace(inner={"texts": ["a"], "images": ["b"]})
    assert _by_type(asked, {"embeddings": embeddings}) is failure
