"""The sample: by a seed, even over groups, and in a group even over operators."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from mutants.groups import files, group_of
from mutants.operators import mutants
from mutants.source import Mutant, Source


def candidates(
    root: Path, groups: Iterable[str] = (), operators: Iterable[str] = (), at: str = ""
) -> list[Mutant]:
    """Every mutant of the tree that is asked for.

    `at` is a file, a pattern of files, or a file and a line such as `policies/swap.py:120`.
    """
    pattern, _, line = at.partition(":")
    chosen: list[Mutant] = []
    for name, group in files(root).items():
        if (groups and group not in groups) or (pattern and not fnmatch(name, pattern)):
            continue
        chosen += (
            mutant
            for mutant in mutants(Source(name, (root / name).read_bytes()))
            if (not operators or mutant.operator in operators) and (not line or int(line) in mutant.lines)
        )
    return chosen


def draw(root: Path, found: Iterable[Mutant], seed: int) -> Iterator[Mutant]:
    """All of them in the order in which a run takes them: a run of `n` takes the first `n`.

    Groups take turns, and in a group its operators; which mutant of an operator is next is drawn.
    """
    rng = random.Random(seed)  # noqa: S311 - a sample
    cells: dict[str, dict[str, list[Mutant]]] = {}
    for mutant in found:
        cells.setdefault(group_of(mutant.file), {}).setdefault(mutant.operator, []).append(mutant)
    turns = [_turns(cells[group], rng) for group in sorted(cells)]
    while turns:
        for turn in list(turns):
            drawn = next(turn, None)
            if drawn is None:
                turns.remove(turn)
            elif drawn.compiles((root / drawn.file).read_bytes()):
                yield drawn


def _turns(cells: dict[str, list[Mutant]], rng: random.Random) -> Iterator[Mutant]:
    """The mutants of a group: its operators take turns."""
    own = random.Random(rng.random())  # noqa: S311 - a sample
    left = {operator: own.sample(cells[operator], len(cells[operator])) for operator in sorted(cells)}
    while left:
        for operator in own.sample(sorted(left), len(left)):
            yield left[operator].pop()
            if not left[operator]:
                del left[operator]
