"""The runs of the simulation as values: each can be played in any process and says how to be played again.

    python tests/simulation/replay.py ...

is the line that plays one job again; `Job.line` gives it. Journals are kept in memory where the machine has a
file system for that: a killed process leaves there what it leaves on a disk, since the kernel outlives it,
and nothing waits for a platter.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import structlog
from outages import play as play_outage
from planted import PLANTED, Planted
from prometheus_client import Counter as CounterMetric
from prometheus_client import Gauge, Histogram
from scenarios import LOOK, SCENARIOS, play
from swarm import REGRESSION_HOURS, REGRESSIONS
from swarm import play as play_seed

from cloud.sim.effects import Point
from orchestrator.journal import store
from orchestrator.simulation.simulate import Outcome

CRASH_SEED = 1
"""The seed with which every scenario is played when its daemon is killed."""

CPU_LIMIT = 300.0
"""CPU-seconds after which a run is given up; the longest take some ten."""

DECODED = 10_000
"""Entries of journals that a process keeps decoded; a run has some hundreds to thousands."""

FRESH = ("fresh", "outage")
"""Kinds of runs whose seeds nobody played before."""

_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run, or for a planted bug as many as it takes.

    `kind`: "fresh" and "regression" play a seed of the swarm for `hours` of faults against a daemon that
    looks every `look` seconds, "outage" one in which a single part is away now and then, "crash" kills the
    daemon of scenario `name` at `point`, "planted" looks for the bug
    `name`.
    """

    kind: str
    seed: int = 0
    hours: float = 0.0
    look: float = LOOK
    name: str = ""
    point: str = ""

    @property
    def line(self) -> str:
        """The command that plays it again, to be run from the repository's root."""
        words = ["python", "tests/simulation/replay.py"]
        if self.kind == "crash":
            words += [self.name, "--seed", str(self.seed)]
            words += ["--kill", self.point] if self.point else []
        elif self.kind == "planted":
            words += ["planted", "--bug", slug(self.name)]
            words += ["--seed", str(self.seed)] if self.seed else []
        else:
            what = "outage" if self.kind == "outage" else "swarm"
            words += [what, "--seed", str(self.seed), "--hours", f"{self.hours:g}"]
            words += ["--look", f"{self.look:g}"] if self.look != LOOK else []
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a job came to. `broken`: names and texts; `caught`: for a planted bug, that it was."""

    job: Job
    broken: tuple[tuple[str, str], ...] = ()
    checked: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    digest: str = ""
    caught: bool = False

    @property
    def good(self) -> bool:
        """Nothing broke; of a planted bug, that it was caught."""
        return self.caught if self.job.kind == "planted" else not self.broken


def quiet() -> None:
    """Set this process up for thousands of runs: no log lines, journals in memory."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    tempfile.tempdir = str(memory_folder())


def worker() -> None:
    """Set up a process that does nothing else.

    Metrics, which nobody reads there, count nothing. An entry of a journal that a daemon reads again after a
    kill is decoded once: events are values.
    """
    quiet()
    store.decode_event = lru_cache(DECODED)(store.decode_event)  # type: ignore[attr-defined]
    for kind, method in ((CounterMetric, "inc"), (Gauge, "set"), (Histogram, "observe")):
        setattr(kind, method, lambda *_, **__: None)


