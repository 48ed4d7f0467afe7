"""Which pool gets how much of a budget that several pools share: dollars an hour, nodes, or both.

What it decides: for each pool how many of its wanted units it may aim at, and what it may have (`Grant`).
A pool asks in classes: the on-demand floor, the other replicas, the standby, the surge. First come the floors
of all pools, then the replicas, then standbys, then surges; within a class the pools of higher priority, and
among equals what runs already before what would be bought, and of that the cheapest.
Why: capacity that money is short of is to be missing where it hurts least, and the same every time. What runs
goes before what does not, so that prices which move move no nodes.
A unit that is missing is asked for at the cheapest price at which it may be had now: that of spot, or of
on-demand while spot cannot be had (`policies.spot_loss`). What cannot be bought is not asked for: while the
pool is paused or its loop is dead, above its own spend cap, or where no price is known. What runs counts.
A pool where on-demand nodes stand in for spot asks for one spot node beside them, and they leave its price
free: else they would take the last dollar, and the pool could not go back to what costs a third.
Hysteresis: what runs is kept until all of it together costs SLACK more than the budget, or a pool that goes
before it waits for a node. Nothing is launched beyond the budget itself.
Never: a grant takes nodes away. A pool that may aim at less than it has lets go of nodes by its own policies,
a few at a time; until then they are its own, and who waits for their money waits. The grants in force never
allow more than the budget together, whichever pools act on them at the same moment, unless more than that
runs already. An unknown price counts as the dearest that is known, never as zero.

Example: chat wants 4 nodes and batch 6, of 2 USD/h each.
    >>> two = Price(node=2.0)
    >>> asks = [Ask(pool="chat", priority=10, replicas=4, on_demand=two, spot=two),
    ...         Ask(pool="batch", replicas=6, floor=2, on_demand=two, spot=two)]
    >>> found = share(asks, SharedBudget(spend_per_hour=14.0))
    >>> found["chat"].replicas, found["batch"].replicas, found["batch"].spend_per_hour
    (4, 3, 6.0)
    >>> found["batch"].why
    'short by budget of $14.00 an hour: wanted 6, granted 3 (chat has priority)'
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from policies import invariants
from policies.actions import Alarm
from policies.fleet import Fleet
from policies.grant import Ask, Grant, Held, Price, Share, SharedBudget
from policies.model import Market, Offering, Phase, Pool, StandbyKind, StandbyRules, World, kept_aside
from policies.placement import Scorer
from policies.records import Memory
from policies.spot_loss import spot_loss
from policies.value import replace

SLACK = 0.05
"""Share of the budget by which what runs may be over it before pools let go of nodes for that alone."""

_HAIR = 1e-6  # USD/h and nodes: three times 1.10 is a hair above 3.30 in binary


class Shares:
    """The grants in force, for loops that take their turns one by one, in any order.

    A pool's loop calls `turn` when its turn begins, after it has taken in what its last turn decided, and
    goes by that grant until the next. What the grants of the other pools allow stays reserved until each of
    them has taken its next one, so that no two can spend the same dollar. `pools`: the names of all that
    share; nobody launches anything before each was heard once. Not thread-safe: call it in the event loop.
    """

    def __init__(self, budget: SharedBudget, pools: Iterable[str]) -> None:
        self._budget = budget
        self._pools = set(pools)
        self._asks: dict[str, Ask] = {}
        self._in_force: dict[str, Grant] = {}

    @property
    def budget(self) -> SharedBudget:
        """What there is to share; it may be set at any time."""
        return self._budget

    @budget.setter
    def budget(self, budget: SharedBudget) -> None:
        if not self.bounded:  # loops did not ask meanwhile: what they said before is old
            self._asks.clear()
            self._in_force.clear()
        self._budget = budget

    @property
    def bounded(self) -> bool:
        """Whether there is anything to share: else no loop needs to ask."""
        return self._budget != SharedBudget()

    def expect(self, pool: str) -> None:
        """A pool is added: nobody launches before it was heard."""
        self._pools.add(pool)

    def turn(self, ask: Ask) -> Grant:
        """The grant for a pool's turn that begins now."""
        self._pools.add(ask.pool)
        self._asks[ask.pool] = ask
        others = {name: grant for name, grant in self._in_force.items() if name != ask.pool}
        found = share(self._asks.values(), self.budget, others)[ask.pool]
        unheard = sorted(self._pools - self._asks.keys())
        if unheard and self.bounded:
            why = f"the budget is shared once {', '.join(unheard)} {_was(unheard)} looked at"
            found = _as_it_is(ask, self.budget, _dearest(self._asks.values()), why=why)
        dearest = _dearest(self._asks.values())
        wrong = invariants.overrun(ask, found, self._asks.values(), others, self.budget, unknown=dearest)
        if wrong is not None:
            found = replace(_as_it_is(ask, self.budget, dearest, why=str(wrong)), violation=str(wrong))
        self._in_force[ask.pool] = found
        return found

    def dead(self, ask: Ask) -> None:
        """A pool's loop has ended, or could not begin: what it has counts, and it launches nothing.

        `ask`: its last one, or one from its journal (`ask_of`). Only where no turn of it is under way.
        """
        self._pools.add(ask.pool)
        self._asks[ask.pool] = replace(ask, launches=False)
        self._in_force.pop(ask.pool, None)

    def forget(self, pool: str) -> None:
        """A pool was removed and has nothing any more."""
        self._pools.discard(pool)
        self._asks.pop(pool, None)
        self._in_force.pop(pool, None)

    def last(self, pool: str) -> Ask | None:
        """What a pool asked for last; None where it was not heard."""
        return self._asks.get(pool)


