"""The content blocks of a streamed message: one is open at a time, each is started, filled and stopped once.

Chat streams may speak of several tool calls in turn; what belongs to a later block waits until the arguments
of the open one are whole, so that no client sees two blocks mixed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson

Fields = dict[str, Any]
_DELTAS = {"input_json": "partial_json"}  # deltas whose text has another name than they
_TAIL = b"}}\n\n"


class Unordered(Exception):
    """A tool call went on after its arguments had been whole: what the client got of it is wrong."""


def event(kind: str, **fields: Any) -> bytes:
    """One event of a message stream."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def tool_input(arguments: str) -> Fields:
    """The input of a tool call. What is no JSON object is named as such, in Anthropic's own way to do so:
    https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/fine-grained-tool-streaming
    """
    found = _object(arguments)
    return {"INVALID_JSON": arguments} if found is None else found


def is_whole(arguments: str) -> bool:
    """Whether a tool call with these arguments can be run."""
    return _object(arguments) is not None


@dataclass(slots=True)
class _Block:
    """A block. `call` is the place of its tool call in the chat answer, None for text and thinking. `parts`
    is what it holds back, or, for an open tool call, its arguments so far.
    """

    delta: str
    call: int | None
    start: Fields
    parts: list[str] = field(default_factory=list)


class Blocks:
    """Makes the events of all blocks out of pieces of text, thinking and tool calls in the order they come.

    `signature` stands under thinking blocks, where clients expect one. `calls_whole` gets the calls so
    far whether all can be run, None while there are none.
    """

    def __init__(self, signature: str) -> None:
        self._signature = signature
        self._order: deque[_Block] = deque()  # the open block and those that wait for its end
        self._over: set[int] = set()  # tool calls whose blocks are stopped
        self._index = -1
        self._head = b""  # how each delta of the open block begins
        self.calls_whole: bool | None = None

    def text(self, text: str) -> bytes:
        """The events of a piece of text."""
        return self._last("text", {"type": "text", "text": ""}, text)

    def thinking(self, text: str) -> bytes:
        """The events of a piece of reasoning."""
        return self._last("thinking", {"type": "thinking", "thinking": "", "signature": ""}, text)

    def call(self, call: int, call_id: str, name: str, arguments: str) -> bytes:
        """The events of a piece of a tool call; id and name count in its first one. Raises Unordered."""
        for block in self._order:
            if block.call == call:
                return self._grow(block, arguments)
        if call in self._over:
            if arguments.strip():
                raise Unordered
            return b""
        start = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
        return self._append(_Block("input_json", call, start), arguments)

    def finish(self) -> bytes:
        """The events that are due at the end. An answer without any block gets an empty text."""
        out = b"" if self._order or self._index >= 0 else self.text("")
        while self._order:
            out += self._stop()
        return out

    def _last(self, delta: str, start: Fields, text: str) -> bytes:
        if self._order and self._order[-1].delta == delta:
            return self._grow(self._order[-1], text)
        return self._append(_Block(delta, None, start), text)

    def _append(self, block: _Block, piece: str) -> bytes:
        self._order.append(block)
        if len(self._order) == 1:
            return self._start() + self._grow(block, piece)
        return self._grow(block, piece) + self._advance()

    def _grow(self, block: _Block, piece: str) -> bytes:
        """Add to a block: at once where it is the open one, where not when its turn comes."""
        if not piece:
            return b""
        live = block is self._order[0]
        if not live or block.call is not None:
            block.parts.append(piece)
        if not live:
            return b""
        out = self._delta(piece)
        return out + self._advance() if len(self._order) > 1 and piece.rstrip().endswith("}") else out

    def _advance(self) -> bytes:
        """Stop the open block as long as another waits and nothing can follow in it."""
        out = b""
        while len(self._order) > 1 and (
            self._order[0].call is None or is_whole("".join(self._order[0].parts))
        ):
            out += self._stop()
        return out

    def _start(self) -> bytes:
        """Open the first block of the order, with what it held back."""
        self._index += 1
        block = self._order[0]
        self._head = _head(self._index, block.delta)
        out = event("content_block_start", index=self._index, content_block=block.start)
        if held := "".join(block.parts):
            out += self._delta(held)
        return out

    def _stop(self) -> bytes:
        """Close the open block and open the next."""
        block = self._order.popleft()
        out = b""
        if block.delta == "thinking":
            self._head = _head(self._index, "signature")
            out = self._delta(self._signature)
        if block.call is not None:
            self._over.add(block.call)
            self.calls_whole = self.calls_whole is not False and is_whole("".join(block.parts))
        out += event("content_block_stop", index=self._index)
        return out + self._start() if self._order else out

    def _delta(self, piece: str) -> bytes:
        return self._head + orjson.dumps(piece) + _TAIL


def _head(index: int, delta: str) -> bytes:
    """The event of a delta up to its text: the same for all of a block, and the bulk of a stream."""
    whole = {"type": f"{delta}_delta", _DELTAS.get(delta, delta): ""}
    return event("content_block_delta", index=index, delta=whole).removesuffix(b'""' + _TAIL)


def _object(arguments: str) -> Fields | None:
    """Arguments as a JSON object, an empty one where there are none."""
    try:
        found = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
