"""Gives what only the functions of a program know short names, so that user-data can carry it.

A name is changed everywhere in its program or nowhere: names of the module, of classes and their fields, of
attributes, of builtins and of arguments that are given by name stay, and so do all arguments of what other
programs import. The result is the same whatever Python runs this. Pure.

Source: the Python language reference, "Naming and binding".
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from string import ascii_letters
from typing import Final

from cloud.cloud_init.bare import FORMATTED, tokens

_FIELD: Final = re.compile(r"(?<!\{)\{(?!\{)([^{}'\"]*)\}(?!\})")  # one that is easily read
_IN_FIELD: Final = re.compile(r"(?<![\w.])[A-Za-z_]\w+")
_OF_MODULE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def shortened(programs: Mapping[str, str], caller: str = "") -> dict[str, str]:
    """Programs that call each other, by their names, with short names in them.

    `caller`: the program beside them that imports from them, and stays as it is.
    """
    trees = {name: ast.parse(text) for name, text in programs.items()}
    by_name = {
        node.arg for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.keyword)
    }
    imported = {
        alias.name
        for node in ast.walk(ast.parse(caller))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    kept = {argument for tree in trees.values() for argument in _arguments(tree, imported)}
    return {name: _renamed(text, _own(trees[name]) - by_name - kept) for name, text in programs.items()}


def _arguments(tree: ast.Module, names: Set[str]) -> Iterator[str]:
    """Those of the functions and classes with these names."""
    for node in tree.body:
        if isinstance(node, _OF_MODULE) and node.name in names:
            yield from (each.arg for each in ast.walk(node) if isinstance(each, ast.arg))


def _own(tree: ast.Module) -> set[str]:
    """Names that only functions of the program bind, and nobody else may know."""
    nodes = list(ast.walk(tree))
    bound = {name for node in nodes for name in _bound(node)}
    known = {name for node in nodes for name in _known(node)}
    return {name for name in bound - known if len(name) > 1 and not hasattr(builtins, name)}


def _bound(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name


def _known(node: ast.AST) -> Iterator[str]:
    """Names that the node makes known beyond a function."""
    if isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0]
    elif isinstance(node, ast.Global | ast.Nonlocal):
        yield from node.names
    elif isinstance(node, _OF_MODULE):
        yield node.name
    if isinstance(node, ast.Module | ast.ClassDef):
        for part in node.body:
            if not isinstance(part, _OF_MODULE):
                yield from (each.id for each in ast.walk(part) if isinstance(each, ast.Name))


def _renamed(source: str, names: Set[str]) -> str:
    words = Counter(re.findall(r"\w+", source))
    names = names - _hidden(source)
    often = sorted(names, key=lambda name: (-words[name], name))
    short = dict(zip(often, (letter for letter in ascii_letters if letter not in words), strict=False))
    rows = source.splitlines(keepends=True)
    for _, text, (row, at) in reversed(list(tokens(source))):
        new = (
            _in_fields(text, lambda m: short.get(m[0], m[0]))
            if FORMATTED.match(text)
            else short.get(text, text)
        )
        if new != text:
            line = rows[row - 1]
            rows[row - 1] = line[:at] + new + line[at + len(text) :]
    return "".join(rows)


def _hidden(source: str) -> set[str]:
    """Names in formatted texts where `_FIELD` does not see all of them."""
    there = Counter(
        node.id
        for node in {
            each: None
            for text in ast.walk(ast.parse(source))
            if isinstance(text, ast.JoinedStr)
            for each in ast.walk(text)
        }
        if isinstance(node, ast.Name)
    )
    seen: Counter[str] = Counter()

    def count(found: re.Match[str]) -> str:
        seen[found[0]] += 1
        return found[0]

    for _, text, _ in tokens(source):
        if FORMATTED.match(text):
            _in_fields(text, count)
    return {name for name, often in there.items() if seen[name] != often}


def _in_fields(text: str, change: Callable[[re.Match[str]], str]) -> str:
    """A formatted text with other names in its fields."""
    return _FIELD.sub(lambda field: f"{{{_IN_FIELD.sub(change, field[1])}}}", text)
