"""When and how slowly the pool moves back from on-demand cover to spot.

What it decides: how many spot nodes may be launched now and how long a placement must have been quiet,
which surplus nodes are given back, and which of those are taken back into work when they are needed again.
Why: spot that just came back goes away again soon (the chance to lose a zone within ten minutes is about a
third right after its return and falls below a twentieth after an hour), and each return costs a cold start
that is paid twice. So the pool returns a few units at a time, to placements that were quiet for a while. A
spot node frees a cover node only after it has been ready for `stable` seconds, and a node that is already
draining to be given back is the quickest replacement of all.
Never: a node is given back when that leaves fewer ready units than wanted, or fewer on-demand units than the
floor: one that serves more than what is over stays, and so what stays over is less than any node that could
go; nodes under a notice, silent nodes and nodes that are still starting do not count. Never more at once
than the disruption budget. With a surge limit of 0 the pool cannot make before it breaks: cover then stays.

Example: 7 spot nodes are wanted and 4 ready, 3 on-demand nodes cover: two spot nodes are launched, then the
third; each one that has been ready for `stable` seconds lets one cover node drain.
"""

from __future__ import annotations

from policies.actions import Cause
from policies.disruption import Act
from policies.fleet import least_over
from policies.model import Market, Phase
from policies.node import Node
from policies.plan_builder import Turn


def spot_allowance(turn: Turn) -> tuple[int, float]:
    """How many more units may be on their way on spot, and how long (s) their placement must be quiet.

    Until the pool was whole once there is nothing to return from: all are allowed.
    """
    rules = turn.pool.back_to_spot
    if turn.memory.whole_at is None:
        return turn.pool.replicas, 0.0
    return max(0, rules.at_once - turn.coming(Market.SPOT)), rules.hold


def roll_back(turn: Turn, market: Market, most: int, why: str) -> int:
    """Put nodes of a market back to work for up to `most` units; returns how many units.

    Those that drain only to save money, and those that were silent and answer again. They live as it is, so
    that the limit does not hold them back, unless launches of this turn have reached it.
    """
    back = 0
    out = [n for n in turn.fleet.nodes if n.phase is Phase.DRAINING and n.placement.market is market]
    for node in least_over(out, most):
        if back >= most or (turn.launched and turn.budget.full):
            break
        if node.id in turn.returning or node.operator is not None or not turn.allows(Act.UNDRAIN, node):
            continue
        if turn.undrain(node, f"needed again: {why}"):
            back += node.units
    return back


def give_back(turn: Turn) -> None:
    """Let go of nodes beyond the mix, those that are not ready first, a few units at a time.

    What stands in for a node is kept until that node is ready, whatever is on its way.
    """
    pool = turn.pool
    fixed = pool.on_demand_floor + pool.standby.hot
    if turn.count(Market.ON_DEMAND) <= fixed and turn.count(Market.SPOT) <= pool.spot_wanted:
        return  # nothing is beyond the mix
    settled = sum(n.units for n in turn.fleet.nodes if _settled(turn, n))
    cover = max(0, pool.spot_wanted - settled)
    spot = pool.spot_wanted + max(0, fixed - turn.reliable(Market.ON_DEMAND))
    advised = sum(n.units for n in turn.advised)
    # A successor that is on its way is no surplus: the node whose place it takes is.
    for market, kept in ((Market.ON_DEMAND, fixed + cover), (Market.SPOT, spot + advised)):
        surplus = turn.count(market) - kept
        if surplus <= 0:
            continue
        for node in sorted(_candidates(turn, market), key=least_useful):
            if node.units > surplus:
                continue
            if not _give_back_one(turn, node, kept):
                break
            surplus -= node.units


def _give_back_one(turn: Turn, node: Node, kept: int) -> bool:
    """Give one node back; False when no more of its market may go in this turn.

    `kept` units of its market must remain that may be relied on.
    """
    if node.phase is not Phase.READY:
        return turn.terminate(node, Cause.EXCESS, "not needed any more, and not ready yet")
    ready, here, noun = turn.reliable_in_all, turn.reliable(node.placement.market), turn.pool.noun()
    if not turn.enough_without(node, floor=kept):
        turn.note(f"{node.id} is surplus and stays: only {ready} {noun} are ready, {here} of its market")
        return False
    covering = not node.spot and turn.pool.spot_wanted > 0
    if covering and turn.by_choice >= turn.pool.back_to_spot.at_once:
        turn.note(f"{node.id} is surplus and waits: {turn.by_choice} {noun} are leaving already")
        return False
    cause = Cause.RETURN if covering else Cause.EXCESS
    why = "spot is whole again" if covering else "more nodes than wanted"
    return turn.drain(node, turn.now + turn.pool.drain.budget, cause, why)


def _settled(turn: Turn, node: Node) -> bool:
    """True for a spot node that has been ready for the stable time.

    Nothing was ever lost before the pool was whole once: then there is nothing to wait out.
    """
    if not (node.reliable and node.spot and node.ready_at is not None) or node.id in turn.leaving:
        return False
    stable = 0.0 if turn.memory.whole_at is None else turn.pool.back_to_spot.stable
    return turn.now - node.ready_at >= stable


def _candidates(turn: Turn, market: Market) -> list[Node]:
    """Nodes of a market that may be given back."""
    return [n for n in turn.fleet.capacity if n.placement.market is market and may_go(turn, n)]


def may_go(turn: Turn, node: Node) -> bool:
    """True for a node that may be given back: nobody else chose it, and it is known whether it works.

    One that is not ready is no surplus boot while it may have been put to work by an earlier daemon. One in a
    region that cannot be seen keeps none in another region from going.
    """
    if node.id in turn.leaving or node.id in turn.starting:
        return False
    if turn.fleet.sight.passed_over(node.placement.region):
        return False
    return node.heard.known if node.phase is Phase.READY else not node.holds_requests.open


def least_useful(node: Node) -> tuple[bool, bool, float, int, float, str]:
    """Not booted first, then silent, then the dearest, the least busy, the youngest."""
    booted = node.phase is Phase.READY
    return booted, node.reliable, -(node.price or 0.0), node.in_flight, -node.launched_at, node.id
