"""Server-sent events: splits a byte stream into events and judges each one of a completion stream.

Whole events only are passed on, so that a stream can be cut between two events and never inside one.
Bytes are never rewritten. https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Any

import orjson

_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE = re.compile(rb"\r\n|\n|\r")

_REASON_KEY = b'"finish_reason"'
_REASON_NULL = b'"finish_reason":null'
_ERROR_KEY = b'"error"'
_DONE = b"[DONE]"
_CLIENT_ERRORS = range(400, 500)


class Splitter:
    """Cuts a stream of bytes at blank lines, however the bytes arrive."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """The whole events that are complete now, back to back; the rest is kept for the next call."""
        if self._tail:
            data = self._tail + data
        if b"\r" in data:
            end = max((match.end() for match in _BLANK_LINE.finditer(data)), default=0)
        else:
            end = data.rfind(b"\n\n") + 2
            end = end if end > 1 else 0
        if end == len(data):
            self._tail = b""
            return data
        self._tail = data[end:]
        return data[:end]

    @property
    def tail(self) -> bytes:
        """The beginning of an event that is not complete yet."""
        return self._tail


def split_events(block: bytes) -> list[bytes]:
    """The single events of a block of whole events, each with its blank line."""
    events, start = [], 0
    for match in _BLANK_LINE.finditer(block):
        events.append(block[start : match.end()])
        start = match.end()
    if start < len(block):
        events.append(block[start:])
    return events


def event_data(event: bytes) -> bytes:
    """The data of one event: its data lines joined by newlines, empty when it has none."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2:
        return event[6:-2]  # the shape engines send
    lines = (line for line in _LINE.split(event) if line.startswith(b"data"))
    parts = (line[4:] for line in lines if line[4:5] in (b":", b""))
    return b"\n".join(part[2:] if part.startswith(b": ") else part[1:] for part in parts)


class Kind(Enum):
    """What one event of a completion stream means."""

    PREAMBLE = auto()  # carries nothing for a reader yet: comments, the role, empty text
    CONTENT = auto()  # text, reasoning, a tool call
    FINISH = auto()  # a choice ended as it should
    ABORT = auto()  # a choice was cut short by the engine
    ERROR = auto()  # the engine failed
    REFUSAL = auto()  # the engine refuses the request: the client's own fault
    DONE = auto()  # [DONE]: the end, but no proof that the answer is whole


def classify(event: bytes) -> Kind:
    """Judge one event. What cannot be read counts as content: it is not ours to drop."""
    data = event_data(event)
    if not data:
        return Kind.PREAMBLE
    if data.strip() == _DONE:
        return Kind.DONE
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return Kind.CONTENT
    if not isinstance(body, dict):
        return Kind.CONTENT
    if body.get("error"):
        return Kind.REFUSAL if _error_code(body["error"]) in _CLIENT_ERRORS else Kind.ERROR
    choices = body.get("choices")
    if not isinstance(choices, list):
        return Kind.CONTENT
    rows = [choice for choice in choices if isinstance(choice, dict)]
    reasons = {row.get("finish_reason") for row in rows} - {None}
    if "abort" in reasons:
        return Kind.ABORT
    if reasons:
        return Kind.FINISH
    return Kind.CONTENT if any(_carries(row) for row in rows) else Kind.PREAMBLE


def finished_choices(event: bytes) -> int:
    """How many choices a FINISH event ends."""
    choices = orjson.loads(event_data(event))["choices"]
    return sum(1 for choice in choices if isinstance(choice, dict) and choice.get("finish_reason"))


def is_plain(block: bytes) -> bool:
    """Whether a block of whole events holds only ordinary text chunks. Cheap: nothing is parsed.

    Rests on JSON escaping quotes inside strings: a key in quotes cannot appear inside generated text. Most
    engines write no space after the colon; a block of one that does is parsed, which is slower, not wrong.
    """
    return (
        block.count(_REASON_KEY) == block.count(_REASON_NULL)
        and _ERROR_KEY not in block
        and _DONE not in block
    )


def count_chunks(block: bytes) -> int:
    """How many choices the chunks of a block speak of: the number of tokens where each has its own chunk."""
    return block.count(_REASON_KEY)


def completion_tokens(event: bytes) -> int | None:
    """The tokens generated so far if the event tells them (`continuous_usage_stats`), else None."""
    if b'"completion_tokens"' not in event:
        return None
    try:
        tokens = orjson.loads(event_data(event))["usage"]["completion_tokens"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return tokens if isinstance(tokens, int) else None


def _carries(choice: dict[str, Any]) -> bool:
    """Whether a chunk's choice brings anything a reader sees: any filled field of its delta but the role."""
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")


def _error_code(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 0
