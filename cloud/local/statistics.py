"""What a local cloud has seen so far: launches, preemptions, cost, live processes."""

from __future__ import annotations

from dataclasses import dataclass

from cloud.local.machines import Machines
from cloud.local.processes import belonging
from cloud.local.sales import Sales
from cloud.local.table import Identity, Machine, Table
from cloud.ports import Clock
from policies.model import InstanceState, Market


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """One machine that was taken back, or is about to be. Times are seconds since the epoch.

    `noticed_at` None: without notice. `vanished_at` None: not yet, or the machine was terminated before.
    """

    node: str
    pool: str
    zone: str
    cause: str
    noticed_at: float | None
    deadline: float
    vanished_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCost:
    """What one machine has cost in USD, and what the same hours would have cost on-demand."""

    node: str
    pool: str
    zone: str
    market: Market
    state: InstanceState
    market_hours: float
    cost_usd: float
    cost_on_demand_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Everything at once. `orphans` are processes of this cloud that belong to no living machine.

    `market_seconds` is market time now; costs are in market time: hours of the market times its prices.
    """

    cloud: str
    at: float
    market_seconds: float
    launches: int
    spot_launches: int
    on_demand_launches: int
    live: tuple[str, ...]
    groups: dict[str, int]
    orphans: tuple[int, ...]
    preemptions_with_notice: int
    preemptions_without_notice: int
    preemptions: tuple[Preemption, ...]
    cost_usd: float
    cost_on_demand_usd: float
    costs: tuple[NodeCost, ...]


class CloudStatistics:
    """Counts from the table of machines: nothing is counted twice over restarts."""

    def __init__(
        self, table: Table, machines: Machines, sales: Sales, identity: Identity, clock: Clock
    ) -> None:
        self._table = table
        self._machines = machines
        self._sales = sales
        self._identity = identity
        self._clock = clock

    def collect(self) -> Statistics:
        """Look at everything now."""
        machines = self._table.machines()
        groups = self._machines.groups()
        costs = tuple(self._cost(machine) for machine in machines)
        preemptions = tuple(p for m in machines if (p := self._preemption(m)) is not None)
        processes = belonging((self._identity.cloud,))
        owned = belonging(
            tuple(f"{self._identity.cloud}/{node}" for node in groups), self._machines.all_groups()
        )
        return Statistics(
            cloud=self._identity.cloud,
            at=self._clock.now(),
            market_seconds=self._sales.market_now(),
            launches=len(machines),
            spot_launches=sum(m.placement.market is Market.SPOT for m in machines),
            on_demand_launches=sum(m.placement.market is Market.ON_DEMAND for m in machines),
            live=tuple(m.id for m in machines if m.state is not InstanceState.TERMINATED),
            groups=groups,
            orphans=tuple(sorted(processes - owned)),
            preemptions_with_notice=sum(p.noticed_at is not None for p in preemptions),
            preemptions_without_notice=sum(p.noticed_at is None for p in preemptions),
            preemptions=preemptions,
            cost_usd=sum(cost.cost_usd for cost in costs),
            cost_on_demand_usd=sum(cost.cost_on_demand_usd for cost in costs),
            costs=costs,
        )

    def _preemption(self, machine: Machine) -> Preemption | None:
        """A reclaim that could be felt: its notice has shown, or the machine vanished under somebody."""
        reclaim = machine.reclaim
        if reclaim is None:
            return None
        until = self._clock.now() if machine.ended_at is None else machine.ended_at
        noticed = reclaim.noticed_at
        if noticed is not None and noticed > until:
            noticed = None
        if noticed is None and reclaim.ended_at is None:
            return None
        return Preemption(
            node=machine.id,
            pool=machine.pool,
            zone=machine.placement.zone,
            cause=reclaim.cause,
            noticed_at=noticed,
            deadline=reclaim.deadline,
            vanished_at=reclaim.ended_at,
        )

    def _cost(self, machine: Machine) -> NodeCost:
        now = self._sales.market_now()
        seconds = sum((now if end is None else end) - begin for begin, end in machine.spells)
        return NodeCost(
            node=machine.id,
            pool=machine.pool,
            zone=machine.placement.zone,
            market=machine.placement.market,
            state=machine.state,
            market_hours=seconds / 3600.0,
            cost_usd=self._sales.dollars(machine),
            cost_on_demand_usd=self._sales.dollars(machine, on_demand=True),
        )
