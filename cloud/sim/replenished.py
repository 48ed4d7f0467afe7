"""Watches that a pool is replenished while one part is away and nothing else fails.

Apart from `cloud.sim.checker`, which demands that a pool comes to what is wanted when nothing fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from cloud.sim.counting import units, weight
from cloud.sim.faults import BALANCER, CLOUD, within
from cloud.sim.invariants import Bounds, DaemonState
from cloud.sim.numbers import Numbers
from cloud.sim.world import Machine, SimWorld
from policies.model import Pool
from policies.regions import UNSEEN_FOR

PRICES = "offerings"
"""The call that reads prices."""

_REMEMBERED = 10.0
"""Half-lives for which a refusal or a quota may keep a placement from being tried."""


def hidden(world: SimWorld) -> frozenset[str]:
    """Regions whose machines cannot be listed now."""
    return frozenset(r for r in world.regions if any(map(world.faults.out, within(("list",), r))))


class Replenished:
    """`name` of one pool: what is missing while one part alone is away is launched in time.

    Nothing is said where a limit or a shortage may hold back launches, or what other faults left behind:
    refusals and quotas are remembered for ten half-lives at most. Nor while the first machines of a pool are
    on their way: the others wait until one of them is seen to run. `report` takes what breaks.
    """

    name: ClassVar[str]

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
        self._began = False  # a machine was seen to run
        world.on_tick.append(self._on_tick)

    def _on_tick(self, now: float) -> None:
        if self._faults_on() or any(map(self._world.faults.out, self._others())) or self._scarce():
            self._troubled_at = now
        recovered_at = self._troubled_at + _REMEMBERED * self._pool.placement.refusal_half_life
        away = "" if now < recovered_at else self._away()
        daemon = self._daemon() if away else None
        if daemon is None:
            self._short_since = None
            return
        self._checked(self.name)
        held = units(self._pool, filter(self._counts, self._live()))
        if held >= self._pool.replicas or self._full(daemon) or self._begins():
            self._short_since = None
            return
        self._short_since = now if self._short_since is None else self._short_since
        if now - max(self._short_since, daemon.up_since) > self._patience():
            wanted = f"{held} {self._pool.noun()} count, {self._pool.replicas} are wanted"
            self._report(self.name, "launches", f"{wanted}, and only {away}")

    def _begins(self) -> bool:
        """The first machines of the pool are on their way, and none of them was seen to run yet."""
        machines = self._world.of(self._pool.name)
        self._began = self._began or any(m.addressed_at is not None for m in machines)
        return self._world.launches > 0 and not self._began

    def _patience(self) -> float:
        """Seconds for which something may be missing."""
        return self._bounds.settle_calls

    def _away(self) -> str:
        """What is away now, in words; empty when nothing is."""
        raise NotImplementedError

    def _others(self) -> Sequence[str]:
        """Calls that must work, by name."""
        raise NotImplementedError

    def _scarce(self) -> bool:
        """There may be no room in some place that works, or no money for it."""
        raise NotImplementedError

    def _counts(self, machine: Machine) -> bool:
        """A live machine counts for what is wanted."""
        return not (machine.going or machine.set_aside)

    def _full(self, _daemon: DaemonState) -> bool:
        """A limit leaves no room for a node beside those that live, or may for all that a daemon can know."""
        return False

    def _live(self) -> list[Machine]:
        """The pool's machines that have not ended."""
        return [m for m in self._world.of(self._pool.name) if m.live and not m.foreign]


class Priceless(Replenished):
    """While prices cannot be read, within the time that launches take to have an outcome."""

    name = "prices"

    def _away(self) -> str:
        return "prices cannot be read" if self._world.faults.out(PRICES) else ""

    def _others(self) -> Sequence[str]:
        calls = (*(call for call in CLOUD if call != PRICES), *BALANCER, "any")
        return (*calls, *(name for region in self._world.regions for name in within(calls, region)))

    def _scarce(self) -> bool:
        return self._pool.limits.spend_per_hour is not None or min(self._world.capacity.values()) <= 0


class Apart(Replenished):
    """While a region is silent, in another one: within the time that its list takes to grow old as well.

    A pool that never launched anything has waited for that region before.
    """

    name = "regions"

    def _patience(self) -> float:
        waits = UNSEEN_FOR if self._world.launches == 0 else 0.0
        return super()._patience() + self._pool.patience.stale_after + waits

    def _away(self) -> str:
        silent = hidden(self._world)
        return f"{', '.join(sorted(silent))} is silent" if silent else ""

    def _others(self) -> Sequence[str]:
        return (*CLOUD, *BALANCER, "any")

    def _scarce(self) -> bool:
        silent = hidden(self._world)
        return min((n for p, n in self._world.capacity.items() if p.region not in silent), default=0) <= 0

    def _counts(self, machine: Machine) -> bool:
        gone = machine.silent_since is not None or machine.unseen_since is not None
        return super()._counts(machine) and not gone

    def _full(self, daemon: DaemonState) -> bool:
        taken = [*(m.placement for m in self._live()), *daemon.doubtful]
        cap, prices = self._pool.limits.spend_per_hour, self._world.prices
        dear = cap is not None and sum(prices[p] for p in taken) + max(prices.values()) > cap
        return dear or sum(weight(self._pool, p) for p in taken) >= Numbers.of(self._pool).most
