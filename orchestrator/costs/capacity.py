"""The plan of capacity, made from the books and the configuration: for `orchestrator plan-capacity`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from orchestrator.config.load import Config
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.costs import capacity_words as words
from orchestrator.costs.other_gpus import alternatives, present
from orchestrator.views import capacity as views
from policies.capacity_past import Past, past_of
from policies.capacity_plan import Limit, Plant, Reached, nodes_of, reached, schedule, scheduled
from policies.cost_report import rate_of
from policies.cost_rows import Books, PoolSettings
from policies.demand import WEEK, Demand, TooLittle, demand, of_week
from policies.economics import HOUR
from policies.model import Market

OUTLOOK: Final = (0, 4, 12, 26, 52)
"""Weeks ahead of which the highest hour is shown."""

_TOO_LARGE: Final = 2.0  # times the peak that one node may do; a larger one is not shown

_DAYS: Final[tuple[views.Days, ...]] = get_args(views.Days)

Source = Literal["given", "configured", "measured", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """vCPUs that an account may have in a region and a market. `each`: those of the types that count against
    it."""

    code: str
    region: str
    market: Market
    vcpus: float
    each: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a plan is asked for."""

    headroom: float = 0.3  # share of a unit that stays free
    weekly: float | None = None  # growth factor in place of the measured one
    rate: float | None = None  # tokens/s of a unit in place of what is known
    ahead: int = 0  # hours from now until the week that is shown begins
    prices: Mapping[str, float] = field(default_factory=dict)  # USD/h of nodes on demand, by type


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """A pool with what is known of it. `plant` is None where `why_not` says why there is no plan.

    `on_demand`: USD/h of a unit, as it was, else as the file states it.
    """

    name: str
    settings: PoolConfig
    past: Past
    demand: Demand | TooLittle
    rate: float | None
    source: Source
    size: int
    on_demand: float | None
    plant: Plant | None
    why_not: str

    @property
    def asked_for(self) -> int:
        """Units that the file asks for, hot standbys included."""
        return self.settings.replicas + self.settings.standby.hot

    @property
    def regions(self) -> Set[str]:
        """Regions that it may run in, as its file names them."""
        return frozenset(self.settings.cloud.prices())


