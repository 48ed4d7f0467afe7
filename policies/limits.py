"""What the daemon may never exceed: launches a minute, units at once, dollars an hour, its share of a budget.

What it decides: whether one more launch (or start of a standby, which costs money but adds no node) is
allowed now, and if not, which limit says so.
Why: every runaway begins with a loop that believes it is short of nodes; these limits do not believe.
Nodes come whole, so one may be launched while there is room for any part of it: what lives then is over the
limit by less than that node's units, and no further one is launched. Money is no such limit: a node that
costs more than is left is refused. A share of a budget (`policies.budget`) limits money, and machines.
Never: serving nodes are not ended to get under a limit; a limit only stops what would be added.

Example:
    >>> from policies.model import Limits, Pool
    >>> pool = Pool(name="p", replicas=2, limits=Limits(surge=0, spend_per_hour=5.0))
    >>> budget = Budget(pool, living=1, launched_last_minute=0, spend=4.0)
    >>> budget.refuses(2.0)
    'the spend cap of 5.00 USD/h leaves 1.00, this node costs 2.00'
    >>> budget.refuses(0.5), budget.take(0.5), budget.refuses(0.1)
    ('', None, '2 nodes live, and wanted + standby + surge is 2')
"""

from __future__ import annotations

from policies.model import Pool

_HAIR = 1e-6  # USD/h


def within_cap(pool: Pool, spend: float) -> bool:
    """Whether so many USD/h may be spent. Three times 1.10 is a hair above 3.30 in binary."""
    cap = pool.limits.spend_per_hour
    return cap is None or spend <= cap + _HAIR


def no_room(pool: Pool, living: int) -> str:
    """Why no further node may live beside so many units; empty when one may."""
    if living < pool.most_units:
        return ""
    return f"{living} {pool.noun()} live, and wanted + standby + surge is {pool.most_units}"


class Budget:
    """Counts down what may still be launched in this turn.

    `living`: units of nodes and open launches, not counting those on their way out; `nodes`: how many
    machines they are. `spend`: USD/h of all
    nodes and open launches at today's prices, but for `unpriced` of them, whose prices are not known.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        living: int,
        launched_last_minute: int,
        spend: float,
        unpriced: int = 0,
        nodes: int = 0,
    ) -> None:
        self._pool = pool
        self._living = living
        self._launched = launched_last_minute
        self._spend = spend
        self._unpriced = unpriced
        self._nodes = nodes

    @property
    def living(self) -> int:
        """Units that live, with what was counted in this turn."""
        return self._living

    @property
    def full(self) -> bool:
        """No node more may live."""
        return bool(self._no_room())

    def _no_room(self) -> str:
        """Why no node more may live; empty when one may."""
        share = self._pool.share
        if share is not None and share.nodes is not None and self._nodes >= share.nodes:
            return f"{self._nodes} nodes live, and the share of the budget is {share.nodes}"
        return no_room(self._pool, self._living)

    def refuses(self, price: float | None, *, leaving: float = 0.0) -> str:
        """Why a launch at `price` USD/h, that leaves `leaving` free, is not allowed now; empty when it is."""
        limits = self._pool.limits
        if full := self._no_room():
            return full
        if self._launched >= limits.launches_per_minute:
            return f"{self._launched} launches in the last minute, the limit is {limits.launches_per_minute}"
        return self.refuses_cost(price, leaving=leaving)

    def refuses_cost(self, price: float | None, *, leaving: float = 0.0) -> str:
        """Why `price` USD/h more may not be spent now; empty when it may."""
        cap = self._pool.limits.spend_per_hour
        if cap is None:
            return ""
        share = self._pool.share
        name = "share of the budget" if share is not None and share.dollars else "spend cap"
        if price is None:
            return f"the {name} of {cap:.2f} USD/h needs the price of this node, which is not known"
        if self._unpriced:
            return f"the {name} of {cap:.2f} USD/h needs the prices of {self._unpriced} more nodes"
        if not within_cap(self._pool, self._spend + price + leaving):
            left = max(0.0, cap - self._spend)
            kept = f" and {leaving:.2f} is for a spot node" if left >= price else ""
            return f"the {name} of {cap:.2f} USD/h leaves {left:.2f}, this node costs {price:.2f}{kept}"
        return ""

    def affords(self, price: float | None) -> bool:
        """True while `price` USD/h more may be spent."""
        return not self.refuses_cost(price)

    def take(self, price: float | None, units: int = 1) -> None:
        """Count one launch."""
        self.take_node(units)
        self._launched += 1
        self.take_cost(price)

    def take_node(self, units: int = 1) -> None:
        """Count a node that lives on, and costs what it cost before."""
        self._living += units
        self._nodes += 1

    def take_cost(self, price: float | None) -> None:
        """Count USD/h that will be spent."""
        self._spend += price or 0.0
        self._unpriced += price is None
