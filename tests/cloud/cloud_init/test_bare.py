"""Programs that travel in user-data do what their sources do, and are the same whatever Python made them."""

import ast
import subprocess
from pathlib import Path

import pytest
from node_bench import REPOSITORY, pythons

import cloud
from cloud.cloud_init.bare import bare

PROGRAMS = sorted(Path(cloud.__file__).parent.glob("node_*.py"))
OTHERS = sorted(Path(cloud.__file__).parent.rglob("*.py"))


class Plain(ast.NodeTransformer):
    """Leaves out what only people and type checkers read."""

    def __init__(self):
        self.in_class = False

    def generic_visit(self, node):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kept = [
                s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            ]
            node.body = kept or [ast.Expr(ast.Constant(0))]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        before, self.in_class = self.in_class, isinstance(node, ast.ClassDef)
        node = super().generic_visit(node)
        self.in_class = before
        return node

    def visit_AnnAssign(self, node):
        if self.in_class or node.value is None:
            return self.generic_visit(node)
        return self.generic_visit(ast.Assign([node.target], node.value))


def meaning(source: str) -> str:
    return ast.dump(Plain().visit(ast.parse(source)))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_program_keeps_its_meaning_and_loses_its_weight(path):
    source = path.read_text()
    small = bare(source)
    assert meaning(small) == meaning(source)
    assert len(small) < 0.75 * len(source)
    shown = source.split('"""')[1].partition("\n")[0] if "__doc__" in source else ""  # as --help does
    assert (ast.get_docstring(ast.parse(small)) or "") == shown


def test_any_source_keeps_its_meaning():
    for path in OTHERS:
        source = path.read_text()
        assert meaning(bare(source)) == meaning(source), path


def test_odd_lines_keep_their_meaning():
    source = '''#!/usr/bin/env python3
"""Title.

More.
"""
import os  # why
class A(Exception):
    """Said."""
class B:
    """Said."""
    x: int = 1
    y: "str"
    def f(self, *a: int, k: "dict[str, int]" = {}, **kw: object) -> "tuple[int, str]":
        """Said."""
        z: list[int] = [1 if k else 2, -1, not"a", 1.0 if k else 0x1f]
        text = """two
            lines  # kept

        # kept"""
        both = "" "b" f"{k!r:>{10}} {{}}" 'c'
        return lambda q, r=1: (q, r, text, both) if q is not None else {1: z}  # why
    def g(self):
        """All."""
'''
    assert meaning(bare(source)) == meaning(source)
    assert bare(bare(source)) == bare(source)
    assert "  # kept\n\n        # kept" in bare(source)


@pytest.mark.slow
def test_every_python_makes_the_same():
    script = "import sys; from cloud.cloud_init.bare import bare; sys.stdout.write(bare(sys.stdin.read()))"
    for python in pythons():
        for path in PROGRAMS:
            made = subprocess.run(
                ["env", f"PYTHONPATH={REPOSITORY}", python, "-S", "-c", script],
                input=path.read_text(),
                text=True,
                capture_output=True,
                check=True,
            ).stdout
            assert made == bare(path.read_text()), python
