"""The figures of the last day and week: read now and then, told as not known where they cannot be read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import pytest
from cost_books import DAY0, baseline, books, machine, pool, provider_day, used

from orchestrator.api.cost_watch import CostWatch, publish
from orchestrator.api.costs import NoSuchCost
from orchestrator.costs.view import view_of
from orchestrator.journal.store import StoreUnavailable
from orchestrator.metrics.metrics import REGISTRY
from policies.cost_rows import Books

NAMES = (
    "pool_utilisation_ratio", "pool_break_even_utilisation_ratio", "pool_usd_per_million_tokens",
    "pool_api_usd_per_million_tokens",
)  # fmt: skip


NOW = 1_800_000_000.0


class Clock:
    """Stands still but for `took` seconds at each look; the third sleep ends the test."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.took = 0.0
        self.passed = 0.0

    def steady(self) -> float:
        self.passed += self.took
        return self.passed

    def now(self) -> float:
        return NOW

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == 3:
            raise asyncio.CancelledError


class Reports:
    """Answers in the place of the books; counts how often it was asked."""

    def __init__(self, found: Books) -> None:
        self.found = found
        self.asked: list[float] = []
        self.fault: Exception | None = None
        self.slow = False
        self.month_budget: float | None = None

    async def report(self, query: Mapping[str, str]) -> Any:
        self.asked.append(NOW - float(query["since"]))
        if self.slow:
            await asyncio.Event().wait()
        if self.fault is not None:
            raise self.fault
        return view_of(self.found, ("pool",))


def full(**changes: Any) -> Books:
    hours = [DAY0 + n for n in range(24)]
    values: dict[str, Any] = {
        "machines": [machine(hour, 1.5) for hour in hours],
        "baseline": [baseline(hour, 3.0) for hour in hours],
        "usage": [used(hour, fresh=400_000, output=50_000) for hour in hours],
        "providers": [provider_day(usd=4.0)],
        "pools": (pool(people=0.5), pool(name="idle")),
    }
    return books(**(values | changes))


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"orchestrator_{name}", labels)


@pytest.fixture
def watched() -> Any:
    reports, clock = Reports(full()), Clock()
    yield reports, clock, CostWatch(reports, clock)  # type: ignore[arg-type]
    publish(None)


async def test_the_week_is_in_the_gauges(watched: Any) -> None:
    reports, _, watch = watched
    await watch.look()
    assert reports.asked == [7 * 86400.0, 86400.0]
    assert value("pool_utilisation_ratio", pool="chat") == pytest.approx(0.25)
    assert value("pool_break_even_utilisation_ratio", pool="chat") == pytest.approx(
        2.25 / (500 * 3.6e-3 * (400 * 3 + 50 * 15) / 450)
    )
    assert value("pool_usd_per_million_tokens", pool="chat", people="without") == pytest.approx(1.5 / 0.45)
    assert value("pool_usd_per_million_tokens", pool="chat", people="with") == pytest.approx(2.25 / 0.45)
    assert value("pool_api_usd_per_million_tokens", pool="chat") == pytest.approx(1.95 / 0.45)
    assert math.isnan(value("pool_utilisation_ratio", pool="idle") or 0)
    assert value("month_spent_usd") == pytest.approx(40.0)
    assert value("month_expected_usd") == pytest.approx(40.0 * 28)
    assert math.isnan(value("month_budget_usd") or 0), "the file says none"
    reports.month_budget = 900.0
    await watch.look()
    assert value("month_budget_usd") == 900.0


@pytest.mark.parametrize(("took", "every"), [(0.0, 60.0), (0.5, 60.0), (3.0, 300.0)])
async def test_it_is_read_every_minute_and_more_seldom_where_that_takes_long(
    watched: Any, took: float, every: float
) -> None:
    reports, clock, watch = watched
    clock.took = took
    with pytest.raises(asyncio.CancelledError):
        await watch.run()
    assert (len(reports.asked), clock.slept) == (6, [pytest.approx(every)] * 3)


@pytest.mark.parametrize(
    "fault", [StoreUnavailable("the disk is full"), NoSuchCost(400, "no")], ids=["journal", "refused"]
)
async def test_what_cannot_be_read_is_not_known(watched: Any, fault: Exception) -> None:
    reports, _, watch = watched
    await watch.look()
    reports.fault = fault
    await watch.look()
    assert (watch.day, watch.week) == (None, None)
    assert all(value(name, pool="chat") is None for name in NAMES)
    assert math.isnan(value("month_spent_usd") or 0)


async def test_a_disk_that_hangs_leaves_no_old_figures(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reports, _, watch = watched
    monkeypatch.setattr("orchestrator.api.cost_watch._PATIENCE", 0.01)
    reports.slow = True
    await watch.look()
    assert watch.week is None


async def test_a_pool_that_is_gone_leaves_no_series(watched: Any) -> None:
    reports, _, watch = watched
    await watch.look()
    reports.found = full(machines=[], usage=[], baseline=[], pools=(pool(name="idle"),))
    await watch.look()
    assert value("pool_utilisation_ratio", pool="chat") is None
    assert value("pool_utilisation_ratio", pool="idle") is not None


async def test_the_status_tells_of_pools_that_served_something(watched: Any) -> None:
    _, _, watch = watched
    pools: list[Any] = [{"name": "chat"}, {"name": "idle"}, {"name": "new"}]
    watch.add_to(pools)
    assert pools == [{"name": "chat"}, {"name": "idle"}, {"name": "new"}]
    await watch.look()
    watch.add_to(pools)
    assert pools[0]["day"]["usd_per_mtok_people"] == pytest.approx(5.0)
    assert pools[0]["day"]["utilisation"] == pytest.approx(0.25)
    assert pools[1:] == [{"name": "idle"}, {"name": "new"}]
