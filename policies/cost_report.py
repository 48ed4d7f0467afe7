"""What was spent on what, for whom, and what it came to for a million tokens.

What it decides: nothing; it counts. Machines are counted by the hour in which they were paid for, what
providers cost by the day in which it was booked. Of a day that is only partly in the period, a provider's
money counts by what the tokens of the hours in it weigh. Who bears what of a pool: `policies.attribution`.
Why: dollars an hour say little to those who ask by the token, or pay for a team.
Never: the rows of one grouping add up to anything but the whole; what is not known is 0; a provider's money
counts as saved against on-demand.

Example: a pool that cost $3 in an hour, and two keys with equal tokens:
    >>> from policies.model import Market
    >>> hour = 500_000
    >>> node = SpendHour(pool="chat", hour=hour, region="r", zone="a", instance_type="g", market=Market.SPOT,
    ...                  seconds=3600.0, usd=3.0, unit_seconds=3600.0, ready_unit_seconds=3600.0)
    >>> used = [UsageHour(hour=hour, key=k, backend="pool/chat", fresh=100, output=10) for k in ("a", "b")]
    >>> books = Books(since=hour, until=hour + 1, now=(hour + 1) * 3600.0, machines=(node,),
    ...               usage=tuple(used), prices={})
    >>> [(row.group, row.sums.spent) for row in report(books, ("key",)).rows]
    [(('a',), 1.5), (('b',), 1.5)]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Final

from policies.attribution import USUAL, Group, Part, crossed, split, weights_at, weights_of
from policies.cost_rows import (
    HOURS_OF_DAY,
    POOL,
    PROVIDER,
    Books,
    PoolSettings,
    ProviderDay,
    UsageDay,
    UsageHour,
)
from policies.cost_sums import Sums
from policies.economics import HOUR, BaselineHour, SpendHour
from policies.spend import PICO, day_of
from policies.value import value

DIMENSIONS: Final = ("pool", "day", "zone", "market", "model", "adapter", "key", "route")
API: Final = "api"
"""The market of what providers cost."""

_OF_MACHINES: Final = frozenset({"zone", "market"})
_DAY = 86_400.0
_MINUTE = 1 / 60
_EPOCH = date(1970, 1, 1).toordinal()
_LEAST_READY = 60.0
"""Seconds of a unit in an hour below which the hour shows no rate."""


@value
class Row:
    """The sums of a group; its values stand in the order of the report's dimensions.

    `pools`: how many have a part in it. What several could serve together says nothing: a token of one model
    takes another work than one of the next.
    """

    group: Group
    sums: Sums
    pools: int


@value
class Report:
    """The rows of a grouping, sorted, and the whole."""

    since: int  # the first hour
    until: int  # the first hour after the period
    by: tuple[str, ...]
    rows: tuple[Row, ...]
    whole: Row

    @property
    def total(self) -> Sums:
        """The sums of the whole."""
        return self.whole.sums


@value
class Rate:
    """Tokens/s of one unit; `measured`: the most that an hour showed, for want of a written one."""

    tokens: float
    measured: bool


def report(books: Books, by: Sequence[str]) -> Report:
    """The sums of the period by these dimensions. Raises ValueError for an unknown or a double one."""
    check_grouping(by)
    sums: defaultdict[Group, Sums] = defaultdict(Sums)
    pools: defaultdict[Group, set[str | None]] = defaultdict(set)
    total = Sums()
    for dimensions, part in _parts(books, tuple(by)):
        group = tuple(dimensions.get(name) for name in by)
        sums[group].add(part)
        total.add(part)
        if dimensions["market"] != API:
            pools[group].add(dimensions["pool"])
    order = sorted(sums, key=lambda group: [(value is None, value or "") for value in group])
    rows = tuple(Row(group=group, sums=sums[group], pools=len(pools[group])) for group in order)
    whole = Row(group=(), sums=total, pools=len(set().union(*pools.values())))
    return Report(since=books.since, until=books.until, by=tuple(by), rows=rows, whole=whole)


def check_grouping(by: Sequence[str]) -> None:
    """Raises ValueError for an unknown dimension or a double one."""
    if set(by) - set(DIMENSIONS) or len(set(by)) < len(by):
        raise ValueError(f"{', '.join(by)}: any of {', '.join(DIMENSIONS)}, each once")


def rate_of(books: Books, pool: PoolSettings) -> Rate | None:
    """What one unit of a pool can serve: as it is written, else the most tokens/s of any hour in the books.

    None where neither is known. What was measured is less than the truth if no hour was full.
    """
    if pool.rate is not None:
        return Rate(tokens=pool.rate, measured=False)
    ready, tokens = books.ready.get(pool.name, {}), books.tokens.get(POOL + pool.name, {})
    rates = [tokens.get(hour, 0) / seconds for hour, seconds in ready.items() if seconds >= _LEAST_READY]
    best = max(rates, default=0.0)
    return Rate(tokens=best, measured=True) if best else None


def tokens_of(used: UsageHour | ProviderDay) -> int:
    """All tokens, of prompts and answers."""
    return used.fresh + used.cached + used.written + used.output


def elapsed(books: Books) -> float:
    """Hours of the period that are over and of which anything is known: from the first row in it on."""
    begin = min(filter(books.inside, books.hours), default=books.since)
    return max(_MINUTE, min(books.until, books.now / HOUR) - begin)


def settings_of(books: Books) -> dict[str, PoolSettings]:
    """Every pool that is configured or has left a trace, by name."""
    known = {pool.name: pool for pool in books.pools}
    names = {*books.ready, *(hour.pool for hour in books.baseline)}
    names |= {backend.removeprefix(POOL) for backend in books.tokens if backend.startswith(POOL)}
    return {
        name: known.get(name) or PoolSettings(name=name, model="", people=books.people)
        for name in sorted(names | known.keys())
    }


# -- parts -------------------------------------------------------------------------------------------


def _parts(books: Books, by: tuple[str, ...]) -> Iterator[tuple[dict[str, str | None], Sums]]:
    """All that the period cost, in parts, each with its value in every dimension that was asked for."""
    for pool in settings_of(books).values():
        yield from _PoolParts(books, pool, by).parts()
    edges = _edges(books)
    for day in books.providers:
        counted = _within(books, day, edges)
        if counted is not None:
            named = {"pool": PROVIDER + day.provider, "day": day.day, "zone": None, "market": API}
            used = {"model": day.model, "adapter": None, "key": day.key, "route": day.route}
            yield named | used, counted
    yield from _unbooked(books)


def _unbooked(books: Books) -> Iterator[tuple[dict[str, str | None], Sums]]:
    """What providers served on days of which no cost of theirs is in the books, as where those were lost.

    A request is paid for on the day in which it was sent, and used in the hour in which it ended.
    """
    booked = {(PROVIDER + day.provider, _number_of(day.day)) for day in books.providers}
    for backend, days in books.days.items():
        for day, usage in days.items() if backend.startswith(PROVIDER) else ():
            if not booked.isdisjoint(((backend, day), (backend, day - 1))):
                continue
            named = {"pool": backend, "day": day_of(day * _DAY), "zone": None, "market": API}
            for used in (each.used for each in usage if tokens_of(each.used)):
                whose = {"model": used.model, "adapter": None, "key": used.key, "route": used.route}
                yield (
                    named | whose,
                    Sums(
                        requests=used.requests,
                        estimated=used.estimated,
                        unpriced_requests=used.requests,
                        fresh=used.fresh,
                        cached=used.cached,
                        written=used.written,
                        output=used.output,
                    ),
                )


class _PoolParts:
    """One pool's sums by day, zone, market, model, adapter, key and route, as far as they are asked for."""

    def __init__(self, books: Books, pool: PoolSettings, by: tuple[str, ...]) -> None:
        self._books, self._pool = books, pool
        self._of_machines = tuple(name for name in by if name in _OF_MACHINES)
        self._of_use = tuple(name for name in by if name in ("model", "adapter", "key", "route"))
        self._rate = rate_of(books, pool)
        self._price = books.prices.get(pool.compare)

    def parts(self) -> Iterator[tuple[dict[str, str | None], Sums]]:
        """The days of the period, each shared among those who used it."""
        books, name = self._books, self._pool.name
        machines, baseline = books.machine_days.get(name, {}), books.baseline_days.get(name, {})
        usage = books.days.get(POOL + name, {})
        for day in sorted(machines.keys() | baseline.keys() | usage.keys()):
            nodes = self._machines(
                machines.get(day, ()), baseline.get(day, BaselineHour(pool=name, hour=day))
            )
            used = self._used(usage.get(day, ()))
            for where, who, sums in crossed(nodes, used):
                named: dict[str, str | None] = {"pool": name, "day": day_of(day * _DAY), "market": None}
                named |= zip(self._of_machines, where, strict=True)
                yield named | dict(zip(self._of_use, who, strict=True)), sums

    def _machines(self, nodes: Sequence[SpendHour], baseline: BaselineHour) -> list[Part]:
        """The nodes of a day by zone and market; what on-demand would have cost is shared by their units."""
        sums: defaultdict[Group, Sums] = defaultdict(Sums)
        units: defaultdict[Group, int] = defaultdict(int)
        for node in nodes:
            named = {"zone": node.zone, "market": str(node.market)}
            group: Group = tuple(named[name] for name in self._of_machines)
            sums[group].add(self._of_node(node))
            units[group] += _ms(node.unit_seconds)
        if not sums:
            sums[tuple(None for _ in self._of_machines)] = Sums()
        groups = list(sums)
        weights = [units[group] for group in groups]
        whole, missing = round(baseline.on_demand_usd * PICO), _ms(baseline.unpriced)
        for group, usd, ms in zip(groups, split(whole, weights), split(missing, weights), strict=True):
            sums[group].on_demand_usd, sums[group].unpriced_unit_ms = usd, ms
        return [Part(group=group, sums=sums[group], weight=sums[group].ready_ms) for group in groups]

    def _of_node(self, node: SpendHour) -> Sums:
        """What nodes of one market in one zone cost on a day, and what they could have served."""
        usd, ready = round(node.usd * PICO), _ms(node.ready_unit_seconds)
        return Sums(
            machines_usd=usd,
            people_usd=round(usd * self._pool.people),
            node_ms=_ms(node.seconds),
            ready_ms=ready,
            unpriced_ms=_ms(node.unpriced),
            capacity=round(ready * self._rate.tokens) if self._rate else 0,
            unrated_ms=0 if self._rate else ready,
        )

    def _used(self, usage: Sequence[UsageDay]) -> list[Part]:
        """The use of a day by model, adapter, key and route; nobody's where nothing was used."""
        sums: defaultdict[Group, Sums] = defaultdict(Sums)
        weights: defaultdict[Group, int] = defaultdict(int)
        weigh = weights_of(self._price)
        for each in usage:
            used = each.used
            named = {
                "model": self._pool.model, "adapter": used.model, "key": used.key, "route": used.route
            }  # fmt: skip
            group: Group = tuple(named[name] for name in self._of_use)
            sums[group].add(self._of_used(used, bare=each.bare))
            weights[group] += weigh.of(used)
        parts = [Part(group=group, sums=sums[group], weight=weights[group]) for group in sums]
        if not any(weights.values()):
            nobody = {"model": self._pool.model}
            parts.append(Part(group=tuple(nobody.get(name) for name in self._of_use), sums=Sums(), weight=1))
        return parts

    def _of_used(self, used: UsageHour, *, bare: bool) -> Sums:
        tokens = tokens_of(used)
        return Sums(
            requests=used.requests,
            estimated=used.estimated,
            fresh=used.fresh,
            cached=used.cached,
            written=used.written,
            output=used.output,
            served=tokens,
            uncounted=tokens if bare else 0,
            api_usd=weights_at(self._price.rates).of(used) if self._price else 0,
            incomparable=0 if self._price else tokens,
        )


