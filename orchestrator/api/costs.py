"""What was spent on what, for `GET /v1/cost`: read and added up beside the loop, one report at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from cloud.ports import Clock
from orchestrator.config.load import Config
from orchestrator.costs.books import books_of
from orchestrator.costs.gather import Machines, Span, from_gateway, from_store
from orchestrator.costs.settings import settings_of
from orchestrator.costs.view import view_of
from orchestrator.journal.store import Store
from orchestrator.views.cost import CostView
from policies.economics import HOUR

_PERIOD: Final = 7 * 86_400.0
_LONGEST: Final = 400 * 24
"""Hours that one report may be about: no more are kept."""


class NoSuchCost(Exception):
    """The question has no answer; the message says why. `status`: the HTTP status of that answer."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Costs:
    """Reports from the daemon's journal and the gateways' files, under the configuration in force."""

    def __init__(self, *, store: Store, config: Callable[[], Config], clock: Clock) -> None:
        self._store, self._config, self._clock = store, config, clock
        self._busy = asyncio.Lock()

    @property
    def month_budget(self) -> float | None:
        """USD that a month may cost by the file, None where it does not say."""
        return self._config().cost.usd_per_month

    async def report(self, query: Mapping[str, str]) -> CostView:
        """The report that a query asks for.

        `since` and `until` are seconds since the epoch, by default the last seven days; whole hours are
        reported. `by`: dimensions with commas between them, by default `pool`. `pool`: of one pool only.
        Raises NoSuchCost, StoreUnavailable.
        """
        now, pool = self._clock.now(), query.get("pool", "")
        since, until = _hours(query, now)
        by = [name for name in query.get("by", "pool").split(",") if name]
        span = Span.wide(since, until, now)
        async with self._busy:
            machines = await from_store(self._store, span)
            if pool:
                machines = machines.of(pool)
                if pool not in self._config().pools and not machines.spent:
                    raise NoSuchCost(404, f"no pool {pool!r} is known, nor that it cost anything since then")
            work = partial(self._view, machines, span, since=since, until=until, by=by, pool=pool)
            try:
                return await asyncio.to_thread(work)
            except ValueError as error:
                raise NoSuchCost(400, f"by: {error}") from error

    def _view(
        self, machines: Machines, span: Span, *, since: int, until: int, by: list[str], pool: str
    ) -> CostView:
        config = self._config()
        settings = settings_of(config, now=span.now)
        used = from_gateway(config.gateway.usage_file, config.gateway.spend_file, span)
        if pool:
            used, settings = used.of(pool), settings.of(pool)
        books = books_of(settings, machines, used, since=since, until=until, now=span.now)
        return view_of(books, by, [*machines.unknown(since), *used.missing])


def _hours(query: Mapping[str, str], now: float) -> tuple[int, int]:
    """The hours from the first up to the last one. Raises NoSuchCost."""
    until = _instant(query, "until", now)
    since = _instant(query, "since", min(now, until) - _PERIOD)
    first, end = int(since // HOUR), math.ceil(min(until, now + HOUR) / HOUR)
    if not 0 <= first < end:
        raise NoSuchCost(400, "since must be before until, and not in the future")
    return max(first, end - _LONGEST), end


def _instant(query: Mapping[str, str], name: str, default: float) -> float:
    text = query.get(name, "")
    try:
        found = float(text) if text else default
    except ValueError:
        found = math.nan
    if not 0.0 <= found < 1e12:
        raise NoSuchCost(400, f"{name} must be a time in seconds since the epoch, not {text[:40]!r}")
    return found
