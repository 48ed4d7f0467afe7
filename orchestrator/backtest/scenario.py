"""One market to replay: zones with capacity and price over time, and how many nodes are wanted.

A scenario is cut out of a `spotset/1` set (recorded or synthetic) by zones and by a window of time. Time
starts at 0 at the window's begin. Capacity and price are constant between changes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cloud.local.spotset import SpotSet, SpotZone

HOUR = 3600.0


class ScenarioError(ValueError):
    """A scenario that cannot be made: what is wrong and what to do."""


class Tape:
    """One zone's market over the window.

    From `times[i]` on, `capacities[i]` spot nodes can be held, each at `prices[i]` USD/h.
    """

    def __init__(
        self,
        *,
        zone: str,
        region: str,
        on_demand_price: float,
        rows: Sequence[tuple[float, int, float]],
    ) -> None:
        if not rows or rows[0][0] != 0.0:
            raise ScenarioError(f"zone {zone}: the first row of a tape must be at time 0")
        self.zone, self.region, self.on_demand_price = zone, region, on_demand_price
        self.times = [time for time, _, _ in rows]
        self.capacities = [capacity for _, capacity, _ in rows]
        self.prices = [price for _, _, price in rows]
        self._paid = [0.0]
        for (begin, _, price), (end, _, _) in pairwise(rows):
            self._paid.append(self._paid[-1] + price * (end - begin) / HOUR)
        self._below: dict[int, list[int]] = {}

    def index(self, at: float) -> int:
        """The row in force at `at`."""
        return bisect_right(self.times, at) - 1

    def capacity(self, at: float) -> int:
        """Spot nodes that can be held at `at`."""
        return self.capacities[self.index(at)]

    def price(self, at: float) -> float:
        """Spot price at `at`, USD/h."""
        return self.prices[self.index(at)]

    def dollars(self, begin: float, end: float) -> float:
        """What one spot node costs from `begin` to `end`: the price, integrated."""
        return self._paid_until(end) - self._paid_until(begin) if end > begin else 0.0

    def first_below(self, count: int, after: float) -> float:
        """The first change after `after` that leaves room for fewer than `count` nodes; infinite if none."""
        found = self._below.get(count)
        if found is None:
            found = [len(self.times)] * (len(self.times) + 1)
            for i in range(len(self.times) - 1, -1, -1):
                found[i] = i if self.capacities[i] < count else found[i + 1]
            self._below[count] = found
        row = found[self.index(after) + 1]
        return self.times[row] if row < len(self.times) else math.inf

    def changes(self, after: float, until: float) -> Iterable[tuple[float, int]]:
        """(time, capacity) of every change in (after, until]."""
        row = self.index(after) + 1
        while row < len(self.times) and self.times[row] <= until:
            yield self.times[row], self.capacities[row]
            row += 1

    def _paid_until(self, at: float) -> float:
        row = self.index(at)
        return self._paid[row] + self.prices[row] * (at - self.times[row]) / HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A market and a wanted number of nodes for `seconds`. `instance_type` is only a name."""

    name: str
    tapes: tuple[Tape, ...]
    replicas: int
    seconds: float
    instance_type: str = "gpu"
    notes: str = field(default="", compare=False)

    @property
    def on_demand_price(self) -> float:
        """The cheapest on-demand price, USD/h: what costs are measured against."""
        return min(tape.on_demand_price for tape in self.tapes)

    def next_change(self, after: float) -> float:
        """The first time after `after` at which some zone's capacity or price changes; infinite if none."""
        found = math.inf
        for tape in self.tapes:
            row = tape.index(after) + 1
            if row < len(tape.times):
                found = min(found, tape.times[row])
        return found


def cut(
    spotset: SpotSet,
    *,
    replicas: int,
    zones: Sequence[str] = (),
    begin: float = 0.0,
    end: float = 1.0,
    name: str = "",
) -> Scenario:
    """A scenario from a set.

    `zones` names zones, or beginnings of their names; empty takes all. `begin` and `end` are shares of the
    set's time. Raises ScenarioError.
    """
    if not 0.0 <= begin < end <= 1.0:
        raise ScenarioError(f"window {begin}..{end}: give two shares of the time, the first one smaller")
    chosen = [z for z in spotset.zones if not zones or any(z.zone.startswith(part) for part in zones)]
    if not chosen:
        known = ", ".join(z.zone for z in spotset.zones)
        raise ScenarioError(f"set {spotset.name!r} has no zone like {', '.join(zones)}; it has {known}")
    first, last = int(begin * spotset.ticks), int(end * spotset.ticks)
    if last <= first:
        raise ScenarioError(f"set {spotset.name!r}: the window {begin}..{end} holds no tick; widen it")
    return Scenario(
        name=name or spotset.name,
        tapes=tuple(_tape(zone, spotset.gap_seconds, first, last) for zone in chosen),
        replicas=replicas,
        seconds=(last - first) * spotset.gap_seconds,
        instance_type=spotset.notes.get("instance", "gpu"),
    )


def _tape(zone: SpotZone, gap: float, first: int, last: int) -> Tape:
    prices = zone.prices or (zone.spot_price,) * len(zone.data)
    rows: list[tuple[float, int, float]] = []
    for tick in range(first, last):
        row = ((tick - first) * gap, zone.data[tick], prices[tick])
        if not rows or rows[-1][1:] != row[1:]:
            rows.append(row)
    return Tape(zone=zone.zone, region=zone.region, on_demand_price=zone.on_demand_price, rows=rows)
