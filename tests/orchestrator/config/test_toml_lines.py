"""Where keys stand in TOML text."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.toml_lines import KeyPath, key_lines, line_of

TEXT = '''\
# comment = 1
title = "a # b"      # not = a key

[owner."quoted key"]
'single' = """
three = 1
\\""" four = 2
"""
literal = \'\'\'
[not.a.table]
\'\'\'
a . b = 1
a."c.d" = [
  1, # one
  { x = 1, y = [2, 3] },
  "]",
]
[[fruit]]
name = "x"
  [[fruit.kind]]
  name = "y"
  [[fruit.kind]]
  name = "z"
  [fruit.size]
  w = 1979-05-27T07:32:00Z
[[fruit]]
name = "w"
"\\u00e9\\t" = +1_000.5e-3
'''

EXPECTED: dict[KeyPath, int] = {
    ("title",): 2,
    ("owner",): 4,
    ("owner", "quoted key"): 4,
    ("owner", "quoted key", "single"): 5,
    ("owner", "quoted key", "literal"): 9,
    ("owner", "quoted key", "a"): 12,
    ("owner", "quoted key", "a", "b"): 12,
    ("owner", "quoted key", "a", "c.d"): 13,
    ("owner", "quoted key", "a", "c.d", 0): 14,
    ("owner", "quoted key", "a", "c.d", 1): 15,
    ("owner", "quoted key", "a", "c.d", 1, "x"): 15,
    ("owner", "quoted key", "a", "c.d", 1, "y"): 15,
    ("owner", "quoted key", "a", "c.d", 1, "y", 0): 15,
    ("owner", "quoted key", "a", "c.d", 1, "y", 1): 15,
    ("owner", "quoted key", "a", "c.d", 2): 16,
    ("fruit",): 18,
    ("fruit", 0): 18,
    ("fruit", 0, "name"): 19,
    ("fruit", 0, "kind"): 20,
    ("fruit", 0, "kind", 0): 20,
    ("fruit", 0, "kind", 0, "name"): 21,
    ("fruit", 0, "kind", 1): 22,
    ("fruit", 0, "kind", 1, "name"): 23,
    ("fruit", 0, "size"): 24,
    ("fruit", 0, "size", "w"): 25,
    ("fruit", 1): 26,
    ("fruit", 1, "name"): 27,
    ("fruit", 1, "é\t"): 28,
}


def test_every_construct_of_the_grammar() -> None:
    assert key_lines(TEXT) == EXPECTED


def test_the_scanner_finds_what_the_reader_finds() -> None:
    assert set(key_lines(TEXT)) == set(paths_of(tomllib.loads(TEXT)))


def test_windows_line_ends() -> None:
    assert key_lines("a = 1\r\n\r\nb = '''\r\n'''\r\nc = 2\r\n") == {("a",): 1, ("b",): 3, ("c",): 5}


def test_a_table_after_its_sub_table_stands_at_its_own_header() -> None:
    assert key_lines("[a.b]\nx = 1\n[a]\ny = 2\n")[("a",)] == 3


@pytest.mark.parametrize(
    ("path", "line"),
    [(("fruit", 0, "size", "none"), 24), (("fruit", 7), 18), (("nowhere", "at", "all"), 1), ((), 1)],
)
def test_a_key_that_is_not_written_stands_at_its_table(path: KeyPath, line: int) -> None:
    assert line_of(EXPECTED, path) == line


def paths_of(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    """Every key and item of parsed TOML."""
    found: list[KeyPath] = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += paths_of(item, (*path, key))
    return found


NAMES = st.text(st.sampled_from("ab-_9é \"'.#=[]\\\t"), min_size=1, max_size=4)
STRINGS = st.text(st.sampled_from("ab\"'#=[]{},\\\n\t é"), max_size=8)
VALUES = st.recursive(
    st.one_of(st.integers(-9, 9), st.booleans(), STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def written(value: Any, spread: bool) -> str:
    """A value as TOML, arrays over several lines when `spread`, texts with line breaks as they are."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        plain = "\n" in value and "'''" not in value and not value.endswith("'") and "\t" not in value
        return f"'''\n{value}'''" if plain else quoted(value)
    if isinstance(value, list):
        gap = "\n # comment, with ] and }\n" if spread else " "
        return "[" + gap + f",{gap}".join(written(item, spread) for item in value) + gap + "]"
    if isinstance(value, dict):
        inner = ", ".join(f"{quoted(key)} = {written(item, False)}" for key, item in value.items())
        return "{ " + inner + " }"
    return str(value)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=4), max_size=4), st.booleans())
def test_any_file(data: dict[str, dict[str, Any]], spread: bool) -> None:
    text = ""
    first_lines: dict[KeyPath, int] = {}
    for table, keys in data.items():
        first_lines[(table,)] = text.count("\n") + 1
        text += f"[{quoted(table)}] # table\n"
        for key, value in keys.items():
            first_lines[(table, key)] = text.count("\n") + 1
            text += f"  {quoted(key)}\t= {written(value, spread)} # = 1\n\n"
    assert tomllib.loads(text) == data
    lines = key_lines(text)
    assert set(lines) == set(paths_of(data))
    assert {path: lines[path] for path in first_lines} == first_lines
