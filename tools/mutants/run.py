"""A run: draws mutants, has the tests of each run, and holds what killed them against the tree as it is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mutants import child, equivalent
from mutants.child import Batch, now
from mutants.cover import Cover, learn
from mutants.draw import candidates, draw
from mutants.pool import Patience, Pool, Work
from mutants.source import Mutant

_BETWEEN = Patience(cpu=60.0, wall=600.0)
"""Importing the product and the tests."""

_CONFIRMING = 0.9
"""The part of the time after which no mutant is begun: what killed the others is run without them then."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run is asked for."""

    root: Path
    seed: int = 1
    count: int = 200
    minutes: float = 20.0
    groups: Sequence[str] = ()
    operators: Sequence[str] = ()
    at: str = ""
    tests: Sequence[str] = ()
    """Folders or files of the tests that are asked; empty for all."""
    patience: float = 20.0
    """Seconds of tests for a mutant, by how long they take under coverage.py."""
    workers: int = 2


@dataclass
class Tried:
    """A mutant and what came of it."""

    mutant: Mutant
    ended: str
    """`killed`, `timeout`, `survived`, `uncovered` (no quick test runs it), `void` (its test fails as is)."""
    test: str = ""
    tests: int = 0
    """How many tests were chosen for it."""

    @property
    def killed(self) -> bool:
        """Whether a test noticed; a test that never ends is one that fails."""
        return self.ended in ("killed", "timeout")


@dataclass
class Found:
    """What a run found."""

    asked: Asked
    tried: list[Tried] = field(default_factory=list)
    left_out: list[Mutant] = field(default_factory=list)
    """Drawn, and in the table of equivalents."""
    seconds: float = 0.0
    mapped: float = 0.0
    """Seconds of these that the map took."""

    @property
    def counted(self) -> list[Tried]:
        """Those that the score counts, in the order in which they were drawn."""
        return [t for t in self.tried if t.ended != "void"]

    @property
    def score(self) -> float:
        """The part that was killed; 0 where nothing was tried."""
        counted = self.counted
        return sum(t.killed for t in counted) / len(counted) if counted else 0.0


def go(asked: Asked, says: Callable[[str], None]) -> Found:
    """Draw and try, until enough mutants are counted or the time is up."""
    began = now()
    found = Found(asked)
    with Pool(asked.root, asked.workers) as pool:
        stream = _sample(asked, pool.root, found)
        cover = learn(pool, asked.root / ".cache" / "mutants", says, asked.tests)
        found.mapped = now() - began
        gc.freeze()
        until = began + asked.minutes * 60 * _CONFIRMING
        confirmed: dict[str, bool] = {}
        while (missing := asked.count - len(found.counted)) > 0 and now() < until:
            new = list(_try(pool, cover, asked, _first(stream, missing, until), says))
            if not new:
                break
            _confirm(pool, cover, new, confirmed)
            found.tried += new
    found.seconds = now() - began
    return found


def _sample(asked: Asked, root: Path, found: Found) -> Iterator[Mutant]:
    """The mutants of the tree in the order of the seed, without those of the table."""
    table = {entry.key for entry in equivalent.read(root)}
    every = candidates(root, asked.groups, asked.operators, asked.at)
    for mutant in draw(root, every, asked.seed):
        if equivalent.key(mutant) in table:
            found.left_out.append(mutant)
        else:
            yield mutant


def _first(stream: Iterator[Mutant], number: int, until: float) -> Iterator[Mutant]:
    """So many of them, while there is time."""
    while number > 0 and now() < until and (mutant := next(stream, None)) is not None:
        number -= 1
        yield mutant


def _try(
    pool: Pool, cover: Cover, asked: Asked, drawn: Iterable[Mutant], says: Callable[[str], None]
) -> Iterator[Tried]:
    """Run the tests of each mutant; in the order in which they were drawn."""
    tried: list[Tried] = []
    open_ones: dict[int, Tried] = {}

    def works() -> Iterator[Work]:
        for mutant in drawn:
            batches = cover.batches(mutant, asked.patience)
            one = Tried(mutant, "uncovered", tests=sum(map(len, batches)))
            tried.append(one)
            if batches:
                work = Work(partial(_run, batches), partial(_patience, cover), mutant)
                open_ones[id(work)] = one
                yield work
            else:
                says(f"no test runs {mutant}")

    for work in pool.each(works()):
        one = open_ones.pop(id(work))
        one.ended, one.test = work.ended, work.test
        if work.ended == "died":
            one.ended = "killed" if work.test else "void"
            says(f"the tests of {one.mutant} died\n{work.said}")
        elif work.ended == "timeout" and not work.test:
            one.ended = "void"
            says(f"the tests of {one.mutant} did not begin\n{work.said}")
        elif work.ended == "survived":
            one.test = ""
            says(f"survived {one.mutant}")
    yield from tried


def _run(batches: Sequence[Batch], says: Any, temporary: Path) -> None:
    child.run(batches, says, temporary)


def _patience(cover: Cover, name: str) -> Patience:
    """Three times the processor time that the test takes without a mutant, and some; more of the clock's."""
    test = cover.by_name.get(name)
    return Patience(cpu=5.0 + 3 * test.seconds, wall=60.0 + 5 * test.waited) if test else _BETWEEN


def _confirm(pool: Pool, cover: Cover, tried: Iterable[Tried], confirmed: dict[str, bool]) -> None:
    """Run what killed once more without the mutant: a test that fails then as well has noticed nothing."""
    new = {one.test for one in tried if one.killed and one.test} - confirmed.keys()
    modules: dict[str, list[str]] = {}
    for test in sorted(new):
        modules.setdefault(test.split("::")[0], []).append(test)
    chunks = [sorted(modules)[start::8] for start in range(8)]
    works = (
        Work(
            partial(_run_all, [[test for module in chunk for test in modules[module]]]),
            partial(_patience, cover),
        )
        for chunk in chunks
        if chunk
    )
    failed = set()
    for work in pool.each(works):
        failed |= {*work.failed, *([work.test] if work.ended not in ("survived", "killed") else [])}
    confirmed |= {test: test not in failed for test in new}
    for one in tried:
        if one.killed and not confirmed.get(one.test, True):
            one.ended = "void"


def _run_all(batches: Sequence[Batch], says: Any, temporary: Path) -> None:
    child.run(batches, says, temporary, all_of_them=True)
