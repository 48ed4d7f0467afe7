"""The table of mutants that no test can tell from the original, and of those that harm nobody.

Each is named by its file, its function, and the line before and after, with a reason; not by its number,
which moves. One whose line is no longer there is stale, and a test fails.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mutants.source import Mutant

TABLE = Path("tools/mutants/equivalent.toml")


@dataclass(frozen=True, slots=True)
class Equivalent:
    """An entry of the table."""

    file: str
    function: str
    before: str
    after: str
    why: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a mutant has to match."""
        return self.file, self.function, self.before, self.after


def key(mutant: Mutant) -> tuple[str, str, str, str]:
    """What an entry has to match."""
    return mutant.file, mutant.function, mutant.before, mutant.after


def read(root: Path) -> list[Equivalent]:
    """The table of the tree; empty where there is none.

    Raises ValueError for an entry without all of its keys, or with an empty reason.
    """
    if not (root / TABLE).exists():
        return []
    entries = tomllib.loads((root / TABLE).read_text(encoding="utf-8")).get("mutant", [])
    wanted = {"file", "function", "before", "after", "why"}
    for entry in entries:
        if entry.keys() != wanted or not entry["why"].strip():
            raise ValueError(f"{TABLE}: an entry has {', '.join(sorted(wanted))}, with a reason: {entry}")
    return [Equivalent(**entry) for entry in entries]


def stale(table: Iterable[Equivalent], found: Iterable[Mutant]) -> list[Equivalent]:
    """The entries that no mutant of the tree matches any more."""
    there = {key(mutant) for mutant in found}
    return [entry for entry in table if entry.key not in there]
