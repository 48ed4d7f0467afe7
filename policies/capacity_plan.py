"""How many nodes a pool will need, when, and which limit is reached first.

What it decides: nothing at run time; it turns demand (`policies.demand`) into units and nodes, for each hour
of a week and of a year to come, and holds them against every limit that the file has.
Why: a limit that was right when it was written binds on some afternoon, and a request for more machines takes
days to be granted. A date leaves time to act.
How: a unit that does `rate` tokens a second when it is full is planned to do `rate x (1 - headroom)`; nodes
come whole. Limits are looked at in every hour to come, those of several pools with what all of them need in
that very hour. Each date comes with those at the lower and the upper end of the measured growth.
Never: a date beyond the horizon, where growth goes on as no growth does.

Example:
    >>> from policies.demand import demand
    >>> history = {hour: 3600.0 * 1000 * 1.1 ** (hour / 168) for hour in range(4 * 168)}
    >>> chat = Plant(pool="chat", demand=demand(history, now=4 * 168), rate=500.0, headroom=0.2)
    >>> chat.units(4 * 168), chat.units(8 * 168)
    (4, 6)
    >>> (hit,) = reached([chat], [Limit(name="replicas", bound=4.0, counted="units", each={"chat": 1.0})])
    >>> hit.first - 4 * 168, hit.earliest == hit.latest == hit.first
    (157, True)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from policies.demand import DAY, WEEK, Demand, of_week
from policies.value import value

HORIZON = 52 * WEEK
"""Hours ahead beyond which no date is given."""

_HAIR = 1e-9  # share by which a product of binary fractions may be above a whole number

Counted = Literal["units", "nodes", "usd", "vcpus"]


@value
class Plant:
    """One pool as its plan takes it."""

    pool: str
    demand: Demand
    rate: float  # tokens a second of one full unit
    headroom: float = 0.3  # share of it that is kept free
    size: int = 1  # units of a node
    least: int = 1  # units that are kept whatever is asked
    standby: int = 0  # hot units beside those that serve

    def units(self, hour: int, weekly: float | None = None) -> int:
        """Units that are needed in that hour, at the measured growth or another."""
        return self.units_for(self.demand.at(hour, weekly))

    def units_for(self, tokens: float) -> int:
        """Units for so many tokens a second."""
        return max(self.least, units_for(tokens, rate=self.rate, headroom=self.headroom))

    def nodes(self, units: int) -> int:
        """Nodes that serve so many units."""
        return -(-units // self.size)

    def week(self, ahead: int = 0) -> tuple[int, ...]:
        """Units for each hour of the week that begins `ahead` hours from now, by the hour of the week."""
        first = self.demand.now + ahead
        found = [0] * WEEK
        for hour in range(first, first + WEEK):
            found[of_week(hour)] = self.units(hour)
        return tuple(found)


@value
class Limit:
    """What a file, a budget or an account allows."""

    name: str
    bound: float  # how much of what is `counted`
    counted: Counted  # `usd` is an hour's; "units": those that are needed to serve
    each: Mapping[str, float]  # what a node of each pool takes, by its name, hot standbys included
    others: float = 0.0  # what pools without a plan take
    why: str = ""  # at which prices, and what else is to be known

    def takes(self, plant: Plant, units: int) -> float:
        """How much of it so many units of a pool take."""
        if plant.pool not in self.each:
            return 0.0
        if self.counted == "units":
            return units
        return plant.nodes(units + plant.standby) * self.each[plant.pool]


@value
class Reached:
    """When a limit is too little for the first time. None: not within the horizon."""

    limit: Limit
    first: int | None  # that hour, at the measured growth
    earliest: int | None  # that hour at the upper end of it
    latest: int | None  # that hour at the lower end of it
    hours: int  # of the first week that are above it already
    needs: float  # what the highest hour of the first week takes of it


@value
class Alternative:
    """Nodes of another kind in place of those that are there."""

    name: str
    share: float  # what one of them does, as a part of what a node does today
    gpus: str = ""  # in words; empty: not known
    price: float | None = None  # USD/h of one; None: not known
    stated: bool = False  # the file states the share; else it is estimated


def units_for(tokens: float, *, rate: float, headroom: float) -> int:
    """Units that do so many tokens a second with that share kept free.

    >>> units_for(700, rate=500, headroom=0.3), units_for(701, rate=500, headroom=0.3)
    (2, 3)
    """
    each = rate * (1.0 - headroom)
    return math.ceil(tokens / each * (1.0 - _HAIR))


def reached(plants: Sequence[Plant], limits: Iterable[Limit], horizon: int = HORIZON) -> list[Reached]:
    """Each limit with its date, the first to bind first."""
    limits = list(limits)
    now = plants[0].demand.now if plants else 0
    middle = _walk(plants, limits, horizon, "weekly")
    upper, lower = _walk(plants, limits, horizon, "high"), _walk(plants, limits, horizon, "low")
    found = []
    week = [[(plant, plant.units(hour)) for plant in plants] for hour in range(now, now + WEEK)]
    for place, limit in enumerate(limits):
        taken = [_taken(limit, wanted) for wanted in week]
        found.append(
            Reached(
                limit=limit,
                first=middle[place],
                earliest=upper[place],
                latest=lower[place],
                hours=sum(above(one, limit.bound) for one in taken),
                needs=max(taken),
            )
        )
    return sorted(found, key=lambda one: (one.first is None, one.first or 0, one.earliest or math.inf))


def above(taken: float, bound: float) -> bool:
    """Whether it is more than there may be, binary fractions aside."""
    return taken > bound * (1.0 + _HAIR)


def nodes_of(plant: Plant, other: Alternative, tokens: float) -> int:
    """Nodes of another kind for so many tokens a second."""
    rate = plant.rate * plant.size * other.share
    return max(1, units_for(tokens, rate=rate, headroom=plant.headroom))


@value
class Stretch:
    """So many units from one hour of the day to another (24: midnight)."""

    begin: int
    end: int
    units: int


def schedule(week: Sequence[int]) -> tuple[tuple[Stretch, ...], tuple[Stretch, ...]]:
    """A week's units as two days that a schedule can hold: of Monday to Friday, of Saturday and Sunday. Each
    hour of the day has the most that any of its days needs.

    >>> office = [2] * 8 + [6] * 10 + [2] * 6
    >>> working, weekend = schedule([*office * 5, *[1] * 48])
    >>> [(s.begin, s.end, s.units) for s in working], [(s.begin, s.end, s.units) for s in weekend]
    ([(0, 8, 2), (8, 18, 6), (18, 24, 2)], [(0, 24, 1)])
    """
    working = [max(week[day * DAY + hour] for day in range(5)) for hour in range(DAY)]
    weekend = [max(week[day * DAY + hour] for day in (5, 6)) for hour in range(DAY)]
    return _stretches(working), _stretches(weekend)


def scheduled(days: tuple[Sequence[Stretch], Sequence[Stretch]]) -> int:
    """Unit hours of a week under a schedule."""
    working, weekend = (sum((s.end - s.begin) * s.units for s in day) for day in days)
    return 5 * working + 2 * weekend


def _stretches(day: Sequence[int]) -> tuple[Stretch, ...]:
    found: list[Stretch] = []
    for hour, units in enumerate(day):
        if found and found[-1].units == units:
            found[-1] = Stretch(begin=found[-1].begin, end=hour + 1, units=units)
        else:
            found.append(Stretch(begin=hour, end=hour + 1, units=units))
    return tuple(found)


def _walk(
    plants: Sequence[Plant], limits: Sequence[Limit], horizon: int, growth: Literal["weekly", "low", "high"]
) -> list[int | None]:
    """The first hour in which each limit is too little."""
    first: list[int | None] = [None] * len(limits)
    now = plants[0].demand.now if plants else 0
    for hour in range(now, now + horizon):
        wanted = [(plant, plant.units(hour, getattr(plant.demand.growth, growth))) for plant in plants]
        for place, limit in enumerate(limits):
            if first[place] is None and above(_taken(limit, wanted), limit.bound):
                first[place] = hour
        if None not in first:
            break
    return first


def _taken(limit: Limit, wanted: Iterable[tuple[Plant, int]]) -> float:
    """How much of a limit these units take, of all pools that it holds."""
    return limit.others + sum(limit.takes(plant, units) for plant, units in wanted)
