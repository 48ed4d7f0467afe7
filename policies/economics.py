"""What the pool costs, what it would cost on-demand, and what that saves.

What it decides: nothing; it counts. Cost is every node's price over the time it bills, starting time
included; stopped standbys bill nothing here (their disks are not counted).
A price that is not known makes what depends on it unknown, too.
Why: self-hosting only pays while GPUs are cheap and busy, so the price is shown beside what it replaces.
Never: a saving is claimed against anything but the same number of *wanted* units, all on-demand, at what a
unit costs at the cheapest on-demand offering of the pool (no rounding up to nodes: that would flatter); time
is never billed twice; an unknown price is zero.

Example:
    >>> rate = Rate(cost=4.0, on_demand=10.0)
    >>> rate.saved_share
    0.6
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.fleet import Fleet
from policies.model import Market, Phase
from policies.value import replace, value


@dataclass(frozen=True, slots=True)
class Rate:
    """USD/h now: what the pool costs and what the wanted units would cost on-demand; None where not known.

    `unpriced` counts the billing nodes whose price is not known.
    """

    cost: float | None
    on_demand: float | None
    unpriced: int = 0

    @property
    def saved_share(self) -> float | None:
        """Share saved against on-demand; negative when the pool costs more."""
        if self.cost is None or not self.on_demand:
            return None
        return 1.0 - self.cost / self.on_demand


def rate(fleet: Fleet) -> Rate:
    """What the pool costs per hour now."""
    prices = [n.price for n in fleet.nodes if n.phase not in (Phase.GONE, Phase.STOPPED)]
    known = [price for price in prices if price is not None]
    unpriced = len(prices) - len(known)
    return Rate(cost=None if unpriced else sum(known), on_demand=on_demand_rate(fleet), unpriced=unpriced)


def on_demand_rate(fleet: Fleet) -> float | None:
    """USD/h of the wanted units, all on-demand at the cheapest offering of the pool; None if not known."""
    prices = [
        o.price / fleet.pool.units_of(o.placement)
        for o in fleet.prices.on_sale
        if o.placement.market is Market.ON_DEMAND and o.price is not None
    ]
    if not prices:  # nothing is sold: what we have is the best guess
        prices = [n.price / n.units for n in fleet.nodes if not n.spot and n.price is not None]
    return min(prices) * fleet.pool.replicas if prices else None


@value
class Charge:
    """A node's bill for a span of time: USD, and the seconds it bills for.

    `unpriced`: those of the seconds that its USD lack, since the price was not known.
    """

    node: str
    market: Market
    seconds: float
    usd: float
    unpriced: float = 0.0

    def plus(self, earlier: Charge) -> Charge:
        """Both bills of the same node as one."""
        seconds, usd = self.seconds + earlier.seconds, self.usd + earlier.usd
        return replace(self, seconds=seconds, usd=usd, unpriced=self.unpriced + earlier.unpriced)


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
            known = node.price is not None
            usd = (node.price or 0.0) * seconds / 3600.0
            unpriced = 0.0 if known else seconds
            market = node.placement.market
            found.append(Charge(node=node.id, market=market, seconds=seconds, usd=usd, unpriced=unpriced))
    return tuple(found)
