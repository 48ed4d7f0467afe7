"""A generator of synthetic spot markets: spells of plenty and drought, storms over a region, dips, prices.

Pure: a seed gives one market, on any machine. The recorded traces that the defaults come from are other
people's data and are not shipped. `bench/trace_statistics.py` computes their statistics; the defaults were
chosen so that the generator's markets show the same ones (in brackets at each parameter: the mean over four
recorded sets with 27 zones). `docs/reference/local-cloud.md` shows both side by side.

How a market comes about, for every zone, tick by tick:

* A zone is in plenty or in drought. The hazard that a spell of age t ends is shape / (t + scale) + rate: it
  falls steeply with age, the strongest regularity of the recorded traces (a zone that has just come back
  goes again within half an hour more often than not; one that has lasted a day goes once in a week).
* Zones differ: each draws a quality that stretches its plenty and shortens its drought.
* Storms come over a region and multiply the hazard of losing its zones; between storms it is lower by as
  much, so the mean stays. So zones of one region fall together three to four times more often than chance
  would have it, old spells as well as young ones, and zones of different regions do not.
* In plenty the count is the most that was asked for, except in dips, when some lower count is left.
* Spot prices start at a ratio to the on-demand price that the zone draws, and move in small steps around it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, PositiveFloat

from cloud.local.spotset import SpotSet, SpotZone

_HOUR = 3600.0
_DAY = 24.0
_BURN_IN = 48.0  # hours played before recording, so that the first tick is like any other

Count = Annotated[int, Field(ge=1, le=100_000)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    """How spells end: at age t hours with hazard shape / (t + scale) + rate per hour."""

    shape: PositiveFloat
    scale: PositiveFloat  # hours
    rate: PositiveFloat  # per hour

    __pydantic_config__ = ConfigDict(extra="forbid")

    def at(self, age: float) -> float:
        """The hazard per hour at an age in hours."""
        return self.shape / (age + self.scale) + self.rate

    def survival(self, age: float) -> float:
        """The share of spells that last longer than `age` hours."""
        return math.exp(-self.shape * math.log1p(age / self.scale) - self.rate * age)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticParameters:
    """What a synthetic market is like. In brackets: the recorded statistic that gave the default."""

    regions: Count = 2
    zones_per_region: Count = 3
    days: PositiveFloat = 14.0
    gap_seconds: PositiveFloat = 300.0  # ticks [195 to 600 s]
    most: Count = 16  # nodes at most in a zone [16 asked for in the largest set]
    plenty: Hazard = Hazard(shape=1.2, scale=0.4, rate=0.04)  # [spells: median 0.68 h, mean 2.7 h]
    drought: Hazard = Hazard(shape=1.0, scale=0.45, rate=0.03)  # [spells: median 0.43 h, mean 1.9 h]
    quality_spread: Annotated[float, Field(ge=0.0, le=3.0)] = 0.55  # of its logarithm [availability: sd 0.19]
    storm_share: Share = 0.06  # of the time [shared losses: 0.31 in the region, 0.10 beyond]
    storm_hours: PositiveFloat = 0.4  # mean length [shared losses are within ten minutes]
    storm_factor: Annotated[float, Field(ge=1.0)] = 12.0  # on the hazard of plenty
    dip_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.28  # of plenty [0.46 and 0.09: sets with counts]
    dip_hours: PositiveFloat = 0.5  # mean length [0.51 h]
    on_demand_price: PositiveFloat = 3.06  # USD/h [the list price in three of four sets]
    spot_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.30  # mean spot / on-demand price [0.30]
    spot_ratio_spread: Annotated[float, Field(ge=0.0, le=1.0)] = 0.08  # sd over zones [0.14, 0.08]
    price_changes_per_day: Annotated[float, Field(ge=0.0)] = 3.0  # [3.05 in the set with prices]
    price_change_size: Annotated[float, Field(ge=0.0, le=0.5)] = 0.005  # mean, as a share [0.0048]

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.storm_share * self.storm_factor >= 1.0 and self.storm_factor > 1.0:
            raise ValueError("storm_share x storm_factor must stay below 1: calm must keep some hazard")

    @property
    def calm_factor(self) -> float:
        """The factor on the hazard of plenty between storms, so that storms do not change its mean."""
        if self.storm_share >= 1.0:
            return 1.0
        return (1.0 - self.storm_share * self.storm_factor) / (1.0 - self.storm_share)

    @property
    def ticks(self) -> int:
        """How many ticks the market lasts."""
        return max(1, round(self.days * _DAY * _HOUR / self.gap_seconds))


def synthesise(parameters: SyntheticParameters, seed: int) -> SpotSet:
    """Make a market. The same parameters and seed give an equal market.

    Every zone and region draws from its own generator, so a market with one zone more has the same others.
    """
    zones = []
    for region_number in range(1, parameters.regions + 1):
        region = f"syn-{region_number}"
        storms = _storms(parameters, random.Random(f"{seed}/{region}/storms"))  # noqa: S311
        for zone_number in range(parameters.zones_per_region):
            name = f"{region}{_letters(zone_number)}"
            zones.append(_zone(parameters, name, region, storms, random.Random(f"{seed}/{name}")))  # noqa: S311
    return SpotSet(
        name=f"synthetic-{seed}",
        gap_seconds=parameters.gap_seconds,
        ticks=parameters.ticks,
        zones=tuple(zones),
        notes={"kind": "synthetic", "seed": str(seed)},
    )


def _zone(
    parameters: SyntheticParameters, name: str, region: str, storms: list[bool], rng: random.Random
) -> SpotZone:
    ratio = min(0.95, max(0.05, rng.gauss(parameters.spot_ratio, parameters.spot_ratio_spread)))
    spot_price = round(parameters.on_demand_price * ratio, 4)
    up = _plenty(parameters, storms, rng)
    return SpotZone(
        zone=name,
        region=region,
        spot_price=spot_price,
        on_demand_price=parameters.on_demand_price,
        data=_counts(parameters, up, rng),
        prices=_prices(parameters, spot_price, rng),
    )


def _storms(parameters: SyntheticParameters, rng: random.Random) -> list[bool]:
    """For every tick, burn-in included, whether a storm is over the region."""
    hours = parameters.gap_seconds / _HOUR
    calm_hours = math.inf
    if parameters.storm_share > 0:
        calm_hours = parameters.storm_hours * (1.0 - parameters.storm_share) / parameters.storm_share
    storm, result = False, []
    for _ in range(_burn_in(parameters) + parameters.ticks):
        mean = parameters.storm_hours if storm else calm_hours
        if rng.random() < _chance(hours / mean if mean > 0 else math.inf):
            storm = not storm
        result.append(storm)
    return result


def _plenty(parameters: SyntheticParameters, storms: list[bool], rng: random.Random) -> list[bool]:
    """For every recorded tick, whether the zone is in plenty."""
    hours = parameters.gap_seconds / _HOUR
    quality = math.exp(rng.gauss(0.0, parameters.quality_spread))
    up, age, result = True, 0.0, []
    for storm in storms:
        if up:
            factor = parameters.storm_factor if storm else parameters.calm_factor
            hazard = parameters.plenty.at(age / quality) / quality * factor
        else:
            hazard = parameters.drought.at(age * quality) * quality
        if rng.random() < _chance(hazard * hours):
            up, age = not up, 0.0
        else:
            age += hours
        result.append(up)
    return result[_burn_in(parameters) :]


def _counts(parameters: SyntheticParameters, up: list[bool], rng: random.Random) -> tuple[int, ...]:
    hours = parameters.gap_seconds / _HOUR
    begin = 0.0
    if parameters.dip_share > 0 and parameters.most > 1:
        begin = parameters.dip_share / (1.0 - parameters.dip_share) / parameters.dip_hours
    dip, result = 0, []
    for plenty in up:
        if dip:
            dip = 0 if rng.random() < _chance(hours / parameters.dip_hours) else dip
        elif rng.random() < _chance(begin * hours):
            dip = rng.randint(1, parameters.most - 1)
        result.append((dip or parameters.most) if plenty else 0)
    return tuple(result)


def _prices(parameters: SyntheticParameters, base: float, rng: random.Random) -> tuple[float, ...]:
    chance = _chance(parameters.price_changes_per_day / _DAY * parameters.gap_seconds / _HOUR)
    # The mean of |x| for a normal x is sd x sqrt(2 / pi).
    spread = parameters.price_change_size * math.sqrt(math.pi / 2)
    price, result = base, []
    for _ in range(parameters.ticks):
        if rng.random() < chance:
            price *= math.exp(rng.gauss(0.0, spread) + 0.05 * math.log(base / price))
            price = min(price, parameters.on_demand_price)
        result.append(round(price, 4))
    return tuple(result)


def _burn_in(parameters: SyntheticParameters) -> int:
    return round(_BURN_IN * _HOUR / parameters.gap_seconds)


def _chance(expected: float) -> float:
    """The chance of at least one event when `expected` come on the mean."""
    return -math.expm1(-expected)


def _letters(number: int) -> str:
    """a to z, then aa, ab, ..."""
    text = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        text = chr(ord("a") + letter) + text
    return text
