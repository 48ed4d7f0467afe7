"""The adaptive mix: the cheapest fleet that holds the availability the operator stated.

What it decides: how many spot nodes in which zone and how many on-demand nodes the pool should hold now, hence
every launch, every surplus node that is given back and every early swap of a pool with `mix = "adaptive"`.
Why: a fixed on-demand share pays for safety all the time and everywhere; what is at risk differs by zone and
hour, and a replacement that is ready within the notice makes insurance needless.

The mathematics. A fleet of s_z spot nodes in zone z and o on-demand nodes costs, per hour,

    J = sum_z s_z (price_z + churn * rate_z) + o * price_od + penalty * (E[short now] + E[short by losses])

* rate_z is the hazard (`policies.hazard`) and churn the price of one more start: `OVERLAP` of a start time.
* A lost node is missed for ``gap = max(0, start - notice)`` (plus REACT), with start the quickest way to a new
  node; a share of losses comes without notice and is missed for the whole start. So zone z is missing nodes
  with probability ``p_z = 1 - exp(-rate_z * gap)``, all it holds with probability `share_taken`, else one.
  The number M of missing nodes is the convolution over zones, taken as independent; storms that span a region
  are in rate_z.
* The expected shortfall is ``E[g(N - s - o + M)]`` with ``g(x) = x + x^2 / N`` for x > 0: many nodes missing at
  once hurt more than the same node-hours one at a time.
* Stopped standbys that start within the notice cover the first M for nothing.
* penalty is the Lagrange multiplier of the availability constraint, in on-demand node-prices per missing
  node-hour: ``PENALTY * (0.001 / (1 - availability)) ** PENALTY_POWER``. 

Nodes are added one at a time where J falls most, by THETA_ADD at least, and given back where J falls by
THETA_DROP at least: the difference keeps it from going back and forth. What is missing now is weighed by the
whole penalty, so cover is launched in the turn of the notice, on whichever market lowers J more; spot on its
way counts as cover, unless on-demand is quicker to start, which then bridges until the spot is ready.
Never: a node is given back by choice when fewer ready nodes than wanted would be left, or fewer on-demand nodes
than the floor; a zone that announced a loss gets no launch before its notice has run out.

Sources: the newsvendor trade-off of surplus against shortage (Arrow, Harris and Marschak, Econometrica 1951);
Lagrangian relaxation of a service level; over-provisioned spot as insurance is SpotHedge's (EuroSys 2025).

Example: eight nodes wanted, one zone open for a day and one that just came back: the old zone gets most of the
spot nodes, and as long as nodes stand in the young one an on-demand node is kept beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from policies import hazard, standby
from policies.actions import Cause
from policies.fleet import Node
from policies.model import AdaptiveRules, Market, Offering, Phase, Placement, StandbyKind
from policies.return_to_spot import roll_back
from policies.turn import Turn

PENALTY = 60.0
"""On-demand node-prices per missing node-hour at an availability of 99.9 %."""

PENALTY_POWER = 0.5
"""How the penalty grows as the share that may be missing shrinks."""

OVERLAP = 0.6
"""Share of a start time that is paid twice when a node is replaced."""

HORIZON = 24.0
"""Hours ahead for which a spot node is bought: what it costs and risks is judged over them."""

REACT = 1.0
"""Seconds from a notice to the launch of what replaces the node."""

THETA_ADD = 0.02
THETA_DROP = 0.05
THETA_SWAP = 0.03
THETA_ON_DEMAND = 0.02
"""By how much J must fall before a spot node is added, given back, moved, or an on-demand node is added or
given back: shares of the on-demand price."""

CONVEX = 0.0
"""How much worse many nodes missing at once are than the same node-hours one at a time."""

MOST_SURPLUS = 1.0
"""Spot nodes beyond wanted, as a share of wanted."""

SWAP_EVERY = 600.0
"""Seconds between two early swaps."""

CLOSED_AFTER = 60.0
"""Seconds after a notice has run out during which its zone gets no launch."""

_HOUR = 3600.0
_NEGLIGIBLE = 1e-9


@dataclass(slots=True)
class Zone:
    """One spot placement as the search sees it: prices are shares of the on-demand price, rates per hour.

    `rate` is the hazard now, `outlook` the one over the hours to come. `down`: chance that a loss is under way and its nodes are not replaced yet, `down_later` the same by the outlook. `whole`: chance that a loss
    takes all nodes. `count`: nodes there, ready or coming. `present`: those that the cloud describes. `working`: those that
    have booted.
    """

    offering: Offering
    price: float
    rate: float
    outlook: float
    down: float
    down_later: float
    whole: float
    open: bool
    count: int = 0
    present: int = 0
    working: int = 0


class Odds:
    """J for a fleet: what it costs and what it risks. All in shares of the on-demand price per hour."""

    def __init__(
        self, zones: Sequence[Zone], *, wanted: int, penalty: float, churn: float, free: int = 0, floor: int = 0
    ) -> None:
        self.zones = zones
        self.later = True  # judge by the outlook; False: by the hazard now
        self.counts = [z.count for z in zones]
        self._wanted, self._penalty, self._churn = wanted, penalty, churn
        self._free, self._floor = free, floor

    @property
    def spot(self) -> int:
        """Spot nodes in all."""
        return sum(self.counts)

    def missing(self, *, without: int = -1) -> list[float]:
        """The distribution of the number of nodes missing, over all zones but one."""
        found = [1.0]
        for i, count in enumerate(self.counts):
            if i != without and count:
                found = self._with_zone(found, self.zones[i], count)
        return found

    def spot_cost(self) -> float:
        """What the spot nodes cost, their expected replacement included."""
        return sum(
            count * (z.price + self._churn * z.outlook)
            for z, count in zip(self.zones, self.counts, strict=True)
            if count
        )

    def value(self, missing: Sequence[float], spot: int, spot_cost: float, on_demand: int) -> float:
        """J."""
        base = self._wanted - spot - on_demand
        short = 0.0
        for lost, chance in enumerate(missing):
            nodes = base + max(0, lost - self._free)
            if nodes > 0:
                short += chance * (nodes + CONVEX * nodes * nodes / self._wanted)
        return spot_cost + on_demand + self._penalty * short

    def best(self, missing: Sequence[float], spot: int, spot_cost: float) -> tuple[float, int]:
        """The least J over the number of on-demand nodes, and that number. J is convex in it."""
        on_demand = max(self._floor, self._wanted - spot)
        least = self.value(missing, spot, spot_cost, on_demand)
        for step in (-1, 1):
            while self._floor <= on_demand + step <= 2 * self._wanted:
                other = self.value(missing, spot, spot_cost, on_demand + step)
                if other >= least:
                    break
                least, on_demand = other, on_demand + step
        return least, on_demand

    def here(self) -> float:
        """The least J with the spot nodes as they are."""
        return self.best(self.missing(), self.spot, self.spot_cost())[0]

    def gain_of_one_more(self, i: int, missing: Sequence[float], here: float) -> float:
        """By how much one more node in zone i lowers J. `missing` is the distribution of all zones."""
        zone, count = self.zones[i], self.counts[i]
        others = self.missing(without=i) if count else missing
        then = self._with_zone(others, zone, count + 1)
        cost = self.spot_cost() + zone.price + self._churn * zone.outlook
        return here - self.best(then, self.spot + 1, cost)[0]


    def _with_zone(self, missing: Sequence[float], zone: Zone, count: int) -> list[float]:
        down = zone.down_later if self.later else zone.down
        return with_zone(missing, down, zone.whole, count)


def with_zone(missing: Sequence[float], down: float, whole: float, count: int) -> list[float]:
    """The distribution of missing nodes with one zone of `count` nodes added."""
    every = down * whole if count > 1 else 0.0
    one = down - every
    found = [0.0] * (len(missing) + count)
    stay = 1.0 - down
    for lost, chance in enumerate(missing):
        if chance < _NEGLIGIBLE:
            continue
        found[lost] += stay * chance
        found[lost + 1] += one * chance
        if every:
            found[lost + count] += every * chance
    return found


@dataclass(frozen=True, slots=True)
class Times:
    """How long things take now: learned, or else as configured. Seconds; `unannounced` is a share."""

    spot: float
    on_demand: float
    standby: float
    notice: float
    unannounced: float

    @property
    def gap(self) -> float:
        """Seconds for which a lost node is missed, on average over losses with and without a notice."""
        start = min(self.spot, self.on_demand)
        announced = max(0.0, start + REACT - self.notice)
        return (1.0 - self.unannounced) * announced + self.unannounced * (start + REACT)


def times(turn: Turn, rules: AdaptiveRules) -> Times:
    """What was learned of start times and notices."""
    known = turn.memory.timings

    def of(what: str, configured: float) -> float:
        return known[what].mean if what in known else configured

    # One unannounced loss in twenty is what is believed before anything was seen.
    losses = turn.memory.preemptions
    unannounced = (turn.memory.preemptions_without_notice + 0.0) / (losses + 20.0)
    return Times(
        spot=of(hazard.SPOT_START, rules.spot_start),
        on_demand=of(hazard.ON_DEMAND_START, rules.on_demand_start),
        standby=of(hazard.STANDBY_START, rules.standby_start),
        notice=of(hazard.NOTICE_LEAD, rules.notice),
        unannounced=unannounced,
    )


def penalty(availability: float) -> float:
    """The price of a missing node-hour, in on-demand prices, that makes the stated availability worth while."""
    allowed = max(1e-6, 1.0 - availability)
    scaled: float = PENALTY * (0.001 / allowed) ** PENALTY_POWER
    return scaled


def steer(turn: Turn) -> None:
    """Bring the fleet towards the cheapest one that holds the availability."""
    rules = turn.pool.adaptive
    on_demand = [o for o in turn.world.offerings.value if o.placement.market is Market.ON_DEMAND]
    if rules is None or not on_demand:
        turn.note("the adaptive mix waits: no on-demand price is known")
        return
    price = min(o.price for o in on_demand)
    when = times(turn, rules)
    zones = _zones(turn, when, price)
    # Standbys that start within the notice stand in for what is lost.
    quick = when.standby + REACT <= when.notice
    free = sum(n.standby is StandbyKind.STOPPED and n.phase is Phase.STOPPED for n in turn.fleet.nodes)
    odds = Odds(
        zones,
        wanted=turn.pool.replicas,
        penalty=penalty(rules.availability),
        churn=OVERLAP * when.spot / _HOUR,
        free=free if quick else 0,
        floor=turn.pool.on_demand_floor,
    )
    bridge = when.on_demand + REACT < when.spot
    _add_spot(turn, odds)
    _swap(turn, odds)
    odds.later = False
    _add_on_demand(turn, odds, bridge=bridge)
    _drop_on_demand(turn, odds, bridge=bridge)
    odds.later = True
    _drop_spot(turn, odds)


def _zones(turn: Turn, when: Times, on_demand_price: float) -> list[Zone]:
    """Every spot placement that is sold or held."""
    now, memory = turn.now, turn.memory
    overall = hazard.all_factor(memory.zones)
    storms = hazard.storms(memory.zones, now)
    held: dict[Placement, list[Node]] = {}
    for node in _counted(turn, Market.SPOT):
        held.setdefault(node.placement, []).append(node)
    coming: dict[Placement, int] = {}
    for intent in turn.fleet.launching:
        if intent.placement is not None:
            coming[intent.placement] = coming.get(intent.placement, 0) + 1
    found = []
    for offering in sorted(turn.world.offerings.value, key=lambda o: o.placement):
        place = offering.placement
        if place.market is not Market.SPOT:
            continue
        history = memory.zones.get(place) or hazard.unknown(now)
        others = storms.get(place.region, frozenset()) - {place}
        factor = hazard.factor_of(history, overall)
        rate = hazard.rate(history, now, factor=factor, storm=bool(others))
        later = min(rate, hazard.outlook(history, now, factor=factor, hours=HORIZON))
        nodes = held.get(place, [])
        found.append(
            Zone(
                offering=offering,
                price=offering.price / on_demand_price,
                rate=rate,
                outlook=later,
                down_later=1.0 - math.exp(-later * when.gap / _HOUR),
                down=1.0 - math.exp(-rate * when.gap / _HOUR),
                whole=hazard.share_taken(history),
                open=offering.available and not _closed(turn, place, when.notice),
                count=len(nodes) + coming.get(place, 0),
                present=len(nodes),
                working=sum(n.phase is Phase.READY for n in nodes),
            )
        )
    return found


def _closed(turn: Turn, place: Placement, notice: float) -> bool:
    """A zone that refused lately, or whose last notice has not run out."""
    reclaim = turn.memory.reclaims.get(place)
    if reclaim is not None and turn.now - reclaim.at < notice + CLOSED_AFTER:
        return True
    return bool(turn.scorer.blocked(place))


def _counted(turn: Turn, market: Market) -> list[Node]:
    """Nodes of a market that count towards wanted and stay in this turn."""
    return [n for n in turn.fleet.capacity if n.placement.market is market and n.id not in turn.leaving]


def _add_spot(turn: Turn, odds: Odds) -> None:
    """Launch spot nodes one at a time where J falls most."""
    most = turn.pool.replicas + math.ceil(MOST_SURPLUS * turn.pool.replicas)
    if turn.pool.spot_wanted == 0:
        return
    tried: set[int] = set()
    while odds.spot < most:
        gain, place = max((*_gains(odds, scouts=False), *_gains(odds, scouts=True)), default=(0.0, 0))
        if gain < THETA_ADD or not _launch_spot(turn, odds, -place, f"spot node worth {gain:.2f}", tried):
            return


def _gains(odds: Odds, *, scouts: bool) -> list[tuple[float, int]]:
    """What one more node is worth in each open zone: the first one in a zone, the scout, or a further one.

    A scout is bought for the hours to come: it tells how old the zone's spell is. What follows it into a young
    zone would have to be insured at once, so it is judged by the hazard now.
    """
    odds.later = scouts
    chosen = [i for i, zone in enumerate(odds.zones) if zone.open and (odds.counts[i] == 0) is scouts]
    if not chosen:
        return []
    missing = odds.missing()
    here = odds.best(missing, odds.spot, odds.spot_cost())[0]
    return [(odds.gain_of_one_more(i, missing, here), -i) for i in chosen]


def _launch_spot(turn: Turn, odds: Odds, i: int, why: str, tried: set[int]) -> bool:
    """Launch one; where no node stands yet the first one tests the room and the others wait for its answer."""
    zone = odds.zones[i]
    if i in tried and zone.present == 0:
        odds.counts[i] += 1
        return True
    tried.add(i)
    text = f"{why} of an on-demand price: hazard {zone.rate:.2f}/h"
    if not turn.launch(zone.offering, Cause.SHORT, text):
        return False
    odds.counts[i] += 1
    return True


def _swap(turn: Turn, odds: Odds) -> None:
    """Move one node to a better zone: launch there, and the worst one is given back once that is ready."""
    spot = _counted(turn, Market.SPOT)
    young = any(turn.now - n.launched_at < SWAP_EVERY or n.phase is not Phase.READY for n in spot)
    if young or turn.coming(Market.SPOT) > 0 or odds.spot < turn.pool.replicas or not spot:
        return
    best = (THETA_SWAP, -1)
    for scouts in (False, True):
        odds.later = scouts
        here = odds.here()
        for source in range(len(odds.zones)):
            if not odds.counts[source]:
                continue
            odds.counts[source] -= 1
            for target, zone in enumerate(odds.zones):
                if zone.open and target != source and (odds.counts[target] == 0) is scouts:
                    odds.counts[target] += 1
                    best = max(best, (here - odds.here(), target))
                    odds.counts[target] -= 1
            odds.counts[source] += 1
    if best[1] >= 0:
        _launch_spot(turn, odds, best[1], f"early swap worth {best[0]:.2f}", set())


def _ready(turn: Turn, market: Market) -> int:
    return turn.sure(market)


def _add_on_demand(turn: Turn, odds: Odds, *, bridge: bool) -> None:
    """Launch on-demand nodes while J falls, and, where they start quicker, for what spot is not ready for."""
    pool = turn.pool
    missing, cost, spot = odds.missing(), odds.spot_cost(), odds.spot
    while True:
        held = turn.count(Market.ON_DEMAND)
        gain = odds.value(missing, spot, cost, held) - odds.value(missing, spot, cost, held + 1)
        short = spot + held < pool.replicas
        bridging = bridge and turn.sure(Market.SPOT) + held < pool.replicas
        if held >= pool.on_demand_floor and gain <= THETA_ON_DEMAND and not bridging:
            return
        if held < pool.on_demand_floor:
            why = f"on-demand floor of {pool.on_demand_floor}"
        elif short or bridging:
            why = "cover until spot is ready"
        else:
            why = f"insurance worth {gain:.2f} of its price more than it costs"
        if not _one_on_demand(turn, why, urgent=short or bridging):
            return


def _one_on_demand(turn: Turn, why: str, *, urgent: bool) -> bool:
    if roll_back(turn, Market.ON_DEMAND, 1, why):
        return True
    if urgent and standby.use_stopped(turn, 1, why):
        return True
    offering = turn.scorer.take(Market.ON_DEMAND)
    if offering is None:
        turn.note(turn.scorer.why_none(Market.ON_DEMAND))
        return False
    return turn.launch(offering, Cause.SHORT, why)


def _drop_on_demand(turn: Turn, odds: Odds, *, bridge: bool) -> None:
    """Give on-demand nodes back while J falls, those that are not ready first."""
    pool = turn.pool
    missing, cost, spot = odds.missing(), odds.spot_cost(), odds.spot
    nodes = [n for n in _counted(turn, Market.ON_DEMAND) if n.id not in turn.starting and not n.unknown]
    for node in sorted(nodes, key=_least_useful):
        held = turn.count(Market.ON_DEMAND)
        if held <= pool.on_demand_floor:
            return
        if bridge and turn.sure(Market.SPOT) + held - 1 < pool.replicas:
            return
        gain = odds.value(missing, spot, cost, held) - odds.value(missing, spot, cost, held - 1)
        if gain <= THETA_ON_DEMAND or not _give_back(turn, node, Cause.RETURN, f"worth {gain:.2f} less than it costs"):
            return


def _drop_spot(turn: Turn, odds: Odds) -> None:
    """Give spot nodes back while J falls and nothing is starting."""
    while turn.coming(Market.SPOT) == 0 and turn.may_choose:
        here = odds.here()
        best = (THETA_DROP, -1)
        for i, zone in enumerate(odds.zones):
            if zone.working and odds.counts[i]:
                odds.counts[i] -= 1
                best = max(best, (here - odds.here(), i))
                odds.counts[i] += 1
        if best[1] < 0:
            return
        place = odds.zones[best[1]].offering.placement
        nodes = [n for n in _counted(turn, Market.SPOT) if n.placement == place and not n.unknown]
        if not nodes:
            return
        node = min(nodes, key=_least_useful)
        if not _give_back(turn, node, Cause.EXCESS, f"surplus, worth {best[0]:.2f} less than it costs"):
            return
        odds.counts[best[1]] -= 1


def _give_back(turn: Turn, node: Node, cause: Cause, why: str) -> bool:
    """Let one node go unless ready nodes would fall below wanted."""
    if node.phase is not Phase.READY:
        # While something is missing, what is coming may be the first to be ready.
        if turn.sure_in_all < turn.pool.replicas:
            return False
        turn.terminate(node, Cause.EXCESS, f"not ready yet, and {why}")
        return True
    if node.sure and turn.sure_in_all - 1 < turn.pool.replicas:
        return False
    if not turn.may_choose:
        turn.note(f"{node.id} is surplus and waits: {turn.by_choice} nodes are leaving already")
        return False
    return turn.drain(node, turn.now + turn.pool.drain.budget, cause, why)


def _least_useful(node: Node) -> tuple[bool, bool, float, int, float, str]:
    """Not booted first, then silent, then the dearest, the least busy, the youngest."""
    booted = node.phase is Phase.READY
    return booted, node.sure, -node.price, node.in_flight, -node.launched_at, node.id
