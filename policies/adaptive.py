"""The adaptive mix: the cheapest fleet that holds the availability the operator stated.

What it decides: how many spot nodes in which zone and how many on-demand nodes a pool with
`mix = "adaptive"` should hold now, hence its launches, what it gives back, and its early swaps.
Why: a fixed on-demand share pays for safety all the time and everywhere; what is at risk differs by zone and
by hour, and a replacement that is ready within the notice makes insurance needless.

The mathematics. A fleet of s_z spot nodes in zone z and o on-demand nodes costs, per hour and in on-demand
prices,

    J = sum_z s_z (price_z + churn * rate_z) + o + penalty * E[(N - s - o + M)+]

* rate_z is the hazard (`policies.hazard`), churn the price of one more start: OVERLAP of a start time.
* A lost node is missed for ``gap = max(0, start - notice)``, with start the quickest way to a new node; the
  share of losses without a notice is missed for the whole start. So zone z misses nodes with probability
  ``p_z = 1 - exp(-rate_z * gap)``: all it holds with probability `share_taken`, else one. Regions are taken
  as independent; in a region a share TOGETHER of the losses strikes other zones at the same moment, and
  storms after it are in rate_z. The number M of missing nodes is the convolution over regions.
* Stopped standbys that start within the notice cover the first of M for nothing: no cover is cheaper.
* penalty is the multiplier of the availability constraint: what a missing node-hour may cost.

What is missing now is weighed by the whole penalty, so cover is launched in the turn of the notice, on
whichever market lowers J more. Spot on its way counts as cover; where an on-demand node or a standby starts
quicker, it bridges until the spot node is ready.

Zones without a node are judged by their `outlook`, the losses per hour of use over HORIZON, for one node: the
scout. It shows how old the zone's spell is, while other capacity still carries the pool. Nodes that follow it
are judged by the hazard now, since in a young zone they would have to be insured at once. Where spot is
missing and no zone is worth a scout, one still goes to the zone that was not looked at for longest,
once that is EXPLORE: a zone that was bad when last seen would else never be found good again.

Nodes are added one at a time where J falls most, by THETA_ADD at least, and given back where J falls by
THETA_DROP at least: the difference keeps it from going back and forth. A spot node goes when the outlook has
no use for it, and stays while the hazard now would buy it again.
Until some on-demand price is known there is nothing to measure by, and the pool holds its split instead.
It knows nodes of one unit only: a pool whose types serve different numbers of units keeps the 70/30 mix, and
`policies.model.Pool` refuses both together.
Never: a node is given back by choice when fewer ready nodes than wanted would be left, or fewer on-demand
nodes than the floor; a zone that announced a loss gets no launch until a while after its deadline; spot that
is paused (`policies.bars`) and was never there is built on demand.

Sources: the trade of surplus against shortage is the newsvendor's (Arrow, Harris and Marschak, Econometrica
1951), the penalty a Lagrangian relaxation of the service level; surplus spot as insurance is SpotHedge's (Mao
et al., EuroSys 2025); research on public traces, with results, is in docs/explanation/adaptive.md.

Example: eight nodes wanted, one zone open for a day and one that just came back: the old zone gets most of
the spot nodes, the young one a scout, and an on-demand node is kept beside it until it is older.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

from policies import hazard, standby
from policies.actions import Cause
from policies.fleet_cost import FleetCost, Zone
from policies.model import AdaptiveRules, Market, Offering, Phase, Placement
from policies.node import Node
from policies.plan_builder import Turn
from policies.return_to_spot import least_useful, may_go, roll_back

PENALTY = 110.0
"""On-demand node-prices per missing node-hour at an availability of 99.9 %."""

PENALTY_POWER = 0.5
"""How the penalty grows as the share that may be missing shrinks."""

OVERLAP = 0.6
"""Share of a start time that is paid twice when a node is replaced."""

HORIZON = 24.0
"""Hours ahead for which a spot node is bought: what it costs and risks is judged over them."""

REACT = 1.0
"""Seconds from a notice to the launch of what replaces the node."""

THETA_ADD = 0.01
THETA_DROP = 0.1
THETA_SWAP = 0.06
THETA_ON_DEMAND = 0.1
"""By how much J must fall before a spot node is added, given back, moved, or an on-demand node is added or
given back: shares of the on-demand price."""

MOST_SURPLUS = 1.0
"""Spot nodes beyond wanted, as a share of wanted."""

SWAP_EVERY = 600.0
"""Seconds between two early swaps."""

CLOSED_AFTER = 60.0
CLOSED_AT_MOST = 1500.0
CLOSED_PER_GAP = 25.0
"""Seconds after a notice has run out during which its zone gets no launch: what is back goes again soon.
CLOSED_PER_GAP for each second that a lost node is missed, and within the other two."""

EXPLORE = 6.0
"""Hours without a look after which a zone gets a scout although it is not worth one."""

_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Times:
    """How long things take now, in seconds: learned, or else as configured."""

    spot: float  # from a launch until ready
    on_demand: float  # from a launch until ready
    standby: float  # from the start of a stopped standby until ready
    notice: float  # from a notice to its deadline
    unannounced: float  # share of losses without a notice

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

    # Twenty losses with a notice are believed before any was seen.
    losses = turn.memory.preemptions
    unannounced = turn.memory.preemptions_without_notice / (losses + 20.0)
    return Times(
        spot=of(hazard.SPOT_START, rules.spot_start),
        on_demand=of(hazard.ON_DEMAND_START, rules.on_demand_start),
        standby=of(hazard.STANDBY_START, rules.standby_start),
        notice=of(hazard.NOTICE_LEAD, rules.notice),
        unannounced=unannounced,
    )


def penalty(availability: float) -> float:
    """What a missing node-hour may cost, in on-demand prices, for the stated availability."""
    allowed = max(1e-6, 1.0 - availability)
    scaled: float = PENALTY * (0.001 / allowed) ** PENALTY_POWER
    return scaled


def on_demand_price(turn: Turn) -> float | None:
    """What everything is measured in: the cheapest on-demand node, USD/h. None as long as it is not known."""
    on_demand = [o for o in turn.fleet.prices.on_sale if o.placement.market is Market.ON_DEMAND]
    return min((o.price for o in on_demand if o.price is not None), default=None)


def steer(turn: Turn, rules: AdaptiveRules, price: float) -> None:
    """Bring the fleet towards the cheapest one that holds the availability. `price`: `on_demand_price`."""
    when = times(turn, rules)
    # Standbys that start within the notice stand in for what is lost.
    quick = when.standby + REACT <= when.notice
    free = sum(n.aside and n.phase is Phase.STOPPED for n in turn.fleet.nodes)
    covered = quick and free > 0
    zones = _zones(turn, when, price, closed=_closed_for(0.0 if covered else when.gap))
    costs = FleetCost(
        zones,
        wanted=turn.pool.replicas,
        penalty=penalty(rules.availability),
        churn=OVERLAP * when.spot / _HOUR,
        free=free if covered else 0,
        floor=turn.pool.on_demand_floor,
    )
    bridge = when.on_demand + REACT < when.spot
    _add_spot(turn, costs)
    _swap(turn, costs)
    costs.later = False
    if when.standby < when.spot:
        _start_standbys(turn)
    _add_on_demand(turn, costs, bridge=bridge)
    _drop_on_demand(turn, costs)
    costs.later = True
    _drop_spot(turn, costs)


def _closed_for(gap: float) -> float:
    """Seconds after a notice has run out during which its zone gets no launch."""
    return max(CLOSED_AFTER, min(CLOSED_AT_MOST, CLOSED_PER_GAP * gap))


def _zones(turn: Turn, when: Times, unit: float, *, closed: float) -> list[Zone]:
    """Every spot placement that is sold or held. A price that is not known counts as on-demand's, `unit`,
    which spot does not exceed; a spend cap needs a known one."""
    now, memory = turn.now, turn.memory
    overall = hazard.all_factor(memory.zones)
    storms = hazard.storms(memory.zones, now)
    held = _by_place(_counted(turn, Market.SPOT))
    coming = Counter(
        intent.placement
        for intent in turn.fleet.launching
        if intent.placement is not None and turn.fleet.sight.waited_for(intent.placement.region)
    )
    found = []
    capped = turn.pool.limits.spend_per_hour is not None
    sold = turn.fleet.prices.on_sale
    kept = held.keys() - {o.placement for o in sold}  # still there, and sold no more
    unsold = [Offering(placement=p, price=held[p][0].price, available=False) for p in kept]
    for offering in sorted((*sold, *unsold), key=lambda o: o.placement):
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
                price=1.0 if offering.price is None else offering.price / unit,
                rate=rate,
                outlook=later,
                down_later=1.0 - math.exp(-later * when.gap / _HOUR),
                down=1.0 - math.exp(-rate * when.gap / _HOUR),
                whole=hazard.share_taken(history),
                open=offering.available
                and not (capped and offering.price is None)
                and not _closed(turn, place, when.notice + closed),
                count=len(nodes) + coming[place],
                present=len(nodes),
                working=sum(n.phase is Phase.READY for n in nodes),
            )
        )
    return found


def _closed(turn: Turn, place: Placement, seconds: float) -> bool:
    """A zone that refused lately, or announced a loss within so many seconds."""
    reclaim = turn.memory.reclaims.get(place)
    if reclaim is not None and turn.now - reclaim.at < seconds:
        return True
    return bool(turn.scorer.blocked(place))


def _counted(turn: Turn, market: Market) -> list[Node]:
    """Nodes of a market that count towards wanted and stay in this turn."""
    return [n for n in turn.fleet.capacity if n.placement.market is market and n.id not in turn.leaving]


def _by_place(nodes: Iterable[Node]) -> dict[Placement, list[Node]]:
    """The nodes of each placement, in their order."""
    found: dict[Placement, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.placement, []).append(node)
    return found


def _add_spot(turn: Turn, costs: FleetCost) -> None:
    """Launch spot nodes one at a time where J falls most."""
    most = turn.pool.replicas + math.ceil(MOST_SURPLUS * turn.pool.replicas)
    if turn.pool.spot_wanted == 0:
        return
    tried: set[int] = set()
    while costs.spot < most:
        short = costs.spot < turn.pool.replicas
        gains = (*_gains(costs, scouts=False), *(_gains(costs, scouts=True) if short else ()))
        gain, place = max(gains, default=(0.0, 0))
        if gain < THETA_ADD:
            _explore(turn, costs)
            return
        if not _launch_spot(turn, costs, -place, f"spot node worth {gain:.2f} of an on-demand price", tried):
            return


def _explore(turn: Turn, costs: FleetCost) -> None:
    """Send a scout to the zone that was not looked at for longest."""
    if costs.spot >= turn.pool.replicas or turn.coming(Market.SPOT) > 0:
        return
    longest, chosen = EXPLORE, -1
    for i, zone in enumerate(costs.zones):
        if costs.counts[i] or not zone.open:
            continue
        history = turn.memory.zones.get(zone.offering.placement)
        unseen = hazard.UNKNOWN_FOR if history is None else (turn.now - history.seen_at) / _HOUR
        if unseen >= longest:
            longest, chosen = unseen, i
    if chosen >= 0:
        _launch_spot(turn, costs, chosen, f"a look at a zone not seen for {longest:.0f} h", set())


def _gains(costs: FleetCost, *, scouts: bool) -> list[tuple[float, int]]:
    """What one more node is worth in each open zone: the first one in a zone, the scout, or a further one.

    A scout is bought for the hours to come; what follows it is judged by the hazard now.
    """
    costs.later = scouts
    chosen = [i for i, zone in enumerate(costs.zones) if zone.open and (not scouts or costs.counts[i] == 0)]
    if not chosen:
        return []
    here = costs.here()
    return [(costs.gain_of_one_more(i, here), -i) for i in chosen]


def _launch_spot(turn: Turn, costs: FleetCost, i: int, why: str, tried: set[int]) -> bool:
    """Launch one. Where no node stands yet the first tests the room, and the others wait for its answer."""
    zone = costs.zones[i]
    if i in tried and zone.present == 0:
        costs.counts[i] += 1
        return True
    tried.add(i)
    text = f"{why}: hazard {zone.rate:.2f}/h"
    if not turn.launch(zone.offering, Cause.SHORT, text):
        return False
    costs.counts[i] += 1
    return True


def _swap(turn: Turn, costs: FleetCost) -> None:
    """Move one node to a better zone: launch there, and the worst one is given back once that is ready."""
    spot = _counted(turn, Market.SPOT)
    young = any(turn.now - n.launched_at < SWAP_EVERY or n.phase is not Phase.READY for n in spot)
    if young or turn.coming(Market.SPOT) > 0 or costs.spot < turn.pool.replicas or not spot:
        return
    costs.later = False
    here = costs.here()
    best = (THETA_SWAP, -1)
    for source, target in permutations(range(len(costs.zones)), 2):
        if costs.counts[source] and costs.zones[target].open:
            best = max(best, (here - costs.moved(source, target), target))
    if best[1] >= 0:
        _launch_spot(turn, costs, best[1], f"early swap worth {best[0]:.2f} of an on-demand price", set())


def _add_on_demand(turn: Turn, costs: FleetCost, *, bridge: bool) -> None:
    """Launch on-demand nodes while J falls, and, where they start quicker, for what spot is not ready for."""
    pool = turn.pool
    missing, cost, spot = costs.missing(), costs.spot_cost(), costs.spot
    while True:
        held = turn.count(Market.ON_DEMAND)
        gain = costs.value(missing, spot, cost, held) - costs.value(missing, spot, cost, held + 1)
        short = spot + held < pool.replicas
        bridging = bridge and turn.reliable(Market.SPOT) + held < pool.replicas
        if held >= pool.on_demand_floor and gain <= THETA_ON_DEMAND and not bridging:
            return
        if turn.kept is not None and held >= max(
            pool.on_demand_floor, turn.kept - turn.reliable(Market.SPOT)
        ):
            turn.note("spot is paused, and what was not there before is not bought on demand")
            return
        if held < pool.on_demand_floor:
            why = f"on-demand floor of {pool.on_demand_floor}"
        elif short or bridging:
            why = "cover until spot is ready"
        else:
            why = f"insurance worth {gain:.2f} of its price more than it costs"
        if not _one_on_demand(turn, why, urgent=short or bridging):
            return


def _start_standbys(turn: Turn) -> None:
    """Start stopped standbys for what spot is not ready for: they are ready sooner than anything launched."""
    missing = turn.pool.replicas - turn.reliable(Market.SPOT) - turn.count(Market.ON_DEMAND)
    if missing > 0 and turn.memory.whole_at is not None:
        standby.use_stopped(turn, missing, "cover until spot is ready")


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


def _drop_on_demand(turn: Turn, costs: FleetCost) -> None:
    """Give on-demand nodes back while J falls, those that are not ready first."""
    pool = turn.pool
    missing, cost, spot = costs.missing(), costs.spot_cost(), costs.spot
    nodes = [n for n in _counted(turn, Market.ON_DEMAND) if may_go(turn, n)]
    for node in sorted(nodes, key=least_useful):
        held = turn.count(Market.ON_DEMAND)
        if held <= pool.on_demand_floor:
            return
        gain = costs.value(missing, spot, cost, held) - costs.value(missing, spot, cost, held - 1)
        if gain <= THETA_ON_DEMAND or not _give_back(
            turn, node, Cause.RETURN, f"worth {gain:.2f} less than it costs"
        ):
            return


def _drop_spot(turn: Turn, costs: FleetCost) -> None:
    """Give spot nodes back while J falls and nothing is starting."""
    spot = sorted(_counted(turn, Market.SPOT), key=least_useful, reverse=True)
    held = _by_place(node for node in spot if may_go(turn, node))
    while turn.coming(Market.SPOT) == 0 and turn.may_choose():
        best = _worth_least(turn, costs)
        if best[1] < 0:
            return
        nodes = held.get(costs.zones[best[1]].offering.placement)
        if not nodes:
            return
        why = f"surplus, worth {best[0]:.2f} less than it costs"
        if not _give_back(turn, nodes.pop(), Cause.EXCESS, why):
            return
        costs.counts[best[1]] -= 1


def _worth_least(turn: Turn, costs: FleetCost) -> tuple[float, int]:
    """By how much J falls when a node of the best zone for that goes, and the zone; -1 where none should.

    Nodes in a region that cannot be seen stay. What would be bought again at once stays: it may insure
    against the hazard now, whatever the outlook.
    """
    here = costs.here()
    best = (THETA_DROP, -1)
    for i, zone in enumerate(costs.zones):
        unseen = turn.fleet.sight.passed_over(zone.offering.placement.region)
        if zone.working and costs.counts[i] and not unseen:
            costs.counts[i] -= 1
            found = (here - costs.here(), i)
            if found > best and not (zone.open and _gain_now(costs, i) >= THETA_ADD):
                best = found
            costs.counts[i] += 1
    return best


def _gain_now(costs: FleetCost, i: int) -> float:
    """What one more node in a zone is worth by the hazard now."""
    costs.later = False
    gain = costs.gain_of_one_more(i, costs.here())
    costs.later = True
    return gain


def _give_back(turn: Turn, node: Node, cause: Cause, why: str) -> bool:
    """Let one node go unless too few that may be relied on would stay: wanted in all, the floor on demand."""
    if node.phase is not Phase.READY:
        return turn.terminate(node, Cause.EXCESS, f"not ready yet, and {why}")
    return turn.drain(node, turn.now + turn.pool.drain.budget, cause, why)
