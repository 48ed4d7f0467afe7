"""What a cost report is made from: who used what by the hour, what providers were paid by the day, settings.

Hours are counted since the epoch (`policies.economics.HOUR`), days are UTC and written `2026-11-30`, money at
providers is whole picodollars (`policies.spend.PICO`). What machines cost stands in `policies.economics`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from policies.economics import BaselineHour, SpendHour
from policies.model import Market
from policies.spend import Price
from policies.value import lazy, value

HOURS_OF_DAY = 24
POOL = "pool/"
PROVIDER = "provider/"
"""How a backend's name begins: `pool/chat`, `provider/claude`."""

_COUNTS = ("requests", "failed", "estimated", "fresh", "cached", "written", "output")
_TIMES = ("seconds", "usd", "unit_seconds", "ready_unit_seconds", "unpriced")
_Whose = tuple[str, int, str, str, str, bool]
_Where = tuple[str, int, str, Market]


@value
class UsageHour:
    """What one key used of one backend in an hour."""

    hour: int
    key: str = ""  # empty where no key was asked for
    route: str = ""  # by its first name; empty where there are no routes
    backend: str
    model: str = ""  # the adapter, or the provider's model; empty for the pool's own
    requests: int = 0
    failed: int = 0  # requests that got no answer, or not to its end
    estimated: int = 0  # requests whose tokens were not reported
    fresh: int = 0  # tokens of prompts that were read anew
    cached: int = 0  # tokens of prompts that were read from a prefix cache
    written: int = 0  # tokens of prompts that were written to it
    output: int = 0  # tokens of answers
    first_token_s: float = 0.0  # from arrival to the first byte, summed over the requests that got one
    seconds: float = 0.0  # from arrival to the end of the answer, summed likewise


@value
class UsageDay:
    """What one key used of one backend on a day; the hour of `used` is the first of it.

    `bare`: in hours in which, and before which, no machine of the pool was counted: it cost something that is
    not known. A request is used in the hour in which it ended, when its machine may be gone.
    """

    used: UsageHour
    bare: bool


@value
class ProviderDay:
    """What one model of a provider cost on a day for a route and a key, and for what."""

    day: str
    provider: str
    route: str
    model: str
    key: str = ""
    usd: int = 0  # picodollars
    requests: int = 0
    estimated: int = 0  # requests that are counted at the most they may have cost
    unpriced: int = 0  # requests without a known price, missing in `usd`
    fresh: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0


@value
class PoolSettings:
    """What the configuration says of a pool's cost."""

    name: str
    model: str  # the name that its engines serve
    task: str = "generate"
    people: float = 0.0  # people's work, as a share of what machines cost
    rate: float | None = None  # tokens/s of a unit at saturation; None: the highest that was measured
    compare: str = ""  # the API it is compared with, `provider/model`; empty: none
    price: float | None = None  # USD/h of a unit by the file; None: only the ledger knows


