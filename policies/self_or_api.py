"""Whether machines of one's own or an API are cheaper for a traffic, and from which traffic on.

What it decides: which of both is cheaper for what was really asked: prompts and answers in their own ratio,
with their share out of the cache, and with people's work on the side of the machines. A pool is held against
the API that it names; a route that providers alone serve against the pool that would pay soonest.
Why: "self-hosting is cheaper" is an assumption that turns with utilisation, and utilisation changes; it is
worth a sentence only with its figures.
Never: a verdict where a price is not known; a pool counts as cheaper for a traffic whose busiest hour
its units cannot serve.

Example: a unit at $3 an hour serves 500 tokens/s; the API asks $3 a million; 40 % for people.
    >>> unit = Unit(price=3.0, rate=500.0, people=0.4)
    >>> round(unit.break_even(3.0), 3), round(unit.pays_from(3.0) / 1e6)
    (0.778, 1022)
    >>> unit.pays_from(3.0, peak=2.0) is None  # its busiest hour has twice the mean: it is never busy enough
    True
    >>> round(unit.cost(tokens=3e9, peak=1.0))  # three of them, for a month
    9198
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Final, Literal

from policies.cost_report import Rate, Report, elapsed, rate_of, report, settings_of, tokens_of
from policies.cost_rows import PROVIDER, Books, PoolSettings, RouteSettings
from policies.cost_sums import Sums
from policies.unit_cost import HOURS_OF_MONTH, break_even, break_even_tokens
from policies.value import value

Cheaper = Literal["pool", "api", "unknown"]

_MTOK: Final = 1e6
_CENT: Final = 0.005
_ROUNDING: Final = 1e-9
_SIZES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_ROUNDS_UP: Final = 0.9995  # of a size: three digits of it are 1 of the next
_DAYS_FROM: Final = 48
"""Hours from which a period is written in days."""


@value
class Unit:
    """A unit that could be bought: USD/h, tokens/s at saturation, the share of people's work."""

    price: float
    rate: float
    people: float = 0.0

    @property
    def usd_per_hour(self) -> float:
        """With people's work."""
        return self.price * (1.0 + self.people)

    def break_even(self, api: float) -> float:
        """Its utilisation above which it is cheaper than an API at `api` USD per million tokens."""
        return break_even(price=self.price, rate=self.rate, api=api, people=self.people)

    def pays_from(self, api: float, *, peak: float = 1.0) -> float | None:
        """Tokens a month above which it is cheaper; None where no number of units ever is.

        `peak`: tokens of the busiest hour over those of the mean one, which units must be there for.
        """
        if self.break_even(api) * peak > 1.0:
            return None
        return break_even_tokens(price=self.price, api=api, people=self.people)

    def units_for(self, *, tokens: float, peak: float = 1.0) -> int:
        """Units that serve so many tokens a month, also in the busiest hour. At least one."""
        a_second = tokens / HOURS_OF_MONTH / 3600.0 * peak
        return max(1, math.ceil(a_second / self.rate - _ROUNDING))

    def cost(self, *, tokens: float, peak: float = 1.0) -> float:
        """USD a month for units that serve so many tokens."""
        return self.units_for(tokens=tokens, peak=peak) * self.usd_per_hour * HOURS_OF_MONTH


@value
class PoolStanding:
    """A pool compared with its API over the period."""

    pool: PoolSettings
    rate: Rate | None  # None: neither written nor measured
    sums: Sums
    cheaper: Cheaper
    advice: str


@value
class RouteStanding:
    """A route that providers alone serve, compared with the pool that would be cheapest."""

    route: RouteSettings
    sums: Sums
    tokens: float  # a month, at the pace of the period
    offer: str = ""  # that pool; empty: none with a known price
    pays_from: float | None = None  # tokens a month from which the offer is cheaper
    break_even: float | None = None  # the same as a utilisation of the offer
    advice: str


def pools(books: Books) -> list[PoolStanding]:
    """Every pool against its API, by name."""
    sums = _by(report(books, ("pool",)))
    hours = elapsed(books)
    found = []
    for name, pool in settings_of(books).items():
        of, rate = sums.get(name, Sums()), rate_of(books, pool)
        cheaper: Cheaper
        cheaper, advice = (
            ("unknown", f"Who used the pool {span(hours)} is not known, so neither is what would be cheaper.")
            if books.unread
            else _pool_verdict(pool, of, rate, compared=pool.compare in books.prices, hours=hours)
        )
        found.append(PoolStanding(pool=pool, rate=rate, sums=of, cheaper=cheaper, advice=advice))
    return found


