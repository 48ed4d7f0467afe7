"""Which tests run which lines: from one run under coverage.py, kept by what it was made from.

A module of tests is run again when it, what it imports of the tests, or a file whose lines it ran
has changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mutants.child import Batch, cover
from mutants.groups import files
from mutants.pool import Patience, Pool, Work
from mutants.source import Mutant

TESTS = ("tests/policies", "tests/orchestrator", "tests/cloud", "tests/simulation")
NOT_ASKED = ("tests/orchestrator/backtest", "tests/orchestrator/demo")  # they play whole pools
"""Where tests of parts are. Those of `tests/system` start processes, and a mutant has no time for that."""

_CHUNK = 16
"""Modules in a child: it imports the product once for all of them."""

_COVERING = Patience(cpu=300.0, wall=1800.0)
"""What such a child may take; a module that hangs costs its chunk the map."""

_OPENING = 0.5
"""Seconds that a module of tests takes to import, about."""


@dataclass(frozen=True, slots=True)
class Case:
    """A test that passes without any change."""

    name: str
    seconds: float
    """Its processor time, under coverage.py."""
    waited: float
    """How long it took by the clock on the wall."""
    lines: Mapping[str, bytes]
    """For each file a bit for each line that the test ran, the lowest bit of the first byte for line 0."""

    @property
    def module(self) -> str:
        """The file in which it stands."""
        return self.name.split("::")[0]

    @property
    def costs(self) -> float:
        """Seconds of a worker, about: on a busy machine what was waited is mostly for a turn."""
        return self.seconds + self.waited / 10

    def runs(self, file: str, lines: Iterable[int]) -> bool:
        """Whether it runs one of these lines."""
        bits = self.lines.get(file, b"")
        return any(n // 8 < len(bits) and bits[n // 8] >> n % 8 & 1 for n in lines)


class Cover:
    """The map from lines to tests of one tree."""

    def __init__(self, root: Path, tests: Iterable[Case]) -> None:
        self._root = root
        self.tests = list(tests)
        self._by_file: dict[str, list[Case]] = {}
        for test in self.tests:
            for file in test.lines:
                self._by_file.setdefault(file, []).append(test)
        self.by_name = {test.name: test for test in self.tests}
        self._texts = {name: (root / name).read_text(encoding="utf-8").splitlines() for name in files(root)}

    def reached(self, mutant: Mutant) -> list[Case]:
        """The tests that run the mutant's lines.

        What gets a value on import is run by all tests or none: for it, those that run a line with its name.
        """
        if not mutant.name:
            return [t for t in self._by_file.get(mutant.file, []) if t.runs(mutant.file, mutant.lines)]
        word = re.compile(rf"\b(?:{'|'.join(map(re.escape, mutant.name.split()))})\b")
        found: dict[str, Case] = {}
        for file, lines in self._texts.items():
            named = [number for number, text in enumerate(lines, 1) if word.search(text)]
            if file == mutant.file and mutant.name == "*":
                named = list(range(len(lines) + 1))
            for test in self._by_file.get(file, []) if named else []:
                if test.runs(file, named):
                    found[test.name] = test
        return list(found.values()) or [t for t in self.tests if _own(mutant.file, t.module) < 2]

    def batches(self, mutant: Mutant, patience: float) -> list[Batch]:
        """The tests to run, the module's own first and the quickest first, within `patience` seconds."""
        modules: dict[str, list[Case]] = {}
        for test in self.reached(mutant):
            modules.setdefault(test.module, []).append(test)
        order = sorted(
            modules,
            key=lambda m: (
                _own(mutant.file, m),
                _OPENING + sum(t.costs for t in modules[m]) / len(modules[m]),
                m,
            ),
        )
        chosen: list[list[str]] = [[], [], []]
        left = patience
        for module in order:
            left -= _OPENING
            for test in sorted(modules[module], key=lambda t: (t.waited, t.name)):
                if test.costs > left and any(chosen):
                    break
                left -= test.costs
                chosen[_own(mutant.file, module)].append(test.name)
            if left <= 0:
                break
        return [names for names in chosen if names]


def _own(file: str, module: str) -> int:
    """How near a module of tests is to a file: 0 its own, 1 in the same room, 2 elsewhere."""
    path, tests = Path(file), Path(module)
    stem = tests.stem.removeprefix("test_")
    room = path.parts[: 2 if path.parts[0] != "policies" else 1]
    near = tests.parts[1 : 1 + len(room)] == room if len(path.parts) > len(room) else len(tests.parts) == 3
    named = path.stem == stem and path.parts[0] == tests.parts[1]  # in whatever room of the same layer
    if named or (near and (path.stem in stem or stem in path.stem)):
        return 0
    return 1 if near else 2


