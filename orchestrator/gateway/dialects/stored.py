"""Where stored things are: a response, a file or a batch is only on the node that made it. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

_KEEPING = frozenset({"responses", "files", "batches"})
_ID_FIELDS = ("id", "input_file_id", "output_file_id", "error_file_id")


def ids_in(asked: Asked, body: bytes) -> list[str]:
    """The ids in a whole plain answer, its own or those of the rows of a list; none for other dialects."""
    if asked.dialect.name not in _KEEPING:
        return []
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    if not isinstance(answer, dict):
        return []
    rows = answer["data"] if isinstance(answer.get("data"), list) else [answer]
    values = (row.get(name) for row in rows if isinstance(row, dict) for name in _ID_FIELDS)
    return [value for value in values if isinstance(value, str) and value]


class Stored:
    """Ids of stored things and the node of each. Beyond `limit` the one longest unused is forgotten."""

    __slots__ = ("_limit", "_nodes")

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._nodes: OrderedDict[str, str] = OrderedDict()

    def learn(self, node: str, asked: Asked, body: bytes) -> None:
        """Take the ids out of a whole plain answer of `node`."""
        for found in ids_in(asked, body):
            self.note(node, found)

    def note(self, node: str, stored: str) -> None:
        """`node` has the thing with this id, which may have come in a stream."""
        self._nodes[stored] = node
        self._nodes.move_to_end(stored)
        if len(self._nodes) > self._limit:
            self._nodes.popitem(last=False)

    def node_of(self, stored: str) -> str | None:
        """The node that has it, None when this gateway has not seen it made."""
        if (node := self._nodes.get(stored)) is not None:
            self._nodes.move_to_end(stored)
        return node

    def __len__(self) -> int:
        return len(self._nodes)
