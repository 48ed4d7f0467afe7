"""Where each key of a TOML file stands, so that an error can name its line.

The standard library's reader keeps no positions. This scanner reads text that the reader has accepted, so it
follows the grammar but checks nothing: keys (bare, quoted, dotted), tables, arrays of tables, inline tables,
arrays over several lines, all four kinds of string, comments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

KeyPath = tuple[str | int, ...]

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_BLANK: Final = re.compile(r"[ \t]*")
_SPACE: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")
_ESCAPES: Final = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) where each key, table and array item of valid TOML text first stands."""
    return _Scanner(text.replace("\r\n", "\n")).scan()


def line_of(lines: Mapping[KeyPath, int], path: Sequence[str | int]) -> int:
    """The line of a key, or of the nearest table around it when the key itself is not written."""
    for length in range(len(path), 0, -1):
        found = lines.get(tuple(path[:length]))
        if found is not None:
            return found
    return 1


class _Scanner:
    """One pass over the text; `_at` is the place of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted = 0
        self._line = 1
        self._lines: dict[KeyPath, int] = {}
        self._array_tables: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_SPACE)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._assignment(table)
            self._skip(_SPACE)
        return self._lines

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match.group()

    def _note(self, path: KeyPath) -> None:
        """Remember the line of the present place for `path` and for the tables it implies."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], self._line)

    def _header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`. Names inside an array of tables mean its newest item."""
        is_array = self._text.startswith("[[", self._at)
        start = self._at
        self._at += 2 if is_array else 1
        names = self._key()
        self._at = self._text.index("]", self._at) + (2 if is_array else 1)
        path: KeyPath = ()
        for position, name in enumerate(names):
            path = (*path, name)
            if is_array and position == len(names) - 1:
                self._array_tables[path] = self._array_tables.get(path, -1) + 1
            if path in self._array_tables:
                path = (*path, self._array_tables[path])
        end, self._at = self._at, start
        self._note(path)
        # a table written after its own sub-table is found at its own header
        self._lines[path] = self._line
        self._at = end
        return path

    def _assignment(self, table: KeyPath) -> None:
        start = self._at
        path = (*table, *self._key())
        end, self._at = self._at, start
        self._note(path)
        self._at = self._text.index("=", end) + 1
        self._value(path)

    def _key(self) -> list[str]:
        """A dotted key."""
        names: list[str] = []
        while True:
            self._skip(_BLANK)
            if self._text[self._at] in "\"'":
                names.append(self._string())
            else:
                names.append(self._skip(_BARE_KEY))
            self._skip(_BLANK)
            if self._text[self._at] != ".":
                return names
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        self._skip(_BLANK)
        first = self._text[self._at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(_SPACE)
            if self._text[self._at] == "]":
                self._at += 1
                return
            if self._text[self._at] == ",":
                self._at += 1
                continue
            self._note((*path, index))
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while True:
            self._skip(_SPACE)
            if self._text[self._at] == "}":
                self._at += 1
                return
            if self._text[self._at] == ",":
                self._at += 1
                continue
            self._assignment(path)

    def _string(self) -> str:
        """Any of the four kinds of string, from its opening quote; its text with escapes resolved."""
        quote = self._text[self._at]
        fence = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(fence)
        start = self._at
        while not self._text.startswith(fence, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        if len(fence) == 3:
            # up to two quotes may stand directly before the closing fence
            while self._text.startswith(quote, self._at + 3):
                self._at += 1
        body = self._text[start : self._at]
        self._at += len(fence)
        return _ESCAPE.sub(_unescape, body) if quote == '"' else body


def _unescape(match: re.Match[str]) -> str:
    code = match.group(1)
    return chr(int(code[1:], 16)) if code[0] in "uU" and len(code) > 1 else _ESCAPES.get(code, code)
