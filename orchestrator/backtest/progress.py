"""How far the runs of a study are, on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from cloud.clock import SystemClock
from orchestrator.backtest.study import Progress
from orchestrator.words import plural

_EVERY: Final = 10.0  # s between two plain lines


@contextmanager
def showing(count: int, *, quiet: bool) -> Iterator[Progress]:
    """A listener for `study.run_all` with `count` jobs that shows what it hears."""
    if quiet:
        yield lambda *_: None
    elif sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        with _bar(count) as progress:
            yield progress
    else:
        yield _Lines(count)


class _Lines:
    """A line every ten seconds."""

    def __init__(self, count: int) -> None:
        self._count, self._clock = count, SystemClock()
        self._said = self._clock.now()

    def __call__(self, shares: Sequence[float], finished: int) -> None:
        now = self._clock.now()
        if now < self._said + _EVERY or finished == self._count:
            return
        self._said = now
        share = sum(shares) / self._count
        text = f"simulate: {finished} of {plural(self._count, 'run')} done, {share:.0%} of the time played"
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _bar(count: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(f"0 of {plural(count, 'run')}", total=float(count))

        def progress(shares: Sequence[float], finished: int) -> None:
            bar.update(task, completed=sum(shares), description=f"{finished} of {plural(count, 'run')}")

        yield progress
