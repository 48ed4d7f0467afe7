"""What is changed: one function for each operator, from a node to its mutants.

Left alone is what no test should hold: messages (literals with braces in them, what `raise` and the loggers
are given, help and descriptions), tables of data, sizes in bytes, annotations, decorators, documentation,
`assert`, `TYPE_CHECKING`, `__repr__`, ports and abstract methods.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from mutants.source import Mutant, Source

FLIPS = {
    "==": "!=",
    "!=": "==",
    "<": ">=",
    ">=": "<",
    ">": "<=",
    "<=": ">",
    "in": "not in",
    "not in": "in",
} | {
    "is": "is not",
    "is not": "is",
}
BOUNDARIES = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*"}
EXTREMES = {"min": "max", "max": "min"}
UNORDERED = {"min", "max", "isclose", "gcd", "hypot", "cast"}
"""Functions that do not mind the order of their arguments, or whose first does nothing when it runs."""
LOGS = {"debug", "info", "warning", "error", "exception", "critical"}
TEXTS = {"help", "description", "documentation", "title", "message", "examples", "doc"}
"""Keywords whose values are for people."""

_TABLE = 12
"""A constant of a module with more numbers than this is a table of data."""

_COMPARE = re.compile(rb"not\s+in\b|is\s+not\b|\bin\b|\bis\b|<=|>=|==|!=|<|>")
_Found = Iterator[tuple[int, int, str]]


def _between(
    source: Source, left: ast.AST, right: ast.AST, token: re.Pattern[bytes]
) -> tuple[int, int, str] | None:
    """The operator between two operands; none where a comment stands there too."""
    low, high = source.span(left)[1], source.span(right)[0]
    gap = source.data[low:high]
    match = token.search(gap)
    if match is None or b"#" in gap:
        return None
    return low + match.start(), low + match.end(), " ".join(match[0].decode().split())


def _compared(source: Source, node: ast.AST, table: dict[str, str]) -> _Found:
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, right in pairwise(operands):
            place = _between(source, left, right, _COMPARE)
            if place is not None and place[2] in table:
                yield place[0], place[1], table[place[2]]


def comparison(source: Source, node: ast.AST) -> _Found:
    """`a == b` becomes `a != b`, `a < b` becomes `a >= b`, `in` becomes `not in`."""
    yield from _compared(source, node, FLIPS)


def boundary(source: Source, node: ast.AST) -> _Found:
    """`a < b` becomes `a <= b`."""
    yield from _compared(source, node, BOUNDARIES)


def junction(source: Source, node: ast.AST) -> _Found:
    """`a and b` becomes `a or b`."""
    if isinstance(node, ast.BoolOp) and len(node.values) == 2:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        place = _between(source, node.values[0], node.values[1], re.compile(rf"\b{old}\b".encode()))
        if place is not None:
            yield place[0], place[1], new


def negation(source: Source, node: ast.AST) -> _Found:
    """`if c` becomes `if not (c)`, and `not c` becomes `c`."""
    if isinstance(node, ast.If | ast.IfExp | ast.comprehension):
        for test in node.ifs if isinstance(node, ast.comprehension) else [node.test]:
            start, end = source.span(test)
            if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
                yield start, source.wide(test.operand, test)[0], ""
            elif "\n" not in source.text(test):
                yield start, end, f"not ({source.text(test)})"


def clause(source: Source, node: ast.AST) -> _Found:
    """`a and b` becomes `a`, or `b`."""
    if isinstance(node, ast.BoolOp):
        spans = [source.wide(value, node) for value in node.values]
        for number, (start, end) in enumerate(spans):
            if number + 1 < len(spans):
                yield start, spans[number + 1][0], ""
            else:
                yield spans[number - 1][1], end, ""


def comprehension_filter(source: Source, node: ast.AST) -> _Found:
    """`[x for x in xs if c]` becomes `[x for x in xs]`."""
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        for part in node.generators:
            before = source.wide(part.iter, node)[1]
            for test in part.ifs:
                end = source.wide(test, node)[1]
                yield before, end, ""
                before = end


def jump(source: Source, node: ast.AST) -> _Found:
    """`continue` becomes `break`, and `break` becomes `continue`."""
    if isinstance(node, ast.Continue | ast.Break):
        yield *source.span(node), "break" if isinstance(node, ast.Continue) else "continue"


def _other_values(node: ast.AST) -> Iterator[str]:
    """What a number or a flag becomes."""
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield str(not value)
    elif isinstance(value, int):
        yield str(value + 1)
        if value > 1:
            yield str(value - 1)
    elif isinstance(value, float):
        yield repr(value * 2) if value else "1.0"


def constant(source: Source, node: ast.AST) -> _Found:
    """A whole number becomes the next or the one before, a fraction the double, `True` becomes `False`."""
    parent = source.parents.get(node)
    if isinstance(parent, ast.Return | ast.arguments) or _field(source, node):
        return  # what is returned and what stands for what is not given have operators of their own
    if isinstance(parent, ast.BinOp) and _is_size(parent):
        return
    for text in _other_values(node):
        yield *source.span(node), text


def _field(source: Source, node: ast.AST) -> bool:
    """Whether this is the value of a field in a class."""
    parent = source.parents.get(node)
    return isinstance(parent, ast.AnnAssign) and isinstance(source.parents[parent], ast.ClassDef)


def default(source: Source, node: ast.AST) -> _Found:
    """A number or a flag that stands for what is not given: another."""
    if isinstance(source.parents.get(node), ast.arguments) or _field(source, node):
        for text in _other_values(node):
            yield *source.span(node), text


def returned(source: Source, node: ast.AST) -> _Found:
    """`return x` becomes `return None`, `True`, `False` or an empty value, by the annotation."""
    if not isinstance(node, ast.Return) or node.value is None:
        return
    function = next(n for n in source.above(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    kind = "" if function.returns is None else ast.unparse(function.returns)
    empty = {
        "bool": ["True", "False"],
        "str": ['""'],
        "int": ["0", "1"],
        "float": ["0.0", "1.0"],
        "list": ["[]"],
        "dict": ["{}"],
        "tuple": ["()"],
        "set": ["set()"],
        "frozenset": ["frozenset()"],
    }.get(kind.split("[")[0], ["None"])
    if kind.startswith("tuple[") and "..." not in kind:
        empty = ["None"]
    for text in empty:
        if text != source.text(node.value):
            yield *source.span(node.value), text


def statement(source: Source, node: ast.AST) -> _Found:
    """A call whose result nobody takes, or a value put into an attribute or an item: left out."""
    gone = isinstance(node, ast.AugAssign | ast.Delete)
    if isinstance(node, ast.Expr):
        gone = isinstance(node.value, ast.Call)
    elif isinstance(node, ast.Assign):
        gone = isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    if gone:
        yield *source.span(node), "pass"


def awaited(source: Source, node: ast.AST) -> _Found:
    """`await guard()` as a statement: left out."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Await):
        yield *source.span(node), "pass"


