"""Programs with short names do what they did, whatever Python made them; nobody else's name is changed."""

import ast
import builtins
import json
import subprocess
import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_bench import REPOSITORY, pythons

import cloud
from cloud.cloud_init.bare import bare
from cloud.cloud_init.short_names import shortened

PROGRAMS = {
    path.name: bare(path.read_text()) for path in sorted(Path(cloud.__file__).parent.glob("node_*.py"))
}
SHORT = shortened(PROGRAMS)
KINDS = {ast.Name: "id", ast.arg: "arg", ast.ExceptHandler: "name"}


def names(source: str) -> list[str | None]:
    """Every name that may have been changed, in the order of the syntax tree."""
    nodes = ast.walk(ast.parse(source))
    return [getattr(node, KINDS[type(node)]) for node in nodes if type(node) in KINDS]


def shape(source: str) -> str:
    """All but those names."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if type(node) in KINDS and getattr(node, KINDS[type(node)]):
            setattr(node, KINDS[type(node)], "x")
    return ast.dump(tree)


def changed(before: str, after: str) -> dict[str, str]:
    """The names that were changed, after a look that it is one for one."""
    assert shape(after) == shape(before)
    pairs = set(zip(names(before), names(after), strict=True))
    assert len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)
    return {old: new for old, new in pairs if old != new}


def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from scopes(child)


def check(before: str, after: str) -> dict[str, str]:
    """The changed names: all are local to functions, and the new ones mean nothing else."""
    found = changed(before, after)
    for scope in scopes(symtable.symtable(before, "before", "exec")):
        for symbol in scope.get_symbols():
            if symbol.get_name() in found:
                assert scope.get_type() == "function", symbol
                assert not symbol.is_global(), symbol
                assert not symbol.is_imported(), symbol
    assert not set(found.values()) & (set(names(before)) | set(dir(builtins)))
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_keeps_its_meaning(name):
    assert len(check(PROGRAMS[name], SHORT[name])) > 5


def test_no_argument_that_is_given_by_name_is_changed():
    given = {
        node.arg
        for text in PROGRAMS.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.keyword)
    }
    for name, text in PROGRAMS.items():
        assert not given & set(changed(text, SHORT[name]))


SOURCE = """
import os as system
limit, total = 1, 0
class Row:
    field: int = 0
    def own(self, value, *, option=limit):
        global total
        total += value
        try:
            input = self.field + system.getpid()
        except OSError as error:
            return f"{value} {{value}} {error!r:>{option}} {'value'} {input}"
        return [f"{value:5} {part}" for part in (value, option)]
def outer(first, second):
    inner = lambda argument: argument + first
    def third(other=second):
        nonlocal first
        first = other
    third()
    return inner(second), Row().own(first, option=2), {"first": first}
"""


def test_names_that_others_know_stay():
    (after,) = shortened({"a": SOURCE}).values()
    found = check(SOURCE, after)
    assert found.keys() == {"self", "second", "inner", "argument", "other", "part", "value"}
    spaces: list[dict[str, object]] = [{}, {}]
    for text, space in zip((SOURCE, after), spaces, strict=True):
        exec(text, space)  # noqa: S102 - the program above
    assert spaces[0]["outer"](1, 2) == spaces[1]["outer"](1, 2)


def test_what_another_program_gives_by_name_stays():
    called = "def function(argument, other):\n return argument - other\n"
    both = shortened({"called": called, "caller": "def run(): return function(argument=1, other=2)\n"})
    assert both["called"] == called


def test_arguments_of_what_a_later_program_imports_stay():
    called = "def function(argument, other):\n inner = argument - other\n return inner\n"
    after = shortened({"called": called}, caller="from cloud.called import function\n")["called"]
    assert check(called, after).keys() == {"inner"}


def test_formatted_texts_that_are_hard_to_read_keep_their_names():
    before = "def f(first, other): return f\"{first['x']} {other}\", first\n"
    (after,) = shortened({"a": before}).values()
    assert check(before, after).keys() == {"other"}


@pytest.mark.slow
def test_every_python_makes_the_same():
    script = (
        "import json, sys; from cloud.cloud_init.short_names import shortened; "
        "json.dump(shortened(json.load(sys.stdin)), sys.stdout)"
    )
    for python in pythons():
        made = subprocess.run(
            ["env", f"PYTHONPATH={REPOSITORY}", python, "-S", "-c", script],
            input=json.dumps(PROGRAMS),
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        assert json.loads(made) == SHORT, python
