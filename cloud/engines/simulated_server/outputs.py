"""One output of a request, from the tokens of the engine to what its client is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloud.engines.simulated_server.parser import Delta, Parser, Parsing
from cloud.engines.simulated_server.tokens import TextStream


@dataclass(slots=True)
class Piece:
    """What some tokens of one output brought; with `finish` it was the last. `stop` is the stop string."""

    index: int
    tokens: Sequence[int]
    delta: Delta = field(default_factory=Delta)
    finish: str | None = None
    stop: str | None = None


class Output:
    """Decodes and parses the tokens of one output as they come."""

    __slots__ = ("_named", "_parser", "_text", "index")

    def __init__(self, index: int, text: TextStream, parsing: Parsing, new_id: Callable[[], str]) -> None:
        self.index = index
        self._text = text
        self._parser = Parser(parsing, new_id) if parsing.active else None
        self._named = parsing.named

    def feed(self, tokens: Sequence[int], finish: str | None) -> Piece:
        """The next tokens. A stop string ends the output: what comes after it is not used."""
        piece = Piece(self.index, tokens, finish=finish)
        text, parser, delta = self._text, self._parser, piece.delta
        for used, token in enumerate(tokens, start=1):
            new = text.feed(token)
            if parser is None:
                delta.content += new
            else:
                parser.feed(token, new, delta)
            if text.matched is not None:
                piece.tokens, piece.finish, piece.stop = tokens[:used], "stop", text.matched
                break
        if piece.finish is not None:
            rest = text.finish()
            if parser is None:
                delta.content += rest
            else:
                parser.finish(rest, delta)
                if parser.calls and piece.finish == "stop" and not self._named:
                    piece.finish = "tool_calls"
        return piece


def joined(pieces: Sequence[Piece]) -> Piece:
    """All pieces of one output as one; the parts of a call become one entry."""
    whole = Piece(pieces[0].index, [token for piece in pieces for token in piece.tokens])
    whole.finish, whole.stop = pieces[-1].finish, pieces[-1].stop
    whole.delta.content = "".join(piece.delta.content for piece in pieces)
    whole.delta.reasoning = "".join(piece.delta.reasoning for piece in pieces)
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for part in piece.delta.calls:
            call = calls.setdefault(part["index"], {"function": {"name": "", "arguments": ""}})
            call |= {key: part[key] for key in ("id", "type") if key in part}
            for key, value in part["function"].items():
                call["function"][key] += value
    whole.delta.calls = [{key: call[key] for key in ("id", "type", "function")} for call in calls.values()]
    return whole