def raised(source: Source, node: ast.AST) -> _Found:
    """`raise` left out."""
    if isinstance(node, ast.Raise):
        yield *source.span(node), "pass"


def arguments(source: Source, node: ast.AST) -> _Found:
    """`f(a, b)` becomes `f(b, a)`."""
    if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args[:2]):
        return
    if len(node.args) < 2 or ast.unparse(node.func).split(".")[-1] in UNORDERED:
        return
    first, second = (source.wide(a, node) for a in node.args[:2])
    one, other = source.data[slice(*first)].decode(), source.data[slice(*second)].decode()
    if one != other:
        gap = source.data[first[1] : second[0]].decode()
        yield first[0], second[1], f"{other}{gap}{one}"


def arithmetic(source: Source, node: ast.AST) -> _Found:
    """`a + b` becomes `a - b`, `a * b` becomes `a / b`, and back; `+=` as well."""
    if isinstance(node, ast.BinOp):
        place = _between(source, node.left, node.right, re.compile(rb"(?<![*/])[-+*/](?![*/])"))
        if (
            place is not None
            and not _is_size(node)
            and not any(map(_is_text_or_list, (node.left, node.right)))
        ):
            yield place[0], place[1], ARITHMETIC[place[2]]
    elif isinstance(node, ast.AugAssign):
        place = _between(source, node.target, node.value, re.compile(rb"(?<![*/])[-+*/](?==)"))
        if place is not None:
            yield place[0], place[1], ARITHMETIC[place[2]]


