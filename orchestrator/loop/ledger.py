"""Counts the money: each node's price over time, and the same capacity all on-demand, into the journal.

Counted once a second in memory, by the hour, and written every thirty. A node is counted from its launch to
its end as the provider dates them: what a list showed late is added, or taken back, once it is seen. After a
restart counting goes on from the last written second, for the nodes that still live and for those whose end
the provider dates; of others at most half a minute is missed while a daemon runs, and all of the time without
one. Time whose price is not known is charged once the price is, at that price and to the hours in which it
passed, if its node lives that long and no restart comes between; else its hours keep it as unpriced.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.journal.store import Journal, StoreUnavailable, Superseded, Totals
from policies import economics
from policies.economics import HOUR, BaselineHour, Charge, Paid, by_hour, exact
from policies.evidence import ours
from policies.fleet import Fleet
from policies.memory import Memory
from policies.model import EVERYWHERE, Instance, InstanceState, World

_COUNT_EVERY = 1.0
_WRITE_EVERY = 30.0
_FIRST_LOOK = 60.0
"""Seconds for which counting waits at first for lists and prices: what passed without a daemon is charged by
them, and not by what the daemon before knew."""

_TRUSTED = 600.0
"""Seconds by which a launch may be older than the look that shows it, and an end than the last list with the
machine alive. Beyond that the provider's clock and ours disagree, or an old list is shown."""

_ENDED = (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)
_NOTHING_KNOWN = Memory()


