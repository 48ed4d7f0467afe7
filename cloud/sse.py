"""Server-sent events: splits a byte stream into events and reads their data.

Whole events only are passed on, so that a stream can be cut between two events and never inside one.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re

_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE = re.compile(rb"\r\n|\n|\r")
_LONGEST_BLANK = 4  # bytes of the longest blank line: CR LF CR LF
_BOM = b"\xef\xbb\xbf"  # may stand before the first event

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"


class Splitter:
    """Cuts a stream of bytes at blank lines, however the bytes arrive. Its work is linear in them."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = bytearray()

    def feed(self, data: bytes) -> bytes:
        """The whole events that are complete now, back to back; the rest is kept for the next call."""
        if not self._tail and data.endswith(b"\n\n"):
            return data  # as most reads bring them
        seam = bytes(self._tail[1 - _LONGEST_BLANK :])  # a blank line may have begun there
        end = _last_end(seam + data) - len(seam)
        if end <= 0:
            self._tail += data
            return b""
        block = bytes(self._tail) + data[:end] if self._tail else data[:end]
        if self._tail or end < len(data):
            self._tail = bytearray(data[end:])
        return block

    @property
    def tail(self) -> bytes:
        """The beginning of an event that is not complete yet."""
        return bytes(self._tail)

    @property
    def size(self) -> int:
        """Bytes of the tail."""
        return len(self._tail)


def _last_end(data: bytes) -> int:
    """Where the last blank line ends, 0 when there is none."""
    if b"\r" in data:
        return max((match.end() for match in _BLANK_LINE.finditer(data)), default=0)
    at = data.rfind(b"\n\n")
    return at + 2 if at >= 0 else 0


def only_comments(data: bytes) -> bool:
    """Whether a read brings comments and nothing else. One that begins inside a comment counts as more."""
    return data.startswith(b":") and b"\ndata" not in data


def split_events(block: bytes) -> list[bytes]:
    """The single events of a block of whole events, each with its blank line.

    A line feed at the front is an empty one of its own: it may end the CR LF of the block before.
    """
    start = 1 if block.startswith(b"\n") else 0
    if not start and block.find(b"\n\n") == len(block) - 2 and b"\r" not in block:
        return [block]  # one event, as most reads bring
    events = [block[:start]] if start else []
    for match in _BLANK_LINE.finditer(block, start):
        events.append(block[start : match.end()])
        start = match.end()
    if start < len(block):
        events.append(block[start:])
    return events


def event_data(event: bytes) -> bytes:
    """The data of one event: its data lines joined by newlines, empty when it has none."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2:
        return event[6:-2]  # the shape engines send
    text = event.lstrip(b"\r\n").removeprefix(_BOM)  # blank lines before it, where it was read in one piece
    lines = (line for line in _LINE.split(text) if line.startswith(b"data"))
    parts = (line[4:] for line in lines if line[4:5] in (b":", b""))
    return b"\n".join(part[2:] if part.startswith(b": ") else part[1:] for part in parts)
