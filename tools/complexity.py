"""The cyclomatic complexity of this tree, by file and by package, and its ratio to another commit's.

    python tools/complexity.py [--against COMMIT] [--all] [-o table|json] [FOLDER...]

Counted as McCabe did and radon does, one for each way that code can take besides straight on:

* a function, a method, a lambda;
* `if`, `elif`, a conditional expression, `assert`;
* `for`, `while`, a `for` of a comprehension and each of its `if`s;
* `except`, a `case` of a match;
* each `and` and `or` (a chain of three conditions has two).

So it does not matter whether a condition stands in a statement or in an expression. The sum over a package
tells whether something became simpler or only moved to another file; the packages together, whether it moved
to another package. Folders are by default `policies cloud orchestrator`.

    python tools/complexity.py --against main            files that changed, and all packages
    python tools/complexity.py --all policies            every file of one package

Exit code: 0, or 2 where something cannot be read.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commits import ROOT, NoCommit, archive, commit_of, this_tree

FOLDERS = ("policies", "cloud", "orchestrator")

_ONE = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.If,
    ast.IfExp,
    ast.Assert,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.match_case,
)
"""What counts as one."""


class Unreadable(Exception):
    """A folder or a file cannot be counted. The message says which, and why."""


def complexity(source: str | bytes) -> int:
    """The cyclomatic complexity of a module: the sum of its functions', and what stands outside of them.

    Raises SyntaxError.
    """
    return sum(map(_of, ast.walk(ast.parse(source))))


def _of(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, _ONE))


def _count(name: str, source: bytes) -> int:
    try:
        return complexity(source)
    except (SyntaxError, ValueError) as error:
        raise Unreadable(f"{name}: {error}") from error


def of_tree(root: Path, folders: Sequence[str]) -> dict[str, int]:
    """The complexity of each Python file in these folders. Raises Unreadable."""
    found = {}
    for folder in folders:
        files = sorted((root / folder).rglob("*.py"))
        if not files:
            raise Unreadable(f"{folder}: no such folder of Python files in {root}")
        found |= {(n := file.relative_to(root).as_posix()): _count(n, file.read_bytes()) for file in files}
    return found


def of_commit(commit: str, folders: Sequence[str]) -> dict[str, int]:
    """The same of a commit. Raises NoCommit, Unreadable."""
    found = {}
    with archive(commit, *folders) as packed:
        for member in packed:
            body = packed.extractfile(member) if member.name.endswith(".py") else None
            if body is not None:
                found[member.name] = _count(member.name, body.read())
    return found


def by_package(files: Mapping[str, int], folders: Sequence[str]) -> dict[str, int]:
    """The sums of the folders."""
    return {
        folder: sum(n for name, n in files.items() if PurePosixPath(name).is_relative_to(folder))
        for folder in folders
    }


def compared(now: Mapping[str, int], before: Mapping[str, int] | None) -> dict[str, dict[str, Any]]:
    """Each name with `now`; against a commit also with `before` and `ratio`, None where it was nothing."""
    if before is None:
        return {name: {"now": n} for name, n in now.items()}
    return {
        name: {
            "now": now.get(name, 0),
            "before": before.get(name, 0),
            "ratio": now.get(name, 0) / before[name] if before.get(name) else None,
        }
        for name in sorted({*now, *before})
    }


def report(
    now: Mapping[str, int], before: Mapping[str, int] | None, folders: Sequence[str]
) -> dict[str, Any]:
    """Files, packages and the sum of all."""
    past = None if before is None else by_package(before, folders)
    total = None if before is None else {"sum": sum(before.values())}
    return {
        "files": compared(now, before),
        "packages": compared(by_package(now, folders), past),
        **compared({"sum": sum(now.values())}, total),
    }


def table(said: Mapping[str, Any], *, every: bool) -> str:
    """The same for people: the most complex first; of files those that changed, or `every` one."""
    lines = [f"{'now':>7}{'before':>8}{'ratio':>7}" if "before" in said["sum"] else f"{'now':>7}"]
    shown = {n: f for n, f in said["files"].items() if every or f["now"] != f.get("before", f["now"])}
    for name, row in sorted(shown.items(), key=lambda item: -item[1]["now"]):
        lines.append(_line(row, name))
    lines += [_line(row, f"{name}/") for name, row in said["packages"].items()]
    return "\n".join([*lines, _line(said["sum"], "sum")])


def _line(row: Mapping[str, Any], name: str) -> str:
    text = f"{row['now']:7}"
    if "before" in row:
        text += f"{row['before']:8}" + (f"{row['ratio']:7.3f}" if row["ratio"] is not None else f"{'':7}")
    return f"{text}  {name}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    known = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    known.add_argument("folders", nargs="*", default=list(FOLDERS), metavar="FOLDER")
    known.add_argument("--against", metavar="COMMIT", help="also count this commit, and give the ratio")
    known.add_argument("--all", action="store_true", help="every file, not only those that changed")
    known.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return known


def main() -> int:
    """Count and print."""
    given = parser().parse_args()
    folders = [PurePosixPath(folder).as_posix() for folder in given.folders]
    try:
        now = of_tree(ROOT, folders)
        against = None if given.against is None else commit_of(given.against)
        before = None if against is None else of_commit(against, folders)
        head = {"this": this_tree(*folders), "against": against}
    except (NoCommit, Unreadable) as error:
        print(f"complexity: {error}", file=sys.stderr)
        return 2
    said = report(now, before, folders)
    print(json.dumps({**head, **said}, indent=2) if given.output == "json" else table(said, every=given.all))
    return 0


if __name__ == "__main__":
    sys.exit(main())