def in_effect(pool: Pool, grant: Grant | None) -> Pool:
    """The pool as its grant lets it be: what it may aim at, its floor first, and what it may spend."""
    if grant is None:
        return pool
    floor, drains = min(pool.on_demand_floor, grant.replicas), pool.disruption_budget
    if grant.replicas < pool.replicas:
        share_of_spot = (grant.replicas - floor) / grant.replicas if grant.replicas else pool.spot_share
        pool = replace(pool, replicas=grant.replicas, spot_share=share_of_spot)
    hot = min(pool.standby.hot, grant.standby)
    stopped = min(pool.standby.stopped, grant.standby - hot)
    caps = [cap for cap in (pool.limits.spend_per_hour, grant.spend_per_hour) if cap is not None]
    cap = min(caps, default=None)
    return replace(
        pool,
        standby=StandbyRules(hot=hot, stopped=stopped),
        limits=replace(pool.limits, spend_per_hour=cap),
        share=Share(
            nodes=grant.nodes,
            dollars=cap is not None and cap == grant.spend_per_hour,
            drains=drains,
            way_back=grant.way_back,
        ),
    )


def alarms(grant: Grant | None) -> Iterator[Alarm]:
    """What a person has to fix."""
    if grant is not None and grant.violation:
        yield Alarm(name="InvariantViolated", reason=grant.violation)
    elif grant is not None and grant.floor_short:
        yield Alarm(name="budget", reason=f"the on-demand floor is not paid for: {grant.why}")


# -- what a pool asks for ----------------------------------------------------------------------------


def ask_of(fleet: Fleet, world: World, memory: Memory) -> Ask:
    """What a pool asks for, from its newest look and what it remembers. Linear in nodes and offerings.

    A pool of which nothing was read yet asks from its memory alone: nodes that the journal knows, at the
    prices at which they were launched.
    """
    pool, sold = fleet.pool, fleet.prices.on_sale
    scorer = Scorer(pool, memory, now=world.now, offerings=sold, held={}, sight=fleet.sight)
    on_demand = _cheapest(pool, sold, scorer, Market.ON_DEMAND)
    spot = _cheapest(pool, sold, scorer, Market.SPOT)
    no_spot = pool.spot_wanted == 0 or spot.node is None or spot_loss(fleet, world, memory) is not None
    has = _has(fleet)
    return Ask(
        pool=pool.name,
        priority=pool.priority,
        replicas=pool.replicas,
        floor=pool.on_demand_floor,
        standby=pool.standby.hot + pool.standby.stopped,
        surge=pool.limits.surge if pool.replicas else 0,
        cap=pool.limits.spend_per_hour,
        on_demand=on_demand,
        spot=on_demand if no_spot else spot,
        way_back=spot if pool.spot_wanted else Price(),
        dearest=max((o.price for o in sold if o.price is not None), default=None),
        has_on_demand=has[Market.ON_DEMAND],
        has_spot=has[Market.SPOT],
        has_standby=has[StandbyKind.STOPPED],
        other=has[None],
        launches=memory.pause is None or not memory.pause.holds(world.now),
        seen=not fleet.sight.unaccounted,
    )