@value
class RouteSettings:
    """A route by its first name: the pools and the `provider/model`s it leads to."""

    name: str
    task: str = "generate"
    pools: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Books:
    """Everything a report is made from.

    The rows may begin before the period, for a rate or a forecast, and the usage of the days in which the
    period begins and ends is complete.
    """

    since: int  # first hour that is reported
    until: int  # first hour after the period
    now: float  # seconds since the epoch
    machines: tuple[SpendHour, ...] = ()
    baseline: tuple[BaselineHour, ...] = ()
    usage: tuple[UsageHour, ...] = ()
    unread: bool = False  # `usage` is empty because it could not be read
    providers: tuple[ProviderDay, ...] = ()
    pools: tuple[PoolSettings, ...] = ()
    people: float = 0.0  # people's work for pools that are not among `pools`
    routes: tuple[RouteSettings, ...] = ()
    prices: Mapping[str, Price]  # by `provider/model`; a missing one is not known

    def inside(self, hour: int) -> bool:
        """Whether an hour is reported."""
        return self.since <= hour < self.until

    @lazy
    def hours(self) -> frozenset[int]:
        """The hours of which anything is known but what on-demand would have cost."""
        return frozenset(row.hour for row in self.machines) | frozenset(row.hour for row in self.usage)

    @lazy
    def machine_days(self) -> dict[str, dict[int, list[SpendHour]]]:
        """What machines cost within the period, by pool and day since the epoch: a row for each zone and
        market, whose hour is the first of the day, of no region and no instance type."""
        sums: dict[_Where, list[float]] = {}
        for row in self.machines:
            if self.since <= row.hour < self.until:
                where = (row.pool, row.hour // HOURS_OF_DAY, row.zone, row.market)
                if (of := sums.get(where)) is None:
                    of = sums[where] = [0.0] * len(_TIMES)
                of[0] += row.seconds
                of[1] += row.usd
                of[2] += row.unit_seconds
                of[3] += row.ready_unit_seconds
                of[4] += row.unpriced
        found: defaultdict[str, defaultdict[int, list[SpendHour]]] = defaultdict(lambda: defaultdict(list))
        for (pool, day, zone, market), times in sums.items():
            row = SpendHour(
                pool=pool,
                hour=day * HOURS_OF_DAY,
                region="",
                zone=zone,
                instance_type="",
                market=market,
                **dict(zip(_TIMES, times, strict=True)),
            )
            found[pool][day].append(row)
        return {pool: dict(days) for pool, days in found.items()}

    @lazy
    def baseline_days(self) -> dict[str, dict[int, BaselineHour]]:
        """What on-demand would have cost within the period, by pool and day since the epoch."""
        found: defaultdict[str, dict[int, BaselineHour]] = defaultdict(dict)
        for row in self.baseline:
            if self.inside(row.hour):
                day = row.hour // HOURS_OF_DAY
                known = found[row.pool].get(day)
                found[row.pool][day] = row if known is None else known.plus(row)
        return dict(found)

    @lazy
    def ready(self) -> dict[str, dict[int, float]]:
        """Ready unit-seconds by pool and hour, also those before the period."""
        found: defaultdict[str, defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
        for row in self.machines:
            found[row.pool][row.hour] += row.ready_unit_seconds
        return {pool: dict(hours) for pool, hours in found.items()}

    @lazy
    def days(self) -> dict[str, dict[int, list[UsageDay]]]:
        """What was used within the period, by backend and day since the epoch: a row for each key, route and
        model, and apart for hours of which no machine was counted."""
        sums: dict[_Whose, list[int]] = {}
        counted = {(POOL + pool, hour) for pool, hours in self.ready.items() for hour in hours}
        for row in self.usage:
            if self.since <= row.hour < self.until:
                bare = row.backend.startswith(POOL) and counted.isdisjoint(
                    ((row.backend, row.hour), (row.backend, row.hour - 1))
                )
                whose = (row.backend, row.hour // HOURS_OF_DAY, row.key, row.route, row.model, bare)
                if (of := sums.get(whose)) is None:
                    of = sums[whose] = [0] * len(_COUNTS)
                of[0] += row.requests
                of[1] += row.failed
                of[2] += row.estimated
                of[3] += row.fresh
                of[4] += row.cached
                of[5] += row.written
                of[6] += row.output
        found: defaultdict[str, defaultdict[int, list[UsageDay]]] = defaultdict(lambda: defaultdict(list))
        for (backend, day, key, route, model, bare), counts in sums.items():
            named = dict(zip(_COUNTS, counts, strict=True))
            row = UsageHour(
                hour=day * HOURS_OF_DAY, key=key, route=route, backend=backend, model=model, **named
            )
            found[backend][day].append(UsageDay(used=row, bare=bare))
        return {backend: dict(days) for backend, days in found.items()}

    @lazy
    def tokens(self) -> dict[str, dict[int, int]]:
        """Tokens by backend and hour, also those before the period."""
        found: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        for row in self.usage:
            found[row.backend][row.hour] += row.fresh + row.cached + row.written + row.output
        return {backend: dict(hours) for backend, hours in found.items()}
