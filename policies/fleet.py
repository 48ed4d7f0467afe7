"""Nodes: what the cloud says, what the engine says and what is remembered, joined into one view.

`Fleet.of` is computed once a turn; every policy and every status page reads nodes from here, so that
"ready" or "serving" means one thing everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from policies.actions import ActionKind
from policies.interruption import doom
from policies.model import (
    Confidence,
    Instance,
    Market,
    Notice,
    Phase,
    Placement,
    Pool,
    StandbyKind,
    TargetPhase,
    World,
)
from policies.prices import PriceView
from policies.reach import BOOTING, mass_silence, phase_of, vouched_for
from policies.records import DrainRecord, Intent, Memory, NodeRecord, OperatorRequest
from policies.regions import Sight
from policies.value import lazy, replace, value

_LEAVING = (Phase.DRAINING, Phase.TERMINATING, Phase.GONE)


@value
class Node:
    """One node at one instant.

    `doomed` is the notice that takes it away, once believed. `listed`: the newest list shows it. `probed`:
    this daemon has looked at its engine since it is awake. `healthy`: its engine answers, or has not been
    silent for long enough to matter, or was ready when the last daemon looked and nobody has looked since.
    `serving`: some balancer holds it as an active target; `in_service`: so it is, or there is none that
    could. `detached_at`: when a balancer last acknowledged that it gets no new requests. `lost`: silent for
    so long that it no longer counts. `out_of_sight`: it had not booted when its region was last seen, and
    nobody could see it become ready now. `in_flight` is the most requests that the engine or a balancer
    reports for it.

    `units`: how many units it serves when ready. `price`: USD/h now, None as long as it is not known.
    `build`: what it was launched to run, see `policies.model.Instance`.

    The last fields follow from the others and are asked for so often that they are worked out once:
    `leaving`: on its way out, it no longer counts as capacity. `capacity`: counts towards the wanted units:
    ready or on its way there, not leaving, lost, out of sight or kept aside (a cordoned node goes on serving
    while its replacement starts, but counts no more). `working`: counts towards wanted and has booted; it may
    have fallen silent a moment ago. `ready`: counts as a ready node now. `sure`: ready and in service, and
    its last probe succeeded: what may be relied on when another node is given up.
    """

    id: str
    token: str
    placement: Placement
    phase: Phase
    address: str
    launched_at: float
    started_at: float
    price: float | None
    standby: StandbyKind | None
    ready_at: float | None
    doomed: Notice | None
    notices: tuple[Notice, ...]
    drain: DrainRecord | None
    operator: OperatorRequest | None
    idle_since: float | None
    serving: bool
    in_service: bool
    attached: bool
    listed: bool
    probed: bool
    healthy: bool
    lost: bool
    in_flight: int
    failing_since: float | None
    failure: str
    detached_at: float | None = None
    units: int = 1
    out_of_sight: bool = False
    build: str = ""
    leaving: bool = field(init=False, repr=False, compare=False)
    capacity: bool = field(init=False, repr=False, compare=False)
    working: bool = field(init=False, repr=False, compare=False)
    ready: bool = field(init=False, repr=False, compare=False)
    sure: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        leaving = self.doomed is not None or self.drain is not None or self.phase in _LEAVING
        staying = not leaving and not self.lost and self.operator is None
        capacity = staying and not self.out_of_sight and self.standby in (None, StandbyKind.HOT)
        working = capacity and self.phase is Phase.READY
        ready = working and self.healthy and self.probed
        self.leaving, self.capacity = leaving, capacity  # type: ignore[misc]
        self.working, self.ready = working, ready  # type: ignore[misc]
        self.sure = ready and self.failing_since is None and self.in_service  # type: ignore[misc]

    @property
    def spot(self) -> bool:
        """Bought on the spot market."""
        return self.placement.market is Market.SPOT

    @property
    def surely_doomed(self) -> bool:
        """The cloud itself says that it takes it away: what somebody chose for it makes no difference."""
        return self.doomed is not None and self.doomed.confidence is Confidence.CONFIRMED

    @property
    def drains_by_choice(self) -> bool:
        """It drains now because somebody chose so, as far as nothing else takes it. A standby serves nobody.

        One that has fallen silent since may only be out of this host's reach.
        """
        chosen = self.phase is Phase.DRAINING and self.drain is not None and self.drain.cause.by_choice
        return chosen and not self.surely_doomed and self.standby is None

    @property
    def answers(self) -> bool:
        """Its engine has booted and answered the last probe, whatever else holds of the node."""
        booted = self.phase in (Phase.READY, Phase.DRAINING) and self.ready_at is not None
        return booted and self.probed and self.failing_since is None

    @property
    def unknown(self) -> bool:
        """Its machine may run, and this daemon has not looked at its engine yet: it may well be serving."""
        return self.phase is Phase.STARTING and not self.probed and (bool(self.address) or not self.listed)

    @property
    def conditions(self) -> tuple[str, ...]:
        """What is special about it, for people."""
        found = (
            ("noticed", bool(self.notices)),
            ("doomed", self.doomed is not None),
            ("cordoned", self.operator is not None),
            ("attached", self.attached),
            ("unhealthy", self.phase is Phase.READY and not self.healthy),
            ("lost", self.lost),
            ("out of sight", self.out_of_sight),
            ("standby", self.standby is not None),
        )
        return tuple(name for name, holds in found if holds)


@dataclass(frozen=True)
class Fleet:
    """All nodes of a pool, oldest first, and the launches whose instance is not described yet."""

    pool: Pool
    now: float
    nodes: tuple[Node, ...]
    launching: tuple[Intent, ...]
    prices: PriceView = field(compare=False, repr=False)  # what is sold, and what it costs
    sight: Sight = field(compare=False, repr=False)  # which regions are seen
    suspect: bool = False  # so many nodes are silent that the fault is more likely on our side

    @staticmethod
    def of(pool: Pool, world: World, memory: Memory) -> Fleet:
        """Join the world and memory. Linear in the number of nodes."""
        prices, sight = PriceView(world, memory), Sight(pool, world, memory)
        instances = {i.id: i for i in world.instances}
        doomed = doom(pool, world, memory)
        in_flight = balancer_load(world)
        known = sorted(memory.nodes.values(), key=lambda r: (r.launched_at, r.id))
        nodes = tuple(
            _node(
                pool,
                record,
                instances.get(record.id),
                world,
                memory,
                doomed.get(record.id),
                in_flight,
                prices,
                sight,
            )
            for record in known
        )
        launching = [i for i in memory.intents.values() if i.kind is ActionKind.LAUNCH]
        launching.sort(key=lambda i: (i.at, i.token))
        settled, suspect = _settle_health(pool, world, memory, nodes, sight)
        return Fleet(pool, world.now, settled, tuple(launching), prices, sight, suspect)

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
        return tuple(
            n
            for n in self.nodes
            if n.standby is StandbyKind.STOPPED and not n.leaving and not n.lost and n.operator is None
        )

    @lazy
    def _tally(self) -> _Tally:
        """Units per market by what their nodes count for, in one pass."""
        tally = _Tally(capacity=_none(), working=_none(), ready=_none(), sure=_none())
        for node in self.nodes:
            if node.capacity:
                market, units = node.placement.market, node.units
                tally.capacity[market] += units
                tally.working[market] += node.working * units
                tally.ready[market] += node.ready * units
                tally.sure[market] += node.sure * units
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
    def sure_by_market(self) -> Mapping[Market, int]:
        """Units per market that may be relied on."""
        return self._tally.sure

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
            if intent.placement is None or intent.standby is StandbyKind.STOPPED or not fresh:
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


def _node(
    pool: Pool,
    record: NodeRecord,
    instance: Instance | None,
    world: World,
    memory: Memory,
    doomed: Notice | None,
    in_flight: Mapping[str, int],
    prices: PriceView,
    sight: Sight,
) -> Node:
    reading = world.engines.get(record.id)
    phases = [
        held[record.id]
        for name, held in memory.targets.items()
        if record.id in held and name in world.balancers
    ]
    phase = phase_of(pool, record, instance, world, memory)
    booted = phase in (Phase.READY, Phase.DRAINING)
    address = address_of(record, instance, world)
    late = not address or world.now - record.started_at > pool.health.boot_timeout
    waits = phase in (*BOOTING, Phase.STOPPED) and late
    if reading is not None:
        healthy = booted and reading.failing_since is None
    else:
        healthy = booted and record.ready_at is not None  # not looked at since the daemon started
    return Node(
        id=record.id,
        token=record.token,
        placement=record.placement,
        phase=phase,
        address=address,
        launched_at=record.launched_at,
        started_at=record.started_at,
        price=_price(record, instance, prices),
        standby=record.standby,
        ready_at=record.ready_at,
        doomed=doomed,
        notices=record.notices,
        drain=record.drain,
        operator=record.operator,
        idle_since=record.idle_since,
        serving=TargetPhase.ACTIVE in phases,
        in_service=TargetPhase.ACTIVE in phases or not world.balancers,
        attached=bool(phases),
        listed=instance is not None,
        probed=reading is not None and reading.at >= world.awake_since,
        healthy=healthy,
        lost=False,
        in_flight=max(in_flight.get(record.id, 0), reading.in_flight if reading is not None else 0),
        failing_since=reading.failing_since if reading is not None and booted else None,
        failure=reading.failure if reading is not None else "",
        detached_at=record.detached_at,
        units=pool.units_of(record.placement),
        out_of_sight=waits and bool(sight.passed_over(record.placement.region)),
        build=record.build or (instance.build if instance is not None else ""),
    )


def address_of(record: NodeRecord, instance: Instance | None, world: World) -> str:
    """Where its engine listens. An old journal may not know, and a list may lack the node."""
    listed = instance.address if instance is not None else ""
    return listed or record.address or _held_address(world, record.id)


def _held_address(world: World, node: str) -> str:
    held = (t.address for view in world.balancers.values() for t in view.value if t.id == node)
    return next(held, "")


@value
class _Tally:
    """Units per market; each field counts some of the nodes of the one before it."""

    capacity: dict[Market, int]
    working: dict[Market, int]
    ready: dict[Market, int]
    sure: dict[Market, int]


def _none() -> dict[Market, int]:
    return {Market.SPOT: 0, Market.ON_DEMAND: 0}


def _settle_health(
    pool: Pool, world: World, memory: Memory, nodes: tuple[Node, ...], sight: Sight
) -> tuple[tuple[Node, ...], bool]:
    """Settle who is healthy and who is lost from how long each engine has been silent.

    A node that a balancer finds healthy is not lost while others serve: it leaves the target set first, and
    may be reached again by then. So it goes when a partition ends, where nodes come back one after another.
    """
    rules = pool.health
    # Silence is what was looked at: a daemon that hung for a while heard nothing from anybody meanwhile.
    silent = {n.id: world.engines[n.id].at - n.failing_since for n in nodes if n.failing_since is not None}
    if not silent:
        return nodes, False
    suspect = mass_silence(pool, world, memory, sight)
    relief = any(n.serving and n.healthy and n.id not in silent for n in nodes)
    vouched = vouched_for(world, read_well=True) if relief and not suspect else set()
    settled = tuple(
        replace(
            n,
            healthy=silent[n.id] < rules.unhealthy_after,
            lost=n.probed and silent[n.id] >= rules.replace_after and n.id not in vouched,
        )
        if n.id in silent
        else n
        for n in nodes
    )
    return settled, suspect


def balancer_load(world: World) -> Mapping[str, int]:
    """Requests in flight per node as the balancers count them, summed over balancers."""
    found: Counter[str] = Counter()
    for target in (t for view in world.balancers.values() for t in view.value):
        found[target.id] += target.in_flight or 0
    return found


def least_over(nodes: Iterable[Node], units: int) -> list[Node]:
    """Nodes in the order in which to use them for so many units: those that serve more come last."""
    return sorted(nodes, key=lambda n: max(0, n.units - units))