_Part = Market | StandbyKind | None
"""What a node counts for: wanted units of a market, a stopped standby, or nothing."""


def _has(fleet: Fleet) -> Mapping[_Part, Held]:
    """What a pool has, by what it counts for."""
    parts: tuple[_Part, ...] = (Market.ON_DEMAND, Market.SPOT, StandbyKind.STOPPED, None)
    found: dict[_Part, list[tuple[int, bool, bool, float | None]]] = {part: [] for part in parts}
    standbys = {node.id for node in fleet.standbys}
    for node in fleet.nodes:
        if node.phase is not Phase.GONE:
            part: _Part = StandbyKind.STOPPED if node.id in standbys else None
            part = node.placement.market if node.capacity else part
            bills = not (node.phase is Phase.STOPPED and node.aside)
            found[part].append((node.units, not node.leaving, bills, node.price))
    for intent in fleet.launching:
        if intent.placement is not None:
            part = StandbyKind.STOPPED if kept_aside(intent.standby) else intent.placement.market
            found[part].append((fleet.pool.units_of(intent.placement), True, True, intent.price))
    return {
        part: Held(
            units=sum(units for units, _, _, _ in rows),
            nodes=sum(lives for _, lives, _, _ in rows),
            spend=sum(price for _, _, bills, price in rows if bills and price is not None),
            unpriced=sum(bills and price is None for _, _, bills, price in rows),
        )
        for part, rows in found.items()
    }


def _cheapest(pool: Pool, sold: Iterable[Offering], scorer: Scorer, market: Market) -> Price:
    """The cheapest node of a market, unit for unit: of those that may be tried now, if any may."""
    found = []
    for offering in sold:
        place = offering.placement
        if place.market is market and offering.available and offering.price is not None:
            units = pool.units_of(place)
            found.append((bool(scorer.blocked(place)), offering.price / units, offering.price, units))
    if not found:
        return Price()
    _, _, node, units = min(found)
    return Price(node=node, units=units)


# -- how it is shared --------------------------------------------------------------------------------


class _Class(IntEnum):
    """What units are for, in the order in which they are paid for."""

    FLOOR = 0
    WANTED = 1
    STANDBY = 2
    SURGE = 3


@dataclass(slots=True)
class _Claim:
    """Some units of one ask, of one class and at one price: nodes that run, or nodes to be launched.

    `price`: USD/h of a node, `size`: units of a node. `granted`: units that the budget has room for. `swaps`:
    they take the place of others that run and count as well.
    """

    ask: Ask
    kind: _Class
    runs: bool
    units: int
    price: float
    size: float
    granted: int = 0
    swaps: bool = False

    @property
    def rank(self) -> tuple[int, int, bool, float, str]:
        """The smaller goes first."""
        return self.kind, -self.ask.priority, not self.runs, self.price / self.size, self.ask.pool

    def nodes(self, units: int) -> float:
        """Nodes that serve so many units: whole ones if they are yet to be launched."""
        return units / self.size if self.runs else math.ceil(units / self.size)


def share(
    asks: Iterable[Ask], budget: SharedBudget, in_force: Mapping[str, Grant] | None = None
) -> dict[str, Grant]:
    """A grant for every pool that asks.

    `in_force`: grants that pools may still act on. What those allow stays reserved for their pools, so that
    the new grant of any other is safe beside them. `Shares` keeps them.
    """
    asks = sorted(asks, key=lambda ask: ask.pool)
    dearest = _dearest(asks)
    claims = [claim for ask in asks for claim in _claims(ask, budget, dearest)]
    claims.sort(key=lambda claim: claim.rank)
    _entitle(claims, budget)
    rooms = {ask.pool: _Room.of(ask, (in_force or {}).get(ask.pool), dearest) for ask in asks}
    waits = _hand_out(claims, rooms, budget)
    return {ask.pool: _grant(ask, claims, rooms[ask.pool], budget, ask.pool in waits) for ask in asks}


def _dearest(asks: Iterable[Ask]) -> float:
    """USD/h of the dearest node that any pool knows of."""
    return max((ask.dearest for ask in asks if ask.dearest is not None), default=0.0)


