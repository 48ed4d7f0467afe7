"""What the last day and the last week cost, for the status and for Prometheus.

Worked out every minute beside the loop, and more seldom where reading takes long: a month with a hundred keys
takes half a second. What cannot be read is shown as unknown.
"""

from __future__ import annotations

import asyncio
import math

from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.api.costs import Costs, NoSuchCost
from orchestrator.journal.store import StoreUnavailable
from orchestrator.metrics import metrics
from orchestrator.views.api import PoolDayView, PoolView
from orchestrator.views.cost import CostView

log = structlog.get_logger("api")

_EVERY = 60.0
_SHARE = 0.01
"""The most of the time that is spent on it."""

_PATIENCE = 60.0
_DAY = 86_400.0


class CostWatch:
    """The newest figures. `day` and `week` are None while none could be read."""

    def __init__(self, costs: Costs, clock: Clock) -> None:
        self._costs, self._clock = costs, clock
        self.day: CostView | None = None
        self.week: CostView | None = None

    async def run(self) -> None:
        """Read them for ever."""
        while True:
            began = self._clock.steady()
            await self.look()
            await self._clock.sleep(max(_EVERY, (self._clock.steady() - began) / _SHARE))

    async def look(self) -> None:
        """Read them, and set the gauges."""
        now = self._clock.now()
        day = week = None
        try:
            async with asyncio.timeout(_PATIENCE):
                week = await self._costs.report({"since": str(now - 7 * _DAY)})
                day = await self._costs.report({"since": str(now - _DAY)})
        except (NoSuchCost, StoreUnavailable, TimeoutError) as error:
            log.warning("costs.read_failed", error=str(error) or f"not within {_PATIENCE:g} s")
        self.day, self.week = day, week
        publish(week)
        metrics.MONTH_BUDGET.set(_known(self._costs.month_budget))

    def add_to(self, pools: list[PoolView]) -> None:
        """Tell each pool what its last day cost, where anything was served."""
        lines = {} if self.day is None else {pool["pool"]: pool["line"] for pool in self.day["pools"]}
        for pool in pools:
            line = lines.get(pool["name"])
            if line is not None and (line["tokens_in"] or line["tokens_out"]):
                pool["day"] = PoolDayView(
                    usd_per_mtok=line["usd_per_mtok"],
                    usd_per_mtok_people=line["usd_per_mtok_people"],
                    api_usd_per_mtok=line["api_usd_per_mtok"],
                    utilisation=line["utilisation"],
                    break_even_utilisation=line["break_even_utilisation"],
                )


def publish(week: CostView | None) -> None:
    """Set the gauges: none for a pool of which nothing is known, NaN for a figure that is not."""
    for gauge in (metrics.UTILISATION, metrics.BREAK_EVEN, metrics.MTOK, metrics.API_MTOK):
        gauge.clear()
    month = None if week is None else week["forecast"]
    metrics.MONTH_SPENT.set(_known(None if month is None else month["so_far_usd"]))
    metrics.MONTH_EXPECTED.set(_known(None if month is None else month["expected_usd"]))
    for pool in () if week is None else week["pools"]:
        name, line = pool["pool"], pool["line"]
        metrics.UTILISATION.labels(name).set(_known(line["utilisation"]))
        metrics.BREAK_EVEN.labels(name).set(_known(line["break_even_utilisation"]))
        metrics.MTOK.labels(name, "without").set(_known(line["usd_per_mtok"]))
        metrics.MTOK.labels(name, "with").set(_known(line["usd_per_mtok_people"]))
        metrics.API_MTOK.labels(name).set(_known(line["api_usd_per_mtok"]))


def _known(value: float | None) -> float:
    return math.nan if value is None else value
