"""What the books say of a pool that a plan of its capacity needs: tokens by the hour, prices, kinds of nodes.

What it decides: nothing; it counts. Tokens are those that the pool itself answered, prompts and answers.
Prices are those that were paid: of a unit in the mix as it was, and of a wanted unit had it been on demand.
Why: a plan that is made from what happened needs no figure that somebody would have to guess.
Never: an hour whose price is not known in full counts for a price. What providers answered in the pool's
place is not in its demand, and is told apart: a pool that was short looks less busy than it was asked to be.

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
from policies.economics import HOUR
from policies.model import Market
from policies.value import value


@value
class Past:
    """One pool's history.

    `tokens` by the hour. `elsewhere`: tokens that providers answered on routes of the pool, as a share of all
    that these routes were asked for. `mix` and `on_demand`: USD/h of a unit, None where no hour tells.
    `kinds`: instance types that ran, the one with the most unit seconds first. `on_demand_kinds`: USD/h of a
    node of each kind, on demand, where one was paid for.
    """

    tokens: Mapping[int, int]
    elsewhere: float
    mix: float | None
    on_demand: float | None
    kinds: tuple[str, ...]
    on_demand_kinds: Mapping[str, float]


def past_of(books: Books, pool: str) -> Past:
    """The history of one pool, in the hours that the books are to be read for."""
    tokens: defaultdict[int, int] = defaultdict(int)
    used = [row for row in books.usage if row.hour >= books.since]
    for row in used:
        if row.backend == POOL + pool:
            tokens[row.hour] += tokens_of(row)
    machines = [node for node in books.machines if node.pool == pool and node.hour >= books.since]
    kinds: defaultdict[str, float] = defaultdict(float)
    for node in machines:
        kinds[node.instance_type] += node.unit_seconds
    priced = [node for node in machines if not node.unpriced]
    wanted = [
        hour
        for hour in books.baseline
        if hour.pool == pool and hour.hour >= books.since and not hour.unpriced
    ]
    on_demand = [node for node in priced if node.market is Market.ON_DEMAND]
    return Past(
        tokens=dict(tokens),
        elsewhere=_elsewhere(used, {route.name for route in books.routes if pool in route.pools}),
        mix=_hourly((node.usd, node.unit_seconds) for node in priced),
        on_demand=_hourly((hour.on_demand_usd, hour.wanted_unit_seconds) for hour in wanted),
        kinds=tuple(sorted(kinds, key=lambda kind: (-kinds[kind], kind))),
        on_demand_kinds={
            kind: price
            for kind in kinds
            if (price := _hourly((n.usd, n.seconds) for n in on_demand if n.instance_type == kind))
            is not None
        },
    )


def _hourly(parts: Iterable[tuple[float, float]]) -> float | None:
    """USD/h of all these USD and seconds together."""
    usd = seconds = 0.0
    for dollars, time in parts:
        usd, seconds = usd + dollars, seconds + time
    return usd / seconds * HOUR if seconds > 0.0 else None


def _elsewhere(used: Iterable[UsageHour], routes: Container[str]) -> float:
    """The share of providers in all tokens of these routes."""
    of_routes = [row for row in used if row.route in routes]
    away = sum(map(tokens_of, filter(_of_provider, of_routes)))
    return away / whole if (whole := sum(map(tokens_of, of_routes))) else 0.0


def _of_provider(row: UsageHour) -> bool:
    return row.backend.startswith(PROVIDER)
