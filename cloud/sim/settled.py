"""Whether a pool has come to what is wanted: in a simulated world, and by the account of its daemon."""

from __future__ import annotations

from cloud.sim.counting import enough, units
from cloud.sim.knowable import Knowable
from cloud.sim.world import Machine
from policies.model import InstanceState, Market


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
        if len(stopped) != len(standby) or not enough(pool, standby, pool.standby.stopped):
            found.append(f"{len(stopped)} of {len(standby)} standbys stopped, wanted {pool.standby.stopped}")
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
        pool = self._pool
        if pool.adaptive is not None:
            few = len(spot) + len(others) < pool.replicas or len(others) < pool.on_demand_floor
            if not few and len(others) <= pool.replicas and len(spot) <= 2 * pool.replicas:
                return ""
            return f"{len(spot)} spot and {len(others)} on-demand live, wanted {pool.replicas}"
        want = (pool.spot_wanted, pool.on_demand_floor + pool.standby.hot)
        if enough(pool, spot, want[0]) and enough(pool, others, want[1]):
            return ""
        held = f"{units(pool, spot)} spot and {units(pool, others)} on-demand"
        return f"{held} live, wanted {want[0]} and {want[1]}"
