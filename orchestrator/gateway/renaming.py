"""The name of the model in answers: clients see the one that they asked for, whatever the backend calls it.

In JSON a quote inside a string is escaped, so `"model":"` in the bytes of an answer is a key of it and never
a part of what a model wrote. Answers of `/v1/responses` repeat what the client attached to its request, which
may have such a key too: there the backend's own name alone is replaced.
"""

from __future__ import annotations

import re

import orjson

from orchestrator.gateway.dialects import Edge
from orchestrator.gateway.failure import Failure

_MODEL = re.compile(rb'"model":\s*"[^"\\]*(?:\\.[^"\\]*)*"')
_KEY = b'"model":'


class Renaming:
    """Puts the name that the client asked for into answers. `theirs`: the only name that is replaced, if not
    None.

    A stream says the same name in every event, so the one that was found last is tried first.
    """

    __slots__ = ("_found", "_new", "_pattern")

    def __init__(self, ours: str, theirs: str | None = None) -> None:
        self._new = _KEY + orjson.dumps(ours)
        self._found = self._new
        self._pattern = _MODEL
        if theirs is not None:
            self._pattern = re.compile(rb'"model":\s*' + re.escape(orjson.dumps(theirs)))

    def __call__(self, data: bytes) -> bytes:
        """Whole events, or a whole answer, with the client's name."""
        data = data.replace(self._found, self._new)
        if data.count(_KEY) == data.count(self._new):
            return data
        return self._pattern.sub(self._replace, data)

    def _replace(self, found: re.Match[bytes]) -> bytes:
        self._found = found[0]
        return self._new


class RenamingEdge:
    """An edge that renames the model in what passes through it."""

    __slots__ = ("_edge", "_rename")

    def __init__(self, edge: Edge, rename: Renaming) -> None:
        self._edge = edge
        self._rename = rename

    def feed(self, block: bytes) -> bytes:
        """See Edge."""
        return self._edge.feed(self._rename(block))

    def closing(self) -> bytes:
        """See Edge."""
        return self._edge.closing()

    def interrupted(self, *, request_id: str, failure: Failure, detail: str, tokens: int | None) -> bytes:
        """See Edge."""
        return self._edge.interrupted(request_id=request_id, failure=failure, detail=detail, tokens=tokens)

    def answer(self, body: bytes) -> bytes:
        """See Edge."""
        return self._edge.answer(self._rename(body))

    def failed(self, status: int, body: bytes, request_id: str) -> bytes:
        """See Edge."""
        return self._edge.failed(status, body, request_id)
