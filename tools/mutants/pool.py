"""The workers: each has a copy of the tree, and forks a child for each piece of work.

A child that says nothing for too long is ended with everything it started. Nothing is left when the pool
closes: no process, and no file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import secrets
import selectors
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from mutants.child import PRELOADED, Says, now, settle
from mutants.source import Mutant
from mutants.tree import Tree, copy

MARK = "ORCHESTRATOR_MUTANT"


_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Patience:
    """How much a test may take: seconds of processor time, not lost on a busy machine, and of the clock."""

    cpu: float
    wall: float


@dataclass
class Work:
    """What a child does, and what came of it."""

    does: Callable[[Says, Path], None]
    """Called in the child with what it says things by, and a folder for its files."""
    patience: Callable[[str], Patience]
    """What a test may take; the empty name is for what stands between tests."""
    mutant: Mutant | None = None
    takes: Callable[[Path], object] = lambda _temporary: None
    """Called in the parent before the child's files go."""
    ended: str = ""
    """`killed`, `survived` or `covered` as the child says, `timeout`, or `died`."""
    test: str = ""
    """The test that failed first, or that ran when the time was up."""
    failed: list[str] = field(default_factory=list)
    said: str = ""
    """The end of what the child printed."""


@dataclass
class _Child:
    work: Work
    pid: int
    pipe: int
    patience: Patience
    clean: contextlib.ExitStack
    rest: bytes = b""
    since: float = field(default_factory=now)
    spent: float = 0.0

    def begins(self, test: str) -> None:
        """It says that this test begins."""
        self.patience = self.work.patience(test)
        self.since, self.spent = now(), self._cpu()

    def overdue(self) -> bool:
        """Whether what runs takes longer than it may."""
        return now() - self.since > self.patience.wall or self._cpu() - self.spent > self.patience.cpu

    def _cpu(self) -> float:
        """The processor time of the process so far, without what it started."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return self.spent
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK


def _preload(root: Path) -> None:
    """Import what the tree imports of others, so that no child has to."""
    imported = {"hypothesis", "pytest_asyncio"}  # pytest itself imports them
    for folder in ("policies", "orchestrator", "cloud", "tests"):
        for path in (root / folder).rglob("*.py"):
            imported |= set(re.findall(r"(?m)^\s*(?:from|import)\s+(\w+)", path.read_text(encoding="utf-8")))
    for name in PRELOADED:
        if name.split(".")[0] in imported:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


class Pool:
    """Copies of the tree in a temporary folder, and the children that work in them."""

    def __init__(self, root: Path, workers: int) -> None:
        self._root = root
        self._workers = workers
        self._mark = secrets.token_hex(8)
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Pool:
        _preload(self._root)
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        self.root = self.folder / "as-it-was"
        """The tree as it was when the pool opened: people go on working in theirs."""
        try:
            copy(self._root, self.root)
            self.trees = [Tree(self.root, self._slot(number)) for number in range(self._workers)]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for slot in list(self._children):
            self._end(slot)
        self._sweep(self._mark)
        self._selector.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _slot(self, number: int) -> Path:
        folder = self.folder / str(number)
        folder.mkdir()
        return folder

    def each(self, works: Iterator[Work]) -> Iterator[Work]:
        """Do all of them, as many at a time as there are workers; each comes back when it is done."""
        more = True
        while more or self._children:
            for slot in range(self._workers):
                if more and slot not in self._children:
                    work = next(works, None)
                    if work is None:
                        more = False
                    else:
                        self._start(slot, work)
            yield from self._wait()

    def _start(self, slot: int, work: Work) -> None:
        tree = self.trees[slot]
        clean = contextlib.ExitStack()
        clean.enter_context(tree.changed(work.mutant))
        read, write = os.pipe()
        os.set_inheritable(write, False)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(read)
                settle(tree.root, tree.temporary, f"{self._mark}-{slot}", self.folder / f"{slot}.log")
                work.does(Says(write), tree.temporary)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)
        os.set_blocking(read, False)
        self._children[slot] = _Child(work, pid, read, work.patience(""), clean)
        self._selector.register(read, selectors.EVENT_READ, slot)

    def _wait(self) -> Iterator[Work]:
        """Read what children say for a moment; give those that ended."""
        if not self._children:
            return
        for key, _ in self._selector.select(1.0):
            if self._heard(self._children[key.data]):
                yield self._end(key.data)
        for slot, child in list(self._children.items()):
            if child.overdue():
                child.work.ended = "timeout"
                yield self._end(slot)

    def _heard(self, child: _Child) -> bool:
        """Take up what a child said; whether that was all."""
        try:
            data = os.read(child.pipe, 1 << 16)
        except BlockingIOError:
            return False
        *lines, child.rest = (child.rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            work = child.work
            if "starts" in said:
                work.test = said["starts"] or work.test
                child.begins(said["starts"])
            elif "fails" in said:
                work.failed.append(said["fails"])
            else:
                work.ended = said["done"]
        return not data or bool(child.work.ended)  # what it started may hold the pipe longer

    def _end(self, slot: int) -> Work:
        """End a child with all it started; its tree is as before."""
        child = self._children.pop(slot)
        work = child.work
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)  # it may not have a group of its own yet
        os.waitpid(child.pid, 0)
        self._sweep(f"{self._mark}-{slot}")
        work.ended = work.ended or "died"
        if work.failed:
            work.test = work.failed[0]
        log = self.folder / f"{slot}.log"
        if log.exists():
            work.said = log.read_text(encoding="utf-8", errors="replace")[-4000:]
        with child.clean:
            work.takes(self.trees[slot].temporary)
        return work

    def _sweep(self, mark: str) -> None:
        """End every process that has this mark in its environment."""
        wanted = f"{MARK}={mark}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if any(part.startswith(wanted) for part in (entry / "environ").read_bytes().split(b"\0")):
                        os.kill(int(entry.name), signal.SIGKILL)
