"""Rankings in the words of engines that have others than clients: SGLang, TEI and llama.cpp.

Clients ask as Jina's and Cohere's API have it, ``query`` and ``documents``, and get ``results``, each with an
``index`` and a ``relevance_score``. What comes in TEI's own words, with ``texts``, passes as it is.
https://docs.cohere.com/reference/rerank
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from cloud.engines.row import Ranking
from orchestrator.gateway.dialects import Edge
from orchestrator.gateway.dialects.rules import number
from orchestrator.gateway.failure import Failure

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

_OURS = ("documents", "top_n", "return_documents")


def wants_translation(asked: Asked) -> bool:
    """Whether it is a ranking in the words of clients."""
    fields = asked.inner
    return asked.dialect.name == "rerank" and fields is not None and "documents" in fields


def in_words_of(asked: Asked, ranking: Ranking) -> Asked:
    """The same request for an engine that ranks so; every text is ranked, and none is repeated."""
    fields = asked.inner or {}
    kept = {name: value for name, value in fields.items() if name not in _OURS}
    texts = [_text(document) for document in _listed(fields.get("documents"))]
    inner = {**kept, ranking.texts: texts}
    return replace(asked, inner=inner, raw=orjson.dumps(inner), inner_path=ranking.path)


def _listed(documents: Any) -> list[Any]:
    return documents if isinstance(documents, list) else [documents]


def _text(document: Any) -> Any:
    """A document is a text, or an object that holds it."""
    return document.get("text") if isinstance(document, dict) else document


class RankedEdge:
    """Turns the ranking of an engine into what clients of `asked` get. `edge` does the rest."""

    __slots__ = ("_asked", "_edge", "_ranking")

    def __init__(self, edge: Edge, asked: Asked, ranking: Ranking) -> None:
        self._edge = edge
        self._asked = asked
        self._ranking = ranking

    def answer(self, body: bytes) -> bytes:
        """See Edge."""
        fields, told = self._asked.inner or {}, orjson.loads(body)
        rows = told if isinstance(told, list) else told["results"]
        documents = _listed(fields.get("documents"))
        shown = fields.get("return_documents")
        results = [
            {"index": row["index"], "relevance_score": row.get("relevance_score", row.get("score"))}
            | ({"document": {"text": _text(documents[row["index"]])}} if shown else {})
            for row in rows
        ]
        most = number(fields.get("top_n")) or len(results)
        answer: dict[str, Any] = {"object": "list", "model": self._asked.model, "results": results[:most]}
        if isinstance(told, dict) and "usage" in told:
            answer["usage"] = told["usage"]
        return self._edge.answer(orjson.dumps(answer))

    def feed(self, block: bytes) -> bytes:
        """See Edge."""
        return self._edge.feed(block)

    def closing(self) -> bytes:
        """See Edge."""
        return self._edge.closing()

    def interrupted(self, *, request_id: str, failure: Failure, detail: str, tokens: int | None) -> bytes:
        """See Edge."""
        return self._edge.interrupted(request_id=request_id, failure=failure, detail=detail, tokens=tokens)

    def failed(self, status: int, body: bytes, request_id: str) -> bytes:
        """See Edge."""
        return self._edge.failed(status, body, request_id)