def plan(
    config: Config, books: Books, asked: Asked, quotas: Sequence[Quota] = (), pool: str | None = None
) -> views.CapacityPlanView:
    """What all pools need, or that one alone, and every limit that holds for what is shown."""
    now = int(books.now // HOUR)
    settings = {one.name: one for one in books.pools}
    pools = [_pool(name, one, books, settings.get(name), asked) for name, one in config.pools.items()]
    limits, notes = _limits(config, pools, quotas)
    plants = [one.plant for one in pools if one.plant is not None]
    shown = [one for one in pools if pool in (None, one.name)]
    return {
        "schema": "capacity-plan/1",
        "at": books.now,
        "since": books.since * HOUR,
        "week_from": (now + asked.ahead) * HOUR,
        "pools": [_pool_view(one, asked) for one in shown],
        "limits": [
            _limit_view(one) for one in reached(plants, limits) if pool is None or pool in one.limit.each
        ],
        "notes": notes,
    }


def _pool(name: str, pool: PoolConfig, books: Books, settings: PoolSettings | None, asked: Asked) -> _Pool:
    past = past_of(books, name)
    found = demand(past.tokens, int(books.now // HOUR), asked.weekly)
    rate, source = _rate(books, settings, asked)
    size = pool.units.get(present(pool, past), 1)
    plant = None
    why_not = words.why_not(found, books.now, rate)
    if isinstance(found, Demand) and rate is not None:
        plant = Plant(
            pool=name,
            demand=found,
            rate=rate,
            headroom=asked.headroom,
            size=size,
            least=max(1, pool.on_demand_floor or 0),
            standby=pool.standby.hot,
        )
    return _Pool(
        name=name,
        settings=pool,
        past=past,
        demand=found,
        rate=rate,
        source=source,
        size=size,
        on_demand=past.on_demand if past.on_demand is not None or settings is None else settings.price,
        plant=plant,
        why_not=why_not,
    )


def _rate(books: Books, settings: PoolSettings | None, asked: Asked) -> tuple[float | None, Source]:
    """Tokens/s of a full unit, and who says so."""
    if asked.rate is not None:
        return asked.rate, "given"
    found = rate_of(books, settings) if settings is not None else None
    if found is None:
        return None, "unknown"
    return found.tokens, "measured" if found.measured else "configured"


# -- limits ----------------------------------------------------------------------------------------------


def _limits(config: Config, pools: Sequence[_Pool], quotas: Sequence[Quota]) -> tuple[list[Limit], list[str]]:
    """Every limit that can be judged, and what cannot be."""
    planned = [one for one in pools if one.plant is not None]
    found: list[Limit] = []
    for one in planned:
        key = f"pool.{one.name}"
        found.append(
            Limit(name=f"{key}.replicas", bound=one.settings.replicas, counted="units", each={one.name: 1.0})
        )
        cap = one.settings.limits.spend_per_hour
        if cap is not None:
            found += _dollars(f"{key}.limits.spend_per_hour", cap, [one])
    notes = [
        f"limits in dollars leave {one.name} out: what a unit of it costs is not known"
        for one in pools
        if one.past.mix is None and one.on_demand is None and _capped(config, one)
    ]
    if planned:
        found += _budget(config, pools)
        found += _quotas(quotas, planned)
    return found, notes


def _capped(config: Config, one: _Pool) -> bool:
    return config.budget.spend_per_hour is not None or one.settings.limits.spend_per_hour is not None


def _budget(config: Config, pools: Sequence[_Pool]) -> Iterator[Limit]:
    nodes, cap = config.budget.nodes, config.budget.spend_per_hour
    if nodes is not None:
        each = {one.name: 1.0 for one in pools if one.plant is not None}
        others = sum(math.ceil(one.asked_for / one.size) for one in pools if one.plant is None)
        yield Limit(name="budget.nodes", bound=nodes, counted="nodes", each=each, others=others)
    if cap is not None:
        yield from _dollars("budget.spend_per_hour", cap, pools)


def _dollars(name: str, cap: float, pools: Sequence[_Pool]) -> Iterator[Limit]:
    """A limit in dollars, at the price of the mix as it was paid and at that of on-demand alone."""
    for prices, why in (
        ({one.name: one.past.mix for one in pools}, "as the mix was paid"),
        ({one.name: one.on_demand for one in pools}, "when spot is gone"),
    ):
        known = {pool: price for pool, price in prices.items() if price is not None}
        each = {o.name: known[o.name] * o.size for o in pools if o.plant is not None and o.name in known}
        if not each:
            continue
        others = sum(known[o.name] * o.asked_for for o in pools if o.plant is None and o.name in known)
        paid = ", ".join(
            f"{pool} ${known[pool]:,.2f}" if len(pools) > 1 else f"${known[pool]:,.2f}" for pool in each
        )
        yield Limit(
            name=name, bound=cap, counted="usd", each=each, others=others, why=f"{why}: {paid} a unit-hour"
        )


def _quotas(quotas: Sequence[Quota], pools: Sequence[_Pool]) -> Iterator[Limit]:
    """The quotas of each set of regions that a pool runs in. Those of several regions count together: which
    of them gives how much is not known beforehand, but no more than all."""
    places = {one.regions for one in pools}
    for code in dict.fromkeys(quota.code for quota in quotas):
        for regions in sorted(filter(None, places), key=sorted):
            parts = [quota for quota in quotas if quota.code == code and quota.region in regions]
            if len(parts) == len(regions):
                yield from _quota(parts, regions, pools)


def _quota(parts: Sequence[Quota], regions: Set[str], pools: Sequence[_Pool]) -> Iterator[Limit]:
    """One quota in some regions, over the pools that run nowhere else: on spot the share of the mix, on
    demand all nodes, for the day without spot."""
    first, vcpus = parts[0], {kind: each for quota in parts for kind, each in quota.each.items()}
    spot = first.market is Market.SPOT
    each, whole = {}, False
    for one in pools:
        kind = present(one.settings, one.past)
        share = one.settings.as_pool(one.name).spot_share if spot else 1.0
        if one.regions and one.regions <= regions and kind in vcpus and share:
            each[one.name] = vcpus[kind] * share
            whole |= one.regions == regions
    if whole:
        why = (
            "on spot, the share of the mix" if first.market is Market.SPOT else "on demand, when spot is gone"
        )
        yield Limit(
            name=f"quota {first.code} ({' + '.join(sorted(regions))})",
            bound=sum(quota.vcpus for quota in parts),
            counted="vcpus",
            each=each,
            why=why if len(parts) == 1 else f"{why}; of its regions together",
        )


# -- views -----------------------------------------------------------------------------------------------


def _pool_view(one: _Pool, asked: Asked) -> views.PoolCapacityView:
    plant, found = one.plant, one.demand
    view: views.PoolCapacityView = {
        "pool": one.name,
        "why_not": one.why_not,
        "replicas": one.settings.replicas,
        "history": None,
        "growth": None,
        "tokens_per_second": one.rate,
        "rate_source": one.source,
        "headroom_share": asked.headroom,
        "units_per_node": one.size,
        "usd_per_unit_hour": one.past.mix,
        "on_demand_usd_per_unit_hour": one.on_demand,
        "spike": None,
        "week": [],
        "outlook": [],
        "schedule": [],
        "schedule_unit_hours": None,
        "alternatives": [],
        "notes": [],
    }
    if isinstance(found, TooLittle):
        return view
    view["history"] = {
        "hours": found.hours,
        "active_hours": found.active,
        "weeks": found.weeks,
        "elsewhere_share": one.past.elsewhere,
    }
    view["growth"] = _growth_view(found, asked)
    if plant is None:
        return view
    week = plant.week(asked.ahead)
    days = schedule(week)
    first = found.now + asked.ahead
    peak = max(found.at(hour) for hour in range(first, first + WEEK))
    if found.spike is not None:
        view["spike"] = {
            "at": found.spike.hour * HOUR,
            "tokens_per_second": found.spike.rate,
            "without_tokens_per_second": found.spike.without,
            "without_units": plant.units_for(found.spike.without),
        }
    view["week"] = _week(plant, asked.ahead)
    view["outlook"] = [_outlook(plant, weeks, one.past.mix) for weeks in OUTLOOK]
    view["schedule"] = [
        {"days": name, "begin": each.begin, "end": each.end, "units": each.units}
        for name, day in zip(_DAYS, days, strict=True)
        for each in day
    ]
    view["schedule_unit_hours"] = scheduled(days)
    view["alternatives"] = _alternatives(one, plant, peak, asked)
    estimated = any(row["source"] == "bandwidth" for row in view["alternatives"])
    view["notes"] = words.notes(found, one.past, given=asked.weekly is not None, source=one.source)
    view["notes"] += [words.ESTIMATE] if estimated else []
    return view


def _growth_view(found: Demand, asked: Asked) -> views.GrowthView:
    growth = found.growth
    return {
        "weekly_share": growth.weekly - 1.0,
        "low_share": growth.low - 1.0,
        "high_share": growth.high - 1.0,
        "comparisons": growth.pairs,
        "source": "given" if asked.weekly is not None else "measured" if growth.pairs else "unknown",
    }


def _week(plant: Plant, ahead: int) -> list[views.HourView]:
    """Every hour of the week that begins `ahead` hours from now, from Monday on."""
    first = plant.demand.now + ahead
    found: list[views.HourView] = [
        {
            "hour_of_week": of_week(hour),
            "tokens_per_second": plant.demand.at(hour),
            "units": plant.units(hour),
            "nodes": plant.nodes(plant.units(hour)),
        }
        for hour in range(first, first + WEEK)
    ]
    return sorted(found, key=lambda hour: hour["hour_of_week"])


def _outlook(plant: Plant, weeks: int, price: float | None) -> views.OutlookView:
    first = plant.demand.now + weeks * WEEK
    hour = max(range(first, first + WEEK), key=plant.demand.at)
    units = plant.units(hour)
    nodes = plant.nodes(units + plant.standby)
    return {
        "weeks": weeks,
        "at": hour * HOUR,
        "tokens_per_second": plant.demand.at(hour),
        "units": units,
        "nodes": nodes,
        "usd_per_hour": None if price is None else nodes * plant.size * price,
    }


def _alternatives(one: _Pool, plant: Plant, peak: float, asked: Asked) -> list[views.AlternativeView]:
    found = alternatives(one.settings, one.past, asked.prices)
    node = plant.rate * plant.size
    rows: list[views.AlternativeView] = []
    for place, other in enumerate(found):
        nodes = nodes_of(plant, other, peak)
        if place and other.share > 1.0 and node * other.share * (1.0 - plant.headroom) > _TOO_LARGE * peak:
            continue
        rows.append(
            {
                "instance_type": other.name,
                "gpus": other.gpus,
                "tokens_per_second": node * other.share,
                "source": "present" if not place else "units" if other.stated else "bandwidth",
                "nodes": nodes,
                "usd_per_node_hour": other.price,
                "usd_per_hour": None if other.price is None else nodes * other.price,
            }
        )
    return rows


def _limit_view(one: Reached) -> views.LimitView:
    return {
        "limit": one.limit.name,
        "counted": one.limit.counted,
        "allows": one.limit.bound,
        "needs": one.needs,
        "binds_at": _at(one.first),
        "earliest_at": _at(one.earliest),
        "latest_at": _at(one.latest),
        "hours_above": one.hours,
        "why": one.limit.why,
    }


def _at(hour: int | None) -> float | None:
    return None if hour is None else hour * HOUR
