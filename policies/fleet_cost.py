"""What a fleet of spot and on-demand nodes costs and risks: the arithmetic of `policies.adaptive`.

What it decides: nothing. Why: the search over fleets asks for many values of one formula, which is easier to
check by hand apart from turns and fleets.
Never: anything but its arguments.

Example:
    >>> with_zone([1.0], 0.5, 0.5, 2)
    [0.5, 0.25, 0.25]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.model import Offering

TOGETHER = 0.3
"""Chance that what takes a zone strikes its region: then other zones there are lost at the same moment."""

STEPS = 50
"""Steps in which the number of missing nodes is counted: large pools are judged in bundles of nodes."""

_NEGLIGIBLE = 1e-9


@dataclass(slots=True)
class Zone:
    """One spot placement as the search sees it."""

    offering: Offering
    price: float  # a share of the on-demand price
    rate: float  # losses per hour now: the hazard
    outlook: float  # losses per hour of use over the hours to come
    down: float  # chance that a loss is under way and not yet replaced, by the rate
    down_later: float  # the same by the outlook
    whole: float  # chance that a loss takes all nodes
    open: bool
    count: int = 0  # nodes there, ready or coming
    present: int = 0  # nodes that the cloud describes
    working: int = 0  # nodes that have booted


class FleetCost:
    """J for a fleet: what it costs and what it risks. All in shares of the on-demand price per hour."""

    def __init__(
        self,
        zones: Sequence[Zone],
        *,
        wanted: int,
        penalty: float,
        churn: float,
        free: int = 0,
        floor: int = 0,
    ) -> None:
        self.zones = zones
        self._regions: dict[str, list[int]] = {}
        for i, zone in enumerate(zones):
            self._regions.setdefault(zone.offering.placement.region, []).append(i)
        self._region_known: dict[tuple[bool, str, tuple[int, ...]], list[float]] = {}
        self._others_known: dict[tuple[bool, str, tuple[int, ...]], list[float]] = {}
        self.later = True  # judge by the outlook; False: by the hazard now
        self.counts = [z.count for z in zones]
        self._wanted, self._penalty, self._churn = wanted, penalty, churn
        self._free, self._floor = free, floor
        self._grain = max(1, wanted // STEPS)

    @property
    def spot(self) -> int:
        """Spot nodes in all."""
        return sum(self.counts)

    def missing(self, *, without: str = "") -> list[float]:
        """The distribution of the number of nodes missing, over all regions but one."""
        key = self.later, without, tuple(self.counts)
        found = self._others_known.get(key)
        if found is None:
            found = [1.0]
            for region in self._regions:
                if region != without:
                    found = convolve(found, self._in_region(region))
            self._others_known[key] = found
        return found

    def _in_region(self, region: str) -> list[float]:
        """The distribution of the number of nodes missing in one region.

        A strike hits the zone most at risk for sure and the others in proportion to their risk; the chance
        of each zone by itself stays what it is.
        """
        members = self._regions[region]
        key = self.later, region, tuple(self.counts[i] for i in members)
        found = self._region_known.get(key)
        if found is not None:
            return found
        held = [(self.zones[i], self.counts[i]) for i in members if self.counts[i]]
        down = [zone.down_later if self.later else zone.down for zone, _ in held]
        top = max(down, default=0.0)
        strike = TOGETHER * top if len(held) > 1 else 0.0
        calm, struck = [1.0], [1.0]
        for (zone, count), chance in zip(held, down, strict=True):
            share = chance / top if top else 0.0
            alone = (chance - strike * share) / (1.0 - strike)
            calm = with_zone(calm, alone, zone.whole, count, self._grain)
            struck = with_zone(struck, share, zone.whole, count, self._grain)
        found = [(1.0 - strike) * a + strike * b for a, b in zip(calm, struck, strict=True)]
        self._region_known[key] = found
        return found

    def spot_cost(self) -> float:
        """What the spot nodes cost, their expected replacement included."""
        return sum(
            count * (z.price + self._churn * z.outlook)
            for z, count in zip(self.zones, self.counts, strict=True)
            if count
        )

    def value(self, missing: Sequence[float], spot: int, spot_cost: float, on_demand: int) -> float:
        """J."""
        base = self._wanted - spot - on_demand
        short = 0.0
        for lost, chance in enumerate(missing):
            nodes = base + max(0, lost * self._grain - self._free)
            if nodes > 0:
                short += chance * nodes
        return spot_cost + on_demand + self._penalty * short

    def best(self, missing: Sequence[float], spot: int, spot_cost: float) -> tuple[float, int]:
        """The least J over the number of on-demand nodes, and that number.

        J is convex in it: one more node pays as long as the chance that it is needed is over 1 / penalty.
        """
        needed, chance = self._floor, 0.0
        for lost in reversed(range(len(missing))):
            chance += missing[lost]
            if chance * self._penalty > 1.0:
                needed = self._wanted - spot + max(0, lost * self._grain - self._free)
                break
        on_demand = min(max(self._floor, needed), 2 * self._wanted)
        return self.value(missing, spot, spot_cost, on_demand), on_demand

    def here(self) -> float:
        """The least J with the spot nodes as they are."""
        return self.best(self.missing(), self.spot, self.spot_cost())[0]

    def moved(self, source: int, target: int) -> float:
        """The least J with one spot node of one zone in another."""
        self.counts[source] -= 1
        self.counts[target] += 1
        found = self.here()
        self.counts[source] += 1
        self.counts[target] -= 1
        return found

    def gain_of_one_more(self, i: int, here: float) -> float:
        """By how much one more node in zone i lowers J."""
        zone = self.zones[i]
        region = zone.offering.placement.region
        others = self.missing(without=region)
        self.counts[i] += 1
        then = convolve(others, self._in_region(region))
        self.counts[i] -= 1
        cost = self.spot_cost() + zone.price + self._churn * zone.outlook
        return here - self.best(then, self.spot + 1, cost)[0]


def convolve(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """The distribution of the sum of two independent numbers.

    Example:
        >>> convolve([0.5, 0.5], [0.5, 0.5])
        [0.25, 0.5, 0.25]
    """
    found = [0.0] * (len(one) + len(other) - 1)
    for i, a in enumerate(one):
        if a >= _NEGLIGIBLE:
            for j, b in enumerate(other):
                found[i + j] += a * b
    return found


def with_zone(missing: Sequence[float], down: float, whole: float, count: int, grain: int = 1) -> list[float]:
    """The distribution of missing nodes, in steps of `grain`, with one zone of `count` nodes added.

    A loss of fewer nodes than a step is a step that is as much less likely: the mean stays.
    """
    every = down * whole if count > 1 else 0.0
    one = (down - every) / grain
    steps = -(-count // grain)
    found = [0.0] * (len(missing) + max(1, steps))
    stay = 1.0 - every - one
    for lost, chance in enumerate(missing):
        if chance < _NEGLIGIBLE:
            continue
        found[lost] += stay * chance
        found[lost + 1] += one * chance
        if every:
            found[lost + steps] += every * chance
    return found
