"""What may be relied on without a node: the one meaning of "serving", and the one of "enough without it".

What it decides: how many units count towards wanted, have booted, may be relied on or serve now, with this
turn's decisions counted in; whether they are enough without a node; and whether the disruption budget has
room for one more that goes by choice.
Why: every policy that takes a node away asks the same two questions. Asked in one place they have one answer.
Never: a node that is on its way out counts as what stays. A node that was asked to go counts for others that
were asked to go, for as long as it serves: each waits for a replacement of its own. All count in units.

Example: of four units wanted four may be relied on, and one of them is a node that was asked to go: it is not
counted, three stay, and that is not enough.
"""

from __future__ import annotations

from policies.fleet import Fleet
from policies.model import Market, Phase, Pool
from policies.node import Node


def serves(node: Node) -> bool:
    """A balancer holds it as an active target, its engine answers, and it does not drain.

    One that has been silent for less than `unhealthy_after` counts as answering.
    """
    return node.serving and node.healthy and node.drain is None


def on_notice(node: Node) -> bool:
    """It was asked to go, and may be relied on until its replacement is ready."""
    stays = node.phase is Phase.READY and node.notice is None and not node.aside
    return node.operator is not None and stays and node.answers and node.in_service


class Headroom:
    """Counts of one turn, kept true while nodes leave and return in it."""

    def __init__(self, pool: Pool, fleet: Fleet) -> None:
        self.pool, self.fleet = pool, fleet
        self.leaving: set[str] = set()
        self.returning: set[str] = set()
        self.by_choice = fleet.voluntary_drains
        """Units that drain by choice."""
        self._counted = dict(fleet.counted_by_market)
        self._working = dict(fleet.working_by_market)
        self._reliable = dict(fleet.reliable_by_market)
        self._serving = sum(n.units for n in fleet.serving if serves(n))
        self._asked = dict.fromkeys(Market, 0)
        self._lost = 0
        for node in fleet.nodes:
            if node.operator is not None or node.lost:
                self._tally(node, node.units)

    def _tally(self, node: Node, units: int) -> None:
        """Count units of a node that was asked to go, or was silent for long."""
        self._asked[node.placement.market] += units * on_notice(node)
        self._lost += units * (node.lost and node.drain is None)

    # -- how many there are --------------------------------------------------------------------------

    def count(self, market: Market) -> int:
        """Units of a market, ready or coming, after this turn's decisions."""
        return self._counted[market]

    def working(self, market: Market) -> int:
        """Units of a market that have booted, after this turn's decisions."""
        return self._working[market]

    def reliable(self, market: Market) -> int:
        """Units of a market that may be relied on, after this turn's decisions."""
        return self._reliable[market]

    def coming(self, market: Market) -> int:
        """Units of a market that count towards wanted and have not booted yet."""
        return self.count(market) - self.working(market)

    @property
    def reliable_in_all(self) -> int:
        """Units that may be relied on, after this turn's decisions."""
        return sum(self._reliable.values())

    @property
    def enough(self) -> bool:
        """As many units as are wanted may be relied on."""
        return self.reliable_in_all >= self.pool.replicas

    # -- what is left without one --------------------------------------------------------------------

    def serving_without(self, node: Node) -> int:
        """Units of the other nodes that serve, after this turn's decisions."""
        stays = node.id not in self.leaving and (node.drain is None or node.id in self.returning)
        return self._serving - node.units * (node.serving and node.healthy and stays)

    def enough_without(self, node: Node, *, spare: int = 0, floor: int | None = None) -> bool:
        """What may be relied on is enough without a node: wanted and `spare` more, and its market's `floor`.

        `floor`: units of its market that must stay; by default those of the on-demand floor, and of spot
        none. For a node that was asked to go, others that were count too.
        """
        market = node.placement.market
        in_all, here = sum(self._reliable.values()), self._reliable[market]
        if node.operator is not None:
            in_all, here = in_all + sum(self._asked.values()), here + self._asked[market]
        if floor is None:
            floor = 0 if node.spot else self.pool.on_demand_floor
        own = 0 if node.id in self.leaving else node.units * (node.reliable or on_notice(node))
        return in_all - own >= self.pool.replicas + spare and here - own >= floor

    def enough_with_silent(self, node: Node) -> bool:
        """The same in a mass silence, where nodes that are silent stay: they may serve all the same."""
        answering = self.reliable_in_all + sum(self._asked.values())
        return answering + self._lost - node.units * node.lost >= self.pool.replicas

    def may_choose(self, units: int = 1) -> bool:
        """True while the disruption budget has room for a drain by choice. One node alone always may."""
        return self.fits(self.by_choice, units)

    def fits(self, going: int, units: int) -> bool:
        """True when so many units may go by choice beside those that go already."""
        return going == 0 or going + units <= self.pool.disruption_budget

    # -- what changes in this turn -------------------------------------------------------------------

    def leave(self, node: Node) -> None:
        """Count a node out for the rest of this turn."""
        if node.id not in self.leaving:
            self._serving -= node.units * serves(node)
            self._tally(node, -node.units)
            self.leaving.add(node.id)
            market, units = node.placement.market, node.units
            self._counted[market] -= node.capacity * units
            self._working[market] -= node.working * units
            self._reliable[market] -= node.reliable * units

    def come_back(self, node: Node) -> None:
        """Count in a node that goes back to work.

        It is ready at once if it answers, but may be relied on only when it is in the target set again.
        """
        self.returning.add(node.id)
        self._serving += node.units * (node.serving and node.healthy)
        if node.drains_by_choice:
            self.by_choice -= node.units
        if not node.aside:
            sure = node.answers and node.in_service
            for counts in (self._counted, self._working, *((self._reliable,) if sure else ())):
                counts[node.placement.market] += node.units
