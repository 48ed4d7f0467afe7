"""What a pool costs an hour by its wanted state and today's prices alone, before any node runs.

What it decides: nothing; it counts. `usual` is what the wanted nodes cost when all is well, each at the
cheapest offering of its market; `most` is what the limits allow: as many units as may live at once, at the
dearest offering (`ceiling`), and never more than the spend cap.
Why: a number in a file is judged by its price before it is taken up, and a cap by what it must cover.
Never: an unknown price counts as zero. Where no on-demand price is known the answer is None.

Example:
    >>> from policies.model import Pool
    >>> pool = Pool(name="p", replicas=10)
    >>> prices = Prices(on_demand=3.0, spot=1.0, dearest=3.0)
    >>> floor(pool, prices), usual(pool, prices), most(pool, prices)
    (9.0, 16.0, 36.0)
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from policies.limits import within_cap
from policies.model import Market, Offering, Pool
from policies.records import Memory
from policies.value import value

_ROUNDING = 1e-6  # cents that a sum of prices may be above a whole one by binary fractions alone


@value
class Prices:
    """USD/h of a serving unit: at the cheapest offering of each market, at the dearest of all, and at the
    dearest of spot.

    None where nothing is known.
    """

    on_demand: float | None = None
    spot: float | None = None
    dearest: float | None = None
    dearest_spot: float | None = None


def prices_of(pool: Pool, offerings: Iterable[Offering]) -> Prices:
    """The prices of a pool's unit in what is sold."""
    of: dict[Market, list[float]] = {Market.ON_DEMAND: [], Market.SPOT: []}
    for offering in offerings:
        if offering.price is not None:
            of[offering.placement.market].append(offering.price / pool.units_of(offering.placement))
    return Prices(
        on_demand=min(of[Market.ON_DEMAND], default=None),
        spot=min(of[Market.SPOT], default=None),
        dearest=max((price for prices in of.values() for price in prices), default=None),
        dearest_spot=max(of[Market.SPOT], default=None),
    )


def remembered_prices(pool: Pool, memory: Memory) -> Prices:
    """The prices of a pool's unit as they are remembered, before anything was read."""
    return prices_of(pool, (Offering(placement=p, price=last.price) for p, last in memory.prices.items()))


def floor(pool: Pool, prices: Prices) -> float | None:
    """The least that the on-demand floor costs."""
    return None if prices.on_demand is None else pool.on_demand_floor * prices.on_demand


def usual(pool: Pool, prices: Prices) -> float | None:
    """What the replicas and the hot standby cost when every spot node is there.

    Spot without a price counts as on-demand, which may have to replace it.
    """
    if prices.on_demand is None:
        return None
    spot = prices.on_demand if prices.spot is None else prices.spot
    return (pool.on_demand_floor + pool.standby.hot) * prices.on_demand + pool.spot_wanted * spot


def ceiling(pool: Pool, prices: Prices) -> float | None:
    """What all units that may live at once cost at the dearest offering, whatever the spend cap. Nodes that
    are on their way out bill beside them until they are gone."""
    if prices.on_demand is None or prices.dearest is None:
        return None
    # The last node may go over the limit by all of its units but one.
    return (pool.most_units + pool.largest - 1) * prices.dearest


def most(pool: Pool, prices: Prices) -> float | None:
    """The most that the pool may ever cost; None without a cap where no on-demand price is known."""
    bounds = (pool.limits.spend_per_hour, ceiling(pool, prices))
    return min((bound for bound in bounds if bound is not None), default=None)


def proposed_cap(pool: Pool, prices: Prices) -> float | None:
    """A spend cap under which nothing that the other limits allow is held back: whole cents, USD/h.

    All spot nodes may be taken at once: they bill until they are gone, while on-demand nodes cover for them.
    """
    most = ceiling(pool, prices)
    if most is None:
        return None
    taken = prices.dearest if prices.dearest_spot is None else prices.dearest_spot
    needed = most + pool.spot_wanted * (taken or 0.0)
    return math.ceil(needed * 100.0 - _ROUNDING) / 100.0


def below_floor(pool: Pool, prices: Prices) -> str:
    """Why the spend cap cannot hold the on-demand floor; empty when it can, or when prices are not known."""
    cap, needed = pool.limits.spend_per_hour, floor(pool, prices)
    if cap is None or needed is None or within_cap(pool, needed):
        return ""
    units = pool.on_demand_floor
    return (
        f"${cap:,.2f} an hour is less than the on-demand floor of {units} {pool.noun(units)} costs, "
        f"${needed:,.2f} at ${prices.on_demand:,.2f} each"
    )


def below_usual(pool: Pool, prices: Prices) -> str:
    """Why the spend cap keeps the pool from what it wants when all is well; empty when it does not.

    Nothing is said where spot has no known price: it may cost a third of what it is counted at then.
    """
    cap, needed = pool.limits.spend_per_hour, usual(pool, prices)
    if cap is None or needed is None or prices.spot is None or within_cap(pool, needed):
        return ""
    return (
        f"${cap:,.2f} an hour is less than the {pool.replicas} {pool.noun(pool.replicas)} cost when all is "
        f"well, ${needed:,.2f}"
    )
