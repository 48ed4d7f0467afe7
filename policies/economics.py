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

import math
from collections.abc import Iterator
from dataclasses import dataclass

from policies.fleet import Fleet
from policies.model import Instance, Market, Phase, Placement
from policies.value import replace, value

HOUR = 3600.0
"""Seconds. Money is kept by hours since the epoch: hour = int(seconds // HOUR)."""

_BITS = 30


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
    price = on_demand_price(fleet)
    return None if price is None else price * fleet.pool.replicas


def on_demand_price(fleet: Fleet) -> float | None:
    """USD/h of one unit, on-demand at the cheapest offering of the pool; None if not known."""
    prices = [
        o.price / fleet.pool.units_of(o.placement)
        for o in fleet.prices.on_sale
        if o.placement.market is Market.ON_DEMAND and o.price is not None
    ]
    if not prices:  # nothing is sold: what we have is the best guess
        prices = [n.price / n.units for n in fleet.nodes if not n.spot and n.price is not None]
    return min(prices, default=None)


@value
class Charge:
    """A node's bill for a part of one hour."""

    node: str
    placement: Placement
    hour: int
    seconds: float  # that it bills for
    usd: float
    unit_seconds: float = 0.0  # the seconds times the units that it serves
    ready_unit_seconds: float = 0.0  # those of them in which its engine answered
    unpriced: float = 0.0  # seconds missing in `usd` for want of a price; negative where they are paid later

    def plus(self, earlier: Charge) -> Charge:
        """Both bills of the same node and hour as one."""
        return replace(
            self,
            seconds=self.seconds + earlier.seconds,
            usd=self.usd + earlier.usd,
            unit_seconds=self.unit_seconds + earlier.unit_seconds,
            ready_unit_seconds=self.ready_unit_seconds + earlier.ready_unit_seconds,
            unpriced=self.unpriced + earlier.unpriced,
        )


@value
class BaselineHour:
    """What a pool's wanted units would have cost on-demand in an hour, or a part of it."""

    pool: str
    hour: int
    on_demand_usd: float = 0.0
    wanted_unit_seconds: float = 0.0  # units that were wanted, times the seconds
    unpriced: float = 0.0  # those of them that are missing in `on_demand_usd`, for want of a price

    def plus(self, earlier: BaselineHour) -> BaselineHour:
        """Both parts of the same hour as one."""
        return replace(
            self,
            on_demand_usd=self.on_demand_usd + earlier.on_demand_usd,
            wanted_unit_seconds=self.wanted_unit_seconds + earlier.wanted_unit_seconds,
            unpriced=self.unpriced + earlier.unpriced,
        )


@value
class SpendHour:
    """What a pool's nodes of one placement cost in an hour, in USD. The other fields are as in `Charge`."""

    pool: str
    hour: int
    region: str
    zone: str
    instance_type: str
    market: Market
    seconds: float
    usd: float
    unit_seconds: float = 0.0
    ready_unit_seconds: float = 0.0
    unpriced: float = 0.0


def exact(usd: float) -> float:
    """Money as the ledger keeps it: in multiples of 2**-30 USD, about a billionth of a dollar.

    A float holds these exactly up to eight million dollars: they add up to the same in whichever order.

    >>> exact(0.1) + exact(0.2) == exact(0.3)
    True
    """
    return math.ldexp(round(math.ldexp(usd, _BITS)), -_BITS)


def by_hour(since: float, until: float) -> Iterator[tuple[int, float]]:
    """The hours that a span of time touches, and its seconds in each.

    >>> list(by_hour(3590.0, 7230.0))
    [(0, 10.0), (1, 3600.0), (2, 30.0)]
    """
    while since < until:
        hour = int(since // HOUR)
        end = min(until, (hour + 1) * HOUR)
        yield hour, end - since
        since = end


@value
class Paid:
    """What a bill depends on."""

    node: str
    placement: Placement
    price: float | None  # USD/h; None: not known
    units: int
    ready: bool  # its engine answers


def paid(fleet: Fleet) -> dict[str, Paid]:
    """The nodes that cost something now, by id: those that are neither gone nor stopped."""
    return {
        node.id: Paid(
            node=node.id,
            placement=node.placement,
            price=node.price,
            units=node.units,
            ready=node.healthy,
        )
        for node in fleet.nodes
        if node.phase not in (Phase.GONE, Phase.STOPPED)
    }


def paid_as_listed(fleet: Fleet, instance: Instance) -> Paid:
    """The same of a machine that was no node yet when it ended."""
    place = instance.placement
    price = instance.price if instance.price is not None else fleet.prices.of(place)
    units = fleet.pool.units_of(place)
    return Paid(node=instance.id, placement=place, price=price, units=units, ready=False)


def bill(paid: Paid, *, since: float, until: float) -> Iterator[Charge]:
    """What a node cost between two instants, hour by hour; less than nothing where `until` is the earlier."""
    sign, begin, end = (1.0, since, until) if since <= until else (-1.0, until, since)
    for hour, length in by_hour(begin, end):
        seconds = sign * length
        yield Charge(
            node=paid.node,
            placement=paid.placement,
            hour=hour,
            seconds=seconds,
            usd=(paid.price or 0.0) * seconds / HOUR,
            unit_seconds=seconds * paid.units,
            ready_unit_seconds=seconds * paid.units if paid.ready else 0.0,
            unpriced=seconds if paid.price is None else 0.0,
        )


def late(paid: Paid, hour: int, seconds: float) -> Charge:
    """What a node owes for seconds of an hour that were charged without a price, at its price now."""
    usd = (paid.price or 0.0) * seconds / HOUR
    return Charge(
        node=paid.node, placement=paid.placement, hour=hour, seconds=0.0, usd=usd, unpriced=-seconds
    )
