"""The bound that no policy can beat: the cheapest fleet for somebody who knows the whole market beforehand.

A linear programme over flows of nodes: launched, starting for the start time (paid, not ready), ready (paid),
stopped. Time is cut at every change of a zone and a start time before and after it, so nothing is lost by
working with segments. Whatever is simplified is simplified in its favour, so its cost is a lower bound:

* nodes may be fractions,
* it never loses a node that it did not mean to lose: it stops those beforehand,
* the fleet at the begin of measuring is there for nothing,
* on-demand is always to be had, in the cheapest zone.

`availability` below 1 allows that share of the wanted node-seconds to be missing.

Needs the optional extra: `pip install spot-orchestrator[simulate]` (highspy, the HiGHS solver).
"""

from __future__ import annotations

import math
import os
import sys
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.backtest.machines import Timings
from orchestrator.backtest.scenario import HOUR, Scenario
from orchestrator.backtest.score import WARM_UP

_LARGE = 60_000
"""Columns above which the interior point method is quicker than the simplex method."""


class SolverMissing(Exception):
    """The solver is not installed; the message says how to install it."""


class Unsolved(Exception):
    """The solver ended without an optimum; the message says with what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The least cost, as a share of all on-demand, and the share of ready node-time on spot."""

    cost_ratio: float
    mean_spot_share: float


class _Rows:
    """A sparse matrix being built row by row, with an upper bound for each row."""

    def __init__(self) -> None:
        self.start: list[int] = [0]
        self.index: list[int] = []
        self.value: list[float] = []
        self.upper: list[float] = []

    def add(self, terms: dict[int, float], upper: float) -> None:
        self.index += terms.keys()
        self.value += terms.values()
        self.start.append(len(self.index))
        self.upper.append(upper)


def bound(
    scenario: Scenario, timings: Timings, *, availability: float = 1.0, warm_up: float = WARM_UP
) -> Bound:
    """Solve the programme. Raises SolverMissing and Unsolved."""
    highspy = _solver()
    model = _Programme(scenario, timings, availability, min(warm_up, scenario.seconds))
    solution = model.solve(highspy)
    wanted = scenario.replicas * (scenario.seconds - model.begin) / HOUR
    spot = sum(
        solution[model.ready(pool, i)] * model.length[i]
        for pool in range(model.zones)
        for i in range(model.segments)
    )
    on_demand = sum(solution[model.ready(model.zones, i)] * model.length[i] for i in range(model.segments))
    dollars = sum(c * x for c, x in zip(model.cost, solution, strict=True))
    return Bound(
        cost_ratio=dollars / (scenario.on_demand_price * wanted),
        mean_spot_share=spot / max(1e-9, spot + on_demand),
    )


def _solver() -> Any:
    try:
        import highspy  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise SolverMissing(
            "the omniscient bound needs the HiGHS solver; install it with "
            "`pip install spot-orchestrator[simulate]`"
        ) from None
    return highspy


