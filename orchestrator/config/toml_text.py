"""A TOML file as data, with one sentence and a line for whatever keeps it from being read.

The standard library's reader recurses into nested values, hands integers of any length to `int`, and takes
time that grows with the square of a key's parts, minutes for a key that fills a file. Text of the wrong kind
ends in errors that speak of Python, or not at all. What no configuration needs is refused by name instead.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from orchestrator.config.toml_lines import KeyPath, key_lines, line_of

BYTES_MOST: Final = 2**18
"""Size of a configuration file; real ones have a few kilobytes."""
DEPTH_MOST: Final = 32
"""Tables and arrays within each other; a configuration has five."""
DOTS_MOST: Final = 1000
"""Dots in one line, which bounds the parts of a key; every key is on one line."""

_PLACE: Final = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)")
_LONG_NUMBER: Final = re.compile(r"[0-9_]{1000}")
_REMEDIES: Final = {
    "invalid value": "put text in quotes",
    "cannot overwrite a value": "the key is there already: keep one of the two",
    "cannot declare": "the table is there already: put its keys together under one header",
}
_TOO_LONG: Final = "an integer has more than 64 bits; write a smaller one, or put text in quotes"


class TomlError(ValueError):
    """Text that cannot be used: `line` where it is (0 for the whole file), and a sentence with the remedy."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def read_toml(file: Path) -> tuple[dict[str, Any], str]:
    """The data of a file, and its text. Raises OSError when it cannot be read, and TomlError."""
    with file.open("rb") as opened:
        raw = opened.read(BYTES_MOST + 1)
    if len(raw) > BYTES_MOST:
        raise TomlError(0, "is larger than 256 KiB, as no configuration is; give the path of the right file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TomlError(line, f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return parse_toml(text), text


def parse_toml(text: str) -> dict[str, Any]:
    """The data of TOML text. Raises TomlError."""
    for at, words in enumerate(text.split("\n"), 1):
        if words.count(".") > DOTS_MOST:
            raise TomlError(at, f"has more than {DOTS_MOST} dots, as no line of a configuration has")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _said(str(error), last=text.rstrip().count("\n") + 1) from None
    except RecursionError:
        raise _deep(text) from None
    except ValueError:  # `int` refuses thousands of digits
        found = _LONG_NUMBER.search(text)
        line = text.count("\n", 0, found.start()) + 1 if found is not None else 0
        raise TomlError(line, _TOO_LONG) from None
    for path, value in _values(data):
        if len(path) > DEPTH_MOST:
            raise _deep(text)
        if type(value) is int and value.bit_length() > 64:
            raise TomlError(line_of(key_lines(text), path), _TOO_LONG)
    return data


def _values(data: dict[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    """Everything in the data with its path, what is around it first. Goes no deeper than the caller looks."""
    waiting: list[tuple[KeyPath, Any]] = [((), data)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if isinstance(value, dict):
            waiting += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, index), inner) for index, inner in enumerate(value)]


def _deep(text: str) -> TomlError:
    """That it is nested too deeply, with the first line that is likely to be."""
    depth, place = 0, 0
    for number, line in enumerate(text.split("\n"), 1):
        for bracket in re.findall(r"[\[\]{}]", line):
            depth = max(0, depth + (1 if bracket in "[{" else -1))
            place = place or (number if depth > DEPTH_MOST else 0)
        place = place or (number if line.partition("=")[0].count(".") >= DEPTH_MOST else 0)
    return TomlError(place, f"tables or arrays are nested more than {DEPTH_MOST} deep; write fewer")


def _said(message: str, last: int) -> TomlError:
    """The standard library's complaint, with what to do; `last` is the last line that says something."""
    match = _PLACE.fullmatch(message)
    if match is None:
        return TomlError(last, f"is not TOML: {message}; correct the syntax")
    what, line, column = match.groups()
    what = what[:1].lower() + what[1:]
    hint = next((text for start, text in _REMEDIES.items() if what.startswith(start)), "correct the syntax")
    place = f"at column {column}" if column else "at its end"
    return TomlError(int(line or last), f"is not TOML {place}: {what}; {hint}")
