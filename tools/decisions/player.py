"""Plays runs with this tree and has every turn decided by another version too: what a worker process does.

The daemon of a simulated run decides as ever. What it was given goes to a `Judge`, a process with the other
version, and the plan that comes back is compared with the daemon's own.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from decisions.differences import Difference, compare, same_words
from decisions.judge import find_decide, read_frame, write_frame
from decisions.wire import Decoder, Encoder, Unreadable, dump, plain, schema

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

BATCH = 100
"""Turns that go to the judge at once."""

CLASSES_KEPT = 1_000
"""Classes of differences that are told apart in one run; a version that is wholly another has no more."""

OTHERS = "others"
"""The class of what comes after that."""

CODEC = "told otherwise as JSON"
"""The class of turns that this tree decides otherwise once they were JSON: the comparison's own fault."""


class JudgeDied(Exception):
    """The other version cannot be asked. The message says why."""


class Judge:
    """A process that decides as the version in `tree`. Close it. Raises JudgeDied."""

    def __init__(self, tree: Path) -> None:
        command = [sys.executable, "-P", str(HERE / "judge.py"), str(tree)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lacks: tuple[str, ...] = ()
        self.adds: tuple[str, ...] = ()

    def greet(self, known: Sequence[str]) -> None:
        """Compare the fields of both versions: `lacks` and `adds` say how theirs differ."""
        (answer,) = self._ask(orjson.dumps({"schema": sorted(known)}), 1)
        said = orjson.loads(answer)
        if "broken" in said:
            raise JudgeDied(said["broken"])
        self.lacks, self.adds = tuple(said["lacks"]), tuple(said["adds"])

    def decide(self, turns: Sequence[bytes]) -> list[bytes]:
        """The plans for some turns, as JSON."""
        return self._ask(b"[" + b",".join(turns) + b"]", len(turns))

    def _ask(self, frame: bytes, answers: int) -> list[bytes]:
        sink, source = self._process.stdin, self._process.stdout
        if sink is None or source is None:
            raise JudgeDied("it has no pipes")
        try:
            write_frame(sink, frame)
            sink.flush()
            found = [read_frame(source) for _ in range(answers)]
        except OSError as error:
            raise JudgeDied(f"the other version ended: {error}") from error
        whole = [each for each in found if each is not None]
        if len(whole) < answers:
            raise JudgeDied(f"the other version ended with {self._process.wait()}")
        return whole

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.terminate()
        self._process.wait()


@dataclass(kw_only=True)
class ClassCount:
    """One class of differences. `turns` that have it, in so many `runs`, about so many `nodes`."""

    turns: int = 0
    runs: int = 0
    nodes: int = 0
    example: dict[str, Any] | None = None


@dataclass(kw_only=True)
class Tally:
    """What came of some runs. `words`: turns whose plans say something else and do the same."""

    runs: int = 0
    hours: float = 0.0
    turns: int = 0
    different: int = 0
    words: int = 0
    broken: list[str] = field(default_factory=list)
    classes: dict[str, ClassCount] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()

    def add(self, other: Tally) -> None:
        """Take in what came of another run."""
        for name in ("runs", "hours", "turns", "different", "words"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.broken += other.broken
        self.lacks, self.adds = other.lacks or self.lacks, other.adds or self.adds
        for signature, count in other.classes.items():
            mine = self.classes.setdefault(signature, ClassCount())
            mine.turns, mine.runs, mine.nodes = (
                getattr(mine, name) + getattr(count, name) for name in ("turns", "runs", "nodes")
            )
            mine.example = mine.example or count.example


@dataclass(frozen=True, slots=True)
class _Asked:
    """A turn that the judge is asked about."""

    number: int
    message: bytes
    plan: bytes
    given: tuple[Any, Any, Any]


class Comparison:
    """Compares the turns of one run. Call it with each turn's pool, world, memory and plan, then `finish`."""

    def __init__(self, judge: Judge, decide: Any, run: str) -> None:
        self._judge, self._decide, self._run = judge, decide, run
        self._encoder = Encoder()
        self._waiting: list[_Asked] = []
        self._nodes: dict[str, set[str]] = {}
        self.tally = Tally(runs=1, lacks=judge.lacks, adds=judge.adds)

    def __call__(self, pool: Any, world: Any, memory: Any, plan: Any) -> None:
        """One turn, as it was decided here: a plan, or `{"raised": ...}`."""
        message = self._encoder.turn(pool, world, memory)
        self.tally.turns += 1
        asked = _Asked(self.tally.turns, message, dump(plan), (pool, world, memory))
        self._waiting.append(asked)
        if len(self._waiting) >= BATCH:
            self._flush()

    def finish(self) -> Tally:
        """What came of it."""
        self._flush()
        for signature, nodes in self._nodes.items():
            self.tally.classes[signature].nodes = len(nodes)
        return self.tally

    def _flush(self) -> None:
        asked, self._waiting = self._waiting, []
        if not asked:
            return
        for turn, theirs in zip(asked, self._judge.decide([t.message for t in asked]), strict=True):
            if theirs != turn.plan:
                self._differs(turn, orjson.loads(turn.plan), orjson.loads(theirs))

    def _differs(self, turn: _Asked, here: Any, there: Any) -> None:
        """Two plans are not the same bytes."""
        told = Encoder(inline=True).turn(*turn.given)
        message = orjson.loads(told)
        parts = {part: plain(wire, {}) for part, wire in message["parts"].items()}
        found = compare(here, there, parts)
        if found is None:
            self.tally.words += not same_words(here, there)
            return
        again = self._again(message)
        if (unlike := compare(here, again, parts)) is not None:
            found = dataclasses.replace(unlike, signature=CODEC)
        self._count(turn, found, message, here, there)

    def _again(self, message: Any) -> Any:
        """What this tree decides once the turn was JSON."""
        try:
            given = Decoder(self._decide).turn(message)
        except Unreadable as error:
            return {"unreadable": str(error)}
        try:
            return orjson.loads(dump(self._decide(*given)))
        except Exception as error:  # as the judge does
            return {"raised": f"{type(error).__name__}: {error}"}

    def _count(self, turn: _Asked, found: Difference, message: Any, here: Any, there: Any) -> None:
        signature = found.signature
        if signature not in self.tally.classes and len(self.tally.classes) >= CLASSES_KEPT:
            signature = OTHERS
        count = self.tally.classes.setdefault(signature, ClassCount(runs=1))
        self.tally.different += 1
        count.turns += 1
        self._nodes.setdefault(signature, set()).update(found.nodes)
        if count.example is None:
            count.example = {
                "run": self._run,
                "turn": turn.number,
                "at": turn.given[1].now,
                "signature": found.signature,
                "lines": found.lines,
                "given": message,
                "here": here,
                "there": there,
            }


# -- this tree -------------------------------------------------------------------------------------


@contextmanager
def overheard(comparison: Comparison) -> Iterator[None]:
    """Every turn that a daemon of this process decides meanwhile goes to the comparison."""
    from orchestrator.loop.loop import Loop

    decided = Loop._decide

    def listening(loop: Any, fleet: Any, world: Any) -> Any:
        memory = loop.memory
        try:
            plan = decided(loop, fleet, world)
        except Exception as error:
            raised = {"raised": f"{type(error).__name__}: {error}"}
            comparison(loop.pool, world, memory, raised)
            raise
        comparison(loop.pool, world, memory, plan)
        return plan

    Loop._decide = listening  # type: ignore[method-assign]
    try:
        yield
    finally:
        Loop._decide = decided  # type: ignore[method-assign]


_judge: Judge | None = None
_tree = ROOT


def begin(tree: str) -> None:
    """Set up a worker process; the other version is in `tree`."""
    global _tree
    use_this_tree()
    from jobs import worker

    worker()
    _tree = Path(tree)


def use_this_tree() -> None:
    """Import this tree's packages and its simulation, wherever the tool was started."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "simulation"), str(HERE.parent)]


def _asked() -> tuple[Judge, Any]:
    """The worker's judge, and this tree's own `decide`."""
    global _judge
    decide = find_decide(ROOT)
    if _judge is None:
        _judge = Judge(_tree)
        _judge.greet(sorted(schema(decide)))
    return _judge, decide


def play(job: Any) -> Tally:
    """Play a job of the simulation and compare its turns. Raises JudgeDied."""
    global _judge
    from jobs import run

    judge, decide = _asked()
    comparison = Comparison(judge, decide, job.line)
    try:
        with overheard(comparison):
            result = run(job)
        tally = comparison.finish()
    except BaseException:
        _judge = None  # it may have been left in the middle of an answer
        judge.close()
        raise
    tally.hours = result.seconds / 3600.0
    tally.broken = [] if result.good else [job.line]
    return tally


def read(journal: Path) -> Tally:
    """Compare the turns that a journal has recorded. Raises JournalError, JudgeDied."""
    from orchestrator.journal.file import JournalFile
    from orchestrator.journal.replay import replay
    from policies.actions import Plan

    judge, decide = _asked()
    whole = Tally(runs=0, lacks=judge.lacks, adds=judge.adds)
    with JournalFile.open(journal) as opened:
        comparison, pool = Comparison(judge, decide, str(journal)), None
        for turn in replay(opened):
            if turn.scene is None:
                whole.broken.append(f"{journal} turn {turn.number}: {turn.unreadable}")
                continue
            if pool not in (None, turn.pool):
                whole.add(comparison.finish())
                comparison = Comparison(judge, decide, str(journal))
            pool, scene = turn.pool, turn.scene
            plan = scene.plan if isinstance(scene.plan, Plan) else {"raised": scene.plan.raised}
            comparison(scene.pool, scene.world, scene.memory, plan)
        whole.add(comparison.finish())
    return whole
