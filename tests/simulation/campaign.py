"""Play the whole simulation: fresh seeds, seeds that once found something, kills everywhere, planted bugs.

    python tests/simulation/campaign.py [--hours H] [--seed N] [--jobs N] [--parts LIST] [-o table|json]

Fresh seeds are drawn from a base seed, which is printed: `--seed` with it plays the same runs again. The end
is one line for each invariant, what happened in all, and for every run that failed the one line that plays
it again. Exits with 1 if an invariant broke or a planted bug was not caught.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also under PYTHONSAFEPATH

from jobs import Job, Result, crashes, planted, quiet, regressions, run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from summary import Summary
from swarm import CALM

PARTS = ("fresh", "regressions", "crash", "planted")

LENGTHS = (0.25, 0.5, 0.5, 0.5, 1.0, 2.0)
"""Hours of faults that a fresh seed is played for, drawn: short runs are many pools, long ones long lives."""

_SEEDS = range(10**6, 10**9)

_AHEAD = 4
"""Jobs handed to each process before the first of them is done."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What to play. `hours`: simulated hours of fresh seeds, at least."""

    base: int
    hours: float
    parts: tuple[str, ...] = PARTS

    def jobs(self) -> Iterator[Job]:
        """Every run, those that are known first."""
        if "planted" in self.parts:
            yield from planted()
        if "regressions" in self.parts:
            yield from regressions()
        if "crash" in self.parts:
            yield from crashes()
        if "fresh" in self.parts:
            yield from self.fresh()

    def fresh(self) -> Iterator[Job]:
        """Seeds that nobody played before, as many as the hours need."""
        rng = random.Random(f"campaign/{self.base}")
        planned, used = 0.0, set()
        while planned < self.hours:
            seed, hours = rng.choice(_SEEDS), rng.choice(LENGTHS)
            if seed not in used:
                used.add(seed)
                planned += hours + CALM / 3600.0
                yield Job(kind="fresh", seed=seed, hours=hours)


def play_all(jobs: Iterable[Job], processes: int) -> Iterator[Result]:
    """Results as they come. The list is never held ready as a whole: it may be a simulated year."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=quiet) as pool:
        waiting: set[Future[Result]] = set()
        for job in jobs:
            waiting.add(pool.submit(run, job))
            if len(waiting) >= _AHEAD * processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def watch(results: Iterable[Result], total: int, console: Console) -> Iterator[Result]:
    """Show how far it is: a bar on a terminal, else a line for every tenth. Failures show at once."""
    if console.is_terminal:
        yield from _with_bar(results, total, console)
        return
    began, shown = time.monotonic(), 0
    for number, result in enumerate(results, 1):
        if not result.good:
            console.print(f"FAILED {result.job.line}", soft_wrap=True, highlight=False)
        if number * 10 // total > shown:
            shown = number * 10 // total
            seconds = time.monotonic() - began
            console.print(f"{shown * 10:3d} %  {number} of {total} runs, {seconds:.0f} s", highlight=False)
        yield result


def _with_bar(results: Iterable[Result], total: int, console: Console) -> Iterator[Result]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("simulating", total=total)
        for result in results:
            if not result.good:
                progress.console.print(f"FAILED {result.job.line}", soft_wrap=True, highlight=False)
            progress.advance(task)
            yield result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    known = argparse.ArgumentParser(description="Play the whole simulation.")
    known.add_argument("--hours", type=float, default=1000.0, help="simulated hours of fresh seeds")
    known.add_argument("--seed", type=int, help="the base seed (default: the time of day)")
    known.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    known.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)}")
    known.add_argument("--budget", type=float, default=0.0, help="seconds after which to warn at the end")
    known.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return known


def main() -> int:
    """Play it and say what came of it."""
    known = parser()
    given = known.parse_args()
    parts = tuple(part for part in given.parts.split(",") if part)
    if unknown := set(parts) - set(PARTS):
        known.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    if given.jobs < 1 or given.hours < 0:
        known.error("--jobs must be at least 1 and --hours not negative")
    base = given.seed if given.seed is not None else int(datetime.now(UTC).strftime("%y%m%d%H%M%S"))
    campaign = Campaign(base=base, hours=given.hours, parts=parts)
    console = Console(stderr=given.output == "json")
    began = time.monotonic()
    quiet()
    jobs = list(campaign.jobs())
    seeds = sum(job.kind == "fresh" for job in jobs)
    console.print(
        f"base seed {base}: {len(jobs)} runs, {seeds} of them fresh seeds, on {given.jobs} processes",
        highlight=False,
    )
    summary = Summary(base=base)
    for result in watch(play_all(jobs, given.jobs), len(jobs), console):
        summary.add(result)
    summary.wall = time.monotonic() - began
    print(summary.json() if given.output == "json" else summary.text())
    if 0 < given.budget < summary.wall:
        print(
            f"warning: {summary.wall:.0f} s, more than the {given.budget:.0f} s that two idle cores need",
            file=sys.stderr,
        )
    return 0 if summary.good else 1


if __name__ == "__main__":
    sys.exit(main())
