"""The loss of a whole pool: every engine that serves is killed at once, without notice.

Its requests go on at the provider of its route and come back when the pool can answer again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from cloud.errors import CloudError
from cloud.local.connection import LocalCloud
from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.demo.load import LoadReport
from orchestrator.demo.options import PROVIDER
from orchestrator.views.api import EventView, PoolView

log = structlog.get_logger("demo")

_AT = 0.4
"""Share of the demo's time before the loss."""


class PoolLoss:
    """Kills the engine of every node of a pool that serves, once, when its time has come.

    `at`: when it did, in seconds of the clock; None before. `nodes`: how many it killed. `owed`: the pool was
    not lost yet, or has not answered as a whole pool since.
    """

    def __init__(self, cloud: LocalCloud, clock: Clock, *, pool: str) -> None:
        self._cloud, self._clock = cloud, clock
        self.pool = pool
        self.at: float | None = None
        self.nodes = 0
        self.owed = True
        self._down = False
        self._answered = 0

    async def step(self, progress: float, pool: PoolView, report: LoadReport) -> None:
        """Look at the pool at this share of the demo's time; `report` is of the requests for it."""
        answered = report.backends[self.pool]
        whole = pool["ready"] >= pool["wanted"] <= pool["serving"]
        if self.at is None:
            if progress >= _AT and whole:
                # one that starts is given up only when its boot took too long
                await self._kill([node["id"] for node in pool["nodes"] if node["attached"]])
        elif not whole:
            self._down, self._answered = True, answered
        elif self._down and answered > self._answered:
            self.owed = False

    def line(self) -> str:
        """One line for the screen."""
        if self.at is None:
            return f"The pool {self.pool} is going to be lost as a whole."
        ago = f"lost all {self.nodes} nodes {self._clock.now() - self.at:.0f} s ago"
        return f"The pool {self.pool} {ago}: " + ("the provider answers." if self.owed else "it is back.")

    async def _kill(self, nodes: Sequence[str]) -> None:
        self.at = self._clock.now()
        orders = (self._cloud.admin("kill-engine", orjson.dumps({"node": node})) for node in nodes)
        for error in await asyncio.gather(*orders, return_exceptions=True):
            if isinstance(error, CloudError):
                log.warning("loss.refused", error=str(error))
            elif isinstance(error, BaseException):
                raise error
            else:
                self.nodes += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """What clients saw of a loss, in seconds from it: None for what never came."""

    provider: float | None  # the first answer of the provider began
    ready: float | None  # the first node was ready again
    back: float | None  # the first answer of the pool after that began


def fallback(pool: str, lost_at: float, report: LoadReport, events: Sequence[EventView]) -> Fallback:
    """Who answered when after the loss of a pool. `events` is the journal."""
    ready = min(
        (e["at"] for e in events if e["kind"] == "NodeReady" and e.get("pool") == pool and e["at"] > lost_at),
        default=None,
    )
    provided = [at for at, backend in report.began if at > lost_at and backend.startswith(f"{PROVIDER}/")]
    back = [at for at, backend in report.began if ready is not None and at > ready and backend == pool]

    def after(at: float | None) -> float | None:
        return None if at is None else at - lost_at

    return Fallback(
        provider=after(min(provided, default=None)), ready=after(ready), back=after(min(back, default=None))
    )


def summary(loss: PoolLoss, report: LoadReport, events: Sequence[EventView]) -> dict[str, Any] | None:
    """The loss as a JSON object, times in seconds; None where there was none."""
    if loss.at is None:
        return None
    seen = fallback(loss.pool, loss.at, report, events)
    return {
        "pool": loss.pool,
        "nodes": loss.nodes,
        "requests": report.sent,
        "failed": report.failed,
        "streams_cut": report.streams_cut,
        "by_provider": report.by_provider,
        "provider_after_s": _rounded(seen.provider),
        "ready_after_s": _rounded(seen.ready),
        "back_after_s": _rounded(seen.back),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
