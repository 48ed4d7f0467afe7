"""Bugs in what the daemon judges and decides: each switches one rule of it off, as `planted_rules` does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from planted_rules import Patch, instead
from planted_rules import _all as all_of
from planted_rules import _checks_no_plan as checks_no_plan

from orchestrator.loop.actuator import TargetWriter
from orchestrator.loop.inbox import Inbox
from orchestrator.loop.observer import Observer
from policies import drain, plan_builder
from policies.fleet import Fleet
from policies.model import Phase, Placement, Pool, StandbyKind
from policies.plan_builder import Turn
from policies.records import Pause
from policies.regions import Sight

acknowledges_first: Patch = instead(Inbox, "written", lambda self, ticket: asyncio.sleep(0))
"""A source is told to forget a notice as soon as it was heard."""

ignores_pauses: Patch = instead(Pause, "holds", lambda self, now: False)
"""Nobody's hands are off."""


def _short_by_one(pool: Pool, *, real: property = Pool.on_demand_floor) -> int:  # type: ignore[assignment]
    return max(0, real.__get__(pool) - 1)


floor_one_short: Patch = instead(Pool, "on_demand_floor", property(_short_by_one))
"""The on-demand floor is one unit lower."""

floor_rounded_down: Patch = instead(
    Pool, "on_demand_floor", property(lambda pool: math.floor(pool.replicas * (1.0 - pool.spot_share) + 1e-9))
)
"""The on-demand share is rounded down."""


def _trusting(sight: Sight, region: str, *, real: Callable[[Sight, str], str] = Sight._why) -> str:
    pool = sight._pool
    patience = replace(pool.patience, stale_after=100.0 * pool.patience.stale_after)
    sight._pool = replace(pool, patience=patience)
    try:
        return real(sight, region)
    finally:
        sight._pool = pool


trusts_old_lists: Patch = instead(Sight, "_why", _trusting)
"""A list is good for a hundred times as long."""

calls_blindly: Patch = instead(Observer, "age", lambda self, region: 0.0)
"""Whether a region can still be listed is not asked again before a call."""

leaves_at_once: Patch = instead(drain, "begins_now", lambda *_, **__: True)
"""A noticed node leaves at once, whatever else serves."""

_QUIET = 2400.0


def _mourns(turn: Turn, placement: Placement, *, real: Callable[..., str] = Turn._holds) -> str:
    late = any(turn.now - reclaim.at < _QUIET for reclaim in turn.memory.reclaims.values())
    return "something was reclaimed" if late else real(turn, placement)


launches_nothing_after_a_reclaim: Patch = instead(Turn, "_holds", _mourns)
"""For forty minutes after a reclaim nothing is launched."""


def _without_spares(fleet: Fleet) -> tuple[float, int]:
    live = [n for n in fleet.nodes if n.phase is not Phase.GONE and n.standby is not StandbyKind.STOPPED]
    prices = [*(n.price for n in live), *(i.price for i in fleet.launching)]
    known = [price for price in prices if price is not None]
    return sum(known), len(prices) - len(known)


forgets_what_standbys_cost: Patch = partial(
    all_of, checks_no_plan, instead(plan_builder, "_spend", _without_spares)
)
"""The spend cap does not count stopped standbys, not even while they run."""

ignores_settling: Patch = instead(
    drain,
    "finished",
    lambda rules, node, *, real=drain.finished: real(replace(rules, settle=0.0), node),
)
"""A drained node is ended at the first look that finds it idle."""


async def _a_minute(self: TargetWriter, seconds: float) -> None:
    await self._clock.sleep(60.0)


waits_after_a_failed_write: Patch = instead(TargetWriter, "_back_off", _a_minute)
"""A target set that could not be written is tried again after a minute."""
