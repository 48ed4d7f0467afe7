"""A file's text and its tree: where each node stands, as offsets into the text's bytes."""

from __future__ import annotations

import ast
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file: the bytes from `start` to `end` become `text`."""

    file: str
    line: int
    function: str
    """The qualified name of the function or class around it; empty in a module."""
    operator: str
    start: int
    end: int
    text: bytes
    before: str
    """The lines that change, as one, with single spaces."""
    after: str
    lines: range
    """The lines whose tests are asked: those of the statement, or of its head."""
    name: str
    """What is given a value when the file is imported: a constant, or a field and its class; else empty."""

    def apply(self, source: bytes) -> bytes:
        """The text of the file with the change in it."""
        return source[: self.start] + self.text + source[self.end :]

    def compiles(self, source: bytes) -> bool:
        """Whether the changed file is Python, and another programme than before."""
        try:
            return ast.dump(ast.parse(self.apply(source))) != ast.dump(ast.parse(source))
        except (SyntaxError, ValueError):
            return False

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.operator}: {self.before} -> {self.after}"


@dataclass
class Source:
    """A parsed file with parents and offsets."""

    file: str
    data: bytes
    tree: ast.Module = field(init=False)
    parents: dict[ast.AST, ast.AST] = field(init=False, default_factory=dict)
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.data)
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        left: list[ast.AST] = [self.tree]
        while left:
            node = left.pop()
            for child in ast.iter_child_nodes(node):
                if child._fields:
                    self.parents[child] = node
                    left.append(child)

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where the node begins and ends, without the parentheses around it."""
        line, column = node.lineno, node.col_offset  # type: ignore[attr-defined]
        last, end = node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
        return self.starts[line - 1] + column, self.starts[last - 1] + end

    def wide(self, node: ast.AST, within: ast.AST) -> tuple[int, int]:
        """The same with its parentheses, as long as they stand in the span of `within`."""
        start, end = self.span(node)
        low, high = self.span(within)
        while True:
            left, right = start - 1, end
            while left >= low and self.data[left : left + 1].isspace():
                left -= 1
            while right < high and self.data[right : right + 1].isspace():
                right += 1
            if (
                left < low
                or right >= high
                or self.data[left : left + 1] + self.data[right : right + 1] != b"()"
            ):
                return start, end
            start, end = left, right + 1

    def text(self, node: ast.AST) -> str:
        """What stands there."""
        start, end = self.span(node)
        return self.data[start:end].decode()

    def above(self, node: ast.AST) -> list[ast.AST]:
        """The nodes around this one, the nearest first."""
        found = []
        while (node := self.parents.get(node)) is not None:  # type: ignore[assignment]
            found.append(node)
        return found

    def statement(self, node: ast.AST) -> ast.stmt:
        """The statement that holds this node."""
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def mutant(self, node: ast.AST, operator: str, start: int, end: int, text: str) -> Mutant:
        """A change of these bytes, in this node."""
        statement = self.statement(node)
        around = [
            n
            for n in self.above(node)
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        line = bisect_right(self.starts, start) - 1
        low, high = self.starts[line], self.starts[bisect_right(self.starts, max(start, end - 1))]
        changed = text.encode()
        return Mutant(
            file=self.file,
            line=line + 1,
            function=".".join(n.name for n in reversed(around)),
            operator=operator,
            start=start,
            end=end,
            text=changed,
            before=one_line(self.data[low:high]),
            after=one_line(self.data[low:start] + changed + self.data[end:high]),
            lines=self._lines(node, statement),
            name=self._imported_name(node, statement),
        )

    def _defaults_of(self, node: ast.AST) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """The function in whose signature this node is a default."""
        chain = [node, *self.above(node)]
        for inner, outer in pairwise(chain):
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
                return outer if inner is outer.args else None
        return None

    def _lines(self, node: ast.AST, statement: ast.stmt) -> range:
        """The lines whose tests are asked: for a default those of the function's body."""
        function = self._defaults_of(node)
        if function is not None:
            return range(function.body[0].lineno, (function.end_lineno or function.lineno) + 1)
        return head(statement)

    def _imported_name(self, node: ast.AST, statement: ast.stmt) -> str:
        """The names of what this node's value becomes on import; empty for what runs in a function."""
        above = self.above(node)
        if any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) for n in above):
            return ""
        targets = (
            statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        )
        owner = [n.name for n in above if isinstance(n, ast.ClassDef)][:1]
        own = [targets[0].id] if isinstance(targets[0], ast.Name) else []
        return " ".join([*own, *owner]) or "*"


def one_line(text: bytes) -> str:
    """Source as one line with single spaces."""
    return " ".join(text.decode().split())


def head(statement: ast.stmt) -> range:
    """The lines of a statement; of one with a body those before it."""
    last = statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None)
    if body:
        last = max(statement.lineno, body[0].lineno - 1)
    return range(statement.lineno, last + 1)