def modules(root: Path, only: Sequence[str] = ()) -> list[str]:
    """The modules of tests that are asked; `only` names folders or files of them."""
    found = (p.relative_to(root).as_posix() for place in TESTS for p in (root / place).rglob("test_*.py"))
    return sorted(n for n in found if not n.startswith(NOT_ASKED) and (not only or n.startswith(tuple(only))))


class Cache:
    """What was found for each module of tests, in a folder, under a digest of what it was made from."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self._digests: dict[str, str] = {}
        support = (root / "tests" / "support").glob("*.py")
        self._support = {path.stem: path.relative_to(root).as_posix() for path in support}

    def read(self, module: str) -> list[Case] | None:
        """The tests of a module; none where anything changed since, or nobody asked yet."""
        try:
            kept = json.loads(self._path(module).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if any(self._digest(file) != digest for file, digest in kept["made_from"].items()):
            return None
        return [
            Case(name, seconds, waited, {file: bytes.fromhex(bits) for file, bits in lines.items()})
            for name, (seconds, waited), lines in kept["tests"]
        ]

    def write(
        self, module: str, seconds: Mapping[str, Sequence[float]], lines: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Keep what was found of a module."""
        shared = lines.get(module, {})
        own = {name: _both(lines.get(name, {}), shared) for name in seconds if name.split("::")[0] == module}
        made_from = {*self._tests_behind(module), *(file for ran in own.values() for file in ran)}
        kept = {
            "made_from": {file: self._digest(file) for file in sorted(made_from)},
            "tests": [[name, [round(t, 4) for t in seconds[name]], ran] for name, ran in own.items()],
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(module).write_text(json.dumps(kept), encoding="utf-8")

    def _path(self, module: str) -> Path:
        return self._folder / f"{module.removesuffix('.py').replace('/', '.')}.json"

    def _digest(self, file: str) -> str:
        if file not in self._digests:
            path = self._root / file
            self._digests[file] = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
        return self._digests[file]

    def _tests_behind(self, module: str) -> set[str]:
        """The module, the conftests above it, and the files of `tests/support` that any of them names."""
        above = [parent / "conftest.py" for parent in Path(module).parents]
        found = {module, *(path.as_posix() for path in above if (self._root / path).exists())}
        left = list(found)
        while left:
            words = set(re.findall(r"(?m)^\s*(?:from|import)\s+(\w+)", (self._root / left.pop()).read_text()))
            new = {self._support[word] for word in words & self._support.keys()} - found
            found |= new
            left += new
        return found


def _both(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """The lines of both, as bits in hexadecimal."""
    found = dict(one)
    for file, bits in other.items():
        pair = [bytearray.fromhex(found.get(file, "")), bytearray.fromhex(bits)]
        pair.sort(key=len)
        for place, byte in enumerate(pair[0]):
            pair[1][place] |= byte
        found[file] = pair[1].hex()
    return found


def learn(pool: Pool, folder: Path, says: Callable[[str], None], only: Sequence[str] = ()) -> Cover:
    """The map of the pool's tree, of `only` these tests; what is not kept in the folder is run."""
    root = pool.root
    cache = Cache(root, folder)
    kept = {module: cache.read(module) for module in modules(root, only)}
    missing = [module for module, tests in kept.items() if tests is None]
    if missing:
        says(f"running {len(missing)} modules of tests under coverage")
    for work in pool.each(_covering(root, missing, cache)):
        if work.ended != "covered":
            says(f"no map of some modules: {work.ended}\n{work.said}")
    tests = [test for module in kept for test in (kept[module] or cache.read(module) or [])]
    return Cover(root, tests)


def _covering(root: Path, missing: Sequence[str], cache: Cache) -> Iterator[Work]:
    """The work of covering: some modules at a time."""
    sources = sorted(files(root))
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        yield Work(
            does=partial(_cover, chunk, sources),
            patience=lambda _: _COVERING,
            takes=partial(_take, chunk, cache),
        )


def _cover(chunk: Sequence[str], sources: Sequence[str], says: Any, temporary: Path) -> None:
    cover(chunk, sources, says, temporary)


def _take(chunk: Sequence[str], cache: Cache, temporary: Path) -> None:
    """Keep what a child found."""
    found = temporary / "covered.json"
    if found.exists():
        covered = json.loads(found.read_text(encoding="utf-8"))
        for module in chunk:
            cache.write(module, covered["seconds"], covered["lines"])