def memory_folder() -> Path:
    """Where state directories of simulated runs belong."""
    return _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def slug(name: str) -> str:
    """A name as one word of a command line."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def bug(name: str) -> Planted:
    """The planted bug of a name or slug. Raises KeyError."""
    for planted in PLANTED:
        if name in (planted.name, slug(planted.name)):
            return planted
    raise KeyError(name)


# -- the lists -------------------------------------------------------------------------------------


def regressions() -> list[Job]:
    """Seeds that once found something."""
    return [Job(kind="regression", seed=seed, hours=REGRESSION_HOURS) for seed in REGRESSIONS]


def planted() -> list[Job]:
    """Every bug that must be caught."""
    return [Job(kind="planted", name=p.name) for p in PLANTED]


def crashes(names: Iterable[str] = tuple(SCENARIOS)) -> Iterator[Job]:
    """Each scenario unharmed, then killed before, in and after every effect that it has."""
    for name in names:
        yield Job(kind="crash", name=name, seed=CRASH_SEED)
        for point in outcome_of(Job(kind="crash", name=name, seed=CRASH_SEED)).points:
            yield Job(kind="crash", name=name, seed=CRASH_SEED, point=str(point))


# -- playing ---------------------------------------------------------------------------------------


class TooLong(KeyboardInterrupt):
    """A run used up its CPU time. The one kind of exception that no task and no event loop holds up."""


def run(job: Job) -> Result:
    """Play a job. An exception is a violation, and so is a run without end: the other runs go on."""
    began = time.process_time()
    try:
        with _limited():
            result = _planted(job) if job.kind == "planted" else _result(job, outcome_of(job))
    except (Exception, TooLong) as error:
        result = Result(job=job, broken=(("nothing-unhandled", f"{type(error).__name__}: {error}"),))
    return replace(result, cpu=time.process_time() - began)


@contextmanager
def _limited() -> Iterator[None]:
    """Raise TooLong once the block has used `CPU_LIMIT` seconds of CPU time."""

    def ring(*_: object) -> None:
        raise TooLong(f"no end after {CPU_LIMIT:g} CPU-seconds")

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def outcome_of(job: Job) -> Outcome:
    """One run of a job; of a planted bug the one with the job's seed."""
    if job.kind in ("fresh", "regression"):
        return play_seed(job.seed, hours=job.hours, look=job.look)
    if job.kind == "outage":
        return play_outage(job.seed, hours=job.hours, look=job.look)
    with tempfile.TemporaryDirectory() as folder:
        if job.kind == "planted":
            return bug(job.name).play(Path(folder), seed=max(1, job.seed))
        point = Point.parse(job.point) if job.point else None
        return play(SCENARIOS[job.name], Path(folder), seed=job.seed, crash=point)


def judge(job: Job, outcome: Outcome) -> tuple[tuple[str, str], ...]:
    """What is wrong with a run: names of invariants, and what broke them."""
    broken = [(b.name, b.text) for b in outcome.broken]
    return tuple(broken + (_crashed(job, outcome) if job.kind == "crash" else []))


def _result(job: Job, outcome: Outcome) -> Result:
    checked = outcome.checked + Counter({"nothing-unhandled": 1, "daemon-lives": outcome.boots})
    if job.kind == "crash":
        checked["same-launches"] += 1
        checked["repeatable"] += bool(job.point)
    return Result(
        job=job,
        broken=judge(job, outcome),
        checked=checked,
        happened=outcome.happened,
        launches=outcome.launches,
        seconds=outcome.seconds,
        digest=outcome.digest,
    )


def _crashed(job: Job, outcome: Outcome) -> list[tuple[str, str]]:
    """What is wrong with a run that was killed somewhere, besides invariants of the world."""
    found = []
    needed = SCENARIOS[job.name].launches
    if outcome.launches != needed:
        found.append(("same-launches", f"{outcome.launches} machines were launched, {needed} are needed"))
    if not job.point:
        return found
    if outcome.killed_at is None or outcome.killed_at.number != Point.parse(job.point).effect:
        text = "the daemon was not killed: the run before the point was another one"
        found.append(("repeatable", text))
    elif outcome.boots != 2:
        found.append(("daemon-lives", f"{outcome.boots} daemons were started, not 2"))
    return found


def _planted(job: Job) -> Result:
    planted = bug(job.name)
    outcome = planted.caught()
    if outcome is None:
        text = f"a planted bug was not caught within {planted.within} seeds: {planted.name}"
        return Result(job=job, broken=((planted.invariant, text),))
    return Result(job=job, caught=True, digest=outcome.digest)
