"""The books as the document that GET /v1/cost and `orchestrator cost` answer with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import cast

from orchestrator.views.cost import (
    CostLineView,
    CostView,
    Dimension,
    ForecastView,
    PoolCostView,
    RouteCostView,
)
from orchestrator.words import instant, plural
from policies import self_or_api
from policies.cost_report import Row, elapsed, report
from policies.cost_rows import Books
from policies.cost_sums import Sums
from policies.economics import HOUR
from policies.forecast import forecast
from policies.spend import PICO

_DAY = 24
_FEW = 10.0  # tokens/s below which whole ones say too little


def view_of(books: Books, by: Sequence[str], missing: Sequence[str] = ()) -> CostView:
    """The report of the period by these dimensions. Raises ValueError for an unknown or a double one.

    `missing` says what is not in the books, and comes first in the notes.
    """
    found = report(books, by)
    hours, pools = elapsed(books), self_or_api.pools(books)

    def line(row: Row, group: dict[str, str | None]) -> CostLineView:
        line = _line(row, group, hours)
        return _without_use(line) if books.unread and row.pools else line

    return {
        "schema": "cost/1",
        "since": books.since * HOUR,
        "until": books.until * HOUR,
        "by": cast("list[Dimension]", list(by)),
        "rows": [line(row, dict(zip(by, row.group, strict=True))) for row in found.rows],
        "total": line(found.whole, {}),
        "pools": [_pool(one, line) for one in pools],
        "routes": [_route(one, hours) for one in self_or_api.routes(books)],
        "forecast": _forecast(books),
        "notes": [*missing, *_notes(books, found.total, pools)],
    }


def _line(row: Row, group: dict[str, str | None], hours: float) -> CostLineView:
    sums, compares = row.sums, row.pools == 1
    return {
        "group": group,
        "spent_usd": sums.spent,
        "known_usd": sums.known,
        "usd_per_hour": None if sums.spent is None else sums.spent / hours,
        "machines_usd": sums.machines,
        "providers_usd": sums.providers,
        "people_usd": sums.people,
        "on_demand_usd": sums.on_demand,
        "saved_usd": sums.saved,
        "saved_share": sums.saved_share,
        "node_hours": sums.node_ms / 1000 / HOUR,
        "unpriced_node_hours": sums.unpriced_ms / 1000 / HOUR,
        "requests": sums.requests,
        "estimated_requests": sums.estimated,
        "unpriced_requests": sums.unpriced_requests,
        "tokens_fresh": sums.fresh,
        "tokens_cached": sums.cached,
        "tokens_written": sums.written,
        "tokens_in": sums.prompt,
        "tokens_out": sums.output,
        "utilisation": sums.utilisation if compares else None,
        "usd_per_mtok": sums.usd_per_mtok,
        "usd_per_mtok_people": sums.usd_per_mtok_people,
        "break_even_utilisation": sums.break_even if compares else None,
        "api_usd": sums.api,
        "api_usd_per_mtok": sums.api_per_mtok,
    }


def _without_use(line: CostLineView) -> CostLineView:
    """The same where it is not known who used the pools, nor how much."""
    return {
        **line,
        "requests": None,
        "estimated_requests": None,
        "tokens_fresh": None,
        "tokens_cached": None,
        "tokens_written": None,
        "tokens_in": None,
        "tokens_out": None,
        "utilisation": None,
        "usd_per_mtok": None,
        "usd_per_mtok_people": None,
        "break_even_utilisation": None,
        "api_usd": None,
        "api_usd_per_mtok": None,
    }


def _pool(
    one: self_or_api.PoolStanding, line: Callable[[Row, dict[str, str | None]], CostLineView]
) -> PoolCostView:
    rate = one.rate
    return {
        "pool": one.pool.name,
        "compare": one.pool.compare or None,
        "people": one.pool.people,
        "tokens_per_second": rate.tokens if rate else None,
        "rate_source": "unknown" if rate is None else "measured" if rate.measured else "configured",
        "usd_per_unit_hour": one.sums.usd_per_unit_hour,
        "line": line(Row(group=(), sums=one.sums, pools=1), {"pool": one.pool.name}),
        "cheaper": one.cheaper,
        "advice": one.advice,
    }


def _route(one: self_or_api.RouteStanding, hours: float) -> RouteCostView:
    return {
        "route": one.route.name,
        "task": one.route.task,
        "providers": list(one.route.providers),
        "line": _line(Row(group=(), sums=one.sums, pools=0), {"route": one.route.name}, hours),
        "tokens_per_month": one.tokens,
        "offer": one.offer or None,
        "pays_from_tokens_per_month": one.pays_from,
        "pays_from_utilisation": one.break_even,
        "advice": one.advice,
    }


def _forecast(books: Books) -> ForecastView:
    found = forecast(_hourly(books), now=books.now)
    return {
        "month": found.month,
        "so_far_usd": found.so_far,
        "counted_since": found.since,
        "expected_usd": found.expected,
        "low_usd": found.low,
        "high_usd": found.high,
        "hours": found.hours,
        "text": found.text,
    }


def _hourly(books: Books) -> dict[int, float]:
    """USD by hour: machines as they were paid for, a provider's day evenly over its hours up to now, from the
    first on in which anything was counted."""
    hourly: defaultdict[int, float] = defaultdict(float)
    for node in books.machines:
        hourly[node.hour] += node.usd
    begin = min(books.hours, default=0)
    for day in books.providers:
        midnight = int(datetime.fromisoformat(day.day).replace(tzinfo=UTC).timestamp() // HOUR)
        end = min(midnight + _DAY, int(books.now // HOUR) + 1)
        hours = range(max(midnight, begin), end) or range(midnight, midnight + 1)
        for hour in hours:
            hourly[hour] += day.usd / PICO / len(hours)
    return dict(hourly)


def _notes(books: Books, total: Sums, pools: Sequence[self_or_api.PoolStanding]) -> Iterator[str]:
    """What is missing or assumed."""
    begin = min(books.hours, default=None)
    if begin is None and not books.providers:
        yield (
            "nothing was counted yet: machines are, while the daemon runs; tokens, while requests come "
            "through the gateway"
        )
    elif begin is not None and begin > books.since:
        yield f"counting began within the hour from {instant(begin * HOUR)} on"
    if total.unpriced_ms:
        lost = total.unpriced_ms / 1000 / HOUR
        yield f"{lost:.1f} node-hours had no known price: what depends on them is not known"
    if total.uncounted:
        yield f"{total.uncounted:,} tokens were served in hours of which no machine was counted"
    if total.unpriced_requests:
        lacking = plural(total.unpriced_requests, "request")
        yield f"{lacking} to providers had no known price: what depends on them is not known"
    if total.estimated:
        yield f"the tokens of {total.estimated:,} of {plural(total.requests, 'request')} are estimated"
    for one in pools:
        yield from _rate_notes(one)


def _rate_notes(one: self_or_api.PoolStanding) -> Iterator[str]:
    name, rate, used = one.pool.name, one.rate, one.sums.utilisation
    if rate is not None and rate.measured:
        best = f"{rate.tokens:,.0f}" if rate.tokens >= _FEW else f"{rate.tokens:.1g}"
        yield (
            f"{name}: utilisation is relative to the best hour, {best} tokens/s a unit; if no hour was "
            f"full, it is too high: write tokens_per_second in [pool.{name}.cost]"
        )
    elif used is not None and used > 1.0:
        yield (
            f"{name}: it served {used:.0%} of what tokens_per_second says a unit can: raise it in "
            f"[pool.{name}.cost]"
        )
