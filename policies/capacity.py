"""How many units are missing, of which market, and what is done about it.

What it decides: launches, starts of standbys and taken-back drains in this turn.
Why: nodes that are starting and launches that the cloud does not describe yet count as coming; a daemon
that counts only what it sees buys twice. Once the pool has been whole, ready capacity comes first: floor,
then cover, then spot. Before that spot comes before cover, so that the first start buys the mix and not a
double of it. The quickest capacity is used first: a node that is draining by our own choice, then a standby,
then a launch.
Nodes come whole: the last one that is launched for what is missing may serve more than that.
Never: more than the limits allow (policies.limits), also of launches that are asked for again. A launch whose
answer was lost is asked again with the same token before anything else is launched in its place. A pool whose
spot share is 0 buys no spot. Spot that is paused (policies.bars) and was never there is not built on demand.

Example: 10 wanted, 7 spot ready, 1 of them noticed: one on-demand node is launched as cover and, if a quiet
placement exists, one spot node to return to.
"""

from __future__ import annotations

from policies import mix as mixing
from policies import standby
from policies.actions import ActionKind, Cause
from policies.mix import Mix
from policies.model import Market, Phase
from policies.plan_builder import Turn
from policies.records import intent_key
from policies.return_to_spot import roll_back, spot_allowance


def repeat_unanswered(turn: Turn) -> None:
    """Ask again, with the same token, for launches and starts that show no effect.

    Launches as far as there is room: what they were asked for may be over. The oldest come first, after those
    that the cloud took.
    """
    launching = sorted(turn.fleet.launching, key=lambda i: i.accepted_at is None)
    if launching:
        units_of = turn.pool.units_of
        living = turn.budget.living - sum(units_of(i.placement) for i in launching)
        for launch in launching:
            turn.launch_again(launch, living=living)
            living += units_of(launch.placement)
    for node in turn.fleet.nodes:
        if node.phase is Phase.STOPPED and not node.aside and not node.leaving:
            intent = turn.memory.intents.get(intent_key(node.id, ActionKind.START))
            if intent is not None:
                turn.start_again(node, intent)


def wanted_now(turn: Turn) -> Mix:
    """The mix at this point of the turn."""
    return mixing.wanted(
        turn.pool,
        spot_ready=turn.working(Market.SPOT),
        spot_coming=turn.coming(Market.SPOT),
        whole=turn.memory.whole_at is not None,
        kept=turn.kept,
    )


def replenish(turn: Turn) -> None:
    """Bring back or launch what is missing, most urgent first."""
    pool = turn.pool
    _on_demand(turn, pool.on_demand_floor, f"on-demand floor of {pool.on_demand_floor}")
    if turn.memory.whole_at is None:
        _spot(turn)
    mix = wanted_now(turn)
    _on_demand(turn, mix.floor + mix.cover, f"cover for {mix.cover} spot {pool.noun()} that are not ready")
    _on_demand(turn, mix.on_demand, f"hot standby of {mix.hot}", use_standby=False)
    if turn.memory.whole_at is not None:
        _spot(turn)


def _on_demand(turn: Turn, wanted: int, why: str, *, use_standby: bool = True) -> None:
    missing = wanted - turn.count(Market.ON_DEMAND)
    if missing > 0:
        missing -= roll_back(turn, Market.ON_DEMAND, missing, why)
    if missing > 0 and use_standby:
        missing -= standby.use_stopped(turn, missing, why)
    while missing > 0:
        offering = turn.offer(Market.ON_DEMAND, missing)
        if offering is None:
            _stand_in(turn, wanted, why)
            return
        if not turn.launch(offering, Cause.SHORT, why):
            return
        missing -= turn.pool.units_of(offering.placement)


def _stand_in(turn: Turn, wanted: int, why: str) -> None:
    """On-demand cannot be had: spot beyond its share is better than too little.

    Spot nodes that are coming anyway count: more of them would be ready no sooner.
    """
    turn.note(turn.scorer.why_none(Market.ON_DEMAND))
    pool = turn.pool
    if pool.spot_wanted == 0:
        return
    on_demand, spot = turn.count(Market.ON_DEMAND), turn.count(Market.SPOT)
    short = wanted - on_demand - max(0, spot - pool.spot_wanted)
    room = pool.replicas + pool.standby.hot - on_demand - spot
    missing = min(short, room)
    while missing > 0:
        offering = turn.offer(Market.SPOT, missing)
        if offering is None or not turn.launch(
            offering, Cause.SHORT, f"{why}, on-demand refused: spot stands in"
        ):
            return
        missing -= pool.units_of(offering.placement)


def _spot(turn: Turn) -> None:
    why = f"spot share of {turn.pool.spot_wanted}"
    missing = turn.pool.spot_wanted - turn.count(Market.SPOT)
    if missing > 0:
        missing -= roll_back(turn, Market.SPOT, missing, why)
    if missing <= 0:
        return
    allowed, hold = spot_allowance(turn)
    if allowed < missing:
        verb = "is" if missing == 1 else "are"
        turn.note(f"{missing} spot {turn.pool.noun(missing)} {verb} missing; {allowed} may be launched now")
    while missing > 0 and allowed > 0:
        offering = turn.offer(Market.SPOT, missing, quiet_for=hold)
        if offering is None:
            turn.note(turn.scorer.why_none(Market.SPOT))
            return
        if not turn.launch(offering, Cause.SHORT, why, swap=turn.memory.whole_at is None):
            return
        units = turn.pool.units_of(offering.placement)
        missing, allowed = missing - units, allowed - units