def _claims(ask: Ask, budget: SharedBudget, dearest: float) -> Iterator[_Claim]:
    """What a pool asks for. What runs fills the classes first; what cannot be bought is not asked for."""
    on_demand, spot, standby = (_Pot(h) for h in (ask.has_on_demand, ask.has_spot, ask.has_standby))
    own = math.inf if ask.cap is None else ask.cap - ask.spend(dearest)
    back = _back(ask)
    for kind, missing, filled_by, price in (
        (_Class.FLOOR, ask.floor, (on_demand,), ask.on_demand),
        (_Class.WANTED, ask.replicas - ask.floor, (spot, on_demand), ask.spot),
        (_Class.WANTED, back, (), ask.way_back),
        (_Class.STANDBY, ask.standby, (standby, on_demand), ask.on_demand),
        (_Class.SURGE, ask.surge - back, (spot, on_demand), ask.on_demand),
    ):
        for pot in filled_by:
            units = pot.take(missing)
            missing -= units
            if units:
                yield _Claim(ask, kind, True, units, pot.held.cost(dearest) / pot.nodes, pot.size)
        if not (ask.launches and ask.seen) or (price.node is None and budget.spend_per_hour is not None):
            continue
        node = price.node or 0.0
        while missing and node * math.ceil(missing / price.units) > own + _HAIR:
            missing -= 1
        if missing:
            own -= node * math.ceil(missing / price.units)
            swaps = kind is _Class.WANTED and not filled_by
            yield _Claim(ask, kind, False, missing, node, price.units, swaps=swaps)


def _back(ask: Ask) -> int:
    """Units of the spot node that a pool where on-demand stands in for spot needs to get away from that."""
    if not _has_way_back(ask):
        return 0
    lacks = ask.replicas - ask.floor - ask.has_spot.units
    stands_in = lacks if ask.spot == ask.on_demand else min(lacks, ask.has_on_demand.units - ask.floor)
    return min(ask.surge, ask.way_back.units) if stands_in > 0 else 0


def _has_way_back(ask: Ask) -> bool:
    """A spot node beside those that stand in for it is cheaper than they are. It needs a surge."""
    spot, on_demand = ask.way_back.node, ask.on_demand.node
    if spot is None or on_demand is None or not ask.surge:
        return False
    return spot / ask.way_back.units < on_demand / ask.on_demand.units


class _Pot:
    """Units that a pool has, to fill its classes with."""

    def __init__(self, held: Held) -> None:
        self.held, self._left = held, held.units
        self.nodes = max(1, held.nodes)
        self.size = max(1, held.units) / self.nodes

    def take(self, most: int) -> int:
        """Up to so many units, that no other class gets."""
        taken = min(most, self._left)
        self._left -= taken
        return taken


def _entitle(claims: Iterable[_Claim], budget: SharedBudget) -> None:
    """Grant units in order of rank, for as long as there is room for what they cost in the long run."""
    most, count = _limits(budget)
    spend = nodes = 0.0
    slack = most * SLACK
    for claim in claims:
        room = most + (slack if claim.runs else 0.0)
        units = claim.units
        while units and (
            spend + claim.nodes(units) * claim.price > room + _HAIR
            or nodes + claim.nodes(units) > count + _HAIR
        ):
            units -= 1
        claim.granted = units
        spend += claim.nodes(units) * claim.price
        nodes += claim.nodes(units)
        if units and not claim.runs:
            slack = 0.0  # somebody waits for money that may have to come from what runs


def _limits(budget: SharedBudget) -> tuple[float, float]:
    """USD/h and nodes; infinite where there is no limit."""
    dollars, nodes = budget.spend_per_hour, budget.nodes
    return math.inf if dollars is None else dollars, math.inf if nodes is None else nodes


@dataclass(slots=True)
class _Room:
    """What a pool has, and what its grant in force allows beyond that; then what it may have.

    USD/h and nodes.
    """

    spend: float
    nodes: int
    reserved_spend: float
    reserved_nodes: int

    @staticmethod
    def of(ask: Ask, in_force: Grant | None, dearest: float) -> _Room:
        """The room of a pool before anything is handed out."""
        spend, nodes = ask.spend(dearest), ask.nodes
        if not ask.seen:
            missing = max(0, ask.replicas - ask.has_on_demand.units - ask.has_spot.units)
            count = math.ceil(missing / ask.spot.units)
            spend, nodes = spend + count * (ask.spot.node or dearest), nodes + count
        most, count_most = (None, None) if in_force is None else (in_force.spend_per_hour, in_force.nodes)
        return _Room(spend, nodes, max(0.0, (most or 0.0) - spend), max(0, (count_most or 0) - nodes))