def routes(books: Books) -> list[RouteStanding]:
    """Every route that providers alone serve, by name."""
    sums = _by(report(books, ("route",)))
    alone = [route for route in books.routes if route.providers and not route.pools]
    offers = _offers(books)
    return [
        _route_verdict(books, route, sums.get(route.name, Sums()), offers)
        for route in sorted(alone, key=lambda route: route.name)
    ]


def span(hours: float) -> str:
    """A period that has just ended, in words: "in this hour", "in these 7 days"."""
    if hours < _DAYS_FROM:
        whole = max(1, round(hours))
        return "in this hour" if whole == 1 else f"in these {whole} hours"
    return f"in these {round(hours / 24, 1):g} days"


# -- a pool against an API ---------------------------------------------------------------------------


def _pool_verdict(
    pool: PoolSettings, sums: Sums, rate: Rate | None, *, compared: bool, hours: float
) -> tuple[Cheaper, str]:
    when, machines, people = span(hours), sums.machines, sums.people
    if machines is None or people is None:
        return "unknown", f"What the pool cost {when} is not known: {_lacking(sums)}."
    if not sums.served:
        asked = "Nobody got an answer from" if sums.requests else "Nobody asked"
        idle = f"{asked} the pool {when}; its machines cost {dollars(machines)}"
        if not machines:
            return "unknown", f"Nothing was counted {when}: neither machines nor tokens."
        return ("api", f"{idle}, an API nothing.") if compared else ("unknown", f"{idle}.")
    if not pool.compare:
        return "unknown", (
            "There is no API to hold it against: no route of the pool has a provider; name one as compare "
            f"in [pool.{pool.name}.cost]."
        )
    if sums.api is None:
        return "unknown", f"What {pool.compare} asks for a million tokens is not known: {_price_key(pool)}."
    own = f"{dollars(machines + people)} for machines{' and people' if people else ''}"
    if sums.api < machines + people:
        threshold, busy = _threshold(sums, rate, when, "below")
        there = f"{dollars(sums.api)} there against {own}"
        return "api", f"The API ({pool.compare}) would be cheaper{threshold}{busy}: {there}."
    threshold, busy = _threshold(sums, rate, when, "above")
    there = f"{own} against {dollars(sums.api)} at {pool.compare}"
    return "pool", f"The pool is cheaper{threshold}{busy}: {there}."


def _lacking(sums: Sums) -> str:
    """Why it is not known what the machines cost."""
    if not sums.uncounted:
        return "nodes had no known price"
    hours = " in some of the hours in which it served" if sums.node_ms else ""
    return f"no machine was counted{hours}"


def _threshold(sums: Sums, rate: Rate | None, when: str, side: str) -> tuple[str, str]:
    """The utilisation at which both cost the same, and what it was; only the time where no rate is known."""
    at, was = sums.break_even, sums.utilisation
    if at is None or was is None or rate is None:
        return "", f", {when}"
    digits = 1 if round(at, 2) == round(was, 2) else 0
    past = f"; {when} it was {_percent(was, digits)}"
    if at <= 1.0 or was >= at:
        return f" {side} {_percent(at, digits)} utilisation", past
    return f" even {'at the pace of its best hour' if rate.measured else 'when the pool is full'}", past


def _price_key(pool: PoolSettings) -> str:
    provider, _, model = pool.compare.partition("/")
    return f'write it as [provider.{provider}.price."{model}"]'


# -- a route of providers against a pool -------------------------------------------------------------


def _offers(books: Books) -> list[tuple[PoolSettings, Unit]]:
    """The pools with a known price and rate: what the ledger says of the period, else what the file does."""
    sums = _by(report(books, ("pool",)))
    found = []
    for name, pool in settings_of(books).items():
        rate, paid = rate_of(books, pool), sums.get(name, Sums()).usd_per_unit_hour
        price = pool.price if paid is None else paid
        if rate is not None and price is not None:
            found.append((pool, Unit(price=price, rate=rate.tokens, people=pool.people)))
    return found


