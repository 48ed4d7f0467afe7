"""Watches that a pool whose prices cannot be read is replenished all the same.

Apart from `cloud.sim.checker`, which demands that a pool comes to what is wanted when nothing fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cloud.sim.counting import units
from cloud.sim.faults import BALANCER, CLOUD
from cloud.sim.invariants import Bounds, DaemonState
from cloud.sim.world import SimWorld
from policies.model import Pool

PRICES = "offerings"
"""The call that reads prices."""

_REMEMBERED = 10.0
"""Half-lives for which a refusal or a quota may keep a placement from being tried."""

_OTHERS = (*(call for call in CLOUD if call != PRICES), *BALANCER, "any")


class Priceless:
    """`prices` of one pool: what is missing while nothing but prices fails is launched within the time that
    launches take to have an outcome. `report` takes what breaks.

    Nothing is said where a spend cap may hold back launches, or a shortage somewhere, or what other faults
    left behind: refusals and quotas are remembered for ten half-lives at most.
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
        self._bounds, self._checked, self._report = bounds, checked, report
        self._short_since: float | None = None
        self._troubled_at = -math.inf
        world.on_tick.append(self._on_tick)

    def _on_tick(self, now: float) -> None:
        daemon = self._daemon()
        if self._troubled():
            self._troubled_at = now
        recovered_at = self._troubled_at + _REMEMBERED * self._pool.placement.refusal_half_life
        if daemon is None or now < recovered_at or not self._world.faults.out(PRICES):
            self._short_since = None
            return
        self._checked("prices")
        ours = (m for m in self._world.of(self._pool.name) if not m.foreign)
        held = units(self._pool, (m for m in ours if m.live and not m.doomed and not m.set_aside))
        if held >= self._pool.replicas:
            self._short_since = None
            return
        self._short_since = now if self._short_since is None else self._short_since
        if now - max(self._short_since, daemon.up_since) > self._bounds.settle_calls:
            text = f"{held} {self._pool.noun()} live, {self._pool.replicas} are wanted, and only prices fail"
            self._report("prices", "launches", text)

    def _troubled(self) -> bool:
        """Something but prices fails, or may hold back launches."""
        world = self._world
        others = any(world.faults.out(call) for call in _OTHERS) or self._faults_on()
        return others or self._pool.limits.spend_per_hour is not None or min(world.capacity.values()) <= 0
