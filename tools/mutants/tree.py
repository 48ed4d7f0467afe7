"""A copy of the tree for each worker: mutants are put there, and taken back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from mutants.source import Mutant

_serial = count(1)


def _left_out(_folder: str, names: list[str]) -> list[str]:
    """Environments, caches and the like. Compiled modules come along, they save time."""
    return [name for name in names if name.startswith(".")]


def copy(root: Path, where: Path) -> None:
    """Copy a tree; its environment is shared."""
    shutil.copytree(root, where, ignore=_left_out, symlinks=True)
    environment = root / ".venv"
    if environment.exists():
        (where / ".venv").symlink_to(environment.resolve())


class Tree:
    """A copy of the tree in `where`, with a folder `t` beside it for what tests write."""

    def __init__(self, root: Path, where: Path) -> None:
        self.root = where / "tree"
        self.temporary = where / "t"
        copy(root, self.root)

    @contextmanager
    def changed(self, mutant: Mutant | None) -> Iterator[None]:
        """The tree with this mutant in it; without one as it is. What tests wrote is gone afterwards."""
        self.temporary.mkdir()
        try:
            if mutant is None:
                yield
            else:
                with self._changed(mutant):
                    yield
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)
            shutil.rmtree(self.root / ".hypothesis", ignore_errors=True)

    @contextmanager
    def _changed(self, mutant: Mutant) -> Iterator[None]:
        path = self.root / mutant.file
        data, before = path.read_bytes(), path.stat()
        path.write_bytes(mutant.apply(data))
        # A compiled module is known by the time and size of its source: no two mutants have the same time.
        os.utime(path, (1_000_000_000 + next(_serial),) * 2)
        try:
            yield
        finally:
            path.write_bytes(data)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
