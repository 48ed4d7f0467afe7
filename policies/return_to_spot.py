"""When and how slowly the pool moves back from on-demand cover to spot.

What it decides: how many spot nodes may be launched now and how long a placement must have been quiet, and
which surplus nodes are given back.
Why: spot that just came back goes away again soon (the chance to lose a zone within ten minutes is about a
third right after its return and falls below a twentieth after an hour), and each return costs a cold start
that is paid twice. So the pool returns a few nodes at a time, to placements that were quiet for a while, and
keeps the cover until the new spot nodes have been ready for some time.
Never: a node is given back when that leaves fewer ready nodes than wanted, or fewer on-demand nodes than the
floor; nodes under a notice do not count.

Example: 7 spot nodes are wanted and 4 ready, 3 on-demand nodes cover: two spot nodes are launched, then the
third; `stable` seconds after the last became ready, cover is given back two nodes at a time.
"""

from __future__ import annotations

import math

from policies.actions import Cause
from policies.fleet import Node
from policies.mix import Mix
from policies.model import Market, Phase
from policies.turn import Turn


def spot_allowance(turn: Turn) -> tuple[int, float]:
    """How many more spot launches may be under way, and how long (s) their placement must be quiet.

    Until the pool was whole once there is nothing to return from: all are allowed. The same holds while
    ready nodes are missing and on-demand cannot be had.
    """
    rules = turn.pool.back_to_spot
    if turn.memory.whole_at is None:
        return turn.pool.replicas, 0.0
    return max(0, rules.at_once - turn.coming(Market.SPOT)), rules.hold


def give_back(turn: Turn, mix: Mix) -> None:
    """Drain nodes beyond the mix, those that are not ready first, a few at a time."""
    settled = _spot_settled(turn)
    for market, wanted in ((Market.ON_DEMAND, mix.on_demand), (Market.SPOT, mix.spot)):
        surplus = turn.count(market) - wanted
        if surplus <= 0:
            continue
        for node in sorted(_candidates(turn, market), key=_least_useful)[:surplus]:
            if not _give_back_one(turn, node, market, settled=settled):
                return


def _give_back_one(turn: Turn, node: Node, market: Market, *, settled: bool) -> bool:
    """Give one node back; False when no more may go in this turn."""
    if node.phase is not Phase.READY:
        turn.terminate(node, Cause.EXCESS, "not needed any more, and not ready yet")
        return True
    covering = market is Market.ON_DEMAND and turn.pool.spot_wanted > 0
    if covering and not settled:
        turn.note(f"{node.id} stays as cover until the spot nodes have been ready for {_stable(turn):.0f} s")
        return False
    ready = turn.ready(Market.SPOT) + turn.ready(Market.ON_DEMAND)
    if node.ready and ready - 1 < turn.pool.replicas:
        turn.note(f"{node.id} is surplus and stays: only {ready} nodes are ready")
        return False
    leaving = turn.fleet.voluntary_drains + sum(
        turn.fleet.by_id[i].doomed is None and turn.fleet.by_id[i].drain is None for i in turn.leaving
    )
    if leaving >= max(turn.pool.disruption_budget, turn.pool.back_to_spot.at_once):
        turn.note(f"{node.id} is surplus and waits: {leaving} nodes are leaving already")
        return False
    cause = Cause.RETURN if covering else Cause.EXCESS
    why = "spot is whole again" if covering else "more nodes than wanted"
    turn.drain(node, turn.now + turn.pool.drain.budget, cause, why)
    return True


def _spot_settled(turn: Turn) -> bool:
    """True when every spot node that is ready has been for the stable time."""
    ready = [n for n in turn.fleet.ready if n.spot and n.id not in turn.leaving]
    youngest = max((n.ready_at or math.inf for n in ready), default=-math.inf)
    return turn.now - youngest >= _stable(turn)


def _stable(turn: Turn) -> float:
    """Nothing was ever lost before the pool was whole once: then there is nothing to wait out."""
    return 0.0 if turn.memory.whole_at is None else turn.pool.back_to_spot.stable


def _candidates(turn: Turn, market: Market) -> list[Node]:
    return [n for n in turn.fleet.capacity if n.placement.market is market and n.id not in turn.leaving]


def _least_useful(node: Node) -> tuple[bool, float, int, float, str]:
    """Not ready first, then the dearest, the least busy, the youngest."""
    return node.phase is Phase.READY, -node.price, node.in_flight, -node.launched_at, node.id
