"""How many nodes are missing, of which market, and what is done about it.

What it decides: launches (and starts of standbys) in this turn.
Why: nodes that are starting and launches that the cloud does not describe yet count as coming; a daemon
that counts only what it sees buys twice. Once the pool has been whole, ready capacity comes first: floor,
then cover, then spot. Before that spot comes before cover, so that the first start buys the mix and not a
double of it.
Never: more than the limits allow (policies.limits). A launch whose answer was lost is asked again with the
same token before anything else is launched in its place.

Example: 10 wanted, 7 spot ready, 1 of them noticed: one on-demand node is launched as cover and, if a quiet
placement exists, one spot node to return to.
"""

from __future__ import annotations

from policies import mix as mixing
from policies import standby
from policies.actions import ActionKind, Cause, Launch
from policies.memory import Intent
from policies.mix import Mix
from policies.model import Market, Offering
from policies.return_to_spot import spot_allowance
from policies.turn import Turn


def repeat_unanswered(turn: Turn) -> None:
    """Ask again, with the same token, for launches whose outcome is not known."""
    refusal = turn.frozen()
    for intent in turn.fleet.launching:
        if not intent.due(turn.now, turn.pool.patience.effect_timeout) or intent.placement is None:
            continue
        if refusal:
            turn.defer(ActionKind.LAUNCH, refusal, placement=intent.placement)
            continue
        turn.actions.append(_again(intent))


def _again(intent: Intent) -> Launch:
    if intent.placement is None or intent.cause is None:
        raise ValueError(f"launch intent {intent.token} lacks its placement or cause")
    first = intent.reason.removesuffix(_AGAIN)
    return Launch(
        token=intent.token,
        placement=intent.placement,
        price=intent.price,
        cause=intent.cause,
        reason=first + _AGAIN,
        standby=intent.standby,
        replaces=intent.replaces,
    )


_AGAIN = " (asked again with the same token)"


def wanted_now(turn: Turn) -> Mix:
    """The mix at this point of the turn."""
    return mixing.wanted(
        turn.pool,
        spot_ready=turn.ready(Market.SPOT),
        spot_coming=turn.coming(Market.SPOT),
        whole=turn.memory.whole_at is not None,
    )


def replenish(turn: Turn) -> Mix:
    """Launch what is missing, most urgent first; returns the mix that was aimed at."""
    pool = turn.pool
    _on_demand(turn, pool.on_demand_floor, f"on-demand floor of {pool.on_demand_floor}")
    if turn.memory.whole_at is None:
        _spot(turn)
    mix = wanted_now(turn)
    _on_demand(turn, mix.floor + mix.cover, f"cover for {mix.cover} spot nodes that are not ready")
    _on_demand(turn, mix.on_demand, f"hot standby of {mix.hot}")
    if turn.memory.whole_at is not None:
        _spot(turn)
    return mix


def _on_demand(turn: Turn, wanted: int, why: str) -> None:
    missing = wanted - turn.count(Market.ON_DEMAND)
    if missing <= 0:
        return
    missing -= standby.use_stopped(turn, missing)
    for _ in range(missing):
        offering = turn.scorer.take(Market.ON_DEMAND)
        if offering is None:
            _stand_in(turn, wanted, why)
            return
        if not turn.launch(offering, Cause.SHORT, why):
            return


def _stand_in(turn: Turn, wanted: int, why: str) -> None:
    """On-demand cannot be had: spot beyond its share is better than too few nodes."""
    turn.note(turn.scorer.why_none(Market.ON_DEMAND))
    surplus = max(0, turn.count(Market.SPOT) - turn.pool.spot_wanted)
    for _ in range(wanted - turn.count(Market.ON_DEMAND) - surplus):
        offering = turn.scorer.take(Market.SPOT)
        if offering is None or not turn.launch(
            offering, Cause.SHORT, f"{why}, on-demand refused: spot stands in"
        ):
            return


def _spot(turn: Turn) -> None:
    missing = turn.pool.spot_wanted - turn.count(Market.SPOT)
    if missing <= 0:
        return
    allowed, hold = spot_allowance(turn)
    if allowed < missing:
        turn.note(f"{missing} spot nodes are missing; {allowed} may be launched now")
    for _ in range(min(missing, allowed)):
        offering: Offering | None = turn.scorer.take(Market.SPOT, quiet_for=hold)
        if offering is None:
            turn.note(turn.scorer.why_none(Market.SPOT))
            return
        why = f"spot share of {turn.pool.spot_wanted}"
        if not turn.launch(offering, Cause.SHORT, why, swap=turn.memory.whole_at is None):
            return
