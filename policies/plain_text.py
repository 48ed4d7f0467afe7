"""Text from outside, made safe to store and to show: bounded, without anything that a terminal obeys.

What a machine or a provider writes is not to be trusted: it may hold escape sequences that move a cursor,
rename a window or hide what follows, marks that turn the direction of writing, and millions of lines.
"""

from __future__ import annotations

import re

CUT = "…"
"""Stands where text was cut off."""

_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # control sequences, as of colours
    r"|\x1b[\]PX^_][^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # strings to the terminal, as of window titles
    r"|\x1b[ -/]*[0-~]"  # all others
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
"""Escape sequences of ECMA-48, whole, so that no "[31m" is left of them."""


def one_line(text: str, most: int) -> str:
    """The text as one line of at most `most` characters.

    >>> one_line("Client.InternalError:\\n\\x1b[31m the key may not be used", 40)
    'Client.InternalError: the key may not be'
    """
    plain = "".join(c if c.isprintable() else " " for c in _SEQUENCE.sub("", text[: 8 * most]))
    return " ".join(plain.split())[:most].rstrip()


def last_lines(text: str, *, lines: int, most: int) -> str:
    """The end of a log: at most so many `lines` that are not empty, and `most` bytes of UTF-8.

    Of a line that was written over (a progress bar) the last writing stays. Where something was cut off from
    its beginning, that is told by `CUT`.

    >>> last_lines("loading  10 %\\rloading 100 %\\r\\n\\n\\x1b[1mout of memory\\x1b[0m\\n", lines=2, most=99)
    'loading 100 %\\nout of memory'
    >>> last_lines("a\\nb\\nc\\n", lines=2, most=99)
    '…\\nb\\nc'
    """
    end = text[-16 * most :]
    written = [_overwritten(line) for line in _SEQUENCE.sub("", end).split("\n")]
    found = [line for line in written if line]
    kept = "\n".join(found[-lines:])
    whole = len(end) == len(text) and len(found) <= lines
    encoded = kept.encode("utf-8", "replace")
    if whole and len(encoded) <= most:
        return kept
    room = max(0, most - len(f"{CUT}\n".encode()))
    tail = encoded[-room:].decode("utf-8", "ignore") if room else ""
    return f"{CUT}\n{tail}" if tail else ""


def _overwritten(line: str) -> str:
    """What shows of a line: what follows the last return of the carriage, printable, without blank ends."""
    shown = line.rstrip("\r").rpartition("\r")[2]
    return "".join(c if c.isprintable() else " " for c in shown).rstrip()
