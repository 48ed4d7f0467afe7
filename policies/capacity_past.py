"""What the books say of a pool that a plan of its capacity needs: tokens by the hour, prices, kinds of nodes.

What it decides: nothing; it counts. Tokens are those that the pool itself answered, prompts and answers.
Prices are those that were paid: of a unit in the mix as it was, and of a wanted unit had it been on demand.
Why: a plan that is made from what happened needs no guessed figure.
Never: an hour whose price is not known in full counts for a price. What providers answered in the pool's
place is not in its demand, and counts apart: a pool that was short looks less busy than it was asked to be.

Example:
    >>> from policies.economics import SpendHour
    >>> node = SpendHour(pool="chat", hour=9, region="r", zone="a", instance_type="g", market=Market.SPOT,
    ...                  seconds=3600.0, usd=3.0, unit_seconds=7200.0, ready_unit_seconds=7200.0)
    >>> used = UsageHour(hour=9, backend="pool/chat", fresh=900, output=100)
    >>> books = Books(since=0, until=10, now=36000.0, machines=(node,), usage=(used,), prices={})
    >>> past = past_of(books, "chat")
    >>> past.tokens, past.mix, past.on_demand, past.kinds
    ({9: 1000}, 1.5, None, ('g',))
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping

from policies.cost_report import tokens_of
from policies.cost_rows import POOL, PROVIDER, Books, UsageHour
from policies.economics import HOUR, BaselineHour, SpendHour
from policies.model import Market
from policies.value import value


@value
class Past:
    """One pool's history."""

    tokens: Mapping[int, int]  # by the hour
    elsewhere: float  # tokens that providers answered, as a share of all on routes of the pool
    mix: float | None  # USD/h of a unit in the mix as it was; None: not known
    on_demand: float | None  # USD/h of a wanted unit on demand; None: not known
    kinds: tuple[str, ...]  # instance types that ran, the one with the most unit seconds first
    on_demand_kinds: Mapping[str, float]  # USD/h of a node of each type, where one was paid on demand


def past_of(books: Books, pool: str) -> Past:
    """The history of one pool, in the hours that the books are to be read for."""
    used = [row for row in books.usage if row.hour >= books.since]
    counted = books.tokens.get(POOL + pool, {})
    nodes = [node for node in books.machines if node.pool == pool and node.hour >= books.since]
    wanted = [hour for hour in books.baseline if hour.pool == pool and hour.hour >= books.since]
    on_demand = [node for node in nodes if node.market is Market.ON_DEMAND]
    units = _sums(nodes, "instance_type", "unit_seconds")
    return Past(
        tokens={hour: count for hour, count in counted.items() if hour >= books.since},
        elsewhere=_elsewhere(used, {route.name for route in books.routes if pool in route.pools}),
        mix=_hourly(nodes, "pool", "usd", "unit_seconds").get(pool),
        on_demand=_hourly(wanted, "pool", "on_demand_usd", "wanted_unit_seconds").get(pool),
        kinds=tuple(sorted(units, key=lambda kind: (-units[kind], kind))),
        on_demand_kinds=_hourly(on_demand, "instance_type", "usd", "seconds"),
    )


def _hourly(rows: Iterable[SpendHour | BaselineHour], by: str, usd: str, seconds: str) -> dict[str, float]:
    """USD/h of the rows whose price is known in full, by one of their fields."""
    priced = [row for row in rows if not row.unpriced]
    paid = _sums(priced, by, usd)
    return {name: paid[name] / time * HOUR for name, time in _sums(priced, by, seconds).items() if time > 0.0}


def _sums(rows: Iterable[SpendHour | BaselineHour], by: str, number: str) -> dict[str, float]:
    """The sums of a number of the rows, by one of their fields."""
    found: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        found[getattr(row, by)] += getattr(row, number)
    return found


def _elsewhere(used: Iterable[UsageHour], routes: Container[str]) -> float:
    """The share of providers in all tokens of these routes."""
    of_routes = [row for row in used if row.route in routes]
    away = sum(map(tokens_of, filter(_of_provider, of_routes)))
    return away / whole if (whole := sum(map(tokens_of, of_routes))) else 0.0


def _of_provider(row: UsageHour) -> bool:
    return row.backend.startswith(PROVIDER)
