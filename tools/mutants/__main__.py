"""The command: `make mutants`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from mutants import report
from mutants.draw import candidates, draw
from mutants.groups import GROUPS
from mutants.operators import OPERATORS
from mutants.run import Asked, go

ROOT = Path(__file__).resolve().parents[2]

_EXAMPLES = """
examples:
  make mutants MUTANTS_ARGS="--seed 7 --count 200 --minutes 20 --at-least 0.92"
  make mutants MUTANTS_ARGS="--seed 7 --group policies --count 50"
  make mutants MUTANTS_ARGS="--at policies/swap.py"            a file
  make mutants MUTANTS_ARGS="--at 'policies/s*.py'"            a pattern, in quotes
  make mutants MUTANTS_ARGS="--at policies/swap.py:120 --tests tests/policies"
                                                               whether a survivor is killed now
  make mutants MUTANTS_ARGS="--seed 7 --list"                  what would be tried
  make mutants MUTANTS_ARGS="--at policies/swap.py:120 --entries"
                                                               entries for the table of equivalents

Exit code: 0 the score is at least what was asked for, 1 it is not, 2 wrong arguments, 130 interrupted.
The first run takes some minutes more: it runs the quick tests under coverage.py and keeps what it learns in
.cache/mutants. Equivalent mutants stand in tools/mutants/equivalent.toml and are left out.
"""


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, do it, print it."""
    parser = argparse.ArgumentParser(
        prog="mutants",
        description="Put small faults into copies of the tree and see which of them the quick tests notice.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1, help="draws the sample (default: 1)")
    parser.add_argument("--count", type=int, default=200, help="mutants to try (default: 200)")
    parser.add_argument("--minutes", type=float, default=20.0, help="begin no more after these (default: 20)")
    parser.add_argument(
        "--group", action="append", choices=list(GROUPS), help="only this group; may be repeated"
    )
    parser.add_argument(
        "--operator", action="append", choices=list(OPERATORS), help="only this; may be repeated"
    )
    parser.add_argument(
        "--at", default="", metavar="FILE[:LINE]", help="only this file, pattern of files, or line"
    )
    parser.add_argument(
        "--at-least", type=float, default=0.0, help="the score below which the exit code is 1"
    )
    parser.add_argument(
        "--patience", type=float, default=20.0, help="seconds of tests a mutant (default: 20)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--list", action="store_true", help="print what would be tried")
    parser.add_argument(
        "--entries", action="store_true", help="print survivors as entries of the table instead"
    )
    parser.add_argument("--tests", action="append", metavar="PATH", help="ask only these; may be repeated")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree (default: this one)")
    given = parser.parse_args(arguments)
    asked = Asked(
        root=given.root.resolve(),
        seed=given.seed,
        count=given.count,
        minutes=given.minutes,
        groups=given.group or (),
        operators=given.operator or (),
        at=given.at,
        tests=given.tests or (),
        patience=given.patience,
        workers=given.workers,
    )
    if given.list:
        every = candidates(asked.root, asked.groups, asked.operators, asked.at)
        for mutant, _ in zip(draw(asked.root, every, asked.seed), range(asked.count), strict=False):
            print(f"{mutant.file}:{mutant.line} {mutant.operator}: {report.difference(mutant)}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = go(asked, lambda text: print(text, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print({"text": report.as_text, "json": report.as_json}[given.output](found))
    if given.entries:
        print(report.entries(found))
    return 0 if found.score >= given.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
