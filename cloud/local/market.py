"""A spot market: how many nodes each zone can hold and what they cost, over market time. Pure.

Market time is in seconds and starts at 0. Capacity and price are constant between changes. A market with a
period starts again from its beginning after it, so a short recording can feed a long run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cloud.local.spotset import SpotSet

_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneSeries:
    """One zone's market: from `times[i]` on, `capacities[i]` spot nodes can be held at `prices[i]` USD/h."""

    zone: str
    region: str
    on_demand_price: float
    times: tuple[float, ...]
    capacities: tuple[int, ...]
    prices: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.times), len(self.capacities), len(self.prices)}
        if lengths != {len(self.times)} or not self.times or self.times[0] != 0.0:
            raise ValueError(
                f"zone {self.zone}: times, capacities and prices need equal lengths, from time 0 on"
            )
        if any(later <= earlier for earlier, later in zip(self.times, self.times[1:], strict=False)):
            raise ValueError(f"zone {self.zone}: times must rise")


class SpotMarket:
    """Capacity and price of every zone at any market time.

    `period` (s) makes the series repeat; None holds the last values for ever. `start` (s) is the place in
    the series that market time 0 falls on.
    """

    def __init__(
        self, zones: Iterable[ZoneSeries], *, period: float | None = None, start: float = 0.0
    ) -> None:
        self._zones = {series.zone: series for series in zones}
        if not self._zones:
            raise ValueError("a market needs at least one zone")
        if period is not None and period <= max(series.times[-1] for series in self._zones.values()):
            raise ValueError("the period must be longer than the series")
        self._period = period
        self._start = start
        self._changes = sorted({time for series in self._zones.values() for time in series.times})

    @property
    def zones(self) -> tuple[ZoneSeries, ...]:
        """The zones, in the order they were given."""
        return tuple(self._zones.values())

    def zone(self, name: str) -> ZoneSeries:
        """One zone's series. Raises KeyError when the market has no such zone."""
        return self._zones[name]

    def capacity(self, zone: str, at: float) -> int:
        """Spot nodes that the zone can hold at market time `at`."""
        series = self._zones[zone]
        return series.capacities[self._index(series, at)]

    def spot_price(self, zone: str, at: float) -> float:
        """Spot price in USD/h at market time `at`."""
        series = self._zones[zone]
        return series.prices[self._index(series, at)]

    def next_change(self, at: float) -> float:
        """The first market time after `at` at which any zone may change; infinite when none will."""
        cycle, place = self._place(at)
        index = bisect_right(self._changes, place)
        if index < len(self._changes):
            change = at + (self._changes[index] - place)
        elif self._period is None:
            return math.inf
        else:
            change = (cycle + 1) * self._period - self._start
        # Rounding may put the change on `at` itself; who follows the changes must always get on.
        return max(change, math.nextafter(at, math.inf))

    def spot_dollars(self, zone: str, begin: float, end: float) -> float:
        """What one spot node in the zone costs from market time `begin` to `end`: the price, integrated."""
        total, at = 0.0, begin
        series = self._zones[zone]
        while at < end:
            cycle, place = self._place(at)
            index = bisect_right(series.times, place) - 1
            if index + 1 < len(series.times):
                until = at + (series.times[index + 1] - place)
            elif self._period is None:
                until = end
            else:
                until = (cycle + 1) * self._period - self._start
            # Rounding may put `until` on `at` itself; the smallest step forward keeps the sum going.
            until = min(end, max(until, math.nextafter(at, math.inf)))
            total += series.prices[index] * (until - at) / _HOUR
            at = until
        return total

    def _place(self, at: float) -> tuple[float, float]:
        """The cycle that market time `at` falls in, and the place in the series."""
        place = max(0.0, at + self._start)
        if self._period is None:
            return 0.0, place
        cycle = math.floor(place / self._period)
        return float(cycle), min(max(0.0, place - cycle * self._period), self._period)

    def _index(self, series: ZoneSeries, at: float) -> int:
        return bisect_right(series.times, self._place(at)[1]) - 1


