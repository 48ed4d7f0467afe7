"""Routes of the simulated engine that give numbers for texts: embeddings, scores, classes.

Shapes are those of vLLM's pooling models. The numbers are small and always the same for the same text. Each
request takes the engine the time of one token.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from cloud.engines.simulated_server.answers import usage
from cloud.engines.simulated_server.inference import Inference, reply, request_id
from cloud.engines.simulated_server.requests import (
    BadRequest,
    conversation,
    model_of,
    read_object,
    token_ids,
    whole,
)
from cloud.engines.simulated_server.tokens import encode

if TYPE_CHECKING:
    from cloud.ports import Clock

_DIMENSIONS = 8
_LABELS = ("LABEL_0", "LABEL_1")
_Handler = Callable[[Mapping[str, Any], str], dict[str, Any]]
_Ids = tuple[int, ...]


class Pooling:
    """/v1/embeddings, /pooling, /classify, and rerank and score in their spellings."""

    def __init__(self, clock: Clock, inference: Inference) -> None:
        self._clock = clock
        self._inference = inference

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """The paths, all of them POST."""
        routes: dict[str, tuple[_Handler, str]] = {
            "/v1/embeddings": (self._embeddings, "embd"),
            "/pooling": (self._pooling, "pooling"),
            "/classify": (self._classify, "classify"),
            "/score": (self._score, "score"),
            "/v1/score": (self._score, "score"),
            "/rerank": (self._rerank, "score"),
            "/v1/rerank": (self._rerank, "score"),
            "/v2/rerank": (self._rerank, "score"),
        }
        for path, (handler, prefix) in routes.items():
            router.add_post(path, self._route(handler, prefix))

    def _route(
        self, handler: _Handler, prefix: str
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            with self._inference.counted():
                data = read_object(await request.read())
                model_of(data, self._inference.offer)
                if refused := self._inference.refusal(by_ids=False):
                    return refused
                answer = handler(data, f"{prefix}-{request_id(request)}")
                await self._inference.tokens(range(answer["usage"]["prompt_tokens"]))
                return reply(answer)

        return handle

    def _list(
        self, name: str, data: Mapping[str, Any], items: list[dict[str, Any]], tokens: int
    ) -> dict[str, Any]:
        """A list of results and what it took."""
        head = {"id": name, "object": "list", "created": int(self._clock.now())}
        model = model_of(data, self._inference.offer)
        return {**head, "model": model, "data": items, "usage": usage(tokens, 0, whole=True)}

    def _fitting(self, inputs: list[_Ids]) -> list[_Ids]:
        """The inputs, each of which fits into the model's context. Raises BadRequest."""
        most, longest = self._inference.offer.max_model_len, max(map(len, inputs), default=0)
        if longest > most:
            raise BadRequest(
                f"This model's maximum context length is {most} tokens. However, your request has {longest} "
                "input tokens. Please reduce the length of the input messages.",
                param="input_tokens",
            )
        return inputs

    def _embeddings(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        inputs = self._fitting(_inputs(data))
        size = whole(data, "dimensions", _DIMENSIONS)
        form = data.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise BadRequest("encoding_format must be float or base64", param="encoding_format")
        items = [
            {"index": at, "object": "embedding", "embedding": _encoded(_numbers(ids, size), form)}
            for at, ids in enumerate(inputs)
        ]
        return self._list(name, data, items, sum(map(len, inputs)))

    def _pooling(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        inputs = self._fitting(_inputs(data))
        items = [
            {"index": at, "object": "pooling", "data": _numbers(ids, _DIMENSIONS)}
            for at, ids in enumerate(inputs)
        ]
        return self._list(name, data, items, sum(map(len, inputs)))

    def _classify(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        inputs = self._fitting(_inputs(data))
        items = []
        for at, ids in enumerate(inputs):
            first = abs(_numbers(ids, 1)[0])
            shares = [first, 1.0 - first]
            label = _LABELS[shares.index(max(shares))]
            items.append({"index": at, "label": label, "probs": shares, "num_classes": len(_LABELS)})
        return self._list(name, data, items, sum(map(len, inputs)))

    def _score(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        queries = _texts(data, "text_1", "queries", "data_1")
        texts = _texts(data, "text_2", "documents", "items", "data_2")
        if len(queries) == 1:
            queries *= len(texts)
        if len(queries) != len(texts):
            raise BadRequest("Input lengths must be either 1:1, 1:N or N:N")
        pairs = self._fitting([encode(query + text) for query, text in zip(queries, texts, strict=True)])
        items = [{"index": at, "object": "score", "score": _likeness(ids)} for at, ids in enumerate(pairs)]
        return self._list(name, data, items, sum(map(len, pairs)))

    def _rerank(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        (query,) = _texts(data, "query")[:1]
        documents = _texts(data, "documents")
        pairs = self._fitting([encode(query + document) for document in documents])
        results = [
            {
                "index": at,
                "document": {"text": documents[at], "multi_modal": None},
                "relevance_score": _likeness(ids),
            }
            for at, ids in enumerate(pairs)
        ]
        results.sort(key=lambda result: -float(str(result["relevance_score"])))
        tokens = sum(map(len, pairs))
        return {
            "id": name,
            "model": model_of(data, self._inference.offer),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": results[: whole(data, "top_n", 0) or len(results)],
        }


def _inputs(data: Mapping[str, Any]) -> list[_Ids]:
    """The inputs as ids: a conversation, a text, ids, or several of either."""
    if "messages" in data:
        return [conversation(data)]
    given = data.get("input")
    if isinstance(given, str):
        return [encode(given)]
    if isinstance(given, list) and given and all(isinstance(one, str) for one in given):
        return [encode(one) for one in given]
    if isinstance(given, list) and given and all(isinstance(one, list) for one in given):
        return [token_ids({"input": one}, "input") for one in given]
    if given:
        return [token_ids(data, "input")]
    raise BadRequest("input: field required", param="body.input", kind="Bad Request")


def _texts(data: Mapping[str, Any], *keys: str) -> list[str]:
    """One or several texts under the first of these keys that is there."""
    for key in keys:
        given = data.get(key)
        texts = [given] if isinstance(given, str) else given
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            return texts
    raise BadRequest(f"{keys[0]}: field required", param=f"body.{keys[0]}", kind="Bad Request")


def _numbers(ids: _Ids, size: int) -> list[float]:
    """Numbers from -1 to 1 that depend on all ids and their order; exact in single precision."""
    state, numbers = 17, []
    for token in ids:
        state = (state * 31 + token) % 65_521
    for _ in range(size):
        state = (state * 75 + 74) % 65_537
        numbers.append((state % 2048 - 1024) / 1024)
    return numbers


def _likeness(ids: _Ids) -> float:
    return (_numbers(ids, 1)[0] + 1.0) / 2.0


def _encoded(numbers: list[float], form: str) -> list[float] | str:
    if form == "float":
        return numbers
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