def _hand_out(claims: Iterable[_Claim], rooms: Mapping[str, _Room], budget: SharedBudget) -> set[str]:
    """Raise the rooms by what may be launched now, in order of rank; then by what dearer nodes may cost.

    Returns the pools that wait for money or nodes that are theirs, and that others still have.
    """
    most, count = _limits(budget)
    spend = most - sum(room.spend + room.reserved_spend for room in rooms.values())
    nodes = count - sum(room.nodes + room.reserved_nodes for room in rooms.values())
    waits: set[str] = set()
    bought: list[tuple[_Room, float]] = []
    for claim in claims:
        room = rooms[claim.ask.pool]
        for _ in range(0 if claim.runs else int(claim.nodes(claim.granted))):
            own_spend, own_nodes = min(room.reserved_spend, claim.price), min(room.reserved_nodes, 1)
            if claim.price - own_spend > max(0.0, spend) + _HAIR or 1 - own_nodes > nodes:
                waits |= {claim.ask.pool} if claim.kind <= _Class.WANTED and not claim.swaps else set()
                break
            room.spend, room.nodes = room.spend + claim.price, room.nodes + 1
            room.reserved_spend -= own_spend
            room.reserved_nodes -= own_nodes
            spend, nodes = spend - (claim.price - own_spend), nodes - (1 - own_nodes)
            bought.append((room, max(0.0, (claim.ask.dearest or 0.0) - claim.price)))
    for room, dearer in bought:
        extra = min(dearer, max(0.0, spend))
        room.spend, spend = room.spend + extra, spend - extra
    return waits


def _grant(ask: Ask, claims: Iterable[_Claim], room: _Room, budget: SharedBudget, waits: bool) -> Grant:
    """What a pool gets, and why it is no more."""
    short = dict.fromkeys(_Class, 0)
    for claim in claims:
        if claim.ask is ask and not claim.swaps:
            short[claim.kind] += claim.units - claim.granted
    missing = short[_Class.FLOOR] + short[_Class.WANTED]
    why = [_why(ask, claims, missing, budget)] if missing else []
    why += ["waits for its share of the budget, which others still use"] if waits else []
    nodes, spend = (room.nodes, room.spend) if ask.seen else (ask.nodes, ask.spend(0.0))
    return Grant(
        replicas=ask.replicas - missing,
        standby=ask.standby - short[_Class.STANDBY],
        nodes=None if budget.nodes is None else nodes,
        spend_per_hour=None if budget.spend_per_hour is None else spend,
        why="; ".join(why),
        way_back=0.0 if budget.spend_per_hour is None or not _has_way_back(ask) else ask.way_back.node or 0.0,
        floor_short=short[_Class.FLOOR] > 0,
    )


def _why(ask: Ask, claims: Iterable[_Claim], missing: int, budget: SharedBudget) -> str:
    """That a pool is short, and which pools go before it."""
    higher: set[str] = set()
    equal: set[str] = set()
    lower: set[str] = set()
    for claim in claims:
        if claim.ask is ask and not claim.swaps and claim.granted < claim.units:
            break
        if claim.ask is not ask and claim.granted:
            other = claim.ask.priority
            ahead = equal if other == ask.priority else higher if other > ask.priority else lower
            ahead.add(claim.ask.pool)
    reason = ""
    if higher:
        reason = f" ({_names(higher)} {'has' if len(higher) == 1 else 'have'} priority)"
    elif equal:
        reason = f" (of the same priority, {_names(equal)} went first: it runs, or costs less)"
    elif lower:
        reason = f" (on-demand floors go first: {_names(lower)})"
    granted = ask.replicas - missing
    return f"short by budget of {budget.words}: wanted {ask.replicas}, granted {granted}{reason}"


def _as_it_is(ask: Ask, budget: SharedBudget, dearest: float, *, why: str) -> Grant:
    """A grant that lets a pool keep what it has and launch nothing."""
    return Grant(
        replicas=ask.replicas,
        standby=ask.standby,
        nodes=None if budget.nodes is None else ask.nodes,
        spend_per_hour=None if budget.spend_per_hour is None else ask.spend(dearest),
        why=why,
    )


def _names(pools: Iterable[str]) -> str:
    return " and ".join(sorted(pools))


def _was(names: Collection[str]) -> str:
    return "was" if len(names) == 1 else "were"
