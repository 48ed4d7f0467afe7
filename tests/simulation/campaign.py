"""Play the whole simulation: fresh seeds, seeds that once found something, kills everywhere, planted bugs.

    python tests/simulation/campaign.py [--hours H] [--seed N] [--jobs N] [--parts LIST] [--most N]
        [-o table|json]

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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also under PYTHONSAFEPATH

from jobs import Job, Result, crashes, planted, quiet, regressions, run, worker
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from summary import Summary

PARTS = ("fresh", "regressions", "crash", "planted")

LENGTHS = (0.25, 0.5, 0.5, 0.5, 1.0, 2.0)
"""Hours of faults that a fresh seed is played for, drawn: short runs are many pools, long ones long lives."""

LOOKS = (2.0, 5.0, 5.0, 5.0, 10.0, 10.0, 10.0, 10.0, 10.0)
"""Seconds between two looks of the daemon at the same thing, drawn: what is rare for one is between two looks
of the other."""

OUTAGES_SHARE = 0.1
"""Share of fresh seeds in which a single part is away (`outages`); the others are the swarm's."""

_SEEDS = range(10**6, 10**9)

_AHEAD = 4
"""Jobs handed to each process before the first of them is done."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What to play. `hours`: simulated hours of fresh seeds, at least; `most`: known runs."""

    base: int
    hours: float
    parts: tuple[str, ...] = PARTS
    most: int | None = None

    def known(self) -> Iterator[Job]:
        """Every run that does not depend on the base seed, or the first of them."""
        return islice(self._known(), self.most)

    def _known(self) -> Iterator[Job]:
        if "planted" in self.parts:
            yield from planted()
        if "regressions" in self.parts:
            yield from regressions()
        if "crash" in self.parts:
            yield from crashes()

    def fresh(self) -> Iterator[Job]:
        """Seeds that nobody played before, without end."""
        return fresh_seeds(random.Random(f"campaign/{self.base}"), _SEEDS)


def fresh_seeds(rng: random.Random, seeds: range) -> Iterator[Job]:
    """Runs of seeds that nobody played before, from these, without end."""
    used = set()
    while True:
        seed, hours, look = rng.choice(seeds), rng.choice(LENGTHS), rng.choice(LOOKS)
        if seed not in used:
            used.add(seed)
            outage = random.Random(f"kind/{seed}").random() < OUTAGES_SHARE
            yield Job(kind="outage" if outage else "fresh", seed=seed, hours=hours, look=look)


def play_all(
    jobs: Iterable[Job], processes: int, enough: Callable[[], bool] = lambda: False
) -> Iterator[Result]:
    """Results as they come. Once there is `enough` no job is begun any more; those that run end and count."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=worker) as pool:
        waiting: set[Future[Result]] = set()
        for job in jobs:
            if enough():
                break
            waiting.add(pool.submit(run, job))
            if len(waiting) >= _AHEAD * processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


class Watch:
    """Shows how far a campaign is: a bar on a terminal, else a line for every tenth; failures at once."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._console = console
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._began = time.monotonic()

    def follow(self, what: str, results: Iterable[Result], share: Callable[[], float]) -> Iterator[Result]:
        """The same results. `share` says how much is done, 0 to 1, once each was taken in."""
        shown = 0
        with self._bar:
            task = self._bar.add_task(what, total=1.0)
            for result in results:
                if not result.good:
                    self.say(f"FAILED {result.job.line}")
                yield result
                done = min(1.0, share())
                self._bar.update(task, completed=done)
                if not self._console.is_terminal and int(done * 10) > shown:
                    shown = int(done * 10)
                    self.say(f"{what}: {shown * 10:3d} %, {time.monotonic() - self._began:.0f} s")
            self._bar.remove_task(task)

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    known = argparse.ArgumentParser(description="Play the whole simulation.")
    known.add_argument("--hours", type=float, default=1000.0, help="simulated hours of fresh seeds")
    known.add_argument("--seed", type=int, help="the base seed (default: the time of day)")
    known.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    known.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)}")
    known.add_argument("--most", type=int, help="how many known runs, from the first (default: all)")
    known.add_argument("--budget", type=float, default=0.0, help="seconds after which to warn at the end")
    known.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return known


def play(campaign: Campaign, processes: int, console: Console) -> Summary:
    """Play a campaign."""
    quiet()
    began, summary, watch = time.monotonic(), Summary(base=campaign.base), Watch(console)
    known = list(campaign.known())
    fresh = f" and fresh seeds for {campaign.hours:g} h" if "fresh" in campaign.parts else ""
    watch.say(f"base seed {campaign.base}: {len(known)} known runs{fresh}, on {processes} processes")
    for result in watch.follow("known runs", play_all(known, processes), lambda: summary.runs / len(known)):
        summary.add(result)
    if "fresh" in campaign.parts and campaign.hours > 0:
        results = play_all(campaign.fresh(), processes, lambda: summary.fresh_hours >= campaign.hours)
        share = lambda: summary.fresh_hours / campaign.hours  # noqa: E731
        for result in watch.follow("fresh seeds", results, share):
            summary.add(result)
    summary.wall = time.monotonic() - began
    return summary


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
    summary = play(
        Campaign(base=base, hours=given.hours, parts=parts, most=given.most),
        given.jobs,
        Console(stderr=given.output == "json"),
    )
    print(summary.json() if given.output == "json" else summary.text())
    if 0 < given.budget < summary.wall:
        print(
            f"warning: {summary.wall:.0f} s, more than the {given.budget:.0f} s that two idle cores need",
            file=sys.stderr,
        )
    return 0 if summary.good else 1


if __name__ == "__main__":
    sys.exit(main())
