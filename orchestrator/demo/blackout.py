"""The last act of the demo: every engine of the pool is killed at once; a provider answers until it is back.

The load of this act counts by itself: what the market took before has its own promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from cloud.errors import NotFound
from cloud.local.connection import LocalCloud
from cloud.ports import Clock
from orchestrator.demo.load import Load
from orchestrator.demo.processes import Process, wait_for
from orchestrator.views.api import PoolView

_BEFORE, _AFTER = 10, 20
"""Answers of the pool before all is killed, and after it is back."""


async def blackout(
    load: Load,
    *,
    pool: Callable[[], Awaitable[PoolView | None]],
    usd: Callable[[], Awaitable[float]],
    cloud: LocalCloud,
    running: tuple[Process, ...],
    clock: Clock,
    seconds: float,
    stop: asyncio.Event,
) -> dict[str, Any]:
    """Kill the engines of all nodes that serve under load, and wait until the pool answers again.

    Each wait takes at most so many `seconds`. `pool` shows the pool, None while the daemon does not answer;
    `usd` is what the provider cost today. `stop` ends it before. Raises ProcessError, CloudError.
    """
    report, over, spent = load.report, asyncio.Event(), await usd()

    async def until(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        async def held() -> bool:
            return stop.is_set() or await holds()

        await wait_for(held, running, seconds=seconds, clock=clock, what=what)

    async def answered() -> bool:
        return report.by_pool >= goal

    async def provided() -> bool:
        return report.by_provider > 0

    async def killed() -> bool:
        view = await pool()
        for node in view["nodes"] if view is not None else ():
            if node["attached"]:  # one that starts is given up only when its boot took too long
                await _kill(cloud, node["id"])
        return view is not None

    async def whole() -> bool:
        view = await pool()
        return view is not None and view["serving"] >= view["wanted"]

    sending = asyncio.create_task(load.run(over))
    try:
        goal = _BEFORE
        await until("an answer of the pool", answered)
        await until("a list of the nodes", killed)
        lost_at = clock.steady()
        await until("an answer of the provider", provided)
        first = clock.steady() - lost_at
        await until("a whole pool after the loss", whole)
        goal = report.by_pool + _AFTER
        await until("an answer of the pool after the loss", answered)
    finally:
        over.set()
        await sending
    return {
        "requests": report.sent,
        "answered": report.answered,
        "failed": report.failed,
        "failures": dict(report.failures),
        "by_provider": report.by_provider,
        "streams_cut": report.streams_cut,
        "first_answer_s": round(first, 2),
        "usd": round(await usd() - spent, 6),
    }


async def _kill(cloud: LocalCloud, node: str) -> None:
    try:
        await cloud.admin("kill-engine", orjson.dumps({"node": node}))
    except NotFound:  # the market takes it already
        return