def _route_verdict(
    books: Books, route: RouteSettings, sums: Sums, offers: list[tuple[PoolSettings, Unit]]
) -> RouteStanding:
    hours = elapsed(books)
    tokens = sums.tokens / hours * HOURS_OF_MONTH

    def standing(advice: str) -> RouteStanding:
        return RouteStanding(route=route, sums=sums, tokens=tokens, advice=advice)

    if not sums.tokens:
        return standing(f"Nobody {'got an answer from' if sums.requests else 'asked'} it {span(hours)}.")
    api = sums.usd_per_mtok
    if api is None:
        return standing("What it cost is not known: requests had no known price.")
    same = [(pool, unit) for pool, unit in offers if pool.task == route.task]
    if not same:
        return standing(
            f"It cost ${api:,.2f} a million tokens. From which traffic a pool would pay is not known: no "
            "pool that does the same has both a price and tokens_per_second in [pool.NAME.cost]."
        )
    peak = _peak(books, route)
    pool, unit = min(same, key=lambda offer: (offer[1].break_even(api), offer[0].name))
    return RouteStanding(
        route=route,
        sums=sums,
        tokens=tokens,
        offer=pool.name,
        pays_from=unit.pays_from(api, peak=peak),
        break_even=unit.break_even(api) if api else None,
        advice=offer_advice(f"A pool like {pool.name}", unit, api=api, tokens=tokens, peak=peak),
    )


def offer_advice(name: str, unit: Unit, *, api: float, tokens: float, peak: float) -> str:
    """Whether such units would pay for a traffic of so many tokens a month, as one sentence. `api`: USD per
    million tokens that it costs so far."""
    asks = f"${api:,.2f} a million tokens here"
    pays_from, share = unit.pays_from(api, peak=peak), unit.break_even(api)
    if pays_from is None:
        full = unit.usd_per_hour / (unit.rate * 3600.0 / _MTOK)
        if share > 1.0:
            return f"{name} would never pay: even when full it costs ${full:,.2f} against {asks}."
        return (
            f"{name} would never pay: sized for the busiest hour it costs ${full * peak:,.2f} against {asks}."
        )
    pays = f"{name} would pay from {count_words(pays_from)} tokens a month ({_percent(share)} of one unit)"
    own, units = unit.cost(tokens=tokens, peak=peak), unit.units_for(tokens=tokens, peak=peak)
    there = f"{dollars(own)} a month for {units:,} unit{'' if units == 1 else 's'}"
    bill = f"{dollars(api * tokens / _MTOK)} a month here"
    return f"{pays}; this pace is {count_words(tokens)}: {bill} against {there}."


def _peak(books: Books, route: RouteSettings) -> float:
    """Tokens of the route's busiest hour over those of the mean one; 1 where no hours are known."""
    hours: defaultdict[int, int] = defaultdict(int)
    for used in books.usage:
        if used.route == route.name and books.inside(used.hour) and used.backend.startswith(PROVIDER):
            hours[used.hour] += tokens_of(used)
    whole = sum(hours.values())
    return max(1.0, max(hours.values()) * elapsed(books) / whole) if whole else 1.0


# -- words -------------------------------------------------------------------------------------------


def _by(found: Report) -> dict[str | None, Sums]:
    """The sums of a report by a single dimension."""
    return {row.group[0]: row.sums for row in found.rows}


def dollars(amount: float) -> str:
    """USD in words, to the cent; less than a cent with two digits."""
    return f"${amount:.2g}" if 0 < amount < _CENT else f"${amount:,.2f}"


def _percent(share: float, digits: int = 0) -> str:
    """A share in percent; below one percent with a digit, so that it does not show as none."""
    return f"{share * 100:.{digits}f}%" if share >= 0.01 or share <= 0 else f"{share * 100:.1g}%"


def count_words(tokens: float) -> str:
    """Tokens in few characters.

    >>> [count_words(tokens) for tokens in (950, 999_600, 1.2e6, 2.34e9, 4e15)]
    ['950', '1M', '1.2M', '2.34G', '4,000T']
    """
    for size, sign in _SIZES:
        if tokens >= size * _ROUNDS_UP:
            return f"{tokens / size:,.0f}{sign}" if tokens >= size * 1e3 else f"{tokens / size:.3g}{sign}"
    return f"{tokens:.0f}"
