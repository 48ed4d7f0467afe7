"""What gateway and daemon leave behind of the weeks before: usage file and journal, as they write them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from orchestrator.gateway.accounts.usage_file import UsageFile
from orchestrator.journal.sqlite import SqliteStore
from policies.demand import DAY, WEEK, of_week
from policies.economics import BaselineHour, Charge
from policies.model import Market, Placement

SPOT = Placement("local", "r", "a", "local.gpu", Market.SPOT)


async def count(
    state: Path,
    now: float,
    rate: Callable[[int], float],
    *,
    hours: int = 4 * WEEK,
    nodes: Sequence[tuple[Placement, float]] = ((SPOT, 1.0),) * 4,
    on_demand: float = 2.0,
) -> None:
    """Files in a state directory of a pool `chat` and its last so many hours. `rate`: tokens a second in an
    hour. `nodes`: where each was, and its USD/h; `on_demand`: USD/h of a unit."""
    first = int(now // 3600.0)
    span = range(first - hours, first)
    count_usage(state, "chat", now, rate, hours=hours)
    bills = [
        Charge(
            node=f"n{number}",
            placement=place,
            hour=hour,
            seconds=3600.0,
            usd=price,
            unit_seconds=3600.0,
            ready_unit_seconds=3600.0,
        )
        for hour in span
        for number, (place, price) in enumerate(nodes)
    ]
    wanted = len(nodes)
    base = [
        BaselineHour(
            pool="chat", hour=hour, on_demand_usd=on_demand * wanted, wanted_unit_seconds=wanted * 3600.0
        )
        for hour in span
    ]
    with closing(SqliteStore.open(state / "journal.db", now=now - hours * 3600.0, inline=True)) as store:
        await store.charge("chat", bills, baseline=base, until=now)


def count_usage(
    state: Path, pool: str, now: float, rate: Callable[[int], float], *, hours: int = 4 * WEEK
) -> None:
    """The usage file alone, of any pool; gateways may have it open."""
    first = int(now // 3600.0)
    usage = UsageFile(state / "usage.db")
    usage.add(
        ((_names(hour, pool), _sums(int(rate(hour) * 3600))) for hour in range(first - hours, first)), now
    )
    usage.close()


def people(now: float, seed: int, weekly: float = 1.05) -> Callable[[int], float]:
    """Tokens a second of people at work: most of them around two in the afternoon of working days."""
    chance, last = random.Random(seed), int(now // 3600.0)

    def rate(hour: int) -> float:
        day, of_day = divmod(of_week(hour), DAY)
        share = (0.25 + max(0.0, 1.0 - abs(of_day - 14) / 7.0)) * (0.3 if day >= 5 else 1.0)
        return 2800.0 * share * weekly ** ((hour - last) / WEEK) * chance.uniform(0.85, 1.1)

    return rate


def _names(hour: int, pool: str) -> tuple[int, str, str, str, str]:
    return hour, "team", "", f"pool/{pool}", ""


def _sums(tokens: int) -> list[float]:
    """A request for each 800 tokens, a fifth of them answers and a tenth from the cache."""
    requests, output, cached = tokens // 800, tokens // 5, tokens // 10
    return [requests, 0, 0, tokens - output - cached, cached, 0, output, requests * 0.4, requests * 3.0]