def constant(
    zones: Sequence[tuple[str, int, float, float]], *, region: str = "local-1", start: float = 0.0
) -> SpotMarket:
    """A market that never changes, from (zone, capacity, spot price, on-demand price) rows."""
    return SpotMarket(
        (
            ZoneSeries(
                zone=zone,
                region=region,
                on_demand_price=on_demand,
                times=(0.0,),
                capacities=(capacity,),
                prices=(spot,),
            )
            for zone, capacity, spot, on_demand in zones
        ),
        start=start,
    )


def scripted(
    zones: Mapping[str, Sequence[tuple[float, int, float]]],
    *,
    on_demand_price: float = 3.0,
    region: str = "local-1",
) -> SpotMarket:
    """A market written down by hand, for tests: for every zone (time, capacity, spot price) from time 0."""
    return SpotMarket(
        ZoneSeries(
            zone=zone,
            region=region,
            on_demand_price=on_demand_price,
            times=tuple(time for time, _, _ in steps),
            capacities=tuple(capacity for _, capacity, _ in steps),
            prices=tuple(price for _, _, price in steps),
        )
        for zone, steps in zones.items()
    )


def from_spotset(spotset: SpotSet, *, zones: Sequence[str] = (), start: float = 0.0) -> SpotMarket:
    """A market that replays a `spotset/1` set, again and again. `zones` picks some; empty takes all.

    Raises ValueError when a zone is asked for that the set has not.
    """
    known = [zone.zone for zone in spotset.zones]
    if unknown := sorted(set(zones) - set(known)):
        raise ValueError(f"set {spotset.name!r} has no zone {', '.join(unknown)}; it has {', '.join(known)}")
    series = []
    for zone in spotset.zones:
        if zones and zone.zone not in zones:
            continue
        prices = zone.prices or (zone.spot_price,) * spotset.ticks
        rows = list(zip(zone.data, prices, strict=True))
        keep = [tick for tick, row in enumerate(rows) if tick == 0 or row != rows[tick - 1]]
        series.append(
            ZoneSeries(
                zone=zone.zone,
                region=zone.region,
                on_demand_price=zone.on_demand_price,
                times=tuple(tick * spotset.gap_seconds for tick in keep),
                capacities=tuple(rows[tick][0] for tick in keep),
                prices=tuple(rows[tick][1] for tick in keep),
            )
        )
    return SpotMarket(series, period=spotset.ticks * spotset.gap_seconds, start=start)


ROOM = 0.5
"""The least share of `held` nodes that a lively window has room for, on the mean over zones and time."""


@dataclass(frozen=True, slots=True)
class _Spell:
    """The time between two changes: nodes lost at its begin, and the share of `held` that has room."""

    begin: float
    end: float
    lost: int
    room: float


def liveliest_start(market: SpotMarket, span: float, *, held: int, until: float) -> float:
    """Where a window of `span` market seconds sees the most reclaims, for a demo that has little time.

    Counts, per zone, the nodes lost by somebody who holds `held` nodes there whenever the capacity allows.
    In a drought nothing can be lost any more, so a window must have `ROOM`; when none has, the one with the
    most room is taken. Looks at windows that start from 0 to `until - span`; the earliest of the best wins.
    """
    spells = _spells(market, held=held, until=until)
    best, best_at = (-1.0, -1), 0.0
    for number, spell in enumerate(spells):
        # Begin a tenth of the span before a change: the pool needs time to settle.
        begin = min(max(0.0, spell.begin - span * 0.1), max(0.0, until - span))
        lost, room = 0, 0.0
        for other in spells[max(0, number - 1) :]:
            if other.begin >= begin + span:
                break
            lost += other.lost if other.begin > begin else 0
            room += other.room * max(0.0, min(other.end, begin + span) - max(other.begin, begin))
        if (found := (min(room / span, ROOM), lost)) > best:
            best, best_at = found, begin
    return best_at


def _spells(market: SpotMarket, *, held: int, until: float) -> list[_Spell]:
    """The market until then, cut where something changes."""
    found: list[_Spell] = []
    holding = {series.zone: held for series in market.zones}
    begin, lost = 0.0, 0
    while begin < until:
        now = {zone: min(held, market.capacity(zone, begin)) for zone in holding}
        if begin > 0.0:
            lost = sum(max(0, before - now[zone]) for zone, before in holding.items())
        end = min(until, market.next_change(begin))
        found.append(_Spell(begin, end, lost, sum(now.values()) / (held * len(now))))
        holding, begin = now, end
    return found
