"""Nodes: what the cloud says, what the engine says and what is remembered, joined into one view.

`Fleet.of` is computed once a turn; every policy and every status page reads nodes from here, so that
"ready" or "serving" means one thing everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from policies.actions import ActionKind
from policies.evidence import Evidence
from policies.interruption import believed
from policies.model import Instance, Market, Pool, World, kept_aside
from policies.node import BOOTED, Node, Role, join
from policies.prices import PriceView
from policies.records import Intent, Memory, NodeRecord
from policies.regions import Sight
from policies.value import lazy, replace, value


@dataclass(frozen=True)
class Fleet:
    """All nodes of a pool, oldest first, and the launches whose instance is not described yet."""

    pool: Pool
    now: float
    nodes: tuple[Node, ...]
    launching: tuple[Intent, ...]
    prices: PriceView = field(compare=False, repr=False)  # what is sold, and what it costs
    sight: Sight = field(compare=False, repr=False)  # which regions are seen
    evidence: Evidence = field(compare=False, repr=False)  # what witnesses say of the nodes
    mass_silence: str = ""  # how many nodes are silent, where the fault is more likely on our side

    @staticmethod
    def of(pool: Pool, world: World, memory: Memory) -> Fleet:
        """Join the world and memory. Linear in the number of nodes."""
        evidence = Evidence(pool, world, memory)
        prices, sight = PriceView(world, memory), Sight(evidence, world)
        mass_silence = evidence.mass_silence(sight.passed_over)
        suspect = bool(mass_silence)
        notices = believed(evidence, suspect=suspect)
        known = sorted(memory.nodes.values(), key=lambda r: (r.launched_at, r.id))
        nodes = tuple(
            join(
                evidence,
                record,
                notice=notices.get(record.id),
                price=_price(record, evidence.listed.get(record.id), prices),
                passed_over=sight.passed_over,
            )
            for record in known
        )
        launching = [i for i in memory.intents.values() if i.kind is ActionKind.LAUNCH]
        launching.sort(key=lambda i: (i.at, i.token))
        settled = _give_up(evidence, nodes, suspect=suspect)
        return Fleet(pool, world.now, settled, tuple(launching), prices, sight, evidence, mass_silence)

    @property
    def suspect(self) -> bool:
        """So many nodes are silent that the fault is more likely on our side."""
        return bool(self.mass_silence)

    @lazy
    def by_id(self) -> Mapping[str, Node]:
        """Nodes by id."""
        return {n.id: n for n in self.nodes}

    @lazy
    def capacity(self) -> tuple[Node, ...]:
        """Nodes that count towards wanted, ready or starting."""
        return tuple(n for n in self.nodes if n.capacity)

    @lazy
    def ready(self) -> tuple[Node, ...]:
        """Nodes that count as ready."""
        return tuple(n for n in self.nodes if n.ready)

    @lazy
    def serving(self) -> tuple[Node, ...]:
        """Nodes that balancers send new requests to."""
        return tuple(n for n in self.nodes if n.serving)

    @lazy
    def standbys(self) -> tuple[Node, ...]:
        """Stopped standbys that may stay one, warming ones included."""
        return tuple(n for n in self.nodes if n.role is Role.STANDBY and not n.lost and n.operator is None)

    @lazy
    def _tally(self) -> _Tally:
        """Units per market by what their nodes count for, in one pass."""
        tally = _Tally(capacity=_none(), working=_none(), ready=_none(), reliable=_none())
        for node in self.nodes:
            if node.capacity:
                market, units = node.placement.market, node.units
                tally.capacity[market] += units
                tally.working[market] += node.working * units
                tally.ready[market] += node.ready * units
                tally.reliable[market] += node.reliable * units
        return tally

    @property
    def ready_by_market(self) -> Mapping[Market, int]:
        """Ready units per market."""
        return self._tally.ready

    @property
    def ready_units(self) -> int:
        """Ready units in all."""
        return sum(self._tally.ready.values())

    @property
    def reliable_by_market(self) -> Mapping[Market, int]:
        """Units per market that may be relied on."""
        return self._tally.reliable

    @property
    def working_by_market(self) -> Mapping[Market, int]:
        """Units per market that have booted and count towards wanted."""
        return self._tally.working

    @lazy
    def counted_by_market(self) -> Mapping[Market, int]:
        """Units per market that count towards wanted, open launches included.

        A launch that nobody could confirm or deny for a whole boot time-out counts no more, nor does one in a
        region where nobody could see it come, or where it is asked for in vain.
        """
        found = dict(self._tally.capacity)
        for intent in self.launching:
            fresh = self.now - intent.at <= self.pool.health.boot_timeout
            if intent.placement is None or kept_aside(intent.standby) or not fresh:
                continue
            if self.sight.waited_for(intent.placement.region):
                found[intent.placement.market] += self.pool.units_of(intent.placement)
        return found

    @lazy
    def living(self) -> int:
        """Units that count against the surge limit: all nodes and open launches but those on their way out.

        Silent nodes are on their way out, unless so many are silent that they may be kept, or their region
        is: they may run, and cannot be ended.
        """
        staying = sum(n.units for n in self.nodes if not n.leaving and not (n.lost and self._goes(n)))
        return staying + sum(self.pool.units_of(i.placement) for i in self.launching)

    @property
    def living_nodes(self) -> int:
        """Machines that are not on their way out, open launches included."""
        return sum(not n.leaving for n in self.nodes) + len(self.launching)

    def _goes(self, silent: Node) -> bool:
        """A node that has been silent for long is drained and ended."""
        return not self.suspect and not self.sight.passed_over(silent.placement.region)

    @property
    def temporary_on_demand(self) -> int:
        """On-demand units beyond floor and hot standby, if any node could go: else nodes only come whole."""
        pool = self.pool
        beyond = self.counted_by_market[Market.ON_DEMAND] - pool.on_demand_floor - pool.standby.hot
        least = min((n.units for n in self.capacity if not n.spot), default=1)
        return beyond if beyond >= least else 0

    @lazy
    def voluntary_drains(self) -> int:
        """Units of the nodes that drain now because somebody chose so."""
        return sum(n.units for n in self.nodes if n.drains_by_choice)


def _price(record: NodeRecord, instance: Instance | None, prices: PriceView) -> float | None:
    """What a node costs: by the list of machines, by its offering, or else as it was launched."""
    if instance is not None and instance.price is not None:
        return instance.price
    price = prices.of(record.placement) if instance is not None else None
    return price if price is not None else record.price or None  # older journals have 0 for an unknown one


@value
class _Tally:
    """Units per market; each field counts some of the nodes of the one before it."""

    capacity: dict[Market, int]
    working: dict[Market, int]
    ready: dict[Market, int]
    reliable: dict[Market, int]


def _none() -> dict[Market, int]:
    return {Market.SPOT: 0, Market.ON_DEMAND: 0}


def _give_up(evidence: Evidence, nodes: tuple[Node, ...], *, suspect: bool) -> tuple[Node, ...]:
    """Mark as lost what has been silent for so long that it counts no more.

    A node that a balancer finds healthy is not lost while others serve: it leaves the target set first, and
    may be reached again by then. So it goes when a partition ends, where nodes come back one after another.
    """
    after = evidence.pool.health.replace_after
    silent = {n.id for n in nodes if n.heard.since is not None and n.phase in BOOTED and n.heard.fails(after)}
    if silent and not suspect and any(n.serving and n.healthy and n.heard.since is None for n in nodes):
        silent -= evidence.routing.surely_healthy
    return tuple(replace(n, lost=True) if n.id in silent else n for n in nodes) if silent else nodes


def least_over(nodes: Iterable[Node], units: int) -> list[Node]:
    """Nodes in the order in which to use them for so many units: those that serve more come last."""
    return sorted(nodes, key=lambda n: max(0, n.units - units))
