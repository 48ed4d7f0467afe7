"""What the daemon and its helper say to each other: one JSON object a line. Pure.

The daemon writes {"id": N, "do": WORD, ...}, the helper answers {"id": N, "ok": VALUE, "rss": BYTES} or
{"id": N, "error": {"word": WORD, "text": TEXT}, "rss": BYTES}, in any order. Its first line is
{"hello": VERSION, "rss": BYTES}. The words of errors are those of `cloud.errors`. {"id": N, "do": "drop"}
takes question N back, which is not begun any more and gets no answer then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloud import errors

LONGEST: Final = 1 << 20
"""Bytes of a line at most. A longer one ends the connection: nothing that is said here comes near."""

LANES: Final[Mapping[str, str]] = {
    "launch": "change",
    "start": "change",
    "stop": "change",
    "engine": "engine",
    "look": "look",
    "prices": "look",
    "account": "look",
    "terminate": "end",
    "forget": "end",
    "info": "alive",
}
"""Which threads of the helper do what: ends of machines wait for no launch, nor looks for either."""

_BY_WORD: Final = {each.word: each for each in errors.EVERY}


DROP: Final = "drop"
"""What takes a question back."""

HELLO: Final = 0
"""The number of the first line; questions count from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A line of the helper: of which question, what it says, and the helper's memory in bytes."""

    number: int
    value: Any
    memory: int


def line(value: Mapping[str, Any]) -> bytes:
    """A message as it is written."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def message(data: bytes) -> dict[str, Any]:
    """A line as a message. Raises ValueError for anything else."""
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError(f"not a message: {data[:80]!r}")
    return found


def answer(data: bytes) -> Answer:
    """A line of the helper; `Answer.value` is an error where it says one. Raises ValueError for no answer."""
    found = message(data)
    number, memory = HELLO if "hello" in found else found.get("id"), found.get("rss", 0)
    value = found.get("ok", found.get("hello"))
    if "error" in found:
        said = found["error"]
        value = error_of(said) if isinstance(said, dict) else None
    if type(number) is not int or type(memory) is not int or ("error" in found and value is None):
        raise ValueError(f"not an answer: {data[:80]!r}")
    return Answer(number=number, value=value, memory=memory)


def error_of(given: Mapping[str, Any]) -> errors.CloudError:
    """The error of an answer; a word that nobody knows is as good as no answer."""
    kind = _BY_WORD.get(str(given.get("word")), errors.Uncertain)
    return kind(str(given.get("text")) or "the helper gave no reason")
