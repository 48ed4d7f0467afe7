"""Counts the money: each node's price over time, and the same capacity all on-demand, into the journal.

Counted once a second in memory and written every thirty; after a restart counting goes on from the last
written second for the nodes that still live, so at most half a minute of those that ended since is missed.
Time whose price is not known is charged once the price is, if its node lives that long.
"""

from __future__ import annotations

from orchestrator.journal.store import Journal, StoreUnavailable, Superseded, Totals
from policies.economics import Charge, charges, on_demand_rate
from policies.fleet import Fleet
from policies.model import World
from policies.value import replace

_COUNT_EVERY = 1.0
_WRITE_EVERY = 30.0


class Ledger:
    """One pool's running account. `totals` is what the journal holds at the start."""

    def __init__(self, pool: str, journal: Journal, totals: Totals) -> None:
        self._pool, self._journal = pool, journal
        self._written = totals
        self._until = totals.charged_until
        self._written_at = totals.charged_until
        self._pending: dict[str, Charge] = {}
        self._pending_on_demand = 0.0
        self._unpriced: dict[str, float] = {}  # node -> seconds that wait for its price
        self._unpriced_on_demand = 0.0  # seconds that wait for the price of on-demand

    @property
    def totals(self) -> Totals:
        """Money since the journal began, with what is not written yet."""
        return Totals(
            usd=self._written.usd + sum(c.usd for c in self._pending.values()),
            on_demand_usd=self._written.on_demand_usd + self._pending_on_demand,
            charged_until=self._until,
        )

    async def count(self, fleet: Fleet, world: World) -> None:
        """Count up to now; write what has gathered when it is time."""
        if self._until is None or self._written_at is None:
            self._until = self._written_at = world.now
        if world.now < self._until:  # the clock was set back since the last daemon wrote
            self._until = self._written_at = world.now
        if world.now - self._until >= _COUNT_EVERY:
            self._gather(fleet, since=self._until, until=world.now)
            self._until = world.now
        if world.durable and world.now - self._written_at >= _WRITE_EVERY:
            await self.write()

    async def write(self) -> None:
        """Write what has gathered, or keep it for later where the journal cannot be written.

        Raises Superseded, of which a daemon of a calm pool hears nowhere else.
        """
        if self._until is None:
            return
        try:
            await self._journal.charge(
                self._pool,
                list(self._pending.values()),
                on_demand_usd=self._pending_on_demand,
                until=self._until,
            )
        except Superseded:
            raise
        except StoreUnavailable:
            return
        self._written = self.totals
        self._written_at = self._until
        self._pending, self._pending_on_demand = {}, 0.0

    def _gather(self, fleet: Fleet, *, since: float, until: float) -> None:
        unpriced: dict[str, float] = {}
        for charge in charges(fleet, since=since, until=until):
            waiting = self._unpriced.get(charge.node, 0.0)
            if charge.unpriced:
                unpriced[charge.node] = waiting + charge.unpriced
            elif waiting:
                charge = replace(charge, usd=charge.usd * (1.0 + waiting / charge.seconds))
            known = self._pending.get(charge.node)
            if known is not None:
                charge = charge.plus(known)
            self._pending[charge.node] = charge
        self._unpriced = unpriced
        self._unpriced_on_demand += until - since
        on_demand = on_demand_rate(fleet)
        if on_demand is not None:
            self._pending_on_demand += on_demand * self._unpriced_on_demand / 3600.0
            self._unpriced_on_demand = 0.0