_Place = tuple[str, str, str, str, int]
"""Backend, route, model, key and day since the epoch."""


def _edges(books: Books) -> dict[_Place, tuple[int, int]]:
    """What the tokens of the days weigh in which the period begins and ends: within it, and in all."""
    days = {books.since // HOURS_OF_DAY, (books.until - 1) // HOURS_OF_DAY}
    found: defaultdict[_Place, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for used in books.usage if books.providers else ():
        day = used.hour // HOURS_OF_DAY
        if day in days:
            place, weight = (used.backend, used.route, used.model, used.key, day), USUAL.of(used)
            inside, whole = found[place]
            found[place] = (inside + weight * books.inside(used.hour), whole + weight)
    return dict(found)


def _within(books: Books, day: ProviderDay, edges: Mapping[_Place, tuple[int, int]]) -> Sums | None:
    """The part of a provider's day that is in the period; None where none is."""
    number = _number_of(day.day)
    first = number * HOURS_OF_DAY
    if first >= books.until or first + HOURS_OF_DAY <= books.since:
        return None
    part, whole = 1, 1
    if not books.since <= first <= books.until - HOURS_OF_DAY:
        place = (PROVIDER + day.provider, day.route, day.model, day.key, number)
        inside, weight = edges.get(place, (0, 0))
        part, whole = (inside, weight) if weight else (1, 1)

    def of(count: int) -> int:
        return count * part // whole

    return Sums(
        providers_usd=of(day.usd),
        requests=of(day.requests),
        estimated=of(day.estimated),
        unpriced_requests=-(-day.unpriced * part // whole),
        fresh=of(day.fresh),
        cached=of(day.cached),
        written=of(day.written),
        output=of(day.output),
    )


def _number_of(day: str) -> int:
    """The days from the epoch to a date."""
    return date.fromisoformat(day).toordinal() - _EPOCH


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
