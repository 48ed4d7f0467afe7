"""Counts the money: each node's price over time, and the same capacity all on-demand, into the journal.

Counted once a second in memory, by the hour, and written every thirty; after a restart counting goes on from
the last written second for the nodes that still live, so at most half a minute of those that ended since is
missed. Time whose price is not known is charged once the price is, at that price and to the hours in which it
passed, if its node lives that long and no restart comes between; else its hours keep it as unpriced.
"""

from __future__ import annotations

from orchestrator.journal.store import Journal, StoreUnavailable, Superseded, Totals
from policies.economics import (
    HOUR,
    BaselineHour,
    Charge,
    by_hour,
    charges,
    exact,
    late,
    on_demand_price,
)
from policies.fleet import Fleet
from policies.model import World

_COUNT_EVERY = 1.0
_WRITE_EVERY = 30.0


class Ledger:
    """One pool's running account. `totals` is what the journal holds at the start."""

    def __init__(self, pool: str, journal: Journal, totals: Totals) -> None:
        self._pool, self._journal = pool, journal
        self._written = totals
        self._until = totals.charged_until
        self._written_at = totals.charged_until
        self._pending: dict[tuple[str, int], Charge] = {}  # by node and hour
        self._pending_baseline: dict[int, BaselineHour] = {}
        self._unpriced: dict[str, dict[int, float]] = {}  # node -> hour -> seconds that wait for its price
        self._unpriced_baseline: dict[int, float] = {}  # hour -> unit-seconds that wait for on-demand's

    @property
    def totals(self) -> Totals:
        """Money since the journal began, with what is not written yet."""
        baseline = self._pending_baseline.values()
        return Totals(
            usd=self._written.usd + sum(exact(c.usd) for c in self._pending.values()),
            on_demand_usd=self._written.on_demand_usd + sum(exact(b.on_demand_usd) for b in baseline),
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
                baseline=list(self._pending_baseline.values()),
                until=self._until,
            )
        except Superseded:
            raise
        except StoreUnavailable:
            return
        self._written = self.totals
        self._written_at = self._until
        self._pending, self._pending_baseline = {}, {}

    def _gather(self, fleet: Fleet, *, since: float, until: float) -> None:
        for charge in charges(fleet, since=since, until=until):
            self._add(charge)
            if charge.unpriced:
                waiting = self._unpriced.setdefault(charge.node, {})
                waiting[charge.hour] = waiting.get(charge.hour, 0.0) + charge.unpriced
        self._pay_late(fleet)
        price = on_demand_price(fleet)
        for hour, seconds in by_hour(since, until):
            wanted = seconds * fleet.pool.replicas
            self._add_baseline(hour, wanted_unit_seconds=wanted, unpriced=wanted)
            self._unpriced_baseline[hour] = self._unpriced_baseline.get(hour, 0.0) + wanted
        if price is not None:
            for hour, waited in self._unpriced_baseline.items():
                self._add_baseline(hour, on_demand_usd=price * waited / HOUR, unpriced=-waited)
            self._unpriced_baseline = {}

    def _pay_late(self, fleet: Fleet) -> None:
        """Charge what waited for its price to the hours in which it passed."""
        for node in fleet.nodes if self._unpriced else ():
            if node.price is None:
                continue
            for hour, seconds in self._unpriced.pop(node.id, {}).items():
                self._add(late(node, hour, seconds))
        self._unpriced = {node: held for node, held in self._unpriced.items() if node in fleet.by_id}

    def _add(self, charge: Charge) -> None:
        key = charge.node, charge.hour
        known = self._pending.get(key)
        self._pending[key] = charge if known is None else charge.plus(known)

    def _add_baseline(self, hour: int, **sums: float) -> None:
        known = self._pending_baseline.get(hour)
        part = BaselineHour(pool=self._pool, hour=hour, **sums)
        self._pending_baseline[hour] = part if known is None else part.plus(known)