@contextmanager
def _no_banner() -> Iterator[None]:
    """The solver greets on the process's standard output before it can be silenced."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class _Programme:
    """The programme. Pools are the zones and, last, on-demand; columns are ready nodes per pool and segment,
    launches per pool and segment, and the shortfall per segment."""

    def __init__(self, scenario: Scenario, timings: Timings, availability: float, begin: float) -> None:
        self.begin, self._scenario = begin, scenario
        self.zones = len(scenario.tapes)
        self._starts = [timings.spot_start] * self.zones + [timings.on_demand_start]
        self._cuts = _cuts(scenario, begin, sorted(set(self._starts)))
        self.segments = len(self._cuts) - 1
        self.length = [b - a for a, b in zip(self._cuts, self._cuts[1:], strict=False)]
        self._arrives = {start: self._arrivals(start) for start in set(self._starts)}
        self._launches: list[list[int]] = []  # per pool, the segments in which a launch can be of use
        self._first_launch: list[int] = []
        column = (self.zones + 1) * self.segments
        for pool in range(self.zones + 1):
            useful = [j for j, a in enumerate(self._arrives[self._starts[pool]]) if a >= 0]
            self._launches.append(useful)
            self._first_launch.append(column)
            column += len(useful)
        self._short, self._columns = column, column + self.segments
        self.cost = self._costs()
        self._rows = _Rows()
        for pool in range(self.zones + 1):
            self._flow(pool)
        for zone in range(self.zones):
            self._room(zone)
        self._cover(availability)

    def ready(self, pool: int, segment: int) -> int:
        """The column of ready nodes."""
        return pool * self.segments + segment

    def _arrivals(self, start: float) -> list[int]:
        """For each segment, the one in which a node launched at its begin becomes ready; -1 if none."""
        found = []
        for cut in self._cuts[:-1]:
            i = bisect_left(self._cuts, cut + start - 1e-6)
            found.append(i if i < self.segments and abs(self._cuts[i] - cut - start) < 1e-6 else -1)
        return found

    def _dollars(self, pool: int, begin: float, end: float) -> float:
        if pool < self.zones:
            return self._scenario.tapes[pool].dollars(begin, min(end, self._scenario.seconds))
        return self._scenario.on_demand_price * (end - begin) / HOUR

    def _costs(self) -> list[float]:
        found = [0.0] * self._columns
        for pool in range(self.zones + 1):
            for i in range(self.segments):
                found[self.ready(pool, i)] = self._dollars(pool, self._cuts[i], self._cuts[i + 1])
            for n, j in enumerate(self._launches[pool]):
                found[self._first_launch[pool] + n] = self._dollars(
                    pool, self._cuts[j], self._cuts[j] + self._starts[pool]
                )
        return found

    def _flow(self, pool: int) -> None:
        """Ready nodes are those that were ready before or were launched a start time ago."""
        arriving: dict[int, list[int]] = {}
        for n, j in enumerate(self._launches[pool]):
            arriving.setdefault(self._arrives[self._starts[pool]][j], []).append(self._first_launch[pool] + n)
        for i in range(1, self.segments):
            terms = {self.ready(pool, i): 1.0, self.ready(pool, i - 1): -1.0}
            terms.update(dict.fromkeys(arriving.get(i, ()), -1.0))
            self._rows.add(terms, 0.0)

    def _room(self, zone: int) -> None:
        """Ready and starting nodes fit into the zone's capacity."""
        terms: list[dict[int, float]] = [{self.ready(zone, i): 1.0} for i in range(self.segments)]
        arrives = self._arrives[self._starts[zone]]
        for n, j in enumerate(self._launches[zone]):
            for i in range(j, arrives[j]):
                terms[i][self._first_launch[zone] + n] = 1.0
        tape = self._scenario.tapes[zone]
        for i, row in enumerate(terms):
            self._rows.add(row, float(tape.capacity(self._cuts[i])))

    def _cover(self, availability: float) -> None:
        """The wanted nodes are ready, but for the allowed shortfall."""
        wanted = float(self._scenario.replicas)
        for i in range(self.segments):
            terms = {self.ready(pool, i): -1.0 for pool in range(self.zones + 1)}
            terms[self._short + i] = -1.0
            self._rows.add(terms, -wanted)
        allowed = (1.0 - availability) * wanted * sum(self.length)
        self._rows.add({self._short + i: length for i, length in enumerate(self.length)}, allowed)

    def solve(self, highspy: Any) -> list[float]:
        """The optimal columns."""
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self._columns, len(self._rows.upper)
        lp.col_cost_ = self.cost
        lp.col_lower_ = [0.0] * self._columns
        lp.col_upper_ = [math.inf] * self._columns
        lp.row_lower_ = [-math.inf] * len(self._rows.upper)
        lp.row_upper_ = self._rows.upper
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = self._rows.start
        lp.a_matrix_.index_ = self._rows.index
        lp.a_matrix_.value_ = self._rows.value
        with _no_banner():
            solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        if self._columns > _LARGE:
            solver.setOptionValue("solver", "ipm")
        solver.passModel(lp)
        solver.run()
        status = solver.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            raise Unsolved(
                f"{self._scenario.name}: the solver ended with {solver.modelStatusToString(status)}"
            )
        return list(solver.getSolution().col_value)


def _cuts(scenario: Scenario, begin: float, starts: list[float]) -> list[float]:
    """Begin, end, and every change of the market with the start times before and after it."""
    cuts = {begin, scenario.seconds}
    shifts = {0.0, *starts, *(-s for s in starts), *(a - b for a in starts for b in starts)}
    for tape in scenario.tapes:
        for change in tape.times:
            cuts.update(change + shift for shift in shifts if begin < change + shift < scenario.seconds)
    return sorted(cuts)
