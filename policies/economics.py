"""What the pool costs, what it would cost on-demand, and what that saves.

What it decides: nothing; it counts. Cost is every node's price over the time it bills, starting time
included; stopped standbys bill nothing here (their disks are not counted).
Why: self-hosting only pays while GPUs are cheap and busy, so the price is shown beside what it replaces.
Never: a saving is claimed against anything but the same number of *wanted* units, all on-demand, at what a
unit costs at the cheapest on-demand offering of the pool (no rounding up to nodes: that would flatter); time
is never billed twice.

Example:
    >>> rate = Rate(cost=4.0, on_demand=10.0)
    >>> rate.saved_share
    0.6
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.fleet import Fleet
from policies.model import Market, Phase, World
from policies.value import value


@dataclass(frozen=True, slots=True)
class Rate:
    """USD/h now: what the pool costs and what the wanted units would cost on-demand."""

    cost: float
    on_demand: float

    @property
    def saved_share(self) -> float:
        """Share saved against on-demand; negative when the pool costs more."""
        return 1.0 - self.cost / self.on_demand if self.on_demand > 0 else 0.0


def rate(fleet: Fleet, world: World) -> Rate:
    """What the pool costs per hour now."""
    cost = sum(n.price for n in fleet.nodes if n.phase not in (Phase.GONE, Phase.STOPPED))
    return Rate(cost=cost, on_demand=on_demand_rate(fleet, world))


def on_demand_rate(fleet: Fleet, world: World) -> float:
    """USD/h of the wanted units, all on-demand at the cheapest offering of the pool."""
    prices = [
        o.price / fleet.pool.units_of(o.placement)
        for o in world.offerings.value
        if o.placement.market is Market.ON_DEMAND
    ]
    if not prices:  # nothing is sold: what we have is the best guess
        prices = [n.price / n.units for n in fleet.nodes if not n.spot]
    return min(prices, default=0.0) * fleet.pool.replicas


@value
class Charge:
    """A node's bill for a span of time: USD, and the seconds it bills for."""

    node: str
    market: Market
    seconds: float
    usd: float

    def plus(self, earlier: Charge) -> Charge:
        """Both bills of the same node as one."""
        seconds, usd = self.seconds + earlier.seconds, self.usd + earlier.usd
        return Charge(node=self.node, market=self.market, seconds=seconds, usd=usd)


def charges(fleet: Fleet, *, since: float, until: float) -> tuple[Charge, ...]:
    """What every billing node cost between two instants, at its price now.

    A node launched within the span bills from its launch.
    """
    found = []
    for node in fleet.nodes:
        if node.phase in (Phase.GONE, Phase.STOPPED):
            continue
        seconds = until - max(since, node.launched_at)
        if seconds > 0:
            usd = node.price * seconds / 3600.0
            found.append(Charge(node=node.id, market=node.placement.market, seconds=seconds, usd=usd))
    return tuple(found)
