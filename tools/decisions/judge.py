"""Decides turns as one version of the policies does: a process that knows no other.

    judge.py TREE

`TREE` is a folder with that version's `policies`. On standard input come frames, each a length of four bytes
and so much JSON: first `{"schema": [...]}` with the fields that the other end knows, answered with those that
this version lacks and those that only it has; then lists of turns (`wire`), each answered with one frame for
every turn: the plan as JSON, or `{"raised": ...}`, or `{"unreadable": ...}`.
"""

from __future__ import annotations

import ast
import importlib
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import orjson

HERE = Path(__file__).resolve().parent

_LENGTH = struct.Struct(">I")


class NoDecision(Exception):
    """A tree has no `decide` that can be used. The message says why."""


def find_decide(tree: Path) -> Callable[[Any, Any, Any], Any]:
    """The function `decide(pool, world, memory)` of the policies in a tree, wherever it is.

    The tree must come first in `sys.path`. Raises NoDecision.
    """
    homes = [tree / "policies" / "decide.py", *sorted((tree / "policies").rglob("*.py"))]
    home = next((file for file in homes if file.exists() and _defines_decide(file)), None)
    if home is None:
        raise NoDecision(f"{tree}: nothing in its policies defines decide(pool, world, memory)")
    name = ".".join(home.relative_to(tree).with_suffix("").parts)
    module = importlib.import_module(name)
    if Path(str(module.__file__)).resolve() != home.resolve():
        raise NoDecision(f"{name} was imported from {module.__file__}, not from {tree}")
    decide: Callable[[Any, Any, Any], Any] = module.decide
    return decide


def _defines_decide(file: Path) -> bool:
    body = ast.parse(file.read_bytes()).body
    return any(isinstance(n, ast.FunctionDef) and n.name == "decide" and len(n.args.args) == 3 for n in body)


def read_frame(source: BinaryIO) -> bytes | None:
    """The next frame; None where there is none any more."""
    head = source.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = source.read(length)
    return body if len(body) == length else None


def write_frame(sink: BinaryIO, body: bytes) -> None:
    """Write a frame, which need not be on its way before a flush."""
    sink.write(_LENGTH.pack(len(body)))
    sink.write(body)


def main() -> int:
    """Answer frames until there are no more."""
    tree = Path(sys.argv[1]).resolve()
    sys.path[:0] = [str(tree), str(HERE.parent)]
    from decisions.wire import Decoder, Unreadable, dump, schema

    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a policy prints is no answer
    try:
        decide = find_decide(tree)
        own = schema(decide)
    except Exception as error:
        write_frame(sink, orjson.dumps({"broken": f"{type(error).__name__}: {error}"}))
        sink.flush()
        return 1
    decoder = Decoder(decide)

    def answer(turn: Any) -> bytes:
        try:
            given = decoder.turn(turn)
        except Unreadable as error:
            return orjson.dumps({"unreadable": str(error)})
        try:
            return dump(decide(*given))
        except Exception as error:  # what a decision raises is an answer
            return orjson.dumps({"raised": f"{type(error).__name__}: {error}"})

    while (frame := read_frame(source)) is not None:
        message = orjson.loads(frame)
        if isinstance(message, dict):
            theirs = set(message["schema"])
            write_frame(sink, orjson.dumps({"lacks": sorted(theirs - own), "adds": sorted(own - theirs)}))
        else:
            for turn in message:
                write_frame(sink, answer(turn))
        sink.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
