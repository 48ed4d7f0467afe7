"""Makes a Python program small without changing what it does, so that user-data can carry it.

Taken out are comments, documentation (but the first line of a module's that it shows), annotations and
blanks; statements share lines. The result is the same whatever Python runs this, so user-data changes only
when a program does. Pure.

Source: the lexical analysis in the Python language reference; the tokenize module, whose formatted texts come
in parts since 3.12.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from typing import Final

_BEGINS: Final = getattr(tokenize, "FSTRING_START", -1)
_ENDS: Final = getattr(tokenize, "FSTRING_END", -1)
FORMATTED: Final = re.compile(r"[bru]*f[bru]*['\"]", re.IGNORECASE)
"""How a formatted text begins."""

_COMPOUND: Final = re.compile(r"(?:if|elif|else|for|while|try|except|finally|with|def|class|async)\b|@")
_LEFT_OUT: Final = (tokenize.COMMENT, tokenize.ENDMARKER, tokenize.NL)

_Token = tuple[int, str, tuple[int, int]]
"""Type, text, and where it begins: line and column."""


def bare(source: str) -> str:
    """The program, small. It must be ASCII, and keep each formatted text on one line.

    >>> print(bare('\'\'\'Says x.\'\'\'\ndef f(x: int) -> str:\n    return f"{x} y"  # told\n'), end="")
    def f(x):return f"{x} y"
    """
    depth, in_result, lines = 0, False, [""]
    annotations = list(_annotations(ast.parse(source)))
    for kind, text, at in tokens(source):
        in_result = (in_result and text != ":") or text == "->"
        if kind in (tokenize.INDENT, tokenize.DEDENT):
            depth += 1 if kind == tokenize.INDENT else -1
        elif kind == tokenize.NEWLINE:
            lines.append("")
        elif not in_result and not any(start <= at < end for start, end in annotations):
            before = lines[-1] or " " * depth
            words = all(c.isalnum() or c == "_" for c in (before[-1:] or " ", text[0]))
            texts = before[-1:] in ("'", '"') and text[-1] in ("'", '"')
            lines[-1] = before + (" " if words or texts else "") + text
    return "".join(f"{line}\n" for line in _joined(line for line in _undocumented(lines) if line))


def tokens(source: str) -> Iterator[_Token]:
    """What a program consists of, a formatted text as one token: type, text, line and column."""
    rows, tokens = source.splitlines(), tokenize.generate_tokens(io.StringIO(source).readline)
    for token in tokens:
        text, within = token.string, int(token.type == _BEGINS)
        while within:
            last = next(tokens)
            within += (last.type == _BEGINS) - (last.type == _ENDS)
            text = rows[token.start[0] - 1][token.start[1] : last.end[1]]
        if token.type not in _LEFT_OUT:
            yield token.type, text, token.start


def _annotations(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where annotations reach, with their colons: of arguments, and of what gets a value
    outside of classes, which may need theirs."""
    in_classes = {id(part) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for part in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield (node.lineno, node.col_offset + len(node.arg)), _end(node.annotation)
        elif isinstance(node, ast.AnnAssign) and node.value is not None and id(node) not in in_classes:
            yield _end(node.target), _end(node.annotation)


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or node.col_offset


def _undocumented(lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        text = line.lstrip(" ")
        if not text.startswith(('"""', "'''")):
            yield line
        elif number == 0:
            if any("__doc__" in other for other in lines):
                yield text.partition("\n")[0].rstrip("\"'") + '"""'
        else:
            depth, after = len(line) - len(text), lines[number + 1]
            if len(after) - len(after.lstrip(" ")) < depth:  # it was all that stood there
                yield f"{' ' * depth}0"


def _joined(lines: Iterable[str]) -> list[str]:
    """Simple statements that follow each other in one line, and what is all of a block in its header's."""
    rows: list[tuple[int, str, bool]] = []  # depth, text, whether simple
    for line in lines:
        text = line.lstrip(" ")
        depth, simple = len(line) - len(text), not (_COMPOUND.match(text) or text.endswith(":"))
        if simple and rows and rows[-1][::2] == (depth, True):
            rows[-1] = depth, f"{rows[-1][1]};{text}", True
        else:
            rows.append((depth, text, simple))
    found: list[str] = []
    for number, (depth, text, simple) in enumerate(rows):
        beside = (*rows[number - 1 : number], *rows[number + 1 : number + 2])
        if simple and depth and all(other[0] < depth for other in beside):
            found[-1] += text
        else:
            found.append(" " * depth + text)
    return found
