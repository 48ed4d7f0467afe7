"""Whether a pool has come to what is wanted: in a simulated world, and by the account of its daemon."""

from __future__ import annotations

import math

from cloud.sim.counting import enough, units
from cloud.sim.knowable import Knowable
from cloud.sim.world import Machine
from policies.model import InstanceState, Market

_CENT = 1e-6


class Settled(Knowable):
    """What is missing until a pool is as its configuration wants it."""

    def unsettled(self, now: float) -> str:
        """What is not yet as the pool wants it, in words; empty when all is."""
        live = [m for m in self._ours() if m.live]
        standby = [m for m in live if self._aside(m, now)]
        working = [m for m in live if m not in standby]
        spot = [m for m in working if m.placement.market is Market.SPOT]
        others = [m for m in working if m.placement.market is Market.ON_DEMAND]
        pool, found = self._pool, []
        if text := self._other_mix(spot, others):
            found.append(text)
        stopped = [m for m in standby if m.state is InstanceState.STOPPED]
        few = not enough(pool, standby, self._numbers.stopped)
        few = few and not (units(pool, standby) < self._numbers.stopped and self._too_dear(Market.ON_DEMAND))
        if len(stopped) != len(standby) or few:
            found.append(f"{len(stopped)} of {len(standby)} standbys stopped, wanted {self._numbers.stopped}")
        found += [f"{m.id} is not ready" for m in working if not m.able(now)]
        names = {m.id for m in working}
        for table in self._tables:
            if set(table.targets) != names or len(table.active()) != len(names):
                held = " ".join(f"{s.id}={s.phase}" for s in table.targets.values())
                found.append(f"{table.name} holds {held or 'nothing'}")
        daemon = self._daemon()
        if daemon is None:
            found.append("no daemon runs")
        elif not {m.id for m in live} <= daemon.known:
            found.append("the daemon does not know all that lives")
        elif ended := sorted(daemon.known - {m.id for m in live}):
            found.append(f"the daemon still has {', '.join(ended)} on its books")
        return "; ".join(found)

    def _other_mix(self, spot: list[Machine], others: list[Machine]) -> str:
        """Says that this is not the wanted mix, or nothing.

        The adaptive mix finds its own: no fewer than wanted and the floor, as much again on spot at most, for
        what may be lost, and on demand no more than wanted, since that is not lost.
        """
        pool, numbers = self._pool, self._numbers
        if pool.adaptive is not None:
            few = len(spot) + len(others) < pool.replicas or len(others) < numbers.floor
            if not few and len(others) <= pool.replicas and len(spot) <= 2 * pool.replicas:
                return ""
            return f"{len(spot)} spot and {len(others)} on-demand live, wanted {pool.replicas}"
        want = (numbers.spot, numbers.floor + numbers.hot)
        if enough(pool, spot, want[0]) and enough(pool, others, want[1]):
            return ""
        few_spot, few_others = units(pool, spot) < want[0], units(pool, others) < want[1]
        missing = [m for m, few in ((Market.SPOT, few_spot), (Market.ON_DEMAND, few_others)) if few]
        if missing and all(map(self._too_dear, missing)):
            return ""
        held = f"{units(pool, spot)} spot and {units(pool, others)} on-demand"
        return f"{held} live, wanted {want[0]} and {want[1]}"

    def _too_dear(self, market: Market) -> bool:
        """The spend cap leaves no room for a node of this market, wherever there is one."""
        cap, world = self._pool.limits.spend_per_hour, self._world
        if cap is None:
            return False
        bills = (InstanceState.PENDING, InstanceState.RUNNING)
        spent = sum(world.prices[m.placement] for m in self._ours() if m.state in bills)
        sold = (p for p in world.prices if p.market is market and world.capacity[p] > 0)
        return spent + min((world.prices[p] for p in sold), default=math.inf) > cap + _CENT