class Ledger:
    """One pool's running account.

    `totals` is what the journal holds at the start, `counted` the seconds of each node there.
    """

    def __init__(
        self, pool: str, journal: Journal, totals: Totals, counted: Mapping[str, float] | None = None
    ) -> None:
        self._pool, self._journal = pool, journal
        self._written = totals
        self._until = totals.charged_until
        self._written_at = totals.charged_until
        self._began = totals.charged_until
        self._first: float | None = None  # when the first turn was, until what it waits for was looked at
        self._looked = False
        self._before = counted  # None: nobody can tell which nodes were counted
        self._counted: dict[str, float] = {}  # node -> until when it was looked at
        self._alive: dict[str, float] = {}  # node -> when the provider last showed it alive
        self._paid: dict[str, Paid] = {}  # node -> as it was paid for last
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
            self._until = self._written_at = self._began = world.now
        if world.now < self._until:  # the clock was set back since the last daemon wrote
            self._until = self._written_at = self._began = world.now
            self._counted, self._before = dict.fromkeys(self._counted, world.now), None
        if world.now - self._until >= _COUNT_EVERY and self._has_looked(world):
            self._gather(fleet, world, since=self._until)
            self._until = world.now
        if self._looked and world.durable and world.now - self._written_at >= _WRITE_EVERY:
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

    def _has_looked(self, world: World) -> bool:
        """Lists and prices were read since the daemon began, or it waited for them for long enough."""
        if not self._looked:
            self._first = world.now if self._first is None else self._first
            seen = not world.unlisted and all(view.at is not None for view in world.offerings.values())
            self._looked = seen or not 0.0 <= world.now - self._first < _FIRST_LOOK
        return self._looked

    def _gather(self, fleet: Fleet, world: World, *, since: float) -> None:
        until, everywhere = world.now, world.regions.get(EVERYWHERE)
        ended = {instance.id: instance for instance in world.instances if instance.state in _ENDED}
        paid = {node: one for node, one in economics.paid(fleet).items() if node not in ended}
        for node in fleet.nodes:
            if node.id in ended:
                continue
            if node.id in paid:
                begin = self._counted.get(node.id)
                if begin is None:
                    begin = self._since(node.id, node.launched_at, since)
                self._bill(paid[node.id], since=min(begin, until), until=until)
            self._counted[node.id] = until
            if (
                node.exists.holds
                and (view := world.regions.get(node.placement.region, everywhere))
                and view.at
            ):
                self._alive[node.id] = view.at
        self._paid |= paid
        for instance in ended.values():
            self._settle(fleet, instance, since=since, now=until)
        self._pay_late(paid)
        recent = until - _TRUSTED
        kept = {n for n, at in self._counted.items() if at >= recent or n in fleet.by_id or n in ended}
        self._counted = {n: at for n, at in self._counted.items() if n in kept}
        self._alive = {n: at for n, at in self._alive.items() if n in kept}
        self._paid = {n: p for n, p in self._paid.items() if n in kept}
        self._unpriced = {n: waiting for n, waiting in self._unpriced.items() if n in kept}
        self._gather_baseline(fleet, since=since, until=until)

    def _since(self, node: str, launched_at: float, since: float, end: float | None = None) -> float:
        """From when a machine counts that this daemon has not counted yet.

        The journal's seconds of a node say until when it was counted, unless it was stopped in between. One
        that is not in there was seen by nobody since its launch.
        """
        began = since if self._began is None else self._began
        if self._before is None:
            return max(launched_at, began, since - _TRUSTED)
        if node not in self._before:
            return max(launched_at, began - _TRUSTED, since - _TRUSTED)
        until = launched_at + self._before[node]
        near = min(abs(until - at) for at in (began, end) if at is not None)
        return until if near <= _TRUSTED else max(launched_at, min(began, end or began))

    def _settle(self, fleet: Fleet, instance: Instance, *, since: float, now: float) -> None:
        """Count a machine up to its end: what is missing, or less what it was counted since.

        One that was stopped before costs nothing more. Where nobody dates the end, it was counted well.
        """
        counted, end = self._counted.get(instance.id), instance.ended_at
        if counted is not None:
            known = self._paid.pop(instance.id, None)  # unless an old list shows it alive again
            alive = self._alive.get(instance.id, self._began or counted)
            if known is not None and end is not None and alive - end <= _TRUSTED:
                self._bill(known, since=counted, until=min(end, now))
                self._counted[instance.id] = min(end, now)
        elif end is not None and ours(fleet.pool, _NOTHING_KNOWN, instance).holds:
            end = min(end, now)
            begin = self._since(instance.id, instance.launched_at, since, end)
            if begin < end or instance.id in (self._before or ()):
                self._bill(economics.paid_as_listed(fleet, instance), since=begin, until=end)
                self._counted[instance.id] = end

    def _bill(self, paid: Paid, *, since: float, until: float) -> None:
        for charge in economics.bill(paid, since=since, until=until):
            self._add(charge)
            if charge.unpriced:
                waiting = self._unpriced.setdefault(charge.node, {})
                waiting[charge.hour] = waiting.get(charge.hour, 0.0) + charge.unpriced

    def _pay_late(self, paid: Mapping[str, Paid]) -> None:
        """Charge what waited for its price to the hours in which it passed."""
        for node in [node for node in self._unpriced if node in paid and paid[node].price is not None]:
            for hour, seconds in self._unpriced.pop(node).items():
                self._add(economics.late(paid[node], hour, seconds))

    def _gather_baseline(self, fleet: Fleet, *, since: float, until: float) -> None:
        for hour, seconds in by_hour(since, until):
            wanted = seconds * fleet.pool.replicas
            self._add_baseline(hour, wanted_unit_seconds=wanted, unpriced=wanted)
            self._unpriced_baseline[hour] = self._unpriced_baseline.get(hour, 0.0) + wanted
        price = economics.on_demand_price(fleet)
        if price is not None:
            for hour, waited in self._unpriced_baseline.items():
                self._add_baseline(hour, on_demand_usd=price * waited / HOUR, unpriced=-waited)
            self._unpriced_baseline = {}

    def _add(self, charge: Charge) -> None:
        key = charge.node, charge.hour
        known = self._pending.get(key)
        self._pending[key] = charge if known is None else charge.plus(known)

    def _add_baseline(self, hour: int, **sums: float) -> None:
        known = self._pending_baseline.get(hour)
        part = BaselineHour(pool=self._pool, hour=hour, **sums)
        self._pending_baseline[hour] = part if known is None else part.plus(known)