def _is_size(node: ast.BinOp) -> bool:
    """Whether this is a number of bytes, such as `64 * 1024 * 1024` or `2**16`."""
    text = ast.unparse(node)
    return re.fullmatch(r"[\d_ ]+(\* 1024|\*\* \d+|<< \d+).*", text) is not None


def _is_text_or_list(node: ast.AST) -> bool:
    """Whether nothing can be taken away from it."""
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def extreme(source: Source, node: ast.AST) -> _Found:
    """`min` becomes `max`, and `max` becomes `min`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EXTREMES:
        yield *source.span(node.func), EXTREMES[node.func.id]


_Operator = Callable[[Source, ast.AST], _Found]

OPERATORS: dict[str, tuple[_Operator, tuple[type[ast.AST], ...]]] = {
    "comparison": (comparison, (ast.Compare,)),
    "boundary": (boundary, (ast.Compare,)),
    "junction": (junction, (ast.BoolOp,)),
    "negation": (negation, (ast.If, ast.IfExp, ast.comprehension)),
    "clause": (clause, (ast.BoolOp,)),
    "filter": (comprehension_filter, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)),
    "jump": (jump, (ast.Continue, ast.Break)),
    "constant": (constant, (ast.Constant,)),
    "default": (default, (ast.Constant,)),
    "returned": (returned, (ast.Return,)),
    "statement": (statement, (ast.AugAssign, ast.Delete, ast.Expr, ast.Assign)),
    "awaited": (awaited, (ast.Expr,)),
    "raised": (raised, (ast.Raise,)),
    "arguments": (arguments, (ast.Call,)),
    "arithmetic": (arithmetic, (ast.BinOp, ast.AugAssign)),
    "extreme": (extreme, (ast.Call,)),
}
"""Each operator, and the nodes that it may change."""

_BY_TYPE: dict[type[ast.AST], list[tuple[str, _Operator]]] = {}
for _name, (_operator, _types) in OPERATORS.items():
    for _type in _types:
        _BY_TYPE.setdefault(_type, []).append((_name, _operator))


def mutants(source: Source) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    found = []
    for node in _looked_at(source.tree):
        for name, operator in _BY_TYPE.get(type(node), ()):
            for start, end, text in operator(source, node):
                anchor = node if hasattr(node, "lineno") else source.parents[node]
                found.append(source.mutant(anchor, name, start, end, text))
    return sorted(found, key=lambda mutant: (mutant.start, mutant.end))


def _looked_at(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that may be mutated."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, ast.Raise):
            continue  # it may go, but what it says stays
        for name in node._fields:
            if name in ("annotation", "returns", "decorator_list", "ctx", "op", "ops"):
                continue
            value = getattr(node, name)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not (
                    _for_people(child) or _outside(child) or _is_data(child, node)
                ):
                    left.append(child)


def _for_people(node: ast.AST) -> bool:
    """Whether this is a message, documentation, or a check of types only."""
    if isinstance(node, ast.Expr):
        node = node.value
    if isinstance(node, ast.Call):
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in LOGS:
            return True
    if isinstance(node, ast.keyword):
        return node.arg in TEXTS
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test) or "__name__" in ast.unparse(node.test)
    return isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom)


def _is_data(node: ast.AST, parent: ast.AST) -> bool:
    """Whether this is a table of a module: it is held against where it comes from, not by tests."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(parent, ast.Module):
        return False
    numbers = [n for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, int | float)]
    return len(numbers) > _TABLE


def _outside(node: ast.AST) -> bool:
    """Whether this is a port, an overload, or what prints an object."""
    if isinstance(node, ast.ClassDef):
        return any(ast.unparse(base).split("[")[0].endswith("Protocol") for base in node.bases)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        marks = {ast.unparse(mark).split(".")[-1] for mark in node.decorator_list}
        return bool(marks & {"overload", "abstractmethod"}) or node.name in ("__repr__", "__str__")
    return False
