"""What a rebalance recommendation does: a successor first, then the node goes, or it stays after all.

What it decides: for a pool that heeds recommendations (`rebalance.replace`), which spot nodes make way, when
their successors are launched and when they drain.
Why: EC2 recommends to leave a machine whose risk has risen, often well before the interruption notice, and
two minutes are too short to start a large model. But most recommendations come to nothing and they come for
whole zones, so they are a wish and not an order: as many spot units more than wanted as the node serves are
launched elsewhere, and once they are ready it is to spare. If none came before the recommendation has run
out, the node just goes on; it has served and counted all the while.
Never: on-demand nodes are bought for it; ready nodes fall below wanted and the hot standby; more nodes go at
once than the disruption budget allows; the successor goes to a place that is itself to be left. Where the
pool is short of nodes, those come first. A noticed node is not meant: its notice is an order.

Example: of seven spot nodes two are recommended to leave zone a, and one may go at a time: a spot node is
launched in zone b, the older recommendation drains when it is ready, then the same for the other.
"""

from __future__ import annotations

from policies.actions import Cause
from policies.model import Market
from policies.plan_builder import Turn
from policies.return_to_spot import spot_allowance


def drain_replaced(turn: Turn) -> None:
    """Drain nodes that make way, as far as there is one ready to spare for each."""
    for node in turn.advised:
        if turn.count(Market.SPOT) - node.units < _spot_wanted(turn):
            turn.note_serving(
                node,
                f"{node.id}: rebalance recommended; it serves on: no other spot node is to spare",
                otherwise=f"{node.id}: rebalance recommended: no other spot node is to spare",
            )
            return  # it would be put back at once
        reason = "rebalance recommended, and another node is ready"
        if not turn.drain(node, turn.now + turn.pool.drain.budget, Cause.REBALANCE, reason):
            return


def launch_successors(turn: Turn) -> None:
    """Launch as many spot units elsewhere for each node that is to make way and has no successor yet."""
    pool, advised = turn.pool, turn.advised
    if not advised or turn.memory.whole_at is None:
        return
    extra = turn.count(Market.SPOT) - _spot_wanted(turn)
    if extra < 0:
        return  # what is missing comes first
    allowed, hold = spot_allowance(turn)
    for node in advised:
        extra -= node.units
        while extra < 0 < allowed:
            offering = turn.offer(Market.SPOT, -extra, quiet_for=hold)
            if offering is None:
                turn.note(f"{node.id}: rebalance recommended; {turn.scorer.why_none(Market.SPOT)}")
                return
            reason = f"successor of {node.id}, which the cloud recommends to leave"
            if not turn.launch(offering, Cause.REBALANCE, reason, swap=False):
                return
            units = pool.units_of(offering.placement)
            extra, allowed = extra + units, allowed - units


def _spot_wanted(turn: Turn) -> int:
    """Spot units that the mix needs, beyond which a node is a successor."""
    pool = turn.pool
    return pool.spot_wanted if pool.adaptive is None else pool.replicas - turn.count(Market.ON_DEMAND)
