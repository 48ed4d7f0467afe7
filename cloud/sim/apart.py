"""Watches that one region's silence holds back nothing elsewhere.

Apart from `cloud.sim.checker`, which demands that a pool comes to what is wanted when nothing fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cloud.sim.counting import units
from cloud.sim.faults import BALANCER, CLOUD, within
from cloud.sim.invariants import Bounds, DaemonState
from cloud.sim.world import Machine, SimWorld
from policies.model import Pool
from policies.regions import UNSEEN_FOR

_REMEMBERED = 10.0
"""Half-lives for which a refusal or a quota may keep a placement from being tried."""

_OTHERS = (*CLOUD, *BALANCER, "any")


def hidden(world: SimWorld) -> frozenset[str]:
    """Regions whose machines cannot be listed now."""
    return frozenset(r for r in world.regions if any(map(world.faults.out, within(("list",), r))))


class Apart:
    """`regions` of one pool: while a region is silent, what is missing is launched in another one, within the
    time that a list takes to grow old and launches take to have an outcome; in a pool that never launched
    anything, once it has waited for that region as well. `report` takes what breaks.

    Nothing is said where a limit or a shortage may hold back launches, or what other faults left behind:
    refusals and quotas are remembered for ten half-lives at most.
    """

    def __init__(
        self,
        world: SimWorld,
        pool: Pool,
        *,
        daemon: Callable[[], DaemonState | None],
        faults_on: Callable[[], bool],
        bounds: Bounds,
        checked: Callable[[str], None],
        report: Callable[[str, str, str], None],
    ) -> None:
        self._world, self._pool, self._daemon, self._faults_on = world, pool, daemon, faults_on
        self._checked, self._report = checked, report
        self._patience = bounds.settle_calls + pool.patience.stale_after
        self._short_since: float | None = None
        self._troubled_at = -math.inf
        world.on_tick.append(self._on_tick)

    def _on_tick(self, now: float) -> None:
        daemon, silent = self._daemon(), hidden(self._world)
        if self._troubled(silent):
            self._troubled_at = now
        recovered_at = self._troubled_at + _REMEMBERED * self._pool.placement.refusal_half_life
        if daemon is None or now < recovered_at or not silent:
            self._short_since = None
            return
        self._checked("regions")
        live = [m for m in self._world.of(self._pool.name) if m.live and not m.foreign]
        held = units(self._pool, (m for m in live if self._works(m)))
        if held >= self._pool.replicas or self._full(live):
            self._short_since = None
            return
        self._short_since = now if self._short_since is None else self._short_since
        patience = self._patience + (UNSEEN_FOR if self._world.launches == 0 else 0.0)
        if now - max(self._short_since, daemon.up_since) > patience:
            away, noun = ", ".join(sorted(silent)), self._pool.noun()
            text = f"{held} {noun} work, {self._pool.replicas} are wanted, and only {away} is silent"
            self._report("regions", "launches", text)

    def _works(self, machine: Machine) -> bool:
        gone = machine.silent_since is not None or machine.unseen_since is not None
        return not (machine.doomed or machine.set_aside or gone)

    def _full(self, live: list[Machine]) -> bool:
        """A limit leaves no room for another node."""
        cap, prices = self._pool.limits.spend_per_hour, self._world.prices
        dear = cap is not None and sum(prices[m.placement] for m in live) + max(prices.values()) > cap
        return dear or units(self._pool, live) >= self._pool.most_units

    def _troubled(self, silent: frozenset[str]) -> bool:
        """Something but a region fails, or none is left, or there may be no room in those that are."""
        world = self._world
        left = [n for p, n in world.capacity.items() if p.region not in silent]
        return any(map(world.faults.out, _OTHERS)) or self._faults_on() or min(left, default=0) <= 0
